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

template <class T, class A, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_kernel(LayerNormForward<T> a, LayerNormParams p, bool packs, Wide<T> alpha,
                      Wide<T> beta) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>({p.rows, p.width, 1}, packs, [&](const Line<W, Group, kLanes>& line) {
    const T* x = a.x + line.offset;
    W sum = 0;
    line.each([&](int64_t j) {
      const auto v = line.load(x, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sum += v[k];
    });
    const W shift = line.group.sum(sum) / W(line.n);
    W offsets = 0, squares = 0;
    line.each([&](int64_t j) {
      const auto v = line.load(x, j, shift);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const W d = v[k] - shift;
        offsets += d;
        squares += d * d;
      }
    });
    const double e = double(line.group.sum(offsets)), count = double(line.n);
    const double q = double(line.group.sum(squares));
    const W mean = W(double(shift) + e / count);
    const W rstd = W(::rsqrt((q - e * e / count) / count + p.eps));
    if (line.group.rank() == 0) {
      a.mean[line.index] = mean;
      a.rstd[line.index] = rstd;
    }
#pragma unroll 1  // more registers than there are, for some activations of double
    for (int64_t j = line.first(); j < line.n; j += line.kStep) {
      auto v = line.load(x, j);
      const auto apply = [&](const auto& f) {
#pragma unroll
        for (int k = 0; k < kLanes; ++k) v[k] = f(v[k], k);
      };
      apply([&](W value, int) { return (value - mean) * rstd; });
      if (a.weight) {
        const auto weight = line.load(a.weight, j);
        apply([&](W value, int k) { return value * weight[k]; });
      }
      if (a.bias) {
        const auto bias = line.load(a.bias, j);
        apply([&](W value, int k) { return value + bias[k]; });
      }
      if (a.residual) {
        const auto residual = line.load(a.residual + line.offset, j);
        apply([&](W value, int k) { return value + residual[k]; });
      }
      if (a.pre_activation) line.store(a.pre_activation + line.offset, j, v);
      apply([&](W value, int) { return A::forward(value, alpha, beta); });
      line.store(a.y + line.offset, j, v);
    }
  });
}

template <class T, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    layer_gradient_kernel(LayerNormBackward<T> a, LayerNormParams p, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>({p.rows, p.width, 1}, packs, [&](const Line<W, Group, kLanes>& line) {
    const W mean = a.mean[line.index], rstd = a.rstd[line.index];
    // f(gradient, normalised x, lane) for the elements from j on.
    const auto visit = [&](int64_t j, const auto& f) {
      auto g = line.load(a.dy + line.offset, j);
      const auto x = line.load(a.x + line.offset, j);
      if (a.weight) {
        const auto weight = line.load(a.weight, j);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) g[k] *= weight[k];
      }
#pragma unroll
      for (int k = 0; k < kLanes; ++k) f(g[k], (x[k] - mean) * rstd, k);
    };
    W sum = 0, products = 0;
    line.each([&](int64_t j) {
      visit(j, [&](W g, W normalized, int) {
        sum += g;
        products += g * normalized;
      });
    });
    const W first = line.group.sum(sum) / W(line.n);
    const W second = line.group.sum(products) / W(line.n);
#pragma unroll(sizeof(T) == 8 ? 1 : 2)  // with others ptxas spills, for one type or another
    for (int64_t j = line.first(); j < line.n; j += line.kStep) {
      typename Line<W, Group, kLanes>::Values dx;
      visit(j, [&](W g, W normalized, int k) { dx[k] = (g - first - normalized * second) * rstd; });
      line.store(a.dx + line.offset, j, dx);
    }
  });
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

static simt::LaunchConfig per_row(Context ctx, dim3 grid) {
  return {
      .grid = grid, .block = dim3(kRowThreads), .stream = static_cast<simt::stream_t>(ctx.stream)};
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
  const bool packs =
      lines_in_packs<T>(p.width, a.x, a.residual, a.weight, a.bias, a.pre_activation, a.y);
  visit_activation(p.activation.kind, [&]<class A>() {
    choose_row_group<T>(p.rows, p.width, [&]<template <class> class Group, int kLanes>(dim3 grid) {
      simt::launch(per_row(ctx, grid), layer_norm_kernel<T, A, Group, kLanes>, a, p, packs,
                   p.activation.alpha, p.activation.beta);
    });
  });
}

template <class T>
void layer_norm_backward(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p) {
  if (p.width == 0) return;
  if (a.dx && p.rows > 0) {
    const bool packs = lines_in_packs<T>(p.width, a.dy, a.x, a.weight, a.dx);
    choose_row_group<T>(p.rows, p.width, [&]<template <class> class Group, int kLanes>(dim3 grid) {
      simt::launch(per_row(ctx, grid), layer_gradient_kernel<T, Group, kLanes>, a, p, packs);
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
