// The steps of attention on tensor cores at warp level (sm_80 and later), for operands of 16
// bits, and of float32 where tf32 is allowed.
//
// Rows of features lie in shared memory, brought by asynchronous copies of 16 bytes, zeros beyond
// the operand. A warp owns 16 kM rows of a tile of scores and all of its columns, as parts of 16 x
// 8 accumulators: rows meet rows (their features are the depth), and what becomes of the scores is,
// two neighbours packed to a register, the left operand of the next product, whose right one are
// rows as well (their index is the depth; ldmatrix transposes them). Nothing returns to shared
// memory, and warps wait for each other only when a tile is replaced.
//
// Scores are in units of log 2: scale log2(e) q . k, so that an exponential is one instruction.
#pragma once

#include "attention/attention_mma.h"
#include "attention/attention_tile.cuh"
#include "core/ptx_convert.cuh"
#include "core/ptx_math.cuh"
#include "matmul/gemm_mma.cuh"

namespace brasa::cuda {

constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * simt::kWarpSize;
constexpr float kLog2E = 1.44269504088896340736f, kLog2 = 0.69314718055994530942f;

/// Rows of 16-bit features in shared memory. 16 bytes lie between them, so that eight rows' pieces
/// of one column, which ldmatrix reads at once, are in different banks.
template <class T, int kRowCount, int kFeatureCount> struct alignas(16) FeatureTile {
  static constexpr int kRows = kRowCount, kFeatures = kFeatureCount;
  T at[kRows][kFeatures + kPiece<T>];
};

/// A warp's accumulators: 16 x 8 parts.
template <int kM, int kN> using Parts = float[kM][kN][4];
/// 8 x 8 parts of a depth that one step takes.
template <class T> constexpr int kStepParts = 4 / int(sizeof(T));
/// A warp's left operand from kN parts: 16 x 16 of 16 bits, 16 x 8 of tf32.
template <class T, int kM, int kN> using Packed = uint32_t[kM][kN / kStepParts<T>][4];

BRASA_DEVICE_FN int lane_row() {
  return int(threadIdx.x) % simt::kWarpSize / 4;
}
BRASA_DEVICE_FN int lane_column() {
  return 2 * (int(threadIdx.x) % 4);
}

/// The rows of one position of an array.
template <class T> struct FeatureRows {
  const T* data;
  int64_t row, rows;
  int features;
  bool pieces;  ///< every row begins at a multiple of 16 bytes

  BRASA_DEVICE_FN FeatureRows(const T* position, int64_t stride, int64_t rows_, int64_t features_)
      : data(position), row(stride), rows(rows_), features(int(features_)) {
    pieces = features > 0 && stride % kPiece<T> == 0 && simt::pack_aligned(position);
  }

  /// Starts the copies of the rows from `first` on; all threads call. A thread's pieces are below
  /// each other.
  template <class Tile> BRASA_DEVICE_FN void copy(Tile& tile, int64_t first) const {
    constexpr int kPerRow = Tile::kFeatures / kPiece<T>, kLines = kMmaThreads / kPerRow;
    const int live_rows = rows - first < Tile::kRows ? int(rows - first) : Tile::kRows;
    if (!pieces) return copy_singly(tile, data + first * row, live_rows);
    const int line = int(threadIdx.x) / kPerRow, f = int(threadIdx.x) % kPerRow * kPiece<T>;
    const int left = features - f, columns = left <= 0 ? 0 : left < kPiece<T> ? left : kPiece<T>;
    const T* from = data + (first + line) * row + f;
#pragma unroll
    for (int c = 0; c * kLines < Tile::kRows; ++c) {
      const int i = c * kLines + line;
      if (line >= kLines || i >= Tile::kRows) break;
      const int live = i < live_rows ? columns : 0;
      simt::cp_async<kPieceBytes>(&tile.at[i][f], live ? from : data, live * int(sizeof(T)));
      from += kLines * row;
    }
  }

 private:
  template <class Tile>
  BRASA_DEVICE_FN void copy_singly(Tile& tile, const T* from, int live_rows) const {
#pragma unroll 2
    for (int e = int(threadIdx.x); e < Tile::kRows * Tile::kFeatures; e += kMmaThreads) {
      const int i = e / Tile::kFeatures, f = e % Tile::kFeatures;
      tile.at[i][f] = i < live_rows && f < features ? from[i * row + f] : T{};
    }
  }
};

// ---------------------------------------------------------------------------------------- products

/// sum = the products of a warp's rows, from `row` of `left` on, and all rows of `right`.
template <class T, int kM, int kN, class Left, class Right>
BRASA_DEVICE_FN void multiply_rows(const Left& left, int row, const Right& right,
                                   Parts<kM, kN>& sum) {
  static_assert(Right::kRows == 8 * kN);
  const int lane = int(threadIdx.x) % simt::kWarpSize;
#pragma unroll
  for (int e = 0; e < kM * kN * 4; ++e) sum[e / (4 * kN)][e / 4 % kN][e % 4] = 0;
#pragma unroll
  for (int f = 0; f < Left::kFeatures; f += 8 * kStepParts<T>) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m)
      simt::ldmatrix_x4(a[m], &left.at[row + 16 * m + lane % 16][f + lane / 16 * kPiece<T>]);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      const int i = 8 * n + lane % 8 + lane / 16 * 8;
      simt::ldmatrix_x4(b, &right.at[i][f + lane / 8 % 2 * kPiece<T>]);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_step<T>(sum[m][n], a[m], first);
        multiply_step<T>(sum[m][n + 1], a[m], second);
      }
    }
  }
}

