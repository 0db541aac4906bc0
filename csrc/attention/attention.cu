#include "attention/attention_mma.h"
#include "attention/attention_tile.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

// ----------------------------------------------------------------------------------------- forward

/// A row's running maximum and sum of exponentials, held by each of its 16 threads.
template <class T> struct RowState {
  T maximum[kPer], total[kPer];
};

/// Scores become weights relative to the new maximum; `out` and the sums are scaled to it.
template <class T>
BRASA_DEVICE_FN void update_softmax(T (&s)[kPer][kPer], RowState<T>& state, T (&out)[kPer][kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    T m = state.maximum[i];
#pragma unroll
    for (int j = 0; j < kPer; ++j) m = s[i][j] > m ? s[i][j] : m;
    m = reduce_row(m, [](T a, T b) { return a > b ? a : b; });
    const T finite = m == -infinity<T>() ? T(0) : m;
    const T change = vexp(state.maximum[i] - finite);
    T sum = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      s[i][j] = vexp(s[i][j] - finite);
      sum += s[i][j];
    }
    state.total[i] = state.total[i] * change + reduce_row(sum, simt::Sum{});
    state.maximum[i] = m;
#pragma unroll
    for (int j = 0; j < kPer; ++j) out[i][j] *= change;
  }
}

template <class T>
BRASA_DEVICE_FN void drop_weights(const Scores<T>& scores, int64_t query, int64_t key,
                                  T (&weight)[kPer][kPer]) {
  if (scores.dropout.threshold == 0) return;
  const unsigned kept = scores.kept(query, key);
#pragma unroll
  for (int e = 0; e < kPer * kPer; ++e) {
    T& w = weight[e / kPer][e % kPer];
    w = kept >> e & 1 ? w * scores.dropout.scale : T(0);
  }
}

/// blockIdx.x: the tile of queries; y: which 64 columns of the values; z: positions, in strides.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    attention_kernel(AttentionParams p, const T* q, const T* k, const T* v, AttentionMask<T> mask,
                     AttentionDropout<T> dropout, T* y, T* log_sum) {
  BRASA_DYN_SHARED(AttentionShared<T>, shared);
  const int64_t query = int64_t(blockIdx.x) * kSide, column = int64_t(blockIdx.y) * kSide;
  const int64_t last = p.causal && query + kSide < p.s ? query + kSide : p.s;
  for (int64_t index = blockIdx.z; index < p.count; index += gridDim.z) {
    const BatchPlace in_batch(p, index);
    const Scores<T> scores(p, mask, dropout, index, in_batch);
    const TileRows<T> queries(q + in_batch.offset(p.q), p.q.row, query, p.l, 0, p.e);
    const T *keys = k + in_batch.offset(p.k), *values = v + in_batch.offset(p.v);
    RowState<T> state;
    T out[kPer][kPer] = {}, weight[kPer][kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) state.maximum[i] = -infinity<T>(), state.total[i] = 0;
    for (int64_t key = 0; key < last; key += kSide) {
      multiply_features(*shared, queries, TileRows<T>(keys, p.k.row, key, p.s, 0, p.e), weight);
      scores.apply(weight, query, key);
      update_softmax(weight, state, out);
      drop_weights(scores, query, key, weight);
      store_weights(*shared, true, weight);
      multiply_weights(*shared, TileRows<T>(values, p.v.row, key, p.s, column, p.ev), out);
    }
    T inverse[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      inverse[i] = state.total[i] == T(0) ? T(0) : T(1) / state.total[i];
      const int64_t row = query + place<T>(thread_row<AttentionTile<T>>(), i);
      if (!log_sum || blockIdx.y || thread_column<AttentionTile<T>>() || row >= p.l) continue;
      log_sum[index * p.l + row] =
          state.total[i] == T(0) ? infinity<T>() : state.maximum[i] + vlog(state.total[i]);
    }
    store_rows(y + BatchPlace(p, index).offset(p.y), p.y.row, query, p.l, column, p.ev, inverse,
               out);
  }
}

