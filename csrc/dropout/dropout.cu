#include "core/device.cuh"
#include "core/random.h"
#include "dropout/dropout.h"

namespace brasa::cuda {

constexpr int kThreads = 256;

/// A thread draws the four words of a counter and handles their elements.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, int64_t n, bool packs, uint64_t seed, uint64_t offset,
                   uint64_t threshold, T scale) {
  constexpr int kLanes = simt::kPackLanes<T>;
  const int64_t counters = (n + 3) / 4, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < counters; c += stride) {
    uint32_t word[4];
    philox_words(seed, offset + uint64_t(c), word);
    if (packs && 4 * c + 4 <= n) {
#pragma unroll
      for (int k = 0; k < 4; k += kLanes) {
        auto v = simt::load_pack<kLanes>(x + 4 * c + k);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          v[lane] = word[k + lane] < threshold ? T(0) : v[lane] * scale;
        simt::store_pack<kLanes>(y + 4 * c + k, v);
      }
      continue;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * c + k;
      if (i < n) y[i] = word[k] < threshold ? T(0) : x[i] * scale;
    }
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T>
void dropout_forward(Context ctx, const T* x, T* y, int64_t n, DropoutParams params) {
  if (n == 0) return;
  const uint64_t threshold = philox::threshold(params.p);
  const T scale = threshold > 0xffffffffu ? T(0) : T(1 / (1 - params.p));
  simt::launch({.grid = simt::blocks_for((n + 3) / 4, kThreads),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               dropout_kernel<T>, x, y, n, simt::pack_aligned(x) && simt::pack_aligned(y),
               params.seed, params.offset, threshold, scale);
}

BRASA_INSTANTIATE(dropout_forward, float, double)

}  // namespace brasa::cuda
