// CUDA's atomic functions. Compiled without instrumentation: each notes itself as one atomic
// access.
#include <atomic>
#include <functional>

#include "emulator/cuda_builtins.h"
#include "emulator/cuda_math.h"

namespace brasa::simt::emulator {
namespace {

/// Replaces *address by next(*address); the value before. Inlined, so that the return address is
/// that of the atomic function: a place in the kernel.
template <class T, class Next>
inline __attribute__((always_inline)) T update(T* address, Next next) {
  note_access(address, sizeof(T), kWrite | kAtomic, __builtin_return_address(0));
  const std::atomic_ref<T> target(*address);
  T old = target.load();
  while (!target.compare_exchange_weak(old, next(old))) {
  }
  return old;
}

}  // namespace
}  // namespace brasa::simt::emulator

#define BRASA_ATOMIC(name, T, next)                                                    \
  T name(T* address, T value) {                                                        \
    return ::brasa::simt::emulator::update(address, [=](T old) -> T { return next; }); \
  }
BRASA_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + value))
BRASA_ATOMIC(atomicAdd, unsigned, old + value)
BRASA_ATOMIC(atomicAdd, unsigned long long, old + value)
BRASA_ATOMIC(atomicAdd, float, old + value)
BRASA_ATOMIC(atomicAdd, double, old + value)
BRASA_ATOMIC(atomicMax, int, max(old, value))
BRASA_ATOMIC(atomicMax, unsigned, max(old, value))
BRASA_ATOMIC(atomicMin, int, min(old, value))
BRASA_ATOMIC(atomicMin, unsigned, min(old, value))
BRASA_ATOMIC(atomicExch, int, ((void)old, value))
BRASA_ATOMIC(atomicExch, unsigned, ((void)old, value))
BRASA_ATOMIC(atomicExch, float, ((void)old, value))
#undef BRASA_ATOMIC

#define BRASA_ATOMIC_CAS(T)                                                 \
  T atomicCAS(T* address, T compare, T value) {                             \
    return ::brasa::simt::emulator::update(                                 \
        address, [=](T old) -> T { return old == compare ? value : old; }); \
  }
BRASA_ATOMIC_CAS(int)
BRASA_ATOMIC_CAS(unsigned)
BRASA_ATOMIC_CAS(unsigned long long)
#undef BRASA_ATOMIC_CAS
