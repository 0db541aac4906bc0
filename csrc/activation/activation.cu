#include "activation/activation.h"
#include "core/device.cuh"
#include "core/elementwise.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    activation_forward_kernel(const T* x, T* y, int64_t n, bool packs, Wide<T> alpha,
                              Wide<T> beta) {
  simt::map_packs(x, y, n, packs, [&](Wide<T> v) { return A::forward(v, alpha, beta); });
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(const T* dy, const T* v, T* dx, int64_t n, bool packs, Wide<T> alpha,
                               Wide<T> beta) {
  simt::for_packs<T>(n, packs, [&]<int kLanes>(int64_t i) {
    const auto value = simt::load_wide<kLanes>(v + i);
    auto g = simt::load_wide<kLanes>(dy + i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) g[k] *= A::derivative(value[k], alpha, beta);
    simt::store_wide(dx + i, g);
  });
}

// --------------------------------------------------------------------------------------- launchers

template <class T>
void activation_forward(Context ctx, const T* x, T* y, int64_t n, Activation activation) {
  if (n == 0) return;
  const bool packs = simt::pack_aligned(x) && simt::pack_aligned(y);
  visit_activation(activation.kind, [&]<class A>() {
    simt::launch({.grid = simt::blocks_for(n, kThreads),
                  .block = dim3(kThreads),
                  .stream = static_cast<simt::stream_t>(ctx.stream)},
                 activation_forward_kernel<T, A>, x, y, n, packs, activation.alpha,
                 activation.beta);
  });
}

template <class T>
void activation_backward(Context ctx, const T* dy, const T* v, T* dx, int64_t n,
                         Activation activation) {
  if (n == 0) return;
  const bool packs = simt::pack_aligned(dy) && simt::pack_aligned(v) && simt::pack_aligned(dx);
  visit_activation(activation.kind, [&]<class A>() {
    simt::launch({.grid = simt::blocks_for(n, kThreads),
                  .block = dim3(kThreads),
                  .stream = static_cast<simt::stream_t>(ctx.stream)},
                 activation_backward_kernel<T, A>, dy, v, dx, n, packs, activation.alpha,
                 activation.beta);
  });
}

BRASA_INSTANTIATE(activation_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(activation_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
