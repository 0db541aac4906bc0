// The emulator's test kernels. They also compile with nvcc, as any kernel file.
#include <cfloat>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/device.cuh"
#include "core/ptx_async.cuh"
#include "core/ptx_mma.cuh"
#include "selftest.h"

namespace brasa::selftest {
namespace {

using simt::launch;

// ---- tiled SGEMM: 64x64x16 tile, 4x4 outputs per thread

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kGemmThreads = 256;

template <bool SecondBarrier>
__global__ void __launch_bounds__(kGemmThreads)
    sgemm_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                 int m, int n, int k) {
  BRASA_SHARED(float, a_tile, [kDepth][kTile + 4]);
  BRASA_SHARED(float, b_tile, [kDepth][kTile + 4]);
  const int thread = simt::thread_rank();
  const int column = thread % 16 * 4, row = thread / 16 * 4;
  const int first_row = static_cast<int>(blockIdx.y) * kTile;
  const int first_column = static_cast<int>(blockIdx.x) * kTile;
  float sum[4][4] = {};
  for (int depth = 0; depth < k; depth += kDepth) {
    for (int i = thread; i < kTile * kDepth; i += kGemmThreads) {
      const int a_row = first_row + i / kDepth, a_depth = depth + i % kDepth;
      const bool a_inside = a_row < m && a_depth < k;
      a_tile[i % kDepth][i / kDepth] =
          a_inside ? a[static_cast<int64_t>(a_row) * k + a_depth] : 0.0f;
      const int b_column = first_column + i % kTile, b_depth = depth + i / kTile;
      const bool b_inside = b_column < n && b_depth < k;
      b_tile[i / kTile][i % kTile] =
          b_inside ? b[static_cast<int64_t>(b_depth) * n + b_column] : 0.0f;
    }
    __syncthreads();
    for (int d = 0; d < kDepth; ++d) {
      const simt::Pack<float, 4> a_pack = simt::load_pack<4>(&a_tile[d][row]);
      const simt::Pack<float, 4> b_pack = simt::load_pack<4>(&b_tile[d][column]);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sum[i][j] += a_pack[i] * b_pack[j];
      }
    }
    if (SecondBarrier) __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int c_row = first_row + row + i, c_column = first_column + column + j;
      if (c_row < m && c_column < n) c[static_cast<int64_t>(c_row) * n + c_column] = sum[i][j];
    }
  }
}

// ---- softmax: one block per row, the exchange between warps written out so that it can be broken

constexpr int kSoftmaxThreads = 128;

template <SoftmaxBug Bug>
__global__ void __launch_bounds__(kSoftmaxThreads)
    softmax_kernel(const float* __restrict__ x, float* __restrict__ y, int n) {
  BRASA_SHARED(float, of_warp, [2][4]);
  const int thread = simt::thread_rank(), warp = thread / 32, lane = thread % 32;
  x += static_cast<int64_t>(blockIdx.x) * n;
  y += static_cast<int64_t>(blockIdx.x) * n;
  float maximum = -FLT_MAX;
  const int end = n + (Bug == SoftmaxBug::kReadPastEnd ? 4 : 0);
  for (int i = thread; i < end; i += kSoftmaxThreads) maximum = fmaxf(maximum, x[i]);
  maximum = simt::warp_max(maximum);
  if (lane == 0) of_warp[0][warp] = maximum;
  if (Bug == SoftmaxBug::kDivergentBarrier) {
    if (thread < 64) __syncthreads();
  } else if (Bug != SoftmaxBug::kMissingBarrier) {
    __syncthreads();
  }
  for (int w = 0; w < 4; ++w) maximum = simt::Max{}(maximum, of_warp[0][w]);
  float sum = 0.0f;
  for (int i = thread; i < n; i += kSoftmaxThreads) sum += expf(x[i] - maximum);
  sum = simt::warp_sum(sum);
  if (lane == 0) of_warp[1][warp] = sum;
  __syncthreads();
  sum = of_warp[1][0] + of_warp[1][1] + of_warp[1][2] + of_warp[1][3];
  for (int i = thread; i < n; i += kSoftmaxThreads) y[i] = expf(x[i] - maximum) / sum;
}

// ---- access lint: a strided read, a column of a square in shared memory, and packs of it

