// Convolution on CUDA: implicit GEMM over tiles in shared memory, x in either memory format.
//
// Forward and each residue class of backward data are a product of (pixels) x (taps, input
// channels) by (taps, input channels) x (output channels). Groups of few channels, depthwise ones
// above all, would leave tiles empty and have a kernel of a thread per result. Gradients of weight
// and bias are in conv_weight.cu.
#include "conv/conv_tile.cuh"
#include "core/epilogue.cuh"

namespace brasa::cuda {

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

template <class T> size_t conv_forward_workspace(const ConvParams&, int) {
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

BRASA_INSTANTIATE(conv_forward, float, double)
BRASA_INSTANTIATE(conv_forward_workspace, float, double)
BRASA_INSTANTIATE(conv_backward_input, float, double)
BRASA_INSTANTIATE(conv_backward_input_workspace, float, double)

}  // namespace brasa::cuda
