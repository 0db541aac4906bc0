#include "conv/conv_layout.h"
#include "core/device.cuh"
#include "core/half.h"

namespace brasa::cuda {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    images_to_channels_last_kernel(const T* x, T* y, int64_t n, int64_t channels, int64_t pixels) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const int64_t c = i % channels, pixel = i / channels;
    y[i] = x[(pixel / pixels * channels + c) * pixels + pixel % pixels];
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T>
void images_to_channels_last(Context ctx, const T* x, T* y, int64_t batch, int64_t channels,
                             int64_t pixels) {
  const int64_t n = batch * channels * pixels;
  if (n == 0) return;
  simt::launch({.grid = simt::blocks_for(n, kThreads),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               images_to_channels_last_kernel<T>, x, y, n, channels, pixels);
}

BRASA_INSTANTIATE(images_to_channels_last, float, double, float16, bfloat16)

}  // namespace brasa::cuda
