// Row by row while the row is in L1: the sum of its first eighth, then the sums of distances and of
// their squares in one pass, then a pass that normalises. Sums along a row have 64 virtual lanes
// (order::kRowLanes): with 16 every vector waited for the addition before it, and 512 x 768 took
// three times as long. Each pass over a row fetches the next row: otherwise memory idles while a
// row is worked on in L1, which costs a third of 4096 x 768. Results of 16 MiB and more are
// streamed.
//
// Backward, kGradientRows rows at a time: a pass that takes both sums of a row and adds to the
// gradients of weight and bias, then one that writes dx. These are summed in blocks of kRowBlock
// rows, each row added in order; the blocks are added in order at the end. Longest chain: width /
// 64 + 6 within a row forward, width / 16 + 4 backward, kRowBlock + rows / kRowBlock for the
// parameters.
#include "core/elementwise.h"
#include "core/epilogue.h"
#include "core/order.h"
#include "core/parallel.h"
#include "core/tiles.h"
#include "norm/norm.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int64_t kLayerNormGrain = 16 * 1024;  ///< elements per chunk, some 5 us

template <class T> using RowSum = LaneSum<T, order::kRowLanes>;

/// With 16 registers the sums of distances and of squares do not fit beside one another.
constexpr bool kSumsTogether = kTileRows == 12;

// -------------------------------------------------------------------------------------------
// forward

/// Two rows at a time, where they stay in L1 and the registers hold their sums: at the end of a
/// pass a row waits for its sums to be folded and for divisions, as long as for its vectors.
template <class T> static int64_t rows_together(int64_t n) {
  constexpr int64_t kRowBytes = 16 * 1024;
  return kTileRows == 12 && n * int64_t(sizeof(T)) <= kRowBytes ? 2 : 1;
}

/// Sums of f(row, j, live) over kRows rows of n elements.
template <int kRows, class T, class F> BRASA_INLINE void sum_rows(int64_t n, T* total, const F& f) {
  RowSum<T> sum[kRows];
  each_part<T, RowSum<T>::kParts>(n, [&](int i, int64_t j, int64_t live) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) sum[r].add(i, f(r, j, live), live);
  });
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) total[r] = sum[r].total();
}

/// Of kRows rows, the sums of x - s and of (x - s)^2.
template <int kRows, class T>
BRASA_INLINE void sum_distances(const T* x, int64_t n, const T* shift, T* e, T* q) {
  const auto distance = [=](int r, int64_t j, int64_t live) {
    return read(x + r * n + j, live) - broadcast(shift[r]);
  };
  if constexpr (kSumsTogether) {
    RowSum<T> distances[kRows], squares[kRows];
    each_part<T, RowSum<T>::kParts>(n, [&](int i, int64_t j, int64_t live) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> d = distance(r, j, live);
        distances[r].add(i, d, live);
        squares[r].add_square(i, d, live);
      }
    });
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      e[r] = distances[r].total();
      q[r] = squares[r].total();
    }
  } else {
    sum_rows<kRows, T>(n, e, distance);
    RowSum<T> squares[kRows];
    each_part<T, RowSum<T>::kParts>(n, [&](int i, int64_t j, int64_t live) {
      for (int r = 0; r < kRows; ++r) squares[r].add_square(i, distance(r, j, live), live);
    });
    for (int r = 0; r < kRows; ++r) q[r] = squares[r].total();
  }
}

/// mean and rstd of kRows rows, from distances to the mean of the row's first part (norm.h).
template <int kRows, class T>
BRASA_INLINE void row_statistics(const T* x, int64_t n, double eps, T* mean, T* rstd) {
  const double part = 1 / double(n);
  const int64_t head = (n - 1) / order::kHeadPart + 1;
  T shift[kRows], e[kRows], q[kRows];
  sum_rows<kRows, T>(head, shift,
                     [=](int r, int64_t j, int64_t live) { return read(x + r * n + j, live); });
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) shift[r] /= T(head);
  sum_distances<kRows>(x, n, shift, e, q);
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    const double correction = double(e[r]) * part;
    const double variance = (double(q[r]) - double(e[r]) * correction) * part;
    mean[r] = T(double(shift[r]) + correction);
    rstd[r] = T(1 / __builtin_sqrt(variance + eps));
  }
}

