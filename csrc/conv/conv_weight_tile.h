// The micro-kernel of weight gradients: a tile of sums in registers while pixels go by.
#pragma once

#include "conv/conv_plan.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// Pixels of x and dy that lie at even steps.
template <class T> struct Segment {
  const T* x;
  const T* dy;
  int64_t count;
};

/// Memory that is fetched into L2 while a tile is summed, a little with each pixel: x `x_ahead`
/// elements on, and dy from `dy` on, `dy_step` bytes further each time.
struct Ahead {
  int64_t x_ahead = 0;
  const char* dy = nullptr;
  int64_t dy_step = 0;
};

/// sums[i][j] (+)= sum over segments' pixels of x[i] * dy[j] for i < kRows; `live` columns of dy
/// exist.
template <class T, int kRows, int kVectors>
static void weight_tile(const Segment<T>* segment, int64_t segments, int64_t x_at, int64_t dy_at,
                        int64_t x_step, int64_t dy_step, T* sums, int64_t live, bool add,
                        const Ahead& ahead) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = Vec<T>{};
      __builtin_prefetch(sums + (i * kVectors + j) * kWidth, 1);
    }
  const int64_t x_ahead = ahead.x_ahead, fetch_step = ahead.dy_step;
  const char* fetch = ahead.dy;
  const int64_t last_live = live - (kVectors - 1) * kWidth;
  for (int64_t s = 0; s < segments; ++s) {
    const T* x = segment[s].x + x_at;
    const T* dy = segment[s].dy + dy_at;
    for (int64_t n = segment[s].count; n > 0; --n, x += x_step, dy += dy_step) {
      if (fetch_step) {
        __builtin_prefetch(x + x_ahead, 0, 2);
        __builtin_prefetch(fetch, 0, 2);
        fetch += fetch_step;
      }
      Vec<T> gradient[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors - 1; ++j) gradient[j] = load(dy + j * kWidth);
      gradient[kVectors - 1] = load_live(dy + (kVectors - 1) * kWidth, last_live);
#pragma GCC unroll 32
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = broadcast(x[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, gradient[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* to = sums + (i * kVectors + j) * kWidth;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
}

}  // namespace brasa::cpu::BRASA_ISA
