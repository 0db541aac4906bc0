// Products of few rows: every element of B is used once or a few times, so reading B is all there
// is. It is read once, in long runs, and fetched ahead into L2 (prefetches into L1 wait for its few
// fill buffers: 28 GB/s of B where L2's give 36). The sums wait in registers or in L1 meanwhile.
// Measured, 4096 x 4096, where plain reading gives 42 GB/s: one row 40 GB/s, eight 30, with
// B (n, k) 37 and 29. Lost: blocks of K shared out between the threads, which makes every stream
// longer (36); a tile at a time down all of K, with 256 bytes of each row (16).
#pragma once

#include "core/elementwise.h"
#include "matmul/gemm_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Columns of one strip: its sums, 16 KiB a row, stay near while rows of B stream past. Longer
/// strips read B in longer runs (1024 columns: 10 % slower from DRAM).
template <class T> constexpr int64_t kRowStrip = 16 * 1024 / int64_t(sizeof(T));

/// The same for several rows, and from one row of sums to the next: rows a power of two apart would
/// share a set of L1.
template <class T> constexpr int64_t kFewStrip = kRowStrip<T> / 2;
template <class T> constexpr int64_t kFewStride = kFewStrip<T> + kLanes<T>;

/// kRows rows of A with one block of K of B; `b` begins at the strip.
template <class T> struct FewRows {
  const T* a;
  int64_t a_row, a_depth;
  const T* b;
  int64_t b_step;  ///< from one contiguous row (or column) of B to the next
  int64_t depth;
};

// ------------------------------------------------------------------------- contiguous rows of B

/// sum[j] = the chain over k of a[k] b[k, j], eight rows of B at a time; the next are fetched.
template <class T> static void add_row(const FewRows<T>& f, int64_t columns, T* sum) {
  constexpr int kWidth = kLanes<T>, kSteps = 8;
  map_range(0, columns, [] { return Vec<T>{}; }, sum);
  const T* b = f.b;
  int64_t p = 0;
  for (; p + kSteps <= f.depth; p += kSteps, b += kSteps * f.b_step) {
    Vec<T> x[kSteps];
    for (int i = 0; i < kSteps; ++i) x[i] = broadcast(f.a[(p + i) * f.a_depth]);
    for (int64_t j = 0; j < columns; j += kWidth) {
      const int64_t live = columns - j;
      const auto read = [=](const T* from) {
        return live >= kWidth ? load(from) : load_partial(from, live);
      };
      Vec<T> total = read(sum + j);
#pragma GCC unroll 8
      for (int i = 0; i < kSteps; ++i) {
        __builtin_prefetch(b + (kSteps + i) * f.b_step + j, 0, 2);
        total = fma(x[i], read(b + i * f.b_step + j), total);
      }
      if (live >= kWidth)
        store(sum + j, total);
      else
        store_partial(sum + j, total, live);
    }
  }
  for (; p < f.depth; ++p, b += f.b_step) {
    const Vec<T> x = broadcast(f.a[p * f.a_depth]);
    map_range(0, columns, [=](Vec<T> s, Vec<T> b0) { return fma(x, b0, s); }, sum, sum, b);
  }
}

/// Rows of B that a tile of sums goes down at a time before the next tile does, and its width.
/// More rows of A hide a longer way to L2 and read fewer sums again.
constexpr int64_t few_steps(int rows) {
  return rows <= 4 ? 8 : 32;
}
constexpr int few_vectors(int rows) {
  return kTileRows == 12 ? (rows <= 4 ? 2 : 3) : rows <= 4 ? 2 : 1;
}