// ---------------------------------------------------------------------------------------- backward

/// delta[i] = dy[i] . y[i]; `lanes` threads, a power of two, for a row, kN neighbours at a time.
/// blockIdx.y: positions, in strides.
template <class T, int kN>
__global__ void __launch_bounds__(kTileThreads)
    delta_kernel(AttentionParams p, const T* y, const T* dy, AttentionStrides dy_strides, int lanes,
                 Wide<T>* delta) {
  const int lane = int(threadIdx.x) % lanes, of_block = kTileThreads / lanes;
  for (int64_t index = blockIdx.y; index < p.count; index += gridDim.y) {
    const BatchPlace in_batch(p, index);
    const T* const first = y + in_batch.offset(p.y);
    const T* const second = dy + in_batch.offset(dy_strides);
    for (int64_t begin = int64_t(blockIdx.x) * of_block; begin < p.l;
         begin += int64_t(gridDim.x) * of_block) {
      const int64_t row = begin + int(threadIdx.x) / lanes, end = row < p.l ? p.ev : 0;
      Wide<T> sum = 0;
      for (int64_t e = lane * kN; e < end; e += lanes * kN) {
        const auto a = simt::load_wide<kN>(first + row * p.y.row + e);
        const auto b = simt::load_wide<kN>(second + row * dy_strides.row + e);
#pragma unroll
        for (int i = 0; i < kN; ++i) sum = fma(a[i], b[i], sum);
      }
      for (int offset = lanes / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(simt::kFullMask, sum, offset);
      if (lane == 0 && row < p.l) delta[index * p.l + row] = sum;
    }
  }
}

enum class Gradient { of_q, of_k, of_v };

/// Where one position's operands begin.
template <class T> struct BackwardPosition {
  const T *q, *k, *v, *dy, *log_sum, *delta;
  int64_t dy_row;
};

/// weight = what the wanted gradient sums: p after dropout, or ds = p (dp - delta).
template <Gradient kOf, class T>
BRASA_DEVICE_FN void load_slopes(AttentionShared<T>& shared, const Scores<T>& scores,
                                 const BackwardPosition<T>& at, int64_t query, int64_t key,
                                 T (&weight)[kPer][kPer]) {
  const AttentionParams& p = scores.p;
  multiply_features(shared, TileRows<T>(at.q, p.q.row, query, p.l, 0, p.e),
                    TileRows<T>(at.k, p.k.row, key, p.s, 0, p.e), weight);
  scores.apply(weight, query, key);
  T slope[kPer][kPer];
  if constexpr (kOf != Gradient::of_v) {
    multiply_features(shared, TileRows<T>(at.dy, at.dy_row, query, p.l, 0, p.ev),
                      TileRows<T>(at.v, p.v.row, key, p.s, 0, p.ev), slope);
    drop_weights(scores, query, key, slope);
  }
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int64_t row = query + place<T>(thread_row<AttentionTile<T>>(), i);
    const bool inside = row < p.l;
    const T log_sum = inside ? at.log_sum[row] : infinity<T>();
    const T delta = inside && kOf != Gradient::of_v ? at.delta[row] : T(0);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      weight[i][j] = vexp(weight[i][j] - log_sum);
      if constexpr (kOf != Gradient::of_v) weight[i][j] *= slope[i][j] - delta;
    }
  }
  if constexpr (kOf == Gradient::of_v) drop_weights(scores, query, key, weight);
}

