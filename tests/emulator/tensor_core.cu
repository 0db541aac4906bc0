// Test kernels for the PTX wrappers: matrix products on tensor cores, 64x64 tile, 4 warps of 32x32.
#include "core/device.cuh"
#include "core/ptx_async.cuh"
#include "core/ptx_mma.cuh"
#include "selftest.h"

namespace brasa::selftest {
namespace {

constexpr int kTile = 64;
constexpr int kThreads = 128;

/// Where a thread's part of the tile lies: its warp's corner, and its place among the warp's lanes.
struct Place {
  int lane, group, quarter, row, column;
};

BRASA_DEVICE_FN Place place_of(int thread) {
  const int lane = thread % 32, warp = thread / 32;
  return {lane, lane / 4, lane % 4, warp / 2 * 32, warp % 2 * 32};
}

using Accumulators = float[2][4][4];  // (2 of 16 rows, 4 of 8 columns, 4 registers)

BRASA_DEVICE_FN void store_tile(const Accumulators& sums, const Place& place, float* c, int m,
                                int n) {
  const int first_row = static_cast<int>(blockIdx.y) * kTile + place.row + place.group;
  const int first_column = static_cast<int>(blockIdx.x) * kTile + place.column + 2 * place.quarter;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = first_row + 16 * i + 8 * (r / 2), column = first_column + 8 * j + r % 2;
        if (row < m && column < n) c[static_cast<int64_t>(row) * n + column] = sums[i][j][r];
      }
    }
  }
}

// ---- tf32: operands from shared memory, element by element

constexpr int kTf32Depth = 16;

__global__ void __launch_bounds__(kThreads)
    gemm_tf32_kernel(const float* __restrict__ a, const float* __restrict__ b,
                     float* __restrict__ c, int m, int n, int k) {
  BRASA_SHARED(uint32_t, a_tile, [kTile][kTf32Depth + 4]);
  BRASA_SHARED(uint32_t, b_tile, [kTf32Depth][kTile + 8]);
  const int thread = simt::thread_rank();
  const int row0 = static_cast<int>(blockIdx.y) * kTile,
            column0 = static_cast<int>(blockIdx.x) * kTile;
  const Place place = place_of(thread);
  Accumulators sums = {};
  for (int depth = 0; depth < k; depth += kTf32Depth) {
    for (int i = thread; i < kTile * kTf32Depth; i += kThreads) {
      const int a_row = row0 + i / kTf32Depth, a_depth = depth + i % kTf32Depth;
      const bool a_inside = a_row < m && a_depth < k;
      a_tile[i / kTf32Depth][i % kTf32Depth] =
          simt::to_tf32(a_inside ? a[static_cast<int64_t>(a_row) * k + a_depth] : 0.0f);
      const int b_depth = depth + i / kTile, b_column = column0 + i % kTile;
      const bool b_inside = b_depth < k && b_column < n;
      b_tile[i / kTile][i % kTile] =
          simt::to_tf32(b_inside ? b[static_cast<int64_t>(b_depth) * n + b_column] : 0.0f);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kTf32Depth; d += 8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t a_part[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a_part[r] = a_tile[place.row + 16 * i + place.group + 8 * (r % 2)]
                            [d + place.quarter + 4 * (r / 2)];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = place.column + 8 * j + place.group;
          const uint32_t b_part[2] = {b_tile[d + place.quarter][column],
                                      b_tile[d + place.quarter + 4][column]};
          simt::mma_m16n8k8_tf32(sums[i][j], a_part, b_part);
        }
      }
    }
    __syncthreads();
  }
  store_tile(sums, place, c, m, n);
}

// ---- bf16: two stages in shared memory, filled by asynchronous copies, read by ldmatrix

constexpr int kBf16Depth = 32;
constexpr int kLanes = 8;  // elements of a 16-byte copy

struct Stage {
  uint16_t a[kTile][kBf16Depth + 8];
  uint16_t b[kBf16Depth][kTile + 8];
};

