// The only file with OpenMP. BRASA_STD_THREADS builds the same on std::thread, for ThreadSanitizer
// (which libgomp confuses) and for systems without OpenMP.
#include "core/parallel.h"

#include <atomic>
#include <cstdlib>

#include "core/os.h"

#if defined(BRASA_STD_THREADS)
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

#if defined(__x86_64__)
#define BRASA_PAUSE() __builtin_ia32_pause()
#else
#define BRASA_PAUSE() ((void)0)
#endif

#include <sched.h>

namespace brasa::cpu {
namespace {

int positive(const char* variable) {
  const char* text = std::getenv(variable);
  const long value = text ? std::strtol(text, nullptr, 10) : 0;
  return value > 0 && value < 4096 ? int(value) : 0;
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

bool must_be_serial(int threads) {
  return threads <= 1 || inside_region || os::in_forked_child();
}

/// Runs body(member) on `threads` threads, the caller among them.
template <class Body> void on_each_thread(int threads, const Body& body) {
#if defined(BRASA_STD_THREADS)
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i)
    others.emplace_back([&body, i] {
      inside_region = true;
      body(i);
    });
  inside_region = true;
  body(0);
  inside_region = false;
  for (std::thread& t : others) t.join();
#else
#pragma omp parallel num_threads(threads)
  {
    inside_region = true;
    body(omp_get_thread_num());
    inside_region = false;
  }
#endif
}

/// Sense-free barrier: a ticket counter that only grows. Spins a few microseconds, then yields, so
/// that a member whose core was taken away is waited for politely.
struct TeamBarrier {
  std::atomic<int64_t> tickets{0};
  int64_t size;

  void wait() {
    const int64_t mine = tickets.fetch_add(1, std::memory_order_acq_rel);
    const int64_t target = (mine / size + 1) * size;
    for (int spin = 0; tickets.load(std::memory_order_acquire) < target; ++spin) {
      if (spin < 4000)
        BRASA_PAUSE();
      else
        sched_yield();
    }
  }
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

void run_parallel_for(int threads, int64_t n, int64_t grain, void (*chunk)(void*, int64_t, int64_t),
                      void* closure) {
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks < threads) threads = int(chunks);
  if (must_be_serial(threads)) {
    chunk(closure, 0, n);
    return;
  }
  std::atomic<int64_t> next{0};
  on_each_thread(threads, [&](int) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      const int64_t begin = i * grain, end = begin + grain < n ? begin + grain : n;
      chunk(closure, begin, end);
    }
  });
}

void run_parallel_team(int threads, void (*body)(void*, int, int, Barrier), void* closure) {
  if (must_be_serial(threads)) {
    body(closure, 0, 1, Barrier{nullptr});
    return;
  }
#if !defined(BRASA_STD_THREADS)
  // The runtime may grant fewer threads than asked for; a team must know its true size.
  TeamBarrier barrier{.size = 0};
#pragma omp parallel num_threads(threads)
  {
    inside_region = true;
#pragma omp single
    barrier.size = omp_get_num_threads();
    body(closure, omp_get_thread_num(), int(barrier.size), Barrier{&barrier});
    inside_region = false;
  }
#else
  TeamBarrier barrier{.size = threads};
  on_each_thread(threads, [&](int member) { body(closure, member, threads, Barrier{&barrier}); });
#endif
}

}  // namespace brasa::cpu
