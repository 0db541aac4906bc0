// The kernel of convolutions on tensor cores at warp level: the main loop of products with lines
// that are gathered from an image.
#pragma once

#include "conv/conv_tensor.cuh"
#include "matmul/tile_order.cuh"

namespace brasa::cuda {

using TallTile = MmaTile<128, 64, 64, 32, 3, 2>;  // where there are no more columns

/// Lines are pixels, along (taps, channels). A thread copies one piece of some pixels.
template <class T, int kExtent, int kThreads> struct PixelCopier {
  static constexpr int kLines = kThreads / kPieces, kRows = kExtent / kLines;
  static_assert(kExtent % kLines == 0);
  const PixelOperand<T>& left;
  const T* data;
  Place row[kRows];
  int64_t depth, end;  ///< of the thread's next piece
  int line, piece;

  BRASA_DEVICE_FN PixelCopier(const PixelOperand<T>& operand, int64_t group, int64_t first,
                              int64_t begin, int64_t end_)
      : left(operand),
        data(operand.image.data + group * operand.image.channels),
        end(end_),
        line(int(threadIdx.x) / kPieces),
        piece(int(threadIdx.x) % kPieces) {
    depth = begin + piece * kPiece<T>;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t pixel = first + line + r * kLines;
      const bool there = pixel < left.pixels;
      row[r] = place_pixel(left.grid, left.image.layout, there ? pixel : 0);
      if (!there) row[r].at[0] = kOutside;
    }
  }

  BRASA_DEVICE_FN void copy(unsigned char* tile) {
    unsigned char* to = tile + swizzled(line, piece);  // kLines is a multiple of 8
    const bool live = depth < end;
    int64_t kernel[3], channel;
    const Place tap = place_tap(left.grid, left.image.layout, live ? depth : 0, kernel, channel);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool read = live && inside(left.image.layout, row[r], tap);
      simt::cp_async<kPieceBytes>(to + r * kLines * kLineBytes,
                                  read ? data + row[r].offset + tap.offset : data,
                                  read ? kPieceBytes : 0);
    }
    depth += kLine<T>;
  }
};

/// Lines are steps of the depth, which are pixels here, along (taps, channels) in panels. A thread
/// copies one piece of each panel of some pixels.
template <class T, int kExtent, int kThreads> struct TapCopier {
  static constexpr int kLines = kThreads / kPieces, kPerPanel = kLine<T> / kLines;
  static constexpr int kPanels = kExtent / kLine<T>;
  static_assert(kLine<T> % kLines == 0 && kExtent % kLine<T> == 0);
  const PixelOperand<T>& left;
  const T* data;
  Place tap[kPanels];
  int64_t pixel, end;  ///< of the thread's first line of the next tile
  int line, piece;

  BRASA_DEVICE_FN TapCopier(const PixelOperand<T>& operand, int64_t group, int64_t first,
                            int64_t rows, int64_t begin, int64_t end_)
      : left(operand),
        data(operand.image.data + group * operand.image.channels),
        end(end_),
        line(int(threadIdx.x) / kPieces),
        piece(int(threadIdx.x) % kPieces) {
    pixel = begin + line;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const int64_t row = first + panel * kLine<T> + piece * kPiece<T>;
      int64_t kernel[3], channel;
      tap[panel] = place_tap(left.grid, left.image.layout, row < rows ? row : 0, kernel, channel);
      if (row >= rows) tap[panel].at[0] = kOutside;
    }
  }

  BRASA_DEVICE_FN void copy(unsigned char* tile) {
    unsigned char* to = tile + swizzled(line, piece);
#pragma unroll
    for (int l = 0; l < kPerPanel; ++l) {
      const int64_t at = pixel + l * kLines;
      const bool live = at < end;
      const Place place = place_pixel(left.grid, left.image.layout, live ? at : 0);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        const bool read = live && inside(left.image.layout, tap[panel], place);
        simt::cp_async<kPieceBytes>(to + (panel * kPerPanel + l) * kLines * kLineBytes,
                                    read ? data + place.offset + tap[panel].offset : data,
                                    read ? kPieceBytes : 0);
      }
    }
    pixel += kLine<T>;
  }
};

