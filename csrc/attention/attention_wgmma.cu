// The forward pass on Hopper's tensor cores, without masks and dropout.
//
// A block keeps 64 queries for each multiplying warpgroup; keys and values pass by in tiles of 128,
// the last ones first, so that only the first tiles of a block have hidden keys. While a group
// turns scores into weights, its product of the weights before with their values is under way, and
// those of the other groups: they start their products in turn, so that one group's exponentials
// meet the others' products.
//
// Floor: 128 x 128 scores of 64 features are 1,024 cycles of the tensor cores, and as many of the
// special function units, which make 16 exponentials a cycle; of 128 features 2,048 and 1,024.
#include "attention/attention_wgmma.cuh"

namespace brasa::cuda {

constexpr int kForwardKeys = 128;

template <int kFeatureCount> struct WgmmaForwardTile {
  static constexpr int kFeatures = kFeatureCount, kGroups = 2, kRows = 64 * kGroups;
  static constexpr int kKeys = kForwardKeys, kStages = kFeatures > 64 ? 2 : 4;
  static constexpr int kThreads = (1 + kGroups) * kGroupThreads;
};

template <class Tile> struct WgmmaForwardShared {
  unsigned char queries[rows_bytes<Tile::kFeatures>(Tile::kRows)];
  unsigned char keys[Tile::kStages][rows_bytes<Tile::kFeatures>(Tile::kKeys)];
  unsigned char values[Tile::kStages][rows_bytes<Tile::kFeatures>(Tile::kKeys)];
  simt::Barrier queries_full, queries_empty, turn[Tile::kGroups];
  simt::Barrier keys_full[Tile::kStages], keys_empty[Tile::kStages];
  simt::Barrier values_full[Tile::kStages], values_empty[Tile::kStages];
};

/// The keys that a tile of queries sees, in rounds from the last tile of them to the first.
struct SeenKeys {
  int64_t query, end, full;  ///< all queries see the keys before `full`
  int rounds;

