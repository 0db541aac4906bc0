// Pooling by whatever windows the other kernels do not know: with dilation, adaptive ones of
// several sizes, arrays of 2^31 elements: one thread per element with 64-bit positions.
// Neighbouring threads have neighbouring memory in both layouts. Windows of kWideWindow elements
// (global pooling of large images) take a block per output.
#pragma once

#include "pool/narrow.cuh"
#include "pool/window.h"

namespace brasa::cuda {

constexpr int64_t kWideWindow = 1024;

/// Divides positions in memory order of an array of these planes.
struct Planes {
  simt::Divisor channels, width, height;

  Planes(const PoolParams& p, int64_t plane_height, int64_t plane_width)
      : channels(p.c), width(plane_width), height(plane_height) {}
};

/// Where an element of (N, C, H, W) stands, counted in memory order; and element strides of an
/// image.
struct Position {
  int64_t plane_start;  ///< of the image's plane (n, c) in the other array
  int64_t y, x;
};
BRASA_DEVICE_FN Position position_of(int64_t i, const PoolParams& p, const Planes& planes,
                                     int64_t other_size) {
  const int64_t c = p.channels_last ? planes.channels.take_remainder(i) : 0;
  const int64_t x = planes.width.take_remainder(i), y = planes.height.take_remainder(i);
  return {p.channels_last ? i * other_size * p.c + c : i * other_size, y, x};
}

BRASA_DEVICE_FN int64_t pixel_step(const PoolParams& p) {
  return p.channels_last ? p.c : 1;
}
BRASA_DEVICE_FN int64_t axis_step(const PoolAxis& a) {
  return a.adaptive ? 1 : a.dilation;
}

BRASA_DEVICE_FN int64_t read_offset(PoolOffsets offsets, int64_t i) {
  return offsets.wide ? static_cast<const int32_t*>(offsets.data)[i]
                      : static_cast<const uint8_t*>(offsets.data)[i];
}
BRASA_DEVICE_FN void write_offset(PoolOffsets offsets, int64_t i, int64_t offset) {
  if (!offsets.data) return;
  if (offsets.wide)
    static_cast<int32_t*>(offsets.data)[i] = int32_t(offset);
  else
    static_cast<uint8_t*>(offsets.data)[i] = uint8_t(offset);
}

/// The better of two candidates in scan order: NaN first, the later one of two; then the larger;
/// then the earlier.
template <class T> struct Candidate {
  T value;
  int64_t offset;
};
template <class T> BRASA_DEVICE_FN Candidate<T> better(Candidate<T> a, Candidate<T> b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.offset > b.offset) ? a : b;
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.offset <= b.offset ? a : b;
}

/// The best of a window.
template <class T>
BRASA_DEVICE_FN Candidate<Wide<T>> best_of_window(const T* plane, const PoolParams& p, Window h,
                                                  Window w) {
  Candidate<Wide<T>> best{Wide<T>(-INFINITY), h.tap * p.w.kernel + w.tap};
  const int64_t right = pixel_step(p) * axis_step(p.w), down = pixel_step(p) * axis_step(p.h);
  const T* row = plane + (h.first * p.w.in + w.first) * pixel_step(p);
  for (int i = 0; i < int(h.count); ++i, row += down * p.w.in)
    for (int j = 0; j < int(w.count); ++j)
      take(best.value, best.offset, simt::widen(row[j * right]),
           (h.tap + i) * p.w.kernel + w.tap + j);
  return best;
}

