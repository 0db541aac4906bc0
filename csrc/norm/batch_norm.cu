// Statistics: a block sums a part of kPart elements per channel, for kColumns neighbouring channels
// at a time where they are neighbours in memory; threads of one channel are combined by a tree in
// shared memory. A second launch adds the parts in order, a third is one elementwise pass.
#include "core/activations.h"
#include "core/device.cuh"
#include "norm/norm.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int64_t kPart = 8192;  ///< elements of a channel per block
constexpr int kColumns = 32;     ///< channels per block of a channels-last array

struct Pair {
  double first, second;
};

/// Where element i of channel c stands.
BRASA_DEVICE_FN int64_t place(const BatchNormParams& p, int64_t c, int64_t i) {
  return p.channels_last ? i * p.c + c : (i / p.s * p.c + c) * p.s + i % p.s;
}

/// The sum over threads rank, rank + columns, ...; every thread gets its column's.
template <class T> BRASA_DEVICE_FN T column_sum(T value, int columns) {
  BRASA_SHARED(T, values, [kThreads]);
  const int rank = int(threadIdx.x);
  __syncthreads();  // an earlier call may still be reading
  values[rank] = value;
  __syncthreads();
  for (int half = kThreads / 2; half >= columns; half /= 2) {
    if (rank < half) values[rank] += values[rank + half];
    __syncthreads();
  }
  return values[rank % columns];
}

/// What one thread of a reduction works on: channel c, elements first, first + step, ... before
/// end.
struct Share {
  int64_t c, first, end, step, count;
  bool live;
};
BRASA_DEVICE_FN Share share_of(const BatchNormParams& p, int columns) {
  const int64_t part = blockIdx.y, n = p.n * p.s;
  const int64_t begin = part * kPart, end = begin + kPart < n ? begin + kPart : n;
  const int64_t c = int64_t(blockIdx.x) * columns + threadIdx.x % columns;
  return {c, begin + threadIdx.x / columns, end, kThreads / columns, end - begin, c < p.c};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const T* x, BatchNormParams p, int columns, Pair* results) {
  const Share s = share_of(p, columns);
  T sum = 0;
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) sum += x[place(p, s.c, i)];
  const T shift = column_sum(sum, columns) / T(s.count);
  T offsets = 0, squares = 0;
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) {
    const T d = x[place(p, s.c, i)] - shift;
    offsets += d;
    squares += d * d;
  }
  offsets = column_sum(offsets, columns);
  squares = column_sum(squares, columns);
  if (!s.live || int(threadIdx.x) >= columns) return;
  const double e = double(offsets), n = double(s.count);
  results[blockIdx.y * p.c + s.c] = {double(shift) + e / n, double(squares) - e * e / n};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    products_kernel(const T* dy, const T* x, const T* mean, BatchNormParams p, int columns,
                    Pair* results) {
  const Share s = share_of(p, columns);
  T sum = 0, products = 0;
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) {
    const int64_t at = place(p, s.c, i);
    sum += dy[at];
    products += dy[at] * (x[at] - mean[s.c]);
  }
  sum = column_sum(sum, columns);
  products = column_sum(products, columns);
  if (s.live && int(threadIdx.x) < columns)
    results[blockIdx.y * p.c + s.c] = {double(sum), double(products)};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_statistics_kernel(BatchNormForward<T> a, BatchNormParams p, int64_t parts,
                            const Pair* results) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const double n = double(p.n * p.s);
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < p.c; c += stride) {
    const auto count = [&](int64_t part) {
      const int64_t left = p.n * p.s - part * kPart;
      return double(left < kPart ? left : kPart);
    };
    double sum = 0, squares = 0;
    for (int64_t part = 0; part < parts; ++part) sum += count(part) * results[part * p.c + c].first;
    const double mean = sum / n;
    for (int64_t part = 0; part < parts; ++part) {
      const double distance = results[part * p.c + c].first - mean;
      squares += results[part * p.c + c].second + count(part) * distance * distance;
    }
    a.mean[c] = T(mean);
    a.rstd[c] = T(::rsqrt(squares / n + p.eps));
    if (a.running_mean) {
      const double old_share = 1 - p.momentum;
      a.running_mean[c] = T(old_share * double(a.running_mean[c]) + p.momentum * mean);
      a.running_var[c] = T(old_share * double(a.running_var[c]) + p.momentum * (squares / (n - 1)));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    given_statistics_kernel(BatchNormForward<T> a, BatchNormParams p) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < p.c; c += stride) {
    a.mean[c] = a.running_mean[c];
    a.rstd[c] = T(::rsqrt(double(a.running_var[c]) + p.eps));
  }
}

