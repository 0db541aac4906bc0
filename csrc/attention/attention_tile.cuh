// The steps of attention on a tile of 64 queries and 64 keys, on CUDA.
//
// 16 x 16 threads hold 4 x 4 scores each, queries along the rows of threads, so that the 16 threads
// of a row are half a warp and reduce a query's scores by shuffles. Scores come from
// multiply_rounds() of the matrix product. Weights then pass through shared memory, where they are
// the left operand of the second product; they take the place of the first one's left tiles.
#pragma once

#include "attention/attention.h"
#include "core/random.h"
#include "core/vmath.cuh"
#include "matmul/gemm_tile.cuh"

namespace brasa::cuda {

template <class T> using AttentionTile = TileShape<T, 4, 4>;
constexpr int kSide = 64, kPer = 4;  // of a tile; results per thread along each side

template <class T> using DepthTile = SharedTile<T, kSide, AttentionTile<T>::kDepth>;
template <class T> inline constexpr int kDepthTiles = kSide / AttentionTile<T>::kDepth;

/// Shared memory of a block; the first product's left tiles lie where the weights do.
template <class T> struct AttentionShared {
  DepthTile<T> weights[kDepthTiles<T>];
  DepthTile<T> right[2];
};

/// Rows [first, first + live) of one position of an array, or of its columns from `column` on.
template <class T> struct TileRows {
  const T* data;
  int64_t row;
  int live, columns;  ///< rows; columns from the first on
  bool packs;         ///< rows begin at a multiple of a pack, counted from an aligned address

  BRASA_DEVICE_FN TileRows(const T* position, int64_t stride, int64_t first, int64_t rows,
                           int64_t column, int64_t all_columns)
      : data(position + first * stride + column),
        row(stride),
        live(int(rows - first < kSide ? rows - first : kSide)),
        columns(int(all_columns - column)) {
    packs = stride % simt::kPackLanes<T> == 0 && simt::pack_aligned(data);
  }
  /// The pack of row i that begins at column c; 0 outside.
  BRASA_DEVICE_FN simt::Pack<T, simt::kPackLanes<T>> at(int i, int c) const {
    constexpr int kLanes = simt::kPackLanes<T>;
    simt::Pack<T, kLanes> pack{};
    if (i >= live || c >= columns) return pack;
    const T* const from = data + i * row + c;
    if (packs && c + kLanes <= columns) return simt::load_pack<kLanes>(from);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (c + lane < columns) pack[lane] = from[lane];
    return pack;
  }
};

/// Two arrays of rows whose features are the depth, for multiply_rounds().
template <class T> struct RowOperands {
  DepthTile<T>*left, *right;
  TileRows<T> a, b;
  TilePart<T, kSide, AttentionTile<T>::kDepth> a_part, b_part;

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const int first = int(round) * AttentionTile<T>::kDepth;
    a_part.fetch(true, [&](int, int i, int p) { return a.at(i, first + p); });
    b_part.fetch(true, [&](int, int i, int p) { return b.at(i, first + p); });
  }
  BRASA_DEVICE_FN void store(unsigned copy) {
    a_part.store(true, left[copy]);
    b_part.store(true, right[copy]);
  }
};

/// sum = the products of all rows of a and b; all threads call.
template <class T>
BRASA_DEVICE_FN void multiply_features(AttentionShared<T>& shared, const TileRows<T>& a,
                                       const TileRows<T>& b, T (&sum)[kPer][kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) sum[i][j] = 0;
  }
  RowOperands<T> operands{shared.weights, shared.right, a, b};
  multiply_rounds<AttentionTile<T>, T>(
      unsigned(simt::ceil_div(a.columns, AttentionTile<T>::kDepth)), operands, sum);
}

/// sum += weights^T x the columns of `rows`: the tile of weights has its depth, the index of these
/// rows, first. All threads call, after they have written the weights.
template <class T>
BRASA_DEVICE_FN void multiply_weights(AttentionShared<T>& shared, const TileRows<T>& rows,
                                      T (&sum)[kPer][kPer]) {
  constexpr int kDepth = AttentionTile<T>::kDepth;
  TilePart<T, kSide, kDepth> part;
  const auto fetch = [&](int round) {
    part.fetch(false, [&](int, int i, int p) { return rows.at(round * kDepth + p, i); });
  };
  fetch(0);
  part.store(false, shared.right[0]);
  __syncthreads();
  for (int round = 0; round < kDepthTiles<T>; ++round) {
    const bool more = round + 1 < kDepthTiles<T>;
    if (more) fetch(round + 1);
    multiply_tile<AttentionTile<T>, T>(shared.weights[round], shared.right[round % 2], sum);
    if (more) part.store(false, shared.right[1 - round % 2]);
    __syncthreads();
  }
}

/// A thread's weights to shared memory: [key][query] where the depth is keys, else [query][key].
template <class T>
BRASA_DEVICE_FN void store_weights(AttentionShared<T>& shared, bool depth_is_keys,
                                   const T (&weight)[kPer][kPer]) {
  constexpr int kDepth = AttentionTile<T>::kDepth;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int query = place<T>(thread_row<AttentionTile<T>>(), i),
                key = place<T>(thread_column<AttentionTile<T>>(), j);
      const int depth = depth_is_keys ? key : query, extent = depth_is_keys ? query : key;
      shared.weights[depth / kDepth][depth % kDepth][extent] = weight[i][j];
    }
  }
}

