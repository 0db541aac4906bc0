// Asynchronous copies from global to shared memory (sm_80 and later).
//
// A thread issues copies, closes them into a group with cp_async_commit(), and waits until at most
// N of its groups are under way. Others see the bytes after that wait and a barrier. The emulator
// lets a copy land at its wait, at once, or either at random (option "async"), so a wait or barrier
// that is missing shows.
#pragma once

#include "core/device.cuh"

#if BRASA_EMULATED_DEVICE
#include "emulator/ptx_async.h"
#endif

namespace brasa::simt {

/// Copies Bytes (4, 8 or 16) to `shared`, of which only the first `source_bytes` are read from
/// `global`; the others become zeros. Both addresses are multiples of Bytes.
template <int Bytes>
BRASA_DEVICE_FN void cp_async(void* shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#if BRASA_EMULATED_DEVICE
  emulator::async_copy(shared, global, Bytes, source_bytes);
#else
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) {  // past L1: what goes to shared memory is not read again through it
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
#endif
}

/// A number of bytes is asked for, not whether to copy.
template <int Bytes> void cp_async(void* shared, const void* global, bool valid) = delete;

/// Closes the copies issued since the last call into a group.
BRASA_DEVICE_FN void cp_async_commit() {
#if BRASA_EMULATED_DEVICE
  emulator::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most N of this thread's groups have not landed.
template <int N> BRASA_DEVICE_FN void cp_async_wait() {
#if BRASA_EMULATED_DEVICE
  emulator::async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace brasa::simt