__global__ void access_pattern_kernel(const float* x, float* y, int stride, int pad) {
  BRASA_SHARED(float, square, [32 * 36]);
  const int lane = int(threadIdx.x), width = 32 + pad;
  square[lane * width] = x[lane * stride];
  __syncwarp();
  y[lane] = square[lane * width];
  if (lane < 8) simt::store_pack<4>(square + 4 * lane, simt::load_pack<4>(square + 4 * lane));
}

// ---- block_reduce, packs, ballots, atomics, shuffles

template <class T>
__global__ void row_statistics_kernel(const T* __restrict__ x, T* __restrict__ sums,
                                      T* __restrict__ maxima, int n) {
  x += static_cast<int64_t>(blockIdx.x) * n;
  T sum = 0, maximum = x[0];
  for (int i = simt::thread_rank(); i < n; i += simt::block_size()) {
    sum += x[i];
    maximum = simt::Max{}(maximum, x[i]);
  }
  sum = simt::block_reduce_sum(sum);
  maximum = simt::block_reduce_max(maximum);
  if (simt::thread_rank() == 0) {
    sums[blockIdx.x] = sum;
    maxima[blockIdx.x] = maximum;
  }
}

__global__ void scale_kernel(const float* __restrict__ x, float* __restrict__ y, int64_t n,
                             bool scalar) {
  constexpr int kLanes = simt::kPackLanes<float>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t packs = scalar ? 0 : n / kLanes;
  for (int64_t i = first; i < packs; i += stride) {
    simt::Pack<float, kLanes> pack = simt::load_pack<kLanes>(x + i * kLanes);
    for (int j = 0; j < kLanes; ++j) pack[j] *= 2.0f;
    simt::store_pack(y + i * kLanes, pack);
  }
  for (int64_t i = packs * kLanes + first; i < n; i += stride) y[i] = x[i] * 2.0f;
}

__global__ void histogram_kernel(const int* __restrict__ x, int* bins, int* odd, int n) {
  for (int first = static_cast<int>(blockIdx.x * blockDim.x); first < n;
       first += static_cast<int>(gridDim.x * blockDim.x)) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (i < n) atomicAdd(&bins[x[i]], 1);
    const unsigned votes = __ballot_sync(simt::kFullMask, i < n && x[i] % 2 != 0);
    if (threadIdx.x % 32 == 0) atomicAdd(odd, __popc(votes));
  }
}

__global__ void atomics_kernel(int* out) {
  const int i = simt::thread_rank();
  atomicAdd(&out[0], i);
  atomicMax(&out[1], i);
  atomicExch(&out[2], 7);
  atomicMin(reinterpret_cast<unsigned*>(&out[3]), 100u + i);
  atomicCAS(reinterpret_cast<unsigned*>(&out[4]), 0u, 1u + i);
  atomicAdd(reinterpret_cast<float*>(&out[5]), 0.5f);
  atomicAdd(reinterpret_cast<double*>(&out[6]), 0.25);
}

__global__ void recurrence_kernel(const float* __restrict__ w, const float* __restrict__ x,
                                  float* h0, float* h1, int steps, int width) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int t = 0; t < steps; ++t) {
    const float* from = t % 2 == 0 ? h0 : h1;
    float* to = t % 2 == 0 ? h1 : h0;
    if (row < width) {
      float sum = x[t * width + row];
      for (int i = 0; i < width; ++i) sum += w[row * width + i] * from[i];
      to[row] = tanhf(sum);
    }
    simt::grid_sync();
  }
}

__global__ void shuffles_kernel(int* y) {
  const int lane = static_cast<int>(threadIdx.x);
  y[lane] = __shfl_sync(simt::kFullMask, lane, 5);
  y[32 + lane] = __shfl_up_sync(simt::kFullMask, lane, 3);
  y[64 + lane] = __shfl_down_sync(simt::kFullMask, lane, 3);
  y[96 + lane] = __shfl_xor_sync(simt::kFullMask, lane, 9);
  y[128 + lane] = __shfl_down_sync(simt::kFullMask, lane, 3, 8);
  y[160 + lane] = __shfl_sync(simt::kFullMask, lane, 2, 8);
}

