// The race check: which accesses of two threads are ordered by a barrier, and which are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace brasa::simt::emulator {

struct Block;
struct Fiber;

/// One remembered access to a word of four bytes.
struct Access {
  uint32_t block_serial;  // 0: none
  uint32_t clock;         // the thread's own clock at the access
  int32_t place;          // the instruction, relative to the module
  uint16_t thread;
  uint8_t bytes;  // which of the four
  uint8_t kind;   // of AccessKind
};

inline constexpr int kAccessesPerWord = 4;

/// The accesses remembered for a piece of memory, kAccessesPerWord for each word of it.
using Shadow = std::vector<Access>;

/// Who in a block knows of whose accesses. Each thread counts a clock, raised when it synchronises.
/// An access of thread t at clock c is ordered before what thread u does now if c <=
/// seen_by_all[t], raised by barriers of the whole block, or c <= seen[u][t], raised by those of a
/// part of it.
struct BlockClocks {
  uint32_t serial = 0;  // numbers the runs of blocks; a grid barrier starts a new one
  std::vector<uint32_t> clock;
  std::vector<uint32_t> seen_by_all;
  std::vector<uint32_t> fenced;  // the clock at a thread's last proxy_fence()
  std::vector<uint32_t> seen;    // (threads,threads); empty until a part of the block synchronises
  Shadow shared;
};

/// A launch or a grid barrier: all that was before is ordered before what comes.
void start_epoch();
void start_clocks(Block& block);

/// The whole block, or the given threads of it, have met.
void order_block(Block& block);
void order_threads(Block& block, const std::vector<Fiber*>& threads);

}  // namespace brasa::simt::emulator
