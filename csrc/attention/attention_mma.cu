// The forward pass on tensor cores: a block has 128 queries, or 64 of many features, by which keys
// and values pass.
#include "attention/attention_mma.cuh"

namespace brasa::cuda {

template <class T, int kFeatures> struct ForwardTiles {
  static constexpr int kM = kFeatures > 64 ? 1 : 2, kRows = 16 * kM * kMmaWarps;
  static constexpr int kKeys = sizeof(T) == 4 ? 32 : 64;
  FeatureTile<T, kRows, kFeatures> queries;
  FeatureTile<T, kKeys, kFeatures> keys[2], values[2];
};

/// Each row's running maximum, and this thread's part of its sum of exponentials.
template <int kM> struct RowSums {
  float maximum[kM][2], total[kM][2];
};

/// Scores become weights relative to the new maximum; `out` and the sums are scaled to it.
template <int kM, int kN, int kFeatureParts>
BRASA_DEVICE_FN void update_rows(Parts<kM, kN>& s, RowSums<kM>& rows,
                                 Parts<kM, kFeatureParts>& out) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = rows.maximum[m][half];
#pragma unroll
      for (int n = 0; n < kN; ++n)
        top = ::fmaxf(top, ::fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      top = reduce_quad(top, [](float a, float b) { return ::fmaxf(a, b); });
      const float finite = top == -infinity<float>() ? 0.0f : top;
      const float change = simt::exp2_approx(rows.maximum[m][half] - finite);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e)
          sum += s[m][n][e] = simt::exp2_approx(s[m][n][e] - finite);
      }
      rows.total[m][half] = rows.total[m][half] * change + sum;
      rows.maximum[m][half] = top;
#pragma unroll
      for (int n = 0; n < kFeatureParts; ++n)
        out[m][n][2 * half] *= change, out[m][n][2 * half + 1] *= change;
    }
  }
}

/// blockIdx.x: the tile of queries, those that see most keys first; y: positions, in strides.
template <class T, int kFeatures>
__global__ void __launch_bounds__(kMmaThreads, 2)
    mma_attention_kernel(AttentionParams p, const T* q, const T* k, const T* v,
                         AttentionMask<float> mask, AttentionDropout<float> dropout, T* y,
                         float* log_sum) {
  using Tiles = ForwardTiles<T, kFeatures>;
  constexpr int kM = Tiles::kM, kKeys = Tiles::kKeys, kN = kKeys / 8;
  BRASA_DYN_SHARED(Tiles, tiles);
  const int64_t first = int64_t(gridDim.x - 1 - blockIdx.x) * Tiles::kRows;
  const int row = int(threadIdx.x) / simt::kWarpSize * 16 * kM;
  const int64_t query = first + row;  // of this warp
  const int64_t end = p.causal && first + Tiles::kRows < p.s ? first + Tiles::kRows : p.s;
  const int rounds = int(simt::ceil_div<int64_t>(end, kKeys));
  for (int64_t index = blockIdx.y; index < p.count; index += gridDim.y) {
    const BatchPlace in_batch(p, index);
    const MmaScores<false> scores(p, mask, dropout, index, in_batch);
    const FeatureRows<T> queries(q + in_batch.offset(p.q), p.q.row, p.l, p.e);
    const FeatureRows<T> keys(k + in_batch.offset(p.k), p.k.row, p.s, p.e);
    const FeatureRows<T> values(v + in_batch.offset(p.v), p.v.row, p.s, p.ev);
    const auto fetch = [&](int round) {
      if (round < rounds) {
        keys.copy(tiles->keys[round % 2], int64_t(round) * kKeys);
        values.copy(tiles->values[round % 2], int64_t(round) * kKeys);
      }
      simt::cp_async_commit();
    };
    RowSums<kM> rows;
    Parts<kM, kFeatures / 8> out = {};
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i)
      rows.maximum[i / 2][i % 2] = -infinity<float>(), rows.total[i / 2][i % 2] = 0;
    queries.copy(tiles->queries, first);
#pragma unroll 1
    for (int round = -1; round < rounds; ++round) {  // fetch() is large: there is one of it
      simt::cp_async_wait<0>();
      __syncthreads();  // others' copies have landed, and all are done with the tiles before
      fetch(round + 1);
      if (round < 0) continue;
      const int64_t key = int64_t(round) * kKeys;
      if (query >= p.l || (p.causal && key >= query + 16 * kM)) continue;
      Parts<kM, kN> s;
      multiply_rows<T>(tiles->queries, row, tiles->keys[round % 2], s);
      scores.apply({query, key}, s);
      update_rows(s, rows, out);
      scores.drop({query, key}, s);
      Packed<T, kM, kN> weights;
      pack<T>(s, weights);
      add_weighted<T>(weights, tiles->values[round % 2], out);
    }
    float factor[kM][2];
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const float total = reduce_quad(rows.total[i / 2][i % 2], simt::Sum{});
      factor[i / 2][i % 2] = total == 0.0f ? 0.0f : dropout.scale / total;
      const int64_t at = query + 8 * i + lane_row();
      if (!log_sum || lane_column() || at >= p.l) continue;
      log_sum[index * p.l + at] =
          total == 0.0f ? infinity<float>() : fma(rows.maximum[i / 2][i % 2], kLog2, vlog(total));
    }
    store_parts(y + BatchPlace(p, index).offset(p.y), p.y.row, query, p.l, p.ev, factor, out);
    simt::cp_async_wait<0>();
    __syncthreads();  // before the next position's copies
  }
}

template <class T>
void mma_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                 const AttentionMask<float>& mask, T* y, float* log_sum) {
  with_features<T>(p, [&]<int kFeatures>() {
    using Tiles = ForwardTiles<T, kFeatures>;
    simt::launch(mma_grid<Tiles>(ctx, p, p.l), mma_attention_kernel<T, kFeatures>, p, q, k, v, mask,
                 AttentionDropout<float>(p.dropout), y, log_sum);
  });
}

BRASA_INSTANTIATE_1(mma_forward, float)
BRASA_INSTANTIATE(mma_forward, float16, bfloat16)

}  // namespace brasa::cuda
