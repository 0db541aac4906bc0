// What emulated kernels, launches and the tests' module call of the emulator.
//
// How it works. A CUDA thread is a fiber: a stack of its own and a switch of a dozen instructions.
// Blocks run one after another (all at once in a cooperative launch), on the calling OS thread and
// under one lock. A thread runs until it waits; a collective (barrier, shuffle, ballot) is carried
// out by the last thread to arrive, for all, and wakes the others. Which thread runs next is an
// option, so tests run kernels in three orders and a missing barrier shows as a wrong number.
// Shared memory and fresh device memory hold NaN; device buffers end at a guard page.
//
// A mistake of a kernel (divergent collective, deadlock, fault, race) ends the launch, whose call
// throws Error with the thread and the file and line. The stacks of its threads are dropped, not
// unwound: kernels own nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

#include "emulator/cuda_types.h"

namespace brasa::simt::emulator {

using Location = std::source_location;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Block;

/// The part of an emulated thread that kernels see.
struct Thread {
  uint3 thread_idx;
  uint3 block_idx;
  dim3 block_dim;
  dim3 grid_dim;
  unsigned index;  // thread_idx flattened, x fastest
  unsigned warp;
  unsigned lane;
  Block* block;
};

/// The thread that runs now; null outside kernels.
extern thread_local constinit Thread* current_thread __attribute__((tls_model("initial-exec")));

// ---- launches

struct Grid {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared;
  bool cooperative;
  unsigned cluster;
  const void* kernel;  // what the access lint calls it by
};

/// Runs thread_main(closure) once per thread of the grid and returns when all have ended.
void run_grid(const Grid& grid, void (*thread_main)(void*), void* closure);

/// What a launcher is told of how many blocks fit at once; more of them run together all the same.
int64_t resident_blocks(size_t dynamic_shared);

// ---- collectives, called by threads

void block_barrier(Location where);
void named_barrier(int id, int threads, Location where);
void grid_barrier(Location where);
void warp_barrier(uint32_t mask, Location where);

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t warp_shuffle(uint32_t mask, uint64_t value, Shuffle kind, int operand, int width,
                      Location where);
uint32_t warp_ballot(uint32_t mask, bool predicate, Location where);

/// Lets other threads run; called by loops that wait for them.
void yield(Location where);

// ---- memory

/// The block's static shared array that `tag` stands for, and its dynamic shared memory.
void* static_shared(const void* tag, size_t bytes);
void* dynamic_shared();

/// Device memory: filled with NaN, 16-byte aligned, followed by a page that faults.
void* device_alloc(size_t bytes);
void device_free(void* pointer);
void device_fill(void* pointer, int value, size_t bytes);

/// A vector access at an address that is no multiple of its size faults on a GPU; so it does here.
void fail_unaligned(const void* pointer, size_t bytes);
inline void require_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail_unaligned(pointer, bytes);
}

enum AccessKind : unsigned { kRead = 0, kWrite = 1, kAtomic = 2 };

/// Race check: the running thread touches `bytes` bytes, by the instruction before `pc`.
void note_access(const void* pointer, size_t bytes, unsigned kind, const void* pc);

/// Ends the launch with an error; outside kernels throws it.
[[noreturn]] void fail(std::string message);

// ---- options and counters, for tests

/// "order" of threads: forward, reverse or random; "async", when asynchronous copies land: lazy,
/// eager or random; "seed": a number for what is random; "race" and "lint": on or off; "capability"
/// (80, 90) and "multiprocessors" of the GPU that host code sees. Anything else:
/// std::invalid_argument.
void set_option(const std::string& name, const std::string& value);

int capability();
int multiprocessors();

struct Statistics {
  uint64_t launches, blocks, threads, switches, barriers, warp_collectives;
  uint64_t buffers, buffer_bytes;  // alive now
};
Statistics statistics();

}  // namespace brasa::simt::emulator
