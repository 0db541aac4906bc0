// Sizes that decide speed and nothing else, per instruction set, each with its reason. What changes
// rounding stands in core/order.h.
#pragma once

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

// ---- Convolution: a tile of kConvRows<v> pixels (or taps x channels) x v vectors of output
// channels

/// 32 registers hold 24 sums, 4 weights and a broadcast; 16 registers hold 12, 2 and 1.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kConvVectors = 4;
#else
constexpr int kConvVectors = 2;
#endif
/// 12 rows at one vector keep both FMA units busy (latency 4); 12 is also what pointers fit in
/// registers.
template <int kVectors>
constexpr int kConvRows = kVectors <= 2   ? (kConvVectors == 2 && kVectors == 2 ? 6 : 12)
                          : kVectors == 3 ? 8
                                          : 6;
/// Rows of the tile of a weight gradient, which reads them through one pointer.
template <int kVectors>
constexpr int kConvWeightRows = kVectors == 1 ? (kConvVectors == 2 ? 12 : 16) : kConvRows<kVectors>;
/// Pixels per block: a multiple of every row count. A panel of weights is read once per block, and
/// eight tiles of 6 hide its way from L3.
constexpr int kConvBlock = 48;
/// Taps whose pixel pointers are kept at a time, on the stack: 7x7 in one go.
constexpr int kConvTableTaps = 49;
/// Below so many input channels a padded copy of x pays: taps along a row become one run of the
/// loop.
constexpr int kConvFewChannels = 32;

}  // namespace brasa::cpu::BRASA_ISA
