// 3xTF32: products of float32 on tensor cores, with float32's accuracy.
//
//   x = hi + lo + r: hi = tf32(x), lo = tf32(x - hi), |lo| <= 2^-11 |x|, |r| <= 2 u |x|, u = 2^-24
//   a b ~ lo_a hi_b + hi_a lo_b + hi_a hi_b
//
// A pass writes both operands as the tensor cores then read them, along the depth, in lines of 128
// bytes: 16 hi, then the 16 lo of the same elements. A line is 4 steps of 8 and is multiplied in 6
// products of steps, the small ones first. All else (copies, stages, clusters, parts of the depth,
// epilogues) is that of a product in tf32 of twice the depth.
//
// Error. With S = sum |a b|: r costs 4 u S, lo_a lo_b, which is left out, another 4. A tensor core
// cuts what it adds to the exponent of the largest term, at worst without a spare bit: t terms lose
// (t + 2) 2^-23 of the sum of their absolute values. In a chain over all of K that would be 7.5 K u
// S, and always towards zero; so a line has sums of its own, 48 u S in the two large products
// whether the cores add 4 terms at a time or 8, next to nothing in the small ones that come first,
// and lines are added up in float32, rounded: K / 16 more, in however many parts.
// Together (58 + K / 16) u S. From K = 64 on that is less than the (K + 2) u S of a chain of FMA;
// what is less deep stays there.
//
// Infinities and NaN give what float32 gives: such an x is hi = +-1, lo = x, so no infinity meets
// the zero that lo mostly is. Where rounding would overflow, hi is cut (r <= 4 u). Products within
// 1 in 1000 of the largest float may overflow, and what overflows may be NaN: its small products
// have either sign. Below 2^-103 lo has fewer bits, below 2^-126 it may be 0; x is below 2^-137.
//
// Counted, on an H200 (132 x 1.75 GHz, 4 TB/s): a line of 128 x 128 results is 6 x 128 cycles of
// tensor cores, 845 as tf32 was measured, beside 38 bytes a cycle from L2 (a line is read once for
// three products; as one product of depth 3 K it would be 58, more than L2 gives) and 64 additions
// in each quarter, while the other warpgroup multiplies: some 900. The pass moves 12 bytes an
// element. Predicted, pass + product, not measured on a card yet; FMA, measured:
//   4096 x 4096 x 4096     120 + 1060 us     3020 us
//   1024 x 1024 x 1024       9 +   20          79
//   4096 x  768 x 2304      20 +  130         439
//    128 x 9216 x 4096     145 +   90         396
//
// Not taken: 128 x 256 results, whose two sets of sums need 256 registers. Splitting in registers:
// B of wgmma is in shared memory and would have to go back there between two barriers; mma.sync has
// both in registers, but there, too, every block would split what it reads (3 instructions an
// element), to save a pass that is a tenth of a large product.
#pragma once

#include "core/device.cuh"
#include "core/ptx_mma.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

constexpr int kSplitLine = 16;     ///< elements in a line, which holds hi and lo of each
constexpr int kSplitProducts = 6;  ///< of the steps of a line

/// The steps that product `i` of a line multiplies: 0 and 1 are hi, 2 and 3 lo.
BRASA_HOST_DEVICE_FN constexpr int split_left(int i) {
  return i < 2 ? i + 2 : i % 2;
}
BRASA_HOST_DEVICE_FN constexpr int split_right(int i) {
  return i / 2 == 1 ? i % 2 + 2 : i % 2;
}

/// What a depth of k becomes: whole lines.
inline int64_t split_depth(int64_t k) {
  return simt::ceil_div<int64_t>(k, kSplitLine) * 2 * kSplitLine;
}

struct SplitFloat {
  float hi, lo;
};

BRASA_DEVICE_FN SplitFloat split_tf32(float x) {
  constexpr uint32_t kTf32 = ~0x1fffu, kSign = 0x80000000u, kInfinity = 0x7f800000u;
  constexpr uint32_t kOne = 0x3f800000u;
  const uint32_t bits = __float_as_uint(x);
  if ((bits & ~kSign) >= kInfinity) return {__uint_as_float((bits & kSign) | kOne), x};
  uint32_t hi = simt::to_tf32(x) & kTf32;
  if ((hi & ~kSign) == kInfinity) hi = bits & kTf32;
  const float rest = x - __uint_as_float(hi);
  return {__uint_as_float(hi), __uint_as_float(simt::to_tf32(rest) & kTf32)};
}

/// Whether a product is faster this way than in FMA, on such a GPU: cycles of its multiprocessors
/// in 1/10000 of a multiply-add, against the pass, which memory bounds, and two launches more.
/// Cores of other generations are not taken: some multiply tf32 no faster than float32.
inline bool split_pays(const MatmulParams& p, int capability, int multiprocessors) {
  constexpr int64_t kLeastDepth = 64, kLeastSide = 64;
  constexpr double kSaved = 0.0074, kFromMemory = 2250, kBytes = 12, kLaunches = 6000;
  if (capability != 80 && capability != 90) return false;
  if (p.k < kLeastDepth || p.m < kLeastSide || p.n < kLeastSide) return false;
  const double depth = double(p.k) * double(p.sum.count) * double(p.batch.count);
  const double saved = kSaved * double(p.m) * double(p.n) * depth / multiprocessors;
  return saved > kBytes * double(p.m + p.n) * depth / kFromMemory + kLaunches;
}

}  // namespace brasa::cuda
