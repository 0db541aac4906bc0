// The main loop of matrix products on tensor cores at warp level (sm_80 and later).
//
// Both operands pass through shared memory in lines of 128 bytes, kStages tiles deep, brought by
// asynchronous copies of 16 bytes. A line holds neighbours along the depth (a row of the tile), or
// along the tile's extent (one step of the depth; the tile is then panels of such lines). The eight
// pieces of a line are swapped by the line's number, so that eight lines' pieces of one column,
// which ldmatrix reads at once, lie in different banks.
//
// A step is 32 bytes of the depth: 16 elements of 16 bits or 8 of tf32. Elements beyond the
// operands are zeros that are not read.
#pragma once

#include "core/half.h"
#include "core/ptx_async.cuh"
#include "core/ptx_mma.cuh"
#include "matmul/tf32_split.cuh"

namespace brasa::cuda {

constexpr int kLineBytes = 128, kPieceBytes = 16, kPieces = kLineBytes / kPieceBytes;

/// Elements of T in a line: the depth of a tile.
template <class T> constexpr int kLine = kLineBytes / int(sizeof(T));
template <class T> constexpr int kPiece = kPieceBytes / int(sizeof(T));

/// Byte of piece `piece` of line `line`.
BRASA_DEVICE_FN int swizzled(int line, int piece) {
  return line * kLineBytes + ((piece ^ (line & 7)) * kPieceBytes);
}

template <int kTileRows, int kTileColumns, int kRowsOfWarp, int kColumnsOfWarp, int kDeep,
          int kBlocks>
struct MmaTile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kWarpRows = kRowsOfWarp, kWarpColumns = kColumnsOfWarp;
  static constexpr int kThreads = kRows / kWarpRows * (kColumns / kWarpColumns) * simt::kWarpSize;
  static constexpr int kStages = kDeep, kBlocksPerMultiprocessor = kBlocks;
  static constexpr int kStageBytes = (kRows + kColumns) * kLineBytes;
  static constexpr bool kThrice = false;  ///< operands are split for 3xTF32
};

using LargeTile = MmaTile<128, 128, 64, 32, 3, 1>;
using SmallTile = MmaTile<64, 64, 32, 32, 4, 2>;
struct ThriceTile : LargeTile {
  static constexpr bool kThrice = true;
};

/// One operand's part of a block's work: its rows (columns) from `first`, its depth from k to end.
/// Tiles are copied in turn.
template <class T, int kExtent, int kThreads, bool kAlongDepth> struct TileCopier {
  static constexpr int kCopies = kExtent * kPieces / kThreads, kLines = kThreads / kPieces;
  static_assert(kExtent * kPieces % kThreads == 0 && kLine<T> % kLines == 0);
  const T* at;     ///< of the thread's first piece of the next tile
  int64_t stride;  ///< between neighbouring lines
  int64_t depth;   ///< left, from the thread's first piece
  int extent;      ///< left, from the thread's first piece
  int line, piece;

  BRASA_DEVICE_FN TileCopier(const T* from, int64_t stride_, int64_t first, int64_t extent_,
                             int64_t k, int64_t end)
      : stride(stride_), line(int(threadIdx.x) / kPieces), piece(int(threadIdx.x) % kPieces) {
    const int of_extent = kAlongDepth ? line : piece * kPiece<T>;
    const int of_depth = kAlongDepth ? piece * kPiece<T> : line;
    const int64_t left = extent_ - first;
    extent = (left < kExtent ? int(left) : kExtent) - of_extent;
    depth = end - k - of_depth;
    first += of_extent, k += of_depth;
    at = from + (kAlongDepth ? first * stride + k : k * stride + first);
  }

  /// Starts the copies of the next tile.
  BRASA_DEVICE_FN void copy(unsigned char* tile) {
    unsigned char* to = tile + swizzled(line, piece);  // kLines is a multiple of 8
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      constexpr int kPerPanel =
          kLine<T> / kLines;  // copies of a panel, where lines are steps of the depth
      const int lines = kAlongDepth ? c * kLines : c % kPerPanel * kLines;
      const int panel = kAlongDepth ? 0 : c / kPerPanel * kLine<T>;
      const int across = (kAlongDepth ? extent : clipped(depth)) - lines;
      const int along = kAlongDepth ? clipped(depth) : extent - panel;
      const int live = across <= 0 || along <= 0 ? 0 : along < kPiece<T> ? along : kPiece<T>;
      const T* from = at + lines * stride + panel;
      simt::cp_async<kPieceBytes>(to + c * kLines * kLineBytes, live ? from : at,
                                  live * int(sizeof(T)));
    }
    at += kAlongDepth ? kLine<T> : kLine<T> * stride;
    depth -= kLine<T>;
  }

 private:
  static BRASA_DEVICE_FN int clipped(int64_t n) { return n < 2 * kLine<T> ? int(n) : 2 * kLine<T>; }
};