/// The best of the taps first, first + step, ... of a window.
template <class T>
BRASA_DEVICE_FN Candidate<Wide<T>> best_of_taps(const T* plane, const PoolParams& p, Window h,
                                                Window w, int64_t first, int64_t step) {
  Candidate<Wide<T>> best{Wide<T>(-INFINITY), h.tap * p.w.kernel + w.tap};
#pragma unroll 1
  for (int64_t t = first; t < h.count * w.count; t += step) {
    const int64_t i = t / w.count, j = t % w.count;
    const int64_t ih = h.first + i * axis_step(p.h), iw = w.first + j * axis_step(p.w);
    take(best.value, best.offset, simt::widen(plane[(ih * p.w.in + iw) * pixel_step(p)]),
         (h.tap + i) * p.w.kernel + w.tap + j);
  }
  return best;
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_kernel(const T* x, T* y, PoolOffsets offsets, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.out * p.w.out, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, p.h.in * p.w.in);
    const Candidate<Wide<T>> best =
        best_of_window(x + at.plane_start, p, window_of(p.h, at.y), window_of(p.w, at.x));
    y[i] = simt::narrow<T>(best.value);
    write_offset(offsets, i, best.offset);
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_wide_kernel(const T* x, T* y, PoolOffsets offsets, PoolParams p, Planes planes) {
  BRASA_SHARED(Wide<T>, values, [kPoolThreads]);
  BRASA_SHARED(int64_t, winners, [kPoolThreads]);
  const int64_t n = p.n * p.c * p.h.out * p.w.out;
  const int rank = int(threadIdx.x);
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const Position at = position_of(i, p, planes, p.h.in * p.w.in);
    const Candidate<Wide<T>> mine = best_of_taps(x + at.plane_start, p, window_of(p.h, at.y),
                                                 window_of(p.w, at.x), rank, kPoolThreads);
    values[rank] = mine.value;
    winners[rank] = mine.offset;
    __syncthreads();
    for (int half = kPoolThreads / 2; half > 0; half /= 2) {
      if (rank < half) {
        const Candidate<Wide<T>> best = better<Wide<T>>(
            {values[rank], winners[rank]}, {values[rank + half], winners[rank + half]});
        values[rank] = best.value;
        winners[rank] = best.offset;
      }
      __syncthreads();
    }
    if (rank == 0) {
      y[i] = simt::narrow<T>(values[0]);
      write_offset(offsets, i, winners[0]);
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    max_pool_backward_kernel(const T* dy, PoolOffsets offsets, T* dx, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.in * p.w.in, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, p.h.out * p.w.out);
    const Covering h = covering(p.h, at.y), w = covering(p.w, at.x);
    Wide<T> sum = 0;
    for (int64_t oh = h.first; oh < h.end; ++oh) {
      const int64_t row = tap_of(p.h, oh, at.y);
#pragma unroll 1
      for (int64_t ow = w.first; ow < w.end; ++ow) {
        const int64_t column = tap_of(p.w, ow, at.x);
        const int64_t from = at.plane_start + (oh * p.w.out + ow) * pixel_step(p);
        if (row >= 0 && column >= 0 && read_offset(offsets, from) == row * p.w.kernel + column)
          sum += simt::widen(dy[from]);
      }
    }
    dx[i] = simt::narrow<T>(sum);
  }
}

/// What the sum of a window is divided by.
template <class W> BRASA_DEVICE_FN W divisor_of(const PoolParams& p, const Position& at) {
  return W(row_divisor(p, at.y)) * W(column_divisor(p, at.x));
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    mean_pool_kernel(const T* x, T* y, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.out * p.w.out, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, p.h.in * p.w.in);
    const Window h = window_of(p.h, at.y), w = window_of(p.w, at.x);
    Wide<T> total = 0;
#pragma unroll 1
    for (int64_t iw = w.first; iw < w.first + w.count; ++iw) {
      Wide<T> column = 0;
#pragma unroll 1
      for (int64_t ih = h.first; ih < h.first + h.count; ++ih)
        column += simt::widen(x[at.plane_start + (ih * p.w.in + iw) * pixel_step(p)]);
      total += column;
    }
    y[i] = simt::narrow<T>(total / divisor_of<Wide<T>>(p, at));
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    mean_pool_wide_kernel(const T* x, T* y, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.out * p.w.out;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const Position at = position_of(i, p, planes, p.h.in * p.w.in);
    const Window h = window_of(p.h, at.y), w = window_of(p.w, at.x);
    Wide<T> sum = 0;
#pragma unroll 1
    for (int64_t t = threadIdx.x; t < h.count * w.count; t += kPoolThreads) {
      const int64_t ih = h.first + t / w.count, iw = w.first + t % w.count;
      sum += simt::widen(x[at.plane_start + (ih * p.w.in + iw) * pixel_step(p)]);
    }
    sum = simt::block_reduce_sum(sum);
    if (threadIdx.x == 0) y[i] = simt::narrow<T>(sum / divisor_of<Wide<T>>(p, at));
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    mean_pool_backward_kernel(const T* dy, T* dx, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.in * p.w.in, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, p.h.out * p.w.out);
    const Covering h = covering(p.h, at.y), w = covering(p.w, at.x);
    Wide<T> total = 0;
#pragma unroll 1
    for (int64_t ow = w.first; ow < w.end; ++ow) {
      const auto divisor = Wide<T>(column_divisor(p, ow));
      Wide<T> column = 0;
#pragma unroll 1
      for (int64_t oh = h.first; oh < h.end; ++oh)
        column += simt::widen(dy[at.plane_start + (oh * p.w.out + ow) * pixel_step(p)]) /
                  (Wide<T>(row_divisor(p, oh)) * divisor);
      total += column;
    }
    dx[i] = simt::narrow<T>(total);
  }
}

BRASA_DEVICE_FN int64_t input_of(const PoolAxis& a, int64_t o, int64_t tap) {
  const int64_t i = window_begin(a, o) + tap * axis_step(a);
  return i < a.in ? i : -1;
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_indices_kernel(PoolOffsets offsets, T* indices, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.out * p.w.out, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, 0);
    const int64_t offset = read_offset(offsets, i);
    const int64_t ih = input_of(p.h, at.y, offset / p.w.kernel);
    const int64_t iw = input_of(p.w, at.x, offset % p.w.kernel);
    indices[i] = ih < 0 || iw < 0 ? -1 : ih * p.w.in + iw;
  }
}

}  // namespace brasa::cuda
