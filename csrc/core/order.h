// What fixes rounding: constants of this file change results, those of tiles.h only speed. They
// depend on shapes alone; never on the batch size, the instruction set, a cache or the number of
// threads.
#pragma once

#include <cstdint>

namespace brasa::order {

/// Matrix products add up K in blocks: one FMA chain per block, blocks added in order. 2 KiB of a
/// column: 512 float32 keep a packed block in L1 and L2; 256 cost 3-5 % at 2048, because the result
/// is read once more per block.
template <class T> constexpr int64_t kGemmDepth = 2048 / int64_t(sizeof(T));

/// Blocks of K are of even size: 513 is 256 + 257, not 512 + 1. K = 0 is one empty block.
template <class T> static constexpr int64_t gemm_blocks(int64_t k) {
  return k == 0 ? 1 : (k + kGemmDepth<T> - 1) / kGemmDepth<T>;
}
/// The first k of a block; gemm_block_begin(k, blocks, blocks) is k. The first k % blocks blocks
/// are one longer.
static inline constexpr int64_t gemm_block_begin(int64_t k, int64_t blocks, int64_t block) {
  const int64_t longer = k % blocks;
  return k / blocks * block + (block < longer ? block : longer);
}

/// Gradients of vectors (bias, scale, shift) sum rows in blocks of this many: each block in order,
/// the blocks in order.
constexpr int64_t kRowBlock = 128;

/// Sums over the elements of a channel in C order go through blocks of about this many: whole
/// planes where several fit, else parts of one. 16 KiB of float32, so that a second pass reads L1.
constexpr int64_t kPlaneBlock = 4096;

/// Weight gradients of convolutions sum over blocks of whole image rows; a block holds about this
/// many elements of x and dy together (512 KiB of float32: half of a common L2), at least one row,
/// and at most kConvBlockRows rows, which are listed on the stack.
constexpr int64_t kConvBlockElements = 128 * 1024;
constexpr int64_t kConvBlockRows = 128;

/// Blocks are dealt to at most this many parts, summed apart and added in order, so that layers of
/// few weights keep every core busy; fewer parts where their weights exceed kConvPartElements.
constexpr int64_t kConvParts = 16;
constexpr int64_t kConvPartElements = 32 * 1024;

/// The same for bias gradients, which are cheap to keep apart.
constexpr int64_t kConvBiasParts = 64;

/// Up to so many input channels dx is projected on all taps first (conv/conv_project.h): half the
/// lanes of a vector of 16 would otherwise be empty.
constexpr int64_t kConvProjectedChannels = 8;

}  // namespace brasa::order
