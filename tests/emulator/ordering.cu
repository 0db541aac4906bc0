// Test kernels for what orders memory, and what does not: each right, and with one thing left out.
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/driver.cuh"
#include "core/ptx_convert.cuh"
#include "core/ptx_mma.cuh"
#include "core/ptx_wgmma.cuh"
#include "selftest.h"

namespace brasa::selftest {
namespace {

constexpr int kWarp = 32, kLine = 128, kLines = 64, kBoxBytes = kLines * kLine, kRounds = 3;

// ---- counting barriers: one warp writes, the other reads

struct Letters {
  float box[kWarp];
  simt::Barrier full, empty;
};

/// y (rounds,32) = what the second warp finds: the first wrote 100 * round + 31 - lane.
template <OrderBug Bug> __global__ void __launch_bounds__(2 * kWarp) hand_over_kernel(float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(Letters, letters);
  if (threadIdx.x == 0) {
    simt::barrier_init(&letters->full, kWarp);
    simt::barrier_init(&letters->empty, kWarp);
    simt::barrier_init_fence();
  }
  if (Bug != OrderBug::kNotSetUp) __syncthreads();
  const int lane = int(threadIdx.x) % kWarp;
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x < kWarp) {
      if (Bug != OrderBug::kNoWaitToWrite) simt::barrier_wait(&letters->empty, 1 - round % 2);
      if (Bug == OrderBug::kArrivesEarly) simt::barrier_arrive(&letters->full);
      letters->box[lane] = 100.0f * float(round) + float(kWarp - 1 - lane);
      if (Bug != OrderBug::kArrivesEarly) simt::barrier_arrive(&letters->full);
    } else {
      if (Bug != OrderBug::kNoWaitToRead) simt::barrier_wait(&letters->full, round % 2);
      y[round * kWarp + lane] = letters->box[kWarp - 1 - lane];
      simt::barrier_arrive(&letters->empty);
    }
  }
#endif
}

// ---- the copy engine

struct Box {
  unsigned char lines[kBoxBytes];
  simt::Barrier full;
};

/// y[round] = the sum of round's box of 64 x 64 numbers of x; all threads read it.
template <OrderBug Bug>
__global__ void __launch_bounds__(2 * kWarp)
    sum_boxes_kernel(const __grid_constant__ simt::TensorMap x, float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(Box, box);
  if (threadIdx.x == 0) {
    simt::barrier_init(&box->full, 1);
    if (Bug != OrderBug::kNotFenced) simt::barrier_init_fence();
  }
  __syncthreads();
  for (int round = 0; round < kRounds; ++round) {
    if (threadIdx.x == 0) {
      simt::barrier_expect(&box->full, kBoxBytes);
      simt::tma_load(box->lines, x, &box->full, 0, round * kLines, 0);
    }
    if (Bug != OrderBug::kNoWaitToRead || threadIdx.x != 5)
      simt::barrier_wait(&box->full, round % 2);
    float sum = 0;
    const auto* numbers = reinterpret_cast<const uint16_t*>(box->lines);
    for (int i = int(threadIdx.x); i < kBoxBytes / 2; i += 2 * kWarp) sum += float(numbers[i]);
    sum = simt::warp_sum(sum);
    if (threadIdx.x % kWarp == 0) atomicAdd(&y[round], sum);
    if (Bug != OrderBug::kNoWaitToWrite) __syncthreads();
  }
#endif
}

// ---- products of a warpgroup

/// y (64,64) = x x^T, x (64,64) of bfloat16; the operand is overwritten when the product is done.
template <OrderBug Bug>
__global__ void __launch_bounds__(4 * kWarp) square_kernel(const uint16_t* x, float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(unsigned char, panel);
  const int thread = int(threadIdx.x);
  const auto piece = [&](int i) {
    return reinterpret_cast<float*>(panel + i / 8 * kLine + (i % 8 ^ i / 8 % 8) * 16);
  };
  for (int i = thread; i < kLines * 8; i += 4 * kWarp)
    simt::store_pack<4>(piece(i), simt::load_pack<4>(reinterpret_cast<const float*>(x) + 4 * i));
  simt::tma_store_fence();
  if (Bug != OrderBug::kNoWaitToRead) __syncthreads();
  float sum[32];
  if (Bug != OrderBug::kNotFenced) simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t operand = simt::wgmma_operand(panel, 32 * step, 0);
    simt::wgmma<bfloat16, 64, true, true>(sum, operand, operand, step > 0);
  }
  simt::wgmma_commit();
  if (Bug != OrderBug::kNoWaitToWrite) simt::wgmma_wait<0>();
  if (Bug == OrderBug::kNoBarrier)
    *piece(thread) = 0;  // other warps' products may not have begun
  else
    __syncthreads();
  *piece(thread) = 0;
  if (Bug == OrderBug::kNoWaitToWrite) simt::wgmma_wait<0>();
  simt::wgmma_done(sum);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int row = thread / kWarp * 16 + thread % kWarp / 4 + i % 4 / 2 * 8;
    y[row * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2] = sum[i];
  }
#endif
}

// ---- blocks of a cluster, and of a grid