/// A tile of sums continues its chains over `steps` rows of B from `begin`; `live` columns.
template <class T, int kRows, int kVectors>
static void continue_chains(const FewRows<T>& f, int64_t begin, int64_t steps, int64_t column,
                            int64_t live, T* sum) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> total[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      total[i][v] = begin ? load(sum + i * kFewStride<T> + column + v * kWidth) : Vec<T>{};
  }
  const T *a = f.a + begin * f.a_depth, *b = f.b + begin * f.b_step + column;
  const T* ahead = b + few_steps(kRows) * f.b_step;
  for (int64_t p = 0; p < steps; ++p, a += f.a_depth, b += f.b_step, ahead += f.b_step) {
    Vec<T> x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(ahead + v * kWidth, 0, 1);
      x[v] = kVectors > 1 || live >= kWidth ? load(b + v * kWidth) : load_partial(b, live);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> a_vector = broadcast(a[i * f.a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[i][v] = fma(a_vector, x[v], total[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      store(sum + i * kFewStride<T> + column + v * kWidth, total[i][v]);
  }
}

/// sum[i, j] = the chains over the block, for kRows rows; whole vectors are written.
template <class T, int kRows>
static void add_few_rows(const FewRows<T>& f, int64_t columns, T* sum) {
  constexpr int kVectors = few_vectors(kRows);
  constexpr int64_t kWidth = kLanes<T>, kTile = kVectors * kWidth;
  for (int64_t p = 0; p < f.depth || p == 0; p += few_steps(kRows)) {
    const int64_t steps = at_most(few_steps(kRows), f.depth - p);
    int64_t j = 0;
    for (; j + kTile <= columns; j += kTile)
      continue_chains<T, kRows, kVectors>(f, p, steps, j, kTile, sum);
    for (; j < columns; j += kWidth) continue_chains<T, kRows, 1>(f, p, steps, j, columns - j, sum);
  }
}

/// One strip: all blocks of K, added in order.
template <class T, int kRows>
static void multiply_by_rows(const Product<T>& g, int64_t begin, int64_t columns) {
  alignas(64) T sum[kRows == 1 ? kRowStrip<T> : kRows * kFewStride<T>];
  for (int64_t block = 0; block < g.plan.blocks; ++block) {
    const DepthBlock d = depth_block(g, block);
    const FewRows<T> f{g.a + d.a_offset,         g.p.a_row,   g.p.a_depth,
                       g.b + d.b_offset + begin, g.p.b_depth, d.depth};
    if constexpr (kRows == 1)
      add_row(f, columns, sum);
    else
      add_few_rows<T, kRows>(f, columns, sum);
    for (int64_t i = 0; i < kRows; ++i) {
      T *c = g.c + i * g.p.n + begin, *row = sum + i * kFewStride<T>;
      if (d.first)
        map_range(0, columns, [](Vec<T> x) { return x; }, c, row);
      else
        map_range(0, columns, [](Vec<T> x, Vec<T> y) { return x + y; }, c, c, row);
    }
  }
}

// ---------------------------------------------------------------------- contiguous columns of B

/// Fetches a square of kLanes columns, `depth` deep, a KiB of a column per step of kLanes: as many
/// lines as a step uses.
template <class T> class Ahead {
 public:
  Ahead(const T* square, int64_t b_column, int64_t depth) : column_(square) {
    const int64_t steps = ceil_div(depth, kLanes<T>);
    parts_ = ceil_div(steps, kLanes<T>);
    stride_ = b_column * at_least(1, kLanes<T> / steps);
  }
  __attribute__((always_inline)) void fetch() {
    constexpr int kLines = kVectorBytes<T> * kLanes<T> / 64;
    const T* from = column_ + part_ * kLanes<T> * kLanes<T>;
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(from + i * (64 / int64_t(sizeof(T))), 0, 1);
    if (++part_ < parts_) return;
    part_ = 0;
    column_ += stride_;
  }

 private:
  const T* column_;
  int64_t stride_, parts_, part_ = 0;
};

/// The chains over k of up to a vector of columns of B (a linear layer's weight): squares of B are
/// transposed in registers, so that each chain keeps to its lane. `next` is fetched.
template <class T, int kRows>
BRASA_INLINE void add_columns(const FewRows<T>& f, int64_t columns, const T* next, Vec<T>* total) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows] = {};
  Ahead<T> ahead(next, f.b_step, at_least(f.depth, 1));
  const auto part = [&](int64_t begin, int64_t steps) {
    Vec<T> r[kWidth];
    load_transposed(f.b + begin, f.b_step, columns, steps, r);
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < kRows; ++i)
        sum[i] = fma(broadcast(f.a[i * f.a_row + (begin + k) * f.a_depth]), r[k], sum[i]);
  };
  int64_t p = at_most(elements_before_boundary(f.b), f.depth);
  if (p > 0) part(0, p);
  for (; p + kWidth <= f.depth; p += kWidth) {
    Vec<T> r[kWidth];
    ahead.fetch();
    load_transposed(f.b + p, f.b_step, columns, kWidth, r);
    const T* a = f.a + p * f.a_depth;
#pragma GCC unroll 16
    for (int k = 0; k < kWidth; ++k, a += f.a_depth) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i] = fma(broadcast(a[i * f.a_row]), r[k], sum[i]);
    }
  }
  if (p < f.depth) part(p, f.depth - p);
  for (int i = 0; i < kRows; ++i) total[i] = sum[i];
}

/// All of K for one vector of columns, then the next.
template <class T, int kRows>
static void multiply_by_columns(const Product<T>& g, int64_t begin, int64_t columns) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t j = 0; j < columns; j += kWidth) {
    const T* square = g.b + (begin + j) * g.p.b_column;
    Vec<T> total[kRows] = {}, sum[kRows];
    DepthBlock d = depth_block(g, 0);
    for (int64_t block = 0; block < g.plan.blocks; ++block) {
      const FewRows<T> f{g.a + d.a_offset,    g.p.a_row,    g.p.a_depth,
                         square + d.b_offset, g.p.b_column, d.depth};
      const bool first = d.first, last = d.last;
      d = depth_block(g, last ? 0 : block + 1);
      const T* next = square + d.b_offset + (last ? kWidth * g.p.b_column : 0);
      add_columns<T, kRows>(f, columns - j, next, sum);
      for (int i = 0; i < kRows; ++i) total[i] = first ? sum[i] : total[i] + sum[i];
    }
    for (int i = 0; i < kRows; ++i) {
      T* c = g.c + i * g.p.n + begin + j;
      if (columns - j >= kWidth)
        store(c, total[i]);
      else
        store_partial(c, total[i], columns - j);
    }
  }
}

// ------------------------------------------------------------------------------------------ strips

template <class T> using StripKernel = void (*)(const Product<T>&, int64_t, int64_t);

template <class T, int... I>
static constexpr StripKernel<T> pick_strip(int64_t rows, bool by_rows, Indices<I...>) {
  constexpr StripKernel<T> kByRows[] = {&multiply_by_rows<T, I + 1>...};
  constexpr StripKernel<T> kByColumns[] = {&multiply_by_columns<T, I + 1>...};
  return by_rows ? kByRows[rows - 1] : kByColumns[rows - 1];
}

/// Columns [begin, end) of a product of at most kFewRows rows.
template <class T> static void multiply_strip(const Product<T>& g, int64_t begin, int64_t end) {
  using Rows = typename MakeIndices<kFewRows>::type;
  pick_strip<T>(g.p.m, g.p.b_column == 1, Rows{})(g, begin, end - begin);
  if (g.epilogue.epilogue.is_trivial()) return;
  for (int64_t i = 0; i < g.p.m; ++i) {
    const int64_t at = i * g.p.n + begin;
    g.epilogue.apply(g.c + at, end - begin, begin, g.offset + at);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
