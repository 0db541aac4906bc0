// Blocks, their threads, and the scheduler that runs them: shared by the runtime's files.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/lint.h"
#include "emulator/ptx_tma.h"
#include "emulator/race.h"
#include "emulator/runtime.h"

namespace brasa::simt::emulator {

// Limits of sm_80 and later that a launch must keep.
inline constexpr unsigned kMaxThreadsPerBlock = 1024;
inline constexpr size_t kMaxStaticShared = 48 * 1024;
inline constexpr size_t kMaxDynamicShared = 227 * 1024;
inline constexpr size_t kArenaBytes = 256 * 1024;
inline constexpr unsigned kMaxResidentBlocks = 132;  // an H200's multiprocessors
inline constexpr int64_t kToldResidentBlocks = 6;    // by resident_blocks()
inline constexpr int kNamedBarriers = 16;
inline constexpr int kWarpgroups = 8;  // each has a barrier behind the named ones

inline constexpr const char* kStackOverflow =
    "stack overflow: a thread has 16 KiB for its local arrays and calls";

enum class ThreadOrder { kForward, kReverse, kRandom };

/// When asynchronous copies land: as late as allowed, as early, or now so, now so.
enum class AsyncTiming { kLazy, kEager, kRandom };

struct Options {
  AsyncTiming async = AsyncTiming::kLazy;
  ThreadOrder order = ThreadOrder::kForward;
  uint32_t seed = 1;
  uint32_t capability = 90;
  uint32_t multiprocessors = kMaxResidentBlocks;
  bool race = false;
  bool lint = false;
  bool sums_are_cut = false;  // of tensor cores
  bool instrumented = false;  // the module reports its accesses
};

enum class ThreadState : uint8_t { kFresh, kReady, kRunning, kWaiting, kEnded };

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes;
  size_t source_bytes;  // zeros from there on
};
using AsyncGroup = std::vector<AsyncCopy>;

/// A product that a warp has started: the arguments, and each lane's part of the result.
struct WgmmaProduct {
  alignas(8) std::byte argument[64];
  float* d[32];
  const uint32_t* a[32];  // each lane's registers, where the left operand is in them
};
using WgmmaGroup = std::vector<WgmmaProduct>;

struct Block;

/// A load into shared memory that has not landed.
struct TensorLoad {
  TensorMap map;
  Block* block;
  CountingBarrier* barrier;
  size_t offset;  // of the target in the block's shared memory
  int at[4];
  int beside[2];  // of pixels alone
};
void land(const TensorLoad& load);

/// Has the copy engine begin it, for the instruction before `pc`.
void start(const TensorLoad& load, const void* pc);

/// Arrives at a barrier of another block of the cluster.
void barrier_arrive_in(Block& block, CountingBarrier* barrier, Location where, const void* pc);

struct TensorStore {
  TensorMap map;
  size_t offset;
  int at[4];
  const void* pc;  // the instruction before it began the store
};

struct Fiber : Thread {
  void* context = nullptr;
  FiberStack stack{};
  ThreadState state = ThreadState::kFresh;
  const char* waits_in = "";
  Location waits_at{};
  std::vector<AsyncGroup> async_groups;
  std::vector<TensorStore> tensor_stores;           // that have not read their shared memory
  std::vector<CountingBarrier*> unfenced_barriers;  // set up, with no fence behind it
};

/// What a warp does together, once for all lanes that arrived.
struct WarpFunction {
  const char* name;
  void (*run)(void* const* arguments, uint32_t lanes);  // null: nothing but the meeting
  bool orders_memory;
};

/// A warp function that waits for the lanes of `mask`.
struct WarpCollective {
  const WarpFunction* function;
  uint32_t mask;
  uint32_t arrived;
  Location where;
  void* arguments[32];  // set for the lanes that arrived
};

struct Barrier {
  int expected = 0;  // 0: every thread that has not ended
  Location where{};
  std::vector<Fiber*> arrived;
};

struct SharedArray {
  const void* tag;  // null for the dynamic one
  size_t begin;
  size_t end;
};

