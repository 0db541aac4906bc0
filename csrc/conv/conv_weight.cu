// Gradients of the weight on CUDA; the bias's are those of conv_bias.cu.
//
// The weight's is a product of (taps, input channels) x (pixels) by (pixels) x (output channels),
// its pixels dealt to parts that are added in order. Groups of few channels have a block per
// weight.
#include "activation/activation.h"
#include "conv/conv_depthwise.cuh"
#include "conv/conv_paths.cuh"
#include "conv/conv_tensor.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

constexpr int64_t kWantedBlocks = 528, kPartPixels = 1024;

/// The gradient of the weight: x and dy read at the same pixels.
template <class T> struct WeightTask {
  Grid grid;
  int64_t batch, groups, group_in, group_out, parts;
  const T* x;
  Layout5 x_layout;
  const T* dy;
  T* out;  ///< [part][weight]

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * grid.axis[0].count * grid.axis[1].count * grid.axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const {
    return grid.axis[0].taps * grid.axis[1].taps * grid.axis[2].taps;
  }
  BRASA_HOST_DEVICE_FN int64_t rows() const { return taps() * group_in; }
  /// Where row (tap, channel) and output channel `column` of all groups stand in the weight.
  BRASA_DEVICE_FN int64_t weight_at(int64_t row, int64_t column) const {
    const int64_t channel = grid.channels.take_remainder(row);
    return (column * group_in + channel) * taps() + row;
  }
  BRASA_HOST_DEVICE_FN int64_t weights() const { return groups * group_out * rows(); }
};

/// The inputs and gradients of one tile, for multiply_rounds(). With packs, four channels of a
/// pixel are one load.
template <class T, class Shape, bool kPacks> struct WeightOperands {
  static constexpr int kLanes = Shape::kLanes, kDepth = Shape::kDepth;
  using Left = TilePart<T, Shape::kRows, kDepth>;
  static constexpr int kPlaces = kPacks ? Left::kPacks : 1;
  SharedTile<T, Shape::kRows, kDepth>* left;
  SharedTile<T, Shape::kColumns, kDepth>* right;
  Place (*pixel)[kDepth];  ///< two rounds, taken in turn
  const WeightTask<T>& task;
  const T *x, *dy;
  int64_t begin, end;
  int columns_left;
  Place tap[kPlaces];
  Left left_part;
  TilePart<T, Shape::kColumns, kDepth> right_part;

  static BRASA_DEVICE_FN int own_row() { return int(threadIdx.x) % Shape::kRows; }
  static BRASA_DEVICE_FN int own_depth(int k) {
    return int(threadIdx.x) / Shape::kRows + k * (kThreads / Shape::kRows);
  }

  BRASA_DEVICE_FN void find_rows(int64_t first) {
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      const int64_t r = first + (kPacks ? Left::extent_of(k, false) : own_row());
      int64_t kernel[3], channel;
      tap[k] = place_tap(task.grid, task.x_layout, r < task.rows() ? r : 0, kernel, channel);
      if (r >= task.rows()) tap[k].at[0] = kOutside;
    }
  }
  BRASA_DEVICE_FN void find_depth(unsigned round) {
    const int p = int(threadIdx.x);
    const int64_t depth = begin + int64_t(round) * kDepth + p;
    if (p < kDepth && depth < end)
      pixel[round % 2][p] = place_pixel(task.grid, task.x_layout, depth);
  }

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const Place* at = pixel[round % 2];
    const int64_t first = begin + int64_t(round) * kDepth, depth_left = end - first;
    const int depth = depth_left < kDepth ? int(depth_left) : kDepth;
    fetch_left(at, depth);
    right_part.fetch(false, [&](int, int i, int p) {
      simt::Pack<T, kLanes> pack{};
      const T* from = dy + (first + p) * (task.groups * task.group_out) + i;
      if constexpr (kPacks) {
        if (p < depth && i < columns_left) pack = simt::load_pack<kLanes>(from);
      } else {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          if (p < depth && i + lane < columns_left) pack[lane] = from[lane];
      }
      return pack;
    });
    find_depth(round + 1);
  }
  BRASA_DEVICE_FN void fetch_left(const Place* at, int depth) {
    if constexpr (kPacks) {
      left_part.fetch(false, [&](int k, int, int p) {
        simt::Pack<T, kLanes> pack{};
        if (p < depth && inside(task.x_layout, tap[k], at[p]))
          pack = simt::load_pack<kLanes>(x + tap[k].offset + at[p].offset);
        return pack;
      });
    } else {
#pragma unroll
      for (int e = 0; e < Left::kPacks * kLanes; ++e) {
        const int p = own_depth(e);
        const bool read = p < depth && inside(task.x_layout, tap[0], at[p]);
        left_part.pack[e / kLanes][e % kLanes] = read ? x[tap[0].offset + at[p].offset] : T(0);
      }
    }
  }
  BRASA_DEVICE_FN void store(unsigned copy) {
    right_part.store(false, right[copy]);
    if constexpr (kPacks) {
      left_part.store(false, left[copy]);
    } else {
#pragma unroll
      for (int e = 0; e < Left::kPacks * kLanes; ++e)
        left[copy][own_depth(e)][own_row()] = left_part.pack[e / kLanes][e % kLanes];
    }
  }
};

