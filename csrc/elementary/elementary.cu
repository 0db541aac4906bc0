#include "core/device.cuh"
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
__global__ void __launch_bounds__(kThreads) elementary_forward_kernel(const T* x, T* y, int64_t n) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
#pragma unroll 1  // unrolled by four, ptxas spills in exp of double
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    y[i] = apply<kFunction>(x[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_in_place_kernel(const T* x, T* y, int64_t n, bool packs) {
  simt::for_packs<T>(n, packs, [&]<int kLanes>(int64_t i) {
    const auto other = simt::load_pack<kLanes>(x + i);
    auto sum = simt::load_pack<kLanes>(y + i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) sum[k] += other[k];
    simt::store_pack<kLanes>(y + i, sum);
  });
}

// --------------------------------------------------------------------------------------- launchers

template <class T>
void elementary_forward(Context ctx, const T* x, T* y, int64_t n, ElementaryFunction function) {
  if (n == 0) return;
  const simt::LaunchConfig config{.grid = simt::blocks_for(n, kThreads),
                                  .block = dim3(kThreads),
                                  .stream = static_cast<simt::stream_t>(ctx.stream)};
  switch (function) {
#define BRASA_CASE(name, device_function)                                                  \
  case ElementaryFunction::name:                                                           \
    simt::launch(config, elementary_forward_kernel<T, ElementaryFunction::name>, x, y, n); \
    break;
    BRASA_ELEMENTARY(BRASA_CASE)
#undef BRASA_CASE
  }
}

template <class T> void add_in_place(Context ctx, const T* x, T* y, int64_t n) {
  if (n == 0) return;
  const simt::LaunchConfig config{.grid = simt::blocks_for(n, kThreads),
                                  .block = dim3(kThreads),
                                  .stream = static_cast<simt::stream_t>(ctx.stream)};
  simt::launch(config, add_in_place_kernel<T>, x, y, n,
               simt::pack_aligned(x) && simt::pack_aligned(y));
}

BRASA_INSTANTIATE(elementary_forward, float, double)
BRASA_INSTANTIATE(add_in_place, float, double)

}  // namespace brasa::cuda
