// The steps of attention on one block of queries and one block of keys, on a CPU.
//
// Blocks are kept transposed, (keys, queries): queries lie in the lanes of vectors. Maxima, sums
// and exponentials then never fold lanes, and the micro-kernel of matrix products
// (matmul/gemm_tile.h) reads keys and values as they lie, one element at a time, against vectors of
// queries that a thread has packed once. Only queries are ever packed.
#pragma once

#include "attention/attention.h"
#include "core/elementwise.h"
#include "core/order.h"
#include "core/random.h"
#include "core/vmath.h"
#include "matmul/gemm_tile.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int64_t kQueries = order::kAttentionQueries, kKeys = order::kAttentionKeys;
/// Columns of a register tile.
template <class T>
constexpr int64_t kTileColumns = (kWideMainTile ? kWideTileVectors : kTileVectors) * kLanes<T>;

template <class T> static constexpr int64_t whole_vectors(int64_t n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

/// Queries [first, first + live) of a position, in `width` lanes.
struct QueryBlock {
  int64_t first, live, width;
};
/// Keys [first, first + live).
struct KeyBlock {
  int64_t first, live;
};
template <class T> static QueryBlock query_block(const AttentionParams& p, int64_t index) {
  const int64_t first = index * kQueries, live = at_most(kQueries, p.l - first);
  return {first, live, whole_vectors<T>(live)};
}
static KeyBlock key_block(const AttentionParams& p, int64_t index) {
  const int64_t first = index * kKeys;
  return {first, at_most(kKeys, p.s - first)};
}
/// Blocks of keys that a block of queries sees.
static int64_t visible_blocks(const AttentionParams& p, const QueryBlock& q) {
  return ceil_div(p.causal ? at_most(p.s, q.first + kQueries) : p.s, kKeys);
}

/// What a thread has of its own. Arrays are (first extent) x (lanes of a block of queries), but
/// those with rows of queries.
template <class T> struct AttentionScratch {
  T *queries, *gradients;             ///< E and Ev: scale q and dy, transposed
  T *query_rows, *gradient_rows;      ///< the same with a row per query, padded to whole vectors
  T* sum;                             ///< E or Ev: y or dq on the way, transposed
  T *weights, *slopes, *bias, *kept;  ///< keys: p, ds, what is added to scores, dropout's factors
  T* rows;                            ///< keys of each query, before they are transposed
  T *maximum, *total, *change, *delta;

  static int64_t elements(const AttentionParams& p) {
    const int64_t deep = at_least(p.e, p.ev), block = kKeys * kQueries;
    return (p.e + p.ev + deep) * kQueries +
           (whole_vectors<T>(p.e) + whole_vectors<T>(p.ev)) * kQueries + 5 * block + 4 * kQueries +
           kPackSlack<T>;
  }
  AttentionScratch(void* workspace, const AttentionParams& p, int member) {
    T* next = static_cast<T*>(workspace) + ceil_div(elements(p), 64) * 64 * member;
    const auto take = [&](int64_t rows) {
      T* const taken = next;
      next += rows * kQueries;
      return taken;
    };
    queries = take(p.e), gradients = take(p.ev), sum = take(at_least(p.e, p.ev));
    query_rows = take(whole_vectors<T>(p.e)), gradient_rows = take(whole_vectors<T>(p.ev));
    weights = take(kKeys), slopes = take(kKeys), bias = take(kKeys), kept = take(kKeys);
    rows = take(kKeys);
    maximum = take(1), total = take(1), change = take(1), delta = take(1);
  }
};

/// One position of the batch: its operands, and where its scores are in the whole.
template <class T> struct AttentionPosition {
  const AttentionParams& p;
  const T *q, *k, *v;
  AttentionMask<T> mask;
  int64_t index;
};

static int64_t batch_offset(const AttentionParams& p, const AttentionStrides& strides,
                            int64_t index) {
  int64_t offset = 0;
  for (int d = p.rank - 1; d >= 0; --d) {
    offset += index % p.shape[d] * strides.batch[d];
    index /= p.shape[d];
  }
  return offset;
}

template <class T>
static AttentionPosition<T> position_at(const AttentionParams& p, const T* q, const T* k,
                                        const T* v, AttentionMask<T> mask, int64_t index) {
  const int64_t in_mask = mask ? batch_offset(p, mask.strides, index) : 0;
  if (mask.allowed) mask.allowed += in_mask;
  if (mask.added) mask.added += in_mask;
  return {p,
          q + batch_offset(p, p.q, index),
          k + batch_offset(p, p.k, index),
          v + batch_offset(p, p.v, index),
          mask,
          index};
}

// ----------------------------------------------------------------------------------- rows and
// tiles

/// C (rows x columns) = or += A B by register tiles; A has its rows side by side (kColumnwise) or
/// each contiguous, B whole vectors.
template <class T, bool kColumnwise>
static void multiply_block(int64_t rows, int64_t columns, const TileOperands<T>& whole) {
  for (int64_t column = 0; column < columns; column += kTileColumns<T>) {
    TileOperands<T> t = whole;
    t.columns = at_most(kTileColumns<T>, columns - column);
    t.b += column;
    const int64_t vectors = ceil_div(t.columns, kLanes<T>);
    const int64_t tiles = ceil_div(rows, max_tile_rows(int(vectors)));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = rows * tile / tiles, next = rows * (tile + 1) / tiles;
      t.a = whole.a + row * (kColumnwise ? 1 : whole.a_stride);
      t.c = whole.c + row * whole.c_stride + column;
      pick_tile<T, kColumnwise>(next - row, vectors)(t);
    }
  }
}