/// A tile of dq (blockIdx.x counts queries), dk or dv (keys), 64 columns of it (y); it sums over
/// all keys or all queries.
template <Gradient kOf, class T>
__global__ void __launch_bounds__(kTileThreads, 1)
    gradient_kernel(AttentionParams p, const T* q, const T* k, const T* v, AttentionMask<T> mask,
                    AttentionDropout<T> dropout, const T* log_sum, const T* delta, const T* dy,
                    AttentionStrides dy_strides, T* gradient, AttentionStrides strides) {
  constexpr bool kOfQueries = kOf == Gradient::of_q;
  BRASA_DYN_SHARED(AttentionShared<T>, shared);
  const int64_t mine = int64_t(blockIdx.x) * kSide, column = int64_t(blockIdx.y) * kSide;
  const int64_t visible = p.causal && mine + kSide < p.s ? mine + kSide : p.s;
  const int64_t begin = !kOfQueries && p.causal ? mine : 0, end = kOfQueries ? visible : p.l;
  const int64_t rows = kOfQueries ? p.l : p.s, columns = kOf == Gradient::of_v ? p.ev : p.e;
  T factor[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) factor[i] = kOf == Gradient::of_v ? T(1) : T(p.scale);
  for (int64_t index = blockIdx.z; index < p.count; index += gridDim.z) {
    const BatchPlace in_batch(p, index);
    const Scores<T> scores(p, mask, dropout, index, in_batch);
    const BackwardPosition<T> at{q + in_batch.offset(p.q),
                                 k + in_batch.offset(p.k),
                                 v + in_batch.offset(p.v),
                                 dy + in_batch.offset(dy_strides),
                                 log_sum + index * p.l,
                                 delta + index * p.l,
                                 dy_strides.row};
    T out[kPer][kPer] = {}, weight[kPer][kPer];
    for (int64_t other = begin; other < end; other += kSide) {
      load_slopes<kOf>(*shared, scores, at, kOfQueries ? mine : other, kOfQueries ? other : mine,
                       weight);
      store_weights(*shared, kOfQueries, weight);
      const T* const operand = kOfQueries ? at.k : kOf == Gradient::of_k ? at.q : at.dy;
      const int64_t row = kOfQueries ? p.k.row : kOf == Gradient::of_k ? p.q.row : at.dy_row;
      multiply_weights(
          *shared, TileRows<T>(operand, row, other, kOfQueries ? p.s : p.l, column, columns), out);
    }
    store_rows(gradient + BatchPlace(p, index).offset(strides), strides.row, mine, rows, column,
               columns, factor, out);
  }
}

// --------------------------------------------------------------------------------------- launchers

constexpr int64_t kMaxGridZ = 65535;

/// A block for each tile of rows, 64 columns (a launch fails with more than 65,535 of these) and
/// position.
template <class T>
static simt::LaunchConfig tiles_of(Context ctx, const AttentionParams& p, int64_t rows,
                                   int64_t columns) {
  const int64_t chunks = columns ? simt::ceil_div<int64_t>(columns, kSide) : 1;
  return {.grid = dim3(unsigned(simt::ceil_div<int64_t>(rows, kSide)), unsigned(chunks),
                       unsigned(p.count < kMaxGridZ ? p.count : kMaxGridZ)),
          .block = dim3(kTileThreads),
          .smem = sizeof(AttentionShared<T>),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

template <class T> size_t attention_workspace(const AttentionParams& p, int) {
  return size_t(p.count * p.l) * sizeof(Wide<T>);
}

/// Whether this attention is made on tensor cores.
template <class T> static bool on_tensor_cores(Context ctx, const AttentionParams& p) {
  const int64_t most = p.e > p.ev ? p.e : p.ev;
  return sizeof(T) == 2 || (ctx.math_mode == MathMode::tf32 && most <= kMostFeatures<T>);
}

template <class T>
void attention_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                       const AttentionMask<Wide<T>>& mask, T* y, Wide<T>* log_sum) {
  if (p.l == 0 || p.count == 0) return;
  if constexpr (sizeof(T) == 2)
    if (wgmma_forward(ctx, p, q, k, v, mask, y, log_sum)) return;
  if constexpr (sizeof(T) <= 4)
    if (on_tensor_cores<T>(ctx, p)) return mma_forward(ctx, p, q, k, v, mask, y, log_sum);
  if constexpr (sizeof(T) >= 4)
    simt::launch(tiles_of<T>(ctx, p, p.l, p.ev), attention_kernel<T>, p, q, k, v, mask,
                 AttentionDropout<T>(p.dropout), y, log_sum);
}

/// A kernel for each gradient, of float32 or float64.
template <class T>
static void tile_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                          const AttentionMask<T>& mask, const T* log_sum, const T* delta,
                          const AttentionGradients<T>& g) {
  const AttentionDropout<T> dropout(p.dropout);
  if (g.dq && p.l > 0)
    simt::launch(tiles_of<T>(ctx, p, p.l, p.e), gradient_kernel<Gradient::of_q, T>, p, q, k, v,
                 mask, dropout, log_sum, delta, g.dy, g.dy_strides, g.dq, g.dq_strides);
  if (g.dk && p.s > 0)
    simt::launch(tiles_of<T>(ctx, p, p.s, p.e), gradient_kernel<Gradient::of_k, T>, p, q, k, v,
                 mask, dropout, log_sum, delta, g.dy, g.dy_strides, g.dk, g.dk_strides);
  if (g.dv && p.s > 0)
    simt::launch(tiles_of<T>(ctx, p, p.s, p.ev), gradient_kernel<Gradient::of_v, T>, p, q, k, v,
                 mask, dropout, log_sum, delta, g.dy, g.dy_strides, g.dv, g.dv_strides);
}