/// Registers of the right operand for a step of the rows from `row` on and the 16 features from f
/// on: two neighbouring parts. Of tf32 the rows of a part come in the order that pack() gives.
template <class T, class Right>
BRASA_DEVICE_FN void load_depth(const Right& right, int row, int f, uint32_t (&b)[4]) {
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  if constexpr (sizeof(T) == 2) {
    simt::ldmatrix_x4_trans(b, &right.at[row + lane % 16][f + lane / 16 * 8]);
  } else {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const T& element = right.at[row + lane_column() + r % 2][f + r / 2 * 8 + lane_row()];
      b[r] = reinterpret_cast<const uint32_t&>(element);
    }
  }
}

/// sum += weights x rows; the depth is the rows' index.
template <class T, int kM, int kSteps, int kN, class Right>
BRASA_DEVICE_FN void add_weighted(const uint32_t (&weights)[kM][kSteps][4], const Right& right,
                                  Parts<kM, kN>& sum) {
  constexpr int kStep = 8 * kStepParts<T>;
  static_assert(Right::kRows == kStep * kSteps && Right::kFeatures == 8 * kN);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      load_depth<T>(right, kStep * step, 8 * n, b);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_step<T>(sum[m][n], weights[m][step], first);
        multiply_step<T>(sum[m][n + 1], weights[m][step], second);
      }
    }
  }
}

