#include "attention/attention.h"

#include "attention/attention_block.h"
#include "core/parallel.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

// ----------------------------------------------------------------------------------------- forward

/// The largest score of each query so far, from m to the returned one.
template <class T>
static Vec<T> raise_maximum(const T* scores, int64_t width, int64_t keys, Vec<T> m) {
  Vec<T> most[4] = {m, m, m, m};
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) most[c] = max_lanes<T>(most[c], load(scores + (j + c) * width));
  }
  for (; j < keys; ++j) most[0] = max_lanes<T>(most[0], load(scores + j * width));
  return max_lanes<T>(max_lanes<T>(most[0], most[1]), max_lanes<T>(most[2], most[3]));
}

/// Scores become exp(score - maximum) times what dropout keeps; returns their sum before dropout.
template <bool kDrop, class T>
static Vec<T> exponentials(T* scores, const T* kept, int64_t width, int64_t keys, Vec<T> maximum) {
  Vec<T> sum{};
#pragma GCC unroll 4
  for (int64_t j = 0; j < keys; ++j) {
    const Vec<T> e = vexp_below_zero(load(scores + j * width) - maximum);
    sum += e;
    store(scores + j * width, kDrop ? e * load(kept + j * width) : e);
  }
  return sum;
}

/// Turns a block's scores into weights relative to the running maximum, and updates maximum and
/// sum. `change` is what results so far are to be multiplied by; says whether that is 1 everywhere.
template <class T>
static bool update_softmax(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                           const AttentionScratch<T>& own) {
  const bool drops = a.p.dropout > 0;
  bool unchanged = true;
  if (drops) load_kept(a, q, k, own);
  for (int64_t i = 0; i < q.width; i += kLanes<T>) {
    const Vec<T> before = load(own.maximum + i);
    const Vec<T> m = raise_maximum(own.weights + i, q.width, k.live, before);
    const Vec<T> finite = m == -infinity<Vec<T>>() ? Vec<T>{} : m;
    const Vec<T> change = vexp_below_zero(before - finite);
    const Vec<T> sum =
        (drops ? exponentials<true, T> : exponentials<false, T>)(own.weights + i, own.kept + i,
                                                                 q.width, k.live, finite);
    store(own.total + i, fma(load(own.total + i), change, sum));
    store(own.maximum + i, m);
    store(own.change + i, change);
    const auto differs = change != value<Vec<T>>(1);
    for (int lane = 0; lane < kLanes<T>; ++lane) unchanged &= !differs[lane];
  }
  return unchanged;
}

/// sum[p, i] *= factor[i].
template <class T>
static void scale_queries(T* sum, int64_t depth, const QueryBlock& q, const T* factor) {
  for (int64_t p = 0; p < depth; ++p)
    map_range(
        0, q.width, [](Vec<T> x, Vec<T> f) { return x * f; }, sum + p * q.width, sum + p * q.width,
        factor);
}

/// The results of one block of queries; y and log_sum begin at its position.
template <class T>
static void attend(const AttentionPosition<T>& a, const QueryBlock& q,
                   const AttentionScratch<T>& own, T* y, T* log_sum) {
  const AttentionParams& p = a.p;
  load_rows_transposed(a.q, p.q.row, p.e, q, T(p.scale), own.queries);
  map_range(0, q.width, [] { return -infinity<Vec<T>>(); }, own.maximum);
  map_range(0, q.width, [] { return Vec<T>{}; }, own.total);
  map_range(0, p.ev * q.width, [] { return Vec<T>{}; }, own.sum);
  const int64_t blocks = visible_blocks(p, q);
  for (int64_t block = 0; block < blocks; ++block) {
    const KeyBlock k = key_block(p, block);
    load_scores(a, q, k, own);
    const bool unchanged = update_softmax(a, q, k, own);
    if (block > 0 && !unchanged) scale_queries(own.sum, p.ev, q, own.change);
    multiply_block<T, true>(p.ev, q.width,
                            {.depth = k.live,
                             .a = a.v + k.first * p.v.row,
                             .a_stride = p.v.row,
                             .b = own.weights,
                             .b_stride = q.width,
                             .c = own.sum,
                             .c_stride = q.width,
                             .accumulate = true});
  }
  const auto inverse = [](Vec<T> t) { return t == Vec<T>{} ? t : value<Vec<T>>(1) / t; };
  map_range(0, q.width, inverse, own.change, own.total);
  scale_queries(own.sum, p.ev, q, own.change);
  store_rows_transposed(own.sum, p.ev, q, y, p.y.row);
  if (!log_sum) return;
  const auto logarithm = [](Vec<T> m, Vec<T> t) {
    return t == Vec<T>{} ? infinity<Vec<T>>() : m + vlog(t);
  };
  map_range(0, q.width, logarithm, own.total, own.maximum, own.total);
  map_range(0, q.live, [](Vec<T> x) { return x; }, log_sum + q.first, own.total);
}

// ---------------------------------------------------------------------------------------- backward

