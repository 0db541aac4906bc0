// Convolutions in float32 and float64 FMA on CUDA: implicit GEMM over tiles in shared memory, x in
// either memory format; and, in all dtypes, groups of few channels, a thread per result.
//
// Forward and each residue class of backward data are a product of (pixels) x (taps, input
// channels) by (taps, input channels) x (output channels). The weights are written in that order
// first, a millionth of the work: read as they lie, neighbouring outputs are a filter apart.
#include "conv/conv_paths.cuh"
#include "core/epilogue.cuh"

namespace brasa::cuda {

/// One class of a gather (conv_axis.h), every group.
template <class T> struct GatherTask {
  Grid grid;
  int64_t batch, groups, group_in, group_out;
  const T* in;
  Layout5 in_layout;
  const T* w;  ///< [group][element of the kernel][input channel][output channel]
  int64_t w_group, w_tap[3];
  T* out;
  Layout5 out_layout;

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * grid.axis[0].count * grid.axis[1].count * grid.axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const {
    return grid.axis[0].taps * grid.axis[1].taps * grid.axis[2].taps;
  }
};
template <class T>
BRASA_DEVICE_FN int64_t out_offset(const GatherTask<T>& task, int64_t index, int64_t column) {
  int64_t q[3];
  int64_t offset =
      split_pixel(index, task.grid, q) * task.out_layout.image + column * task.out_layout.channel;
#pragma unroll
  for (int d = 0; d < 3; ++d)
    offset +=
        (task.grid.axis[d].out_first + q[d] * task.grid.axis[d].out_step) * task.out_layout.step[d];
  return offset;
}

/// packed[group][tap][channel][column] of w, whose strides are given.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_weight_kernel(const T* w, T* packed, int64_t count, simt::Divisor columns,
                       simt::Divisor channels, simt::Divisor taps, int64_t w_group,
                       int64_t w_column, int64_t w_channel) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t rest = i;
    const int64_t column = columns.take_remainder(rest), channel = channels.take_remainder(rest);
    const int64_t tap = taps.take_remainder(rest);
    packed[i] = w[rest * w_group + column * w_column + channel * w_channel + tap];
  }
}

/// The depth of a round, worked out by as many threads.
template <int kDepth> struct DepthPlaces {
  Place place[kDepth];
  int64_t weight[kDepth];
};