/// Accumulators as a left operand. Of 16 bits its registers hold the same places; of tf32 columns 2
/// i and 2 i + 1 become columns i and i + 4.
template <class T, int kM, int kN>
BRASA_DEVICE_FN void pack(const Parts<kM, kN>& s, Packed<T, kM, kN>& packed) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (sizeof(T) == 4)
          packed[m][n][e % 2 * 2 + e / 2] = simt::to_tf32(s[m][n][e]);
        else if (e % 2 == 0)
          packed[m][n / 2][n % 2 * 2 + e / 2] = simt::narrow_pair<T>(s[m][n][e], s[m][n][e + 1]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ scores

/// Where a warp's scores stand: their first query and key.
struct ScorePlace {
  int64_t query, key;
};

/// What one position does to its scores. kAcross: their rows are keys and their columns queries.
template <bool kAcross> struct MmaScores {
  const AttentionParams& p;
  AttentionMask<float> mask;
  const AttentionDropout<float>& dropout;
  int64_t index;
  float factor;

  BRASA_DEVICE_FN MmaScores(const AttentionParams& params, const AttentionMask<float>& of_batch,
                            const AttentionDropout<float>& drops, int64_t position,
                            const BatchPlace& in_batch)
      : p(params),
        mask(of_batch),
        dropout(drops),
        index(position),
        factor(float(params.scale) * kLog2E) {
    if (!mask.allowed && !mask.added) return;
    const int64_t offset = in_batch.offset(of_batch.strides);
    if (mask.allowed) mask.allowed += offset;
    if (mask.added) mask.added += offset;
  }

  /// Calls f(s, query, key) for a thread's scores, with their numbers from `place` on.
  template <int kM, int kN, class F>
  static BRASA_DEVICE_FN void each(Parts<kM, kN>& s, const F& f) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = 16 * m + e / 2 * 8 + lane_row(), column = 8 * n + lane_column() + e % 2;
          f(s[m][n][e], kAcross ? column : row, kAcross ? row : column);
        }
      }
    }
  }

  /// Turns products into scores: -infinity where a query may not attend to a key.
  template <int kM, int kN> BRASA_DEVICE_FN void apply(ScorePlace place, Parts<kM, kN>& s) const {
    constexpr int kQueries = kAcross ? 8 * kN : 16 * kM, kKeys = kAcross ? 16 * kM : 8 * kN;
    each(s, [&](float& score, int, int) { score *= factor; });
    const auto near = [](int64_t n) { return n > 1024 ? 1024 : n < -1024 ? -1024 : int(n); };
    const int queries = near(p.l - place.query), keys = near(p.s - place.key);
    const int ahead = p.causal ? near(place.query - place.key) : 1024;
    if (mask.allowed || mask.added) add_mask(place, queries, keys, s);
    if (keys >= kKeys && queries >= kQueries && ahead >= kKeys - 1) return;
    each(s, [&](float& score, int i, int j) {
      if (i >= queries || j >= keys || j - i > ahead) score = -infinity<float>();
    });
  }

  /// Sets the weights that dropout drops to 0; those it keeps are not scaled yet.
  template <int kM, int kN> BRASA_DEVICE_FN void drop(ScorePlace place, Parts<kM, kN>& s) const {
    if (dropout.threshold == 0) return;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const unsigned kept = kept_bits<kN>(place, 16 * m);
#pragma unroll
      for (int e = 0; e < 4 * kN; ++e)
        if (!(kept >> e & 1)) s[m][e / 4][e % 4] = 0;
    }
  }

 private:
  /// A row at a time, or addresses would fill the registers.
  template <int kM, int kN>
  BRASA_DEVICE_FN void add_mask(ScorePlace place, int queries, int keys, Parts<kM, kN>& s) const {
    const int64_t down = kAcross ? mask.column : mask.strides.row;
    const int64_t along = kAcross ? mask.strides.row : mask.column;
    const int rows = kAcross ? keys : queries, columns = kAcross ? queries : keys;
#pragma unroll
    for (int half = 0; half < 2 * kM; ++half) {
      const int row = 8 * half + lane_row();
      int64_t at = place.query * mask.strides.row + place.key * mask.column + row * down +
                   lane_column() * along;
      BRASA_FORGET(at);
#pragma unroll
      for (int e = 0; e < 2 * kN; ++e) {
        const int column = e / 2 * 8 + lane_column() + e % 2;
        float& score = s[half / 2][e / 2][half % 2 * 2 + e % 2];
        if (row < rows && column < columns) add_mask(score, at);
        at += e % 2 ? 7 * along : along;
      }
    }
  }
  BRASA_DEVICE_FN void add_mask(float& score, int64_t at) const {
    if (mask.allowed) {
      if (!mask.allowed[at]) score = -infinity<float>();
      return;
    }
    const float added = mask.added[at];
    score = added == -infinity<float>() ? added : fma(added, kLog2E, score);
  }
  /// Bit 4 n + e says whether accumulator e of part n of the rows from `row` on is kept. A loop, as
  /// each of them may need a counter of its own; neighbouring keys often share one.
  template <int kN> BRASA_DEVICE_FN unsigned kept_bits(ScorePlace place, int row) const {
    static_assert(4 * kN <= 32);
    unsigned bits = 0;
    uint32_t word[4] = {};
    uint64_t counter = ~uint64_t(0);
#pragma unroll 1
    for (int e = 0; e < 4 * kN; ++e) {
      const int r = row + e % 4 / 2 * 8 + lane_row(), c = e / 4 * 8 + lane_column() + e % 2;
      const int64_t i = place.query + (kAcross ? c : r), j = place.key + (kAcross ? r : c);
      const auto element = uint64_t((index * p.l + i) * p.s + j);
      if (element / 4 != counter) {
        counter = element / 4;
        philox_words(simt::read(p.seed), simt::read(p.offset) + counter, word);
      }
      const auto which = unsigned(element % 4);
      const uint32_t low = which & 1 ? word[1] : word[0], high = which & 1 ? word[3] : word[2];
      bits |= unsigned((which & 2 ? high : low) >= dropout.threshold) << e;
    }
    return bits;
  }
};

