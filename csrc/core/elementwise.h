// Loops over dense memory: whole vectors, then the tail. The tail computes in a full vector, so a
// value does not depend on where in the array it stands.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

/// Elements per chunk: 64 KiB of float32 in and out stays in L2 and is some 5 us of work.
constexpr int64_t kElementwiseGrain = 16 * 1024;

/// y[i] = f(x[i]...) for begin <= i < end, on vectors. y may be one of the x.
template <class T, class F, class... X>
static inline void map_range(int64_t begin, int64_t end, const F& f, T* y, const X*... x) {
  constexpr int kWidth = kLanes<T>;
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) store(y + i, f(load(x + i)...));
  if (i < end) store_partial(y + i, f(load_partial(x + i, end - i)...), end - i);
}

template <class T, class F, class... X>
static inline void map(Context ctx, int64_t n, const F& f, T* y, const X*... x) {
  parallel_for(ctx, n, kElementwiseGrain,
               [&](int64_t begin, int64_t end) { map_range(begin, end, f, y, x...); });
}

}  // namespace brasa::cpu::BRASA_ISA
