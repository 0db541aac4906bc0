// CPU memory: a pool for results and one scratch block per thread.
//
// A fresh 50 MB array costs page faults that can exceed the kernel's own time, so large results
// come from blocks that were used before. Small ones are left to NumPy.
#pragma once

#include <cstddef>

namespace brasa::cpu {

/// A 64-byte aligned block of at least `bytes`, or throws std::bad_alloc. Back with pool_release().
void* pool_acquire(size_t bytes);
void pool_release(void* block);

/// Scratch of the calling thread: valid until the thread's next call. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

struct MemoryStats {
  size_t in_use;   ///< bytes handed out
  size_t cached;   ///< bytes kept for reuse
  size_t scratch;  ///< bytes in scratch blocks of living threads
};
MemoryStats memory_stats();

/// Gives cached blocks and the calling thread's scratch back to the system.
void empty_cache();

}  // namespace brasa::cpu
