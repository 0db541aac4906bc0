// Walking over the lines of an axis in pieces that stay in L1: what softmax and cross-entropy
// share.
//
// A piece is either one line with vectors along it (LinePiece), or up to 64 neighbouring lines with
// vectors across them (StripPiece). Kernels are written once for both: `sum`, `max` and `each` run
// over the piece's vectors, `state` is the number that belongs to a vector's line (its maximum, its
// sum), kept in arrays of kStates. Short contiguous lines (10 classes) waste most of a vector along
// the line, so 64 of them are transposed into a tile and taken as a strip. A strided strip is
// copied into a tile as well: rows a power of two apart fall into the same cache sets, 21 classes
// of a 512 x 512 image for instance into one.
#pragma once

#include "core/elementwise.h"
#include "softmax/softmax.h"

namespace brasa::cpu::BRASA_ISA {

/// Lines side by side in a strip: four cache lines of float32.
constexpr int64_t kStripWidth = 64;
/// Elements of a tile: 32 KiB of float32.
constexpr int64_t kTileElements = 8 * 1024;
/// Contiguous lines shorter than this are transposed.
constexpr int64_t kShortLine = 32;
/// Contiguous lines up to this long may be taken by twos: the folding of longer ones hardly counts.
constexpr int64_t kPairedLine = 512;
/// Elements of a parallel chunk, some 10 us of exponentials.
constexpr int64_t kLinesGrain = 16 * 1024;

/// An array as a piece sees it: element j of line i at data[j * stride + i].
template <class T> struct Operand {
  T* data;
  int64_t stride;
  operator Operand<const T>() const { return {data, stride}; }
};

/// One contiguous line of n elements.
template <class T> struct LinePiece {
  using V = Vec<T>;
  /// Vectors in a turn of the loops: maxima have as many chains, sums the 16 lanes that strips
  /// have.
  static constexpr int kParts = 4 * LaneSum<T>::kParts;
  static constexpr int64_t kStates = kLanes<T>;
  struct Index {
    int64_t j, live;
  };
  int64_t line, n;

  int64_t lines() const { return 1; }
  V get(Operand<const T> a, Index k) const { return read(a.data + k.j, k.live); }
  void put(Operand<T> a, Index k, V v) const { write(a.data + k.j, v, k.live); }
  void put_result(Operand<T> a, Index k, V v, bool streaming) const {
    streaming ? put_row<true>(a.data + k.j, v, k.live) : put(a, k, v);
  }
  V state(const T* s, Index) const { return broadcast(s[0]); }
  V per_element(const T* w, Index k) const { return read(w + k.j, k.live); }
  int64_t position(Operand<const T>, int64_t j, int64_t) const { return j; }

  template <class F> BRASA_INLINE_MEMBER void each(const F& f) const {
    int64_t j = 0;
    for (; j + kLanes<T> <= n; j += kLanes<T>) f(Index{j, kLanes<T>});
    if (j < n) f(Index{j, n - j});
  }
  /// The largest element. If there is a NaN it need not be the result: its exponential makes the
  /// line's sum a NaN, and thus everything else.
  BRASA_INLINE_MEMBER void max_of(Operand<const T> a, T* result) const {
    const V lowest = broadcast(T(-__builtin_inf()));
    V most[kParts];
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) most[i] = lowest;
    each_part<T, kParts>(n, [&](int i, int64_t j, int64_t live) {
      const V x = read(a.data + j, live);
      most[i] = max_lanes<T>(most[i], live == kLanes<T> ? x : first_lanes<T>(x, live, lowest));
    });
#pragma GCC unroll 8
    for (int step = kParts / 2; step; step /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < step; ++i) most[i] = max_lanes<T>(most[i], most[i + step]);
    store(result, broadcast(fold_lanes(most[0], max_lanes<T>)));
  }
  /// result = sum of f(k) over the line.
  template <class F> BRASA_INLINE_MEMBER void sum_of(T* result, const F& f) const {
    LaneSum<T> sum;
    each_part<T, kParts>(n, [&](int i, int64_t j, int64_t live) {
      sum.add(i % LaneSum<T>::kParts, f(Index{j, live}), live);
    });
    store(result, broadcast(sum.total()));
  }
  /// Fetches what the next line has at k, while this one is worked on: memory would idle meanwhile.
  BRASA_INLINE_MEMBER void fetch_next(Operand<const T> a, Index k) const {
    __builtin_prefetch(a.data + n + k.j);
  }
  template <class F> BRASA_INLINE_MEMBER void map_state(T* result, const F& f) const {
    store(result, f(int64_t{0}));
  }
};