__global__ void reverse_kernel(const float* __restrict__ x, float* __restrict__ y, int n) {
  BRASA_DYN_SHARED(float, all);
  for (int i = simt::thread_rank(); i < n; i += simt::block_size()) all[i] = x[i];
  __syncthreads();
  for (int i = simt::thread_rank(); i < n; i += simt::block_size()) y[i] = all[n - 1 - i];
}

// ---- one mistake each

__global__ void deadlock_kernel(float* y) {
  if (threadIdx.x < 32) simt::bar_sync(1, 64);  // the other 32 never come
  y[threadIdx.x] = 1.0f;
}

__global__ void divergent_shuffle_kernel(float* y) {
  float v = 1.0f;
  if (threadIdx.x < 16) {
    v = __shfl_sync(simt::kFullMask, v, 0);
  } else {
    v = __shfl_xor_sync(simt::kFullMask, v, 1);
  }
  y[threadIdx.x] = v;
}

__global__ void wrong_mask_kernel(float* y) {
  y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0);  // lanes 16 to 31 call, too
}

__global__ void missing_syncwarp_kernel(float* y) {
  BRASA_SHARED(float, exchange, [32]);
  exchange[threadIdx.x] = 1.0f;
  y[threadIdx.x] = exchange[31 - threadIdx.x];
}

__global__ void race_between_blocks_kernel(float* y) {
  y[threadIdx.x] = static_cast<float>(blockIdx.x);
}

__global__ void shared_past_end_kernel(float* y, int index) {
  BRASA_SHARED(float, small, [32]);
  small[threadIdx.x] = 1.0f;
  if (threadIdx.x == 3) small[index] = 7.0f;
  __syncthreads();
  y[threadIdx.x] = small[threadIdx.x];
}

__global__ void misaligned_kernel(float* y) {
  simt::store_pack(y + 1, simt::Pack<float, 4>{});
}

__global__ void division_by_zero_kernel(float* y, int zero) {
  y[0] = static_cast<float>(static_cast<int>(threadIdx.x) / zero);
}

__global__ void endless_spin_kernel(int* flag) {
  while (atomicAdd(flag, 0) != 12345) simt::spin_hint();
}

__global__ void write_far_outside_kernel(float* y, int64_t offset) {
  y[offset] = 1.0f;
}

__global__ void stack_overflow_kernel(float* y, int n) {
  volatile float large[4200];
  for (int i = 0; i < n; ++i) large[i] = static_cast<float>(i);
  y[0] = large[n / 2];
}

__global__ void misaligned_copy_kernel(const float* y) {
  BRASA_SHARED(float, to, [4]);
  simt::cp_async<16>(to, y + 1);
}

__global__ void copy_to_global_kernel(float* y) {
  simt::cp_async<16>(y, y + 4);
}

__global__ void half_warp_mma_kernel(float* y) {
  if (threadIdx.x >= 16) return;
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  simt::mma_m16n8k8_tf32(d, a, b);
  y[threadIdx.x] = d[0];
}

__global__ void nothing_kernel() {}

}  // namespace

// ---------------------------------------------------------------------------------- launchers

void sgemm(const float* a, const float* b, float* c, int m, int n, int k, bool second_barrier) {
  const simt::LaunchConfig config{.grid = dim3(simt::ceil_div(n, kTile), simt::ceil_div(m, kTile)),
                                  .block = dim3(kGemmThreads)};
  launch(config, second_barrier ? sgemm_kernel<true> : sgemm_kernel<false>, a, b, c, m, n, k);
}

void softmax(const float* x, float* y, int rows, int n, SoftmaxBug bug) {
  const simt::LaunchConfig config{.grid = dim3(rows), .block = dim3(kSoftmaxThreads)};
  switch (bug) {
    case SoftmaxBug::kNone:
      return launch(config, softmax_kernel<SoftmaxBug::kNone>, x, y, n);
    case SoftmaxBug::kMissingBarrier:
      return launch(config, softmax_kernel<SoftmaxBug::kMissingBarrier>, x, y, n);
    case SoftmaxBug::kDivergentBarrier:
      return launch(config, softmax_kernel<SoftmaxBug::kDivergentBarrier>, x, y, n);
    case SoftmaxBug::kReadPastEnd:
      return launch(config, softmax_kernel<SoftmaxBug::kReadPastEnd>, x, y, n);
  }
}