template <int kRows, bool kStream, class T>
BRASA_INLINE void normalize_rows(const LayerNormForward<T>& a, int64_t row, int64_t n) {
  const int64_t at = row * n;
  const T *x = a.x + at, *residual = a.residual ? a.residual + at : nullptr;
  const T *weight = a.weight, *bias = a.bias;
  T *y = a.y + at, *pre = a.pre_activation ? a.pre_activation + at : nullptr;
  Vec<T> mean[kRows], rstd[kRows];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    mean[r] = broadcast(a.mean[row + r]);
    rstd[r] = broadcast(a.rstd[row + r]);
  }
  each_part<T, 1>(n, [&](int, int64_t j, int64_t live) {
    const Vec<T> scale = weight ? read(weight + j, live) : broadcast(T(1));
    const Vec<T> shift = bias ? read(bias + j, live) : Vec<T>{};
#pragma GCC unroll 2
    for (int64_t r = 0; r < kRows; ++r) {
      __builtin_prefetch(x + (r + kRows) * n + j);
      Vec<T> v = fma((read(x + r * n + j, live) - mean[r]) * rstd[r], scale, shift);
      if (residual) v += read(residual + r * n + j, live);
      put_row<kStream>(y + r * n + j, v, live);
      if (pre) write(pre + r * n + j, v, live);
    }
  });
}

template <int kRows, bool kStream, class T>
static void layer_norm_rows(const LayerNormForward<T>& a, const LayerNormParams& p, int64_t row) {
  row_statistics<kRows>(a.x + row * p.width, p.width, p.eps, a.mean + row, a.rstd + row);
  normalize_rows<kRows, kStream>(a, row, p.width);
}

/// Rows [begin, end).
template <bool kStream, class T>
static void layer_norm_chunk(const LayerNormForward<T>& a, const LayerNormParams& p, int64_t begin,
                             int64_t end) {
  int64_t row = begin;
  if (rows_together<T>(p.width) == 2)
    for (; row + 2 <= end; row += 2) layer_norm_rows<2, kStream>(a, p, row);
  for (; row < end; ++row) layer_norm_rows<1, kStream>(a, p, row);
  if (kStream) finish_streaming();
}

template <class T>
void layer_norm_forward(Context ctx, const LayerNormForward<T>& a, const LayerNormParams& p) {
  const RowActivation<T> activate =
      p.activation.kind == ActivationKind::none ? nullptr : row_activation<T>(p.activation.kind);
  const bool streaming = !activate && streams_rows(a.y, p.rows * p.width, p.width);
  parallel_for(ctx, p.rows, kLayerNormGrain / (p.width > 0 ? p.width : 1) + 1,
               [&](int64_t begin, int64_t end) {
                 if (streaming) return layer_norm_chunk<true>(a, p, begin, end);
                 layer_norm_chunk<false>(a, p, begin, end);
                 T* y = a.y + begin * p.width;
                 if (activate)
                   activate(y, y, (end - begin) * p.width, T(p.activation.alpha),
                            T(p.activation.beta));
               });
}

// ------------------------------------------------------------------------------------------
// backward

/// Rows side by side: their chains hide the latency of one another, and the sums of dweight and
/// dbias are loaded and stored once for all. With 16 registers there is room for fewer.
constexpr int kGradientRows = kTileRows == 12 ? 4 : 2;

static inline int64_t row_blocks(const LayerNormParams& p) {
  return (p.rows + order::kRowBlock - 1) / order::kRowBlock;
}

/// Two rows of sums per block: of dy xhat and of dy.
template <class T> size_t layer_norm_workspace(const LayerNormParams& p) {
  return size_t(2 * row_blocks(p) * p.width) * sizeof(T);
}

