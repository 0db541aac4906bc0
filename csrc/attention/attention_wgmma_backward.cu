// The backward pass on Hopper's tensor cores, without masks and dropout: as that of
// attention_mma_backward.cu, blocks of keys sum dk and dv over the queries that pass by, blocks of
// queries sum dq over keys, and every gradient is summed in order, without atomics. Seven products
// of the scores' size, where five would do with dq from the blocks of keys; but those would have to
// add to it in turn.
//
// A group's products of weights and slopes are under way when it starts the scores of the next
// rows that pass.
#include "attention/attention_wgmma.cuh"

namespace brasa::cuda {

/// The block's own rows, k and v or q and dy, and those that pass by: q and dy, or k and v. Those
/// of 128 features that pass keys are few, or both sums leave no registers for products under way.
template <int kFeatureCount, bool kForKeys> struct WgmmaBackwardTile {
  static constexpr bool kOfKeys = kForKeys;
  static constexpr int kFeatures = kFeatureCount, kGroups = 2, kRows = 64 * kGroups;
  static constexpr int kPassing = (kOfKeys ? 64 : 128) / (kFeatures > 64 ? 2 : 1), kStages = 4;
  static constexpr int kThreads = (1 + kGroups) * kGroupThreads;
};

template <class Tile> struct WgmmaBackwardShared {
  struct Passing {
    unsigned char first[rows_bytes<Tile::kFeatures>(Tile::kPassing)];
    unsigned char second[rows_bytes<Tile::kFeatures>(Tile::kPassing)];
  };
  unsigned char first[rows_bytes<Tile::kFeatures>(Tile::kRows)];
  unsigned char second[rows_bytes<Tile::kFeatures>(Tile::kRows)];
  Passing passing[Tile::kStages];
  struct {
    float shift[Tile::kPassing], delta[Tile::kPassing];
  } sums[Tile::kOfKeys ? Tile::kStages : 1];  ///< of queries that pass
  simt::Barrier own_full, own_empty, full[Tile::kStages], empty[Tile::kStages];
};

/// The block's rows and those that pass, in the order of the tensors first and second.
struct GradientMaps {
  RowsMap first, second, passing_first, passing_second;
};

/// What a kernel of the backward pass is told besides.
struct GradientSums {
  const float *log_sum, *delta;  ///< of all queries