/// first and second of a channel become the coefficients of dx.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_products_kernel(BatchNormBackward<T> a, BatchNormParams p, int64_t parts,
                          const Pair* results, Pair* coefficients) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const double n = double(p.n * p.s);
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < p.c; c += stride) {
    double sum = 0, products = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += results[part * p.c + c].first;
      products += results[part * p.c + c].second;
    }
    const double rstd = double(a.rstd[c]);
    if (a.dbias) a.dbias[c] = T(sum);
    if (a.dweight) a.dweight[c] = T(products * rstd);
    coefficients[c] = {p.training ? sum / n : 0, p.training ? products * rstd * rstd / n : 0};
  }
}

BRASA_DEVICE_FN int64_t channel_of(const BatchNormParams& p, int64_t i) {
  return p.channels_last ? i % p.c : i / p.s % p.c;
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(BatchNormForward<T> a, BatchNormParams p, T alpha, T beta) {
  const int64_t n = p.n * p.c * p.s, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const int64_t c = channel_of(p, i);
    const T scale = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
    T v = (a.x[i] - a.mean[c]) * scale + (a.bias ? a.bias[c] : T(0));
    if (a.residual) v += a.residual[i];
    if (a.pre_activation) a.pre_activation[i] = v;
    a.y[i] = A::forward(v, alpha, beta);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    batch_gradient_kernel(BatchNormBackward<T> a, BatchNormParams p, const Pair* coefficients) {
  const int64_t n = p.n * p.c * p.s, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const int64_t c = channel_of(p, i);
    const T scale = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
    const T first = T(coefficients[c].first), second = T(coefficients[c].second);
    a.dx[i] = (a.dy[i] - first - (a.x[i] - a.mean[c]) * second) * scale;
  }
}

// ----------------------------------------------------------------------------------------
// launchers

static int64_t parts_of(const BatchNormParams& p) {
  return simt::ceil_div(p.n * p.s, kPart);
}
static int columns_of(const BatchNormParams& p) {
  return p.channels_last ? kColumns : 1;
}

static simt::LaunchConfig over(Context ctx, int64_t n) {
  return {.grid = simt::blocks_for(n, kThreads),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}
static simt::LaunchConfig over_parts(Context ctx, const BatchNormParams& p) {
  return {
      .grid = dim3(unsigned(simt::ceil_div(p.c, int64_t(columns_of(p)))), unsigned(parts_of(p))),
      .block = dim3(kThreads),
      .stream = static_cast<simt::stream_t>(ctx.stream)};
}

template <class T> size_t batch_norm_workspace(const BatchNormParams& p) {
  return size_t((parts_of(p) + 1) * p.c) * sizeof(Pair);
}

template <class T>
void batch_norm_forward(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p) {
  const int64_t elements = p.n * p.c * p.s;
  if (p.c == 0 || (p.training && elements == 0)) return;
  if (p.training) {
    Pair* results = static_cast<Pair*>(ctx.workspace);
    simt::launch(over_parts(ctx, p), statistics_kernel<T>, a.x, p, columns_of(p), results);
    simt::launch(over(ctx, p.c), merge_statistics_kernel<T>, a, p, parts_of(p), results);
  } else {
    simt::launch(over(ctx, p.c), given_statistics_kernel<T>, a, p);
  }
  if (elements == 0) return;  // the statistics are there all the same
  visit_activation(p.activation.kind, [&]<class A>() {
    simt::launch(over(ctx, elements), normalize_kernel<T, A>, a, p, p.activation.alpha,
                 p.activation.beta);
  });
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  if (p.c == 0) return;
  Pair* results = static_cast<Pair*>(ctx.workspace);
  Pair* coefficients = results + parts_of(p) * p.c;
  if (parts_of(p) > 0)
    simt::launch(over_parts(ctx, p), products_kernel<T>, a.dy, a.x, a.mean, p, columns_of(p),
                 results);
  simt::launch(over(ctx, p.c), merge_products_kernel<T>, a, p, parts_of(p), results, coefficients);
  if (a.dx && parts_of(p) > 0)
    simt::launch(over(ctx, p.n * p.c * p.s), batch_gradient_kernel<T>, a, p, coefficients);
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double)
BRASA_INSTANTIATE(batch_norm_forward, float, double)
BRASA_INSTANTIATE(batch_norm_backward, float, double)

}  // namespace brasa::cuda