/// Registers of a 16 x step part of the left operand: rows from `row` of the tile.
template <class T, bool kAlongDepth>
BRASA_DEVICE_FN void load_left(const unsigned char* tile, int row, int step, uint32_t (&a)[4]) {
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  if constexpr (kAlongDepth) {
    simt::ldmatrix_x4(a, tile + swizzled(row + lane % 16, 2 * step + lane / 16));
  } else if constexpr (sizeof(T) == 2) {
    const int at = row + lane / 8 % 2 * 8, k = step * 16 + lane / 16 * 8 + lane % 8;
    simt::ldmatrix_x4_trans(
        a, tile + swizzled(at / kLine<T> * kLine<T> + k, at % kLine<T> / kPiece<T>));
  } else {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int at = row + lane / 4 + 8 * (r % 2), k = step * 8 + lane % 4 + 4 * (r / 2);
      const int byte = swizzled(at / kLine<T> * kLine<T> + k, at % kLine<T> / kPiece<T>);
      a[r] = *reinterpret_cast<const uint32_t*>(tile + byte + at % kPiece<T> * int(sizeof(T)));
    }
  }
}

/// Registers of two neighbouring step x 8 parts of the right operand: columns from `column`.
template <class T, bool kAlongDepth>
BRASA_DEVICE_FN void load_right(const unsigned char* tile, int column, int step,
                                uint32_t (&b)[2][2]) {
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  uint32_t r[4];
  if constexpr (kAlongDepth) {
    const int line = column + lane % 8 + lane / 16 * 8;
    simt::ldmatrix_x4(r, tile + swizzled(line, 2 * step + lane / 8 % 2));
  } else if constexpr (sizeof(T) == 2) {
    const int at = column + lane / 16 * 8, k = step * 16 + lane % 16;
    simt::ldmatrix_x4_trans(
        r, tile + swizzled(at / kLine<T> * kLine<T> + k, at % kLine<T> / kPiece<T>));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = column + lane / 4 + 8 * (i / 2), k = step * 8 + lane % 4 + 4 * (i % 2);
      const int byte = swizzled(at / kLine<T> * kLine<T> + k, at % kLine<T> / kPiece<T>);
      r[i] = *reinterpret_cast<const uint32_t*>(tile + byte + at % kPiece<T> * int(sizeof(T)));
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = r[i];
}

template <class T>
BRASA_DEVICE_FN void multiply_step(float (&sum)[4], const uint32_t (&a)[4],
                                   const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float16>)
    simt::mma_m16n8k16_f16(sum, a, b);
  else if constexpr (std::is_same_v<T, bfloat16>)
    simt::mma_m16n8k16_bf16(sum, a, b);
  else
    simt::mma_m16n8k8_tf32(sum, a, b);
}

/// A warp's results: 16 x 8 parts of kWarpRows x kWarpColumns.
template <class Tile> using WarpSums = float[Tile::kWarpRows / 16][Tile::kWarpColumns / 8][4];

