// Barriers and warp functions: the last thread to arrive does the work for all.
#include <algorithm>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

// ---- barriers

/// Frees the threads at a barrier once all expected have come; `last` is running already.
bool settle(Block& block, Barrier& barrier, const Fiber* last) {
  const size_t expected = barrier.expected != 0 ? barrier.expected : block.alive;
  if (barrier.arrived.empty() || barrier.arrived.size() < expected) return false;
  Scheduler& scheduler = Scheduler::instance();
  // Warpgroups meet for their products, which orders no memory.
  const bool orders = &barrier < &block.barriers[kNamedBarriers];
  if (scheduler.options.race && orders) {
    Clocks& clocks = *block.clocks;
    const bool all = barrier.expected == 0 && clocks.threads == clocks.of_block;
    all ? clocks.join_all() : clocks.join(barrier.arrived);
  }
  for (Fiber* thread : barrier.arrived) {
    if (thread != last) scheduler.wake(thread);
  }
  barrier.arrived.clear();
  return true;
}

void arrive(int id, int expected, const char* name, Location where) {
  Fiber& me = running_fiber();
  Barrier& barrier = me.block->barriers[id];
  ++Scheduler::instance().counts.barriers;
  if (!barrier.arrived.empty() &&
      (barrier.expected != expected || barrier.where.line() != where.line())) {
    fail("divergent barrier: this thread is at " + describe(where) +
         ", others of its block wait at " + describe(barrier.where));
  }
  barrier.expected = expected;
  barrier.where = where;
  barrier.arrived.push_back(&me);
  if (!settle(*me.block, barrier, &me)) Scheduler::instance().wait(name, where);
}

// ---- warp collectives

/// Carries out pending collective `k` of a warp once every living lane of its mask has come.
bool settle(Block& block, unsigned warp, size_t k, const Fiber* last) {
  auto& pending = block.collectives[warp];
  if ((pending[k].mask & block.live_lanes[warp] & ~pending[k].arrived) != 0) return false;
  const WarpCollective done = pending[k];
  pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(k));
  const WarpFunction& function = *done.function;
  if (function.run != nullptr) function.run(done.arguments, done.arrived);
  Scheduler& scheduler = Scheduler::instance();
  std::vector<Fiber*> arrived;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((done.arrived >> lane & 1) == 0) continue;
    Fiber* thread = &block.threads[warp * 32 + lane];
    if (function.orders_memory && scheduler.options.race) arrived.push_back(thread);
    if (thread != last) scheduler.wake(thread);
  }
  if (!arrived.empty()) block.clocks->join(arrived);
  return true;
}

template <class Body> void for_each_lane(uint32_t lanes, Body body) {
  for (int lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1) != 0) body(lane);
  }
}

struct ShuffleArgument {
  Shuffle kind;
  int operand;
  int width;
  uint64_t in;
  uint64_t out;
};

/// The lane whose value `lane` gets: itself where the wanted one is outside its group.
int shuffle_source(const ShuffleArgument& argument, int lane) {
  const int base = lane & ~(argument.width - 1);
  const int end = base + argument.width;
  switch (argument.kind) {
    case Shuffle::kIndex:
      return base + (argument.operand & (argument.width - 1));
    case Shuffle::kUp:
      return lane - argument.operand >= base ? lane - argument.operand : lane;
    case Shuffle::kDown:
      return lane + argument.operand < end ? lane + argument.operand : lane;
    case Shuffle::kXor:
      return (lane ^ argument.operand) < end ? lane ^ argument.operand : lane;
  }
  return lane;
}

void run_shuffle(void* const* arguments, uint32_t lanes) {
  for_each_lane(lanes, [&](int lane) {
    auto& mine = *static_cast<ShuffleArgument*>(arguments[lane]);
    const int source = shuffle_source(mine, lane);
    // A lane that does not take part has no value to give; on a GPU the result is undefined.
    const bool given = (lanes >> source & 1) != 0;
    mine.out = given ? static_cast<ShuffleArgument*>(arguments[source])->in : ~uint64_t{0};
  });
}

struct BallotArgument {
  bool in;
  uint32_t out;
};

void run_ballot(void* const* arguments, uint32_t lanes) {
  uint32_t votes = 0;
  for_each_lane(lanes, [&](int lane) {
    if (static_cast<BallotArgument*>(arguments[lane])->in) votes |= 1u << lane;
  });
  for_each_lane(lanes,
                [&](int lane) { static_cast<BallotArgument*>(arguments[lane])->out = votes; });
}

constexpr WarpFunction kSyncWarp{"__syncwarp", nullptr, true};
constexpr WarpFunction kShuffle{"a shuffle", &run_shuffle, false};
constexpr WarpFunction kBallot{"a ballot", &run_ballot, false};

}  // namespace

void join_warp(const WarpFunction& function, uint32_t mask, void* argument, Location where) {
  Fiber& me = running_fiber();
  auto& pending = me.block->collectives[me.warp];
  ++Scheduler::instance().counts.warp_collectives;
  if ((mask >> me.lane & 1) == 0) {
    fail(std::string(function.name) + " at " + describe(where) +
         ": the mask does not name the calling lane");
  }
  size_t k = 0;
  while (k < pending.size() && pending[k].mask != mask) ++k;
  if (k == pending.size()) {
    WarpCollective& added = pending.emplace_back();
    added.function = &function;
    added.mask = mask;
    added.where = where;
  }
  WarpCollective& collective = pending[k];
  if (collective.function != &function || collective.where.line() != where.line()) {
    fail(std::string("divergent warp: this lane is in ") + function.name + " at " +
         describe(where) + ", others of its warp wait in " + collective.function->name + " at " +
         describe(collective.where));
  }
  collective.arrived |= 1u << me.lane;
  collective.arguments[me.lane] = argument;
  if (!settle(*me.block, me.warp, k, &me)) Scheduler::instance().wait(function.name, where);
}

void block_barrier(Location where) {
  arrive(0, 0, "__syncthreads", where);
}

void named_barrier(int id, int threads, Location where) {
  if (id < 1 || id >= kNamedBarriers || threads < 32 || threads % 32 != 0) {
    fail("bar_sync at " + describe(where) + ": id must be 1 to 15, threads a multiple of 32; got " +
         std::to_string(id) + ", " + std::to_string(threads));
  }
  arrive(id, threads, "bar_sync", where);
}

void warpgroup_barrier(Location where) {
  arrive(kNamedBarriers + static_cast<int>(running_fiber().warp / 4), 128, "a warpgroup", where);
}

void warp_barrier(uint32_t mask, Location where) {
  join_warp(kSyncWarp, mask, nullptr, where);
}

uint64_t warp_shuffle(uint32_t mask, uint64_t value, Shuffle kind, int operand, int width,
                      Location where) {
  ShuffleArgument argument{kind, operand, width, value, 0};
  join_warp(kShuffle, mask, &argument, where);
  return argument.out;
}

uint32_t warp_ballot(uint32_t mask, bool predicate, Location where) {
  BallotArgument argument{predicate, 0};
  join_warp(kBallot, mask, &argument, where);
  return argument.out;
}

void settle_after_exit(Block& block, unsigned warp) {
  for (size_t k = 0; k < block.collectives[warp].size();) {
    if (!settle(block, warp, k, nullptr)) ++k;
  }
  for (Barrier& barrier : block.barriers) {
    if (barrier.expected == 0) settle(block, barrier, nullptr);
  }
}

}  // namespace brasa::simt::emulator
