// Products of few rows: every element of B is used once or a few times, so reading B is all there
// is. It is read once, in long runs; the sums wait in registers or in L1 meanwhile.
// Measured, 4096 x 4096, where plain reading gives 77 GB/s: one row 77 (eight rows of B at a time
// are streams that the prefetchers follow; prefetches by hand compete with them for the fill
// buffers: 68, and from L3 107 instead of 173), with B (n, k) 51. There a square needs a stream per
// lane, which the prefetchers follow badly: fetching the same columns eight squares ahead gives 51,
// the next columns 46, nothing 48. Lost: blocks of K shared out between the threads, which makes
// every stream longer; a tile at a time down all of K, with 256 bytes of each row (a third);
// squares of 12 or 8 columns for fewer streams (4 to 15 % faster where memory is slow, as much
// slower elsewhere); columns copied to L1 by fours, then transposed (33).
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

/// sum[j] = the chain over k of a[k] b[k, j], eight rows of B at a time.
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
      for (int i = 0; i < kSteps; ++i) total = fma(x[i], read(b + i * f.b_step + j), total);
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

/// Squares ahead of the one in use that are fetched, of the same columns.
constexpr int64_t kSquaresAhead = 8;

/// sum[i] continues the chains of up to a vector of columns, f.b[j * f.b_step + k], over some k.
template <class T, int kRows>
BRASA_INLINE void add_part(const FewRows<T>& f, int64_t columns, int64_t begin, int64_t steps,
                           Vec<T>* sum) {
  Vec<T> r[kLanes<T>];
  load_transposed(f.b + begin, f.b_step, columns, steps, r);
  for (int k = 0; k < steps; ++k)
    for (int i = 0; i < kRows; ++i)
      sum[i] = fma(broadcast(f.a[i * f.a_row + (begin + k) * f.a_depth]), r[k], sum[i]);
}

/// The same over a square of kLanes columns; later ones are fetched.
template <class T, int kRows, bool kFetch>
BRASA_INLINE void add_square(const FewRows<T>& f, int64_t begin, Vec<T>* sum) {
  constexpr int kWidth = kLanes<T>;
  const T *b = f.b + begin, *a = f.a + begin * f.a_depth;
  Vec<T> r[kWidth];
#pragma GCC unroll 16
  for (int j = 0; j < kWidth; ++j) {
    if (kFetch) __builtin_prefetch(b + j * f.b_step + kSquaresAhead * kWidth);
    r[j] = load(b + j * f.b_step);
  }
  transpose<T>(r);
#pragma GCC unroll 16
  for (int k = 0; k < kWidth; ++k, a += f.a_depth) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) sum[i] = fma(broadcast(a[i * f.a_row]), r[k], sum[i]);
  }
}

/// How columns are taken: so many vectors of them at a time, and whether later squares are fetched.
template <int kG, bool kF> struct Columns {
  static constexpr int kGroups = kG;
  static constexpr bool kFetch = kF;
};

/// A larger B comes from memory and is fetched ahead. Of a smaller one a single row of A takes two
/// groups of columns at a time: one chain alone waits for itself (4 cycles per k). With more
/// streams memory is slower (4096 x 4096: 37 GB/s where one group gives 46).
constexpr int64_t kFarBytes = 16 << 20;

/// The chains over a block of K of the next columns of B (a linear layer's weight): squares of B
/// are transposed in registers, so that each chain keeps to its lane.
template <class T, int kRows, class Way>
BRASA_INLINE void add_columns(const FewRows<T>& f, int64_t columns, Vec<T> (*sum)[kRows]) {
  constexpr int64_t kWidth = kLanes<T>;
  int64_t p = 0, steps = at_most(elements_before_boundary(f.b), f.depth);
  if (steps == 0) steps = at_most(kWidth, f.depth);
  for (; p < f.depth; p += steps, steps = at_most(kWidth, f.depth - p)) {
#pragma GCC unroll 2
    for (int g = 0; g < Way::kGroups; ++g) {
      const int64_t live = at_most(columns - g * kWidth, kWidth);
      FewRows<T> group = f;
      group.b += g * kWidth * f.b_step;
      if (live == kWidth && steps == kWidth)
        add_square<T, kRows, Way::kFetch>(group, p, sum[g]);
      else if (live > 0)
        add_part<T, kRows>(group, live, p, steps, sum[g]);
    }
  }
}

/// All of K for some columns, then the next.
template <class T, int kRows, class Way>
static void multiply_by_columns(const Product<T>& g, int64_t begin, int64_t columns) {
  for (int64_t j = 0; j < columns; j += Way::kGroups * kLanes<T>) {
    Vec<T> total[Way::kGroups][kRows] = {};
    for (int64_t block = 0; block < g.plan.blocks; ++block) {
      const DepthBlock d = depth_block(g, block);
      const FewRows<T> f{g.a + d.a_offset, g.p.a_row,
                         g.p.a_depth,      g.b + d.b_offset + (begin + j) * g.p.b_column,
                         g.p.b_column,     d.depth};
      Vec<T> sum[Way::kGroups][kRows] = {};
      add_columns<T, kRows, Way>(f, columns - j, sum);
      for (int v = 0; v < Way::kGroups; ++v)
        for (int i = 0; i < kRows; ++i) total[v][i] = d.first ? sum[v][i] : total[v][i] + sum[v][i];
    }
    for (int v = 0; v < Way::kGroups; ++v) {
      const int64_t column = j + v * kLanes<T>;
      for (int i = 0; i < kRows && column < columns; ++i)
        store_partial(g.c + i * g.p.n + begin + column, total[v][i],
                      at_most(columns - column, kLanes<T>));
    }
  }
}

// ------------------------------------------------------------------------------------------ strips

template <class T> using StripKernel = void (*)(const Product<T>&, int64_t, int64_t);

template <class T, class Way> struct ByColumns {
  template <int kRows> static constexpr StripKernel<T> kernel = &multiply_by_columns<T, kRows, Way>;
};
template <class T> struct ByRows {
  template <int kRows> static constexpr StripKernel<T> kernel = &multiply_by_rows<T, kRows>;
};

template <class Strips, class T, int... I>
static constexpr StripKernel<T> pick_rows(int64_t rows, Indices<I...>) {
  constexpr StripKernel<T> kKernels[] = {Strips::template kernel<I + 1>...};
  return kKernels[rows - 1];
}

template <class T> static StripKernel<T> pick_strip(const MatmulParams& p) {
  using Rows = typename MakeIndices<kFewRows>::type;
  if (p.b_column == 1) return pick_rows<ByRows<T>, T>(p.m, Rows{});
  if (p.k * p.n * int64_t(sizeof(T)) > kFarBytes)
    return pick_rows<ByColumns<T, Columns<1, true>>, T>(p.m, Rows{});
  if (p.m == 1) return &multiply_by_columns<T, 1, Columns<2, false>>;
  return pick_rows<ByColumns<T, Columns<1, false>>, T>(p.m, Rows{});
}

/// Columns [begin, end) of a product of at most kFewRows rows.
template <class T> static void multiply_strip(const Product<T>& g, int64_t begin, int64_t end) {
  pick_strip<T>(g.p)(g, begin, end - begin);
  if (g.epilogue.epilogue.is_trivial()) return;
  for (int64_t i = 0; i < g.p.m; ++i) {
    const int64_t at = i * g.p.n + begin;
    g.epilogue.apply(g.c + at, end - begin, begin, g.offset + at);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
