// Two sums per channel over fixed blocks of an array: what batch normalisation and its backward
// reduce.
//
// A block is kRowBlock rows of a channels-last array, four interleaved chains per channel, vectors
// across channels; or kPlaneBlock elements of a channel in C order, 64 virtual lanes along memory.
// Every (block, channel) gets two doubles, and the blocks are combined in order.
//
// Channels-last, a strip of some vectors of channels goes down the rows of a block. Such a strided
// walk is fetched ahead by hand: the hardware follows it late (32 x 256 x 14 x 14: a third more).
// Fetching the next block into L2 as well loses 5 to 10 %.
#pragma once

#include "core/order.h"
#include "core/parallel.h"
#include "core/tiles.h"
#include "norm/norm.h"

namespace brasa::cpu::BRASA_ISA {

/// Vectors of channels side by side, 4 chains for each of two sums.
constexpr int kSumVectors = kTileRows == 12 ? 2 : 1;
constexpr int64_t kRowsAhead = 16;  ///< that a strip fetches
/// With 16 registers two sums do not fit beside one another.
constexpr bool kSumsTogether = kTileRows == 12;
constexpr int64_t kNormGrain = 32 * 1024;  ///< elements per chunk, some 10 us

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
/// The pairs of all blocks and channels, apart so that channels fill vectors: [block * c +
/// channel].
struct Pairs {
  double *first, *second;
  Pairs at(int64_t i) const { return {first + i, second + i}; }
};

// ---- C order
// -----------------------------------------------------------------------------------------

template <class T> using RunSum = LaneSum<T, order::kRowLanes>;

/// Calls f(i, p, live) for the vectors at p of every run of a block; i is as in each_part().
template <class T, class F> BRASA_INLINE void each_of_runs(const T* x, const Block& b, const F& f) {
  for (int64_t r = 0; r < b.runs; ++r) {
    const T* run = x + b.first + r * b.step;
    each_part<T, RunSum<T>::kParts>(b.length,
                                    [&](int i, int64_t j, int64_t live) { f(i, run + j, live); });
  }
}

/// The part of a block whose mean the sums of distances start from.
static inline Block head_of(const Block& b) {
  const auto part = [](int64_t n) { return (n - 1) / order::kHeadPart + 1; };
  if (b.runs > 1) return {b.first, part(b.runs), b.length, b.step};
  return {b.first, b.runs, part(b.length), b.step};
}

template <class T> static Pair plane_statistics(const T* x, const Block& b) {
  const double count = double(b.runs * b.length);
  const Block head = head_of(b);
  RunSum<T> sum, offsets, squares;
  each_of_runs(x, head, [&](int i, const T* p, int64_t live) { sum.add(i, read(p, live), live); });
  const T shift = sum.total() / T(head.runs * head.length);
  const Vec<T> s = broadcast(shift);
  const auto add_offset = [&](int i, const T* p, int64_t live) {
    __builtin_prefetch(p + b.length);  // what comes next: memory would idle while this is in L1
    offsets.add(i, read(p, live) - s, live);
  };
  const auto add_square = [&](int i, const T* p, int64_t live) {
    squares.add_square(i, read(p, live) - s, live);
  };
  if constexpr (kSumsTogether) {
    each_of_runs(x, b, [&](int i, const T* p, int64_t live) {
      add_offset(i, p, live);
      add_square(i, p, live);
    });
  } else {
    each_of_runs(x, b, add_offset);
    each_of_runs(x, b, add_square);
  }
  const double e = double(offsets.total());
  return {double(shift) + e / count, double(squares.total()) - e * e / count};
}

/// Per channel: what normalising began with, and the bias where a relu followed it.
template <class T> struct ChannelNumbers {
  const T *mean, *scale, *relu_bias;
  ChannelNumbers at(int64_t c) const {
    return {mean + c, scale + c, relu_bias ? relu_bias + c : nullptr};
  }
};

/// The gradient before the relu of distance * scale + bias from that behind it.
template <class V> BRASA_INLINE V before_relu(V dy, V distance, V scale, V bias) {
  return dy * Relu::derivative(fma(distance, scale, bias), V{}, V{});
}

template <bool kRelu, class T>
static Pair plane_products(const T* dy, const T* x, const ChannelNumbers<T>& numbers,
                           const Block& b) {
  const Vec<T> m = broadcast(*numbers.mean), scale = broadcast(*numbers.scale);
  const Vec<T> bias = kRelu ? broadcast(*numbers.relu_bias) : Vec<T>{};
  RunSum<T> sum, products;
  each_of_runs(dy, b, [&](int i, const T* p, int64_t live) {
    Vec<T> g = read(p, live);
    const Vec<T> distance = read(x + (p - dy), live) - m;
    if (kRelu) g = before_relu(g, distance, scale, bias);
    sum.add(i, g, live);
    products.add(i, g * distance, live);
  });
  return {double(sum.total()), double(products.total())};
}

// ---- channels-last
// -----------------------------------------------------------------------------------

/// Sums over rows of f(row, vector, sum): four chains, rows r, r + 4, ..., added pairwise.
template <int kVectors, int kSums, class T, class F>
BRASA_INLINE void sum_rows(int64_t rows, Vec<T> (&total)[kSums][kVectors], const F& f) {
  Vec<T> chain[4][kSums][kVectors] = {};
  const auto add_row = [&](int k, int64_t r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<T> sums[kSums];
#pragma GCC unroll 2
      for (int i = 0; i < kSums; ++i) sums[i] = chain[k][i][v];
      f(r, v, sums);
#pragma GCC unroll 2
      for (int i = 0; i < kSums; ++i) chain[k][i][v] = sums[i];
    }
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) add_row(k, r + k);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 3; ++k)
    if (r + k < rows) add_row(k, r + k);