template <class T>
void row_statistics(const T* x, T* sums, T* maxima, int rows, int n, int threads) {
  launch({.grid = dim3(rows), .block = dim3(threads)}, row_statistics_kernel<T>, x, sums, maxima,
         n);
}
template void row_statistics(const float*, float*, float*, int, int, int);
template void row_statistics(const double*, double*, double*, int, int, int);
template void row_statistics(const int*, int*, int*, int, int, int);

void scale_by_packs(const float* x, float* y, int64_t n, bool scalar) {
  launch({.grid = simt::blocks_for(n, 256 * simt::kPackLanes<float>), .block = dim3(256)},
         scale_kernel, x, y, n, scalar);
}

void histogram(const int* x, int* bins, int* odd, int n) {
  simt::memset_async(odd, 0, sizeof(int), nullptr);
  launch({.grid = simt::blocks_for(n, 64), .block = dim3(64)}, histogram_kernel, x, bins, odd, n);
}

void atomics(int* out, int threads) {
  simt::memset_async(out, 0, 8 * sizeof(int), nullptr);
  simt::memset_async(out + 3, 0xff, sizeof(int), nullptr);
  launch({.block = dim3(threads)}, atomics_kernel, out);
}

void recurrence(const float* w, const float* x, float* h0, float* h1, int steps, int width) {
  launch({.grid = dim3(simt::ceil_div(width, 32)), .block = dim3(32), .cooperative = true},
         recurrence_kernel, w, x, h0, h1, steps, width);
}

void shuffles(int* y) {
  launch({.block = dim3(32)}, shuffles_kernel, y);
}

void reverse(const float* x, float* y, int n, int n_shared) {
  launch({.block = dim3(256), .smem = n_shared * sizeof(float)}, reverse_kernel, x, y, n);
}

void access_pattern(const float* x, float* y, int stride, int pad) {
  launch({.block = dim3(32)}, access_pattern_kernel, x, y, stride, pad);
}

void mistake(const char* name, float* y) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  const simt::LaunchConfig warp{.block = dim3(32)}, two_warps{.block = dim3(64)};
  if (is("deadlock")) return launch(two_warps, deadlock_kernel, y);
  if (is("divergent shuffle")) return launch(warp, divergent_shuffle_kernel, y);
  if (is("wrong mask")) return launch(warp, wrong_mask_kernel, y);
  if (is("missing syncwarp")) return launch(warp, missing_syncwarp_kernel, y);
  if (is("race between blocks")) {
    return launch({.grid = dim3(2), .block = dim3(32)}, race_between_blocks_kernel, y);
  }
  if (is("shared past end")) return launch(warp, shared_past_end_kernel, y, 32);
  if (is("misaligned")) return launch(warp, misaligned_kernel, y);
  if (is("division by zero")) return launch(warp, division_by_zero_kernel, y, 0);
  if (is("endless spin")) {
    return launch(two_warps, endless_spin_kernel, reinterpret_cast<int*>(y));
  }
  if (is("write far outside")) return launch(warp, write_far_outside_kernel, y, int64_t{1} << 40);
  if (is("stack overflow")) return launch(warp, stack_overflow_kernel, y, 4200);
  if (is("misaligned copy")) return launch(warp, misaligned_copy_kernel, y);
  if (is("copy to global")) return launch(warp, copy_to_global_kernel, y);
  if (is("half a warp's mma")) return launch(warp, half_warp_mma_kernel, y);
  if (is("host read")) return launch({.block = dim3(y[5] > 0.0f ? 32 : 64)}, nothing_kernel);
  if (is("block too large")) return launch({.block = dim3(1025)}, nothing_kernel);
  if (is("grid empty")) return launch({.grid = dim3(0), .block = dim3(32)}, nothing_kernel);
  if (is("grid too high"))
    return launch({.grid = dim3(1, 65536), .block = dim3(32)}, nothing_kernel);
  if (is("too much shared")) return launch({.smem = 228 * 1024}, nothing_kernel);
  if (is("too many resident")) {
    return launch({.grid = dim3(133), .cooperative = true}, nothing_kernel);
  }
  throw std::invalid_argument(std::string("no mistake called ") + name);
}

}  // namespace brasa::selftest