/// Over the 16 threads that share their queries; every one gets the same bits.
template <class T, class Operation> BRASA_DEVICE_FN T reduce_row(T value, Operation operation) {
#pragma unroll
  for (int offset = kTileSide / 2; offset > 0; offset /= 2)
    value = operation(value, __shfl_xor_sync(simt::kFullMask, value, offset));
  return value;
}

/// A position's place along each dimension of the batch, found once for all operands: divisions
/// for each of them were a third of a kernel's code. Unrolled, or the strides would be copied to
/// local memory.
struct BatchPlace {
  int64_t at[kMaxAttentionBatch];

  BRASA_DEVICE_FN BatchPlace(const AttentionParams& p, int64_t index) {
#pragma unroll
    for (int d = kMaxAttentionBatch - 1; d >= 0; --d) {
      at[d] = 0;
      if (d >= p.rank) continue;
      const int64_t rest = index / p.shape[d];
      at[d] = index - rest * p.shape[d];
      index = rest;
    }
  }
  BRASA_DEVICE_FN int64_t offset(const AttentionStrides& strides) const {
    int64_t offset = 0;
#pragma unroll
    for (int d = 0; d < kMaxAttentionBatch; ++d) offset += at[d] * strides.batch[d];
    return offset;
  }
};

/// What dropout does to weights: words below the threshold drop theirs, others scale it.
template <class T> struct AttentionDropout {
  uint64_t threshold;
  T scale;

  explicit AttentionDropout(double p)
      : threshold(philox::threshold(p)), scale(p == 1 ? T(0) : T(1 / (1 - p))) {}
};

/// What one position does to its scores.
template <class T> struct Scores {
  const AttentionParams& p;
  AttentionMask<T> mask;
  const AttentionDropout<T>& dropout;
  int64_t index;

  BRASA_DEVICE_FN Scores(const AttentionParams& params, const AttentionMask<T>& of_batch,
                         const AttentionDropout<T>& drops, int64_t position,
                         const BatchPlace& in_batch)
      : p(params), mask(of_batch), dropout(drops), index(position) {
    if (!of_batch.allowed && !of_batch.added) return;
    const int64_t offset = in_batch.offset(of_batch.strides);
    if (mask.allowed) mask.allowed += offset;
    if (mask.added) mask.added += offset;
  }
  /// The score of query i and key j from their product; -infinity where i may not attend to j.
  BRASA_DEVICE_FN T at(T product, int64_t i, int64_t j) const {
    if (i >= p.l || j >= p.s || (p.causal && j > i)) return -infinity<T>();
    const T s = T(p.scale) * product;
    const int64_t where = i * mask.strides.row + j * mask.column;
    if (mask.allowed) return mask.allowed[where] ? s : -infinity<T>();
    if (!mask.added) return s;
    const T added = mask.added[where];
    return added == -infinity<T>() ? added : s + added;
  }
  /// Turns the products of a tile into scores.
  BRASA_DEVICE_FN void apply(T (&s)[kPer][kPer], int64_t query, int64_t key) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j)
        s[i][j] = at(s[i][j], query + place<T>(thread_row<AttentionTile<T>>(), i),
                     key + place<T>(thread_column<AttentionTile<T>>(), j));
    }
  }
  /// Bit 4 i + j says whether dropout keeps the thread's weight (i, j). A loop of 16, as each of
  /// them may need a counter of its own.
  BRASA_DEVICE_FN unsigned kept(int64_t query, int64_t key) const {
    unsigned bits = 0;
#pragma unroll 1
    for (int e = 0; e < kPer * kPer; ++e) {
      const int64_t i = query + place<T>(thread_row<AttentionTile<T>>(), e / kPer);
      const int64_t j = key + place<T>(thread_column<AttentionTile<T>>(), e % kPer);
      const auto element = uint64_t((index * p.l + i) * p.s + j);
      uint32_t word[4];
      philox_words(simt::read(p.seed), simt::read(p.offset) + element / 4, word);
      const auto which = unsigned(element % 4);
      const uint32_t low = which & 1 ? word[1] : word[0], high = which & 1 ? word[3] : word[2];
      bits |= unsigned((which & 2 ? high : low) >= dropout.threshold) << e;
    }
    return bits;
  }
};

/// Writes factor[i] times a thread's results to the rows and columns that exist.
template <class T>
BRASA_DEVICE_FN void store_rows(T* position, int64_t stride, int64_t first, int64_t rows,
                                int64_t column, int64_t columns, const T (&factor)[kPer],
                                const T (&sum)[kPer][kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int64_t r = first + place<T>(thread_row<AttentionTile<T>>(), i);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int64_t c = column + place<T>(thread_column<AttentionTile<T>>(), j);
      if (r < rows && c < columns) position[r * stride + c] = factor[i] * sum[i][j];
    }
  }
}

}  // namespace brasa::cuda
