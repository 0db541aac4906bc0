// Convolution on CUDA: implicit GEMM over tiles in shared memory, x in either memory format.
//
// Forward and each residue class of backward data are a product of (pixels) x (taps, input
// channels) by (taps, input channels) x (output channels); backward weights is (taps, input
// channels) x (pixels) by (pixels) x (output channels), its pixels dealt to parts that are added in
// order. Where an element is read splits into what its row and what its depth contribute, so both
// are worked out once per tile and the inner loads only add and compare. Groups of few channels,
// depthwise ones above all, would leave tiles empty and have kernels of a thread per result.
#include "conv/conv.h"
#include "conv/conv_axis.h"
#include "core/device.cuh"
#include "core/epilogue.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kSide = 16, kPer = 4, kTile = kSide * kPer;  // 16 x 16 threads, 4 x 4 results each
constexpr int kDepth = 16;                                 // of a round of shared memory
constexpr int kLoads = kTile * kDepth / kThreads;
constexpr int64_t kFewChannels = 8;  // groups of fewer output channels have the direct kernels
constexpr int64_t kWantedBlocks = 528, kPartPixels = 1024,
                  kMaxBiasParts = 64;  // four per H200 processor

/// An image array: steps in elements.
struct Layout5 {
  int64_t image, channel, step[3], size[3];
};

static Layout5 layout_of_image(int64_t channels, const int64_t* size, bool channels_last) {
  const int64_t unit = channels_last ? channels : 1, pixels = size[0] * size[1] * size[2];
  return {channels * pixels,
          channels_last ? 1 : pixels,
          {size[1] * size[2] * unit, size[2] * unit, unit},
          {size[0], size[1], size[2]}};
}

/// What a row or a step of the depth contributes to a position in the image and to the offset
/// there.
struct Place {
  int64_t at[3], offset;
};

BRASA_DEVICE_FN bool inside(const Layout5& layout, const Place& a, const Place& b) {
  bool yes = true;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    const int64_t at = a.at[d] + b.at[d];
    yes = yes && at >= 0 && at < layout.size[d];
  }
  return yes;
}

/// One class of a gather (conv_axis.h), every group.
template <class T> struct GatherTask {
  Axis axis[3];
  int64_t batch, groups, group_in, group_out;
  const T* in;
  Layout5 in_layout;
  const T* w;
  int64_t w_group, w_out, w_in, w_tap[3];
  T* out;
  Layout5 out_layout;

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * axis[0].count * axis[1].count * axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
};

/// The q-th coordinates of pixel `index` of a grid of these counts; returns the image.
BRASA_DEVICE_FN int64_t split_pixel(int64_t index, const Axis* axis, int64_t* q) {
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    q[d] = index % axis[d].count;
    index /= axis[d].count;
  }
  return index;
}

