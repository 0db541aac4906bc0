// Statistics: a block sums a part of kPart elements per channel, for kColumns neighbouring channels
// at a time where they are neighbours in memory; threads of one channel are combined by a tree in
// shared memory. A second launch adds the parts in order, a third is one elementwise pass.
#include "core/activations.h"
#include "core/device.cuh"
#include "norm/norm.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kColumns = 32;  ///< channels per block of a channels-last array

/// Elements of a channel per block: all of its threads work on one channel, or one of kColumns.
BRASA_HOST_DEVICE_FN int64_t part_of(const BatchNormParams& p) {
  return p.channels_last ? 1024 : 8192;
}

struct Pair {
  double first, second;
};

/// Where element i of channel c stands; `pixels` divides by p.s.
BRASA_DEVICE_FN int64_t place(const BatchNormParams& p, const simt::Divisor& pixels, int64_t c,
                              int64_t i) {
  if (p.channels_last) return i * p.c + c;
  const int64_t pixel = pixels.take_remainder(i);
  return (i * p.c + c) * p.s + pixel;
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
  const int64_t begin = part * part_of(p), end = begin + part_of(p) < n ? begin + part_of(p) : n;
  const int64_t c = int64_t(blockIdx.x) * columns + threadIdx.x % columns;
  return {c, begin + threadIdx.x / columns, end, kThreads / columns, end - begin, c < p.c};
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    statistics_kernel(const T* x, BatchNormParams p, simt::Divisor pixels, int columns,
                      Pair* results) {
  const Share s = share_of(p, columns);
  T sum = 0;
#pragma unroll 4
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) sum += x[place(p, pixels, s.c, i)];
  const T shift = column_sum(sum, columns) / T(s.count);
  T offsets = 0, squares = 0;
#pragma unroll 4
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) {
    const T d = x[place(p, pixels, s.c, i)] - shift;
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
__global__ void __launch_bounds__(kThreads, 4)
    products_kernel(const T* dy, const T* x, const T* mean, BatchNormParams p, simt::Divisor pixels,
                    int columns, Pair* results) {
  const Share s = share_of(p, columns);
  T sum = 0, products = 0;
#pragma unroll 4
  for (int64_t i = s.first; s.live && i < s.end; i += s.step) {
    const int64_t at = place(p, pixels, s.c, i);
    sum += dy[at];
    products += dy[at] * (x[at] - mean[s.c]);
  }
  sum = column_sum(sum, columns);
  products = column_sum(products, columns);
  if (s.live && int(threadIdx.x) < columns)
    results[blockIdx.y * p.c + s.c] = {double(sum), double(products)};
}

/// A block per channel.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    merge_statistics_kernel(BatchNormForward<T> a, BatchNormParams p, int64_t parts,
                            const Pair* results) {
  const double n = double(p.n * p.s);
  const auto count = [&](int64_t part) {
    const int64_t left = p.n * p.s - part * part_of(p);
    return double(left < part_of(p) ? left : part_of(p));
  };
  for (int64_t c = blockIdx.x; c < p.c; c += gridDim.x) {
    double sum = 0, squares = 0;
    for (int64_t part = threadIdx.x; part < parts; part += kThreads)
      sum += count(part) * results[part * p.c + c].first;
    const double mean = simt::block_reduce_sum(sum) / n;
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      const double distance = results[part * p.c + c].first - mean;
      squares += results[part * p.c + c].second + count(part) * distance * distance;
    }
    squares = simt::block_reduce_sum(squares);
    if (threadIdx.x != 0) continue;
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
__global__ void __launch_bounds__(kThreads, 4)
    given_statistics_kernel(BatchNormForward<T> a, BatchNormParams p) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < p.c; c += stride) {
    a.mean[c] = a.running_mean[c];
    a.rstd[c] = T(::rsqrt(double(a.running_var[c]) + p.eps));
  }
}

/// first and second of a channel become the coefficients of dx; a block per channel.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    merge_products_kernel(BatchNormBackward<T> a, BatchNormParams p, int64_t parts,
                          const Pair* results, Pair* coefficients) {
  const double n = double(p.n * p.s);
  for (int64_t c = blockIdx.x; c < p.c; c += gridDim.x) {
    double sum = 0, products = 0;
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      sum += results[part * p.c + c].first;
      products += results[part * p.c + c].second;
    }
    sum = simt::block_reduce_sum(sum);
    products = simt::block_reduce_sum(products);
    if (threadIdx.x != 0) continue;
    const double rstd = double(a.rstd[c]);
    if (a.dbias) a.dbias[c] = T(sum);
    if (a.dweight) a.dweight[c] = T(products * rstd);
    coefficients[c] = {p.training ? sum / n : 0, p.training ? products * rstd * rstd / n : 0};
  }
}

/// How elements find their channels: element i has channel i / inner % channels.
struct Channels {
  simt::Divisor inner, channels;