  /// By how much a query's scaled products, in units of log 2, exceed the log of its weights.
  BRASA_DEVICE_FN float shift(int64_t position, int64_t l, int64_t query) const {
    return query < l ? log_sum[position * l + query] * kLog2E : infinity<float>();
  }
  BRASA_DEVICE_FN float of_slopes(int64_t position, int64_t l, int64_t query) const {
    return query < l ? delta[position * l + query] : 0.0f;
  }
};

/// A tile of keys (kOfKeys) or queries, and the rows of the other that pass it.
template <class Tile> struct GradientUnit {
  int64_t position, first, begin;
  int rounds;

  BRASA_DEVICE_FN GradientUnit(const AttentionParams& p, int64_t tile, int64_t of_position)
      : position(of_position), first(tile * Tile::kRows) {
    begin = Tile::kOfKeys && p.causal ? first : 0;
    const int64_t seen = p.causal && first + Tile::kRows < p.s ? first + Tile::kRows : p.s;
    const int64_t count = (Tile::kOfKeys ? p.l : seen) - begin;
    rounds = count > 0 ? int(simt::ceil_div<int64_t>(count, Tile::kPassing)) : 0;
  }
  BRASA_DEVICE_FN int64_t passing(int round) const {
    return begin + int64_t(round) * Tile::kPassing;
  }
};

#if BRASA_HAS_WGMMA

/// The thread that starts copies.
template <class Tile>
BRASA_DEVICE_FN void load_backward(WgmmaBackwardShared<Tile>& shared, const AttentionParams& p,
                                   const AttentionWalk& walk, int64_t inner_count,
                                   const GradientMaps& maps) {
  constexpr int kFeatures = Tile::kFeatures, kRows = Tile::kRows, kPassing = Tile::kPassing;
  RingPlace<Tile::kStages> ring;
  unsigned parity = 0;
  walk.each([&](int64_t tile, int64_t position) {
    const GradientUnit<Tile> unit(p, tile, position);
    const int inner = int(unit.position % inner_count), outer = int(unit.position / inner_count);
    simt::barrier_wait(&shared.own_empty, parity ^ 1);
    parity ^= 1;
    simt::barrier_expect(&shared.own_full, 2 * rows_bytes<kFeatures>(kRows));
    load_rows<kFeatures, kRows>(shared.first, maps.first, &shared.own_full, unit.first, inner,
                                outer);
    load_rows<kFeatures, kRows>(shared.second, maps.second, &shared.own_full, unit.first, inner,
                                outer);
    for (int round = 0; round < unit.rounds; ++round, ring.advance()) {
      auto& to = shared.passing[ring.stage];
      simt::Barrier* const full = &shared.full[ring.stage];
      simt::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(full, 2 * rows_bytes<kFeatures>(kPassing));
      load_rows<kFeatures, kPassing>(to.first, maps.passing_first, full, unit.passing(round), inner,
                                     outer);
      load_rows<kFeatures, kPassing>(to.second, maps.passing_second, full, unit.passing(round),
                                     inner, outer);
    }
  });
}

/// The warp that brings the sums of queries that pass.
template <class Tile>
BRASA_DEVICE_FN void load_sums(WgmmaBackwardShared<Tile>& shared, const AttentionParams& p,
                               const AttentionWalk& walk, const GradientSums& sums) {
  RingPlace<Tile::kStages> ring;
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  walk.each([&](int64_t tile, int64_t position) {
    const GradientUnit<Tile> unit(p, tile, position);
    for (int round = 0; round < unit.rounds; ++round, ring.advance()) {
      auto& to = shared.sums[ring.stage];
      simt::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
#pragma unroll
      for (int i = lane; i < Tile::kPassing; i += simt::kWarpSize) {
        const int64_t query = unit.passing(round) + i;
        to.shift[i] = sums.shift(unit.position, p.l, query);
        to.delta[i] = sums.of_slopes(unit.position, p.l, query);
      }
      simt::barrier_arrive(&shared.full[ring.stage]);
    }
  });
}

/// Hides keys that lie behind the last or ahead of their query, for a thread's rows from `row` on
/// and all that pass.
template <class Tile>
BRASA_DEVICE_FN void hide_scores(const AttentionParams& p, int64_t row, int64_t passing,
                                 float (&s)[Tile::kPassing / 2]) {
  constexpr int kPassing = Tile::kPassing;
  const auto near = [](int64_t n) { return n > kPassing ? kPassing : n < 0 ? 0 : int(n); };
  int first[2], end[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t mine = row + 8 * half + lane_row();
    const int64_t seen = p.causal && mine + 1 < p.s ? mine + 1 : p.s;
    first[half] = near(Tile::kOfKeys && p.causal ? mine - passing : 0) - lane_column();
    end[half] = near(Tile::kOfKeys ? kPassing : seen - passing) - lane_column();
  }
#pragma unroll
  for (int i = 0; i < kPassing / 2; ++i) {
    const int column = i / 4 * 8 + i % 2, half = i / 2 % 2;
    if (column < first[half] || column >= end[half]) s[i] = -infinity<float>();
  }
}

/// A thread's sums of queries: two rows of them, or two neighbours of a part of columns.
struct PairOfSums {
  float shift[2], delta[2];
};

/// Where a multiplying group stands.
template <class Tile> struct GradientGroup {
  WgmmaBackwardShared<Tile>& shared;
  int group = int(threadIdx.x) / kGroupThreads - 1;
  RingPlace<Tile::kStages> ring;
  int before = 0;  ///< the stage of the round before
  unsigned own = 0;

  BRASA_DEVICE_FN explicit GradientGroup(WgmmaBackwardShared<Tile>& s) : shared(s) {}
  BRASA_DEVICE_FN void give_back() const { arrive_warp(shared.empty[before]); }

  /// The sums of the columns of part n.
  BRASA_DEVICE_FN PairOfSums columns(int n) const {
    const auto& sums = shared.sums[ring.stage];
    const auto shift = simt::load_pack<2>(sums.shift + 8 * n + lane_column());
    const auto delta = simt::load_pack<2>(sums.delta + 8 * n + lane_column());
    return {{shift[0], shift[1]}, {delta[0], delta[1]}};
  }
};

/// Sums what passes a multiplying group's rows from `row` on.
template <class T, class Tile>
BRASA_DEVICE_FN void sum_gradients(GradientGroup<Tile>& g, const AttentionParams& p,
                                   const GradientUnit<Tile>& unit, int64_t row,
                                   const PairOfSums& mine,
                                   float (&of_features)[Tile::kFeatures / 2],
                                   float (&of_values)[Tile::kOfKeys ? Tile::kFeatures / 2 : 1]) {
  constexpr int kFeatures = Tile::kFeatures, kPassing = Tile::kPassing, kRows = Tile::kRows;
  const float factor = float(p.scale) * kLog2E;
  float s[kPassing / 2], slope[kPassing / 2];
  uint32_t weights[Tile::kOfKeys ? kPassing / 16 : 1][4], slopes[kPassing / 16][4];
  simt::barrier_wait(&g.shared.own_full, g.own);
  g.own ^= 1;
#pragma unroll 1
  for (int round = 0; round < unit.rounds; ++round) {
    const auto& passing = g.shared.passing[g.ring.stage];
    const int64_t other = unit.passing(round);
    simt::barrier_wait(&g.shared.full[g.ring.stage], g.ring.parity);
    start_rows_by_rows<T, kFeatures, kRows, kPassing>(g.shared.first + g.group * 64 * kLine128,
                                                      passing.first, s);
    start_rows_by_rows<T, kFeatures, kRows, kPassing>(g.shared.second + g.group * 64 * kLine128,
                                                      passing.second, slope);
    simt::wgmma_wait<1>();
    simt::wgmma_done(s);
    if (round > 0) g.give_back();
    const bool hides =
        Tile::kOfKeys ? p.causal && other < unit.first + kRows
                      : other + kPassing > p.s || (p.causal && other + kPassing > unit.first + 1);
    if (hides) hide_scores<Tile>(p, row, other, s);
#pragma unroll
    for (int i = 0; i < kPassing / 2; i += 4) {
      const PairOfSums sums = Tile::kOfKeys ? g.columns(i / 4) : mine;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[i + e] =
            simt::exp2_approx(fma(s[i + e], factor, -sums.shift[Tile::kOfKeys ? e % 2 : e / 2]));
    }
    if constexpr (Tile::kOfKeys) {
      pack_rows<T, kPassing>(s, weights);
      start_weights_by_rows<T, kFeatures, kPassing>(weights, passing.second, true, of_values);
      simt::wgmma_wait<1>();
    } else {
      simt::wgmma_wait<0>();
    }
    simt::wgmma_done(slope);
#pragma unroll
    for (int i = 0; i < kPassing / 2; i += 4) {
      const PairOfSums sums = Tile::kOfKeys ? g.columns(i / 4) : mine;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        slope[i + e] = s[i + e] * (slope[i + e] - sums.delta[Tile::kOfKeys ? e % 2 : e / 2]);
    }
    pack_rows<T, kPassing>(slope, slopes);
    start_weights_by_rows<T, kFeatures, kPassing>(slopes, passing.first, true, of_features);
    g.before = g.ring.stage;
    g.ring.advance();
  }
  simt::wgmma_wait<0>();
  simt::wgmma_done(of_features);
  if constexpr (Tile::kOfKeys) simt::wgmma_done(of_values);
  if (unit.rounds > 0) g.give_back();
  arrive_warp(g.shared.own_empty);
}

/// A multiplying warpgroup: all units of its block.
template <class T, class Tile>
BRASA_DEVICE_FN void sum_units(WgmmaBackwardShared<Tile>& shared, const AttentionParams& p,
                               const AttentionWalk& walk, const GradientSums& sums,
                               const AttentionGradients<T>& gradients) {
  GradientGroup<Tile> group(shared);
  const int warp = int(threadIdx.x) % kGroupThreads / simt::kWarpSize;
  walk.each([&](int64_t tile, int64_t position) {
    const GradientUnit<Tile> unit(p, tile, position);
    const int64_t row = unit.first + group.group * 64 + warp * 16;
    PairOfSums mine{};
    if constexpr (!Tile::kOfKeys) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t query = row + 8 * half + lane_row();
        mine.shift[half] = sums.shift(unit.position, p.l, query);
        mine.delta[half] = sums.of_slopes(unit.position, p.l, query);
      }
    }
    constexpr int kFeatures = Tile::kFeatures, kParts = kFeatures / 8;
    float of_features[kFeatures / 2] = {}, of_values[Tile::kOfKeys ? kFeatures / 2 : 1] = {};
    sum_gradients<T, Tile>(group, p, unit, row, mine, of_features, of_values);
    const auto& features = reinterpret_cast<const Parts<1, kParts>&>(of_features);
    if constexpr (Tile::kOfKeys) {
      const auto& values = reinterpret_cast<const Parts<1, kParts>&>(of_values);
      store_gradients<true>(p, gradients, unit.position, row, 1.0f, features, values);
    } else {
      store_gradients<false>(p, gradients, unit.position, row, 1.0f, features, features);
    }
  });
}

