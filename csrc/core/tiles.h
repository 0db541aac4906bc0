// Block and tile sizes: what only fixes speed. What fixes rounding stands in order.h.
#pragma once

#include <cstdint>

#if defined(BRASA_ISA)

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

/// Register tiles of matrix products, in rows x vectors. With 32 registers 24 accumulators hide the
/// latency of two FMA pipes (12 x 2; 6 x 4 for products of few rows); with 16 there is room for 12.
#if defined(BRASA_SCALAR)
constexpr int kTileRows = 4, kWideTileRows = 2;
#elif defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12, kWideTileRows = 6;
#else
constexpr int kTileRows = 6, kWideTileRows = 3;
#endif
constexpr int kTileVectors = 2, kWideTileVectors = 4;

/// With 32 registers 6 x 4 is the tile of all products of more than two vectors of columns: 6 rows
/// of A can be read as they lie at full speed (98-99 % of the peak in cache; 12 rows: 94 %).
constexpr bool kWideMainTile = kTileRows == 12;

/// Rows of A packed at a time: 144 x 512 float32 are 288 KiB, which stay in an L2 of 1 MiB beside
/// the panels of B that stream past.
constexpr int64_t kGemmRows = 144;

/// Columns of a strip; the second where A is packed once per strip.
constexpr int64_t kStripColumns = 64, kPackedStripColumns = 512;

/// Most bytes of packed B that a thread keeps for the next chunk of a strip, and the rows for which
/// packing it anew is cheap (2 %).
constexpr int64_t kKeptBytes = 4 << 20, kRepackRows = 512;

/// Most bytes of packed B that a team shares: a quarter of L3.
constexpr int64_t kSharedBytes = 8 << 20;

/// A B of contiguous rows is read as it lies, from L2 or L3 again for every tile of rows, up to so
/// many tiles: packing it costs more. The larger number is for rows at most kNearBytes apart (a
/// panel is then on few pages) and for a B of at most kInPlaceBytes. Measured: 120 x 512 x 784
/// gains 6 % unpacked, 64 x 1000 x 1000 loses 20 %.
constexpr int64_t kInPlaceTiles = 2, kInPlaceNearTiles = 12;
constexpr int64_t kNearBytes = 2048, kInPlaceBytes = 64 * 1024;

/// Up to so many bytes A is read as it lies also where its columns are contiguous.
constexpr int64_t kUnpackedBytes = 256 * 1024;

/// What transposing an element while packing takes, in multiply-adds, and the least depth of
/// products whose results are transposed instead.
constexpr int64_t kTransposeWork = 6, kTurnedDepth = 160;

/// Products of up to so many rows stream B (gemm_rows.h): their sums and a square of B fill the
/// registers.
constexpr int kFewRows = kTileRows == 12 ? 8 : 4;

/// Below this many multiply-adds a second thread costs more than it brings (0.3 us a region); the
/// second for products of one row, which take longer for the same work.
constexpr int64_t kGemmSerialWork = 150'000, kRowSerialWork = 40'000;

/// Chunks per thread, and the most multiply-adds of one (50 us): small enough that a thread whose
/// core is taken away is not waited for. The least are 1 us.
constexpr int64_t kChunksPerThread = 8, kChunkWork = 3'000'000, kLeastChunkWork = 60'000;

/// Convolution: a tile is kConvRows<v> pixels x v vectors of output channels, or kConvWeightRows<v>
/// input channels x v vectors for weight gradients. 12 rows of one vector keep two FMA pipes busy
/// (latency 4), and 12 is how many pixels' pointers stay in registers; weight gradients read all
/// rows through one pointer, so that 30 rows fill the registers.
constexpr int kConvVectors = kTileRows == 12 ? 4 : 2;
template <int kVectors>
constexpr int kConvRows = kVectors == 1                        ? 12
                          : kVectors == 2 && kConvVectors == 2 ? 6
                          : kVectors == 2                      ? 12
                          : kVectors == 3                      ? 8
                                                               : 6;
/// Rows of tiles of pixels at even steps, which share a pointer by threes: some more of one vector
/// load less per multiply-add (16 channels of 3x3 on 32x32: 5 % faster; 30 rows lose as much).
template <int kVectors>
constexpr int kConvLineRows = kVectors == 1 && kConvVectors == 4 ? 16 : kConvRows<kVectors>;
template <int kVectors>
constexpr int kConvWeightRows = kVectors == 1 && kConvVectors == 4 ? 30 : kConvRows<kVectors>;

/// Pixels per block of a convolution, and of the lowest: multiples of the row counts. A panel of
/// weights is read once per block, and eight tiles of 6 hide its way from L3.
constexpr int kConvBlock = 48, kLeastConvBlock = 24;
static_assert(kLeastConvBlock >= kConvLineRows<1>, "a piece of a line has a tile");

/// Pixels of a depthwise tile, in each of two rows: 14 sums, 6 weights and x; with 16 registers 8.
constexpr int kDepthwisePixels = kTileRows == 12 ? 7 : 4;

/// Bytes of what a thread converts of depthwise layers in C order: a band of rows stays in L2 (half
/// as many bytes lost 30 % on 112x112), and small images take several blocks of channels.
constexpr int64_t kDepthwiseBandBytes = 192 * 1024, kDepthwiseGroupBytes = 32 * 1024;

/// Taps whose pixel pointers are kept at a time, on the stack: 7x7 in one go.
constexpr int kConvTableTaps = 49;

/// Below so many input channels weight gradients read x from a padded copy: taps along a row become
/// one run.
constexpr int kConvFewChannels = 32;

}  // namespace brasa::cpu::BRASA_ISA

#endif
