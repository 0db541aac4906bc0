// Gradients of weight and bias on CUDA.
//
// The weight's is a product of (taps, input channels) x (pixels) by (pixels) x (output channels),
// its pixels dealt to parts that are added in order. Groups of few channels have a block per
// weight.
#include "activation/activation.h"
#include "conv/conv_tile.cuh"

namespace brasa::cuda {

constexpr int64_t kWantedBlocks = 528, kPartPixels = 1024,
                  kMaxBiasParts = 64;  // four per H200 processor

/// The gradient of the weight: x and dy read at the same pixels.
template <class T> struct WeightTask {
  Axis axis[3];
  int64_t batch, groups, group_in, group_out, parts;
  const T* x;
  Layout5 x_layout;
  const T* dy;
  T* out;  ///< [part][weight]

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * axis[0].count * axis[1].count * axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  BRASA_HOST_DEVICE_FN int64_t rows() const { return taps() * group_in; }
  /// Where row (tap, channel) and output channel `column` of all groups stand in the weight.
  BRASA_HOST_DEVICE_FN int64_t weight_at(int64_t row, int64_t column) const {
    return (column * group_in + row % group_in) * taps() + row / group_in;
  }
  BRASA_HOST_DEVICE_FN int64_t weights() const { return groups * group_out * rows(); }
};

/// A block computes kTile (tap, channel) rows x kTile output channels over the pixels of one part;
/// blockIdx.y counts parts, blockIdx.z groups.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) weight_kernel(WeightTask<T> task) {
  BRASA_SHARED(T, left, [kDepth][kTile + simt::kPackLanes<T>]);
  BRASA_SHARED(T, right, [kDepth][kTile + simt::kPackLanes<T>]);
  BRASA_SHARED(Place, pixel, [kDepth]);
  const int64_t column_tiles = simt::ceil_div<int64_t>(task.group_out, kTile);
  const int64_t row = blockIdx.x / column_tiles * kTile, column = blockIdx.x % column_tiles * kTile;
  const int64_t pixels = task.pixels(), part = blockIdx.y, channels = task.groups * task.group_out;
  const int64_t begin = pixels * part / task.parts, end = pixels * (part + 1) / task.parts;
  const int thread = int(threadIdx.x), r = thread % kTile;
  int64_t kernel[3], channel;
  const Place tap = place_tap(task.axis, task.x_layout, task.group_in,
                              row + r < task.rows() ? row + r : 0, kernel, channel);
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    const T* x = task.x + group * task.group_in * task.x_layout.channel;
    T sum[kPer][kPer] = {};
    for (int64_t depth = begin; depth < end; depth += kDepth) {
      __syncthreads();  // the round before may still be read
      if (thread < kDepth && depth + thread < end)
        pixel[thread] = place_pixel(task.axis, task.x_layout, depth + thread);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int p = thread / kTile + i * (kThreads / kTile);
        const bool live = depth + p < end;
        const bool read = live && row + r < task.rows() && inside(task.x_layout, tap, pixel[p]);
        left[p][r] = read ? x[tap.offset + pixel[p].offset] : T(0);
        right[p][r] = live && column + r < task.group_out
                          ? task.dy[(depth + p) * channels + group * task.group_out + column + r]
                          : T(0);
      }
      __syncthreads();
      multiply_tile<T>(left, right, sum);
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int64_t m = row + thread / kSide * kPer + i, n = column + thread % kSide * kPer + j;
        if (m < task.rows() && n < task.group_out)
          task.out[part * task.weights() + task.weight_at(m, group * task.group_out + n)] =
              sum[i][j];
      }
    }
  }
}

/// One block per weight, for groups of few channels.
template <class T>
__global__ void __launch_bounds__(kThreads) direct_weight_kernel(WeightTask<T> task) {
  const int64_t channels = task.groups * task.group_out, pixels = task.pixels();
  for (int64_t i = blockIdx.x; i < task.weights(); i += gridDim.x) {
    const int64_t column = i / task.rows(), row = i % task.rows();
    int64_t kernel[3], channel;
    const Place tap = place_tap(task.axis, task.x_layout, task.group_in, row, kernel, channel);
    const T* x = task.x + column / task.group_out * task.group_in * task.x_layout.channel;
    T sum = 0;
    for (int64_t p = threadIdx.x; p < pixels; p += kThreads) {
      const Place pixel = place_pixel(task.axis, task.x_layout, p);
      if (inside(task.x_layout, tap, pixel))
        sum += x[tap.offset + pixel.offset] * task.dy[p * channels + column];
    }
    sum = simt::block_reduce_sum(sum);
    if (threadIdx.x == 0) task.out[task.weight_at(row, column)] = sum;
  }
}

constexpr int kBiasColumns = 32, kBiasRows = kThreads / kBiasColumns;

