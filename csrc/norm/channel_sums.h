// Two sums per channel over fixed blocks of an array: what batch normalisation and its backward
// reduce.
//
// A block is kRowBlock rows of a channels-last array, four interleaved chains per channel, vectors
// across channels; or kPlaneBlock elements of a channel in C order, 16 virtual lanes along memory.
// Every (block, channel) gets two doubles, and the blocks are combined in order.
#pragma once

#include "core/order.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "norm/norm.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int kSumVectors = 2;             ///< vectors of channels side by side: 4 chains each
constexpr int64_t kNormGrain = 32 * 1024;  ///< elements per chunk, some 10 us

template <class T> BRASA_INLINE Vec<T> read(const T* p, int64_t live) {
  return live == kLanes<T> ? load(p) : load_partial(p, live);
}
template <class T> BRASA_INLINE void write(T* p, Vec<T> x, int64_t live) {
  if (live == kLanes<T>)
    store(p, x);
  else
    store_partial(p, x, live);
}

/// How the elements of a channel are cut into blocks.
struct ChannelBlocks {
  int64_t count;  ///< of blocks
  int64_t rows;   ///< channels-last: rows of a block; else planes of a block
  int64_t parts;  ///< C order: parts that a plane is cut into, 1 where blocks are whole planes
  int64_t elements(const BatchNormParams& p, int64_t block) const;
};

static inline ChannelBlocks channel_blocks(const BatchNormParams& p) {
  if (p.channels_last)
    return {(p.n * p.s + order::kRowBlock - 1) / order::kRowBlock, order::kRowBlock, 1};
  const int64_t parts = (p.s + order::kPlaneBlock - 1) / order::kPlaneBlock;
  if (parts > 1) return {p.n * parts, 1, parts};
  const int64_t planes = order::kPlaneBlock / (p.s > 0 ? p.s : 1);
  return {(p.n + planes - 1) / planes, planes, 1};
}

/// A block of one channel: `runs` runs of `length` neighbours, `step` apart. For channels-last
/// arrays the runs are rows of one element.
struct Block {
  int64_t first, runs, length, step;
};

static inline Block block_at(const BatchNormParams& p, const ChannelBlocks& blocks, int64_t block,
                             int64_t channel) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  if (p.channels_last) {
    const int64_t row = block * blocks.rows;
    return {row * p.c + channel, least(blocks.rows, p.n * p.s - row), 1, p.c};
  }
  if (blocks.parts > 1) {
    const int64_t plane = block / blocks.parts, begin = block % blocks.parts * order::kPlaneBlock;
    return {(plane * p.c + channel) * p.s + begin, 1, least(order::kPlaneBlock, p.s - begin), 0};
  }
  const int64_t plane = block * blocks.rows;
  return {(plane * p.c + channel) * p.s, least(blocks.rows, p.n - plane), p.s, p.c * p.s};
}

inline int64_t ChannelBlocks::elements(const BatchNormParams& p, int64_t block) const {
  const Block b = block_at(p, *this, block, 0);
  return b.runs * b.length;
}

/// What comes of a block: mean and centred squares, or the sums of dy and dy (x - mean).
struct Pair {
  double first, second;
};

// ---- C order
// -----------------------------------------------------------------------------------------

/// Adds f(p[i]...) over one run to the sum.
template <class T, class F>
BRASA_INLINE void add_run(LaneSum<T>& sum, const T* p, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    sum.add_mapped(p + i, [&](Vec<T> v, int64_t offset) { return f(v, i + offset); });
  if (i < n) sum.add_tail(p + i, n - i, [&](Vec<T> v, int64_t offset) { return f(v, i + offset); });
}

template <class T> static Pair plane_statistics(const T* x, const Block& b) {
  const T count = T(b.runs * b.length);
  LaneSum<T> sum, offsets, squares;
  for (int64_t r = 0; r < b.runs; ++r)
    add_run(sum, x + b.first + r * b.step, b.length, [](Vec<T> v, int64_t) { return v; });
  const T shift = sum.total() / count;
  const Vec<T> s = broadcast(shift);
  for (int64_t r = 0; r < b.runs; ++r) {
    const T* run = x + b.first + r * b.step;
    add_run(offsets, run, b.length, [=](Vec<T> v, int64_t) { return v - s; });
    add_run(squares, run, b.length, [=](Vec<T> v, int64_t) { return (v - s) * (v - s); });
  }
  const double e = double(offsets.total());
  return {double(shift) + e / double(count), double(squares.total()) - e * e / double(count)};
}