template <class Shape, class T>
BRASA_DEVICE_FN void store_weights(const WeightTask<T>& task, int64_t row, int64_t column,
                                   int64_t group, T* out,
                                   const T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
#pragma unroll
  for (int i = 0; i < Shape::kPerRow; ++i) {
    const int64_t m = row + place<T>(thread_row<Shape>(), i);
    if (m >= task.rows()) continue;
#pragma unroll
    for (int j = 0; j < Shape::kPerColumn; ++j) {
      const int64_t n = column + place<T>(thread_column<Shape>(), j);
      if (n < task.group_out) out[task.weight_at(m, group * task.group_out + n)] = sum[i][j];
    }
  }
}

/// A block computes one tile of (tap, channel) rows x output channels over the pixels of one part;
/// blockIdx.y counts parts, blockIdx.z groups.
template <class T, class Shape, bool kPacks>
__global__ void __launch_bounds__(kThreads, kPacks || sizeof(T) == 4 ? 2 : 1)
    weight_kernel(WeightTask<T> task) {
  BRASA_SHARED(T, left, [2][Shape::kDepth][Shape::kRows + Shape::kLanes]);
  BRASA_SHARED(T, right, [2][Shape::kDepth][Shape::kColumns + Shape::kLanes]);
  BRASA_SHARED(Place, pixel, [2][Shape::kDepth]);
  const auto column_tiles = unsigned(simt::ceil_div<int64_t>(task.group_out, Shape::kColumns));
  const unsigned row_tile = blockIdx.x / column_tiles, column_tile = blockIdx.x % column_tiles;
  const int64_t row = int64_t(row_tile) * Shape::kRows;
  const int64_t column = int64_t(column_tile) * Shape::kColumns;
  const int64_t pixels = task.pixels(), part = blockIdx.y;
  WeightOperands<T, Shape, kPacks> operands{
      left,
      right,
      pixel,
      task,
      nullptr,
      nullptr,
      pixels * part / task.parts,
      pixels * (part + 1) / task.parts,
      int(task.group_out - column < Shape::kColumns ? task.group_out - column : Shape::kColumns),
      {},
      {},
      {}};
  operands.find_rows(row);
  const int64_t depth = operands.end - operands.begin;
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    operands.x = task.x + group * task.group_in * task.x_layout.channel;
    operands.dy = task.dy + group * task.group_out + column;
    T sum[Shape::kPerRow][Shape::kPerColumn] = {};
    operands.find_depth(0);
    __syncthreads();
    multiply_rounds<Shape, T>(unsigned(simt::ceil_div<int64_t>(depth, Shape::kDepth)), operands,
                              sum);
    store_weights<Shape, T>(task, row, column, group, task.out + part * task.weights(), sum);
    __syncthreads();  // a part without pixels has no other
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
    if (threadIdx.x == 0) task.out[task.weight_at(row, column)] = simt::narrow<T>(sum);
  }
}

