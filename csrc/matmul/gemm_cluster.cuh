// Sums whose depth the blocks of a cluster share, added up without a trip through memory.
#pragma once

#include "core/ptx_cluster.cuh"
#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

/// The sums of a block in its shared memory, for the other blocks of its cluster. Rows start 8
/// banks apart, so that the lanes of a warp write pairs without conflicts.
template <int kRows, int kColumns> using ClusterSums = float[kRows][kColumns + 8];

/// Puts 16 rows of a warp's accumulators, kColumns wide, where the cluster reads them: sum(j, e) is
/// in row lane / 4 + 8 (e / 2), column 8 j + 2 (lane % 4) + e % 2.
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

/// The pieces of a tile of kRows x kColumns that a warp of a cluster finishes: those of all warps
/// of all blocks take turns. A piece is four floats for each lane.
template <int kRows, int kColumns> struct ClusterPieces {
  static constexpr int kLanes = 4, kPerRow = kStageColumns / kLanes;
  static constexpr int kPieceRows = simt::kWarpSize / kPerRow;
  static constexpr int kAcross = kColumns / kStageColumns, kAll = kRows / kPieceRows * kAcross;
  unsigned blocks;
  int first, step;

  BRASA_DEVICE_FN ClusterPieces(unsigned cluster, int warp, int warps)
      : blocks(cluster),
        first(int(simt::cluster_rank()) * warps + warp),
        step(int(cluster) * warps) {}
  BRASA_DEVICE_FN int count() const { return first < kAll ? (kAll - 1 - first) / step + 1 : 0; }
  BRASA_DEVICE_FN StagePiece at(int p) const {
    const int piece = first + p * step;
    return {piece / kAcross * kPieceRows, piece % kAcross * kStageColumns, kPieceRows};
  }

  /// Adds up what the blocks have of piece p, in their order.
  template <int kPitch>
  BRASA_DEVICE_FN void fill(const float (&shared)[kRows][kPitch], int p, WarpStage& stage) const {
    const StagePiece piece = at(p);
    const int lane = int(threadIdx.x) % simt::kWarpSize;
    const int i = lane / kPerRow, j = lane % kPerRow * kLanes;
    simt::Pack<float, kLanes> sum{};
#pragma unroll 4
    for (unsigned rank = 0; rank < blocks; ++rank) {
      const auto part = simt::cluster_load(&shared[piece.row + i][piece.column + j], rank);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sum[k] += part[k];
    }
    simt::store_pack(&stage[i][j], sum);
  }
};

}  // namespace brasa::cuda
