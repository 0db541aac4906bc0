// Test kernels for what Hopper's clusters and warpgroups do beyond hopper.cu: loads into the shared
// memory of several blocks, and products whose left operand is in registers.
#include "core/driver.cuh"
#include "core/ptx_convert.cuh"
#include "core/ptx_wgmma.cuh"
#include "selftest.h"

namespace brasa::selftest {
namespace {

constexpr int kLines = 64, kLine = 128, kBoxBytes = kLines * kLine, kCluster = 2, kRounds = 3;

struct Mailbox {
  unsigned char box[kBoxBytes];
  simt::Barrier full, empty;
};

/// y[block, round] = the sum of round's box of 64 x 64 numbers, which block 0 of the cluster loads
/// for both; a box is loaded over when both blocks gave it back.
template <CastBug Bug>
__global__ void __launch_bounds__(32)
    multicast_kernel(const __grid_constant__ simt::TensorMap x, float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(Mailbox, mail);
  const unsigned rank = simt::cluster_rank();
  if (threadIdx.x == 0) {
    simt::barrier_init(&mail->full, 1);
    simt::barrier_init(&mail->empty, kCluster);
    simt::barrier_init_fence();
  }
  simt::cluster_sync();
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x == 0) {
      simt::barrier_expect(&mail->full, kBoxBytes);
      if (rank == 0) {
        if (Bug != CastBug::kNoWait) simt::barrier_wait(&mail->empty, 1 - round % 2);
        simt::tma_load_multicast(mail->box, x, &mail->full, 0, round * kLines, 0,
                                 Bug == CastBug::kOneBlock ? 1 : 3);
      }
    }
    __syncwarp();
    simt::barrier_wait(&mail->full, round % 2);
    float sum = 0;
    const auto* numbers = reinterpret_cast<const uint16_t*>(mail->box);
    for (int i = int(threadIdx.x); i < kBoxBytes / 2; i += 32) sum += float(numbers[i]);
    sum = simt::warp_sum(sum);
    __syncwarp();  // all have read
    if (threadIdx.x == 0) {
      y[int(rank) * kRounds + round] = sum;
      simt::barrier_arrive_at(&mail->empty, 0);
    }
    __syncwarp();
  }
  if (Bug != CastBug::kEndsEarly || rank == 1) simt::cluster_sync();
#endif
}

/// y (64,N) = a (64,D) b (N,D)^T, the left operand from registers; D is 128 bytes. The bug: they
/// are overwritten before the product is done.
template <class T, int N, bool Overwritten>
__global__ void __launch_bounds__(128)
    register_product_kernel(const T* a, const __grid_constant__ simt::TensorMap b, float* y) {
#if BRASA_HAS_WGMMA
  struct Shared {
    unsigned char right[N * kLine];
    simt::Barrier full;
  };
  BRASA_DYN_SHARED(Shared, shared);
  constexpr int kDepth = kLine / int(sizeof(T)), kPairs = 4 / int(sizeof(T));
  if (threadIdx.x == 0) {
    simt::barrier_init(&shared->full, 1);
    simt::barrier_init_fence();
    simt::barrier_expect(&shared->full, N * kLine);
    simt::tma_load(shared->right, b, &shared->full, 0, 0, 0);
  }
  __syncthreads();
  simt::barrier_wait(&shared->full, 0);
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
  uint32_t left[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = 16 * warp + g + 8 * (r % 2);
      const int column = step * kDepth / 4 + (q + 4 * (r / 2)) * kPairs;
      left[step][r] = *reinterpret_cast<const uint32_t*>(a + row * kDepth + column);
    }
  }
  float sum[N / 2];
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    simt::wgmma_from_registers<T, N, true>(
        sum, left[step], simt::wgmma_operand(shared->right, 32 * step, 0), step > 0);
  }
  simt::wgmma_commit();
  if (Overwritten) left[3][0] = 0;
  simt::wgmma_wait<0>();
  simt::wgmma_done(sum);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int row = 16 * warp + g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * q + i % 2;
    y[row * N + column] = sum[i];
  }
#endif
}

template <class T> simt::TensorMap map_of(const T* data, int64_t rows, int lines) {
  const int64_t depth = kLine / int64_t(sizeof(T));
  return simt::make_tensor_map({.base = data,
                                .item_bytes = int(sizeof(T)),
                                .extent = {depth, rows, 1},
                                .stride = {kLine, kLine * rows},
                                .lines = lines,
                                .items = 1});
}

template <class T, int N>
void register_product(const void* a, const void* b, float* y, bool overwritten) {
  const auto map = map_of(static_cast<const T*>(b), N, N);
  const simt::LaunchConfig config{.block = dim3(128), .smem = size_t(N * kLine + 1024)};
  if (overwritten)
    simt::launch(config, register_product_kernel<T, N, true>, static_cast<const T*>(a), map, y);
  else
    simt::launch(config, register_product_kernel<T, N, false>, static_cast<const T*>(a), map, y);
}

}  // namespace

// ---------------------------------------------------------------------------------- launchers

void multicast(const uint16_t* x, float* y, CastBug bug) {
  const auto map = map_of(x, kRounds * kLines, kLines);
  const simt::LaunchConfig config{.grid = dim3(kCluster),
                                  .block = dim3(32),
                                  .smem = sizeof(Mailbox) + 1024,
                                  .cluster = kCluster};
  switch (bug) {
#define BRASA_CASE(name) \
  case CastBug::name:    \
    return simt::launch(config, multicast_kernel<CastBug::name>, map, y);
    BRASA_CASE(kNone)
    BRASA_CASE(kNoWait)
    BRASA_CASE(kOneBlock)
    BRASA_CASE(kEndsEarly)
#undef BRASA_CASE
  }
}

void register_product(const char* type, int n, const void* a, const void* b, float* y,
                      bool overwritten) {
  const auto with = [&]<class T>() {
    n == 64 ? register_product<T, 64>(a, b, y, overwritten)
            : register_product<T, 128>(a, b, y, overwritten);
  };
  if (type[0] == 't') return with.operator()<float>();
  type[0] == 'b' ? with.operator()<bfloat16>() : with.operator()<float16>();
}

}  // namespace brasa::selftest
