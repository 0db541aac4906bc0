// Sums whose depth the blocks of a cluster share, added up without a trip through memory.
#pragma once

#include "core/ptx_cluster.cuh"
#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

/// The sums of a block in its shared memory, for the other blocks of its cluster. Rows start 8
/// banks apart, so that the lanes of a warp write pairs without conflicts.
template <int kRows, int kColumns> using ClusterSums = float[kRows][kColumns + 8];

/// Puts 16 rows of a warp's accumulators, kColumns wide and as store_accumulators() takes them,
/// where the cluster reads them.
template <int kColumns, int kRows, int kPitch, class Sum>
BRASA_DEVICE_FN void share_sums(float (&shared)[kRows][kPitch], int row, int column,
                                const Sum& sum) {
  const int lane = int(threadIdx.x) % simt::kWarpSize, group = lane / 4, quarter = lane % 4;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      simt::Pack<float, 2> pair;
      pair[0] = sum(j, 2 * half), pair[1] = sum(j, 2 * half + 1);
      simt::store_pack(&shared[row + 8 * half + group][column + 8 * j + 2 * quarter], pair);
    }
  }
}

/// Adds up what the `cluster` blocks have, in their order, and finishes it: each block a part of
/// the rows, by `threads` threads.
template <int kColumns, class T, class Rows, int kRows, int kPitch>
BRASA_DEVICE_FN void store_cluster(const Results<T, Rows>& r, const float (&shared)[kRows][kPitch],
                                   unsigned cluster, int64_t row, int64_t column, int thread,
                                   int threads) {
  constexpr int kLanes = simt::kPackLanes<T>, kPerRow = kColumns / kLanes;
  const int rows = int(simt::ceil_div<unsigned>(kRows, cluster));
  const int first = rows * int(simt::cluster_rank());
  const int end = first + rows < kRows ? first + rows : kRows;
#pragma unroll 1
  for (int e = first * kPerRow + thread; e < end * kPerRow; e += threads) {
    const int i = e / kPerRow, j = e % kPerRow * kLanes;
    const int64_t c = column + j, at = r.offset + r.rows(row + i) + c;
    const int live = r.n - c < kLanes ? int(r.n - c) : kLanes;
    if (row + i >= r.m || live <= 0) continue;
    float v[kLanes] = {};
#pragma unroll 4
    for (unsigned rank = 0; rank < cluster; ++rank) {
#pragma unroll
      for (int l = 0; l < kLanes; l += 4) {
        const auto part = simt::cluster_load(&shared[i][j + l], rank);
#pragma unroll
        for (int k = 0; k < 4; ++k) v[l + k] += part[k];
      }
    }
    finish(r, c, at, live, v);
    write_some(r.y + at, live, r.packs, v);
  }
}

}  // namespace brasa::cuda