/// to[p, i] = factor from[i, p]: a block of rows, transposed.
template <class T>
static void load_rows_transposed(const T* from, int64_t row, int64_t depth, const QueryBlock& q,
                                 T factor, T* to) {
  if (depth == 0) return;
  pack_transposed(from + q.first * row, row, depth, q.live, q.width, to);
  if (factor != T(1))
    map_range(0, depth * q.width, [=](Vec<T> x) { return x * broadcast(factor); }, to, to);
}

/// to[i, p] = factor from[i, p], rows padded to whole vectors.
template <class T>
static void load_rows(const T* from, int64_t row, int64_t depth, const QueryBlock& q, T factor,
                      T* to) {
  const int64_t width = whole_vectors<T>(depth);
  for (int64_t i = 0; i < q.live; ++i)
    for (int64_t p = 0; p < depth; p += kLanes<T>)
      store(
          to + i * width + p,
          read(from + (q.first + i) * row + p, at_most(kLanes<T>, depth - p)) * broadcast(factor));
}

/// to[i, p] = from[p, i], the way back.
template <class T>
static void store_rows_transposed(const T* from, int64_t depth, const QueryBlock& q, T* to,
                                  int64_t row) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t i = 0; i < q.live; i += kWidth) {
    const int64_t live = at_most(kWidth, q.live - i);
    for (int64_t p = 0; p < depth; p += kWidth) {
      const int64_t columns = at_most(kWidth, depth - p);
      Vec<T> r[kWidth];
      load_transposed(from + p * q.width + i, q.width, columns, kWidth, r);
      for (int64_t l = 0; l < live; ++l) write(to + (q.first + i + l) * row + p, r[l], columns);
    }
  }
}

// ------------------------------------------------------------------------------ masks and dropout

/// bias[j, i]: the mask of a block, with -infinity where a query may not attend.
template <class T>
static void load_bias(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                      const AttentionScratch<T>& own) {
  const AttentionMask<T>& mask = a.mask;
  const bool same = mask.strides.row == 0;
  for (int64_t i = 0; i < (same ? 1 : q.live); ++i) {
    const int64_t at = (q.first + i) * mask.strides.row + k.first * mask.column;
    for (int64_t j = 0; j < k.live; ++j)
      own.rows[i * kKeys + j] = mask.added ? mask.added[at + j * mask.column]
                                : mask.allowed[at + j * mask.column] ? T(0)
                                                                     : T(-__builtin_inf());
  }
  if (!same) return pack_transposed(own.rows, kKeys, k.live, q.live, q.width, own.bias);
  for (int64_t j = 0; j < k.live; ++j)
    for (int64_t i = 0; i < q.width; i += kLanes<T>)
      store(own.bias + j * q.width + i, broadcast(own.rows[j]));
}

/// kept[j, i]: 0 where dropout drops the weight of key j, else 1 / (1 - p).
template <class T>
static void load_kept(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                      const AttentionScratch<T>& own) {
  constexpr int64_t kWords = (kKeys + 4 + 31) / 32 * 32;
  alignas(64) uint32_t words[kWords];
  const PhiloxKeys keys(a.p.seed.value);
  const uint64_t threshold = philox::threshold(a.p.dropout);
  const T scale = threshold > 0xffffffffu ? T(0) : T(1 / (1 - a.p.dropout));
  for (int64_t i = 0; i < q.live; ++i) {
    const int64_t first = (a.index * a.p.l + q.first + i) * a.p.s + k.first;
    philox_words(keys, a.p.offset.value + uint64_t(first / 4), kWords, words);
    for (int64_t j = 0; j < k.live; ++j)
      own.rows[i * kKeys + j] = words[first % 4 + j] < threshold ? T(0) : scale;
  }
  pack_transposed(own.rows, kKeys, k.live, q.live, q.width, own.kept);
}

/// Brings rows of a block into L2.
template <class T>
static void fetch_rows(const T* rows, int64_t row, const KeyBlock& k, int64_t columns) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t j = 0; j < k.live; ++j)
    for (int64_t c = 0; c < columns; c += kLine)
      __builtin_prefetch(rows + (k.first + j) * row + c, 0, 2);
}

/// The scores of a block: weights[j, i] = s[i, j], -infinity where query i may not attend to j.
template <class T>
static void load_scores(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                        const AttentionScratch<T>& own) {
  const AttentionParams& p = a.p;
  if (q.first == 0) {  // a query alone, of 1024 keys in memory: three quarters of the time
    const int64_t next = k.first + k.live;
    fetch_rows(a.v, p.v.row, k, p.ev);
    fetch_rows(a.k, p.k.row, {next, at_most(k.live, p.s - next)}, p.e);
  }
  multiply_block<T, false>(k.live, q.width,
                           {.depth = p.e,
                            .a = a.k + k.first * p.k.row,
                            .a_stride = p.k.row,
                            .b = own.queries,
                            .b_stride = q.width,
                            .c = own.weights,
                            .c_stride = q.width});
  const Vec<T> hidden = broadcast(T(-__builtin_inf()));
  if (a.mask) {
    load_bias(a, q, k, own);
    const auto add = [=](Vec<T> s, Vec<T> b) { return b == hidden ? hidden : s + b; };
    map_range(0, k.live * q.width, add, own.weights, own.weights, own.bias);
  }
  if (!p.causal || k.first + k.live - 1 <= q.first) return;
  for (int64_t j = 0; j < k.live; ++j) {
    for (int64_t i = 0; i < q.width; i += kLanes<T>) {
      T* const s = own.weights + j * q.width + i;
      store(s, first_lanes<T>(hidden, k.first + j - q.first - i, load(s)));
    }
  }
}

}  // namespace brasa::cpu::BRASA_ISA
