// The race check: which accesses of two threads are ordered, and which are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/clocks.h"

namespace brasa::simt::emulator {

struct Block;
struct Fiber;

/// One remembered access to a word of four bytes.
struct Access {
  uint32_t serial;  // of the clocks; 0: none
  uint32_t clock;   // the actor's own at the access
  int32_t place;    // the instruction, relative to the module
  uint16_t actor;
  uint8_t bytes;  // which of the four
  uint8_t kind;   // of AccessKind
};

inline constexpr int kAccessesPerWord = 4;

/// The accesses remembered for a piece of memory, kAccessesPerWord for each word of it.
using Shadow = std::vector<Access>;

/// A launch or a grid barrier: all that was before is ordered before what comes.
void start_epoch();

/// A cluster of `blocks` blocks of `threads` begins, or goes on behind a grid barrier.
void start_clocks(Clocks& clocks, size_t threads, size_t blocks);

/// The running thread touches the shared memory of a block of its cluster.
void check_shared(Block& block, const void* pointer, size_t bytes, unsigned kind, const void* pc);

/// It touches device memory.
void check_device(const void* pointer, size_t bytes, unsigned kind, const void* pc);

/// It has `actor` read or write shared memory, at the actor's clock `at`.
void check_for(Block& block, size_t offset, size_t bytes, unsigned kind, uint32_t actor,
               uint32_t at, const void* pc);

}  // namespace brasa::simt::emulator