template <class T> static Pair plane_products(const T* dy, const T* x, T mean, const Block& b) {
  const Vec<T> m = broadcast(mean);
  LaneSum<T> sum, products;
  for (int64_t r = 0; r < b.runs; ++r) {
    const int64_t at = b.first + r * b.step;
    const auto at_x = [&](int64_t i) {
      const int64_t left = b.length - i;
      return read(x + at + i, left < kLanes<T> ? left : kLanes<T>);
    };
    add_run(sum, dy + at, b.length, [](Vec<T> g, int64_t) { return g; });
    add_run(products, dy + at, b.length, [&](Vec<T> g, int64_t i) { return g * (at_x(i) - m); });
  }
  return {double(sum.total()), double(products.total())};
}

// ---- channels-last
// -----------------------------------------------------------------------------------

/// Sum over rows of f(row, vector): four chains, rows r, r + 4, ..., added pairwise.
template <int kVectors, class T, class F>
BRASA_INLINE void sum_rows(int64_t rows, Vec<T> (&total)[kVectors], const F& f) {
  Vec<T> chain[4][kVectors] = {};
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) chain[k][v] += f(r + k, v);
  }
  for (int k = 0; r < rows; ++r, ++k)
    for (int v = 0; v < kVectors; ++v) chain[k][v] += f(r, v);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    total[v] = (chain[0][v] + chain[1][v]) + (chain[2][v] + chain[3][v]);
}

template <int kVectors, class T>
BRASA_INLINE void row_statistics(const T* x, const Block& b, int64_t live, Pair* result) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> shift[kVectors], offsets[kVectors], squares[kVectors];
  const T count = T(b.runs);
  const auto at = [&](int64_t r, int v) {
    return read(x + b.first + r * b.step + v * kWidth, live);
  };
  sum_rows<kVectors, T>(b.runs, shift, at);
  for (int v = 0; v < kVectors; ++v) shift[v] /= broadcast(count);
  sum_rows<kVectors, T>(b.runs, offsets, [&](int64_t r, int v) { return at(r, v) - shift[v]; });
  sum_rows<kVectors, T>(b.runs, squares, [&](int64_t r, int v) {
    const Vec<T> d = at(r, v) - shift[v];
    return d * d;
  });
  for (int i = 0; i < (kVectors - 1) * kWidth + live; ++i) {
    const double e = double(offsets[i / kWidth][i % kWidth]), n = double(count);
    result[i] = {double(shift[i / kWidth][i % kWidth]) + e / n,
                 double(squares[i / kWidth][i % kWidth]) - e * e / n};
  }
}

template <int kVectors, class T>
BRASA_INLINE void row_products(const T* dy, const T* x, const T* mean, const Block& b, int64_t live,
                               Pair* result) {
  constexpr int kWidth = kLanes<T>;
  Vec<T> m[kVectors], sums[kVectors], products[kVectors];
  for (int v = 0; v < kVectors; ++v) m[v] = read(mean + v * kWidth, live);
  const auto at = [&](const T* p, int64_t r, int v) {
    return read(p + b.first + r * b.step + v * kWidth, live);
  };
  sum_rows<kVectors, T>(b.runs, sums, [&](int64_t r, int v) { return at(dy, r, v); });
  sum_rows<kVectors, T>(b.runs, products,
                        [&](int64_t r, int v) { return at(dy, r, v) * (at(x, r, v) - m[v]); });
  for (int i = 0; i < (kVectors - 1) * kWidth + live; ++i)
    result[i] = {double(sums[i / kWidth][i % kWidth]), double(products[i / kWidth][i % kWidth])};
}

// ---- over the whole array
// ------------------------------------------------------------------------------

/// of_plane(block) -> Pair, or of_rows.operator()<vectors>(block, channel, live lanes, Pair*), over
/// all blocks and channels; results[block * c + channel].
template <class T, class OfPlane, class OfRows>
static void each_block(Context ctx, const BatchNormParams& p, Pair* results,
                       const OfPlane& of_plane, const OfRows& of_rows) {
  const ChannelBlocks blocks = channel_blocks(p);
  if (!p.channels_last) {
    const int64_t grain = kNormGrain / (blocks.rows * (p.s > 0 ? p.s : 1)) + 1;
    parallel_for(ctx, blocks.count * p.c, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        results[i] = of_plane(block_at(p, blocks, i / p.c, i % p.c), i % p.c);
    });
    return;
  }
  constexpr int64_t kGroup = kSumVectors * kLanes<T>;
  parallel_for(ctx, blocks.count, kNormGrain / (blocks.rows * (p.c > 0 ? p.c : 1)) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   Pair* result = results + block * p.c;
                   int64_t c = 0;
                   for (; c + kGroup <= p.c; c += kGroup)
                     of_rows.template operator()<kSumVectors>(block_at(p, blocks, block, c), c,
                                                              kLanes<T>, result + c);
                   for (; c < p.c; c += kLanes<T>)
                     of_rows.template operator()<1>(block_at(p, blocks, block, c), c,
                                                    p.c - c < kLanes<T> ? p.c - c : kLanes<T>,
                                                    result + c);
                 }
               });
}

}  // namespace brasa::cpu::BRASA_ISA