  BRASA_DEVICE_FN SeenKeys(const AttentionParams& p, int64_t first, int rows) : query(first) {
    end = p.causal && first + rows < p.s ? first + rows : p.s;
    full = p.causal && first + 1 < p.s ? first + 1 : p.s;
    rounds = int(simt::ceil_div<int64_t>(end, kForwardKeys));
  }
  BRASA_DEVICE_FN int64_t key(int round) const {
    return int64_t(rounds - 1 - round) * kForwardKeys;
  }
};

#if BRASA_HAS_WGMMA

template <class Tile>
BRASA_DEVICE_FN void load_forward(WgmmaForwardShared<Tile>& shared, const AttentionParams& p,
                                  const AttentionWalk& walk, int64_t inner_count,
                                  const RowsMap& queries, const RowsMap& keys,
                                  const RowsMap& values) {
  constexpr int kFeatures = Tile::kFeatures;
  RingPlace<Tile::kStages> ring;
  unsigned parity = 0;
  walk.each([&](int64_t tile, int64_t position) {
    const int inner = int(position % inner_count), outer = int(position / inner_count);
    const SeenKeys seen(p, tile * Tile::kRows, Tile::kRows);
    simt::barrier_wait(&shared.queries_empty, parity ^ 1);
    simt::barrier_expect(&shared.queries_full, rows_bytes<kFeatures>(Tile::kRows));
    load_rows<kFeatures, Tile::kRows>(shared.queries, queries, &shared.queries_full, seen.query,
                                      inner, outer);
    parity ^= 1;
    for (int round = 0; round < seen.rounds; ++round, ring.advance()) {
      simt::barrier_wait(&shared.keys_empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(&shared.keys_full[ring.stage], rows_bytes<kFeatures>(Tile::kKeys));
      load_rows<kFeatures, Tile::kKeys>(shared.keys[ring.stage], keys,
                                        &shared.keys_full[ring.stage], seen.key(round), inner,
                                        outer);
      simt::barrier_wait(&shared.values_empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(&shared.values_full[ring.stage], rows_bytes<kFeatures>(Tile::kKeys));
      load_rows<kFeatures, Tile::kKeys>(shared.values[ring.stage], values,
                                        &shared.values_full[ring.stage], seen.key(round), inner,
                                        outer);
    }
  });
}

/// Two rows of a thread: the running maximum of their products, and this thread's part of the sum
/// of exponentials.
struct WgmmaRowSums {
  float maximum[2], total[2];
};

/// Hides what lies behind the keys or is ahead of its query.
template <int kKeys>
BRASA_DEVICE_FN void hide_keys(const AttentionParams& p, int64_t query, int64_t key,
                               float (&s)[kKeys / 2]) {
  int end[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t ahead = query + 8 * half + lane_row() + 1;
    const int64_t left = (p.causal && ahead < p.s ? ahead : p.s) - key;
    end[half] = (left < kKeys ? int(left) : kKeys) - lane_column();
  }
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i)
    if (i / 4 * 8 + i % 2 >= end[i / 2 % 2]) s[i] = -infinity<float>();
}

/// Products become weights relative to the new maximum, of which `change` tells what the old one
/// was. Four chains of maxima and of sums.
template <int kKeys>
BRASA_DEVICE_FN void weigh_keys(float factor, float (&s)[kKeys / 2], WgmmaRowSums& rows,
                                float (&change)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top[2] = {rows.maximum[half], s[2 * half]};
#pragma unroll
    for (int i = 2 * half; i < kKeys / 2; i += 4)
      top[0] = ::fmaxf(top[0], s[i]), top[1] = ::fmaxf(top[1], s[i + 1]);
    const float maximum =
        reduce_quad(::fmaxf(top[0], top[1]), [](float a, float b) { return ::fmaxf(a, b); });
    const float shift = maximum == -infinity<float>() ? 0.0f : maximum * factor;
    change[half] = simt::exp2_approx(fma(rows.maximum[half], factor, -shift));
    rows.maximum[half] = maximum;
    float sum[2] = {};
#pragma unroll
    for (int i = 2 * half; i < kKeys / 2; i += 4) {
      sum[0] += s[i] = simt::exp2_approx(fma(s[i], factor, -shift));
      sum[1] += s[i + 1] = simt::exp2_approx(fma(s[i + 1], factor, -shift));
    }
    rows.total[half] = rows.total[half] * change[half] + (sum[0] + sum[1]);
  }
}

/// Where a multiplying group stands in the rings; groups start their products in turn.
template <class Tile> struct ForwardGroup {
  WgmmaForwardShared<Tile>& shared;
  int group = int(threadIdx.x) / kGroupThreads - 1;
  RingPlace<Tile::kStages> keys, values;
  unsigned queries = 0, turn = group == 0;

  BRASA_DEVICE_FN explicit ForwardGroup(WgmmaForwardShared<Tile>& s) : shared(s) {}
  BRASA_DEVICE_FN void take_turn() {
    simt::barrier_wait(&shared.turn[group], turn);
    turn ^= 1;
  }
  BRASA_DEVICE_FN void pass_turn() const { arrive_warp(shared.turn[(group + 1) % Tile::kGroups]); }

  /// Starts the products of the queries and the next tile of keys.
  template <class T> BRASA_DEVICE_FN void start_scores(float (&s)[Tile::kKeys / 2]) const {
    start_rows_by_rows<T, Tile::kFeatures, Tile::kRows, Tile::kKeys>(
        shared.queries + group * 64 * kLine128, shared.keys[keys.stage], s);
  }
  BRASA_DEVICE_FN void finish_scores(bool last) {
    arrive_warp(shared.keys_empty[keys.stage]);
    if (last) arrive_warp(shared.queries_empty);
    keys.advance();
  }
  /// Starts adding the weighted values of the next tile.
  template <class T>
  BRASA_DEVICE_FN void start_values(const uint32_t (&weights)[Tile::kKeys / 16][4], bool accumulate,
                                    float (&out)[Tile::kFeatures / 2]) const {
    simt::barrier_wait(&shared.values_full[values.stage], values.parity);
    start_weights_by_rows<T, Tile::kFeatures, Tile::kKeys>(weights, shared.values[values.stage],
                                                           accumulate, out);
  }
  BRASA_DEVICE_FN void finish_values() {
    arrive_warp(shared.values_empty[values.stage]);
    values.advance();
  }
};

/// A multiplying warpgroup's tile of queries.
template <class T, class Tile>
BRASA_DEVICE_FN void attend(ForwardGroup<Tile>& g, const AttentionParams& p, const SeenKeys& seen,
                            int64_t query, float factor, WgmmaRowSums& rows,
                            float (&out)[Tile::kFeatures / 2]) {
  constexpr int kKeys = Tile::kKeys;
  float s[kKeys / 2], change[2];
  uint32_t weights[kKeys / 16][4];
  const auto hide = [&](int round) {
    const int64_t key = seen.key(round);
    if (key + kKeys > seen.full) hide_keys<kKeys>(p, query, key, s);
  };
  simt::barrier_wait(&g.shared.queries_full, g.queries);
  g.queries ^= 1;
  simt::barrier_wait(&g.shared.keys_full[g.keys.stage], g.keys.parity);
  g.take_turn();
  g.template start_scores<T>(s);
  g.pass_turn();
  simt::wgmma_wait<0>();
  simt::wgmma_done(s);
  g.finish_scores(seen.rounds == 1);
  hide(0);
  weigh_keys<kKeys>(factor, s, rows, change);
  pack_rows<T, kKeys>(s, weights);
#pragma unroll 1
  for (int round = 1; round < seen.rounds; ++round) {
    simt::barrier_wait(&g.shared.keys_full[g.keys.stage], g.keys.parity);
    g.take_turn();
    g.template start_scores<T>(s);
    g.template start_values<T>(weights, round > 1, out);
    g.pass_turn();
    simt::wgmma_wait<1>();
    simt::wgmma_done(s);
    g.finish_scores(round + 1 == seen.rounds);
    hide(round);
    weigh_keys<kKeys>(factor, s, rows, change);
    simt::wgmma_wait<0>();
    simt::wgmma_done(out);
    g.finish_values();
#pragma unroll
    for (int i = 0; i < Tile::kFeatures / 2; ++i) out[i] *= change[i / 2 % 2];
    pack_rows<T, kKeys>(s, weights);
  }
  g.template start_values<T>(weights, seen.rounds > 1, out);
  simt::wgmma_wait<0>();
  simt::wgmma_done(out);
  g.finish_values();
}

template <class T, class Tile>
BRASA_DEVICE_FN void attend_units(WgmmaForwardShared<Tile>& shared, const AttentionParams& p,
                                  const AttentionWalk& walk, T* y, float* log_sum) {
  constexpr int kParts = Tile::kFeatures / 8;
  const float factor = float(p.scale) * kLog2E;
  ForwardGroup<Tile> group(shared);
  walk.each([&](int64_t tile, int64_t position) {
    const SeenKeys seen(p, tile * Tile::kRows, Tile::kRows);
    const int64_t query = seen.query + group.group * 64 +
                          int(threadIdx.x) % kGroupThreads / simt::kWarpSize * 16;  // of this warp
    WgmmaRowSums rows{{-infinity<float>(), -infinity<float>()}, {0, 0}};
    float out[Tile::kFeatures / 2], inverse[1][2];
    attend<T, Tile>(group, p, seen, query, factor, rows, out);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = reduce_quad(rows.total[half], simt::Sum{});
      inverse[0][half] = 1.0f / total;
      const int64_t at = query + 8 * half + lane_row();
      if (log_sum && lane_column() == 0 && at < p.l)
        log_sum[position * p.l + at] = fma(rows.maximum[half] * factor, kLog2, vlog(total));
    }
    store_parts(y + BatchPlace(p, position).offset(p.y), p.y.row, query, p.l, p.ev, inverse,
                reinterpret_cast<const Parts<1, kParts>&>(out));
  });
}

