// Row by row while the row is in L1: statistics in 16 virtual lanes, then one pass that normalises.
// The gradients of weight and bias are summed in the same pass as dx, in blocks of kRowBlock rows,
// each row added in order; the blocks are added in order at the end. Longest chain: width / 16 + 5
// within a row, kRowBlock + rows / kRowBlock for the parameters.
#include "core/epilogue.h"
#include "core/order.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "norm/norm.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int64_t kLayerNormGrain = 16 * 1024;  ///< elements per chunk, some 5 us

template <class T> BRASA_INLINE int64_t lanes_left(int64_t n, int64_t i) {
  return n - i < kLanes<T> ? n - i : kLanes<T>;
}
template <class T> BRASA_INLINE Vec<T> read_row(const T* p, int64_t live) {
  return live == kLanes<T> ? load(p) : load_partial(p, live);
}
template <class T> BRASA_INLINE void write_row(T* p, Vec<T> x, int64_t live) {
  if (live == kLanes<T>)
    store(p, x);
  else
    store_partial(p, x, live);
}

/// The sum of f(i, live) over a row; f gives the lanes of elements i, i + 1, ...; dead lanes are
/// ignored.
template <class T, class F> BRASA_INLINE T sum_row(const T* row, int64_t n, const F& f) {
  LaneSum<T> sum;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    sum.add_mapped(row + i, [&](Vec<T> v, int64_t offset) { return f(v, i + offset, kLanes<T>); });
  if (i < n)
    sum.add_tail(row + i, n - i, [&](Vec<T> v, int64_t offset) {
      return f(v, i + offset, lanes_left<T>(n, i + offset));
    });
  return sum.total();
}

// -------------------------------------------------------------------------------------------
// forward

/// mean and rstd of a row, in two passes with the first one's rounding taken back (norm.h).
template <class T> static void row_statistics(const T* x, int64_t n, double eps, T* mean, T* rstd) {
  const T count = T(n);
  const T shift = sum_row(x, n, [](Vec<T> v, int64_t, int64_t) { return v; }) / count;
  const Vec<T> s = broadcast(shift);
  const T e = sum_row(x, n, [=](Vec<T> v, int64_t, int64_t) { return v - s; });
  const T q = sum_row(x, n, [=](Vec<T> v, int64_t, int64_t) { return (v - s) * (v - s); });
  const double correction = double(e) / double(count);
  *mean = T(double(shift) + correction);
  *rstd = T(1 / __builtin_sqrt((double(q) - double(e) * correction) / double(count) + eps));
}

template <class T> static void normalize_row(const LayerNormForward<T>& a, int64_t row, int64_t n) {
  const Vec<T> mean = broadcast(a.mean[row]), rstd = broadcast(a.rstd[row]);
  const int64_t at = row * n;
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = lanes_left<T>(n, i);
    Vec<T> v = (read_row(a.x + at + i, live) - mean) * rstd;
    const Vec<T> bias = a.bias ? read_row(a.bias + i, live) : Vec<T>{};
    v = a.weight ? fma(v, read_row(a.weight + i, live), bias) : v + bias;
    if (a.residual) v += read_row(a.residual + at + i, live);
    write_row(a.y + at + i, v, live);
    if (a.pre_activation) write_row(a.pre_activation + at + i, v, live);
  }
}

template <class T>
void layer_norm_forward(Context ctx, const LayerNormForward<T>& a, const LayerNormParams& p) {
  const RowActivation<T> activate =
      p.activation.kind == ActivationKind::none ? nullptr : row_activation<T>(p.activation.kind);
  parallel_for(ctx, p.rows, kLayerNormGrain / (p.width > 0 ? p.width : 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   T* y = a.y + row * p.width;
                   row_statistics(a.x + row * p.width, p.width, p.eps, a.mean + row, a.rstd + row);
                   normalize_row(a, row, p.width);
                   if (activate)
                     activate(y, y, p.width, T(p.activation.alpha), T(p.activation.beta));
                 }
               });
}

// ------------------------------------------------------------------------------------------
// backward

static inline int64_t row_blocks(const LayerNormParams& p) {
  return (p.rows + order::kRowBlock - 1) / order::kRowBlock;
}

/// Two rows of sums per block: of dy xhat and of dy.
template <class T> size_t layer_norm_workspace(const LayerNormParams& p) {
  return size_t(2 * row_blocks(p) * p.width) * sizeof(T);
}

template <class T> static void gradient_row(const LayerNormBackward<T>& a, int64_t row, int64_t n) {
  const T *dy = a.dy + row * n, *x = a.x + row * n;
  const Vec<T> mean = broadcast(a.mean[row]), rstd = broadcast(a.rstd[row]);
  const auto scaled = [&](Vec<T> g, int64_t i, int64_t live) {
    return a.weight ? g * read_row(a.weight + i, live) : g;
  };
  const auto normalized = [&](int64_t i, int64_t live) {
    return (read_row(x + i, live) - mean) * rstd;
  };
  const T sum = sum_row(dy, n, scaled);
  const T products = sum_row(dy, n, [&](Vec<T> g, int64_t i, int64_t live) {
    return scaled(g, i, live) * normalized(i, live);
  });
  const Vec<T> first = broadcast(sum / T(n)), second = broadcast(products / T(n));
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = lanes_left<T>(n, i);
    const Vec<T> centred = scaled(read_row(dy + i, live), i, live) - first;
    write_row(a.dx + row * n + i, fma(-normalized(i, live), second, centred) * rstd, live);
  }
}

/// dweight += dy xhat, dbias += dy for one row.
template <class T>
static void add_parameter_gradients(const LayerNormBackward<T>& a, int64_t row, int64_t n,
                                    T* dweight, T* dbias) {
  const Vec<T> mean = broadcast(a.mean[row]), rstd = broadcast(a.rstd[row]);
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = lanes_left<T>(n, i);
    const Vec<T> g = read_row(a.dy + row * n + i, live);
    const Vec<T> xhat = (read_row(a.x + row * n + i, live) - mean) * rstd;
    write_row(dweight + i, fma(g, xhat, read_row(dweight + i, live)), live);
    write_row(dbias + i, read_row(dbias + i, live) + g, live);
  }
}

template <class T>
void layer_norm_backward(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p) {
  const int64_t blocks = row_blocks(p), n = p.width;
  T* const partial = static_cast<T*>(ctx.workspace);
  const bool parameters = a.dweight || a.dbias;
  parallel_for(ctx, blocks, kLayerNormGrain / (order::kRowBlock * (n > 0 ? n : 1)) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   T* sums = partial + 2 * block * n;
                   for (int64_t i = 0; parameters && i < 2 * n; ++i) sums[i] = 0;
                   const int64_t first = block * order::kRowBlock;
                   for (int64_t row = first; row < p.rows && row < first + order::kRowBlock;
                        ++row) {
                     if (a.dx) gradient_row(a, row, n);
                     if (parameters) add_parameter_gradients(a, row, n, sums, sums + n);
                   }
                 }
               });
  if (!parameters) return;
  parallel_for(ctx, n, kLayerNormGrain / (blocks + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T dweight = 0, dbias = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        dweight += partial[2 * block * n + i];
        dbias += partial[(2 * block + 1) * n + i];
      }
      if (a.dweight) a.dweight[i] = dweight;
      if (a.dbias) a.dbias[i] = dbias;
    }
  });
}

BRASA_INSTANTIATE(layer_norm_workspace, float, double)
BRASA_INSTANTIATE(layer_norm_forward, float, double)
BRASA_INSTANTIATE(layer_norm_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
