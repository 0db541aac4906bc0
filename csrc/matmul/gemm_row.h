// Products of one row: every element of B is used once, so reading B is all there is. The sums of a
// strip of columns wait in L1 or in registers while B streams past.
#pragma once

#include "core/elementwise.h"
#include "matmul/gemm_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Columns of one strip of a row: its sums, 16 KiB, stay in L1 while rows of B stream past. Longer
/// strips read B in longer runs (1024 columns: 10 % slower from DRAM).
template <class T> constexpr int64_t kRowStrip = 16 * 1024 / int64_t(sizeof(T));

/// sum[j] = the chain over k of a[k] b[k, j], four rows of B at a time; the next four are fetched.
template <class T>
static void add_rows(const T* a, int64_t a_depth, const T* b, int64_t b_depth, int64_t depth,
                     int64_t columns, T* sum) {
  constexpr int kWidth = kLanes<T>, kRows = 4;
  map_range(0, columns, [] { return Vec<T>{}; }, sum);
  int64_t p = 0;
  for (; p + kRows <= depth; p += kRows, b += kRows * b_depth) {
    Vec<T> x[kRows];
    for (int i = 0; i < kRows; ++i) x[i] = broadcast(a[(p + i) * a_depth]);
    for (int64_t j = 0; j < columns; j += kWidth) {
      const int64_t live = columns - j;
      const auto read = [=](const T* from) {
        return live >= kWidth ? load(from) : load_partial(from, live);
      };
      Vec<T> total = read(sum + j);
      for (int i = 0; i < kRows; ++i) {
        __builtin_prefetch(b + (kRows + i) * b_depth + j, 0, 2);
        total = fma(x[i], read(b + i * b_depth + j), total);
      }
      if (live >= kWidth)
        store(sum + j, total);
      else
        store_partial(sum + j, total, live);
    }
  }
  for (; p < depth; ++p, b += b_depth) {
    const Vec<T> x = broadcast(a[p * a_depth]);
    map_range(0, columns, [=](Vec<T> s, Vec<T> b0) { return fma(x, b0, s); }, sum, sum, b);
  }
}

/// Elements that the rows of a transposed B are fetched ahead, as each is a stream of its own
/// (lost: fetching the next vector of columns in one stream, which is 256 KiB ahead at 4096 rows).
template <class T> constexpr int64_t kRowAhead = 768 / int64_t(sizeof(T));

/// The chains over k of up to a vector of columns of B that are contiguous (a linear layer's
/// weight): squares of B are transposed in registers, so that each chain keeps to its lane.
template <class T>
BRASA_INLINE Vec<T> add_columns(const T* a, int64_t a_depth, const T* b, int64_t b_column,
                                int64_t depth, int64_t columns) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> total{};
  int64_t p = 0;
  for (; p + kWidth <= depth; p += kWidth) {
    Vec<T> r[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) __builtin_prefetch(b + i * b_column + p + kRowAhead<T>);
    load_transposed(b + p, b_column, columns, kWidth, r);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) total = fma(broadcast(a[(p + i) * a_depth]), r[i], total);
  }
  if (p < depth) {
    Vec<T> r[kWidth];
    load_transposed(b + p, b_column, columns, depth - p, r);
    for (int i = 0; i < depth - p; ++i) total = fma(broadcast(a[(p + i) * a_depth]), r[i], total);
  }
  return total;
}

/// Columns [begin, end) of a product of one row with contiguous rows of B.
template <class T>
static void multiply_by_rows(const Product<T>& g, int64_t begin, int64_t columns, T* c) {
  alignas(64) T sum[kRowStrip<T>];
  for (int64_t block = 0; block < g.plan.blocks; ++block) {
    const DepthBlock d = depth_block(g, block);
    add_rows(g.a + d.a_offset, g.p.a_depth, g.b + d.b_offset + begin, g.p.b_depth, d.depth, columns,
             d.first ? c : sum);
    if (!d.first) map_range(0, columns, [](Vec<T> x, Vec<T> y) { return x + y; }, c, c, sum);
  }
}

/// The same with contiguous columns: all of K for one vector of columns, then the next.
template <class T>
static void multiply_by_columns(const Product<T>& g, int64_t begin, int64_t columns, T* c) {
  for (int64_t j = 0; j < columns; j += kLanes<T>) {
    Vec<T> total{};
    for (int64_t block = 0; block < g.plan.blocks; ++block) {
      const DepthBlock d = depth_block(g, block);
      const T* b = g.b + d.b_offset + (begin + j) * g.p.b_column;
      const Vec<T> sum =
          add_columns(g.a + d.a_offset, g.p.a_depth, b, g.p.b_column, d.depth, columns - j);
      total = d.first ? sum : total + sum;
    }
    if (columns - j >= kLanes<T>)
      store(c + j, total);
    else
      store_partial(c + j, total, columns - j);
  }
}

template <class T> static void multiply_row(const Product<T>& g, int64_t begin, int64_t end) {
  const int64_t columns = end - begin;
  T* c = g.c + begin;
  if (g.p.b_column == 1)
    multiply_by_rows(g, begin, columns, c);
  else
    multiply_by_columns(g, begin, columns, c);
  if (!g.epilogue.epilogue.is_trivial()) g.epilogue.apply(c, columns, begin, g.offset + begin);
}

}  // namespace brasa::cpu::BRASA_ISA
