// Launches, and which thread runs next.
//
// A fiber that waits switches straight to the next ready one; the launching context (root) gets
// control only when none is ready or the launch is abandoned. A thread that ends hands its stack to
// the next fresh one, so a kernel without barriers runs on a single warm stack.
#include "emulator/scheduler.h"

#include <algorithm>
#include <cstring>

#include "emulator/faults.h"
#include "emulator/memory.h"

namespace brasa::simt::emulator {

thread_local constinit Thread* current_thread __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

constexpr uint64_t kMaxYieldsInARow = 1 << 22;  // some 0.2 s
constexpr unsigned kMaxGridYZ = 65535;
constexpr unsigned kMaxBlockZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff;

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

uint64_t volume(dim3 d) {
  return uint64_t{d.x} * d.y * d.z;
}

/// The limits a GPU has, with the values found.
void check_limits(const Grid& grid) {
  if (current_thread != nullptr) fail("a kernel cannot launch a kernel");
  const dim3 block = grid.block;
  if (volume(block) == 0 || volume(block) > kMaxThreadsPerBlock || block.z > kMaxBlockZ) {
    throw Error("emulator: invalid block size " + text(block) + ": 1 to 1024 threads, z to 64");
  }
  if (volume(grid.grid) == 0 || grid.grid.x > kMaxGridX || grid.grid.y > kMaxGridYZ ||
      grid.grid.z > kMaxGridYZ) {
    throw Error("emulator: invalid grid size " + text(grid.grid) +
                ": no axis may be 0, x may be 2^31 - 1, y and z 65535");
  }
  if (grid.dynamic_shared > kMaxDynamicShared) {
    throw Error("emulator: " + std::to_string(grid.dynamic_shared) +
                " bytes of dynamic shared memory, at most 232448");
  }
  if (grid.cluster == 0 || grid.cluster > 8 || grid.grid.x % grid.cluster != 0) {
    throw Error("emulator: clusters of " + std::to_string(grid.cluster) + " of " + text(grid.grid) +
                " blocks; 1 to 8 along x, which they divide");
  }
  if (grid.cooperative && volume(grid.grid) > kMaxResidentBlocks) {
    throw Error("emulator: a cooperative launch of " + std::to_string(volume(grid.grid)) +
                " blocks; at most 132 are resident together");
  }
}

Error error_of(const Failure& failure) {
  std::string message = failure.message;
  for (const auto& [what, pc] : failure.places) message += "\n  " + what + " " + locate(pc);
  return Error(message);
}

}  // namespace

void run_grid(const Grid& grid, void (*thread_main)(void*), void* closure) {
  check_limits(grid);
  const RuntimeLock lock;
  const FaultGuard guard;
  Scheduler::instance().run(grid, thread_main, closure);
}

int64_t resident_blocks(size_t dynamic_shared) {
  return dynamic_shared > kMaxDynamicShared ? 0 : kToldResidentBlocks;
}

Scheduler& Scheduler::instance() {
  static Scheduler scheduler;
  return scheduler;
}

void Scheduler::run(const Grid& grid, void (*thread_main)(void*), void* closure) {
  if (remembered_ != nullptr) throw error_of(*std::exchange(remembered_, nullptr));
  thread_main_ = thread_main;
  closure_ = closure;
  kernel_ = grid.kernel;
  random_.seed(options.seed);
  const uint64_t blocks = volume(grid.grid);
  const uint64_t together = grid.cooperative ? blocks : grid.cluster;
  together_ = together;
  cooperative_ = grid.cooperative;
  ++counts.launches;
  if (options.race) start_epoch();
  resident_.resize(std::max<size_t>(resident_.size(), together));
  for (uint64_t step = 0; step < blocks; step += together) {
    for (uint64_t slot = 0; slot < together; ++slot) {
      if (!resident_[slot]) resident_[slot] = std::make_unique<Block>();
      const uint64_t index = grid.cluster > 1
                                 ? block_at(step / together, blocks / together) * together + slot
                                 : block_at(step + slot, blocks);
      prepare_block(*resident_[slot], grid, index, slot);
      resident_[slot]->rank = grid.cluster > 1 ? static_cast<unsigned>(slot) : 0;
    }
    run_resident_blocks();
  }
}

/// Blocks follow the order of the threads: a result that depends on it is a bug of the kernel.
uint64_t Scheduler::block_at(uint64_t step, uint64_t blocks) {
  if (options.order == ThreadOrder::kReverse) return blocks - 1 - step;
  if (options.order == ThreadOrder::kRandom) return (step + options.seed) % blocks;
  return step;
}

