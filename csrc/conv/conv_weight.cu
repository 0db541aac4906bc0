// Gradients of the weight on CUDA; the bias's are those of conv_bias.cu.
//
// The weight's is a product of (taps, input channels) x (pixels) by (pixels) x (output channels),
// its pixels dealt to parts that are added in order: in the main loop of matrix products
// (matmul/gemm_fma.cuh), with the places of 512 pixels worked out at a time. Parts lie as they are
// computed, packs of output channels, and find their place in the weight when they are added up:
// stored there by each part, every element was a sector of its own. First layers, whose weight has
// hundreds of elements, have tiles of 32 x 16 by a warp, thousands of them. Groups of few channels
// have a block per weight.
#include "activation/activation.h"
#include "conv/conv_depthwise.cuh"
#include "conv/conv_weight.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

/// A block computes one tile of (tap, channel) rows x output channels over the pixels of one part;
/// blockIdx.y counts parts, blockIdx.z groups.
template <class T, class Tile, bool kPacks>
__global__ void __launch_bounds__(Tile::kThreads, kPacks ? Tile::kBlocks : (Tile::kBlocks + 1) / 2)
    weight_kernel(WeightTask<T> task) {
  using Operands = WeightOperands<T, Tile, kPacks>;
  using Shared = FmaShared<T, Tile>;
  BRASA_SHARED(Shared, shared, [1]);
  BRASA_SHARED(StepTable<Place>, table, [1]);
  const auto column_tiles = unsigned(simt::ceil_div<int64_t>(task.group_out, Tile::kColumns));
  const int64_t row = int64_t(blockIdx.x / column_tiles) * Tile::kRows;
  const int64_t column = int64_t(blockIdx.x % column_tiles) * Tile::kColumns;
  const int64_t pixels = task.pixels(), part = blockIdx.y, columns = task.group_out - column;
  const int64_t begin = pixels * part / task.parts, end = pixels * (part + 1) / task.parts;
  Operands operands{table[0], task};
  operands.columns_left = int(columns < Tile::kColumns ? columns : Tile::kColumns);
  operands.find_rows(row);
  const int64_t size = task.rows() * task.group_out;
  const FmaResults<MatrixRows> results{task.rows(), task.group_out, 1, kPacks, {task.group_out}};
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    FmaSums<T, Tile> sum = {};
    for (int64_t first = begin; first < end; first = operands.end) {
      const unsigned rounds = operands.start(group, column, first, end);
      multiply_rounds<T, Tile>(rounds, shared[0], operands, sum);
    }
    store_sums<T, Tile>(results, Epilogue<T>{}, (part * task.groups + group) * size, task.out, row,
                        column, column, sum);
  }
}

/// One block per weight, for groups of few channels.
template <class T>
__global__ void __launch_bounds__(kThreads) direct_weight_kernel(WeightTask<T> task) {
  const int64_t channels = task.groups * task.group_out, pixels = task.pixels();
  for (int64_t i = blockIdx.x; i < task.weights(); i += gridDim.x) {
    const int64_t column = i / task.rows(), row = i % task.rows();
    int64_t kernel[3], channel;
    const Place tap = place_tap(task.grid, task.x_layout, row, kernel, channel);
    const T* x = task.x + column / task.group_out * task.group_in * task.x_layout.channel;
    Wide<T> sum = 0;
    for (int64_t p = threadIdx.x; p < pixels; p += kThreads) {
      const Place pixel = place_pixel(task.grid, task.x_layout, p);
      if (inside(task.x_layout, tap, pixel))
        sum +=
            simt::widen(x[tap.offset + pixel.offset]) * simt::widen(task.dy[p * channels + column]);
    }
    sum = simt::block_reduce_sum(sum);
    if (threadIdx.x == 0)
      task.out[(column * task.group_in + channel) * task.taps() + row / task.group_in] =
          simt::narrow<T>(sum);
  }
}

/// Where a sum of parts goes: from [group][tap, channel][output channel] to its place in the
/// weight.
struct InWeight {
  simt::Divisor column_of, channel_of, tap_of;
  int64_t columns, channels, taps;
  explicit InWeight(const ConvParams& p)
      : column_of(p.group_out()),
        channel_of(p.group_in()),
        tap_of(p.taps()),
        columns(p.group_out()),
        channels(p.group_in()),
        taps(p.taps()) {}
  BRASA_DEVICE_FN int64_t operator()(int64_t i) const {
    const int64_t column = column_of.take_remainder(i), channel = channel_of.take_remainder(i);
    const int64_t tap = tap_of.take_remainder(i);
    return ((i * columns + column) * channels + channel) * taps + tap;
  }
};

constexpr int kAddColumns = 32, kAddGroups = kThreads / kAddColumns;