#pragma GCC unroll 2
  for (int i = 0; i < kSums; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      total[i][v] = (chain[0][i][v] + chain[1][i][v]) + (chain[2][i][v] + chain[3][i][v]);
}

/// A strip of a channels-last array: kVectors vectors of channels, the last with `live` lanes.
template <int kVectors, class T> struct Strip {
  static constexpr int kWidth = kLanes<T>;
  const T* data;
  int64_t step, live;

  BRASA_INLINE_MEMBER Vec<T> at(int64_t r, int v) const {
    return read(data + r * step + v * kWidth, live);
  }
  /// The same, with the row that comes kRowsAhead later fetched.
  BRASA_INLINE_MEMBER Vec<T> at_first_sight(int64_t r, int v) const {
    __builtin_prefetch(data + (r + kRowsAhead) * step + v * kWidth);
    return at(r, v);
  }
  int64_t channels() const { return (kVectors - 1) * kWidth + live; }
};

template <int kVectors, class T>
BRASA_INLINE void row_statistics(const T* x, const Block& b, int64_t live, Pairs result) {
  constexpr int kWidth = kLanes<T>;
  const Strip<kVectors, T> strip{x + b.first, b.step, live};
  const double part = 1 / double(b.runs);
  const int64_t head = head_of(b).runs;
  Vec<T> shift[1][kVectors], total[2][kVectors];
  sum_rows<kVectors, 1, T>(
      head, shift, [&](int64_t r, int v, Vec<T>* sums) { sums[0] += strip.at_first_sight(r, v); });
  for (int v = 0; v < kVectors; ++v) shift[0][v] *= broadcast(1 / T(head));
  sum_rows<kVectors, 2, T>(b.runs, total, [&](int64_t r, int v, Vec<T>* sums) {
    const Vec<T> d = strip.at_first_sight(r, v) - shift[0][v];
    sums[0] += d;
    sums[1] = fma(d, d, sums[1]);
  });
  alignas(64) T s[kVectors * kWidth], e[kVectors * kWidth], q[kVectors * kWidth];
  for (int v = 0; v < kVectors; ++v) {
    store(s + v * kWidth, shift[0][v]);
    store(e + v * kWidth, total[0][v]);
    store(q + v * kWidth, total[1][v]);
  }
  for (int64_t i = 0; i < strip.channels(); ++i) {
    const double error = double(e[i]) * part;
    result.first[i] = double(s[i]) + error;
    result.second[i] = double(q[i]) - double(e[i]) * error;
  }
}