/// The gradients of one position, or of what a thread does of it.
template <class T> struct GradientsAt {
  const T *y, *log_sum, *dy;
  T *dq, *dk, *dv;
  int64_t y_row, dy_row, dq_row, dk_row, dv_row;
};

/// What the gradients need of a block of queries.
template <class T>
static void load_queries(const AttentionPosition<T>& a, const QueryBlock& q,
                         const AttentionScratch<T>& own, const GradientsAt<T>& g) {
  const AttentionParams& p = a.p;
  load_rows_transposed(a.q, p.q.row, p.e, q, T(p.scale), own.queries);
  if (g.dk) load_rows(a.q, p.q.row, p.e, q, T(p.scale), own.query_rows);
  if (g.dv) load_rows(g.dy, g.dy_row, p.ev, q, T(1), own.gradient_rows);
  map_range(0, q.width, [] { return Vec<T>{}; }, own.delta);
  map_range(0, q.width, [] { return Vec<T>{}; }, own.total);
  map_range(0, q.live, [](Vec<T> x) { return x; }, own.total, g.log_sum + q.first);
  if (!g.dq && !g.dk) return;
  load_rows_transposed(g.dy, g.dy_row, p.ev, q, T(1), own.gradients);
  for (int64_t i = 0; i < q.live; ++i) {
    const T *dy = g.dy + (q.first + i) * g.dy_row, *y = g.y + (q.first + i) * g.y_row;
    LaneSum<T> sum;
    each_part<T, LaneSum<T>::kParts>(p.ev, [&](int part, int64_t e, int64_t live) {
      sum.add(part, read(dy + e, live) * read(y + e, live), live);
    });
    own.delta[i] = sum.total();
  }
}

/// weights = p, and slopes = ds unless only dv is wanted; `kept` is loaded where dropout is on.
template <class T>
static void load_slopes(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                        const AttentionScratch<T>& own, const GradientsAt<T>& g) {
  const AttentionParams& p = a.p;
  load_scores(a, q, k, own);
  if (p.dropout > 0) load_kept(a, q, k, own);
  const auto weight = [](Vec<T> s, Vec<T> log_sum) { return vexp_below_zero(s - log_sum); };
  for (int64_t j = 0; j < k.live; ++j)
    map_range(0, q.width, weight, own.weights + j * q.width, own.weights + j * q.width, own.total);
  if (!g.dq && !g.dk) return;
  multiply_block<T, false>(k.live, q.width,
                           {.depth = p.ev,
                            .a = a.v + k.first * p.v.row,
                            .a_stride = p.v.row,
                            .b = own.gradients,
                            .b_stride = q.width,
                            .c = own.slopes,
                            .c_stride = q.width});
  const auto times = [](Vec<T> x, Vec<T> f) { return x * f; };
  if (p.dropout > 0) map_range(0, k.live * q.width, times, own.slopes, own.slopes, own.kept);
  const auto slope = [](Vec<T> w, Vec<T> dp, Vec<T> delta) { return w * (dp - delta); };
  for (int64_t j = 0; j < k.live; ++j)
    map_range(0, q.width, slope, own.slopes + j * q.width, own.weights + j * q.width,
              own.slopes + j * q.width, own.delta);
}

/// Adds what a block of queries and a block of keys give to the gradients that are wanted.
template <class T>
static void add_gradients(const AttentionPosition<T>& a, const QueryBlock& q, const KeyBlock& k,
                          const AttentionScratch<T>& own, const GradientsAt<T>& g) {
  const AttentionParams& p = a.p;
  load_slopes(a, q, k, own, g);
  const auto add_rows = [&](const T* weights, const T* rows, int64_t columns, T* to, int64_t row) {
    multiply_block<T, false>(k.live, columns,
                             {.depth = q.live,
                              .a = weights,
                              .a_stride = q.width,
                              .b = rows,
                              .b_stride = whole_vectors<T>(columns),
                              .c = to + k.first * row,
                              .c_stride = row,
                              .accumulate = true});
  };
  if (g.dk) add_rows(own.slopes, own.query_rows, p.e, g.dk, g.dk_row);
  if (g.dq)
    multiply_block<T, true>(p.e, q.width,
                            {.depth = k.live,
                             .a = a.k + k.first * p.k.row,
                             .a_stride = p.k.row,
                             .b = own.slopes,
                             .b_stride = q.width,
                             .c = own.sum,
                             .c_stride = q.width,
                             .accumulate = true});
  if (!g.dv) return;
  const auto times = [](Vec<T> x, Vec<T> f) { return x * f; };
  if (p.dropout > 0) map_range(0, k.live * q.width, times, own.weights, own.weights, own.kept);
  add_rows(own.weights, own.gradient_rows, p.ev, g.dv, g.dv_row);
}

template <class T> static void clear_rows(T* rows, int64_t row, int64_t count, int64_t columns) {
  if (!rows) return;
  for (int64_t i = 0; i < count; ++i)
    map_range(0, columns, [] { return Vec<T>{}; }, rows + i * row);
}

