#include "activation/activation.h"
#include "core/device.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    activation_forward_kernel(const T* x, T* y, int64_t n, T alpha, T beta) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    y[i] = A::forward(x[i], alpha, beta);
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(const T* dy, const T* v, T* dx, int64_t n, T alpha, T beta) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    dx[i] = dy[i] * A::derivative(v[i], alpha, beta);
}

// --------------------------------------------------------------------------------------- launchers

template <class T>
void activation_forward(Context ctx, const T* x, T* y, int64_t n, Activation activation) {
  if (n == 0) return;
  visit_activation(activation.kind, [&]<class A>() {
    simt::launch({.grid = simt::blocks_for(n, kThreads),
                  .block = dim3(kThreads),
                  .stream = static_cast<simt::stream_t>(ctx.stream)},
                 activation_forward_kernel<T, A>, x, y, n, activation.alpha, activation.beta);
  });
}

template <class T>
void activation_backward(Context ctx, const T* dy, const T* v, T* dx, int64_t n,
                         Activation activation) {
  if (n == 0) return;
  visit_activation(activation.kind, [&]<class A>() {
    simt::launch({.grid = simt::blocks_for(n, kThreads),
                  .block = dim3(kThreads),
                  .stream = static_cast<simt::stream_t>(ctx.stream)},
                 activation_backward_kernel<T, A>, dy, v, dx, n, activation.alpha, activation.beta);
  });
}

BRASA_INSTANTIATE(activation_forward, float, double)
BRASA_INSTANTIATE(activation_backward, float, double)

}  // namespace brasa::cuda
