// The steps of a matrix product on one register tile: pack_a, pack_b, multiply_tile, store_tile.
//
// A panel of B is `width` columns, packed as b[p * width + j]; a tile's rows of A are packed as
// a[p * rows + i]. Both are the same gather of `minor` x `depth` elements. The micro-kernel
// broadcasts A and streams B: 24 FMA on 14 loads per step of 12 x 2 vectors, accumulators in
// registers throughout. There is one kernel per height and width, so that no tile computes padding
// but in its last vector.
#pragma once

#include "core/simd.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

BRASA_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
BRASA_INLINE int64_t at_most(int64_t a, int64_t b) {
  return a < b ? a : b;
}
BRASA_INLINE int64_t at_least(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// ----------------------------------------------------------------------------------------- packing

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

/// Lanes l of a with bit S clear and lanes l - S of b, and the reverse: one step of a
/// transposition.
template <int S, class V, int... L> BRASA_INLINE V mix_low(V a, V b, Indices<L...>) {
  constexpr int kWidth = int(sizeof...(L));
  return __builtin_shufflevector(a, b, ((L & S) ? kWidth + L - S : L)...);
}
template <int S, class V, int... L> BRASA_INLINE V mix_high(V a, V b, Indices<L...>) {
  constexpr int kWidth = int(sizeof...(L));
  return __builtin_shufflevector(a, b, ((L & S) ? kWidth + L : L + S)...);
}

/// Transposes the square of W vectors of W lanes in registers: log2(W) steps of W shuffles.
template <class T, int S = 1> BRASA_INLINE void transpose(Vec<T>* rows) {
  constexpr int kWidth = kLanes<T>;
  if constexpr (S < kWidth) {
    using Lanes = typename MakeIndices<kWidth>::type;
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i & S) continue;
      const Vec<T> a = rows[i], b = rows[i + S];
      rows[i] = mix_low<S>(a, b, Lanes{});
      rows[i + S] = mix_high<S>(a, b, Lanes{});
    }
    transpose<T, 2 * S>(rows);
  }
}

/// A square of W rows at `from` and W columns, transposed into r: `live` rows and `steps` columns
/// are read, the others are 0.
template <class T>
BRASA_INLINE void load_transposed(const T* from, int64_t minor, int64_t live, int64_t steps,
                                  Vec<T>* r) {
  constexpr int kWidth = kLanes<T>;
  if (live >= kWidth && steps >= kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) r[i] = load(from + i * minor);
  } else {
    for (int i = 0; i < kWidth; ++i) {
      const T* row = from + i * minor;
      r[i] = i >= live ? Vec<T>{} : steps >= kWidth ? load(row) : load_partial(row, steps);
    }
  }
  transpose<T>(r);
}

/// Elements of a row before its first vector on a vector's boundary. Rows that begin elsewhere are
/// cut there: their lines would otherwise be loaded twice, and rows a multiple of 4 KiB apart throw
/// each other's out of L1 in between (measured: half the speed).
template <class T> static int64_t elements_before_boundary(const T* row) {
  const int64_t past = int64_t(reinterpret_cast<uintptr_t>(row) / sizeof(T)) % kLanes<T>;
  return past ? kLanes<T> - past : 0;
}

/// to[p * width + i] = from[i * minor + p], i < live, 0 for the other i of whole vectors: rows of
/// contiguous depth, transposed in registers. W rows at a time over the whole depth: each is then a
/// stream of its own to the prefetcher (walking all rows of a panel per step is a third slower).
/// Groups of rows go last first: what the last one's vectors write beyond `width` is written again.
template <class T>
static void pack_transposed(const T* from, int64_t minor, int64_t depth, int64_t live,
                            int64_t width, T* to) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t group = (width - 1) / kWidth * kWidth; group >= 0; group -= kWidth) {
    const T* row = from + group * minor;
    T* target = to + group;
    int64_t left = depth, steps = elements_before_boundary(row);
    if (steps == 0 || steps > left) steps = left < kWidth ? left : kWidth;
    while (left > 0) {
      Vec<T> r[kWidth];
      load_transposed(row, minor, live - group, steps, r);
      if (steps == kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) store(target + i * width, r[i]);
      } else {
        for (int i = 0; i < steps; ++i) store(target + i * width, r[i]);
      }
      row += steps, target += steps * width, left -= steps;
      steps = left < kWidth ? left : kWidth;
    }
  }
}

