// Three kinds of kernels, the first that knows the windows:
//   strips.cuh   the windows of networks, in registers (of means 2x2/2 and 3x3/1)
//   pixels.cuh   any regular windows, in packs of neighbouring channels
//   general.cuh  what is left
// Backward every thread gathers from the windows that cover its inputs, in their order, so nothing
// depends on who comes first.
#include "core/device.cuh"
#include "pool/general.cuh"
#include "pool/pixels.cuh"
#include "pool/pool.h"
#include "pool/strips.cuh"

namespace brasa::cuda {

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
/// have none. Means of 3 x 3 / 2, which few networks take, have none.
template <bool kMax, class F> bool with_strips(const PoolParams& p, const F& f) {
  const auto both = [&]<class Windows>() {
    if (!Windows::are(p.h) || !Windows::are(p.w)) return false;
    p.channels_last ? f.template operator()<Windows, true>()
                    : f.template operator()<Windows, false>();
    return true;
  };
  if (both.template operator()<Windows<2, 2, 0>>() || both.template operator()<Windows<3, 1, 1>>())
    return true;
  if constexpr (kMax)
    return both.template operator()<Windows<3, 2, 1>>() ||
           both.template operator()<Windows<3, 2, 0>>();
  return false;
}

/// Whether rows (pixels, in a channels-last array) of `extent` elements are made of packs of T.
template <class T> bool whole(const void* array, int64_t extent) {
  return simt::pack_aligned(array) && extent % simt::kPackLanes<T> == 0;
}

/// Calls f.operator()<kLanes>() with the lanes of a pixel's packs. float64, which few have, comes
/// singly.
template <class T, class F> void with_pixel_packs(const PoolParams& p, bool aligned, const F& f) {
  if constexpr (sizeof(T) < 8)
    if (p.channels_last && aligned && p.c % simt::kPackLanes<T> == 0)
      return f.template operator()<simt::kPackLanes<T>>();
  f.template operator()<1>();
}

/// Strips of results, forward: launch.operator()<Windows, kChannelsLast>(threads, packs). False
/// where there are none.
template <bool kMax, class T, class Launch>
bool forward_strips(const PoolParams& p, const T* x, const T* y, const void* offsets,
                    const Launch& launch) {
  if (sizeof(T) == 8 || !whole<T>(x, p.channels_last ? p.c : p.w.in)) return false;
  const bool packs = whole<T>(y, p.channels_last ? p.c : p.w.out) && simt::pack_aligned(offsets);
  if (p.channels_last && !packs) return false;
  return with_strips<kMax>(p, [&]<class Windows, bool kChannelsLast>() {
    using Mine = Strip<T, kChannelsLast>;
    launch.template operator()<Windows, kChannelsLast>(
        threads_for(p, kChannelsLast ? p.c / Mine::kChannels : 1,
                    simt::ceil_div<int64_t>(p.w.out, Mine::kColumns), p.h.out),
        packs);
  });
}

/// The same backward, of inputs.
template <bool kMax, class T, class Launch>
bool backward_strips(const PoolParams& p, const T* dy, const T* dx, const void* offsets,
                     const Launch& launch) {
  const int64_t middle = simt::kPackLanes<T> / p.w.stride;
  if (sizeof(T) == 8 || !whole<T>(dx, p.channels_last ? p.c : p.w.in)) return false;
  if (!simt::pack_aligned(dy) || !simt::pack_aligned(offsets)) return false;
  if (!p.channels_last && (middle == 0 || p.w.out % middle)) return false;
  return with_strips<kMax>(p, [&]<class Windows, bool kChannelsLast>() {
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
      forward_strips<true, T>(
          p, x, y, offsets.data, [&]<class W, bool kLast>(const Threads& t, bool packs) {
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
      backward_strips<true, T>(p, dy, dx, offsets.data, [&]<class W, bool kLast>(const Threads& t) {
        if constexpr (sizeof(T) < 8)
          simt::launch(once(ctx, t), max_strips_backward_kernel<T, W, kLast>, dy,
                       static_cast<const uint8_t*>(offsets.data), dx, narrow, t);
      }))
    return;
  const auto launch = [&]<int kLanes, class Offset>(const Offset* data) {
    const Threads t = threads_for(p, narrow.c / kLanes, p.w.in, p.h.in);
    simt::launch(once(ctx, t), max_pixels_backward_kernel<T, Offset, kLanes>, dy, data, dx, narrow,
                 t);
  };
  if (offsets.wide) return launch.template operator()<1>(static_cast<const int32_t*>(offsets.data));
  const bool aligned =
      simt::pack_aligned(dy) && simt::pack_aligned(dx) && simt::pack_aligned(offsets.data);
  with_pixel_packs<T>(p, aligned, [&]<int kLanes>() {
    launch.template operator()<kLanes>(static_cast<const uint8_t*>(offsets.data));
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
  if (forward_strips<false, T>(p, x, y, nullptr,
                               [&]<class W, bool kLast>(const Threads& t, bool packs) {
                                 if constexpr (sizeof(T) < 8)
                                   simt::launch(once(ctx, t), mean_strips_kernel<T, W, kLast>, x, y,
                                                narrow, t, shares, packs);
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
  if (backward_strips<false, T>(p, dy, dx, nullptr, [&]<class W, bool kLast>(const Threads& t) {
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