/// sum += the warp's rows and columns of a tile. Where registers are left, the next step's are
/// loaded beside; elsewhere the block's other warps hide the loads.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
BRASA_DEVICE_FN void multiply_line(const unsigned char* left, const unsigned char* right, int row,
                                   int column, WarpSums<Tile>& sum) {
  constexpr int kSteps = kLineBytes / 32, kA = Tile::kWarpRows / 16, kB = Tile::kWarpColumns / 16;
  constexpr int kCopies = kA * kB > 4 ? 1 : 2;
  uint32_t a[kCopies][kA][4], b[kCopies][kB][2][2];
  const auto load = [&](int step) {
#pragma unroll
    for (int i = 0; i < kA; ++i)
      load_left<T, kLeftAlong>(left, row + 16 * i, step, a[step % kCopies][i]);
#pragma unroll
    for (int j = 0; j < kB; ++j)
      load_right<T, kRightAlong>(right, column + 16 * j, step, b[step % kCopies][j]);
  };
  // Where tf32 is gathered word by word, addresses of all steps would not fit into the registers.
  constexpr bool kWords = sizeof(T) == 4 && !(kLeftAlong && kRightAlong);
  [[maybe_unused]] constexpr int kUnroll = kWords && kCopies == 1 ? 1 : kSteps;
  load(0);
#pragma unroll kUnroll
  for (int step = 0; step < kSteps; ++step) {
    if (kCopies > 1 && step + 1 < kSteps) load(step + 1);
    if (kCopies == 1 && step > 0) load(step);
#pragma unroll
    for (int i = 0; i < kA; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kB; ++j)
        multiply_step<T>(sum[i][j], a[step % kCopies][i], b[step % kCopies][j / 2][j % 2]);
    }
  }
}

/// The same of split operands, whose line has sums of its own: tensor cores cut what they add.
template <class Tile>
BRASA_DEVICE_FN void multiply_split_line(const unsigned char* left, const unsigned char* right,
                                         int row, int column, WarpSums<Tile>& sum) {
  constexpr int kSteps = kLineBytes / 32, kA = Tile::kWarpRows / 16, kB = Tile::kWarpColumns / 16;
  uint32_t b[kSteps][kB][2][2];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int j = 0; j < kB; ++j) load_right<float, true>(right, column + 16 * j, step, b[step][j]);
  }
#pragma unroll
  for (int i = 0; i < kA; ++i) {
    __syncwarp();  // or the compiler loads more rows ahead than there are registers
    uint32_t a[2][4];
    float line[2 * kB][4] = {};
#pragma unroll
    for (int p = 0; p < kSplitProducts; ++p) {
      if (p == 0 || split_left(p) / 2 != split_left(p - 1) / 2) {
#pragma unroll
        for (int s = 0; s < 2; ++s)
          load_left<float, true>(left, row + 16 * i, split_left(p) + s, a[s]);
      }
#pragma unroll
      for (int j = 0; j < 2 * kB; ++j)
        multiply_step<float>(line[j], a[split_left(p) % 2], b[split_right(p)][j / 2][j % 2]);
    }
#pragma unroll
    for (int j = 0; j < 2 * kB; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] += line[j][e];
    }
  }
}

/// sum += the product of both operands over their depth, for all warps of the block.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong, class Left, class Right>
BRASA_DEVICE_FN void multiply_depth(unsigned char* stages, Left& left, Right& right, int64_t depth,
                                    int row, int column, WarpSums<Tile>& sum) {
  constexpr int kStages = Tile::kStages;
  const int rounds = int((depth + kLine<T> - 1) / kLine<T>);
  const auto fetch = [&](int round) {
    if (round < rounds) {
      unsigned char* stage = stages + round % kStages * Tile::kStageBytes;
      left.copy(stage);
      right.copy(stage + Tile::kRows * kLineBytes);
    }
    simt::cp_async_commit();  // an empty group, too: the waits count groups
  };
#pragma unroll 1
  for (int s = 0; s + 1 < kStages; ++s) fetch(s);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    simt::cp_async_wait<kStages - 2>();
    __syncthreads();  // others' copies have landed, and all are done with the stage that comes next
    fetch(round + kStages - 1);
    const unsigned char* stage = stages + round % kStages * Tile::kStageBytes;
    const unsigned char* other = stage + Tile::kRows * kLineBytes;
    if constexpr (Tile::kThrice)
      multiply_split_line<Tile>(stage, other, row, column, sum);
    else
      multiply_line<T, Tile, kLeftAlong, kRightAlong>(stage, other, row, column, sum);
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // the stages are free
}

}  // namespace brasa::cuda