/// Rows of B ahead of the one being read: each may lie on a page of its own, where no prefetcher
/// follows.
constexpr int64_t kPrefetchRows = 12;

/// The same of rows that lie side by side already: from[i + p * step].
template <class T>
static void pack_contiguous(const T* from, int64_t step, int64_t depth, int64_t live, int64_t width,
                            T* to) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t p = 0; p < depth; ++p, from += step, to += width) {
    int64_t i = 0;
    for (; i + kWidth <= live; i += kWidth) {
      __builtin_prefetch(from + kPrefetchRows * step + i);
      store(to + i, load(from + i));
    }
    for (; i < width; i += kWidth)
      store(to + i, i < live ? load_partial(from + i, live - i) : Vec<T>{});
  }
}

/// to[p * width + i] = from[i * minor + p * step] for i < live, 0 up to the next whole vector or
/// width. Writes up to a vector beyond depth * width where width is no multiple of one.
template <class T>
static void pack(const T* from, int64_t minor, int64_t step, int64_t depth, int64_t live,
                 int64_t width, T* to) {
  if (minor == 1) return pack_contiguous(from, step, depth, live, width, to);
  if (step == 1) return pack_transposed(from, minor, depth, live, width, to);
  for (int64_t p = 0; p < depth; ++p)
    for (int64_t i = 0; i < width; ++i)
      to[p * width + i] = i < live ? from[i * minor + p * step] : T(0);
}

/// Rows of A for one tile: to[p * rows + i] = a[i * row_stride + p * depth_stride].
template <class T>
static void pack_a(const T* a, int64_t row_stride, int64_t depth_stride, int64_t depth,
                   int64_t rows, T* to) {
  pack(a, row_stride, depth_stride, depth, rows, rows, to);
}

/// A panel of B: to[p * width + j] = b[p * depth_stride + j * column_stride], 0 for j >= columns.
template <class T>
static void pack_b(const T* b, int64_t depth_stride, int64_t column_stride, int64_t depth,
                   int64_t columns, int64_t width, T* to) {
  pack(b, column_stride, depth_stride, depth, columns, width, to);
}

/// Elements that packing may write beyond its target.
template <class T> constexpr int64_t kPackSlack = 64 / int64_t(sizeof(T));

// ---------------------------------------------------------------------------------------- multiply

/// C (rows x columns) = or += A (rows x depth) B (depth x columns); `columns` of the last vector
/// live.
template <class T> struct TileOperands {
  int64_t depth;
  const T* a;
  int64_t a_stride;  ///< from one k to the next (columnwise A), or from one row to the next
  const T* b;
  int64_t b_stride;  ///< from one k to the next; whole vectors are read
  T* c;
  int64_t c_stride;
  int64_t columns;
  bool accumulate;
  const T* bias;  ///< of these columns, added to the sums last; or null
  T* packed;      ///< where a kernel that packs writes B on its way
};

template <class T, int kRows, int kVectors>
BRASA_INLINE void store_tile(Vec<T> (&sum)[kRows][kVectors], const TileOperands<T>& t) {
  constexpr int kWidth = kLanes<T>;
  if (__builtin_expect(t.columns == kVectors * kWidth, 1)) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        T* c = t.c + i * t.c_stride + j * kWidth;
        const Vec<T> total = t.accumulate ? load(c) + sum[i][j] : sum[i][j];
        store(c, t.bias ? total + load(t.bias + j * kWidth) : total);
      }
    }
    return;
  }
  const int64_t last = t.columns - (kVectors - 1) * kWidth;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* c = t.c + i * t.c_stride + j * kWidth;
      const int64_t live = j + 1 < kVectors ? kWidth : last;
      const Vec<T> total = t.accumulate ? load_partial(c, live) + sum[i][j] : sum[i][j];
      store_partial(c, t.bias ? total + load_partial(t.bias + j * kWidth, live) : total, live);
    }
  }
}

/// Steps of k on one cache line of A.
template <class T> constexpr int64_t kPrefetchedSteps = 64 / int64_t(sizeof(T));

