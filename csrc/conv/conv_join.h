// A few planes of pixels joined to pixels of a few channels: vector by vector, by permutes, where a
// transposed square would be mostly empty.
#pragma once

#include "conv/conv_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Most channels that are joined: 8 vectors of pixels fit beside the result and the indices.
constexpr int kJoinedChannels = 8;

#if defined(__AVX512F__)
/// Where the elements of 16 pixels x kOutputs channels come from: vector v's element e from the
/// pair of outputs whose mask has bit e, at index from[v][e] of its 32.
template <int kOutputs> struct JoinTable {
  static constexpr int kPairs = (kOutputs + 1) / 2;
  alignas(64) int32_t from[kOutputs][16] = {};
  uint16_t in_pair[kOutputs][kPairs] = {};

  constexpr JoinTable() {
    for (int i = 0; i < 16 * kOutputs; ++i) {
      const int pixel = i / kOutputs, output = i % kOutputs;
      from[i / 16][i % 16] = pixel + 16 * (output % 2);
      in_pair[i / 16][output / 2] |= uint16_t(1 << i % 16);
    }
  }
};

/// Inlined, or the vectors would pass through memory: a sixth of a layer of one channel.
template <int kOutputs>
BRASA_INLINE void join_by_permutes(const Vec<float>* in, int64_t live, float* y) {
  static constexpr JoinTable<kOutputs> kTable;
#pragma GCC unroll 8
  for (int v = 0; v < kOutputs; ++v) {
    const __m512i from = _mm512_load_si512(kTable.from[v]);
    __m512 out = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < kTable.kPairs; ++i) {
      const int second = 2 * i + 1 < kOutputs ? 2 * i + 1 : 2 * i;
      const __m512 pair = _mm512_permutex2var_ps((__m512)in[2 * i], from, (__m512)in[second]);
      out = i ? _mm512_mask_blend_ps(kTable.in_pair[v][i], out, pair) : pair;
    }
    store_live(y + v * 16, (Vec<float>)out, live * kOutputs - v * 16);
  }
}
#endif

/// y[pixel][output] = in[output][pixel] of the first `live` pixels of a vector.
template <class T, int kOutputs>
BRASA_INLINE void join_outputs(const Vec<T>* in, int64_t live, T* y) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return join_by_permutes<kOutputs>(in, live, y);
#endif
  constexpr int kWidth = kLanes<T>;
  T planes[kOutputs * kWidth];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) store(planes + o * kWidth, in[o]);
  for (int64_t i = 0; i < smaller(live, kWidth); ++i)
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) *y++ = planes[o * kWidth + i];
}

/// to[w * kChannels + c] = from[c * plane + w] for w < width.
template <class T, int kChannels>
static void join_row(const T* from, int64_t plane, int64_t width, T* to) {
  for (int64_t w = 0; w < width; w += kLanes<T>, to += kLanes<T> * kChannels) {
    Vec<T> in[kChannels];
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) in[c] = load_live(from + c * plane + w, width - w);
    join_outputs<T, kChannels>(in, width - w, to);
  }
}

template <class T, int kChannels = kJoinedChannels>
static void join_planes(const T* from, int64_t plane, int64_t channels, int64_t width, T* to) {
  if constexpr (kChannels > 1) {
    if (channels < kChannels)
      return join_planes<T, kChannels - 1>(from, plane, channels, width, to);
  }
  join_row<T, kChannels>(from, plane, width, to);
}

}  // namespace brasa::cpu::BRASA_ISA