#endif

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wgmma_attention_kernel(const __grid_constant__ AttentionParams p, AttentionWalk walk,
                           int64_t inner_count, const __grid_constant__ RowsMap queries,
                           const __grid_constant__ RowsMap keys,
                           const __grid_constant__ RowsMap values, T* y, float* log_sum) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(WgmmaForwardShared<Tile>, shared);
  if (threadIdx.x == 0) {
    simt::barrier_init(&shared->queries_full, 1);
    simt::barrier_init(&shared->queries_empty, Tile::kGroups * kGroupWarps);
    for (simt::Barrier& turn : shared->turn) simt::barrier_init(&turn, kGroupWarps);
    for (int s = 0; s < Tile::kStages; ++s) {
      simt::barrier_init(&shared->keys_full[s], 1);
      simt::barrier_init(&shared->values_full[s], 1);
      simt::barrier_init(&shared->keys_empty[s], Tile::kGroups * kGroupWarps);
      simt::barrier_init(&shared->values_empty[s], Tile::kGroups * kGroupWarps);
    }
    simt::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    simt::release_registers<40>();
    if (threadIdx.x == 0) load_forward<Tile>(*shared, p, walk, inner_count, queries, keys, values);
  } else {
    simt::acquire_registers<232>();
    attend_units<T, Tile>(*shared, p, walk, y, log_sum);
  }
#endif
}

// --------------------------------------------------------------------------------------- launchers

template <class T, class Tile>
static void launch_forward(Context ctx, const AttentionParams& p, const BatchPlane& plane,
                           const T* q, const T* k, const T* v, T* y, float* log_sum) {
  const AttentionWalk walk = attention_walk(p, p.l, Tile::kRows);
  simt::launch(wgmma_grid<Tile, WgmmaForwardShared<Tile>>(ctx, walk),
               wgmma_attention_kernel<T, Tile>, p, walk, plane.count,
               map_rows(q, p, p.q, p.l, p.e, plane, Tile::kRows),
               map_rows(k, p, p.k, p.s, p.e, plane, Tile::kKeys),
               map_rows(v, p, p.v, p.s, p.ev, plane, Tile::kKeys), y, log_sum);
}

template <class T>
bool wgmma_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                   const AttentionMask<float>& mask, T* y, float* log_sum) {
  const BatchPlane plane = wgmma_plane(p, mask, {{q, p.q, p.l}, {k, p.k, p.s}, {v, p.v, p.s}});
  if (!plane.exists) return false;
  p.e > 64 || p.ev > 64
      ? launch_forward<T, WgmmaForwardTile<128>>(ctx, p, plane, q, k, v, y, log_sum)
      : launch_forward<T, WgmmaForwardTile<64>>(ctx, p, plane, q, k, v, y, log_sum);
  return true;
}

BRASA_INSTANTIATE(wgmma_forward, float16, bfloat16)

}  // namespace brasa::cuda
