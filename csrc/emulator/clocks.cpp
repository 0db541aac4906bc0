#include "emulator/clocks.h"

#include <algorithm>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr size_t kWarpgroupThreads = 128;
constexpr size_t kBarriersOfBlock = 64;

void raise(std::vector<uint32_t>& to, const uint32_t* from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

size_t warpgroups_of(size_t threads) {
  return (threads + kWarpgroupThreads - 1) / kWarpgroupThreads;
}

}  // namespace

uint32_t actor_of(const Fiber& thread) {
  return thread.block->first_actor + thread.index;
}

void Clocks::start(uint32_t number, size_t threads_of_block, size_t blocks) {
  serial = number;
  of_block = threads_of_block;
  threads = threads_of_block * blocks;
  const size_t others = (warpgroups_of(of_block) + kBarriersOfBlock) * blocks;
  clock.assign(threads + others, 1);
  seen_by_all.assign(threads + others, 0);
  fenced.assign(threads, 0);
  seen.clear();
  barriers.clear();
}

uint32_t Clocks::warpgroup(const Fiber& thread) const {
  const size_t block = thread.block->first_actor / of_block;
  const size_t number = block * warpgroups_of(of_block) + thread.index / kWarpgroupThreads;
  return static_cast<uint32_t>(threads + number);
}

BarrierClock& Clocks::of_barrier(const void* barrier) {
  const auto found = barriers.find(barrier);
  if (found != barriers.end()) return found->second;
  const size_t blocks = threads / of_block;
  const size_t engine = threads + warpgroups_of(of_block) * blocks + barriers.size();
  if (engine >= actors()) fail("the race check knows of 64 barriers in a block");
  return barriers[barrier] = {.engine = static_cast<uint32_t>(engine),
                              .arriving = std::vector<uint32_t>(actors(), 0),
                              .completed = std::vector<uint32_t>(actors(), 0)};
}

bool Clocks::ordered(uint32_t actor, uint32_t at, uint32_t thread) const {
  if (actor == thread || at <= seen_by_all[actor]) return true;
  return !seen.empty() && at <= seen[thread * actors() + actor];
}

uint32_t* Clocks::row(uint32_t thread) {
  if (seen.empty()) seen.assign(threads * actors(), 0);
  return &seen[thread * actors()];
}

void Clocks::join_all() {
  for (size_t t = 0; t < threads; ++t) seen_by_all[t] = clock[t]++;
  for (size_t t = 0; !seen.empty() && t < threads; ++t) {
    const uint32_t* of_thread = &seen[t * actors()];
    for (size_t a = threads; a < actors(); ++a)
      seen_by_all[a] = std::max(seen_by_all[a], of_thread[a]);
  }
}

void Clocks::join(const std::vector<Fiber*>& met) {
  std::vector<uint32_t> joined(actors(), 0);
  for (const Fiber* thread : met) raise(joined, row(actor_of(*thread)));
  for (const Fiber* thread : met) joined[actor_of(*thread)] = clock[actor_of(*thread)]++;
  for (const Fiber* thread : met) std::copy(joined.begin(), joined.end(), row(actor_of(*thread)));
}

void Clocks::arrive(const Fiber& thread, const void* barrier) {
  const uint32_t me = actor_of(thread);
  std::vector<uint32_t>& arriving = of_barrier(barrier).arriving;
  raise(arriving, row(me));
  arriving[me] = clock[me]++;
}

void Clocks::end_phase(const void* barrier) {
  BarrierClock& of = of_barrier(barrier);
  of.completed.swap(of.arriving);
  std::fill(of.arriving.begin(), of.arriving.end(), 0);
  of.completed[of.engine] = clock[of.engine]++;
}

void Clocks::wait(const Fiber& thread, const void* barrier) {
  const std::vector<uint32_t>& completed = of_barrier(barrier).completed;
  uint32_t* mine = row(actor_of(thread));
  for (size_t a = 0; a < completed.size(); ++a) mine[a] = std::max(mine[a], completed[a]);
}

void Clocks::learn(const Fiber& thread, uint32_t actor, uint32_t at) {
  uint32_t& mine = row(actor_of(thread))[actor];
  mine = std::max(mine, at);
}

}  // namespace brasa::simt::emulator