/// The pixels and weights of one tile, for multiply_rounds(). With packs, four channels of a pixel
/// are one load; without, a thread has one pixel of the tile, so that neighbouring threads read
/// neighbouring pixels.
template <class T, class Shape, bool kPacks> struct GatherOperands {
  static constexpr int kLanes = Shape::kLanes, kDepth = Shape::kDepth;
  using Left = TilePart<T, Shape::kRows, kDepth>;
  static constexpr int kPlaces = kPacks ? Left::kPacks : 1;
  SharedTile<T, Shape::kRows, kDepth>* left;
  SharedTile<T, Shape::kColumns, kDepth>* right;
  DepthPlaces<kDepth>* steps;  ///< two, taken in turn
  const GatherTask<T>& task;
  const T *in, *w;
  int64_t depth_end, column;
  Place row[kPlaces];
  Left left_part;
  TilePart<T, Shape::kColumns, kDepth> right_part;

  /// Which row of the tile and which step of the depth element k of a thread is, without packs.
  static BRASA_DEVICE_FN int own_row() { return int(threadIdx.x) % Shape::kRows; }
  static BRASA_DEVICE_FN int own_depth(int k) {
    return int(threadIdx.x) / Shape::kRows + k * (kThreads / Shape::kRows);
  }

  BRASA_DEVICE_FN void find_rows(int64_t first, int64_t pixels) {
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      const int64_t r = first + (kPacks ? Left::extent_of(k, true) : own_row());
      row[k] = place_pixel(task.grid, task.in_layout, r < pixels ? r : 0);
      if (r >= pixels) row[k].at[0] = kOutside;
    }
  }
  BRASA_DEVICE_FN void find_depth(unsigned round) {
    const int p = int(threadIdx.x);
    const int64_t depth = int64_t(round) * kDepth + p;
    if (p >= kDepth || depth >= depth_end) return;
    int64_t kernel[3], channel;
    DepthPlaces<kDepth>& to = steps[round % 2];
    to.place[p] = place_tap(task.grid, task.in_layout, depth, kernel, channel);
    const int64_t tap =
        kernel[0] * task.w_tap[0] + kernel[1] * task.w_tap[1] + kernel[2] * task.w_tap[2];
    to.weight[p] = (tap * task.group_in + channel) * task.group_out;
  }

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const DepthPlaces<kDepth>& step = steps[round % 2];
    const int64_t depth_left = depth_end - int64_t(round) * kDepth;
    const int depth = depth_left < kDepth ? int(depth_left) : kDepth;
    fetch_left(step, depth);
    right_part.fetch(false, [&](int, int i, int p) {
      simt::Pack<T, kLanes> pack{};
      const T* from = w + step.weight[p < depth ? p : 0] + column + i;
      if constexpr (kPacks) {
        if (p < depth && column + i < task.group_out) pack = simt::load_pack<kLanes>(from);
      } else {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          if (p < depth && column + i + lane < task.group_out) pack[lane] = from[lane];
      }
      return pack;
    });
    find_depth(round + 1);
  }
  BRASA_DEVICE_FN void fetch_left(const DepthPlaces<kDepth>& step, int depth) {
    if constexpr (kPacks) {
      left_part.fetch(true, [&](int k, int, int p) {
        simt::Pack<T, kLanes> pack{};
        if (p < depth && inside(task.in_layout, row[k], step.place[p]))
          pack = simt::load_pack<kLanes>(in + row[k].offset + step.place[p].offset);
        return pack;
      });
    } else {
#pragma unroll
      for (int e = 0; e < Left::kPacks * kLanes; ++e) {
        const int p = own_depth(e);
        const bool read = p < depth && inside(task.in_layout, row[0], step.place[p]);
        left_part.pack[e / kLanes][e % kLanes] =
            read ? in[row[0].offset + step.place[p].offset] : T(0);
      }
    }
  }
  BRASA_DEVICE_FN void store(unsigned copy) {
    right_part.store(false, right[copy]);
    if constexpr (kPacks) {
      left_part.store(true, left[copy]);
    } else {
#pragma unroll
      for (int e = 0; e < Left::kPacks * kLanes; ++e)
        left[copy][own_depth(e)][own_row()] = left_part.pack[e / kLanes][e % kLanes];
    }
  }
};

template <class Shape, class T>
BRASA_DEVICE_FN void store_results(const GatherTask<T>& task, const Epilogue<T>& epilogue,
                                   int64_t row, int64_t column, int64_t group,
                                   const T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
  const int64_t rows = task.pixels(), step = task.out_layout.channel;
  const int64_t first = column + place<T>(thread_column<Shape>(), 0),
                channel = group * task.group_out;
#pragma unroll
  for (int i = 0; i < Shape::kPerRow; ++i) {
    const int64_t r = row + place<T>(thread_row<Shape>(), i);
    if (r >= rows) continue;
    const int64_t offset = out_offset(task, r, channel + first);
#pragma unroll
    for (int j = 0; j < Shape::kPerColumn; ++j) {
      const int c = place<T>(0, j);  // from the first of the thread's columns
      if (first + c < task.group_out)
        task.out[offset + c * step] =
            before_activation(epilogue, sum[i][j], channel + first + c, offset + c * step);
    }
  }
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int i = 0; i < Shape::kPerRow; ++i) {
      const int64_t r = row + place<T>(thread_row<Shape>(), i);
      if (r >= rows) break;
      const int64_t offset = out_offset(task, r, channel + first);
#pragma unroll 1
      for (int j = 0; j < Shape::kPerColumn; ++j) {
        const int c = place<T>(0, j);
        if (first + c < task.group_out) activate(task.out[offset + c * step]);
      }
    }
  });
}