#endif

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wgmma_gradient_kernel(const __grid_constant__ AttentionParams p, AttentionWalk walk,
                          int64_t inner_count, const __grid_constant__ GradientMaps maps,
                          GradientSums sums,
                          const __grid_constant__ AttentionGradients<T> gradients) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(WgmmaBackwardShared<Tile>, shared);
  if (threadIdx.x == 0) {
    simt::barrier_init(&shared->own_full, 1);
    simt::barrier_init(&shared->own_empty, Tile::kGroups * kGroupWarps);
    for (int s = 0; s < Tile::kStages; ++s) {
      simt::barrier_init(&shared->full[s], 1 + (Tile::kOfKeys ? simt::kWarpSize : 0));
      simt::barrier_init(&shared->empty[s], Tile::kGroups * kGroupWarps);
    }
    simt::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    simt::release_registers<40>();
    if (threadIdx.x == 0) load_backward<Tile>(*shared, p, walk, inner_count, maps);
    if (Tile::kOfKeys && threadIdx.x / simt::kWarpSize == 1) load_sums(*shared, p, walk, sums);
  } else {
    simt::acquire_registers<232>();
    sum_units<T, Tile>(*shared, p, walk, sums, gradients);
  }
#endif
}

// --------------------------------------------------------------------------------------- launchers

