// A warp per row, or a block where rows are long: statistics in two passes over the row, which L1
// and L2 keep. Gradients of weight and bias: a thread per column sums kRowBlock rows in order, a
// second launch adds the blocks in order.
#include "core/activations.h"
#include "core/device.cuh"
#include "core/order.h"
#include "norm/norm.h"
#include "softmax/lines.cuh"

namespace brasa::cuda {

constexpr int kRowThreads = kLineThreads;

template <class T, class A, template <class> class Group>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_kernel(LayerNormForward<T> a, LayerNormParams p, T alpha, T beta) {
  constexpr int kSize = Group<T>::kSize, kPerBlock = kRowThreads / kSize;
  const Group<T> group;
  const int64_t n = p.width, first = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / kSize;
  for (int64_t row = first; row < p.rows; row += int64_t(gridDim.x) * kPerBlock) {
    const T* x = a.x + row * n;
    T sum = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) sum += x[i];
    const T shift = group.sum(sum) / T(n);
    T offsets = 0, squares = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) {
      const T d = x[i] - shift;
      offsets += d;
      squares += d * d;
    }
    const double e = double(group.sum(offsets)), count = double(n);
    const double q = double(group.sum(squares));
    const T mean = T(double(shift) + e / count);
    const T rstd = T(::rsqrt((q - e * e / count) / count + p.eps));
    if (group.rank() == 0) {
      a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
#pragma unroll 1  // more registers than there are, for some activations of double
    for (int64_t i = group.rank(); i < n; i += kSize) {
      T v = (x[i] - mean) * rstd;
      if (a.weight) v *= a.weight[i];
      if (a.bias) v += a.bias[i];
      if (a.residual) v += a.residual[row * n + i];
      if (a.pre_activation) a.pre_activation[row * n + i] = v;
      a.y[row * n + i] = A::forward(v, alpha, beta);
    }
  }
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kRowThreads)
    layer_gradient_kernel(LayerNormBackward<T> a, LayerNormParams p) {
  constexpr int kSize = Group<T>::kSize, kPerBlock = kRowThreads / kSize;
  const Group<T> group;
  const int64_t n = p.width, first = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / kSize;
  for (int64_t row = first; row < p.rows; row += int64_t(gridDim.x) * kPerBlock) {
    const T *dy = a.dy + row * n, *x = a.x + row * n;
    const T mean = a.mean[row], rstd = a.rstd[row];
    T sum = 0, products = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) {
      const T g = a.weight ? dy[i] * a.weight[i] : dy[i];
      sum += g;
      products += g * ((x[i] - mean) * rstd);
    }
    const T first = group.sum(sum) / T(n);
    const T second = group.sum(products) / T(n);
    for (int64_t i = group.rank(); i < n; i += kSize) {
      const T g = a.weight ? dy[i] * a.weight[i] : dy[i];
      a.dx[row * n + i] = (g - first - (x[i] - mean) * rstd * second) * rstd;
    }
  }
}

/// partial[2 b] = sum of dy xhat over the rows of block b, partial[2 b + 1] = sum of dy.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    parameter_sums_kernel(LayerNormBackward<T> a, LayerNormParams p, T* partial) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x, n = p.width;
  if (i >= n) return;
  const int64_t first = blockIdx.y * order::kRowBlock;
  const int64_t end = first + order::kRowBlock < p.rows ? first + order::kRowBlock : p.rows;
  T dweight = 0, dbias = 0;
  for (int64_t row = first; row < end; ++row) {
    const T g = a.dy[row * n + i];
    dweight += g * ((a.x[row * n + i] - a.mean[row]) * a.rstd[row]);
    dbias += g;
  }
  partial[2 * blockIdx.y * n + i] = dweight;
  partial[(2 * blockIdx.y + 1) * n + i] = dbias;
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    merge_parameters_kernel(LayerNormBackward<T> a, LayerNormParams p, int64_t blocks,
                            const T* partial) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x, n = p.width;
  if (i >= n) return;
  T dweight = 0, dbias = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    dweight += partial[2 * block * n + i];
    dbias += partial[(2 * block + 1) * n + i];
  }
  if (a.dweight) a.dweight[i] = dweight;
  if (a.dbias) a.dbias[i] = dbias;
}

// ----------------------------------------------------------------------------------------
// launchers

static int64_t row_blocks(const LayerNormParams& p) {
  return simt::ceil_div(p.rows, order::kRowBlock);
}

/// Calls launch(group, configuration) with the kind of group that suits the rows.
template <class F> static void over_rows(Context ctx, const LayerNormParams& p, const F& f) {
  const bool block = p.width >= kBlockLine;
  const simt::LaunchConfig config{
      .grid = simt::blocks_for(p.rows, block ? 1 : kRowThreads / simt::kWarpSize),
      .block = dim3(kRowThreads),
      .stream = static_cast<simt::stream_t>(ctx.stream)};
  if (block)
    f.template operator()<BlockGroup>(config);
  else
    f.template operator()<WarpGroup>(config);
}
static simt::LaunchConfig over_columns(Context ctx, const LayerNormParams& p, int64_t blocks) {
  return {.grid = dim3(unsigned(simt::ceil_div(p.width, int64_t(kRowThreads))), unsigned(blocks)),
          .block = dim3(kRowThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

template <class T> size_t layer_norm_workspace(const LayerNormParams& p) {
  return size_t(2 * row_blocks(p) * p.width) * sizeof(T);
}

template <class T>
void layer_norm_forward(Context ctx, const LayerNormForward<T>& a, const LayerNormParams& p) {
  if (p.rows * p.width == 0) return;
  visit_activation(p.activation.kind, [&]<class A>() {
    over_rows(ctx, p, [&]<template <class> class Group>(const simt::LaunchConfig& config) {
      simt::launch(config, layer_norm_kernel<T, A, Group>, a, p, p.activation.alpha,
                   p.activation.beta);
    });
  });
}

template <class T>
void layer_norm_backward(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p) {
  if (p.width == 0) return;
  if (a.dx && p.rows > 0) {
    over_rows(ctx, p, [&]<template <class> class Group>(const simt::LaunchConfig& config) {
      simt::launch(config, layer_gradient_kernel<T, Group>, a, p);
    });
  }
  if (!a.dweight && !a.dbias) return;
  T* partial = static_cast<T*>(ctx.workspace);
  if (p.rows > 0)
    simt::launch(over_columns(ctx, p, row_blocks(p)), parameter_sums_kernel<T>, a, p, partial);
  simt::launch(over_columns(ctx, p, 1), merge_parameters_kernel<T>, a, p, row_blocks(p), partial);
}

BRASA_INSTANTIATE(layer_norm_workspace, float, double)
BRASA_INSTANTIATE(layer_norm_forward, float, double)
BRASA_INSTANTIATE(layer_norm_backward, float, double)

}  // namespace brasa::cuda
