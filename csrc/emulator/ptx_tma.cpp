// Counting barriers and tensor loads.
//
// Threads that wait for a phase sleep in the scheduler's list. A load lands at once, or when no
// thread can run: as early or as late as can be (option "async").
#include "emulator/ptx_tma.h"

#include <algorithm>
#include <cstring>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr unsigned kMagic = 0x5a5a;
constexpr size_t kLineBytes = 128;

/// What `pointer`, in the shared memory of the running block, is in that of block `rank`.
template <class T> T* in_block(T* pointer, unsigned rank) {
  Block& mine = *running_fiber().block;
  if (!in_shared_memory(pointer)) fail(describe_address(pointer) + " is no shared memory");
  Block* other = Scheduler::instance().block_of_cluster(rank);
  if (other == nullptr) fail("the cluster has no block " + std::to_string(rank));
  const auto offset = reinterpret_cast<std::byte*>(pointer) - mine.arena;
  return reinterpret_cast<T*>(other->arena + offset);
}

void require_initialised(const CountingBarrier* barrier) {
  require_aligned(barrier, sizeof(CountingBarrier));
  if (barrier->magic != kMagic) fail("a barrier that barrier_init() has not set up");
}

/// Ends the phase where nothing is missing.
void settle(CountingBarrier* barrier) {
  if (barrier->left != 0 || barrier->bytes != 0) return;
  barrier->left = barrier->arrivals;
  barrier->phase ^= 1;
  Scheduler::instance().wake_waiters(barrier);
}

void arrive(CountingBarrier* barrier, int bytes, Location where) {
  require_initialised(barrier);
  if (barrier->left == 0) fail("too many arrivals at the barrier in " + describe(where));
  barrier->left = barrier->left - 1;
  barrier->bytes = barrier->bytes + bytes;
  settle(barrier);
}

/// Copies one line of the box, its pieces swapped by the address.
void land_line(std::byte* arena, size_t offset, const TensorMap& map, const int64_t* at) {
  const auto item = static_cast<size_t>(map.stride[0]);
  const bool inside = at[1] >= 0 && at[1] < map.extent[1] && at[2] >= 0 && at[2] < map.extent[2];
  for (int i = 0; i < map.box[0]; ++i) {
    const size_t byte = offset + static_cast<size_t>(i) * item;
    std::byte* to = arena + (byte ^ (byte >> 3 & 0x70));
    const int64_t x = at[0] + i;
    if (inside && x >= 0 && x < map.extent[0]) {
      std::memcpy(to, map.base + x * map.stride[0] + at[1] * map.stride[1] + at[2] * map.stride[2],
                  item);
    } else {
      std::memset(to, 0, item);
    }
  }
}

}  // namespace

void land(const TensorLoad& load) {
  const TensorMap& map = load.map;
  size_t offset = load.offset;
  for (int z = 0; z < map.box[2]; ++z) {
    for (int y = 0; y < map.box[1]; ++y, offset += kLineBytes) {
      const int64_t at[3] = {load.at[0], load.at[1] + y, load.at[2] + z};
      land_line(load.block->arena, offset, map, at);
    }
  }
  load.barrier->bytes = load.barrier->bytes - static_cast<int64_t>(offset - load.offset);
  settle(load.barrier);
}

void barrier_init(CountingBarrier* barrier, int arrivals) {
  if (!in_shared_memory(barrier)) fail("barrier_init: " + describe_address(barrier));
  require_aligned(barrier, sizeof(CountingBarrier));
  *barrier = {.bytes = 0,
              .left = static_cast<unsigned>(arrivals),
              .arrivals = static_cast<unsigned>(arrivals),
              .phase = 0,
              .magic = kMagic};
}

void barrier_arrive(CountingBarrier* barrier, unsigned rank, Location where) {
  arrive(in_block(barrier, rank), 0, where);
}

void barrier_expect(CountingBarrier* barrier, int bytes, Location where) {
  arrive(barrier, bytes, where);
}

void barrier_wait(CountingBarrier* barrier, unsigned parity, Location where) {
  require_initialised(barrier);
  while (barrier->phase == parity) Scheduler::instance().wait_for(barrier, where);
}

void tensor_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int x, int y, int z,
                 unsigned mask) {
  require_aligned(shared, kLineBytes);
  require_initialised(barrier);
  for (unsigned rank = 0; mask >> rank != 0; ++rank) {
    if ((mask >> rank & 1) == 0) continue;
    Block* block = Scheduler::instance().block_of_cluster(rank);
    auto* target = in_block(static_cast<std::byte*>(shared), rank);
    Scheduler::instance().start(TensorLoad{.map = map,
                                           .block = block,
                                           .barrier = in_block(barrier, rank),
                                           .offset = static_cast<size_t>(target - block->arena),
                                           .at = {x, y, z}});
  }
}

unsigned cluster_rank() {
  return running_fiber().block->rank;
}

}  // namespace brasa::simt::emulator