// ----------------------------------------------------------------------------------------- results

/// Over the four threads that share a row; every one gets the same bits.
template <class Operation> BRASA_DEVICE_FN float reduce_quad(float value, Operation operation) {
#pragma unroll
  for (int offset = 2; offset > 0; offset /= 2)
    value = operation(value, __shfl_xor_sync(simt::kFullMask, value, offset));
  return value;
}

/// Writes factor times a warp's results to the rows and features that exist.
template <class T, int kM, int kN>
BRASA_DEVICE_FN void store_parts(T* position, int64_t stride, int64_t first, int64_t rows,
                                 int64_t features, const float (&factor)[kM][2],
                                 const Parts<kM, kN>& sum) {
  const bool pairs =
      stride % 2 == 0 && reinterpret_cast<uintptr_t>(position) % (2 * sizeof(T)) == 0;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t r = first + 16 * m + 8 * half + lane_row();
      if (r >= rows) continue;
      T* const to = position + r * stride;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int c = 8 * n + lane_column();
        const simt::Lanes<float, 2> pair{factor[m][half] * sum[m][n][2 * half],
                                         factor[m][half] * sum[m][n][2 * half + 1]};
        if (pairs && c + 1 < features) {
          simt::store_wide<T, 2>(to + c, pair);
          continue;
        }
        if (c < features) to[c] = simt::narrow<T>(pair[0]);
        if (c + 1 < features) to[c + 1] = simt::narrow<T>(pair[1]);
      }
    }
  }
}

/// Writes what a warp's keys or queries from `mine` on have summed: dk and dv, or dq.
template <bool kOfKeys, class T, int kM, int kValueM, int kN>
BRASA_DEVICE_FN void store_gradients(const AttentionParams& p, const AttentionGradients<T>& g,
                                     int64_t index, int64_t mine, float kept_scale,
                                     const Parts<kM, kN>& of_features,
                                     const Parts<kValueM, kN>& of_values) {
  const BatchPlace in_batch(p, index);
  float of_scores[kM][2], of_weights[kM][2];
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    of_scores[i / 2][i % 2] = float(p.scale);
    of_weights[i / 2][i % 2] = kept_scale;
  }
  if constexpr (!kOfKeys) {
    store_parts(g.dq + in_batch.offset(g.dq_strides), g.dq_strides.row, mine, p.l, p.e, of_scores,
                of_features);
  } else {
    if (g.dk)
      store_parts(g.dk + in_batch.offset(g.dk_strides), g.dk_strides.row, mine, p.s, p.e, of_scores,
                  of_features);
    if (g.dv)
      store_parts(g.dv + in_batch.offset(g.dv_strides), g.dv_strides.row, mine, p.s, p.ev,
                  of_weights, of_values);
  }
}

// --------------------------------------------------------------------------------------- launchers

/// Calls f.operator()<n>() with the width of tile that both numbers of features need.
template <class T, class F> void with_features(const AttentionParams& p, const F& f) {
  const int64_t most = p.e > p.ev ? p.e : p.ev;
  if (most > kMostFeatures<T>) throw std::invalid_argument("too many features");
  if (most <= 32) return f.template operator()<32>();
  if (most <= 64) return f.template operator()<64>();
  if (most <= 96) return f.template operator()<96>();
  if constexpr (kMostFeatures<T> == 128) f.template operator()<128>();
}

/// A block for each tile of rows and position (in strides where there are too many).
template <class Tiles>
simt::LaunchConfig mma_grid(Context ctx, const AttentionParams& p, int64_t rows) {
  static_assert(sizeof(Tiles) <= 99 * 1024, "what every GPU from sm_80 on gives a block");
  constexpr int64_t kMost = 65535;
  return {.grid = dim3(unsigned(simt::ceil_div<int64_t>(rows, Tiles::kRows)),
                       unsigned(p.count < kMost ? p.count : kMost)),
          .block = dim3(kMmaThreads),
          .smem = sizeof(Tiles),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

}  // namespace brasa::cuda
