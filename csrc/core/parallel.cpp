// Regions of a pool of threads that is made on first use and kept.
//
// A region opens when its generation becomes odd; workers that are awake see that within 0.1 us and
// join. The caller is member 0 and starts at once: with parallel_for it waits for nobody who has
// not come by the end, so a worker that sleeps, or whose core is taken, costs nothing but its help.
// After a region workers spin for kSpin, as the next operator of a model follows soon, then sleep:
// measured, a region costs 0.3 us while they spin and some 6 us (the call that wakes them) after.
//
// Every member has its own share of the chunks, the same one each time, and helps itself to the end
// of the others' when it is done. A buffer used again is then mostly in the cache of the core that
// writes it: taking lines over from another core's cache runs at 6 GB/s, an eighth of writing one's
// own (measured; one counter for all lost a fifth of a 512 x 512 product).
//
// Against libgomp, which this replaces: its team waits for every thread, its threads are shared
// with every other library of the process, and it hangs in forked children.
#include "core/parallel.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/os.h"

#if defined(__x86_64__)
#define BRASA_PAUSE() __builtin_ia32_pause()
#else
#define BRASA_PAUSE() ((void)0)
#endif

namespace brasa::cpu {
namespace {

constexpr int kMaxThreads = 4096;

int positive(const char* variable) {
  const char* text = std::getenv(variable);
  const long value = text ? std::strtol(text, nullptr, 10) : 0;
  return value > 0 && value < kMaxThreads ? int(value) : 0;
}

int default_threads() {
  if (const int n = positive("BRASA_NUM_THREADS")) return n;
  if (const int n = positive("OMP_NUM_THREADS")) return n;
  return os::usable_cpus();
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> value{default_threads()};
  return value;
}

thread_local bool inside_region = false;

/// Waits for something that other running threads are about to do: spins some 50 us, then yields,
/// so that one whose core was taken away is waited for politely.
template <class Condition> void wait_until(const Condition& condition) {
  for (int spin = 0; !condition(); ++spin) {
    if (spin < 2000)
      BRASA_PAUSE();
    else
      std::this_thread::yield();
  }
}

// ------------------------------------------------------------------------------------------- pool

/// What the members of a region do.
struct Work {
  void (*body)(void* closure, int member, int size);
  void* closure;
  int size;
  int cpu;  ///< the caller's
};

/// Chunks [begin, end) that a member has still to do, in the two halves of one word.
struct alignas(64) Share {
  std::atomic<uint64_t> range;

  void set(uint64_t begin, uint64_t end) { range.store(begin << 32 | end); }

  /// One chunk from the front (the owner) or from the back (the others); -1 when there is none.
  int64_t take(bool front) {
    uint64_t old = range.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = old >> 32, end = uint32_t(old);
      if (begin >= end) return -1;
      const uint64_t left = front ? (begin + 1) << 32 | end : begin << 32 | (end - 1);
      if (range.compare_exchange_weak(old, left, std::memory_order_relaxed))
        return int64_t(front ? begin : end - 1);
    }
  }
};

class Pool {
 public:
  /// The pool for the caller's region, or null where it has to be serial: nested, in a forked child
  /// (which has no workers), or while another thread's region runs.
  static Pool* acquire() {
    static Pool* const the_pool = new Pool;  // never destroyed: its threads outlive everything
    if (inside_region || os::in_forked_child()) return nullptr;
    if (the_pool->taken_.exchange(true, std::memory_order_acquire)) return nullptr;
    inside_region = true;
    return the_pool;
  }
  void release() {
    inside_region = false;
    taken_.store(false, std::memory_order_release);
  }

  /// As many members as asked for, or as threads can be had.
  int prepare(int size) {
    if (size > kMaxThreads) size = kMaxThreads;
    while (workers_ + 1 < size && add_worker()) {
    }
    return size < workers_ + 1 ? size : workers_ + 1;
  }

  /// The caller is member 0. With `all`, every member takes part; else those that come in time.
  void run(const Work& work, bool all) {
    work_ = work;
    joined_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1);
    if (sleepers_.load() > 0) wake();
    work.body(work.closure, 0, work.size);
    if (all) wait_until([&] { return joined_.load(std::memory_order_acquire) == work.size - 1; });
    generation_.fetch_add(1);
    wait_until([&] { return inside_.load() == 0; });
  }

  Share* shares() { return shares_.get(); }

 private:
  struct Member {
    std::atomic<int> thread{-1};  ///< its number for os::keep_off()
    int kept_off = -1;            ///< the CPU it keeps off
  };
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kSpin{500};