  explicit Channels(const BatchNormParams& p) : inner(p.channels_last ? 1 : p.s), channels(p.c) {}
  BRASA_DEVICE_FN int64_t of(int64_t i) const {
    int64_t rest = inner.quotient(i);
    return channels.take_remainder(rest);
  }
};

/// A pack has one channel, or in a channels-last array neighbouring ones.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 4)
    normalize_kernel(BatchNormForward<T> a, BatchNormParams p, Channels channels, bool packs,
                     T alpha, T beta) {
  simt::for_packs<T>(p.n * p.c * p.s, packs, [&]<int kLanes>(int64_t i) {
    auto v = simt::load_pack<kLanes>(a.x + i);
    simt::Pack<T, kLanes> residual{};
    if (a.residual) residual = simt::load_pack<kLanes>(a.residual + i);
    const int64_t first = channels.of(i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int64_t c = p.channels_last ? first + k : first;
      const T scale = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
      v[k] = (v[k] - a.mean[c]) * scale + (a.bias ? a.bias[c] : T(0));
      if (a.residual) v[k] += residual[k];
    }
    if (a.pre_activation) simt::store_pack<kLanes>(a.pre_activation + i, v);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) v[k] = A::forward(v[k], alpha, beta);
    simt::store_pack<kLanes>(a.y + i, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    batch_gradient_kernel(BatchNormBackward<T> a, BatchNormParams p, Channels channels, bool packs,
                          const Pair* coefficients) {
  simt::for_packs<T>(p.n * p.c * p.s, packs, [&]<int kLanes>(int64_t i) {
    auto g = simt::load_pack<kLanes>(a.dy + i);
    const auto x = simt::load_pack<kLanes>(a.x + i);
    const int64_t channel = channels.of(i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int64_t c = p.channels_last ? channel + k : channel;
      const T scale = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
      const T first = T(coefficients[c].first), second = T(coefficients[c].second);
      g[k] = (g[k] - first - (x[k] - a.mean[c]) * second) * scale;
    }
    simt::store_pack<kLanes>(a.dx + i, g);
  });
}

// ----------------------------------------------------------------------------------------
// launchers

static int64_t parts_of(const BatchNormParams& p) {
  return simt::ceil_div(p.n * p.s, part_of(p));
}
static int columns_of(const BatchNormParams& p) {
  return p.channels_last ? kColumns : 1;
}

static simt::LaunchConfig over(Context ctx, int64_t n) {
  return {.grid = simt::blocks_for(n, kThreads),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}
static simt::LaunchConfig per_channel(Context ctx, const BatchNormParams& p) {
  return {.grid = simt::blocks_for(p.c, 1),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}
static simt::LaunchConfig over_parts(Context ctx, const BatchNormParams& p) {
  return {
      .grid = dim3(unsigned(simt::ceil_div(p.c, int64_t(columns_of(p)))), unsigned(parts_of(p))),
      .block = dim3(kThreads),
      .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Whether packs of these arrays stay within a plane, or within the channels of a pixel.
template <class T, class... Arrays>
static bool in_packs(const BatchNormParams& p, const Arrays*... arrays) {
  return (p.channels_last ? p.c : p.s) % simt::kPackLanes<T> == 0 &&
         (simt::pack_aligned(arrays) && ...);
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
    simt::launch(over_parts(ctx, p), statistics_kernel<T>, a.x, p, simt::Divisor(p.s),
                 columns_of(p), results);
    simt::launch(per_channel(ctx, p), merge_statistics_kernel<T>, a, p, parts_of(p), results);
  } else {
    simt::launch(over(ctx, p.c), given_statistics_kernel<T>, a, p);
  }
  if (elements == 0) return;  // the statistics are there all the same
  visit_activation(p.activation.kind, [&]<class A>() {
    simt::launch(over(ctx, elements), normalize_kernel<T, A>, a, p, Channels(p),
                 in_packs<T>(p, a.x, a.residual, a.pre_activation, a.y), p.activation.alpha,
                 p.activation.beta);
  });
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  if (p.c == 0) return;
  Pair* results = static_cast<Pair*>(ctx.workspace);
  Pair* coefficients = results + parts_of(p) * p.c;
  if (parts_of(p) > 0)
    simt::launch(over_parts(ctx, p), products_kernel<T>, a.dy, a.x, a.mean, p, simt::Divisor(p.s),
                 columns_of(p), results);
  simt::launch(per_channel(ctx, p), merge_products_kernel<T>, a, p, parts_of(p), results,
               coefficients);
  if (a.dx && parts_of(p) > 0)
    simt::launch(over(ctx, p.n * p.c * p.s), batch_gradient_kernel<T>, a, p, Channels(p),
                 in_packs<T>(p, a.dy, a.x, a.dx), coefficients);
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double)
BRASA_INSTANTIATE(batch_norm_forward, float, double)
BRASA_INSTANTIATE(batch_norm_backward, float, double)

}  // namespace brasa::cuda