template <bool kRelu, int kVectors, class T>
BRASA_INLINE void row_products(const T* dy, const T* x, const ChannelNumbers<T>& numbers,
                               const Block& b, int64_t live, Pairs result) {
  constexpr int kWidth = kLanes<T>;
  const Strip<kVectors, T> dy_strip{dy + b.first, b.step, live}, x_strip{x + b.first, b.step, live};
  Vec<T> m[kVectors], scale[kVectors], bias[kVectors], total[2][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    m[v] = read(numbers.mean + v * kWidth, live);
    if (kRelu) scale[v] = read(numbers.scale + v * kWidth, live);
    if (kRelu) bias[v] = read(numbers.relu_bias + v * kWidth, live);
  }
  sum_rows<kVectors, 2, T>(b.runs, total, [&](int64_t r, int v, Vec<T>* sums) {
    Vec<T> g = dy_strip.at_first_sight(r, v);
    const Vec<T> distance = x_strip.at_first_sight(r, v) - m[v];
    if (kRelu) g = before_relu(g, distance, scale[v], bias[v]);
    sums[0] += g;
    sums[1] = fma(g, distance, sums[1]);
  });
  alignas(64) T sums[2][kVectors * kWidth];
  for (int i = 0; i < 2; ++i)
    for (int v = 0; v < kVectors; ++v) store(sums[i] + v * kWidth, total[i][v]);
  for (int64_t i = 0; i < dy_strip.channels(); ++i) {
    result.first[i] = double(sums[0][i]);
    result.second[i] = double(sums[1][i]);
  }
}

// ---- over the whole array
// ------------------------------------------------------------------------------

/// of_plane(block, channel) -> Pair for one block of an array in C order.
template <class OfPlane>
BRASA_INLINE void sum_plane_block(const BatchNormParams& p, const ChannelBlocks& blocks,
                                  int64_t block, int64_t c, Pairs results,
                                  const OfPlane& of_plane) {
  const Pair pair = of_plane(block_at(p, blocks, block, c), c);
  results.first[block * p.c + c] = pair.first;
  results.second[block * p.c + c] = pair.second;
}

/// The same for all blocks of n channels from c on, along memory.
template <class OfPlane>
static void sum_planes(const BatchNormParams& p, int64_t c, int64_t n, Pairs results,
                       const OfPlane& of_plane) {
  const ChannelBlocks blocks = channel_blocks(p);
  for (int64_t first = 0; first < blocks.count; first += blocks.parts)
    for (int64_t channel = c; channel < c + n; ++channel)
      for (int64_t block = first; block < first + blocks.parts; ++block)
        sum_plane_block(p, blocks, block, channel, results, of_plane);
}

/// of_plane(block, channel) -> Pair, or of_rows.operator()<vectors>(block, channel, live lanes,
/// Pairs), over all blocks and channels; the most vectors are kRowVectors.
template <class T, int kRowVectors, class OfPlane, class OfRows>
static void each_block(Context ctx, const BatchNormParams& p, Pairs results,
                       const OfPlane& of_plane, const OfRows& of_rows) {
  const ChannelBlocks blocks = channel_blocks(p);
  if (!p.channels_last) {
    const int64_t grain = kNormGrain / (blocks.rows * (p.s > 0 ? p.s : 1)) + 1;
    parallel_for(ctx, blocks.count * p.c, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)  // along memory
        sum_plane_block(p, blocks, i / blocks.parts / p.c * blocks.parts + i % blocks.parts,
                        i / blocks.parts % p.c, results, of_plane);
    });
    return;
  }
  constexpr int64_t kGroup = kRowVectors * kLanes<T>;
  parallel_for(ctx, blocks.count, kNormGrain / (blocks.rows * (p.c > 0 ? p.c : 1)) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   const Pairs result = results.at(block * p.c);
                   int64_t c = 0;
                   for (; c + kGroup <= p.c; c += kGroup)
                     of_rows.template operator()<kRowVectors>(block_at(p, blocks, block, c), c,
                                                              kLanes<T>, result.at(c));
                   for (; c < p.c; c += kLanes<T>)
                     of_rows.template operator()<1>(block_at(p, blocks, block, c), c,
                                                    p.c - c < kLanes<T> ? p.c - c : kLanes<T>,
                                                    result.at(c));
                 }
               });
}

}  // namespace brasa::cpu::BRASA_ISA