void Scheduler::prepare_block(Block& block, const Grid& grid, uint64_t index, size_t slot) {
  if (slot == arenas_.size()) arenas_.push_back(map_arena());
  block.arena = arenas_[slot];
  prepare_shared_memory(block, grid.dynamic_shared);
  const auto count = static_cast<unsigned>(volume(grid.block));
  const unsigned warps = (count + 31) / 32;
  block.alive = count;
  block.registers = block.takers = 0;
  block.threads.assign(count, Fiber{});
  block.live_lanes.assign(warps, 0);
  block.collectives.resize(warps);
  block.wgmma_groups.assign(warps, {});
  block.wgmma_commits.assign(warps, 0);
  block.wgmma_fenced.assign(warps, false);
  for (auto& pending : block.collectives) pending.clear();
  for (Barrier& barrier : block.barriers) barrier.arrived.clear();

  const uint3 block_idx = {static_cast<unsigned>(index % grid.grid.x),
                           static_cast<unsigned>(index / grid.grid.x % grid.grid.y),
                           static_cast<unsigned>(index / grid.grid.x / grid.grid.y)};
  for (unsigned i = 0; i < count; ++i) {
    Fiber& thread = block.threads[i];
    thread.thread_idx = {i % grid.block.x, i / grid.block.x % grid.block.y,
                         i / grid.block.x / grid.block.y};
    thread.block_idx = block_idx;
    thread.block_dim = grid.block;
    thread.grid_dim = grid.grid;
    thread.index = i;
    thread.warp = i / 32;
    thread.lane = i % 32;
    thread.block = &block;
    block.live_lanes[i / 32] |= 1u << (i % 32);
    ready_.push_back(&thread);
  }
  prepare_clocks(block, grid, slot);
  counts.threads += count;
  ++counts.blocks;
}

/// The blocks of a cluster have clocks in common.
void Scheduler::prepare_clocks(Block& block, const Grid& grid, size_t slot) {
  if (!options.race) return;
  const bool joins = grid.cluster > 1 && !grid.cooperative;
  const size_t threads = block.threads.size();
  block.clocks = &resident_[joins ? 0 : slot]->own_clocks;
  block.first_actor = joins ? static_cast<uint32_t>(slot * threads) : 0;
  if (block.first_actor == 0) start_clocks(*block.clocks, threads, joins ? grid.cluster : 1);
}

void Scheduler::run_resident_blocks() {
  while (failure_ == nullptr) {
    Fiber* next = next_ready();
    if (next == nullptr && failure_ == nullptr && !loads_.empty()) {
      const TensorLoad load = loads_.front();
      loads_.pop_front();
      land(load);
      continue;
    }
    if (next == nullptr) break;
    switch_to(root_, *next);
  }
  const bool stuck = std::any_of(resident_.begin(), resident_.end(),
                                 [](const auto& block) { return block && block->alive != 0; });
  if (failure_ == nullptr && !stuck) {
    for (const auto& block : resident_) {
      if (block) settle_requests(*block, kernel_);
    }
    return;
  }
  const Failure failure = failure_ != nullptr ? std::move(*failure_) : deadlock();
  drop_threads();
  throw error_of(failure);
}

Failure Scheduler::deadlock() const {
  constexpr int kShown = 4;
  Failure failure{.message = "deadlock: no thread can run", .places = {}};
  int count = 0;
  for (const auto& block : resident_) {
    if (!block) continue;
    for (const Fiber& thread : block->threads) {
      if (thread.state == ThreadState::kEnded || ++count > kShown) continue;
      failure.message += "\n  " + describe(thread) + " waits in " + thread.waits_in + " at " +
                         describe(thread.waits_at);
    }
  }
  if (count > kShown) failure.message += "\n  and " + std::to_string(count - kShown) + " more";
  return failure;
}

/// After an error: takes back the stacks, and leaves nothing for the next launch to trip over.
void Scheduler::drop_threads() {
  for (const auto& block : resident_) {
    if (!block) continue;
    for (Fiber& thread : block->threads) {
      if (thread.stack.base != nullptr) stacks_.give_back(thread.stack);
    }
    block->threads.clear();
    block->requests.reset();
    block->alive = 0;
  }
  ready_.clear();
  grid_barrier_.clear();
  waiters_.clear();
  loads_.clear();
  failure_.reset();
}

// ---- on fibers

Fiber* Scheduler::next_ready() {
  if (ready_.empty() || failure_ != nullptr) return nullptr;
  if (options.order == ThreadOrder::kRandom) {
    std::swap(ready_.front(), ready_[random_() % ready_.size()]);
  }
  Fiber* next = options.order == ThreadOrder::kReverse ? ready_.back() : ready_.front();
  options.order == ThreadOrder::kReverse ? ready_.pop_back() : ready_.pop_front();
  return next;
}

