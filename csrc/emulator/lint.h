// The access lint: what the memory instructions of a kernel ask of the memory system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace brasa::simt::emulator {

struct Block;
struct Fiber;

/// The requests of a block that has not ended, by instruction.
struct BlockRequests;
struct DeleteRequests {
  void operator()(BlockRequests*) const;
};
using Requests = std::unique_ptr<BlockRequests, DeleteRequests>;

/// What one instruction of one kernel did. `moved` counts sectors of 32 bytes in device memory, and
/// wavefronts in shared memory; `ideal` what the same bytes need at least.
struct AccessLine {
  const void* kernel;
  const void* pc;
  bool shared, write;
  uint64_t requests, moved, ideal;
};

void count_access(Fiber& me, const void* pointer, size_t bytes, bool shared, unsigned kind,
                  const void* pc);

/// Adds the requests of a block that has ended.
void settle_requests(Block& block, const void* kernel);

/// All lines since the last call.
std::vector<AccessLine> take_access_lines();

}  // namespace brasa::simt::emulator