/// An array, and how many rows of how many features it has.
template <class T> struct GradientRows {
  const T* data;
  const AttentionStrides& strides;
  int64_t rows, features;
};

template <class Tile, class T>
static void launch_gradient(Context ctx, const AttentionParams& p, const BatchPlane& plane,
                            const GradientRows<T> (&own)[2], const GradientRows<T> (&passing)[2],
                            const GradientSums& sums, const AttentionGradients<T>& gradients) {
  const AttentionWalk walk = attention_walk(p, own[0].rows, Tile::kRows);
  const auto map = [&](const GradientRows<T>& x, int lines) {
    return map_rows(x.data, p, x.strides, x.rows, x.features, plane, lines);
  };
  const GradientMaps maps{map(own[0], Tile::kRows), map(own[1], Tile::kRows),
                          map(passing[0], Tile::kPassing), map(passing[1], Tile::kPassing)};
  simt::launch(wgmma_grid<Tile, WgmmaBackwardShared<Tile>>(ctx, walk),
               wgmma_gradient_kernel<T, Tile>, p, walk, plane.count, maps, sums, gradients);
}

template <class T>
bool wgmma_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                    const AttentionMask<float>& mask, const float* log_sum, const float* delta,
                    const AttentionGradients<T>& g) {
  const BatchPlane plane = wgmma_plane(
      p, mask, {{q, p.q, p.l}, {k, p.k, p.s}, {v, p.v, p.s}, {g.dy, g.dy_strides, p.l}});
  if (!plane.exists || p.l == 0) return false;
  const GradientRows<T> of_queries[2] = {{q, p.q, p.l, p.e}, {g.dy, g.dy_strides, p.l, p.ev}};
  const GradientRows<T> of_keys[2] = {{k, p.k, p.s, p.e}, {v, p.v, p.s, p.ev}};
  const GradientSums sums{log_sum, delta};
  const auto launch = [&]<int kFeatures>() {
    if (g.dq)
      launch_gradient<WgmmaBackwardTile<kFeatures, false>>(ctx, p, plane, of_queries, of_keys, sums,
                                                           g);
    if (g.dk || g.dv)
      launch_gradient<WgmmaBackwardTile<kFeatures, true>>(ctx, p, plane, of_keys, of_queries, sums,
                                                          g);
  };
  p.e > 64 || p.ev > 64 ? launch.template operator()<128>() : launch.template operator()<64>();
  return true;
}

BRASA_INSTANTIATE(wgmma_backward, float16, bfloat16)

}  // namespace brasa::cuda