/// kRows rows from `row` on, of n elements.
template <class T, int kRows> struct GradientRows {
  const LayerNormBackward<T>& a;
  int64_t row, n;
  const T *dy = a.dy + row * n, *x = a.x + row * n, *weight = a.weight;
  Vec<T> mean[kRows], rstd[kRows];

  GradientRows(const LayerNormBackward<T>& arrays, int64_t first, int64_t width)
      : a(arrays), row(first), n(width) {
    for (int r = 0; r < kRows; ++r) {
      mean[r] = broadcast(a.mean[row + r]);
      rstd[r] = broadcast(a.rstd[row + r]);
    }
  }
  BRASA_INLINE_MEMBER Vec<T> normalized(int r, int64_t j, int64_t live) const {
    return (read(x + r * n + j, live) - mean[r]) * rstd[r];
  }

  /// The sums of h = dy weight and of h xhat per row; dweight += dy xhat, dbias += dy, unless null.
  BRASA_INLINE_MEMBER void sums(T* dweight, T* dbias, T* sum, T* product) const {
    LaneSum<T> h_sum[kRows], products[kRows];
    each_part<T, LaneSum<T>::kParts>(n, [&](int i, int64_t j, int64_t live) {
      const Vec<T> w = weight ? read(weight + j, live) : broadcast(T(1));
      Vec<T> dw = dweight ? read(dweight + j, live) : Vec<T>{};
      Vec<T> db = dweight ? read(dbias + j, live) : Vec<T>{};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> g = read(dy + r * n + j, live), xhat = normalized(r, j, live), h = g * w;
        dw = fma(g, xhat, dw);
        db += g;
        h_sum[r].add(i, h, live);
        products[r].add(i, h * xhat, live);
      }
      if (dweight) {
        write(dweight + j, dw, live);
        write(dbias + j, db, live);
      }
    });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      sum[r] = h_sum[r].total();
      product[r] = products[r].total();
    }
  }

  template <bool kStream> BRASA_INLINE_MEMBER void write_dx(const T* sum, const T* product) const {
    Vec<T> first[kRows], second[kRows];
    for (int r = 0; r < kRows; ++r) {
      first[r] = broadcast(sum[r] / T(n));
      second[r] = broadcast(product[r] / T(n));
    }
    T* dx = a.dx + row * n;
    each_part<T, 1>(n, [&](int, int64_t j, int64_t live) {
      const Vec<T> w = weight ? read(weight + j, live) : broadcast(T(1));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __builtin_prefetch(dy + (r + kRows) * n + j);
        __builtin_prefetch(x + (r + kRows) * n + j);
        const Vec<T> centred = read(dy + r * n + j, live) * w - first[r];
        put_row<kStream>(dx + r * n + j, fma(-normalized(r, j, live), second[r], centred) * rstd[r],
                         live);
      }
    });
  }
};

template <int kRows, class T>
static void gradient_rows(const LayerNormBackward<T>& a, int64_t row, int64_t n, T* dweight,
                          T* dbias, bool streaming) {
  const GradientRows<T, kRows> rows(a, row, n);
  T sum[kRows], product[kRows];
  rows.sums(dweight, dbias, sum, product);
  if (!a.dx) return;
  if (streaming)
    rows.template write_dx<true>(sum, product);
  else
    rows.template write_dx<false>(sum, product);
}

/// Rows [begin, end), one block.
template <class T>
static void gradient_block(const LayerNormBackward<T>& a, int64_t begin, int64_t end, int64_t n,
                           T* dweight, T* dbias, bool streaming) {
  for (int64_t i = 0; dweight && i < n; ++i) dweight[i] = dbias[i] = 0;
  int64_t row = begin;
  for (; row + kGradientRows <= end; row += kGradientRows)
    gradient_rows<kGradientRows>(a, row, n, dweight, dbias, streaming);
  for (; row < end; ++row) gradient_rows<1>(a, row, n, dweight, dbias, streaming);
  if (streaming) finish_streaming();
}

/// Elements [begin, end) of a parameter's gradient: the blocks' sums, `step` apart, in order.
template <class T>
static void add_blocks(const T* sums, int64_t blocks, int64_t step, T* gradient, int64_t begin,
                       int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int64_t live = end - i < kLanes<T> ? end - i : kLanes<T>;
    Vec<T> total{};
    for (int64_t block = 0; block < blocks; ++block) total += read(sums + block * step + i, live);
    write(gradient + i, total, live);
  }
}

template <class T>
void layer_norm_backward(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p) {
  const int64_t blocks = row_blocks(p), n = p.width;
  T* const partial = static_cast<T*>(ctx.workspace);
  const bool parameters = a.dweight || a.dbias;
  const bool streaming = a.dx && streams_rows(a.dx, p.rows * n, n);
  parallel_for(ctx, blocks, kLayerNormGrain / (order::kRowBlock * (n > 0 ? n : 1)) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   const int64_t first = block * order::kRowBlock, last = first + order::kRowBlock;
                   T* dweight = parameters ? partial + 2 * block * n : nullptr;
                   gradient_block(a, first, last < p.rows ? last : p.rows, n, dweight,
                                  dweight ? dweight + n : nullptr, streaming);
                 }
               });
  parallel_for(ctx, n, kLayerNormGrain / (blocks + 1) + 1, [&](int64_t begin, int64_t end) {
    if (a.dweight) add_blocks(partial, blocks, 2 * n, a.dweight, begin, end);
    if (a.dbias) add_blocks(partial + n, blocks, 2 * n, a.dbias, begin, end);
  });
}

BRASA_INSTANTIATE(layer_norm_workspace, float, double)
BRASA_INSTANTIATE(layer_norm_forward, float, double)
BRASA_INSTANTIATE(layer_norm_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