/// A block computes one tile of pixels x output channels; blockIdx.x counts tiles, blockIdx.z
/// groups.
template <class T, class Shape, bool kPacks>
__global__ void __launch_bounds__(kThreads, 2)
    gather_kernel(GatherTask<T> task, Epilogue<T> epilogue) {
  BRASA_SHARED(T, left, [2][Shape::kDepth][Shape::kRows + Shape::kLanes]);
  BRASA_SHARED(T, right, [2][Shape::kDepth][Shape::kColumns + Shape::kLanes]);
  BRASA_SHARED(DepthPlaces<Shape::kDepth>, steps, [2]);
  const auto column_tiles = unsigned(simt::ceil_div<int64_t>(task.group_out, Shape::kColumns));
  const unsigned row_tile = blockIdx.x / column_tiles, column_tile = blockIdx.x % column_tiles;
  const int64_t depth_end = task.taps() * task.group_in;
  GatherOperands<T, Shape, kPacks> operands{
      left, right, steps, task, nullptr, nullptr, depth_end, int64_t(column_tile) * Shape::kColumns,
      {},   {},    {}};
  operands.find_rows(int64_t(row_tile) * Shape::kRows, task.pixels());
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    operands.in = task.in + group * task.group_in * task.in_layout.channel;
    operands.w = task.w + group * task.w_group;
    T sum[Shape::kPerRow][Shape::kPerColumn] = {};
    operands.find_depth(0);
    __syncthreads();
    multiply_rounds<Shape, T>(unsigned(simt::ceil_div<int64_t>(depth_end, Shape::kDepth)), operands,
                              sum);
    store_results<Shape, T>(task, epilogue, int64_t(row_tile) * Shape::kRows,
                            int64_t(column_tile) * Shape::kColumns, group, sum);
    __syncthreads();  // a group of depth 0 has no other
  }
}

/// One thread per result, for groups of few channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    direct_gather_kernel(GatherTask<T> task, Epilogue<T> epilogue, simt::Divisor channels,
                         simt::Divisor group_out) {
  const int64_t all = task.groups * task.group_out;
  const int64_t count = task.pixels() * all, stride = int64_t(gridDim.x) * kThreads;
  const Axis* axis = task.grid.axis;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t pixel = i;
    const int64_t column = channels.take_remainder(pixel);
    int64_t group = column;
    const int64_t of_group = group_out.take_remainder(group);
    const Place row = place_pixel(task.grid, task.in_layout, pixel);
    const T* in = task.in + group * task.group_in * task.in_layout.channel + row.offset;
    const T* w = task.w + group * task.w_group + of_group;
    Wide<T> sum = 0;
    for (int64_t d = 0; d < axis[0].taps; ++d)
      for (int64_t h = 0; h < axis[1].taps; ++h)
        for (int64_t k = 0; k < axis[2].taps; ++k) {
          const int64_t j[3] = {d, h, k};
          Place step{{}, 0};
          int64_t tap = 0;
#pragma unroll
          for (int e = 0; e < 3; ++e) {
            step.at[e] = int(j[e] * axis[e].tap_step);
            step.offset += step.at[e] * task.in_layout.step[e];
            tap += (axis[e].kernel_first + j[e] * axis[e].kernel_step) * task.w_tap[e];
          }
          if (!inside(task.in_layout, row, step)) continue;
          for (int64_t channel = 0; channel < task.group_in; ++channel)
            sum += simt::widen(in[step.offset + channel * task.in_layout.channel]) *
                   simt::widen(w[(tap * task.group_in + channel) * task.group_out]);
        }
    const int64_t offset = out_offset(task, pixel, column);
    sum = before_activation(epilogue, sum, column, offset);
    activate_each<Wide<T>>(epilogue.activation, [&](const auto& activate) { activate(sum); });
    task.out[offset] = simt::narrow<T>(sum);
  }
}