/// Whether every row begins at a multiple of 16 bytes and ends at one.
template <class T>
static bool whole_rows(const AttentionParams& p, const T* x, const AttentionStrides& strides) {
  int64_t odd = p.ev | strides.row;
  for (int d = 0; d < p.rank; ++d) odd |= strides.batch[d];
  return odd % simt::kPackLanes<T> == 0 && simt::pack_aligned(x);
}

template <class T, int kN>
static void launch_delta(Context ctx, const AttentionParams& p, const T* y, const T* dy,
                         const AttentionStrides& dy_strides, Wide<T>* delta) {
  int lanes = 1;
  while (lanes < simt::kWarpSize && lanes * kN < p.ev) lanes *= 2;
  simt::launch({.grid = dim3(simt::blocks_for(p.l, kTileThreads / lanes).x,
                             unsigned(p.count < kMaxGridZ ? p.count : kMaxGridZ)),
                .block = dim3(kTileThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               delta_kernel<T, kN>, p, y, dy, dy_strides, lanes, delta);
}

template <class T>
void attention_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                        const AttentionMask<Wide<T>>& mask, const T* y, const Wide<T>* log_sum,
                        const AttentionGradients<T>& g) {
  if (p.count == 0) return;
  auto* const delta = static_cast<Wide<T>*>(ctx.workspace);
  const bool tensor = sizeof(T) <= 4 && on_tensor_cores<T>(ctx, p);
  if (p.l > 0 && (g.dq || g.dk || tensor))  // on tensor cores dv comes with dk
    whole_rows(p, y, p.y) && whole_rows(p, g.dy, g.dy_strides)
        ? launch_delta<T, simt::kPackLanes<T>>(ctx, p, y, g.dy, g.dy_strides, delta)
        : launch_delta<T, 1>(ctx, p, y, g.dy, g.dy_strides, delta);
  if constexpr (sizeof(T) == 2)
    if (wgmma_backward(ctx, p, q, k, v, mask, log_sum, delta, g)) return;
  if constexpr (sizeof(T) <= 4)
    if (tensor) return mma_backward(ctx, p, q, k, v, mask, log_sum, delta, g);
  if constexpr (sizeof(T) >= 4) tile_backward(ctx, p, q, k, v, mask, log_sum, delta, g);
}

BRASA_INSTANTIATE(attention_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(attention_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(attention_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