/// to[place(i)] = sum over parts of from[part * n + i]. A block has kAddColumns sums; its groups of
/// threads take parts in turn and are added in order.
template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const T* from, U* to, int64_t n, int64_t parts, InWeight where) {
  BRASA_SHARED(T, of_group, [kAddGroups][kAddColumns]);
  const int lane = int(threadIdx.x) % kAddColumns, group = int(threadIdx.x) / kAddColumns;
  for (int64_t first = int64_t(blockIdx.x) * kAddColumns; first < n;
       first += int64_t(gridDim.x) * kAddColumns) {
    const int64_t i = first + lane;
    T sum = 0;
    if (i < n) {
#pragma unroll 8
      for (int64_t part = group; part < parts; part += kAddGroups) sum += from[part * n + i];
    }
    of_group[group][lane] = sum;
    __syncthreads();
    if (group == 0 && i < n) {
      for (int g = 1; g < kAddGroups; ++g) sum += of_group[g][lane];
      to[where(i)] = simt::narrow<U>(sum);
    }
    __syncthreads();
  }
}

using ThinTile = FmaTile<float, 4, 4, 1, 1, 8, 16>;  // 32 x 16

enum class WeightTile : int8_t { large, medium, small, thin, of_double };
struct WeightPlan {
  WeightTile tile;
  int64_t parts;
};

/// Calls f(tile) with a value of the type.
template <class F> static void with_tile(WeightTile tile, const F& f) {
  switch (tile) {
    case WeightTile::large:
      return f(FmaLarge{});
    case WeightTile::medium:
      return f(FmaMedium{});
    case WeightTile::small:
      return f(FmaSmall{});
    case WeightTile::thin:
      return f(ThinTile{});
    case WeightTile::of_double:
      return f(FmaDouble{});
  }
}

static bool is_direct(const ConvParams& p) {
  return p.group_out() < kFewChannels && p.groups > 1;
}
/// The tile and the parts of the pixels that are least work for the multiprocessor that has most.
template <class T> static WeightPlan plan_weight(const ConvParams& p) {
  constexpr int64_t kLeastPixels = 64;
  WeightPlan best{WeightTile::of_double, 1};
  if (sizeof(T) == 2 || is_direct(p)) return best;
  const int64_t pixels = p.batch * p.out_pixels(), rows = p.taps() * p.group_in();
  int64_t least = INT64_MAX;
  const auto consider = [&](WeightTile tile) {
    with_tile(tile, [&](auto shape) {
      using Tile = decltype(shape);
      const int64_t most = larger(pixels / kLeastPixels, 1);
      for_splits<Tile>(rows, p.group_out(), p.groups, most, [&](int64_t parts) {
        const int64_t cycles = estimate_fma<Tile>(rows, p.group_out(), pixels, p.groups, parts);
        if (cycles < least) least = cycles, best = {tile, parts};
      });
    });
  };
  if (sizeof(T) == 8) {
    consider(WeightTile::of_double);
  } else {
    for (const auto tile :
         {WeightTile::large, WeightTile::medium, WeightTile::small, WeightTile::thin})
      consider(tile);
  }
  return best;
}

template <class T, class U>
static void add_parts(Context ctx, const T* from, U* to, int64_t n, int64_t parts,
                      const InWeight& where) {
  if (n == 0) return;
  simt::launch(
      {.grid = simt::blocks_for(n, kAddColumns), .block = dim3(kThreads), .stream = stream_of(ctx)},
      add_parts_kernel<T, U>, from, to, n, parts, where);
}

static int64_t result_elements(const ConvParams& p) {
  return p.batch * p.out_pixels() * p.out_channels;
}

template <class T> static WeightTask<T> weight_task(const T* dy, const T* x, const ConvParams& p) {
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  return {Grid(axes, p.group_in()),
          p.batch,
          p.groups,
          p.group_in(),
          p.group_out(),
          1,
          x,
          layout_of_image(p.in_channels, p.in, p.x_channels_last),
          dy,
          nullptr};
}

