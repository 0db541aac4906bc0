// What one block of a cluster does in the shared memory of others.
#include <string>

#include "emulator/ptx_tma.h"
#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

Block& block_of(unsigned rank, const char* what) {
  Block* const block = Scheduler::instance().block_of_cluster(rank);
  if (block == nullptr)
    fail(std::string(what) + ": the cluster has no block " + std::to_string(rank));
  if (block->alive == 0)
    fail(std::string(what) + ": block " + std::to_string(rank) +
         " of the cluster has ended, and its shared memory with it");
  return *block;
}

size_t offset_of(const void* shared, const char* what) {
  if (!in_shared_memory(shared)) fail(std::string(what) + ": " + describe_address(shared));
  return static_cast<size_t>(static_cast<const std::byte*>(shared) - running_fiber().block->arena);
}

CountingBarrier* barrier_in(Block& block, size_t offset) {
  return reinterpret_cast<CountingBarrier*>(block.arena + offset);
}

}  // namespace

void tensor_load_multicast(void* shared, const TensorMap& map, CountingBarrier* barrier, int x,
                           int y, int z, unsigned blocks) {
  constexpr size_t kLineBytes = 128;
  require_aligned(shared, kLineBytes);
  if (blocks == 0) fail("tma_load_multicast: to no block");
  const size_t to = offset_of(shared, "tma_load_multicast");
  const size_t at = offset_of(barrier, "tma_load_multicast");
  for (unsigned rank = 0; blocks >> rank != 0; ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    Block& block = block_of(rank, "tma_load_multicast");
    start(TensorLoad{.map = map,
                     .block = &block,
                     .barrier = barrier_in(block, at),
                     .offset = to,
                     .at = {x, y, z}},
          __builtin_return_address(0));
  }
}

void barrier_arrive_at(CountingBarrier* barrier, unsigned rank, Location where) {
  const size_t at = offset_of(barrier, "barrier_arrive_at");
  Block& block = block_of(rank, "barrier_arrive_at");
  barrier_arrive_in(block, barrier_in(block, at), where, __builtin_return_address(0));
}

const void* in_cluster(const void* shared, unsigned rank) {
  constexpr size_t kLoadBytes = 16;
  require_aligned(shared, kLoadBytes);
  const size_t at = offset_of(shared, "cluster_load");
  Block& block = block_of(rank, "cluster_load");
  check_shared(block, block.arena + at, kLoadBytes, kRead, __builtin_return_address(0));
  return block.arena + at;
}

}  // namespace brasa::simt::emulator
