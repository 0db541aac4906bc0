#include "core/device.cuh"
#include "core/ptx_convert.cuh"
#include "core/random.h"
#include "dropout/dropout.h"

namespace brasa::cuda {

constexpr int kThreads = 256;

/// Elements of a thread: those of the four words of a counter, or of two where a pack has eight.
template <class T> constexpr int kPerThread = simt::kPackLanes<T> < 4 ? 4 : simt::kPackLanes<T>;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, int64_t n, bool packs, Word seed_word, Word offset_word,
                   uint64_t threshold, Wide<T> scale) {
  constexpr int kLanes = simt::kPackLanes<T>, kMine = kPerThread<T>;
  const uint64_t seed = simt::read(seed_word), offset = simt::read(offset_word);
  const int64_t stride = int64_t(gridDim.x) * kThreads * kMine;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kMine; i < n; i += stride) {
    uint32_t words[kMine / 4][4];
#pragma unroll
    for (int k = 0; k < kMine / 4; ++k) philox_words(seed, offset + uint64_t(i / 4 + k), words[k]);
    const auto dropped = [&](int k) { return words[k / 4][k % 4] < threshold; };
    if (packs && i + kMine <= n) {
#pragma unroll
      for (int k = 0; k < kMine; k += kLanes) {
        auto v = simt::load_wide<kLanes>(x + i + k);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          v[lane] = dropped(k + lane) ? Wide<T>(0) : v[lane] * scale;
        simt::store_wide(y + i + k, v);
      }
      continue;
    }
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      if (i + k >= n) break;
      const Wide<T> kept = simt::widen(x[i + k]) * scale;
      y[i + k] = simt::narrow<T>(dropped(k) ? Wide<T>(0) : kept);
    }
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T>
void dropout_forward(Context ctx, const T* x, T* y, int64_t n, DropoutParams params) {
  if (n == 0) return;
  const uint64_t threshold = philox::threshold(params.p);
  const double scale = threshold > 0xffffffffu ? 0 : 1 / (1 - params.p);
  simt::launch({.grid = simt::blocks_for(simt::ceil_div<int64_t>(n, kPerThread<T>), kThreads),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               dropout_kernel<T>, x, y, n, simt::pack_aligned(x) && simt::pack_aligned(y),
               params.seed, params.offset, threshold, scale);
}

BRASA_INSTANTIATE(dropout_forward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
