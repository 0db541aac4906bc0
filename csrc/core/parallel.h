// Threads for kernels. Results never depend on their number: a chunk's work is a function of its
// index, and every output element belongs to one chunk.
//
//   parallel_for(ctx, n, grain, f)    f(begin, end) over [0, n) in chunks of `grain`
//   parallel_chunks(ctx, n, f)        f(member, index) for every index < n; members have scratch
//   parallel_team(ctx, f)             f(member, size, barrier) on a team; barrier() waits for all
//
// Each member begins with a share of its own, the same in every call, and helps the others when it
// is done (another process on a core then costs little). All run serially, as member 0, with one
// thread, inside another parallel region, while another thread's region runs and in a forked child.
// The work must not allocate, throw or touch Python. A region costs about 0.3 us hot, 6 us after
// idling: stay serial below about 10 us of work.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace brasa::cpu {

/// Waits until every member of the team has called it.
struct Barrier {
  void* state;
  void operator()() const;
};

void run_parallel_for(int threads, int64_t n, int64_t grain,
                      void (*chunk)(void*, int member, int64_t begin, int64_t end), void* closure);
void run_parallel_team(int threads, void (*body)(void*, int member, int size, Barrier),
                       void* closure);

/// Threads a kernel may use: the call, then BRASA_NUM_THREADS, then OMP_NUM_THREADS, then the CPUs
/// in the affinity mask, capped by the cgroup quota.
int num_threads();
void set_num_threads(int n);

#if defined(BRASA_ISA)
namespace BRASA_ISA {

template <class F>
static inline void parallel_for(Context ctx, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (ctx.threads <= 1 || n <= grain) {
    f(int64_t{0}, n);
    return;
  }
  run_parallel_for(
      ctx.threads, n, grain,
      [](void* closure, int, int64_t begin, int64_t end) {
        (*static_cast<const F*>(closure))(begin, end);
      },
      const_cast<F*>(&f));
}

template <class F> static inline void parallel_chunks(Context ctx, int64_t n, const F& f) {
  const auto chunk = [](void* closure, int member, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(closure))(member, i);
  };
  if (ctx.threads <= 1 || n <= 1)
    chunk(const_cast<F*>(&f), 0, 0, n);
  else
    run_parallel_for(ctx.threads, n, 1, chunk, const_cast<F*>(&f));
}

template <class F> static inline void parallel_team(Context ctx, const F& f) {
  run_parallel_team(
      ctx.threads,
      [](void* closure, int member, int size, Barrier barrier) {
        (*static_cast<const F*>(closure))(member, size, barrier);
      },
      const_cast<F*>(&f));
}

}  // namespace BRASA_ISA
#endif

}  // namespace brasa::cpu