BRASA_DEVICE_FN void load_stage(Stage& stage, const uint16_t* a, const uint16_t* b, int m, int n,
                                int k, int depth) {
  const int row0 = static_cast<int>(blockIdx.y) * kTile,
            column0 = static_cast<int>(blockIdx.x) * kTile;
  for (int i = simt::thread_rank(); i < kTile * kBf16Depth / kLanes; i += kThreads) {
    const int row = i / (kBf16Depth / kLanes), along = i % (kBf16Depth / kLanes) * kLanes;
    const bool inside = row0 + row < m && depth + along < k;
    const int64_t offset = inside ? static_cast<int64_t>(row0 + row) * k + depth + along : 0;
    simt::cp_async<16>(&stage.a[row][along], a + offset, inside ? 16 : 0);
  }
  for (int i = simt::thread_rank(); i < kTile * kBf16Depth / kLanes; i += kThreads) {
    const int row = i / (kTile / kLanes), along = i % (kTile / kLanes) * kLanes;
    const bool inside = depth + row < k && column0 + along < n;
    const int64_t offset = inside ? static_cast<int64_t>(depth + row) * n + column0 + along : 0;
    simt::cp_async<16>(&stage.b[row][along], b + offset, inside ? 16 : 0);
  }
  simt::cp_async_commit();
}

BRASA_DEVICE_FN void multiply_stage(const Stage& stage, const Place& place, Accumulators& sums) {
  const int row = place.lane % 16,
            column = place.lane / 16 * 8;  // of the matrix row this lane loads
#pragma unroll
  for (int d = 0; d < kBf16Depth; d += 16) {
    uint32_t a_part[2][4], b_part[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      simt::ldmatrix_x4(a_part[i], &stage.a[place.row + 16 * i + row][d + column]);
      simt::ldmatrix_x4_trans(b_part[i], &stage.b[d + row][place.column + 16 * i + column]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t b_pair[2] = {b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]};
        simt::mma_m16n8k16_bf16(sums[i][j], a_part[i], b_pair);
      }
    }
  }
}

template <StageBug Bug>
__global__ void __launch_bounds__(kThreads)
    gemm_bf16_kernel(const uint16_t* __restrict__ a, const uint16_t* __restrict__ b,
                     float* __restrict__ c, int m, int n, int k) {
  BRASA_DYN_SHARED(Stage, stages);
  const Place place = place_of(simt::thread_rank());
  Accumulators sums = {};
  const int steps = simt::ceil_div(k, kBf16Depth);
  load_stage(stages[0], a, b, m, n, k, 0);
  for (int step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    if (more) load_stage(stages[(step + 1) % 2], a, b, m, n, k, (step + 1) * kBf16Depth);
    if (more || Bug == StageBug::kWeakWait) {
      simt::cp_async_wait<1>();
    } else {
      simt::cp_async_wait<0>();
    }
    __syncthreads();
    multiply_stage(stages[step % 2], place, sums);
    if (Bug != StageBug::kReusedTooEarly) __syncthreads();
  }
  store_tile(sums, place, c, m, n);
}

dim3 tiles(int m, int n) {
  return dim3(simt::ceil_div(n, kTile), simt::ceil_div(m, kTile));
}

}  // namespace

// ---------------------------------------------------------------------------------- launchers

void gemm_tf32(const float* a, const float* b, float* c, int m, int n, int k) {
  simt::launch({.grid = tiles(m, n), .block = dim3(kThreads)}, gemm_tf32_kernel, a, b, c, m, n, k);
}

void gemm_bf16(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k, StageBug bug) {
  const simt::LaunchConfig config{
      .grid = tiles(m, n), .block = dim3(kThreads), .smem = 2 * sizeof(Stage)};
  switch (bug) {
    case StageBug::kNone:
      return simt::launch(config, gemm_bf16_kernel<StageBug::kNone>, a, b, c, m, n, k);
    case StageBug::kWeakWait:
      return simt::launch(config, gemm_bf16_kernel<StageBug::kWeakWait>, a, b, c, m, n, k);
    case StageBug::kReusedTooEarly:
      return simt::launch(config, gemm_bf16_kernel<StageBug::kReusedTooEarly>, a, b, c, m, n, k);
  }
}

}  // namespace brasa::selftest
