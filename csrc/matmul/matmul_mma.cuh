// The kernel of products on tensor cores at warp level, and its launcher.
#pragma once

#include "core/ptx_cluster.cuh"
#include "matmul/gemm_mma.cuh"
#include "matmul/gemm_store.cuh"
#include "matmul/gemm_tensor.h"
#include "matmul/tile_order.cuh"

namespace brasa::cuda {

using FlatTile = MmaTile<64, 128, 32, 32, 4, 2>;
using FewRowsTile = MmaTile<16, 128, 16, 32, 4, 3>;  // memory-bound: 48 KB of copies under way

/// Rows of the sums of a block in shared memory, for the other blocks of its cluster.
template <class Tile> using ClusterSums = float[Tile::kRows][Tile::kColumns + 8];

/// Puts a warp's sums where the cluster reads them.
template <class Tile>
BRASA_DEVICE_FN void share_sums(ClusterSums<Tile>& shared, int row, int column,
                                const WarpSums<Tile>& sum) {
  const int lane = int(threadIdx.x) % simt::kWarpSize, group = lane / 4, quarter = lane % 4;
#pragma unroll
  for (int i = 0; i < Tile::kWarpRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpColumns / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        simt::Pack<float, 2> pair;
        pair[0] = sum[i][j][2 * half], pair[1] = sum[i][j][2 * half + 1];
        simt::store_pack(&shared[row + 16 * i + 8 * half + group][column + 8 * j + 2 * quarter],
                         pair);
      }
    }
  }
}

/// Adds up what the blocks of the cluster have, in their order, and finishes it: each block a part
/// of the rows.
template <class T, class Tile>
BRASA_DEVICE_FN void store_cluster(const Results<T>& r, const ClusterSums<Tile>& shared,
                                   unsigned cluster, int64_t row, int64_t column) {
  constexpr int kLanes = simt::kPackLanes<T>, kPerRow = Tile::kColumns / kLanes;
  const int rows = int(simt::ceil_div<unsigned>(Tile::kRows, cluster));
  const int first = rows * int(simt::cluster_rank());
  const int end = first + rows < Tile::kRows ? first + rows : Tile::kRows;
#pragma unroll 1
  for (int e = first * kPerRow + int(threadIdx.x); e < end * kPerRow; e += Tile::kThreads) {
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

/// blockIdx.x counts tiles and, fastest, the blocks of a cluster, which share the depth of one;
/// blockIdx.y parts of the depth where there are no clusters, blockIdx.z positions of the batch.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
__global__ void __launch_bounds__(Tile::kThreads,
                                  sizeof(T) == 4 ? 1 : Tile::kBlocksPerMultiprocessor)
    mma_kernel(MatmulParams p, TileOrder order, int64_t a_stride, int64_t b_stride,
               int64_t split_depth, unsigned cluster, const T* a, const T* b, Results<T> results) {
  BRASA_DYN_SHARED(unsigned char, stages);
  const int warp = int(threadIdx.x) / simt::kWarpSize;
  constexpr int kWarpsAcross = Tile::kColumns / Tile::kWarpColumns;
  const int row = warp / kWarpsAcross * Tile::kWarpRows;
  const int column = warp % kWarpsAcross * Tile::kWarpColumns;
  unsigned row_tile, column_tile;
  order.place(blockIdx.x / cluster, row_tile, column_tile);
  const int64_t first_row = int64_t(row_tile) * Tile::kRows;
  const int64_t first_column = int64_t(column_tile) * Tile::kColumns;
  const int64_t begin = (cluster > 1 ? simt::cluster_rank() : blockIdx.y) * split_depth;
  const int64_t end = p.k - begin < split_depth ? p.k : begin + split_depth;
  if (results.parts) results.parts += int64_t(blockIdx.y) * p.batch.count * p.m * p.n;
  for (int64_t item = blockIdx.z; item < p.batch.count; item += gridDim.z) {
    int64_t a_offset = 0, b_offset = 0;
    add_offsets(p.batch, item, a_offset, b_offset);
    TileCopier<T, Tile::kRows, Tile::kThreads, kLeftAlong> left(a + a_offset, a_stride, first_row,
                                                                p.m, begin, end);
    TileCopier<T, Tile::kColumns, Tile::kThreads, kRightAlong> right(b + b_offset, b_stride,
                                                                     first_column, p.n, begin, end);
    WarpSums<Tile> sum = {};
    multiply_depth<T, Tile, kLeftAlong, kRightAlong>(stages, left, right, end - begin, row, column,
                                                     sum);
    results.offset = item * p.m * p.n;
    if (cluster > 1) {
      auto& shared = reinterpret_cast<ClusterSums<Tile>&>(*stages);
      share_sums<Tile>(shared, row, column, sum);
      simt::cluster_sync();
      store_cluster<T, Tile>(results, shared, cluster, first_row, first_column);
      simt::cluster_sync();  // before the next position's copies, and before this block ends
      continue;
    }
    auto& stage = reinterpret_cast<WarpStage*>(stages)[warp];
#pragma unroll
    for (int i = 0; i < Tile::kWarpRows / 16; ++i) {
      store_accumulators<Tile::kWarpColumns>(results, stage, first_row + row + 16 * i,
                                             first_column + column,
                                             [&](int j, int e) { return sum[i][j][e]; });
    }
    __syncthreads();  // before the next position's copies
  }
}

}  // namespace brasa::cuda
