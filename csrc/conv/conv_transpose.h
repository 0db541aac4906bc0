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
      for (int i = 0; i < kCount; ++i) v[i] = load(from + i * step + j);
      transpose<T>(v);
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