/// y (2,32) = what each block of a cluster finds in the other's shared memory, 100 * rank + place.
template <OrderBug Bug> __global__ void __launch_bounds__(kWarp) neighbours_kernel(float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(float, mine);
  const unsigned rank = simt::cluster_rank();
  const int lane = int(threadIdx.x);
  mine[lane] = 100.0f * float(rank) + float(lane);
  if (Bug == OrderBug::kNoBarrier)
    __syncthreads();
  else
    simt::cluster_sync();
  const unsigned other = Bug == OrderBug::kNobody ? 2 : 1 - rank;
  if (lane < kWarp / 4) {
    const auto theirs = simt::cluster_load(mine + 4 * lane, other);
    simt::store_pack<4>(y + int(rank) * kWarp + 4 * lane, theirs);
  }
  if (Bug != OrderBug::kEndsEarly || rank == 1) simt::cluster_sync();
#endif
}

/// y (6,32): each of three blocks writes its line, then copies the next one's to three lines below.
template <OrderBug Bug> __global__ void __launch_bounds__(kWarp) next_block_kernel(float* y) {
  const int lane = int(threadIdx.x), block = int(blockIdx.x);
  y[block * kWarp + lane] = 100.0f * float(block) + float(lane);
  if (Bug != OrderBug::kNoBarrier) simt::grid_sync();
  y[(3 + block) * kWarp + lane] = y[(block + 1) % 3 * kWarp + kWarp - 1 - lane];
}

// ---- matrices of a warp

/// x: a (16,16), then b (16,8) of float16. y: a b (16,8) by mma.sync, then a (16,16) as float,
/// by way of stmatrix.
template <OrderBug Bug>
__global__ void __launch_bounds__(kWarp) matrices_kernel(const uint16_t* x, float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(uint16_t, tile);
  constexpr int kPitch = 24;
  const int lane = int(threadIdx.x), g = lane / 4, q = lane % 4;
  uint32_t a[4], b[2];
#pragma unroll
  for (int r = 0; r < 4; ++r)
    a[r] = *reinterpret_cast<const uint32_t*>(x + (g + 8 * (r % 2)) * 16 + 2 * q + 8 * (r / 2));
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint16_t* from = x + 256 + (2 * q + 8 * r) * 8 + g;
    b[r] = from[0] | uint32_t(from[8]) << 16;
  }
  float d[4] = {};
  if (Bug != OrderBug::kNobody || lane < 16) simt::mma_m16n8k16_f16(d, a, b);
#pragma unroll
  for (int r = 0; r < 4; ++r) y[(g + 8 * (r / 2)) * 8 + 2 * q + r % 2] = d[r];
  uint16_t* row = tile + lane % 16 * kPitch + lane / 16 * 8;
  simt::stmatrix_x4(Bug == OrderBug::kUnaligned ? row + 4 : row, a);
  if (Bug != OrderBug::kNoBarrier) __syncwarp();
  for (int i = lane; i < 256; i += kWarp) {
    const uint16_t bits = tile[i / 16 * kPitch + i % 16];
    y[128 + i] = simt::widen(float16{bits});
  }
#endif
}

}  // namespace

// ---------------------------------------------------------------------------------- launchers

namespace {

template <OrderBug Bug> void ordering_with(const char* name, const uint16_t* x, float* y) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  const simt::LaunchConfig warp{.block = dim3(kWarp), .smem = 1024};
  if (is("hand over"))
    return simt::launch({.block = dim3(2 * kWarp), .smem = sizeof(Letters)}, hand_over_kernel<Bug>,
                        y);
  if (is("sum boxes")) {
    simt::memset_async(y, 0, kRounds * sizeof(float), nullptr);
    const auto map = simt::make_tensor_map({.base = x,
                                            .item_bytes = 2,
                                            .extent = {64, kRounds * kLines, 1},
                                            .stride = {kLine, kLine * kRounds * kLines},
                                            .lines = kLines,
                                            .items = 1});
    return simt::launch({.block = dim3(2 * kWarp), .smem = sizeof(Box)}, sum_boxes_kernel<Bug>, map,
                        y);
  }
  if (is("square"))
    return simt::launch({.block = dim3(4 * kWarp), .smem = kBoxBytes}, square_kernel<Bug>, x, y);
  if (is("neighbours"))
    return simt::launch({.grid = dim3(2), .block = dim3(kWarp), .smem = 1024, .cluster = 2},
                        neighbours_kernel<Bug>, y);
  if (is("next block"))
    return simt::launch({.grid = dim3(3), .block = dim3(kWarp), .cooperative = true},
                        next_block_kernel<Bug>, y);
  if (is("matrices")) return simt::launch(warp, matrices_kernel<Bug>, x, y);
  throw std::invalid_argument(std::string("no kernel called ") + name);
}

}  // namespace

void ordering(const char* name, const uint16_t* x, float* y, OrderBug bug) {
  switch (bug) {
#define BRASA_CASE(bug_name) \
  case OrderBug::bug_name:   \
    return ordering_with<OrderBug::bug_name>(name, x, y);
    BRASA_CASE(kNone)
    BRASA_CASE(kNotSetUp)
    BRASA_CASE(kNotFenced)
    BRASA_CASE(kNoWaitToRead)
    BRASA_CASE(kNoWaitToWrite)
    BRASA_CASE(kArrivesEarly)
    BRASA_CASE(kNoBarrier)
    BRASA_CASE(kEndsEarly)
    BRASA_CASE(kNobody)
    BRASA_CASE(kUnaligned)
#undef BRASA_CASE
  }
}

}  // namespace brasa::selftest
