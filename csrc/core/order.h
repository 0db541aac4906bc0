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

/// Sums along memory (the rows of layer norm, the planes of batch norm) have so many virtual lanes:
/// four chains of additions with vectors of 16, which is what hides their latency.
constexpr int kRowLanes = 64;

/// Sums over the elements of a channel in C order go through blocks of about this many: whole
/// planes where several fit, else parts of one. 16 KiB of float32, so that a second pass reads L1.
constexpr int64_t kPlaneBlock = 4096;

/// Statistics of a block sum distances from the mean of its first eighth, of one more where it does
/// not divide (norm/norm.h).
constexpr int64_t kHeadPart = 8;

/// Weight and bias gradients of convolutions sum over parts of dy's rows, counted over images, and
/// within a part over blocks of rows: parts and blocks are even, and each is added to the ones
/// before it in order. A block holds about this many elements of x and dy together (256 KiB of
/// float32: the next one is fetched into L2 beside it), at least kConvBlockPixels pixels (fewer
/// leave the sums too little work per visit), and at most kConvBlockRows rows, which are listed on
/// the stack. A part of up to kConvWholeElements is one block.
constexpr int64_t kConvBlockElements = 64 * 1024, kConvWholeElements = 128 * 1024;
constexpr int64_t kConvBlockPixels = 128;
constexpr int64_t kConvBlockRows = 128;

/// Parts are summed apart so that layers of few weights keep every core busy: at most this many,
/// fewer where their weights together exceed kConvPartElements (4 MiB of float32) or a part would
/// have fewer than kConvPartPixels pixels.
constexpr int64_t kConvParts = 16;
constexpr int64_t kConvPartElements = 1024 * 1024;
constexpr int64_t kConvPartPixels = 256;

/// Bias gradients of fewer channels than this sum every 16th pixel of a block in a chain of its
/// own: a narrow dy is then read in whole vectors, and additions need not wait for one another.
constexpr int64_t kConvBiasChannels = 128;
constexpr int64_t kConvBiasChains = 16;

/// Images of one channel with up to so many output channels, in rows of at least so many pixels,
/// have vectors over pixels in their weight gradient (conv/conv_narrow.h), of 16 virtual lanes, if
/// the kernel has at most so many taps; their blocks hold about so many elements, to stay in L1.
constexpr int64_t kConvNarrowOutputs = 8, kConvNarrowWidth = 8, kConvNarrowTaps = 64;
constexpr int64_t kConvNarrowBlockElements = 8 * 1024;
constexpr int64_t kConvNarrowLanes = 16;

/// Up to so many input channels dx is projected on all taps first (conv/conv_project.h): half the
/// lanes of a vector of 16 would otherwise be empty.
constexpr int64_t kConvProjectedChannels = 8;

/// Convolutions of one tap are matrix products (conv/conv_product.h) where sums have at least so
/// many terms and the result so many channels, and in the forward pass images at most so many
/// pixels or the weights at least so many elements. Weight gradients, whose sums run over the
/// batch's pixels, are up to so many of these, and up to the second number with many weights.
constexpr int64_t kConvProductDepth = 128, kConvProductColumns = 48;
constexpr int64_t kConvProductImage = 64, kConvProductWeights = 512 * 1024;
constexpr int64_t kConvProductSum = 512, kConvProductLongSum = 2048;

/// Attention walks over keys in blocks of so many: a block's products with the values are one chain
/// per element, and blocks are joined in order. Gradients of keys and values sum over queries in
/// blocks of so many. Where attention is causal, a block of queries sees the keys up to its end.
constexpr int64_t kAttentionQueries = 64, kAttentionKeys = 64;

}  // namespace brasa::order