struct Block {
  std::vector<Fiber> threads;
  unsigned alive = 0;
  std::vector<uint32_t> live_lanes;                      // by warp
  std::vector<std::vector<WarpCollective>> collectives;  // by warp; at most one per mask
  Barrier barriers[kNamedBarriers + kWarpgroups];
  std::vector<std::vector<WgmmaGroup>> wgmma_groups;  // by warp; the last is open
  unsigned rank = 0;                                  // in its cluster
  int64_t registers = 0, takers = 0;                  // taken in all, by how many threads
  std::byte* arena = nullptr;                         // shared memory
  size_t arena_used = 0;
  std::vector<SharedArray> arrays;
  std::vector<uint32_t> wgmma_commits;  // by warp, of groups so far
  std::vector<bool> wgmma_fenced;       // by warp: registers are as written
  // Of the race check: the clocks of the block's cluster, which its first block keeps.
  Clocks own_clocks;
  Clocks* clocks = nullptr;
  uint32_t first_actor = 0;
  Shadow shadow;
  Requests requests;  // access lint only
};

/// Why a launch ended early. Places are instructions, turned into file and line at the end, because
/// a thread's stack has no room for that.
struct Failure {
  std::string message;
  std::vector<std::pair<std::string, const void*>> places;  // what happened there, after which pc
};

class Scheduler {
 public:
  static Scheduler& instance();

  void run(const Grid& grid, void (*thread_main)(void*), void* closure);

  // What follows is called on the fiber of the running thread.
  void wait(const char* name, Location where);
  void wake(Fiber* thread);
  void yield(Location where);
  void arrive_at_grid_barrier(Location where);
  bool copies_land_at_once();
  void wait_for(const CountingBarrier* barrier, Location where);
  void wake_waiters(const CountingBarrier* barrier);
  void start(const TensorLoad& load);
  Block* block_of_cluster(unsigned rank);
  [[noreturn]] void abandon(Failure failure);

  /// Called outside kernels: the next launch throws this, because the place itself cannot.
  void remember(Failure failure);

  Options options;
  Statistics counts{};

 private:
  static void fiber_main();
  void prepare_block(Block& block, const Grid& grid, uint64_t index, size_t slot);
  void prepare_clocks(Block& block, const Grid& grid, size_t slot);
  uint64_t block_at(uint64_t step, uint64_t blocks);
  void run_resident_blocks();
  void end_thread(Fiber& thread);
  Fiber* next_ready();
  void switch_to(Fiber& from, Fiber& to);
  Failure deadlock() const;
  void drop_threads();

  StackPool stacks_;
  std::vector<std::byte*> arenas_;
  std::vector<std::unique_ptr<Block>> resident_;
  std::deque<Fiber*> ready_;
  std::vector<Fiber*> grid_barrier_;
  std::vector<std::pair<const CountingBarrier*, Fiber*>> waiters_;
  std::deque<TensorLoad> loads_;
  uint64_t together_ = 1;  // resident blocks
  bool cooperative_ = false;
  Fiber root_{};  // the context of the launching OS thread
  std::mt19937 random_;
  std::unique_ptr<Failure> failure_;
  std::unique_ptr<Failure> remembered_;
  uint64_t yields_in_a_row_ = 0;
  void (*thread_main_)(void*) = nullptr;
  void* closure_ = nullptr;
  const void* kernel_ = nullptr;
};

inline Fiber& running_fiber() {
  return *static_cast<Fiber*>(current_thread);
}

/// The running lane takes part in `function` with `argument`, and waits for the others of `mask`.
void join_warp(const WarpFunction& function, uint32_t mask, void* argument, Location where);

bool in_shared_memory(const void* pointer);

/// The four warps of the running thread's warpgroup.
void warpgroup_barrier(Location where);

/// Wakes whom the end of a thread sets free: barriers and collectives no longer wait for it.
void settle_after_exit(Block& block, unsigned warp);

/// "file.cu:12", and "block (1,0,0) thread (3,0,0)".
std::string describe(Location where);
std::string describe(const Thread& thread);

/// "file.cu:12" of the instruction that ends before `pc`, with its chain of inlined callers; needs
/// addr2line and debug information, else it is the module and the offset.
std::string locate(const void* pc);

/// Where an address lies, in words: a device buffer, shared memory, or elsewhere.
std::string describe_address(const void* pointer);

}  // namespace brasa::simt::emulator
