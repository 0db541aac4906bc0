// Three kinds of kernels:
//   strips.cuh   the windows of networks, in registers
//   pixels.cuh   any regular windows, in packs of neighbouring channels
//   here         what is left: windows with dilation, adaptive ones of several sizes and arrays of
//                2^31 elements, one thread per element with 64-bit positions; and windows of
//                kWideWindow elements (global pooling of large images), a block per output.
// Backward every thread gathers from the windows that cover its inputs, in their order, so nothing
// depends on who comes first.
#include "core/device.cuh"
#include "core/ptx_convert.cuh"
#include "pool/pixels.cuh"
#include "pool/pool.h"
#include "pool/strips.cuh"
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
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_backward_kernel(const T* dy, PoolOffsets offsets, T* dx, PoolParams p, Planes planes) {
  const int64_t n = p.n * p.c * p.h.in * p.w.in, stride = int64_t(gridDim.x) * kPoolThreads;
  for (int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x; i < n; i += stride) {
    const Position at = position_of(i, p, planes, p.h.out * p.w.out);
    const Covering h = covering(p.h, at.y), w = covering(p.w, at.x);
    Wide<T> sum = 0;
    for (int64_t oh = h.first; oh < h.end; ++oh) {
      const int64_t row = tap_of(p.h, oh, at.y);
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
    for (int64_t iw = w.first; iw < w.first + w.count; ++iw) {
      Wide<T> column = 0;
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
    for (int64_t ow = w.first; ow < w.end; ++ow) {
      const auto divisor = Wide<T>(column_divisor(p, ow));
      Wide<T> column = 0;
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

// ----------------------------------------------------------------------------------------
// launchers

static simt::LaunchConfig over(Context ctx, int64_t n, int64_t per_block) {
  return {.grid = simt::blocks_for(n, per_block),
          .block = dim3(kPoolThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

static int64_t outputs(const PoolParams& p) {
  return p.n * p.c * p.h.out * p.w.out;
}
static int64_t inputs(const PoolParams& p) {
  return p.n * p.c * p.h.in * p.w.in;
}
static bool is_wide(const PoolParams& p) {
  return p.h.kernel * p.w.kernel >= kWideWindow;
}

template <class T> size_t pool_workspace(const PoolParams&, int) {
  return 0;
}

/// Adaptive windows that are all of one size are regular ones.
static PoolAxis regular(PoolAxis a) {
  if (a.adaptive && a.out > 0 && a.in % a.out == 0)
    a = {a.in, a.out, a.in / a.out, a.in / a.out, 0, 1, false};
  return a;
}

static bool fits_narrow(const PoolParams& p) {
  constexpr int64_t kMost = int64_t(1) << 31;
  return NarrowAxis::fits(p.h) && NarrowAxis::fits(p.w) && p.h.kernel * p.w.kernel < kMost &&
         inputs(p) < kMost && outputs(p) < kMost;
}

static NarrowPool narrow_pool(const PoolParams& p) {
  return {NarrowAxis(p.h), NarrowAxis(p.w), int(p.channels_last ? p.c : 1), p.include_pad,
          p.divisor_override};
}

static Threads threads_for(const PoolParams& p, int64_t channels, int64_t columns, int64_t rows) {
  const int64_t images = p.channels_last ? p.n : p.n * p.c;
  return {simt::Divisor(channels), simt::Divisor(columns), simt::Divisor(rows),
          uint32_t(channels * columns * rows * images)};
}

static simt::LaunchConfig once(Context ctx, const Threads& threads) {
  return {.grid = dim3(simt::ceil_div<uint32_t>(threads.count, kPoolThreads)),
          .block = dim3(kPoolThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Calls f.operator()<Windows, kChannelsLast>() where these windows have strips; false where they
/// have none.
template <class F> bool with_strips(const PoolParams& p, const F& f) {
  const auto both = [&]<class Windows>() {
    if (!Windows::are(p.h) || !Windows::are(p.w)) return false;
    p.channels_last ? f.template operator()<Windows, true>()
                    : f.template operator()<Windows, false>();
    return true;
  };
  return both.template operator()<Windows<2, 2, 0>>() ||
         both.template operator()<Windows<3, 2, 1>>() ||
         both.template operator()<Windows<3, 2, 0>>() ||
         both.template operator()<Windows<3, 1, 1>>();
}

/// Whether rows (pixels, in a channels-last array) of `extent` elements are made of packs of T.
template <class T> bool whole(const void* array, int64_t extent) {
  return simt::pack_aligned(array) && extent % simt::kPackLanes<T> == 0;
}

/// Calls f.operator()<kLanes>() with the lanes of a pixel's packs.
template <class T, class F> void with_pixel_packs(const PoolParams& p, bool aligned, const F& f) {
  if (p.channels_last && aligned && p.c % simt::kPackLanes<T> == 0)
    f.template operator()<simt::kPackLanes<T>>();
  else
    f.template operator()<1>();
}

/// Strips of results, forward: launch.operator()<Windows, kChannelsLast>(threads, packs). False
/// where there are none.
template <class T, class Launch>
bool forward_strips(const PoolParams& p, const T* x, const T* y, const void* offsets,
                    const Launch& launch) {
  if (sizeof(T) == 8 || !whole<T>(x, p.channels_last ? p.c : p.w.in)) return false;
  const bool packs = whole<T>(y, p.channels_last ? p.c : p.w.out) && simt::pack_aligned(offsets);
  if (p.channels_last && !packs) return false;
  return with_strips(p, [&]<class Windows, bool kChannelsLast>() {
    using Mine = Strip<T, kChannelsLast>;
    launch.template operator()<Windows, kChannelsLast>(
        threads_for(p, kChannelsLast ? p.c / Mine::kChannels : 1,
                    simt::ceil_div<int64_t>(p.w.out, Mine::kColumns), p.h.out),
        packs);
  });
}

/// The same backward, of inputs.
template <class T, class Launch>
bool backward_strips(const PoolParams& p, const T* dy, const T* dx, const void* offsets,
                     const Launch& launch) {
  const int64_t middle = simt::kPackLanes<T> / p.w.stride;
  if (sizeof(T) == 8 || !whole<T>(dx, p.channels_last ? p.c : p.w.in)) return false;
  if (!simt::pack_aligned(dy) || !simt::pack_aligned(offsets)) return false;
  if (!p.channels_last && (middle == 0 || p.w.out % middle)) return false;
  return with_strips(p, [&]<class Windows, bool kChannelsLast>() {
    using Mine = Gather<T, Windows, kChannelsLast>;
    launch.template operator()<Windows, kChannelsLast>(
        threads_for(p, kChannelsLast ? p.c / Mine::kChannels : 1,
                    simt::ceil_div<int64_t>(p.w.in, Mine::kColumns),
                    simt::ceil_div<int64_t>(p.h.in, Mine::kStride)));
  });
}

template <class T>
void max_pool_forward(Context ctx, const T* x, T* y, PoolOffsets offsets, const PoolParams& given) {
  PoolParams p = given;
  p.h = regular(p.h), p.w = regular(p.w);
  const int64_t n = outputs(p);
  if (n == 0) return;
  if (is_wide(p))
    return simt::launch(over(ctx, n, 1), max_pool_wide_kernel<T>, x, y, offsets, p,
                        Planes(p, p.h.out, p.w.out));
  if (!fits_narrow(p))
    return simt::launch(over(ctx, n, kPoolThreads), max_pool_kernel<T>, x, y, offsets, p,
                        Planes(p, p.h.out, p.w.out));
  const NarrowPool narrow = narrow_pool(p);
  if (!offsets.wide &&
      forward_strips<T>(p, x, y, offsets.data,
                        [&]<class W, bool kLast>(const Threads& t, bool packs) {
                          if constexpr (sizeof(T) < 8)
                            simt::launch(once(ctx, t), max_strips_kernel<T, W, kLast>, x, y,
                                         static_cast<uint8_t*>(offsets.data), narrow, t, packs);
                        }))
    return;
  const bool aligned =
      simt::pack_aligned(x) && simt::pack_aligned(y) && simt::pack_aligned(offsets.data);
  with_pixel_packs<T>(p, aligned, [&]<int kLanes>() {
    const Threads t = threads_for(p, narrow.c / kLanes, p.w.out, p.h.out);
    simt::launch(once(ctx, t), max_pixels_kernel<T, kLanes>, x, y, offsets, narrow, t);
  });
}

template <class T>
void max_pool_backward(Context ctx, const T* dy, PoolOffsets offsets, T* dx,
                       const PoolParams& given) {
  PoolParams p = given;
  p.h = regular(p.h), p.w = regular(p.w);
  const int64_t n = inputs(p);
  if (n == 0) return;
  if (!fits_narrow(p))
    return simt::launch(over(ctx, n, kPoolThreads), max_pool_backward_kernel<T>, dy, offsets, dx, p,
                        Planes(p, p.h.in, p.w.in));
  const NarrowPool narrow = narrow_pool(p);
  if (!offsets.wide &&
      backward_strips<T>(p, dy, dx, offsets.data, [&]<class W, bool kLast>(const Threads& t) {
        if constexpr (sizeof(T) < 8)
          simt::launch(once(ctx, t), max_strips_backward_kernel<T, W, kLast>, dy,
                       static_cast<const uint8_t*>(offsets.data), dx, narrow, t);
      }))
    return;
  const bool aligned =
      simt::pack_aligned(dy) && simt::pack_aligned(dx) && simt::pack_aligned(offsets.data);
  with_pixel_packs<T>(p, aligned, [&]<int kLanes>() {
    const Threads t = threads_for(p, narrow.c / kLanes, p.w.in, p.h.in);
    const auto launch = [&]<class Offset>(const Offset* data) {
      simt::launch(once(ctx, t), max_pixels_backward_kernel<T, Offset, kLanes>, dy, data, dx,
                   narrow, t);
    };
    return offsets.wide ? launch(static_cast<const int32_t*>(offsets.data))
                        : launch(static_cast<const uint8_t*>(offsets.data));
  });
}

template <class T> void mean_pool_forward(Context ctx, const T* x, T* y, const PoolParams& given) {
  PoolParams p = given;
  p.h = regular(p.h), p.w = regular(p.w);
  const int64_t n = outputs(p);
  if (n == 0) return;
  if (is_wide(p))
    return simt::launch(over(ctx, n, 1), mean_pool_wide_kernel<T>, x, y, p,
                        Planes(p, p.h.out, p.w.out));
  if (!fits_narrow(p))
    return simt::launch(over(ctx, n, kPoolThreads), mean_pool_kernel<T>, x, y, p,
                        Planes(p, p.h.out, p.w.out));
  const NarrowPool narrow = narrow_pool(p);
  const Shares<Wide<T>> shares(p.divisor_override);
  if (forward_strips<T>(p, x, y, nullptr, [&]<class W, bool kLast>(const Threads& t, bool packs) {
        if constexpr (sizeof(T) < 8)
          simt::launch(once(ctx, t), mean_strips_kernel<T, W, kLast>, x, y, narrow, t, shares,
                       packs);
      }))
    return;
  with_pixel_packs<T>(p, simt::pack_aligned(x) && simt::pack_aligned(y), [&]<int kLanes>() {
    const Threads t = threads_for(p, narrow.c / kLanes, p.w.out, p.h.out);
    simt::launch(once(ctx, t), mean_pixels_kernel<T, kLanes>, x, y, narrow, t);
  });
}

template <class T>
void mean_pool_backward(Context ctx, const T* dy, T* dx, const PoolParams& given) {
  PoolParams p = given;
  p.h = regular(p.h), p.w = regular(p.w);
  const int64_t n = inputs(p);
  if (n == 0) return;
  if (!fits_narrow(p))
    return simt::launch(over(ctx, n, kPoolThreads), mean_pool_backward_kernel<T>, dy, dx, p,
                        Planes(p, p.h.in, p.w.in));
  const NarrowPool narrow = narrow_pool(p);
  const Shares<Wide<T>> shares(p.divisor_override);
  if (backward_strips<T>(p, dy, dx, nullptr, [&]<class W, bool kLast>(const Threads& t) {
        if constexpr (sizeof(T) < 8)
          simt::launch(once(ctx, t), mean_strips_backward_kernel<T, W, kLast>, dy, dx, narrow, t,
                       shares);
      }))
    return;
  with_pixel_packs<T>(p, simt::pack_aligned(dy) && simt::pack_aligned(dx), [&]<int kLanes>() {
    const Threads t = threads_for(p, narrow.c / kLanes, p.w.in, p.h.in);
    simt::launch(once(ctx, t), mean_pixels_backward_kernel<T, kLanes>, dy, dx, narrow, t);
  });
}

template <class T>
void max_pool_indices(Context ctx, PoolOffsets offsets, T* indices, const PoolParams& p) {
  const int64_t n = outputs(p);
  if (n == 0) return;
  simt::launch(over(ctx, n, kPoolThreads), max_pool_indices_kernel<T>, offsets, indices, p,
               Planes(p, p.h.out, p.w.out));
}

BRASA_INSTANTIATE(pool_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(max_pool_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(max_pool_backward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(mean_pool_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(mean_pool_backward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(max_pool_indices, int64_t)

}  // namespace brasa::cuda