/// Two neighbouring contiguous lines of n elements, in turns: while the lanes of one are folded, a
/// chain of latencies as long as the work on a short line, the other's are.
template <class T> struct PairPiece {
  using V = Vec<T>;
  static constexpr int kParts = LinePiece<T>::kParts / 2;  ///< of each line
  static constexpr int64_t kStates = 2 * kLanes<T>;
  struct Index {
    int64_t j, live;
    int which;
  };
  int64_t line, n;

  T* at(Operand<T> a, Index k) const { return a.data + k.which * n + k.j; }
  V get(Operand<const T> a, Index k) const { return read(a.data + k.which * n + k.j, k.live); }
  void put(Operand<T> a, Index k, V v) const { write(at(a, k), v, k.live); }
  void put_result(Operand<T> a, Index k, V v, bool streaming) const {
    streaming ? put_row<true>(at(a, k), v, k.live) : put(a, k, v);
  }
  V state(const T* s, Index k) const { return broadcast(s[k.which * kLanes<T>]); }

  template <class F> BRASA_INLINE_MEMBER void each(const F& f) const {
    each_part<T, 2>(n, [&](int, int64_t j, int64_t live) {
      f(Index{j, live, 0});
      f(Index{j, live, 1});
    });
  }
  BRASA_INLINE_MEMBER void max_of(Operand<const T> a, T* result) const {
    const V lowest = broadcast(T(-__builtin_inf()));
    V most[2][kParts];
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) most[0][i] = most[1][i] = lowest;
    each_part<T, kParts>(n, [&](int i, int64_t j, int64_t live) {
#pragma GCC unroll 2
      for (int w = 0; w < 2; ++w) {
        const V x = get(a, {j, live, w});
        most[w][i] =
            max_lanes<T>(most[w][i], live == kLanes<T> ? x : first_lanes<T>(x, live, lowest));
      }
    });
#pragma GCC unroll 8
    for (int i = 1; i < kParts; ++i)
#pragma GCC unroll 2
      for (int w = 0; w < 2; ++w) most[w][0] = max_lanes<T>(most[w][0], most[w][i]);
    store_both(result, fold_lanes(most[0][0], max_lanes<T>), fold_lanes(most[1][0], max_lanes<T>));
  }
  template <class F> BRASA_INLINE_MEMBER void sum_of(T* result, const F& f) const {
    LaneSum<T> first, second;
    each_part<T, LaneSum<T>::kParts>(n, [&](int i, int64_t j, int64_t live) {
      first.add(i, f(Index{j, live, 0}), live);
      second.add(i, f(Index{j, live, 1}), live);
    });
    store_both(result, first.total(), second.total());
  }
  BRASA_INLINE_MEMBER void store_both(T* result, T first, T second) const {
    store(result, broadcast(first));
    store(result + kLanes<T>, broadcast(second));
  }
  BRASA_INLINE_MEMBER void fetch_next(Operand<const T> a, Index k) const {
    __builtin_prefetch(a.data + (2 + k.which) * n + k.j);
  }
  template <class F> BRASA_INLINE_MEMBER void map_state(T* result, const F& f) const {
    store(result, f(int64_t{0}));
    store(result + kLanes<T>, f(int64_t{kLanes<T>}));
  }
};

/// `width` <= kStripWidth lines, n elements each.
template <class T> struct StripPiece {
  using V = Vec<T>;
  static constexpr int64_t kStates = kStripWidth;
  struct Index {
    int64_t j, i, live;
  };
  int64_t line, n, width;

  int64_t lines() const { return width; }
  V get(Operand<const T> a, Index k) const { return read(a.data + k.j * a.stride + k.i, k.live); }
  void put(Operand<T> a, Index k, V v) const { write(a.data + k.j * a.stride + k.i, v, k.live); }
  void put_result(Operand<T> a, Index k, V v, bool) const { put(a, k, v); }
  void fetch_next(Operand<const T>, Index) const {}
  V state(const T* s, Index k) const { return load(s + k.i); }
  V per_element(const T* w, Index k) const { return broadcast(w[k.j]); }
  int64_t position(Operand<const T> a, int64_t j, int64_t i) const { return j * a.stride + i; }

  /// f(i, live) for the vectors across the strip.
  template <class F> BRASA_INLINE_MEMBER void across(const F& f) const {
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) f(i, int64_t{kLanes<T>});
    if (i < width) f(i, width - i);
  }
  template <class F> BRASA_INLINE_MEMBER void each(const F& f) const {
    for (int64_t j = 0; j < n; ++j) across([&](int64_t i, int64_t live) { f(Index{j, i, live}); });
  }
  BRASA_INLINE_MEMBER void max_of(Operand<const T> a, T* result) const {
    across([&](int64_t i, int64_t live) { store(result + i, get(a, {0, i, live})); });
    for (int64_t j = 1; j < n; ++j)
      across([&](int64_t i, int64_t live) {
        store(result + i, max_lanes<T>(load(result + i), get(a, {j, i, live})));
      });
  }
  template <class F> BRASA_INLINE_MEMBER void sum_of(T* result, const F& f) const {
    constexpr int kVirtual = LaneSum<T>::kVirtual;
    alignas(64) T part[kVirtual][kStripWidth] = {};
    each([&](Index k) {
      T* p = part[k.j % kVirtual] + k.i;
      store(p, load(p) + f(k));
    });
    for (int step = kVirtual / 2; step; step /= 2)
      for (int l = 0; l < step; ++l)
        across([&](int64_t i, int64_t) {
          store(part[l] + i, load(part[l] + i) + load(part[l + step] + i));
        });
    across([&](int64_t i, int64_t) { store(result + i, load(part[0] + i)); });
  }
  template <class F> BRASA_INLINE_MEMBER void map_state(T* result, const F& f) const {
    across([&](int64_t i, int64_t) { store(result + i, f(i)); });
  }
};

