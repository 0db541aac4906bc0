// The callbacks that `g++ -fsanitize=thread` plants before every memory access, linked in place of
// the sanitizer's library: kernels are compiled with the option, everything else and the link
// without it. A module that links this file checks for races unless it is told not to.
#include <cstddef>
#include <cstdint>

#include "emulator/scheduler.h"

namespace {

using brasa::simt::emulator::kRead;
using brasa::simt::emulator::kWrite;
using brasa::simt::emulator::note_access;

[[maybe_unused]] const bool switched_on = [] {
  auto& options = brasa::simt::emulator::Scheduler::instance().options;
  return options.race = options.instrumented = true;
}();

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#define BRASA_ACCESS(name, bytes)                               \
  void __tsan_##name##read##bytes(void* p) {                    \
    note_access(p, bytes, kRead, __builtin_return_address(0));  \
  }                                                             \
  void __tsan_##name##write##bytes(void* p) {                   \
    note_access(p, bytes, kWrite, __builtin_return_address(0)); \
  }
BRASA_ACCESS(, 1)
BRASA_ACCESS(, 2)
BRASA_ACCESS(, 4)
BRASA_ACCESS(, 8)
BRASA_ACCESS(, 16)
BRASA_ACCESS(unaligned_, 2)
BRASA_ACCESS(unaligned_, 4)
BRASA_ACCESS(unaligned_, 8)
BRASA_ACCESS(unaligned_, 16)
#undef BRASA_ACCESS

void __tsan_read_range(void* p, size_t bytes) {
  note_access(p, bytes, kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  note_access(p, bytes, kWrite, __builtin_return_address(0));
}

// Atomics of host code beside the kernels (guards of local statics, reference counts). Kernels use
// CUDA's atomic functions, which note themselves.
#define BRASA_HOST_ATOMICS(bits)                                                                   \
  int##bits##_t __tsan_atomic##bits##_load(const volatile int##bits##_t* p, int) {                 \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile int##bits##_t* p, int##bits##_t v, int) {              \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  int##bits##_t __tsan_atomic##bits##_exchange(volatile int##bits##_t* p, int##bits##_t v, int) {  \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  int##bits##_t __tsan_atomic##bits##_fetch_add(volatile int##bits##_t* p, int##bits##_t v, int) { \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int##bits##_t __tsan_atomic##bits##_fetch_sub(volatile int##bits##_t* p, int##bits##_t v, int) { \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(                                               \
      volatile int##bits##_t* p, int##bits##_t* expected, int##bits##_t v, int, int) {             \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
BRASA_HOST_ATOMICS(8)
BRASA_HOST_ATOMICS(32)
BRASA_HOST_ATOMICS(64)
#undef BRASA_HOST_ATOMICS

}  // extern "C"
