// The backward pass on tensor cores. Blocks of keys sum dk and dv over the queries that pass by,
// blocks of queries sum dq over keys: scores and dy . v are computed twice, and every gradient is
// summed in order, without atomics. Seven products of the scores' size, where five would do.
#include "attention/attention_mma.cuh"

namespace brasa::cuda {

/// The block's own rows, q and dy or k and v, and those that pass by: v and k, or dy and q.
template <class T, int kFeatures, bool kOfKeys> struct BackwardTiles {
  // As registers and 99 KB of shared memory allow.
  static constexpr int kM = kFeatures > (kOfKeys || sizeof(T) == 4 ? 32 : 64) ? 1 : 2;
  static constexpr int kRows = 16 * kM * kMmaWarps;
  static constexpr int kPassing = kFeatures > (sizeof(T) == 4 ? 64 : kOfKeys ? 96 : 128) ? 16 : 32;
  struct Passing {
    FeatureTile<T, kPassing, kFeatures> first, second;
    float log_sum[kPassing], delta[kPassing];  ///< of the queries that pass
  };
  FeatureTile<T, kRows, kFeatures> first, second;
  Passing passing[2];
};

/// log_sum and delta of a thread's scores, by part, then by half (rows) or by neighbour (columns).
template <int kN> struct QuerySums {
  float log_sum[kN][2], delta[kN][2];
};

/// Those of rows of queries, from global memory; 0 beyond them.
template <int kM>
BRASA_DEVICE_FN void read_sums(const float* log_sum, const float* delta, int64_t query, int64_t l,
                               QuerySums<kM>& sums) {
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int64_t at = query + 8 * i + lane_row();
    sums.log_sum[i / 2][i % 2] = at < l ? log_sum[at] : 0.0f;
    sums.delta[i / 2][i % 2] = at < l ? delta[at] : 0.0f;
  }
}

/// Those of columns of queries, from shared memory.
template <int kN>
BRASA_DEVICE_FN void read_sums(const float* log_sum, const float* delta, QuerySums<kN>& sums) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const auto logs = simt::load_pack<2>(log_sum + 8 * n + lane_column());
    const auto deltas = simt::load_pack<2>(delta + 8 * n + lane_column());
#pragma unroll
    for (int e = 0; e < 2; ++e) sums.log_sum[n][e] = logs[e], sums.delta[n][e] = deltas[e];
  }
}

/// Scores become weights.
template <bool kOfKeys, int kM, int kN, int kSums>
BRASA_DEVICE_FN void weigh(const QuerySums<kSums>& sums, Parts<kM, kN>& s) {
#pragma unroll
  for (int e = 0; e < 4 * kM * kN; ++e) {
    const int m = e / (4 * kN), n = e / 4 % kN, r = e % 4;
    const float log_sum = kOfKeys ? sums.log_sum[n][r % 2] : sums.log_sum[m][r / 2];
    s[m][n][r] = simt::exp2_approx(fma(log_sum, -kLog2E, s[m][n][r]));
  }
}

/// slope = weight (scale slope - delta): the gradient of the scores from that of the weights.
template <bool kOfKeys, int kM, int kN, int kSums>
BRASA_DEVICE_FN void slope_of_scores(const QuerySums<kSums>& sums, float scale,
                                     const Parts<kM, kN>& weight, Parts<kM, kN>& slope) {
#pragma unroll
  for (int e = 0; e < 4 * kM * kN; ++e) {
    const int m = e / (4 * kN), n = e / 4 % kN, r = e % 4;
    const float delta = kOfKeys ? sums.delta[n][r % 2] : sums.delta[m][r / 2];
    slope[m][n][r] = weight[m][n][r] * fma(scale, slope[m][n][r], -delta);
  }
}