/// Where the arrays of a piece are: in place, or in a tile that the caller provides.
template <class T> struct Placement {
  enum class Kind { in_place, copied, transposed } kind;
  int64_t offset;    ///< of the piece's first element
  int64_t n, width;  ///< of the strip
  int64_t stride;    ///< between neighbours of a line in the array

  /// The input x; `tile` (kTileElements) may be used to bring it nearer.
  Operand<const T> input(const T* x, T* tile) const {
    if (kind == Kind::in_place) return {x + offset, stride};
    if (kind == Kind::copied) {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < width; ++i) tile[j * kStripWidth + i] = x[offset + j * stride + i];
    } else {
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = 0; j < n; ++j) tile[j * kStripWidth + i] = x[offset + i * n + j];
    }
    return {tile, kStripWidth};
  }
  /// An input that is read once: only transposed when it must be.
  Operand<const T> input_once(const T* x, T* tile) const {
    return kind == Kind::copied ? Operand<const T>{x + offset, stride} : input(x, tile);
  }
  /// Where values on the way to the output y are kept.
  Operand<T> work(T* y, T* tile) const {
    return kind == Kind::in_place ? Operand<T>{y + offset, stride} : Operand<T>{tile, kStripWidth};
  }
  /// Where the output y is written; finish() is called afterwards.
  Operand<T> output(T* y, T* tile) const {
    return kind == Kind::transposed ? Operand<T>{tile, kStripWidth}
                                    : Operand<T>{y + offset, stride};
  }
  void finish(T* y, const T* tile) const {
    if (kind != Kind::transposed) return;
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < n; ++j) y[offset + i * n + j] = tile[j * kStripWidth + i];
  }
};

/// Whether the results of lines, in y, are streamed.
template <class T> static bool streams_lines(const T* y, AxisShape shape) {
  constexpr int64_t kLongLine = 256;
  return shape.inner == 1 && shape.n >= kLongLine && streams_rows(y, shape.size(), shape.n);
}

/// Calls f(piece, placement) for all lines, in parallel; with kPairs short lines go by twos.
template <class T, bool kPairs = false, class F>
static inline void for_pieces(Context ctx, AxisShape shape, const F& f) {
  using Kind = typename Placement<T>::Kind;
  const int64_t n = shape.n, inner = shape.inner;
  if (shape.size() == 0) return;
  const int64_t grain = n < kLinesGrain ? kLinesGrain / n : 1;
  if (inner == 1 && n >= kShortLine) {
    parallel_for(ctx, shape.outer, grain, [&](int64_t begin, int64_t end) {
      int64_t line = begin;
      if constexpr (kPairs)
        for (; n <= kPairedLine && line + 2 <= end; line += 2)
          f(PairPiece<T>{line, n}, Placement<T>{Kind::in_place, line * n, n, 1, 1});
      for (; line < end; ++line)
        f(LinePiece<T>{line, n}, Placement<T>{Kind::in_place, line * n, n, 1, 1});
      finish_streaming();
    });
    return;
  }
  const bool transposed = inner == 1;
  const int64_t row = transposed ? shape.outer : inner;  // lines that may stand side by side
  const int64_t strips = (row + kStripWidth - 1) / kStripWidth,
                slabs = transposed ? 1 : shape.outer;
  const Kind kind = transposed                         ? Kind::transposed
                    : n * kStripWidth <= kTileElements ? Kind::copied
                                                       : Kind::in_place;
  parallel_for(ctx, slabs * strips, grain < kStripWidth ? 1 : grain / kStripWidth,
               [&](int64_t begin, int64_t end) {
                 for (int64_t strip = begin; strip < end; ++strip) {
                   const int64_t slab = strip / strips, first = strip % strips * kStripWidth;
                   const int64_t width = row - first < kStripWidth ? row - first : kStripWidth;
                   const int64_t offset = transposed ? first * n : slab * n * inner + first;
                   f(StripPiece<T>{slab * row + first, n, width},
                     Placement<T>{kind, offset, n, width, inner});
                 }
               });
}

}  // namespace brasa::cpu::BRASA_ISA
