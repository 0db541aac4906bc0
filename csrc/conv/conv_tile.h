// The micro-kernels: tiles of sums in registers.
#pragma once

#include "conv/conv_plan.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// How the output channels of one group are cut into panels of up to kConvVectors vectors,
/// balanced.
template <class T> struct Panels {
  int64_t columns, vectors, count;

  explicit Panels(int64_t channels)
      : columns(channels),
        vectors(ceil_div(channels, kLanes<T>)),
        count(ceil_div(vectors, kConvVectors)) {}
  int width(int64_t panel) const { return int(vectors / count + (panel < vectors % count)); }
  int64_t first(int64_t panel) const {  // in vectors
    return panel * (vectors / count) + smaller(panel, vectors % count);
  }
  int64_t column(int64_t panel) const { return first(panel) * kLanes<T>; }
  int64_t padded() const { return vectors * kLanes<T>; }
  /// Live columns of this panel.
  int64_t live(int64_t panel) const {
    return smaller(int64_t(width(panel)) * kLanes<T>, columns - column(panel));
  }
};

/// Calls f.operator()<kVectors>() for a panel of that width.
template <class F> BRASA_INLINE void visit_width(int vectors, const F& f) {
  if constexpr (kConvVectors > 2) {
    if (vectors == 3) return f.template operator()<3>();
    if (vectors == 4) return f.template operator()<4>();
  }
  return vectors == 1 ? f.template operator()<1>() : f.template operator()<2>();
}

/// A tap, or a row of taps that is one run of memory: where it is read from, relative to the pixel,
/// and at which row of a panel its weights begin.
struct Tap {
  int64_t at[3], offset, row;
};

/// Pixels that lie at even steps, in x and in out: sums over all taps and `run` values of each.
template <class T> struct LineInput {
  const Tap* tap;
  int64_t taps, run;
  int64_t step, out_step;  ///< between pixels
};

/// out[i * step + column] = sum[i] of all rows, live columns each.
template <class T, int kRows, int kVectors>
BRASA_INLINE void store_tile(const Vec<T> (&sum)[kRows][kVectors], T* out, int64_t step,
                             int64_t live) {
  constexpr int kWidth = kLanes<T>;
  if (__builtin_expect(live >= kVectors * kWidth, 1)) {
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i, out += step)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) store(out + j * kWidth, sum[i][j]);
    return;
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i, out += step) {
    // Panels are as narrow as their columns allow: only the last vector is not whole.
#pragma GCC unroll 4
    for (int j = 0; j < kVectors - 1; ++j) store(out + j * kWidth, sum[i][j]);
    store_partial(out + (kVectors - 1) * kWidth, sum[i][kVectors - 1],
                  live - (kVectors - 1) * kWidth);
  }
}

/// The sums begin at `start` or, where that is null, go on from what out holds. Fetching the next
/// tile's part of out instead lost 3 % of 3 channels on 224x224; streaming stores won nothing.
template <class T, int kRows, int kVectors>
static __attribute__((noinline)) void line_tile(const LineInput<T>& in, const T* x, const T* w,
                                                const T* start, T* out, int64_t live) {
  constexpr int kWidth = kLanes<T>, kBases = (kRows + 2) / 3;
  Vec<T> sum[kRows][kVectors];
  if (__builtin_expect(start != nullptr, 1)) {
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = load(start + j * kWidth);
        __builtin_prefetch(out + i * in.out_step + j * kWidth, 1);
      }
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j)
        sum[i][j] = load_live(out + i * in.out_step + j * kWidth, live - j * kWidth);
  }
  const int64_t step = in.step;
  const T* const panel = w;
  for (int64_t t = 0; t < in.taps; ++t) {
    w = panel + in.tap[t].row * (kVectors * kWidth);
    // A pointer for every third pixel: the others are at steps from it that the addressing gives.
    const T* base[kBases];
#pragma GCC unroll 16
    for (int b = 0; b < kBases; ++b) base[b] = x + in.tap[t].offset + 3 * b * step;
    for (int64_t c = in.run; c > 0; --c, w += kVectors * kWidth) {
      if (c % (64 / int64_t(sizeof(T))) == 0) {
#pragma GCC unroll 32
        for (int i = 0; i < kRows; ++i) __builtin_prefetch(base[i / 3] + (i % 3 + kRows) * step);
      }
      Vec<T> weight[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) weight[j] = load(w + j * kWidth);
#pragma GCC unroll 32
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = broadcast(base[i / 3][i % 3 * step]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
      }
#pragma GCC unroll 16
      for (int b = 0; b < kBases; ++b) ++base[b];
    }
  }
  store_tile<T, kRows, kVectors>(sum, out, in.out_step, live);
}

template <class T>
using LineTile = void (*)(const LineInput<T>&, const T*, const T*, const T*, T*, int64_t);

template <class T, int kVectors, int kRows = kConvLineRows<kVectors>>
static LineTile<T> pick_line_tile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return pick_line_tile<T, kVectors, kRows - 1>(rows);
  }
  return &line_tile<T, kRows, kVectors>;
}

/// Pixels that lie anywhere: pixel i's tap t is at pointers[t * pitch + i], from `channel` on.
template <class T> struct TableInput {
  const T* const* pointers;
  const Tap* tap;
  int64_t pitch, taps, run, channel;
};

/// out[i][column, column + live) for pixels i < rows. The sums begin at `start` or, with `resume`,
/// go on from what out holds.
template <class T, int kRows, int kVectors>
static __attribute__((noinline)) void table_tile(const TableInput<T>& in, const T* w,
                                                 const T* start, T* const* out, int64_t column,
                                                 int64_t live, int rows, bool resume) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = live - j * kWidth;
      sum[i][j] = resume ? load_live(out[i] + column + j * kWidth, left) : load(start + j * kWidth);
    }
  const T* const panel = w;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) __builtin_prefetch(out[i] + column + j * kWidth, 1);
  for (int64_t t = 0; t < in.taps; ++t) {
    const T* x[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) x[i] = in.pointers[t * in.pitch + i] + in.channel;
    w = panel + in.tap[t].row * (kVectors * kWidth);
    for (int64_t c = 0; c < in.run; ++c, w += kVectors * kWidth) {
      if (c % (64 / int64_t(sizeof(T))) == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i)
          __builtin_prefetch(in.pointers[t * in.pitch + i + kRows] + in.channel + c);
      }
      Vec<T> weight[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) weight[j] = load(w + j * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = broadcast(x[i][c]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) break;
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      store_live(out[i] + column + j * kWidth, sum[i][j], live - j * kWidth);
  }
}

/// Something cut into tiles of at most `most`, evenly, so that no tile is much lower than another.
struct EvenCut {
  int64_t size, count;
  EvenCut(int64_t size_, int most) : size(size_), count(ceil_div(size_, most)) {}
  int64_t first(int64_t tile) const { return size * tile / count; }
  int rows(int64_t tile) const { return int(first(tile + 1) - first(tile)); }
};

}  // namespace brasa::cpu::BRASA_ISA