  bool add_worker() {
    try {
      std::thread([this, member = workers_ + 1] { serve(member); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  /// Linux tends to wake a worker on the caller's own CPU, or leaves it there, and on machines of
  /// few CPUs takes milliseconds to move it (measured: 10 of them for a product of 0.2). So workers
  /// keep off the caller's CPU; that lasts, and costs nothing while the caller stays where it is.
  void keep_apart(Member& member) {
    const int thread = member.thread.load(std::memory_order_relaxed);
    if (work_.cpu < 0 || thread < 0 || member.kept_off == work_.cpu) return;
    os::keep_off(thread, work_.cpu);
    member.kept_off = work_.cpu;
  }

  void wake() {
    for (int i = 1; i < work_.size; ++i) keep_apart(members_[i]);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }

  static bool is_open(uint32_t generation) { return generation % 2 != 0; }

  /// Returns when a region other than `last` is, or was, open.
  void await(uint32_t last) {
    for (;;) {
      const auto deadline = Clock::now() + kSpin;
      const uint32_t before = generation_.load();
      do {
        for (int i = 0; i < 16; ++i) {
          const uint32_t now = generation_.load(std::memory_order_relaxed);
          if (is_open(now) && now != last) return;
          BRASA_PAUSE();
        }
      } while (Clock::now() < deadline);
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != before; });
      sleepers_.fetch_sub(1);
    }
  }

  /// A region is joined in two steps, so that the caller cannot close it in between: a worker first
  /// says that it is inside, then looks whether the region is still open.
  void serve(int member) {
    inside_region = true;
    members_[member].thread.store(os::thread_number(), std::memory_order_relaxed);
    for (uint32_t last = 0;;) {
      await(last);
      inside_.fetch_add(1);
      const uint32_t now = generation_.load();
      if (is_open(now) && now != last) {
        last = now;
        if (member < work_.size) {
          joined_.fetch_add(1, std::memory_order_release);
          if (os::current_cpu() == work_.cpu) keep_apart(members_[member]);
          work_.body(work_.closure, member, work_.size);
        }
      }
      inside_.fetch_sub(1);
    }
  }

  alignas(64) std::atomic<uint32_t> generation_{0};  ///< odd while a region is open
  std::atomic<int> sleepers_{0};
  Work work_{};
  alignas(64) std::atomic<int> inside_{0};  ///< workers that may touch work_
  std::atomic<int> joined_{0};              ///< workers that took part in this region
  alignas(64) std::atomic<bool> taken_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
  std::unique_ptr<Share[]> shares_{new Share[kMaxThreads]};
  std::unique_ptr<Member[]> members_{new Member[kMaxThreads]};
};

// ---------------------------------------------------------------------------------------- regions

/// A loop over n in chunks of `grain`.
struct Loop {
  int64_t n, grain;
  void (*chunk)(void*, int, int64_t, int64_t);
  void* closure;
  Share* shares;

  void run(int member, int64_t index) const {
    const int64_t begin = index * grain, end = begin + grain < n ? begin + grain : n;
    chunk(closure, member, begin, end);
  }
  void run_shares(int member, int size) const {
    int64_t index;
    while ((index = shares[member].take(true)) >= 0) run(member, index);
    for (int i = 1; i < size; ++i) {
      Share& other = shares[(member + i) % size];
      while ((index = other.take(false)) >= 0) run(member, index);
    }
  }
};

/// A ticket counter that only grows.
struct TeamBarrier {
  std::atomic<int64_t> tickets{0};
  int64_t size;

  void wait() {
    const int64_t mine = tickets.fetch_add(1, std::memory_order_acq_rel);
    const int64_t target = (mine / size + 1) * size;
    wait_until([&] { return tickets.load(std::memory_order_acquire) >= target; });
  }
};

struct Team {
  void (*body)(void*, int, int, Barrier);
  void* closure;
  TeamBarrier barrier;
};

}  // namespace

int num_threads() {
  return thread_setting().load(std::memory_order_relaxed);
}
void set_num_threads(int n) {
  thread_setting().store(n < 1 ? 1 : n);
}

void Barrier::operator()() const {
  if (state) static_cast<TeamBarrier*>(state)->wait();
}

void run_parallel_for(int threads, int64_t n, int64_t grain,
                      void (*chunk)(void*, int member, int64_t begin, int64_t end), void* closure) {
  constexpr int64_t kMostChunks = int64_t{1} << 31;  // a share counts in 32 bits
  int64_t chunks = (n - 1) / grain + 1;
  if (chunks > kMostChunks) {
    grain *= chunks / kMostChunks + 1;
    chunks = (n - 1) / grain + 1;
  }
  if (chunks < threads) threads = int(chunks);
  Pool* const pool = threads > 1 ? Pool::acquire() : nullptr;
  if (!pool) return chunk(closure, 0, 0, n);
  const int size = pool->prepare(threads);
  Loop loop{n, grain, chunk, closure, pool->shares()};
  for (int i = 0; i < size; ++i)
    loop.shares[i].set(uint64_t(chunks * i / size), uint64_t(chunks * (i + 1) / size));
  const auto body = [](void* p, int member, int members) {
    static_cast<Loop*>(p)->run_shares(member, members);
  };
  pool->run({body, &loop, size, os::current_cpu()}, false);
  pool->release();
}

void run_parallel_team(int threads, void (*body)(void*, int, int, Barrier), void* closure) {
  Pool* const pool = threads > 1 ? Pool::acquire() : nullptr;
  if (!pool) return body(closure, 0, 1, Barrier{nullptr});
  const int size = pool->prepare(threads);
  Team team{body, closure, {.size = size}};
  const auto member_body = [](void* p, int member, int members) {
    Team& t = *static_cast<Team*>(p);
    t.body(t.closure, member, members, Barrier{&t.barrier});
  };
  pool->run({member_body, &team, size, os::current_cpu()}, true);
  pool->release();
}

}  // namespace brasa::cpu