/// Blocks of queries and of keys; all of one kind is `count` of them.
struct BlockRange {
  int64_t begin, end;
};

/// The gradients of these queries and of these keys, of which one range is whole.
template <class T>
static void attend_backward(const AttentionPosition<T>& a, BlockRange queries, BlockRange keys,
                            const AttentionScratch<T>& own, const GradientsAt<T>& g) {
  const AttentionParams& p = a.p;
  const int64_t first = keys.begin * kKeys, live = at_most(keys.end * kKeys, p.s) - first;
  if (g.dk) clear_rows(g.dk + first * g.dk_row, g.dk_row, live, p.e);
  if (g.dv) clear_rows(g.dv + first * g.dv_row, g.dv_row, live, p.ev);
  for (int64_t i = queries.begin; i < queries.end; ++i) {
    const QueryBlock q = query_block<T>(p, i);
    const int64_t end = at_most(visible_blocks(p, q), keys.end);
    if (keys.begin < end || g.dq) load_queries(a, q, own, g);
    if (g.dq) map_range(0, p.e * q.width, [] { return Vec<T>{}; }, own.sum);
    for (int64_t j = keys.begin; j < end; ++j) add_gradients(a, q, key_block(p, j), own, g);
    if (!g.dq) continue;
    const auto scaled = [&](Vec<T> x) { return x * broadcast(T(p.scale)); };
    map_range(0, p.e * q.width, scaled, own.sum, own.sum);
    store_rows_transposed(own.sum, p.e, q, g.dq, g.dq_row);
  }
}

// ------------------------------------------------------------------------------------ entry points

static int attention_team(const AttentionParams& p, int threads) {
  return p.count * p.l * p.s * (p.e + p.ev) < kGemmSerialWork ? 1 : threads;
}

template <class T> size_t attention_workspace(const AttentionParams& p, int threads) {
  const int64_t each = ceil_div(AttentionScratch<T>::elements(p), 64) * 64;
  return size_t(each * attention_team(p, threads)) * sizeof(T);
}

template <class T>
void attention_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                       const AttentionMask<Wide<T>>& mask, T* y, Wide<T>* log_sum) {
  const int64_t blocks = ceil_div(p.l, kQueries);
  ctx.threads = attention_team(p, ctx.threads);
  parallel_chunks(ctx, p.count * blocks, [&](int member, int64_t index) {
    const AttentionScratch<T> own(ctx.workspace, p, member);
    const AttentionPosition<T> a = position_at(p, q, k, v, mask, index / blocks);
    attend(a, query_block<T>(p, index % blocks), own, y + batch_offset(p, p.y, a.index),
           log_sum ? log_sum + a.index * p.l : nullptr);
  });
}

/// One position after the other takes five products of blocks. Where that leaves threads idle, dq
/// and then dk with dv are computed block by block, with seven; sums have the same order.
static bool by_blocks(int64_t positions, int threads) {
  return 5 * ceil_div(positions, threads) * threads > 7 * positions;
}

template <class T>
void attention_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                        const AttentionMask<Wide<T>>& mask, const T* y, const Wide<T>* log_sum,
                        const AttentionGradients<T>& g) {
  ctx.threads = attention_team(p, ctx.threads);
  const BlockRange queries{0, ceil_div(p.l, kQueries)}, keys{0, ceil_div(p.s, kKeys)};
  const auto at = [&](int64_t index) {
    const auto move = [&](auto* x, const AttentionStrides& strides) {
      return x ? x + batch_offset(p, strides, index) : nullptr;
    };
    return GradientsAt<T>{y + batch_offset(p, p.y, index),
                          log_sum + index * p.l,
                          move(g.dy, g.dy_strides),
                          move(g.dq, g.dq_strides),
                          move(g.dk, g.dk_strides),
                          move(g.dv, g.dv_strides),
                          p.y.row,
                          g.dy_strides.row,
                          g.dq_strides.row,
                          g.dk_strides.row,
                          g.dv_strides.row};
  };
  const bool split = by_blocks(p.count, ctx.threads);
  const int64_t parts = split ? queries.end + keys.end : 1;
  parallel_chunks(ctx, p.count * parts, [&](int member, int64_t index) {
    const AttentionScratch<T> own(ctx.workspace, p, member);
    const AttentionPosition<T> a = position_at(p, q, k, v, mask, index / parts);
    const int64_t part = index % parts, key = part - queries.end;
    GradientsAt<T> wanted = at(a.index);
    if (!split) return attend_backward(a, queries, keys, own, wanted);
    if (key < 0) {
      wanted.dk = wanted.dv = nullptr;
      return attend_backward(a, {part, part + 1}, keys, own, wanted);
    }
    wanted.dq = nullptr;
    attend_backward(a, queries, {key, key + 1}, own, wanted);
  });
}

BRASA_INSTANTIATE(attention_workspace, float, double)
BRASA_INSTANTIATE(attention_forward, float, double)
BRASA_INSTANTIATE(attention_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