template <class T, class Shape, bool kPacks>
static void launch_tiles(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue) {
  const int64_t tiles = simt::ceil_div<int64_t>(task.pixels(), Shape::kRows) *
                        simt::ceil_div<int64_t>(task.group_out, Shape::kColumns);
  simt::launch({.grid = dim3(unsigned(tiles), 1, grid_z(task.groups)),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               gather_kernel<T, Shape, kPacks>, task, epilogue);
}

template <class T, bool kPacks>
static void choose_tiles(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue) {
  // Large tiles read shared memory less, but must be enough for every multiprocessor; 128 x 128
  // ones, and these in float64, do not fit into the registers of two blocks.
  constexpr int64_t kEnoughTiles = 132;
  if constexpr (sizeof(T) == 4) {
    const int64_t large =
        simt::ceil_div<int64_t>(task.pixels(), 128) * simt::ceil_div<int64_t>(task.group_out, 64);
    if (large * task.groups >= kEnoughTiles)
      return launch_tiles<T, TileShape<T, 8, 4>, kPacks>(ctx, task, epilogue);
  }
  launch_tiles<T, TileShape<T, 4, 4>, kPacks>(ctx, task, epilogue);
}

template <class T>
static void launch_gather(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue) {
  if (task.pixels() == 0) return;
  if (sizeof(T) == 2 || (task.group_out < kFewChannels && task.groups > 1)) {
    const int64_t channels = task.groups * task.group_out;
    simt::launch({.grid = simt::blocks_for(task.pixels() * channels, kThreads),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_gather_kernel<T>, task, epilogue, simt::Divisor(channels),
                 simt::Divisor(task.group_out));
    return;
  }
  if constexpr (sizeof(T) >= 4) {
    if (channels_in_packs(task.in, task.in_layout, task.group_in) &&
        task.group_out % simt::kPackLanes<T> == 0)
      choose_tiles<T, true>(ctx, task, epilogue);
    else
      choose_tiles<T, false>(ctx, task, epilogue);
  }
}

/// The weights with `columns` innermost, in the workspace.
template <class T>
static const T* pack_weight(Context ctx, const T* w, const ConvParams& p, int64_t channels,
                            int64_t columns, int64_t w_channel, int64_t w_column) {
  T* packed = static_cast<T*>(ctx.workspace);
  const int64_t of_group = channels * columns * p.taps(), count = p.groups * of_group;
  if (count == 0) return packed;
  simt::launch({.grid = simt::blocks_for(count, kThreads),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               pack_weight_kernel<T>, w, packed, count, simt::Divisor(columns),
               simt::Divisor(channels), simt::Divisor(p.taps()), of_group, w_column, w_channel);
  return packed;
}
template <class T> size_t gather_workspace(const ConvParams& p) {
  return size_t(p.groups * p.group_in() * p.group_out() * p.taps()) * sizeof(T);
}

template <class T>
void gather_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue) {
  const int64_t taps = p.taps(), filter = p.group_in() * taps;
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const GatherTask<T> task{Grid(axes, p.group_in()),
                           p.batch,
                           p.groups,
                           p.group_in(),
                           p.group_out(),
                           x,
                           layout_of_image(p.in_channels, p.in, p.x_channels_last),
                           pack_weight(ctx, w, p, p.group_in(), p.group_out(), taps, filter),
                           p.group_out() * filter,
                           {p.kernel[1] * p.kernel[2], p.kernel[2], 1},
                           y,
                           layout_of_image(p.out_channels, p.out, true)};
  launch_gather(ctx, task, epilogue);
}

template <class T>
void gather_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  const int64_t taps = p.taps(), filter = p.group_in() * taps;
  const T* packed = pack_weight(ctx, w, p, p.group_out(), p.group_in(), filter, taps);
  for (int64_t d = 0; d < residues(p, 0); ++d)
    for (int64_t h = 0; h < residues(p, 1); ++h)
      for (int64_t k = 0; k < residues(p, 2); ++k) {
        const Axis axes[3] = {backward_axis(p, 0, d), backward_axis(p, 1, h),
                              backward_axis(p, 2, k)};
        const GatherTask<T> task{Grid(axes, p.group_out()),
                                 p.batch,
                                 p.groups,
                                 p.group_out(),
                                 p.group_in(),
                                 dy,
                                 layout_of_image(p.out_channels, p.out, true),
                                 packed,
                                 p.group_out() * filter,
                                 {p.kernel[1] * p.kernel[2], p.kernel[2], 1},
                                 dx,
                                 layout_of_image(p.in_channels, p.in, p.x_channels_last)};
        launch_gather(ctx, task, Epilogue<T>{});
      }
}

BRASA_INSTANTIATE(gather_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(gather_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(gather_backward_input, float, double, float16, bfloat16)

}  // namespace brasa::cuda
