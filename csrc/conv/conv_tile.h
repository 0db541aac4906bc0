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

/// A tap, or a row of taps that is one run of memory: where it is read from, relative to the pixel.
struct Tap {
  int64_t at[3], offset;
};

/// Where a tile reads: with kTable pixel i of tap t is at pointers[t * pitch + i], else it is at
/// pointers[i] + tap[t].offset. `run` values are read there, from `channel` on.
template <class T> struct TileInput {
  const T* const* pointers;
  int64_t pitch;
  const Tap* tap;
  int64_t taps, run, channel;
};

/// out[i][0, live) = start[0, live) + sum over taps and run of input * w, for pixels i < rows. With
/// `resume` the sums go on from what out holds.
template <class T, int kRows, int kVectors, bool kTable>
static void gather_tile(const TileInput<T>& in, const T* w, const T* start, T* const* out,
                        int64_t column, int64_t live, int rows, bool resume) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = live - j * kWidth;
      sum[i][j] = resume ? load_live(out[i] + column + j * kWidth, left) : load(start + j * kWidth);
    }
  for (int64_t t = 0; t < in.taps; ++t) {
    const T* x[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
      x[i] =
          (kTable ? in.pointers[t * in.pitch + i] : in.pointers[i] + in.tap[t].offset) + in.channel;
    for (int64_t c = 0; c < in.run; ++c, w += kVectors * kWidth) {
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

/// Pixels of x and dy that lie at even steps.
template <class T> struct Segment {
  const T* x;
  const T* dy;
  int64_t count;
};

/// sums[i][j] (+)= sum over segments' pixels of x[i] * dy[j] for i < kRows; `live` columns of dy
/// exist.
template <class T, int kRows, int kVectors>
static void weight_tile(const Segment<T>* segment, int64_t segments, int64_t x_at, int64_t dy_at,
                        int64_t x_step, int64_t dy_step, T* sums, int64_t live, bool add) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows][kVectors] = {};
  const int64_t last_live = live - (kVectors - 1) * kWidth;
  for (int64_t s = 0; s < segments; ++s) {
    const T* x = segment[s].x + x_at;
    const T* dy = segment[s].dy + dy_at;
    for (int64_t n = segment[s].count; n > 0; --n, x += x_step, dy += dy_step) {
      Vec<T> gradient[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors - 1; ++j) gradient[j] = load(dy + j * kWidth);
      gradient[kVectors - 1] = load_live(dy + (kVectors - 1) * kWidth, last_live);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = broadcast(x[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, gradient[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* to = sums + (i * kVectors + j) * kWidth;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
}

}  // namespace brasa::cpu::BRASA_ISA