/// Rows that are read as they lie are fetched one tile ahead, a line per row at a time: they begin
/// on pages of their own (2048 x 2048: 80 % of the peak without, 92 % with). Into L2 where more
/// than 6 would be too many for a set of L1 (1024 columns: a fifth faster).
///
/// kColumnwise: a row's neighbour is at distance 1, a_stride leads to the next k (packed, or a
/// transposed A as it lies). Otherwise a row is contiguous and a_stride leads to the next row.
///
/// kPacks: B is read where it lies and written packed for the tiles that follow, between two
/// multiply-adds: beside them the stores are free, while packing before the first tile took 4 % of
/// a 256 cube.
template <class T, int kRows, int kVectors, bool kColumnwise, bool kPacks = false>
static void multiply_tile(const TileOperands<T>& t) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> sum[kRows][kVectors] = {};
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) __builtin_prefetch(t.c + i * t.c_stride + j * kWidth, 1, 3);
  }
  const T *a = t.a, *b = t.b;
  const int64_t a_stride = t.a_stride, b_stride = t.b_stride;
  T* packed = t.packed;
  for (int64_t left = t.depth; left > 0; left -= kPrefetchedSteps<T>) {
    if (!kColumnwise) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        __builtin_prefetch(a + (kRows + i) * a_stride, 0, kRows > 6 ? 2 : 3);
    }
    const int64_t steps = left < kPrefetchedSteps<T> ? left : kPrefetchedSteps<T>;
    for (int64_t p = 0; p < steps; ++p, a += kColumnwise ? a_stride : 1, b += b_stride) {
      Vec<T> b_vector[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) b_vector[j] = load(b + j * kWidth);
      if constexpr (kPacks) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          __builtin_prefetch(b + kPrefetchRows * b_stride + j * kWidth);
          store(packed + j * kWidth, b_vector[j]);
        }
        packed += kVectors * kWidth;
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> a_vector = broadcast(kColumnwise ? a[i] : a[i * a_stride]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(a_vector, b_vector[j], sum[i][j]);
      }
    }
  }
  store_tile<T, kRows, kVectors>(sum, t);
}

// ------------------------------------------------------------------------------------ tile kernels

template <class T> using TileKernel = void (*)(const TileOperands<T>&);

/// Rows that a tile of this many vectors may have.
constexpr int max_tile_rows(int vectors) {
  return vectors <= kTileVectors ? kTileRows : kWideTileRows;
}

template <class T, int kVectors, bool kColumnwise, int... I>
static constexpr TileKernel<T> pick_rows(int64_t rows, Indices<I...>) {
  constexpr TileKernel<T> kKernels[] = {&multiply_tile<T, I + 1, kVectors, kColumnwise>...};
  return kKernels[rows - 1];
}

template <class T, bool kColumnwise> static TileKernel<T> pick_tile(int64_t rows, int64_t vectors) {
  using Tall = typename MakeIndices<kTileRows>::type;
  using Wide = typename MakeIndices<kWideTileRows>::type;
  switch (vectors) {
    case 1:
      return pick_rows<T, 1, kColumnwise>(rows, Tall{});
    case 2:
      return pick_rows<T, 2, kColumnwise>(rows, Tall{});
    case 3:
      return pick_rows<T, 3, kColumnwise>(rows, Wide{});
    default:
      return pick_rows<T, 4, kColumnwise>(rows, Wide{});
  }
}

/// Panels that a tile can pack on its way are of so many vectors, all columns live.
constexpr int kMainVectors = kWideMainTile ? kWideTileVectors : kTileVectors;

template <class T, bool kColumnwise, int... I>
static constexpr TileKernel<T> pick_packing(int64_t rows, Indices<I...>) {
  constexpr TileKernel<T> kKernels[] = {
      &multiply_tile<T, I + 1, kMainVectors, kColumnwise, true>...};
  return kKernels[rows - 1];
}

/// The kernel for tiles of `rows` x kMainVectors that packs B.
template <class T> static TileKernel<T> packing_tile_kernel(int64_t rows, bool columnwise) {
  using Rows = typename MakeIndices<max_tile_rows(kMainVectors)>::type;
  return columnwise ? pick_packing<T, true>(rows, Rows{}) : pick_packing<T, false>(rows, Rows{});
}

/// The kernel for tiles of `rows` x `vectors`: look it up outside the loops over K.
template <class T>
static TileKernel<T> tile_kernel(int64_t rows, int64_t vectors, bool columnwise) {
  return columnwise ? pick_tile<T, true>(rows, vectors) : pick_tile<T, false>(rows, vectors);
}

}  // namespace brasa::cpu::BRASA_ISA