/// What one group gives: parts are matrices of their own, results columns of all groups'.
BRASA_DEVICE_FN PartSums of_group(PartSums r, int64_t group, int64_t groups) {
  r.parts += blockIdx.y * groups * r.m * r.n;
  r.offset = group * r.m * r.n;
  return r;
}
template <class T, class Rows>
BRASA_DEVICE_FN Results<T, Rows> of_group(Results<T, Rows> r, int64_t group, int64_t groups) {
  if (r.parts) {
    r.parts += blockIdx.y * groups * r.m * r.n;
    r.offset = group * r.m * r.n;
    return r;
  }
  r.offset = group * r.n;
  if (r.epilogue.bias) r.epilogue.bias += r.offset;
  if (r.epilogue.wide_bias) r.epilogue.wide_bias += r.offset;
  return r;
}

/// Forward and data, or (kGradient) the gradient of the weight. blockIdx.x counts tiles, blockIdx.y
/// parts of the depth, blockIdx.z groups.
template <class T, class Tile, bool kGradient, class Results>
__global__ void __launch_bounds__(Tile::kThreads,
                                  sizeof(T) == 4 ? 1 : Tile::kBlocksPerMultiprocessor)
    conv_mma_kernel(PixelOperand<T> operand, ConvMatrix<T> matrix, TileOrder order, ConvCut cut,
                    int64_t groups, Results results) {
  BRASA_DYN_SHARED(unsigned char, stages);
  constexpr int kWarpsAcross = Tile::kColumns / Tile::kWarpColumns;
  const int warp = int(threadIdx.x) / simt::kWarpSize;
  const int row = warp / kWarpsAcross * Tile::kWarpRows;
  const int column = warp % kWarpsAcross * Tile::kWarpColumns;
  unsigned row_tile, column_tile;
  order.place(blockIdx.x, row_tile, column_tile);
  const int64_t first_row = int64_t(row_tile) * Tile::kRows;
  const int64_t first_column = int64_t(column_tile) * Tile::kColumns;
  const int64_t begin = blockIdx.y * cut.split_depth;
  const int64_t end = cut.depth - begin < cut.split_depth ? cut.depth : begin + cut.split_depth;
  for (int64_t group = blockIdx.z; group < groups; group += gridDim.z) {
    WarpSums<Tile> sum = {};
    TileCopier<T, Tile::kColumns, Tile::kThreads, !kGradient> right(
        matrix.data + group * matrix.group, matrix.stride, first_column, results.n, begin, end);
    if constexpr (kGradient) {
      TapCopier<T, Tile::kRows, Tile::kThreads> left(operand, group, first_row, results.m, begin,
                                                     end);
      multiply_depth<T, Tile, false, false>(stages, left, right, end - begin, row, column, sum);
    } else {
      PixelCopier<T, Tile::kRows, Tile::kThreads> left(operand, group, first_row, begin, end);
      multiply_depth<T, Tile, true, true>(stages, left, right, end - begin, row, column, sum);
    }
    const Results here = of_group(results, group, groups);
    auto& stage = reinterpret_cast<WarpStage*>(stages)[warp];
    constexpr int kPieces = Tile::kWarpRows / kStageRows * (Tile::kWarpColumns / kStageColumns);
    store_pieces(
        here, stage, kPieces,
        [&](int piece) {
          return own_piece<Tile::kWarpColumns>(first_row + row, first_column + column, piece);
        },
        [&](int piece) {
          fill_stage<kPieces, Tile::kWarpColumns>(
              stage, piece, [&](int i, int j, int e) { return sum[i][j][e]; });
        });
    __syncthreads();  // before the next group's copies
  }
}

}  // namespace brasa::cuda
