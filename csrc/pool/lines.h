// Lines: padded rows of an image in C order, in scratch memory, and the phases they are split into.
//
// With stride s, output o and tap j meet at padded column o s + j d. Split by column modulo s, a
// line becomes s phases, and each tap reads one of them at consecutive addresses from (j d) / s on:
// whole vectors for every kernel size, stride and dilation, and no special case for the edges,
// which are in the padding. Splitting costs one pass over the line in L1, two shuffles per pair of
// vectors for s = 2.
#pragma once

#include "pool/offsets.h"
#include "pool/window.h"

namespace brasa::cpu::BRASA_ISA {

/// Larger strides and windows, and adaptive ones, are walked output by output instead: with few
/// outputs per line phases would be nearly empty.
constexpr int64_t kMostPhases = 4, kWidestWindow = 64;

/// Stands in padding in place of a row's offset, above every real one.
constexpr int64_t kNoRow = int64_t{1} << 30;

inline constexpr int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// How the lines along W lie in scratch; `phase` and `line` are lengths in elements.
struct LinePlan {
  bool phased;
  int64_t stride, pad, phase, line;
};

/// Lines that outputs are computed from.
template <class T> static LinePlan input_plan(const PoolAxis& w) {
  constexpr int64_t kWidth = kLanes<T>;
  const bool phased =
      !w.adaptive && w.stride <= kMostPhases && (w.kernel - 1) * w.dilation < kWidestWindow;
  if (!phased) return {false, 1, 0, 0, round_up(w.in, 16) + 16};
  const int64_t reach = w.out + (w.kernel - 1) * w.dilation / w.stride + 1;
  const int64_t phase = round_up(reach + kWidth, 16);
  const int64_t needed = w.stride * phase > w.pad + w.in ? w.stride * phase : w.pad + w.in;
  return {true, w.stride, w.pad, phase, round_up(needed, 16) + 2 * 16};
}

/// Lines of gradients: a phase holds the inputs whose padded column is the same modulo the stride.
template <class T> static LinePlan gradient_plan(const PoolAxis& w) {
  LinePlan plan = input_plan<T>(w);
  if (!plan.phased) return {false, 1, 0, 0, round_up(w.out > w.in ? w.out : w.in, 16) + 16};
  plan.phase = round_up((w.in - 1 + w.pad) / w.stride + 1, 16);
  plan.line = w.stride * plan.phase;
  return plan;
}

/// Where tap j reads: its phase, and how far into it.
struct TapPlace {
  int64_t phase, shift;
};
BRASA_INLINE TapPlace tap_place(const PoolAxis& w, int64_t j) {
  return {j * w.dilation % w.stride, j * w.dilation / w.stride};
}

/// Lanes 0, 2, 4, ... of a and b side by side, and lanes 1, 3, 5, ...
template <class V> BRASA_INLINE V even_lanes(V a, V b) {
  constexpr int kCount = sizeof(V) / sizeof(a[0]);
  if constexpr (kCount == 1)
    return a;
  else if constexpr (kCount == 2)
    return __builtin_shufflevector(a, b, 0, 2);
  else if constexpr (kCount == 4)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  else if constexpr (kCount == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
template <class V> BRASA_INLINE V odd_lanes(V a, V b) {
  constexpr int kCount = sizeof(V) / sizeof(a[0]);
  if constexpr (kCount == 1)
    return b;
  else if constexpr (kCount == 2)
    return __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (kCount == 4)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
  else if constexpr (kCount == 8)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/// Lane i of the result is lane index[i] of a and b, side by side.
template <class V, class Index> BRASA_INLINE V permute(V a, V b, Index index) {
#if defined(__clang__)
  constexpr int kCount = sizeof(V) / sizeof(a[0]);
  V y{};
  for (int i = 0; i < kCount; ++i) y[i] = index[i] < kCount ? a[index[i]] : b[index[i] - kCount];
  return y;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

/// The same from one vector: half the cost.
template <class V, class Index> BRASA_INLINE V permute_one(V x, Index index) {
#if defined(__clang__)
  return permute(x, x, index);
#else
  return __builtin_shuffle(x, index);
#endif
}

/// The last lane of `before`, then all of x but its last.
template <class V> BRASA_INLINE V shift_in(V before, V x) {
  constexpr int kCount = sizeof(V) / sizeof(x[0]);
  if constexpr (kCount == 1)
    return before;
  else if constexpr (kCount == 2)
    return __builtin_shufflevector(before, x, 1, 2);
  else if constexpr (kCount == 4)
    return __builtin_shufflevector(before, x, 3, 4, 5, 6);
  else if constexpr (kCount == 8)
    return __builtin_shufflevector(before, x, 7, 8, 9, 10, 11, 12, 13, 14);
  else
    return __builtin_shufflevector(before, x, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27,
                                   28, 29, 30);
}

/// The way back: a0 b0 a1 b1 ..., the first and the second half.
template <class V> BRASA_INLINE V zip_low(V a, V b) {
  constexpr int kCount = sizeof(V) / sizeof(a[0]);
  if constexpr (kCount == 1)
    return a;
  else if constexpr (kCount == 2)
    return __builtin_shufflevector(a, b, 0, 2);
  else if constexpr (kCount == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else if constexpr (kCount == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
template <class V> BRASA_INLINE V zip_high(V a, V b) {
  constexpr int kCount = sizeof(V) / sizeof(a[0]);
  if constexpr (kCount == 1)
    return b;
  else if constexpr (kCount == 2)
    return __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (kCount == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else if constexpr (kCount == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}

/// phases[q * plan.phase + m] = line[m * stride + q]
template <class T> static void split_line(const LinePlan& plan, const T* line, T* phases) {
  if (plan.stride == 2) {
    for (int64_t m = 0; m < plan.phase; m += kLanes<T>) {
      const Vec<T> a = load(line + 2 * m), b = load(line + 2 * m + kLanes<T>);
      store(phases + m, even_lanes(a, b));
      store(phases + plan.phase + m, odd_lanes(a, b));
    }
    return;
  }
  for (int64_t q = 0; q < plan.stride; ++q)
    for (int64_t m = 0; m < plan.phase; ++m) phases[q * plan.phase + m] = line[m * plan.stride + q];
}

/// The reverse.
template <class T> static void join_line(const LinePlan& plan, const T* phases, T* line) {
  if (plan.stride == 2) {
    for (int64_t m = 0; m < plan.phase; m += kLanes<T>) {
      const Vec<T> a = load(phases + m), b = load(phases + plan.phase + m);
      store(line + 2 * m, zip_low(a, b));
      store(line + 2 * m + kLanes<T>, zip_high(a, b));
    }
    return;
  }
  for (int64_t q = 0; q < plan.stride; ++q)
    for (int64_t m = 0; m < plan.phase; ++m) line[m * plan.stride + q] = phases[q * plan.phase + m];
}

template <class T> BRASA_INLINE void fill(T* p, int64_t n, T x) {
  for (int64_t i = 0; i < n; ++i) p[i] = x;
}

/// Hands out scratch memory, whole cache lines at a time.
template <class T> struct Scratch {
  T* next;
  T* take(int64_t n) {
    T* taken = next;
    next += round_up(n, 16);
    return taken;
  }
};

/// Divisors of the outputs of a row, less the row's own factor.
template <class T> static void fill_column_divisors(const PoolParams& p, T* divisors, int64_t n) {
  for (int64_t o = 0; o < n; ++o) divisors[o] = o < p.w.out ? T(column_divisor(p, o)) : T(1);
}

}  // namespace brasa::cpu::BRASA_ISA
