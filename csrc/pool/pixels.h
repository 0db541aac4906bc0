// Channels-last images: vectors of channels, one pixel of the result after the other. A window's
// taps are pixels of c neighbours, so every load is whole and nothing is shuffled.
#pragma once

#include "pool/offsets.h"
#include "pool/window.h"

namespace brasa::cpu::BRASA_ISA {

/// Vectors of channels that go through a window together: 256 bytes of each pixel at a time keep
/// the memory's pages open, and four chains hide the latency.
constexpr int kPixelVectors = 4;

/// Calls f.operator()<vectors>(channel, live lanes of each) over channels [begin, end).
template <class T, class F>
BRASA_INLINE void each_channel_group(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t kWidth = kLanes<T>;
  int64_t c = begin;
  for (; c + kPixelVectors * kWidth <= end; c += kPixelVectors * kWidth)
    f.template operator()<kPixelVectors>(c, kWidth);
  for (; c < end; c += kWidth) f.template operator()<1>(c, end - c < kWidth ? end - c : kWidth);
}

/// What of the image one window covers: `x` is its first pixel there.
template <class T> struct PixelWindow {
  const T* x;
  Window h, w;
  int64_t row_step, pixel_step;  ///< between taps
  int64_t kernel_w;
};

template <int kVectors, class T, class Offset>
BRASA_INLINE void max_of_pixels(const PixelWindow<T>& window, int64_t live, T* y, Offset* offsets) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> best[kVectors];
  IntVec<T> where[kVectors];
  const int64_t first_tap = window.h.tap * window.kernel_w + window.w.tap;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    best[v] = broadcast(T(-__builtin_inf()));
    where[v] = int_lanes<T>(first_tap);
  }
  for (int64_t i = 0; i < window.h.count; ++i) {
    const T* row = window.x + i * window.row_step;
    for (int64_t j = 0; j < window.w.count; ++j) {
      const IntVec<T> tap = int_lanes<T>(first_tap + i * window.kernel_w + j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<T> value = read(row + j * window.pixel_step + v * kWidth, live);
        const IntVec<T> better = (value > best[v]) | (value != value);
        best[v] = better ? value : best[v];
        if constexpr (kKeeps<Offset>) where[v] = better ? tap : where[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    write(y + v * kWidth, best[v], live);
    if constexpr (kKeeps<Offset>) store_offsets<T>(offsets + v * kWidth, where[v], live);
  }
}

template <int kVectors, class T>
BRASA_INLINE void mean_of_pixels(const PixelWindow<T>& window, int64_t live, T divisor, T* y) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> total[kVectors] = {};
  for (int64_t j = 0; j < window.w.count; ++j) {
    Vec<T> column[kVectors] = {};
    for (int64_t i = 0; i < window.h.count; ++i) {
      const T* pixel = window.x + i * window.row_step + j * window.pixel_step;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] += read(pixel + v * kWidth, live);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[v] += column[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) write(y + v * kWidth, total[v] / broadcast(divisor), live);
}

/// Calls f(window, position in y) for every pixel of row `oh` of image `n`.
template <class T, class F>
BRASA_INLINE void each_window(const PoolParams& p, const T* x, int64_t n, int64_t oh, const F& f) {
  const Window h = window_of(p.h, oh);
  const int64_t dilation_h = p.h.adaptive ? 1 : p.h.dilation;
  const int64_t dilation_w = p.w.adaptive ? 1 : p.w.dilation;
  const T* row = x + (n * p.h.in + h.first) * p.w.in * p.c;
  for (int64_t ow = 0; ow < p.w.out; ++ow) {
    const Window w = window_of(p.w, ow);
    f(PixelWindow<T>{row + w.first * p.c, h, w, dilation_h * p.w.in * p.c, dilation_w * p.c,
                     p.w.kernel},
      ((n * p.h.out + oh) * p.w.out + ow) * p.c, ow);
  }
}

template <class T, class Offset>
void max_pool_pixels(const PoolParams& p, const T* x, T* y, Offset* offsets, int64_t row,
                     int64_t c_begin, int64_t c_end) {
  each_window(p, x, row / p.h.out, row % p.h.out, [&](PixelWindow<T> window, int64_t at, int64_t) {
    const T* first = window.x;
    each_channel_group<T>(c_begin, c_end, [&]<int kVectors>(int64_t c, int64_t live) {
      window.x = first + c;
      max_of_pixels<kVectors>(window, live, y + at + c,
                              kKeeps<Offset> ? offsets + at + c : offsets);
    });
  });
}

template <class T>
void mean_pool_pixels(const PoolParams& p, const T* x, T* y, int64_t row, int64_t c_begin,
                      int64_t c_end) {
  const int64_t divisor_h = row_divisor(p, row % p.h.out);
  each_window(p, x, row / p.h.out, row % p.h.out,
              [&](PixelWindow<T> window, int64_t at, int64_t ow) {
                const T* first = window.x;
                const T divisor = T(divisor_h) * T(column_divisor(p, ow));
                each_channel_group<T>(c_begin, c_end, [&]<int kVectors>(int64_t c, int64_t live) {
                  window.x = first + c;
                  mean_of_pixels<kVectors>(window, live, divisor, y + at + c);
                });
              });
}

// ------------------------------------------------------------------------------------------
// backward

/// dx of one row of the image: every pixel gathers from the windows that cover it, in their order.
template <class T, class Offset>
void max_pool_pixels_backward(const PoolParams& p, const T* dy, const Offset* offsets, T* dx,
                              int64_t row, int64_t c_begin, int64_t c_end) {
  constexpr int kWidth = kLanes<T>;
  const int64_t n = row / p.h.in, ih = row % p.h.in;
  const Covering h = covering(p.h, ih);
  for (int64_t iw = 0; iw < p.w.in; ++iw) {
    const Covering w = covering(p.w, iw);
    T* pixel = dx + (row * p.w.in + iw) * p.c;
    each_channel_group<T>(c_begin, c_end, [&]<int kVectors>(int64_t c, int64_t live) {
      Vec<T> sum[kVectors] = {};
      for (int64_t oh = h.first; oh < h.end; ++oh) {
        const int64_t i = tap_of(p.h, oh, ih);
        for (int64_t ow = w.first; ow < w.end; ++ow) {
          const int64_t j = tap_of(p.w, ow, iw);
          if (i < 0 || j < 0) continue;
          const int64_t at = ((n * p.h.out + oh) * p.w.out + ow) * p.c + c;
          const IntVec<T> tap = int_lanes<T>(i * p.w.kernel + j);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            const IntVec<T> where = load_offsets<T>(offsets + at + v * kWidth, live);
            sum[v] += keep<T>(where == tap, read(dy + at + v * kWidth, live));
          }
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) write(pixel + c + v * kWidth, sum[v], live);
    });
  }
}

template <class T>
void mean_pool_pixels_backward(const PoolParams& p, const T* dy, T* dx, int64_t row,
                               int64_t c_begin, int64_t c_end) {
  constexpr int kWidth = kLanes<T>;
  const int64_t n = row / p.h.in, ih = row % p.h.in;
  const Covering h = covering(p.h, ih);
  for (int64_t iw = 0; iw < p.w.in; ++iw) {
    const Covering w = covering(p.w, iw);
    T* pixel = dx + (row * p.w.in + iw) * p.c;
    each_channel_group<T>(c_begin, c_end, [&]<int kVectors>(int64_t c, int64_t live) {
      Vec<T> total[kVectors] = {};
      for (int64_t ow = w.first; ow < w.end; ++ow) {
        const T divisor_w = T(column_divisor(p, ow));
        Vec<T> column[kVectors] = {};
        for (int64_t oh = h.first; oh < h.end; ++oh) {
          const Vec<T> divisor = broadcast(T(row_divisor(p, oh)) * divisor_w);
          const T* from = dy + ((n * p.h.out + oh) * p.w.out + ow) * p.c + c;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) column[v] += read(from + v * kWidth, live) / divisor;
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[v] += column[v];
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) write(pixel + c + v * kWidth, total[v], live);
    });
  }
}

}  // namespace brasa::cpu::BRASA_ISA
