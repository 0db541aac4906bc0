// Products of one row: every element of B is used once, so reading B is all there is. The sums of a
// strip of columns wait in L1 or in registers while B streams past.
#pragma once

#include "core/elementwise.h"
#include "matmul/gemm_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Columns of one strip of a row: its sums, 16 KiB, stay in L1 while rows of B stream past. Longer
/// strips read B in longer runs (1024 columns: 10 % slower from DRAM).
template <class T> constexpr int64_t kRowStrip = 16 * 1024 / int64_t(sizeof(T));

/// sum[j] = the chain over k of a[k] b[k, j], four rows of B at a time.
template <class T>
static void add_rows(const T* a, int64_t a_depth, const T* b, int64_t b_depth, int64_t depth,
                     int64_t columns, T* sum) {
  map_range(0, columns, [] { return Vec<T>{}; }, sum);
  int64_t p = 0;
  for (; p + 4 <= depth; p += 4, b += 4 * b_depth) {
    Vec<T> x[4];
    for (int i = 0; i < 4; ++i) x[i] = broadcast(a[(p + i) * a_depth]);
    map_range(
        0, columns,
        [=](Vec<T> s, Vec<T> b0, Vec<T> b1, Vec<T> b2, Vec<T> b3) {
          return fma(x[3], b3, fma(x[2], b2, fma(x[1], b1, fma(x[0], b0, s))));
        },
        sum, sum, b, b + b_depth, b + 2 * b_depth, b + 3 * b_depth);
  }
  for (; p < depth; ++p, b += b_depth) {
    const Vec<T> x = broadcast(a[p * a_depth]);
    map_range(0, columns, [=](Vec<T> s, Vec<T> b0) { return fma(x, b0, s); }, sum, sum, b);
  }
}

/// The same where the columns of B are contiguous (a linear layer's weight): squares of B are
/// transposed in registers, so that each column's chain keeps to its lane.
template <class T>
static void add_columns(const T* a, int64_t a_depth, const T* b, int64_t b_column, int64_t depth,
                        int64_t columns, T* sum) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t j = 0; j < columns; j += kWidth) {
    Vec<T> total{};
    for (int64_t p = 0; p < depth; p += kWidth) {
      Vec<T> r[kWidth];
      load_transposed(b + j * b_column + p, b_column, columns - j, depth - p, r);
      if (depth - p >= kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) total = fma(broadcast(a[(p + i) * a_depth]), r[i], total);
      } else {
        for (int i = 0; i < depth - p; ++i)
          total = fma(broadcast(a[(p + i) * a_depth]), r[i], total);
      }
    }
    if (columns - j >= kWidth)
      store(sum + j, total);
    else
      store_partial(sum + j, total, columns - j);
  }
}

/// Columns [begin, end) of a product of one row.
template <class T> static void multiply_row(const Product<T>& g, int64_t begin, int64_t end) {
  alignas(64) T sum[kRowStrip<T>];
  const int64_t columns = end - begin;
  T* c = g.c + begin;
  for (int64_t block = 0; block < g.plan.blocks; ++block) {
    const DepthBlock d = depth_block(g, block);
    const T *a = g.a + d.a_offset, *b = g.b + d.b_offset + begin * g.p.b_column;
    T* const target = d.first ? c : sum;
    if (g.p.b_column == 1)
      add_rows(a, g.p.a_depth, b, g.p.b_depth, d.depth, columns, target);
    else
      add_columns(a, g.p.a_depth, b, g.p.b_column, d.depth, columns, target);
    if (!d.first) map_range(0, columns, [](Vec<T> x, Vec<T> y) { return x + y; }, c, c, sum);
  }
  if (!g.epilogue.epilogue.is_trivial()) g.epilogue.apply(c, columns, begin, g.offset + begin);
}

}  // namespace brasa::cpu::BRASA_ISA