/// to[i] = sum over parts of from[part * n + i], in order.
template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const T* from, U* to, int64_t n, int64_t parts) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    T sum = from[i];
    for (int64_t part = 1; part < parts; ++part) sum += from[part * n + i];
    to[i] = simt::narrow<U>(sum);
  }
}

/// In float64, 128 x 64 tiles do not fit into the registers.
template <class T>
using Tile = std::conditional_t<sizeof(T) == 4, TileShape<T, 8, 4>, TileShape<T, 4, 4>>;

template <class Shape> static int64_t tiles_of(const ConvParams& p) {
  return simt::ceil_div<int64_t>(p.taps() * p.group_in(), Shape::kRows) *
         simt::ceil_div<int64_t>(p.group_out(), Shape::kColumns);
}

static int64_t between(int64_t low, int64_t value, int64_t high) {
  const int64_t capped = value < high ? value : high;
  return capped > low ? capped : low;
}

static bool is_direct(const ConvParams& p) {
  return p.group_out() < kFewChannels && p.groups > 1;
}
/// How many parts the pixels of a weight gradient are dealt to.
template <class T> static int64_t weight_parts(const ConvParams& p) {
  if (sizeof(T) == 2 || is_direct(p)) return 1;
  const int64_t pixels = p.batch * p.out_pixels(), tiles = tiles_of<Tile<T>>(p) * p.groups;
  return between(1, simt::ceil_div(kWantedBlocks, tiles), pixels / kPartPixels);
}

template <class T, class U>
static void add_parts(Context ctx, const T* from, U* to, int64_t n, int64_t parts) {
  simt::launch(
      {.grid = simt::blocks_for(n, kThreads), .block = dim3(kThreads), .stream = stream_of(ctx)},
      add_parts_kernel<T, U>, from, to, n, parts);
}

static int64_t result_elements(const ConvParams& p) {
  return p.batch * p.out_pixels() * p.out_channels;
}

/// By kernels of this file: tiles in FMA, or a block per weight.
template <class T>
static void tile_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                        void* workspace) {
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const int64_t parts = weight_parts<T>(p);
  WeightTask<T> task{Grid(axes, p.group_in()),
                     p.batch,
                     p.groups,
                     p.group_in(),
                     p.group_out(),
                     parts,
                     x,
                     layout_of_image(p.in_channels, p.in, p.x_channels_last),
                     dy,
                     parts > 1 ? static_cast<T*>(workspace) : dw};
  if (sizeof(T) == 2 || is_direct(p)) {
    simt::launch({.grid = simt::blocks_for(task.weights(), 1),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_weight_kernel<T>, task);
    return;
  }
  if constexpr (sizeof(T) >= 4) {
    const bool packs = channels_in_packs(x, task.x_layout, p.group_in()) &&
                       p.group_out() % simt::kPackLanes<T> == 0 && simt::pack_aligned(dy);
    simt::launch({.grid = dim3(unsigned(tiles_of<Tile<T>>(p)), unsigned(parts), grid_z(p.groups)),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 packs ? weight_kernel<T, Tile<T>, true> : weight_kernel<T, Tile<T>, false>, task);
    if (parts > 1) add_parts(ctx, task.out, dw, task.weights(), parts);
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
  const int64_t parts = weight_parts<T>(p);
  return parts > 1 ? sizeof(T) * size_t(parts * p.out_channels * p.group_in() * p.taps()) : 0;
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