void Scheduler::switch_to(Fiber& from, Fiber& to) {
  ++counts.switches;
  if (&to == &root_) {
    current_thread = nullptr;
  } else {
    if (to.state == ThreadState::kFresh) {
      to.stack = stacks_.take();
      to.context = prepare_fiber(to.stack, &fiber_main);
    }
    to.state = ThreadState::kRunning;
    current_thread = &to;
  }
  switch_fiber(&from.context, to.context);
}

void Scheduler::wait(const char* name, Location where) {
  Fiber& me = running_fiber();
  me.state = ThreadState::kWaiting;
  me.waits_in = name;
  me.waits_at = where;
  yields_in_a_row_ = 0;
  Fiber* next = next_ready();
  switch_to(me, next != nullptr ? *next : root_);
}

void Scheduler::wake(Fiber* thread) {
  thread->state = ThreadState::kReady;
  ready_.push_back(thread);
}

void Scheduler::yield(Location where) {
  if (ready_.empty())
    fail("deadlock: a thread spins at " + describe(where) + ", none else can run");
  if (++yields_in_a_row_ > kMaxYieldsInARow) {
    fail("no progress: threads do nothing but spin, this one at " + describe(where));
  }
  // To the far end of the queue in any order: others must come first.
  Fiber& me = running_fiber();
  Fiber* next = next_ready();
  me.state = ThreadState::kReady;
  options.order == ThreadOrder::kReverse ? ready_.push_front(&me) : ready_.push_back(&me);
  switch_to(me, *next);
}

void Scheduler::arrive_at_grid_barrier(Location where) {
  Fiber& me = running_fiber();
  size_t alive = 0;
  for (const auto& block : resident_) alive += block ? block->alive : 0;
  grid_barrier_.push_back(&me);
  if (grid_barrier_.size() < alive) return wait("grid_sync", where);
  std::vector<Fiber*> arrived;
  arrived.swap(grid_barrier_);
  if (options.race && !cooperative_) me.block->clocks->join_all();  // a cluster's
  if (options.race && cooperative_) {
    start_epoch();
    for (const auto& block : resident_) {
      if (block && block->alive != 0) start_clocks(*block->clocks, block->threads.size(), 1);
    }
  }
  for (Fiber* thread : arrived) {
    if (thread != &me) wake(thread);
  }
}

void Scheduler::wait_for(const CountingBarrier* barrier, Location where) {
  waiters_.emplace_back(barrier, &running_fiber());
  wait("barrier_wait", where);
}

void Scheduler::wake_waiters(const CountingBarrier* barrier) {
  std::erase_if(waiters_, [&](const auto& waiter) {
    if (waiter.first == barrier) wake(waiter.second);
    return waiter.first == barrier;
  });
}

void Scheduler::start(const TensorLoad& load) {
  copies_land_at_once() ? land(load) : loads_.push_back(load);
}

Block* Scheduler::block_of_cluster(unsigned rank) {
  return rank < together_ ? resident_[rank].get() : nullptr;
}

bool Scheduler::copies_land_at_once() {
  if (options.async == AsyncTiming::kRandom) return random_() % 2 == 0;
  return options.async == AsyncTiming::kEager;
}

void Scheduler::abandon(Failure failure) {
  failure_ = std::make_unique<Failure>(std::move(failure));
  switch_to(running_fiber(), root_);
  __builtin_unreachable();
}

void Scheduler::remember(Failure failure) {
  if (remembered_ == nullptr) remembered_ = std::make_unique<Failure>(std::move(failure));
}

void Scheduler::end_thread(Fiber& thread) {
  if (!StackPool::intact(thread.stack)) fail(kStackOverflow);
  Block& block = *thread.block;
  thread.state = ThreadState::kEnded;
  --block.alive;
  block.live_lanes[thread.warp] &= ~(1u << thread.lane);
  yields_in_a_row_ = 0;
  settle_after_exit(block, thread.warp);
}

void Scheduler::fiber_main() {
  Scheduler& scheduler = instance();
  for (;;) {
    scheduler.thread_main_(scheduler.closure_);
    Fiber& me = running_fiber();
    scheduler.end_thread(me);
    Fiber* next = scheduler.next_ready();
    if (next != nullptr && next->state == ThreadState::kFresh) {
      next->stack = std::exchange(me.stack, {});
      next->state = ThreadState::kRunning;
      current_thread = next;
      continue;
    }
    scheduler.stacks_.give_back(std::exchange(me.stack, {}));
    scheduler.switch_to(me, next != nullptr ? *next : scheduler.root_);
  }
}

void yield(Location where) {
  Scheduler::instance().yield(where);
}
void grid_barrier(Location where) {
  Scheduler::instance().arrive_at_grid_barrier(where);
}

void fail(std::string message) {
  if (current_thread == nullptr) throw Error("emulator: " + message);
  message += "\n  in " + describe(*current_thread);
  Scheduler::instance().abandon({.message = std::move(message), .places = {}});
}

}  // namespace brasa::simt::emulator