/// out[part][channel] = sum of dy over the part's pixels; blockIdx.y counts parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_kernel(const T* dy, T* out, int64_t pixels, int64_t channels, int64_t parts) {
  BRASA_SHARED(T, of_row, [kBiasRows][kBiasColumns]);
  const int lane = int(threadIdx.x) % kBiasColumns, row = int(threadIdx.x) / kBiasColumns;
  const int64_t channel = int64_t(blockIdx.x) * kBiasColumns + lane, part = blockIdx.y;
  T sum = 0;
  if (channel < channels)
    for (int64_t p = pixels * part / parts + row; p < pixels * (part + 1) / parts; p += kBiasRows)
      sum += dy[p * channels + channel];
  of_row[row][lane] = sum;
  __syncthreads();
  if (row != 0 || channel >= channels) return;
  for (int i = 1; i < kBiasRows; ++i) sum += of_row[i][lane];
  out[part * channels + channel] = sum;
}

/// to[i] = sum over parts of from[part * n + i], in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const T* from, T* to, int64_t n, int64_t parts) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    T sum = from[i];
    for (int64_t part = 1; part < parts; ++part) sum += from[part * n + i];
    to[i] = sum;
  }
}

/// How many parts the pixels of a weight gradient are dealt to, and those of a bias gradient.
struct Parts {
  int64_t weight, bias;
  bool direct;

  explicit Parts(const ConvParams& p) {
    const int64_t pixels = p.batch * p.out_pixels();
    const int64_t tiles = simt::ceil_div<int64_t>(p.taps() * p.group_in(), kTile) *
                          simt::ceil_div<int64_t>(p.group_out(), kTile) * p.groups;
    direct = p.group_out() < kFewChannels && p.groups > 1;
    weight = direct ? 1 : between(1, simt::ceil_div(kWantedBlocks, tiles), pixels / kPartPixels);
    bias = between(1, pixels / kPartPixels, kMaxBiasParts);
  }
  static int64_t between(int64_t low, int64_t value, int64_t high) {
    const int64_t capped = value < high ? value : high;
    return capped > low ? capped : low;
  }
};

template <class T>
static void add_parts(Context ctx, const T* from, T* to, int64_t n, int64_t parts) {
  simt::launch(
      {.grid = simt::blocks_for(n, kThreads), .block = dim3(kThreads), .stream = stream_of(ctx)},
      add_parts_kernel<T>, from, to, n, parts);
}

template <class T>
static void backward_bias(Context ctx, const T* dy, T* db, T* of_part, const ConvParams& p,
                          int64_t parts) {
  const auto columns = unsigned(simt::ceil_div<int64_t>(p.out_channels, kBiasColumns));
  simt::launch(
      {.grid = dim3(columns, unsigned(parts)), .block = dim3(kThreads), .stream = stream_of(ctx)},
      bias_kernel<T>, dy, of_part, p.batch * p.out_pixels(), p.out_channels, parts);
  add_parts(ctx, of_part, db, p.out_channels, parts);
}

static int64_t result_elements(const ConvParams& p) {
  return p.batch * p.out_pixels() * p.out_channels;
}

template <class T>
void conv_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db, const ConvParams& p,
                          const Slope<T>& slope) {
  const Parts parts(p);
  T* of_part = static_cast<T*>(ctx.workspace);
  if (slope.v) {
    T* g = of_part;
    activation_backward(ctx, dy, slope.v, g, result_elements(p), slope.activation);
    dy = g;
    of_part += result_elements(p);
  }
  if (db) backward_bias(ctx, dy, db, of_part, p, parts.bias);
  if (!dw) return;
  WeightTask<T> task{{},
                     p.batch,
                     p.groups,
                     p.group_in(),
                     p.group_out(),
                     parts.weight,
                     x,
                     layout_of_image(p.in_channels, p.in, p.x_channels_last),
                     dy,
                     parts.weight > 1 ? of_part + parts.bias * p.out_channels : dw};
  for (int d = 0; d < 3; ++d) task.axis[d] = forward_axis(p, d);
  if (parts.direct) {
    simt::launch({.grid = simt::blocks_for(task.weights(), 1),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_weight_kernel<T>, task);
    return;
  }
  const int64_t tiles =
      simt::ceil_div<int64_t>(task.rows(), kTile) * simt::ceil_div<int64_t>(p.group_out(), kTile);
  simt::launch({.grid = dim3(unsigned(tiles), unsigned(parts.weight), grid_z(p.groups)),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               weight_kernel<T>, task);
  if (parts.weight > 1) add_parts(ctx, task.out, dw, task.weights(), parts.weight);
}

template <class T> size_t conv_backward_weight_workspace(const ConvParams& p, bool has_slope, int) {
  const Parts parts(p);
  const int64_t weights = p.out_channels * p.group_in() * p.taps();
  return sizeof(T) *
         size_t(parts.bias * p.out_channels + (parts.weight > 1 ? parts.weight * weights : 0) +
                (has_slope ? result_elements(p) : 0));
}

BRASA_INSTANTIATE(conv_backward_weight, float, double)
BRASA_INSTANTIATE(conv_backward_weight_workspace, float, double)

}  // namespace brasa::cuda