BRASA_DEVICE_FN Place place_pixel(const Axis* axis, const Layout5& layout, int64_t index) {
  int64_t q[3];
  Place place;
  place.offset = split_pixel(index, axis, q) * layout.image;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    place.at[d] = q[d] * axis[d].in_step + axis[d].in_first;
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

/// Depth `index` = (tap, channel): where it reads, and with `kernel` which element of the kernel it
/// is.
BRASA_DEVICE_FN Place place_tap(const Axis* axis, const Layout5& layout, int64_t channels,
                                int64_t index, int64_t* kernel, int64_t& channel) {
  channel = index % channels;
  int64_t tap = index / channels;
  Place place;
  place.offset = channel * layout.channel;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t j = tap % axis[d].taps;
    tap /= axis[d].taps;
    kernel[d] = axis[d].kernel_first + j * axis[d].kernel_step;
    place.at[d] = j * axis[d].tap_step;
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

template <class T>
BRASA_DEVICE_FN int64_t out_offset(const GatherTask<T>& task, int64_t index, int64_t column) {
  int64_t q[3];
  int64_t offset =
      split_pixel(index, task.axis, q) * task.out_layout.image + column * task.out_layout.channel;
#pragma unroll
  for (int d = 0; d < 3; ++d)
    offset += (task.axis[d].out_first + q[d] * task.axis[d].out_step) * task.out_layout.step[d];
  return offset;
}

template <class T> using SharedTile = T[kDepth][kTile + simt::kPackLanes<T>];

/// sum += left x right over the kDepth steps in shared memory.
template <class T>
BRASA_DEVICE_FN void multiply_tile(const SharedTile<T>& left, const SharedTile<T>& right,
                                   T (&sum)[kPer][kPer]) {
  const int row = int(threadIdx.x) / kSide * kPer, column = int(threadIdx.x) % kSide * kPer;
#pragma unroll 4
  for (int p = 0; p < kDepth; ++p) {
    T a[kPer], b[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      a[i] = left[p][row + i];
      b[i] = right[p][column + i];
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) sum[i][j] += a[i] * b[j];
    }
  }
}

/// kDepth steps of the depth, worked out by as many threads.
struct DepthPlaces {
  Place place[kDepth];
  int64_t weight[kDepth];
};

template <class T>
BRASA_DEVICE_FN void find_depth(const GatherTask<T>& task, int64_t depth, int64_t end,
                                DepthPlaces& steps) {
  const int p = int(threadIdx.x);
  if (p >= kDepth || depth + p >= end) return;
  int64_t kernel[3], channel;
  steps.place[p] = place_tap(task.axis, task.in_layout, task.group_in, depth + p, kernel, channel);
  steps.weight[p] = channel * task.w_in + kernel[0] * task.w_tap[0] + kernel[1] * task.w_tap[1] +
                    kernel[2] * task.w_tap[2];
}

template <class T>
BRASA_DEVICE_FN void store_results(const GatherTask<T>& task, const Epilogue<T>& epilogue,
                                   int64_t row, int64_t column, int64_t group,
                                   const T (&sum)[kPer][kPer]) {
  row += int(threadIdx.x) / kSide * kPer;
  column += int(threadIdx.x) % kSide * kPer;
  const int64_t rows = task.pixels(), step = task.out_layout.channel;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (row + i >= rows) break;
    const int64_t offset = out_offset(task, row + i, group * task.group_out + column);
#pragma unroll
    for (int j = 0; j < kPer; ++j)
      if (column + j < task.group_out)
        task.out[offset + j * step] = before_activation(
            epilogue, sum[i][j], group * task.group_out + column + j, offset + j * step);
  }
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int e = 0; e < kPer * kPer; ++e) {
      const int64_t r = row + e / kPer, c = column + e % kPer;
      if (r < rows && c < task.group_out)
        activate(task.out[out_offset(task, r, group * task.group_out + c)]);
    }
  });
}

/// A block computes kTile pixels x kTile output channels; blockIdx.x counts tiles, blockIdx.z
/// groups.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    gather_kernel(GatherTask<T> task, Epilogue<T> epilogue) {
  BRASA_SHARED(T, left, [kDepth][kTile + simt::kPackLanes<T>]);
  BRASA_SHARED(T, right, [kDepth][kTile + simt::kPackLanes<T>]);
  BRASA_SHARED(DepthPlaces, steps, [1]);
  const int64_t column_tiles = simt::ceil_div<int64_t>(task.group_out, kTile);
  const int64_t row = blockIdx.x / column_tiles * kTile, column = blockIdx.x % column_tiles * kTile;
  const int64_t pixels = task.pixels(), depth_end = task.taps() * task.group_in;
  Place rows[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int64_t r = row + (int(threadIdx.x) + i * kThreads) / kDepth;
    rows[i] = place_pixel(task.axis, task.in_layout, r < pixels ? r : 0);
  }
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    const T* in = task.in + group * task.group_in * task.in_layout.channel;
    const T* w = task.w + group * task.w_group;
    T sum[kPer][kPer] = {};
    for (int64_t depth = 0; depth < depth_end; depth += kDepth) {
      __syncthreads();  // the round before may still be read
      find_depth(task, depth, depth_end, steps[0]);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int e = int(threadIdx.x) + i * kThreads, p = e % kDepth, r = e / kDepth;
        const Place& step = steps[0].place[p];
        const bool read =
            row + r < pixels && depth + p < depth_end && inside(task.in_layout, rows[i], step);
        left[p][r] = read ? in[rows[i].offset + step.offset] : T(0);
        const int q = e / kTile, c = e % kTile;
        const bool weight = depth + q < depth_end && column + c < task.group_out;
        right[q][c] = weight ? w[steps[0].weight[q] + (column + c) * task.w_out] : T(0);
      }
      __syncthreads();
      multiply_tile<T>(left, right, sum);
    }
    store_results(task, epilogue, row, column, group, sum);
  }
}

