// The kernel of products on tensor cores at warp level, and its launcher.
#pragma once

#include "matmul/gemm_cluster.cuh"
#include "matmul/gemm_mma.cuh"
#include "matmul/gemm_store.cuh"
#include "matmul/gemm_tensor.h"
#include "matmul/tile_order.cuh"

namespace brasa::cuda {

using FlatTile = MmaTile<64, 128, 32, 32, 4, 2>;
using FewRowsTile = MmaTile<16, 128, 16, 32, 4, 3>;  // memory-bound: 48 KB of copies under way

/// What takes the place of the stages when their products are done.
template <class Tile> struct MmaResults {
  WarpStage stage[Tile::kThreads / simt::kWarpSize];
  ClusterSums<Tile::kRows, Tile::kColumns> sums;
};

/// blockIdx.x counts tiles and, fastest, the blocks of a cluster, which share the depth of one;
/// blockIdx.y parts of the depth where there are no clusters, blockIdx.z positions of the batch.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
__global__ void __launch_bounds__(Tile::kThreads,
                                  sizeof(T) == 4 ? 1 : Tile::kBlocksPerMultiprocessor)
    mma_kernel(MatmulParams p, TileOrder order, int64_t a_stride, int64_t b_stride,
               int64_t split_depth, unsigned cluster, const T* a, const T* b, Results<T> results) {
  BRASA_DYN_SHARED(unsigned char, stages);
  static_assert(sizeof(MmaResults<Tile>) <= size_t(Tile::kStages) * Tile::kStageBytes);
  auto* const shared = reinterpret_cast<MmaResults<Tile>*>(stages);
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
    const bool shares = cluster > 1;
    if (shares) {
#pragma unroll
      for (int i = 0; i < Tile::kWarpRows / 16; ++i)
        share_sums<Tile::kWarpColumns>(shared->sums, row + 16 * i, column,
                                       [&](int j, int e) { return sum[i][j][e]; });
      simt::cluster_sync();
    }
    constexpr int kPieces = Tile::kWarpRows / kStageRows * (Tile::kWarpColumns / kStageColumns);
    const ClusterPieces<Tile::kRows, Tile::kColumns> pieces(cluster, warp,
                                                            Tile::kThreads / simt::kWarpSize);
    store_pieces(
        results, shared->stage[warp], shares ? pieces.count() : kPieces,
        [&](int piece) {
          const StagePiece at =
              shares ? pieces.at(piece) : own_piece<Tile::kWarpColumns>(row, column, piece);
          return StagePiece{first_row + at.row, first_column + at.column, at.rows};
        },
        [&](int piece) {
          if (shares)
            pieces.fill(shared->sums, piece, shared->stage[warp]);
          else
            fill_stage<kPieces, Tile::kWarpColumns>(
                shared->stage[warp], piece, [&](int i, int j, int e) { return sum[i][j][e]; });
        });
    // before the next position's copies, and in a cluster before this block ends
    shares ? simt::cluster_sync() : __syncthreads();
  }
}

}  // namespace brasa::cuda
