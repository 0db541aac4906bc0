// Matrices of kLanes x kLanes elements transposed in registers: log2(kLanes) rounds of interleaving
// vector i with vector i + kLanes / 2 turn the address (row, column) into (column, row).
#pragma once

#include "conv/conv_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// a0 b0 a1 b1 ... of the lower halves of a and b, and of the upper ones.
template <class T> BRASA_INLINE Vec<T> interleave_low(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else
    return __builtin_shufflevector(a, b, 0, 2);
}
template <class T> BRASA_INLINE Vec<T> interleave_high(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else
    return __builtin_shufflevector(a, b, 1, 3);
}

/// Transposes the kLanes vectors at v.
template <class T> BRASA_INLINE void transpose(Vec<T>* v) {
  constexpr int kCount = kLanes<T>;
  if constexpr (kCount > 1) {
#pragma GCC unroll 4
    for (int round = 1; round < kCount; round *= 2) {
      Vec<T> mixed[kCount];
#pragma GCC unroll 8
      for (int i = 0; i < kCount / 2; ++i) {
        mixed[2 * i] = interleave_low<T>(v[i], v[i + kCount / 2]);
        mixed[2 * i + 1] = interleave_high<T>(v[i], v[i + kCount / 2]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) v[i] = mixed[i];
    }
  }
}

#if defined(__AVX512F__)
/// The same within each 128 bits, and the lower or upper pairs of a and b there.
BRASA_INLINE Vec<float> interleave_low_quarters(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
BRASA_INLINE Vec<float> interleave_high_quarters(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
BRASA_INLINE Vec<float> join_low_pairs(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
BRASA_INLINE Vec<float> join_high_pairs(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
#endif

/// The kLanes columns of kLanes rows that are `step` apart.
template <class T> BRASA_INLINE void load_columns(const T* from, int64_t step, Vec<T>* v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    // Vector 4j + i: columns 4j to 4j + 3 of rows i, i + 4, i + 8 and i + 12, gathered by the load
    // ports; what is left are 2 rounds of shuffles within 128 bits, of 4 across. A square then
    // takes the time of a copy, 35 to 50 % less (measured from L2 to L2).
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4) {
      Vec<T> row[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const T* at = from + i * step + j;
        __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(at));
        four = _mm512_mask_broadcast_f32x4(four, 0x00f0, _mm_loadu_ps(at + 4 * step));
        four = _mm512_mask_broadcast_f32x4(four, 0x0f00, _mm_loadu_ps(at + 8 * step));
        row[i] = (Vec<T>)_mm512_mask_broadcast_f32x4(four, 0xf000, _mm_loadu_ps(at + 12 * step));
      }
      const Vec<T> low01 = interleave_low_quarters(row[0], row[1]);
      const Vec<T> high01 = interleave_high_quarters(row[0], row[1]);
      const Vec<T> low23 = interleave_low_quarters(row[2], row[3]);
      const Vec<T> high23 = interleave_high_quarters(row[2], row[3]);
      v[j] = join_low_pairs(low01, low23);
      v[j + 1] = join_high_pairs(low01, low23);
      v[j + 2] = join_low_pairs(high01, high23);
      v[j + 3] = join_high_pairs(high01, high23);
    }
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) v[i] = load(from + i * step);
  transpose<T>(v);
}

/// Squares ahead of the one being transposed whose rows are fetched: too few fit in flight
/// otherwise (from DRAM: 10 % of a whole 1x1 layer; from L2 it costs nothing).
constexpr int kTransposeAhead = 4;

/// Calls put(j, column j) for columns j < columns, in order, of up to kLanes rows that are `step`
/// apart; the vector has zeros beyond the rows.
template <class T, class F>
static inline void transpose_rows(const T* from, int64_t step, int64_t rows, int64_t columns,
                                  const F& put) {
  constexpr int kCount = kLanes<T>;
  for (int64_t j = 0; j < columns; j += kCount) {
    Vec<T> v[kCount];
    const int64_t live = smaller(columns - j, kCount);
    if (rows >= kCount && live == kCount) {
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i)
        __builtin_prefetch(from + i * step + j + kTransposeAhead * kCount);
      load_columns(from + j, step, v);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) put(j + i, v[i]);
      continue;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i)
      v[i] = i < rows ? load_live(from + i * step + j, live) : Vec<T>{};
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i)
      if (i < live) put(j + i, v[i]);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
