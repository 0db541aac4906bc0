// The product of tiles in shared memory for attention on CUDA; that of matrix products and
// convolutions is gemm_fma.cuh.
//
// 16 x 16 threads hold kPerRow x kPerColumn results each. The depth is walked in rounds: while one
// is multiplied, the elements of the next are on their way into registers, and with two copies of
// the tiles in shared memory one barrier per round is enough. Elements travel in packs of 16 bytes
// where they are neighbours in memory, along the depth or along the extent (the rows of the left
// tile, the columns of the right one).
#pragma once

#include "core/device.cuh"

namespace brasa::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileSide = 16;  // threads along each side of a tile

template <class T, int kRowsOfThread, int kColumnsOfThread> struct TileShape {
  static constexpr int kLanes = simt::kPackLanes<T>;
  static constexpr int kPerRow = kRowsOfThread, kPerColumn = kColumnsOfThread;
  static constexpr int kRows = kTileSide * kPerRow, kColumns = kTileSide * kPerColumn;
  static constexpr int kDepth = 16;
};

/// Rows are a pack longer than the tile: they then start in different banks.
template <class T, int kExtent, int kDepth>
using SharedTile = T[kDepth][kExtent + simt::kPackLanes<T>];

/// Which of its tile's rows (or columns) the i-th of a thread is: packs, spread over the tile.
template <class T> BRASA_DEVICE_FN int place(int thread, int i) {
  constexpr int kLanes = simt::kPackLanes<T>;
  return (i / kLanes * kTileSide + thread) * kLanes + i % kLanes;
}
/// Where the thread stands in the tile.
template <class Shape> BRASA_DEVICE_FN int thread_row() {
  return int(threadIdx.x) / kTileSide;
}
template <class Shape> BRASA_DEVICE_FN int thread_column() {
  return int(threadIdx.x) % kTileSide;
}

/// A thread's part of the elements that one round brings of one operand.
template <class T, int kExtent, int kDepth> struct TilePart {
  static constexpr int kLanes = simt::kPackLanes<T>, kAll = kExtent * kDepth / kLanes;
  static constexpr int kPacks = (kAll + kTileThreads - 1) / kTileThreads;
  simt::Pack<T, kLanes> pack[kPacks];

  /// Where pack k begins.
  static BRASA_DEVICE_FN int extent_of(int k, bool along_depth) {
    const int e = int(threadIdx.x) + k * kTileThreads;
    return along_depth ? e / (kDepth / kLanes) : e % (kExtent / kLanes) * kLanes;
  }
  static BRASA_DEVICE_FN int depth_of(int k, bool along_depth) {
    const int e = int(threadIdx.x) + k * kTileThreads;
    return along_depth ? e % (kDepth / kLanes) * kLanes : e / (kExtent / kLanes);
  }
  static BRASA_DEVICE_FN bool has(int k) {
    return kAll % kTileThreads == 0 || int(threadIdx.x) + k * kTileThreads < kAll;
  }

  /// load(k, i, p) is the pack that begins at i of the extent and p of the depth.
  template <class Load> BRASA_DEVICE_FN void fetch(bool along_depth, const Load& load) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (has(k)) pack[k] = load(k, extent_of(k, along_depth), depth_of(k, along_depth));
  }
  BRASA_DEVICE_FN void store(bool along_depth, SharedTile<T, kExtent, kDepth>& tile) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!has(k)) continue;
      const int i = extent_of(k, along_depth), p = depth_of(k, along_depth);
      if (!along_depth) {
        simt::store_pack<kLanes>(&tile[p][i], pack[k]);
        continue;
      }
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) tile[p + lane][i] = pack[k][lane];
    }
  }
};

template <class T, int kPer>
BRASA_DEVICE_FN void load_fragment(const T* row, int thread, T (&fragment)[kPer]) {
  constexpr int kLanes = simt::kPackLanes<T>;
#pragma unroll
  for (int i = 0; i < kPer; i += kLanes) {
    const auto pack = simt::load_pack<kLanes>(row + place<T>(thread, i));
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) fragment[i + lane] = pack[lane];
  }
}

/// sum += left x right over the depth of a round.
template <class Shape, class T>
BRASA_DEVICE_FN void multiply_tile(const SharedTile<T, Shape::kRows, Shape::kDepth>& left,
                                   const SharedTile<T, Shape::kColumns, Shape::kDepth>& right,
                                   T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
#pragma unroll 1
  for (int p = 0; p < Shape::kDepth; ++p) {
    T a[Shape::kPerRow], b[Shape::kPerColumn];
    load_fragment<T, Shape::kPerRow>(left[p], thread_row<Shape>(), a);
    load_fragment<T, Shape::kPerColumn>(right[p], thread_column<Shape>(), b);
#pragma unroll
    for (int i = 0; i < Shape::kPerRow; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kPerColumn; ++j) sum[i][j] += a[i] * b[j];
    }
  }
}

/// sum += the product over all rounds. operands.fetch(round) starts the loads of a round, and
/// operands.store(copy) writes what they brought to that copy of the tiles; all threads call.
template <class Shape, class T, class Operands>
BRASA_DEVICE_FN void multiply_rounds(unsigned rounds, Operands& operands,
                                     T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
  if (rounds == 0) return;
  operands.fetch(0);
  operands.store(0);
  __syncthreads();
  for (unsigned round = 0; round < rounds; ++round) {
    const bool more = round + 1 < rounds;
    if (more) operands.fetch(round + 1);
    multiply_tile<Shape, T>(operands.left[round % 2], operands.right[round % 2], sum);
    if (more) operands.store(1 - round % 2);
    __syncthreads();
  }
}

}  // namespace brasa::cuda
