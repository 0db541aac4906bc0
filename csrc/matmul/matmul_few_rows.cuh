// Products of up to eight rows in float32 and float64: the bytes of B are what they cost.
#pragma once

#include "core/epilogue.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

constexpr int kFewRows = 8;  // products of no more rows have a warp for a few columns
constexpr int kFewRowsThreads = 256;

/// y for up to kRows rows and operands that are contiguous along the depth, in packs: a warp reads
/// kColumns columns once for all rows, and the rows, which stay in L1, once for these columns.
template <class T, int kRows, int kColumns>
__global__ void __launch_bounds__(kFewRowsThreads, kRows* kColumns > 8 ? 1 : 2)
    few_rows_kernel(MatmulParams p, const T* a, const T* b, T* y, Epilogue<T> epilogue) {
  constexpr int kLanes = simt::kPackLanes<T>, kWarps = kFewRowsThreads / simt::kWarpSize;
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / simt::kWarpSize;
  const int64_t column = warp * kColumns;
  const int columns = p.n - column < kColumns ? int(p.n - column) : kColumns;
  if (columns <= 0) return;
  const int rows = int(p.m);
  T sum[kRows][kColumns] = {};
#pragma unroll 2
  for (int64_t k = lane * kLanes; k < p.k; k += simt::kWarpSize * kLanes) {
    simt::Pack<T, kLanes> b_pack[kColumns], a_pack[kRows];  // absent ones repeat the first
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      b_pack[j] = simt::load_pack<kLanes>(b + (column + (j < columns ? j : 0)) * p.b_column + k);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      a_pack[i] = simt::load_pack<kLanes>(a + (i < rows ? i : 0) * p.a_row + k);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int l = 0; l < kLanes; ++l) sum[i][j] += a_pack[i][l] * b_pack[j][l];
      }
    }
  }
  T mine = 0;  // every lane has all sums, and finishes one
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const T total = simt::warp_sum(sum[i][j]);
      if (lane == i * kColumns + j) mine = total;
    }
  }
  const int64_t row = lane / kColumns, at = row * p.n + column + lane % kColumns;
  if (row >= rows || lane % kColumns >= columns) return;
  mine = before_activation(epilogue, mine, column + lane % kColumns, at);
  activate_each<T>(epilogue.activation, [&](const auto& activate) { activate(mine); });
  y[at] = mine;
}

template <class T, int kRows, int kColumns>
static void launch_few_rows(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
                            const Epilogue<T>& epilogue) {
  constexpr int64_t kOfBlock = kFewRowsThreads / simt::kWarpSize * kColumns;
  simt::launch({.grid = dim3(unsigned(simt::ceil_div<int64_t>(p.n, kOfBlock))),
                .block = dim3(kFewRowsThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               few_rows_kernel<T, kRows, kColumns>, p, a, b, y, epilogue);
}

}  // namespace brasa::cuda