/// By kernels of this file: tiles in FMA, or a block per weight.
template <class T>
static void tile_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                        void* workspace) {
  WeightTask<T> task = weight_task(dy, x, p);
  if (sizeof(T) == 2 || is_direct(p)) {
    task.out = dw;
    simt::launch({.grid = simt::blocks_for(task.weights(), 1),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_weight_kernel<T>, task);
    return;
  }
  if constexpr (sizeof(T) >= 4) {
    const WeightPlan plan = plan_weight<T>(p);
    task.parts = plan.parts, task.out = static_cast<T*>(workspace);
    const bool packs = channels_in_packs(x, task.x_layout, p.group_in()) &&
                       p.group_out() % simt::kPackLanes<T> == 0 && simt::pack_aligned(dy);
    with_tile(plan.tile, [&](auto shape) {
      using Tile = decltype(shape);
      if constexpr (std::is_same_v<Tile, FmaDouble> == (sizeof(T) == 8)) {
        const int64_t tiles = simt::ceil_div<int64_t>(task.rows(), Tile::kRows) *
                              simt::ceil_div<int64_t>(task.group_out, Tile::kColumns);
        simt::launch({.grid = dim3(unsigned(tiles), unsigned(plan.parts), grid_z(p.groups)),
                      .block = dim3(Tile::kThreads),
                      .stream = stream_of(ctx)},
                     packs ? weight_kernel<T, Tile, true> : weight_kernel<T, Tile, false>, task);
      }
    });
    add_parts(ctx, task.out, dw, task.weights(), plan.parts, InWeight(p));
  }
}

/// dw = dy^T x, where the kernel has one tap.
static MatmulParams weight_product(const ConvParams& p) {
  MatmulParams product{.m = p.out_channels, .n = p.in_channels, .k = p.batch * p.out_pixels()};
  product.a_row = 1, product.a_depth = product.k == 1 ? 1 : p.out_channels;
  product.b_column = 1, product.b_depth = product.k == 1 ? 1 : p.in_channels;
  product.batch.count = product.sum.count = 1;
  product.aligned = p.aligned;
  return product;
}
/// Products in float64 do not split their depth, which is all pixels.
template <class T> static bool is_weight_product(const ConvParams& p) {
  return sizeof(T) <= 4 && is_product(p);
}

template <class T>
static void backward_filter(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                            void* workspace) {
  if (p.is_depthwise()) return depthwise_backward_weight(ctx, dy, x, dw, p, workspace);
  if constexpr (sizeof(T) <= 4) {
    if (is_weight_product<T>(p)) {
      ctx.workspace = workspace;
      return matmul(ctx, weight_product(p), dy, x, dw, Epilogue<T>{});
    }
    if (on_tensor_cores<T>(p)) return tensor_backward_weight(ctx, dy, x, dw, p, workspace);
  }
  tile_weight(ctx, dy, x, dw, p, workspace);
}
template <class T> static size_t filter_workspace(const ConvParams& p) {
  if (p.is_depthwise()) return depthwise_weight_workspace<T>(p);
  if constexpr (sizeof(T) <= 4) {
    if (is_weight_product<T>(p))
      return matmul_workspace<T>(weight_product(p), {.math_mode = p.math_mode});
    if (on_tensor_cores<T>(p)) return tensor_weight_workspace<T>(p);
  }
  if (sizeof(T) == 2 || is_direct(p)) return 0;
  return sizeof(T) * size_t(plan_weight<T>(p).parts * p.out_channels * p.group_in() * p.taps());
}

template <class T> struct GradientScratch {
  T* g;  ///< the gradient before the activation
  Wide<T>* bias;
  unsigned char* filter;

  GradientScratch(Scratch& scratch, const ConvParams& p, bool has_slope)
      : g(scratch.take<T>(has_slope ? result_elements(p) : 0)),
        bias(scratch.take<Wide<T>>(bias_parts<T>(p))),
        filter(scratch.take<unsigned char>(int64_t(filter_workspace<T>(p)))) {}
};

template <class T>
void conv_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db, const ConvParams& p,
                          const Slope<T>& slope) {
  check_extents(p);
  Scratch scratch(ctx.workspace);
  const GradientScratch<T> at(scratch, p, slope.v);
  if (slope.v) {
    activation_backward(ctx, dy, slope.v, at.g, result_elements(p), slope.activation);
    dy = at.g;
  }
  if (db) backward_bias(ctx, dy, db, at.bias, p);
  if (dw) backward_filter(ctx, dy, x, dw, p, at.filter);
}

template <class T> size_t conv_backward_weight_workspace(const ConvParams& p, bool has_slope, int) {
  Scratch scratch(nullptr);
  GradientScratch<T>(scratch, p, has_slope);
  return scratch.used();
}

template <class T> void conv_wide_bias(Context ctx, const T* dy, float* db, const ConvParams& p) {
  backward_bias(ctx, dy, db, static_cast<float*>(ctx.workspace), p);
}
template <class T> size_t conv_wide_bias_workspace(const ConvParams& p) {
  return sizeof(float) * size_t(bias_parts<T>(p));
}

BRASA_INSTANTIATE(conv_backward_weight, float, double, float16, bfloat16)
BRASA_INSTANTIATE(conv_backward_weight_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(conv_wide_bias, float16, bfloat16)
BRASA_INSTANTIATE(conv_wide_bias_workspace, float16, bfloat16)

}  // namespace brasa::cuda
