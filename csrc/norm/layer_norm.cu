// A warp per row, or a block where rows are long: statistics in two passes over the row, which L1
// and L2 keep. Gradients of weight and bias: a thread per column sums kRowBlock rows in order, a
// second launch adds the blocks in order.
#include "core/activations.h"
#include "core/device.cuh"
#include "core/order.h"
#include "core/ptx_convert.cuh"
#include "norm/norm.h"
#include "softmax/lines.cuh"

namespace brasa::cuda {

constexpr int kRowThreads = kLineThreads;

template <class T, class A, template <class> class Group>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_kernel(LayerNormForward<T> a, LayerNormParams p, Wide<T> alpha, Wide<T> beta) {
  using W = Wide<T>;
  constexpr int kSize = Group<W>::kSize, kPerBlock = kRowThreads / kSize;
  const Group<W> group;
  const int64_t n = p.width, first = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / kSize;
  for (int64_t row = first; row < p.rows; row += int64_t(gridDim.x) * kPerBlock) {
    const T* x = a.x + row * n;
    W sum = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) sum += simt::widen(x[i]);
    const W shift = group.sum(sum) / W(n);
    W offsets = 0, squares = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) {
      const W d = simt::widen(x[i]) - shift;
      offsets += d;
      squares += d * d;
    }
    const double e = double(group.sum(offsets)), count = double(n);
    const double q = double(group.sum(squares));
    const W mean = W(double(shift) + e / count);
    const W rstd = W(::rsqrt((q - e * e / count) / count + p.eps));
    if (group.rank() == 0) {
      a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
#pragma unroll 1  // more registers than there are, for some activations of double
    for (int64_t i = group.rank(); i < n; i += kSize) {
      W v = (simt::widen(x[i]) - mean) * rstd;
      if (a.weight) v *= a.weight[i];
      if (a.bias) v += a.bias[i];
      if (a.residual) v += simt::widen(a.residual[row * n + i]);
      if (a.pre_activation) a.pre_activation[row * n + i] = simt::narrow<T>(v);
      a.y[row * n + i] = simt::narrow<T>(A::forward(v, alpha, beta));
    }
  }
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kRowThreads)
    layer_gradient_kernel(LayerNormBackward<T> a, LayerNormParams p) {
  using W = Wide<T>;
  constexpr int kSize = Group<W>::kSize, kPerBlock = kRowThreads / kSize;
  const Group<W> group;
  const int64_t n = p.width, first = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / kSize;
  for (int64_t row = first; row < p.rows; row += int64_t(gridDim.x) * kPerBlock) {
    const T *dy = a.dy + row * n, *x = a.x + row * n;
    const W mean = a.mean[row], rstd = a.rstd[row];
    const auto gradient = [&](int64_t i) {
      return a.weight ? simt::widen(dy[i]) * a.weight[i] : simt::widen(dy[i]);
    };
    const auto normalized = [&](int64_t i) { return (simt::widen(x[i]) - mean) * rstd; };
    W sum = 0, products = 0;
    for (int64_t i = group.rank(); i < n; i += kSize) {
      const W g = gradient(i);
      sum += g;
      products += g * normalized(i);
    }
    const W first = group.sum(sum) / W(n);
    const W second = group.sum(products) / W(n);
#pragma unroll 2  // by four, ptxas spills for 16 bits
    for (int64_t i = group.rank(); i < n; i += kSize)
      a.dx[row * n + i] = simt::narrow<T>((gradient(i) - first - normalized(i) * second) * rstd);
  }
}

/// partial[2 b] = sum of dy xhat over the rows of block b, partial[2 b + 1] = sum of dy.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    parameter_sums_kernel(LayerNormBackward<T> a, LayerNormParams p, Wide<T>* partial) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x, n = p.width;
  if (i >= n) return;
  const int64_t first = blockIdx.y * order::kRowBlock;
  const int64_t end = first + order::kRowBlock < p.rows ? first + order::kRowBlock : p.rows;
  Wide<T> dweight = 0, dbias = 0;
  for (int64_t row = first; row < end; ++row) {
    const Wide<T> g = simt::widen(a.dy[row * n + i]);
    dweight += g * ((simt::widen(a.x[row * n + i]) - a.mean[row]) * a.rstd[row]);
    dbias += g;
  }
  partial[2 * blockIdx.y * n + i] = dweight;
  partial[(2 * blockIdx.y + 1) * n + i] = dbias;
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    merge_parameters_kernel(LayerNormBackward<T> a, LayerNormParams p, int64_t blocks,
                            const Wide<T>* partial) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x, n = p.width;
  if (i >= n) return;
  Wide<T> dweight = 0, dbias = 0;
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
  return size_t(2 * row_blocks(p) * p.width) * sizeof(Wide<T>);
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
  auto* const partial = static_cast<Wide<T>*>(ctx.workspace);
  if (p.rows > 0)
    simt::launch(over_columns(ctx, p, row_blocks(p)), parameter_sums_kernel<T>, a, p, partial);
  simt::launch(over_columns(ctx, p, 1), merge_parameters_kernel<T>, a, p, row_blocks(p), partial);
}

BRASA_INSTANTIATE(layer_norm_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(layer_norm_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(layer_norm_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
