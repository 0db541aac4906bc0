#include "conv/conv_layout.h"
#include "core/device.cuh"
#include "core/half.h"

namespace brasa::cuda {

constexpr int kThreads = 256, kSide = 32, kLeast = 8;

/// Few channels or pixels: element by element of the result, whose neighbours lie together.
template <class T>
__global__ void __launch_bounds__(kThreads)
    few_to_channels_last_kernel(const T* x, T* y, int64_t n, int64_t channels, int64_t pixels) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const int64_t c = i % channels, pixel = i / channels;
    y[i] = x[(pixel / pixels * channels + c) * pixels + pixel % pixels];
  }
}

/// Squares of channels by pixels, turned in shared memory: both arrays are touched in whole lines.
/// By elements, a warp of 32 channels read 32 sectors, of which it used one element each.
template <class T>
__global__ void __launch_bounds__(kThreads)
    images_to_channels_last_kernel(const T* x, T* y, int64_t images, int64_t channels,
                                   int64_t pixels) {
  BRASA_SHARED(T, square, [kSide][kSide + 1]);
  const int along = int(threadIdx.x) % kSide, first = int(threadIdx.x) / kSide;
  const int64_t pixel = int64_t(blockIdx.x) * kSide, channel = int64_t(blockIdx.y) * kSide;
  for (int64_t image = blockIdx.z; image < images; image += gridDim.z) {
    const int64_t offset = image * channels * pixels;
#pragma unroll
    for (int i = first; i < kSide; i += kThreads / kSide)
      if (channel + i < channels && pixel + along < pixels)
        square[i][along] = x[offset + (channel + i) * pixels + pixel + along];
    __syncthreads();
#pragma unroll
    for (int i = first; i < kSide; i += kThreads / kSide)
      if (pixel + i < pixels && channel + along < channels)
        y[offset + (pixel + i) * channels + channel + along] = square[along][i];
    __syncthreads();
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T>
void images_to_channels_last(Context ctx, const T* x, T* y, int64_t batch, int64_t channels,
                             int64_t pixels) {
  constexpr int64_t kMostAcross = 65535;
  const int64_t n = batch * channels * pixels, down = simt::ceil_div<int64_t>(channels, kSide);
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  if (n == 0) return;
  if (channels < kLeast || pixels < kLeast || down > kMostAcross)
    return simt::launch(
        {.grid = simt::blocks_for(n, kThreads), .block = dim3(kThreads), .stream = stream},
        few_to_channels_last_kernel<T>, x, y, n, channels, pixels);
  simt::launch({.grid = dim3(unsigned(simt::ceil_div<int64_t>(pixels, kSide)), unsigned(down),
                             unsigned(batch < kMostAcross ? batch : kMostAcross)),
                .block = dim3(kThreads),
                .stream = stream},
               images_to_channels_last_kernel<T>, x, y, batch, channels, pixels);
}

BRASA_INSTANTIATE(images_to_channels_last, float, double, float16, bfloat16)

}  // namespace brasa::cuda