/// One thread per result, for groups of few channels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    direct_gather_kernel(GatherTask<T> task, Epilogue<T> epilogue) {
  const int64_t channels = task.groups * task.group_out, depth_end = task.taps() * task.group_in;
  const int64_t count = task.pixels() * channels, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t pixel = i / channels, column = i % channels, group = column / task.group_out;
    const Place row = place_pixel(task.axis, task.in_layout, pixel);
    const T* in = task.in + group * task.group_in * task.in_layout.channel + row.offset;
    const T* w = task.w + group * task.w_group + column % task.group_out * task.w_out;
    T sum = 0;
    for (int64_t depth = 0; depth < depth_end; ++depth) {
      int64_t kernel[3], channel;
      const Place step =
          place_tap(task.axis, task.in_layout, task.group_in, depth, kernel, channel);
      if (inside(task.in_layout, row, step))
        sum += in[step.offset] * w[channel * task.w_in + kernel[0] * task.w_tap[0] +
                                   kernel[1] * task.w_tap[1] + kernel[2] * task.w_tap[2]];
    }
    const int64_t offset = out_offset(task, pixel, column);
    task.out[offset] = before_activation(epilogue, sum, column, offset);
    activate_each<T>(epilogue.activation,
                     [&](const auto& activate) { activate(task.out[offset]); });
  }
}

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

// ----------------------------------------------------------------------------------------
// launchers

static simt::stream_t stream_of(Context ctx) {
  return static_cast<simt::stream_t>(ctx.stream);
}

static unsigned grid_z(int64_t groups) {
  return unsigned(groups < 65535 ? groups : 65535);
}

template <class T>
static void launch_gather(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue) {
  if (task.pixels() == 0) return;
  if (task.group_out < kFewChannels && task.groups > 1) {
    simt::launch({.grid = simt::blocks_for(task.pixels() * task.groups * task.group_out, kThreads),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_gather_kernel<T>, task, epilogue);
    return;
  }
  const int64_t tiles = simt::ceil_div<int64_t>(task.pixels(), kTile) *
                        simt::ceil_div<int64_t>(task.group_out, kTile);
  simt::launch({.grid = dim3(unsigned(tiles), 1, grid_z(task.groups)),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               gather_kernel<T>, task, epilogue);
}

template <class T>
void conv_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                  const Epilogue<T>& epilogue) {
  const int64_t taps = p.taps(), filter = p.group_in() * taps;
  GatherTask<T> task{{},
                     p.batch,
                     p.groups,
                     p.group_in(),
                     p.group_out(),
                     x,
                     layout_of_image(p.in_channels, p.in, p.x_channels_last),
                     w,
                     p.group_out() * filter,
                     filter,
                     taps,
                     {p.kernel[1] * p.kernel[2], p.kernel[2], 1},
                     y,
                     layout_of_image(p.out_channels, p.out, true)};
  for (int d = 0; d < 3; ++d) task.axis[d] = forward_axis(p, d);
  launch_gather(ctx, task, epilogue);
}

template <class T> size_t conv_forward_workspace(const ConvParams&) {
  return 0;
}

template <class T>
void conv_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  const int64_t taps = p.taps(), filter = p.group_in() * taps;
  GatherTask<T> task{{},
                     p.batch,
                     p.groups,
                     p.group_out(),
                     p.group_in(),
                     dy,
                     layout_of_image(p.out_channels, p.out, true),
                     w,
                     p.group_out() * filter,
                     taps,
                     filter,
                     {p.kernel[1] * p.kernel[2], p.kernel[2], 1},
                     dx,
                     layout_of_image(p.in_channels, p.in, p.x_channels_last)};
  for (int64_t d = 0; d < residues(p, 0); ++d)
    for (int64_t h = 0; h < residues(p, 1); ++h)
      for (int64_t k = 0; k < residues(p, 2); ++k) {
        task.axis[0] = backward_axis(p, 0, d);
        task.axis[1] = backward_axis(p, 1, h);
        task.axis[2] = backward_axis(p, 2, k);
        launch_gather(ctx, task, Epilogue<T>{});
      }
}

template <class T> size_t conv_backward_input_workspace(const ConvParams&, int) {
  return 0;
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

template <class T>
void conv_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db, const ConvParams& p) {
  const Parts parts(p);
  T* of_part = static_cast<T*>(ctx.workspace);
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

template <class T> size_t conv_backward_weight_workspace(const ConvParams& p, int) {
  const Parts parts(p);
  const int64_t weights = p.out_channels * p.group_in() * p.taps();
  return sizeof(T) *
         size_t(parts.bias * p.out_channels + (parts.weight > 1 ? parts.weight * weights : 0));
}

BRASA_INSTANTIATE(conv_forward, float, double)
BRASA_INSTANTIATE(conv_forward_workspace, float, double)
BRASA_INSTANTIATE(conv_backward_input, float, double)
BRASA_INSTANTIATE(conv_backward_input_workspace, float, double)
BRASA_INSTANTIATE(conv_backward_weight, float, double)
BRASA_INSTANTIATE(conv_backward_weight_workspace, float, double)

}  // namespace brasa::cuda