/// blockIdx.x: the tile of keys (kOfKeys) or queries; y: positions, in strides.
template <class T, int kFeatures, bool kOfKeys>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_gradient_kernel(AttentionParams p, const T* q, const T* k, const T* v,
                        AttentionMask<float> mask, AttentionDropout<float> dropout,
                        const float* log_sum, const float* delta, AttentionGradients<T> g) {
  using Tiles = BackwardTiles<T, kFeatures, kOfKeys>;
  constexpr int kM = Tiles::kM, kPassing = Tiles::kPassing, kN = kPassing / 8;
  BRASA_DYN_SHARED(Tiles, tiles);
  // Tiles of queries that see most keys come first, as do the keys that most queries see.
  const int64_t tile = kOfKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  const int64_t first = tile * Tiles::kRows;
  const int row = int(threadIdx.x) / simt::kWarpSize * 16 * kM;
  const int64_t mine = first + row;  // of this warp
  const int64_t begin = kOfKeys && p.causal ? first : 0;
  const int64_t visible = p.causal && first + Tiles::kRows < p.s ? first + Tiles::kRows : p.s;
  const int64_t end = kOfKeys ? p.l : visible, rows = kOfKeys ? p.s : p.l;
  for (int64_t index = blockIdx.y; index < p.count; index += gridDim.y) {
    const BatchPlace in_batch(p, index);
    const MmaScores<kOfKeys> scores(p, mask, dropout, index, in_batch);
    const FeatureRows<T> queries(q + in_batch.offset(p.q), p.q.row, p.l, p.e);
    const FeatureRows<T> keys(k + in_batch.offset(p.k), p.k.row, p.s, p.e);
    const FeatureRows<T> values(v + in_batch.offset(p.v), p.v.row, p.s, p.ev);
    const FeatureRows<T> slopes(g.dy + in_batch.offset(g.dy_strides), g.dy_strides.row, p.l, p.ev);
    const float *const log_sums = log_sum + index * p.l, *const deltas = delta + index * p.l;
    const auto fetch = [&](int64_t other) {
      if (other < end) {
        auto& passing = tiles->passing[other / kPassing % 2];
        (kOfKeys ? queries : keys).copy(passing.first, other);
        (kOfKeys ? slopes : values).copy(passing.second, other);
        const int i = int(threadIdx.x);
        if (kOfKeys && i < kPassing) {
          const bool live = other + i < p.l;
          simt::cp_async<4>(&passing.log_sum[i], live ? log_sums + other + i : log_sums, live * 4);
          simt::cp_async<4>(&passing.delta[i], live ? deltas + other + i : deltas, live * 4);
        }
      }
      simt::cp_async_commit();
    };
    QuerySums<kOfKeys ? kN : kM> sums;
    if constexpr (!kOfKeys) read_sums(log_sums, deltas, mine, p.l, sums);
    Parts<kM, kFeatures / 8> of_features = {};              // dk or dq
    Parts<kOfKeys ? kM : 1, kFeatures / 8> of_values = {};  // dv
    (kOfKeys ? keys : queries).copy(tiles->first, first);
    (kOfKeys ? values : slopes).copy(tiles->second, first);
    const int rounds = begin < end ? int(simt::ceil_div<int64_t>(end - begin, kPassing)) : 0;
#pragma unroll 1
    for (int round = -1; round < rounds; ++round) {  // fetch() is large: there is one of it
      const int64_t other = begin + int64_t(round) * kPassing;
      simt::cp_async_wait<0>();
      __syncthreads();  // others' copies have landed, and all are done with the tiles before
      fetch(other + kPassing);
      if (round < 0) continue;
      const ScorePlace place{kOfKeys ? other : mine, kOfKeys ? mine : other};
      const int64_t last_query = place.query + (kOfKeys ? kPassing : 16 * kM) - 1;
      if (mine >= rows || (p.causal && place.key > last_query)) continue;
      const auto& passing = tiles->passing[other / kPassing % 2];
      if constexpr (kOfKeys) read_sums(passing.log_sum, passing.delta, sums);
      Parts<kM, kN> weight, slope;
      Packed<T, kM, kN> packed;
      multiply_rows<T>(tiles->first, row, passing.first, weight);
      scores.apply(place, weight);
      weigh<kOfKeys>(sums, weight);
      multiply_rows<T>(tiles->second, row, passing.second, slope);
      scores.drop(place, slope);
      slope_of_scores<kOfKeys>(sums, dropout.scale, weight, slope);
      if constexpr (kOfKeys) {
        scores.drop(place, weight);
        pack<T>(weight, packed);
        add_weighted<T>(packed, passing.second, of_values);
      }
      pack<T>(slope, packed);
      add_weighted<T>(packed, passing.first, of_features);
    }
    store_gradients<kOfKeys>(p, g, index, mine, dropout.scale, of_features, of_values);
    simt::cp_async_wait<0>();
    __syncthreads();  // before the next position's copies
  }
}

template <bool kOfKeys, int kFeatures, class T>
static void launch_gradient(Context ctx, const AttentionParams& p, const T* q, const T* k,
                            const T* v, const AttentionMask<float>& mask, const float* log_sum,
                            const float* delta, const AttentionGradients<T>& g) {
  using Tiles = BackwardTiles<T, kFeatures, kOfKeys>;
  simt::launch(mma_grid<Tiles>(ctx, p, kOfKeys ? p.s : p.l),
               mma_gradient_kernel<T, kFeatures, kOfKeys>, p, q, k, v, mask,
               AttentionDropout<float>(p.dropout), log_sum, delta, g);
}

template <class T>
void mma_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                  const AttentionMask<float>& mask, const float* log_sum, const float* delta,
                  const AttentionGradients<T>& g) {
  with_features<T>(p, [&]<int kFeatures>() {
    if (g.dq && p.l > 0)
      launch_gradient<false, kFeatures>(ctx, p, q, k, v, mask, log_sum, delta, g);
    if ((g.dk || g.dv) && p.s > 0)
      launch_gradient<true, kFeatures>(ctx, p, q, k, v, mask, log_sum, delta, g);
  });
}

BRASA_INSTANTIATE_1(mma_backward, float)
BRASA_INSTANTIATE(mma_backward, float16, bfloat16)

}  // namespace brasa::cuda
