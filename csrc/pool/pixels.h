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

/// What of the image one window covers: `x` is its first pixel there, `end` the end of the image.
template <class T> struct PixelWindow {
  const T *x, *end;
  Window h, w;
  int64_t row_step, pixel_step;  ///< between taps
  int64_t kernel_w;

  /// `live` lanes at p; in the others what follows them in memory, if anything does. Whole loads
  /// are that much cheaper where channels are fewer than lanes.
  BRASA_INLINE_MEMBER Vec<T> lanes_at(const T* p, int64_t live) const {
    return end - p >= kLanes<T> ? load(p) : load_partial(p, live);
  }
};

/// Where vectors of channels go, and the end of what this thread writes from there on, in order.
struct PixelResult {
  int64_t at, end;
  bool streaming;
};

/// kKernel > 0: the window is whole and kKernel square.
template <int kKernel, int kVectors, class T, class Offset>
BRASA_INLINE void max_of_pixels(const PixelWindow<T>& window, int64_t live, PixelResult result,
                                T* y, Offset* offsets) {
  constexpr int kWidth = kLanes<T>;
  const int64_t rows = kKernel ? kKernel : window.h.count;
  const int64_t columns = kKernel ? kKernel : window.w.count;
  const int64_t first_tap = kKernel ? 0 : window.h.tap * window.kernel_w + window.w.tap;
  Vec<T> best[kVectors];
  IntVec<T> where[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    best[v] = broadcast(T(-__builtin_inf()));
    where[v] = int_lanes<T>(first_tap);
  }
#pragma GCC unroll 3
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = window.x + i * window.row_step;
#pragma GCC unroll 3
    for (int64_t j = 0; j < columns; ++j) {
      const IntVec<T> tap = int_lanes<T>(first_tap + i * (kKernel ? kKernel : window.kernel_w) + j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const T* lanes = row + j * window.pixel_step + v * kWidth;
        if (rows - i <= 2) fetch_ahead(lanes, columns - j);
        const Vec<T> value = window.lanes_at(lanes, live);
        const IntVec<T> better = (value > best[v]) | (value != value);
        best[v] = better ? value : best[v];
        if constexpr (kKeeps<Offset>) where[v] = better ? tap : where[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = result.at + v * kWidth, lanes = lanes_to_write<T>(at, live, result.end);
    put(result.streaming, y + at, best[v], live, lanes);
    if constexpr (kKeeps<Offset>) store_offsets<T>(offsets + at, where[v], lanes);
  }
}

/// kKernel as for max_of_pixels: in loops of unknown length 2x2 took half as long again.
template <int kKernel, int kVectors, class T>
BRASA_INLINE void mean_of_pixels(const PixelWindow<T>& window, int64_t live, T divisor,
                                 PixelResult result, T* y) {
  constexpr int kWidth = kLanes<T>;
  const int64_t rows = kKernel ? kKernel : window.h.count;
  const int64_t columns = kKernel ? kKernel : window.w.count;
  Vec<T> total[kVectors] = {};
#pragma GCC unroll 3
  for (int64_t j = 0; j < columns; ++j) {
    Vec<T> column[kVectors] = {};
#pragma GCC unroll 3
    for (int64_t i = 0; i < rows; ++i) {
      const T* pixel = window.x + i * window.row_step + j * window.pixel_step;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if (rows - i <= 2) fetch_ahead(pixel + v * kWidth, columns - j);
        column[v] += window.lanes_at(pixel + v * kWidth, live);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[v] += column[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = result.at + v * kWidth;
    put(result.streaming, y + at, total[v] / broadcast(divisor), live,
        lanes_to_write<T>(at, live, result.end));
  }
}

/// Calls f.operator()<vectors>(window, live lanes, where to, column) for every pixel of row `row`
/// of the result, counted over all images, and every group of channels.
template <class T, class F>
BRASA_INLINE void each_window(const PoolParams& p, const T* x, const T* y, int64_t row,
                              int64_t c_begin, int64_t c_end, const F& f) {
  const int64_t n = row / p.h.out, oh = row % p.h.out;
  const Window h = window_of(p.h, oh);
  const int64_t dilation_h = p.h.adaptive ? 1 : p.h.dilation;
  const int64_t dilation_w = p.w.adaptive ? 1 : p.w.dilation;
  const T* first = x + (n * p.h.in + h.first) * p.w.in * p.c;
  const T* end = x + p.n * p.h.in * p.w.in * p.c;
  const bool whole = c_begin == 0 && c_end == p.c;
  const int64_t elements = p.n * p.c * (p.h.in * p.w.in + p.h.out * p.w.out);
  const bool streaming = streams(y, p.c, elements * int64_t(sizeof(T)));
  for (int64_t ow = 0; ow < p.w.out; ++ow) {
    const Window w = window_of(p.w, ow);
    const int64_t at = (row * p.w.out + ow) * p.c, row_end = (row + 1) * p.w.out * p.c;
    each_channel_group<T>(c_begin, c_end, [&]<int kVectors>(int64_t c, int64_t live) {
      f.template operator()<kVectors>(
          PixelWindow<T>{first + w.first * p.c + c, end, h, w, dilation_h * p.w.in * p.c,
                         dilation_w * p.c, p.w.kernel},
          live, PixelResult{at + c, whole ? row_end : at + c_end, streaming}, ow);
    });
  }
  if (streaming) finish_streaming();
}

template <int kKernel, class T, class Offset>
void max_pool_pixels(const PoolParams& p, const T* x, T* y, Offset* offsets, int64_t row,
                     int64_t c_begin, int64_t c_end) {
  each_window(
      p, x, y, row, c_begin, c_end,
      [&]<int kVectors>(const PixelWindow<T>& window, int64_t live, PixelResult to, int64_t) {
        if (kKernel && window.h.count == kKernel && window.w.count == kKernel)
          max_of_pixels<kKernel, kVectors>(window, live, to, y, offsets);
        else
          max_of_pixels<0, kVectors>(window, live, to, y, offsets);
      });
}

template <int kKernel, class T>
void mean_pool_pixels(const PoolParams& p, const T* x, T* y, int64_t row, int64_t c_begin,
                      int64_t c_end) {
  const int64_t divisor_h = row_divisor(p, row % p.h.out);
  each_window(
      p, x, y, row, c_begin, c_end,
      [&]<int kVectors>(const PixelWindow<T>& window, int64_t live, PixelResult to, int64_t ow) {
        const T divisor = T(divisor_h) * T(column_divisor(p, ow));
        if (kKernel && window.h.count == kKernel && window.w.count == kKernel)
          mean_of_pixels<kKernel, kVectors>(window, live, divisor, to, y);
        else
          mean_of_pixels<0, kVectors>(window, live, divisor, to, y);
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
