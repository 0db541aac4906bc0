#include "core/device.cuh"
#include "core/elementwise.cuh"
#include "core/ptx_convert.cuh"
#include "core/vmath.cuh"
#include "elementary/elementary.h"

namespace brasa::cuda {

constexpr int kThreads = 256;

template <ElementaryFunction kFunction, class T> BRASA_DEVICE_FN T apply(T x) {
#define BRASA_CASE(name, function) \
  if constexpr (kFunction == ElementaryFunction::name) return function(x);
  BRASA_ELEMENTARY(BRASA_CASE)
#undef BRASA_CASE
}

template <class T, ElementaryFunction kFunction>
__global__ void __launch_bounds__(kThreads)
    elementary_forward_kernel(const T* x, T* y, int64_t n, bool packs) {
  if constexpr (sizeof(T) < 8)
    return simt::map_packs(x, y, n, packs, [](Wide<T> v) { return apply<kFunction>(v); });
  const int64_t stride = int64_t(gridDim.x) * kThreads;
#pragma unroll 1  // two at a time, ptxas spills in exp of double
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    y[i] = simt::narrow<T>(apply<kFunction>(simt::widen(x[i])));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_kernel(const T* x, const T* y, T* sum, int64_t n, bool packs) {
  simt::for_packs<T>(n, packs, [&]<int kLanes>(int64_t i) {
    const auto other = simt::load_wide<kLanes>(y + i);
    auto total = simt::load_wide<kLanes>(x + i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) total[k] += other[k];
    simt::store_wide(sum + i, total);
  });
}

/// Packs of the result's side: neighbouring threads write neighbouring packs. Two of float's per
/// thread, so that each store writes half of its sectors, took a third longer (H100).
template <class T, class U>
__global__ void __launch_bounds__(kThreads) cast_kernel(const T* x, U* y, int64_t n, bool packs) {
  simt::for_packs<U>(n, packs, [&]<int kLanes>(int64_t i) {
    simt::store_wide(y + i, simt::load_wide<kLanes>(x + i));
  });
}

// --------------------------------------------------------------------------------------- launchers

static simt::LaunchConfig over(Context ctx, int64_t n) {
  return {.grid = simt::blocks_for(n, kThreads),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

template <class T>
void elementary_forward(Context ctx, const T* x, T* y, int64_t n, ElementaryFunction function) {
  if (n == 0) return;
  const simt::LaunchConfig config = over(ctx, n);
  const bool packs = simt::pack_aligned(x) && simt::pack_aligned(y);
  switch (function) {
#define BRASA_CASE(name, device_function)                                                         \
  case ElementaryFunction::name:                                                                  \
    simt::launch(config, elementary_forward_kernel<T, ElementaryFunction::name>, x, y, n, packs); \
    break;
    BRASA_ELEMENTARY(BRASA_CASE)
#undef BRASA_CASE
  }
}

template <class T> void add(Context ctx, const T* x, const T* y, T* sum, int64_t n) {
  if (n == 0) return;
  simt::launch(over(ctx, n), add_kernel<T>, x, y, sum, n,
               simt::pack_aligned(x) && simt::pack_aligned(y) && simt::pack_aligned(sum));
}

template <class T, class U> void cast(Context ctx, const T* x, U* y, int64_t n) {
  if (n == 0) return;
  simt::launch(over(ctx, n), cast_kernel<T, U>, x, y, n,
               simt::pack_aligned(x) && simt::pack_aligned(y));
}

template void cast(Context, const float*, float16*, int64_t);
template void cast(Context, const float*, bfloat16*, int64_t);
template void cast(Context, const float16*, float*, int64_t);
template void cast(Context, const bfloat16*, float*, int64_t);

BRASA_INSTANTIATE(elementary_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(add, float, double, float16, bfloat16)

}  // namespace brasa::cuda
