// Pooling by any narrow windows: a thread makes a pixel of the result in kLanes neighbouring
// channels, by one access of 16 bytes for each element of its window, or in one channel where
// channels do not come in such packs (so in C-contiguous planes, whose neighbours along W are read
// by neighbouring threads).
#pragma once

#include "pool/narrow.cuh"

namespace brasa::cuda {

/// The part of window (oh, ow) inside the image, in taps, and where its element (0, 0) would be.
struct NarrowWindow {
  int top, bottom, left, right;
  int64_t origin;

  BRASA_DEVICE_FN NarrowWindow(const NarrowPool& p, const Place& at)
      : top(p.h.first_tap(at.row)),
        bottom(p.h.end_tap(at.row)),
        left(p.w.first_tap(at.column)),
        right(p.w.end_tap(at.column)),
        origin(((at.image * p.h.in + p.h.begin(at.row)) * p.w.in + p.w.begin(at.column)) * p.c +
               at.channel) {}
  BRASA_DEVICE_FN int64_t at(const NarrowPool& p, int row, int column) const {
    return origin + (int64_t(row) * p.w.in + column) * p.c;
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    max_pixels_kernel(const T* x, T* y, PoolOffsets offsets, NarrowPool p, Threads threads) {
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const NarrowWindow window(p, threads.place<kLanes>(i));
  simt::Lanes<Wide<T>, kLanes> best;
  int winners[kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    best[k] = Wide<T>(-INFINITY);
    winners[k] = window.top * p.w.kernel + window.left;
  }
  for (int row = window.top; row < window.bottom; ++row) {
#pragma unroll 3
    for (int column = window.left; column < window.right; ++column) {
      const auto inputs = simt::load_wide<kLanes>(x + window.at(p, row, column));
#pragma unroll
      for (int k = 0; k < kLanes; ++k)
        take(best[k], winners[k], inputs[k], row * p.w.kernel + column);
    }
  }
  const int64_t to = int64_t(i) * kLanes;
  simt::store_wide(y + to, best);
  if (!offsets.data) return;
  if (!offsets.wide) return store_offsets(static_cast<uint8_t*>(offsets.data) + to, winners);
#pragma unroll
  for (int k = 0; k < kLanes; ++k) static_cast<int32_t*>(offsets.data)[to + k] = winners[k];
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    mean_pixels_kernel(const T* x, T* y, NarrowPool p, Threads threads) {
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Place at = threads.place<kLanes>(i);
  const NarrowWindow window(p, at);
  simt::Lanes<Wide<T>, kLanes> totals{};
  for (int column = window.left; column < window.right; ++column) {
    simt::Lanes<Wide<T>, kLanes> sums{};
#pragma unroll 4
    for (int row = window.top; row < window.bottom; ++row) {
      const auto inputs = simt::load_wide<kLanes>(x + window.at(p, row, column));
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sums[k] += inputs[k];
    }
#pragma unroll
    for (int k = 0; k < kLanes; ++k) totals[k] += sums[k];
  }
  const auto divisor = p.divisor<Wide<T>>(at.row, at.column);
#pragma unroll
  for (int k = 0; k < kLanes; ++k) totals[k] /= divisor;
  simt::store_wide(y + int64_t(i) * kLanes, totals);
}

/// The windows that hold an input pixel, and where the results of window (0, 0) of its image are.
struct NarrowCovering {
  int top, bottom, left, right;
  int64_t origin;

  BRASA_DEVICE_FN NarrowCovering(const NarrowPool& p, const Place& at)
      : origin(at.image * p.h.out * p.w.out * p.c + at.channel) {
    p.h.find(at.row, top, bottom);
    p.w.find(at.column, left, right);
  }
  BRASA_DEVICE_FN int64_t at(const NarrowPool& p, int row, int column) const {
    return origin + (int64_t(row) * p.w.out + column) * p.c;
  }
};

template <class T, class Offset, int kLanes>
__global__ void __launch_bounds__(kPoolThreads, 4)
    max_pixels_backward_kernel(const T* dy, const Offset* offsets, T* dx, NarrowPool p,
                               Threads threads) {
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Place at = threads.place<kLanes>(i);
  const NarrowCovering windows(p, at);
  simt::Lanes<Wide<T>, kLanes> sums{};
  for (int oh = windows.top; oh < windows.bottom; ++oh) {
    const int row = (at.row - p.h.begin(oh)) * p.w.kernel;
#pragma unroll 2
    for (int ow = windows.left; ow < windows.right; ++ow) {
      const int64_t from = windows.at(p, oh, ow);
      const int mine = row + at.column - p.w.begin(ow);
      const auto gradients = simt::load_wide<kLanes>(dy + from);
      if constexpr (sizeof(Offset) == 1) {
        const auto winners = load_offsets<kLanes>(true, offsets + from);
#pragma unroll
        for (int k = 0; k < kLanes; ++k)
          if (winners[k] == mine) sums[k] += gradients[k];
      } else {
#pragma unroll
        for (int k = 0; k < kLanes; ++k)
          if (offsets[from + k] == mine) sums[k] += gradients[k];
      }
    }
  }
  simt::store_wide(dx + int64_t(i) * kLanes, sums);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kPoolThreads, 4)
    mean_pixels_backward_kernel(const T* dy, T* dx, NarrowPool p, Threads threads) {
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Place at = threads.place<kLanes>(i);
  const NarrowCovering windows(p, at);
  simt::Lanes<Wide<T>, kLanes> totals{};
  for (int ow = windows.left; ow < windows.right; ++ow) {
    simt::Lanes<Wide<T>, kLanes> column{};
#pragma unroll 1
    for (int oh = windows.top; oh < windows.bottom; ++oh) {
      const auto gradients = simt::load_wide<kLanes>(dy + windows.at(p, oh, ow));
      const auto divisor = p.divisor<Wide<T>>(oh, ow);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) column[k] += gradients[k] / divisor;
    }
#pragma unroll
    for (int k = 0; k < kLanes; ++k) totals[k] += column[k];
  }
  simt::store_wide(dx + int64_t(i) * kLanes, totals);
}

}  // namespace brasa::cuda
