// The gradient of a depthwise convolution's weight on CUDA.
//
//   dw[c, k] = sum over pixels of dy[p, c] x[i(p, k), c]
//
// A thread has all taps of 3x3 in registers, or one row of 5 taps, or one tap, and walks runs of
// kRun pixels; what its block sums is one part, and parts are added in order.
#include "conv/conv_depthwise.cuh"

namespace brasa::cuda {

constexpr int kWarps = kThreads / simt::kWarpSize;

template <class T> struct DepthwiseWeightTask {
  RunGrid grid;
  TensorImage<T> x, dy;
  Wide<T>* parts;  ///< [part][tap][channel], channels as those of `x`
  int64_t kernel[3], channel_tiles;
  int along;  ///< threads of a place
};

/// The first of the rows x taps that a block sums.
struct FirstTap {
  int64_t at[3], index;
  BRASA_DEVICE_FN FirstTap(int64_t group, const int64_t* kernel, int rows, int taps) {
    const int64_t across = kernel[2] / taps, down = kernel[1] / rows;
    at[2] = group % across * taps;
    at[1] = group / across % down * rows;
    at[0] = group / across / down;
    index = (at[0] * kernel[1] + at[1]) * kernel[2] + at[2];
  }
};

template <class T, int kRows, int kTaps> using TapSums = Wide<T>[kRows][kTaps][kPiece<T>];

/// kRun pieces from column `first` on, `apart` columns from one to the next; zeros outside of the
/// row.
template <class T>
BRASA_DEVICE_FN void load_run(const T* row, int64_t first, int64_t apart, int64_t width,
                              int64_t step, Wide<T> (&run)[kRun][kPiece<T>]) {
#pragma unroll
  for (int o = 0; o < kRun; ++o) {
    const int64_t column = first + o * apart;
    if (column >= 0 && column < width) {
      load_piece(row + column * step, run[o]);
    } else {
#pragma unroll
      for (int i = 0; i < kPiece<T>; ++i) run[o][i] = 0;
    }
  }
}

/// sum += one run of pixels.
template <class T, int kRows, int kTaps, int kStep>
BRASA_DEVICE_FN void add_run(const DepthwiseWeightTask<T>& task, const FirstTap& tap, int64_t row,
                             int64_t run, int64_t channel, TapSums<T, kRows, kTaps>& sum) {
  constexpr int kApart = kStep > 0 ? kStep : 1;
  const Axis* axis = task.grid.axis;
  const Layout5 &layout = task.x.layout, &of_dy = task.dy.layout;
  int64_t image, q[2];
  task.grid.split(row, image, q);
  const int64_t z = q[0] * axis[0].in_step + axis[0].in_first + tap.at[0] * axis[0].tap_step;
  if (z < 0 || z >= layout.size[0]) return;
  Wide<T> dy[kRun][kPiece<T>];
  load_run(task.dy.data + row * of_dy.step[1] + channel, run * kRun, 1, axis[2].count,
           of_dy.step[2], dy);
  const T* from = task.x.data + image * layout.image + z * layout.step[0] + channel;
  const int64_t first =
      run * kRun * axis[2].in_step + axis[2].in_first + tap.at[2] * axis[2].tap_step;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t y =
        q[1] * axis[1].in_step + axis[1].in_first + (tap.at[1] + r) * axis[1].tap_step;
    if (y < 0 || y >= layout.size[1]) continue;
    Window<T, kTaps, kApart> x;
    const T* line = from + y * layout.step[1];
    if constexpr (kStep > 0)
      load_window<T, kTaps, kStep>(line, first, layout.size[2], layout.step[2], x);
    else
      load_run(line, first, axis[2].in_step, layout.size[2], layout.step[2], x);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int o = 0; o < kRun; ++o) {
#pragma unroll
        for (int i = 0; i < kPiece<T>; ++i) sum[r][t][i] += dy[o][i] * x[o * kApart + t][i];
      }
    }
  }
}

/// to[i] = the block's sum of one tap in channel i of its `channels`: over the places of a warp,
/// then over warps.
template <class T>
BRASA_DEVICE_FN void store_tap(Piece<T>& sum, Wide<T>* to, int along, int64_t channels) {
  using Lane = Wide<T>;
  BRASA_SHARED(Lane, of_warp, [kWarps][kMostAlong * kPiece<T>]);
  const int thread = int(threadIdx.x), lane = thread % simt::kWarpSize;
#pragma unroll 1
  for (int offset = simt::kWarpSize / 2; offset >= along; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) sum[i] += __shfl_xor_sync(simt::kFullMask, sum[i], offset);
  }
  if (lane < along) {
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i)
      of_warp[thread / simt::kWarpSize][lane * kPiece<T> + i] = sum[i];
  }
  __syncthreads();
  if (thread < along * kPiece<T> && thread < channels) {
    Lane total = of_warp[0][thread];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) total += of_warp[w][thread];
    to[thread] = total;
  }
  __syncthreads();  // before the next tap
}

/// blockIdx.x counts tiles of channels, fastest, then groups of kRows x kTaps taps; blockIdx.y
/// parts of the runs of pixels.
template <class T, int kRows, int kTaps, int kStep>
__global__ void __launch_bounds__(kThreads, kTaps == 1 ? 2 : 1)
    depthwise_weight_kernel(DepthwiseWeightTask<T> task) {
  const auto channel_tile = int64_t(blockIdx.x % task.channel_tiles);
  const FirstTap tap(blockIdx.x / task.channel_tiles, task.kernel, kRows, kTaps);
  const int64_t channel = (channel_tile * task.along + threadIdx.x % task.along) * kPiece<T>;
  const bool live = channel < task.x.channels;
  const int64_t all = task.grid.rows * task.grid.runs, part = blockIdx.y;
  const int64_t end = all * (part + 1) / gridDim.y;
  TapSums<T, kRows, kTaps> sum = {};
#pragma unroll 1
  for (int64_t i = all * part / gridDim.y + threadIdx.x / task.along; live && i < end;
       i += kThreads / task.along)
    add_run<T, kRows, kTaps, kStep>(task, tap, i / task.grid.runs, i % task.grid.runs, channel,
                                    sum);
  const int64_t first = channel_tile * task.along * kPiece<T>;
  Wide<T>* const to = task.parts + first;
  const int64_t taps = task.kernel[0] * task.kernel[1] * task.kernel[2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const int64_t index = part * taps + tap.index + r * task.kernel[2] + t;
      store_tap<T>(sum[r][t], to + index * task.x.channels, task.along, task.x.channels - first);
    }
  }
}

/// dw[channel][tap] = the sum over parts of [tap][channel]. With a thread
/// for each sum, 528 parts took longer than dy and x.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_taps_kernel(const Wide<T>* parts, T* dw, int64_t count, int64_t taps, int64_t channels,
                    int64_t filled) {
  const int64_t i = int64_t(blockIdx.x) * simt::kWarpSize + threadIdx.x % simt::kWarpSize;
  const int64_t tap = i / filled, channel = i % filled;
  const Wide<T> sum = sum_parts(parts, i, taps * filled, count, tap < taps);
  if (threadIdx.x >= simt::kWarpSize || tap >= taps || channel >= channels) return;
  dw[channel * taps + tap] = simt::narrow<T>(sum);
}

// ------------------------------------------------------------------------------------- launchers

/// How the taps are shared out. float64, which few have, comes tap by tap: one kernel.
template <class T> struct TapGroups {
  int rows, taps, step;  ///< step 0: any

  explicit TapGroups(const ConvParams& p) : rows(1), taps(1), step(0) {
    if (p.dilation[2] != 1 || sizeof(T) == 8) return;
    if (p.kernel[1] == 3 && p.kernel[2] == 3 && p.stride[2] <= 2)
      rows = 3, taps = 3, step = int(p.stride[2]);
    else if (p.kernel[2] == 5 && p.stride[2] == 1)
      taps = 5, step = 1;
  }
  int64_t count(const ConvParams& p) const { return p.taps() / (rows * taps); }
};

template <class T> struct DepthwiseWeightScratch {
  ImagePlan x_plan, dy_plan;
  int along;
  int64_t channel_tiles, parts;
  T *x, *dy;
  Wide<T>* of_part;

  DepthwiseWeightScratch(Scratch& scratch, const ConvParams& p)
      : x_plan(plan_image<T>(p, 1, p.in_channels, p.in_pixels(), p.x_channels_last)),
        dy_plan(plan_image<T>(p, 1, p.in_channels, p.out_pixels(), true)),
        along(threads_along<T>(x_plan.channels)),
        channel_tiles(simt::ceil_div<int64_t>(x_plan.channels, along * kPiece<T>)),
        parts(count_parts(p)),
        x(scratch.take<T>(x_plan.elements)),
        dy(scratch.take<T>(dy_plan.elements)),
        of_part(scratch.take<Wide<T>>(parts * p.taps() * x_plan.channels)) {}

 private:
  /// Enough for a GPU, but each thread has some runs.
  int64_t count_parts(const ConvParams& p) const {
    constexpr int64_t kWantedBlocks = 528;
    const int64_t runs = p.batch * p.out[0] * p.out[1] * simt::ceil_div<int64_t>(p.out[2], kRun);
    const int64_t wanted =
        simt::ceil_div<int64_t>(kWantedBlocks, channel_tiles * TapGroups<T>(p).count(p));
    return larger(1, smaller(wanted, runs / (4 * (kThreads / along))));
  }
};

template <class T> size_t depthwise_weight_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  DepthwiseWeightScratch<T>(scratch, p);
  return scratch.used();
}

template <class T>
void depthwise_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                               void* workspace) {
  const auto stream = stream_of(ctx);
  Scratch scratch(workspace);
  const DepthwiseWeightScratch<T> at(scratch, p);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  DepthwiseWeightTask<T> task{
      .grid = RunGrid(axes, p.batch),
      .x = read_image(stream, p.batch, 1, at.x_plan, x, at.x, p.in_channels, p.in,
                      p.x_channels_last),
      .dy = read_image(stream, p.batch, 1, at.dy_plan, dy, at.dy, p.in_channels, p.out, true),
      .parts = at.of_part,
      .kernel = {p.kernel[0], p.kernel[1], p.kernel[2]},
      .channel_tiles = at.channel_tiles,
      .along = at.along};
  const TapGroups<T> groups(p);
  const auto kernel = [&] {
    if constexpr (sizeof(T) < 8) {
      if (groups.taps == 5) return depthwise_weight_kernel<T, 1, 5, 1>;
      if (groups.step == 1) return depthwise_weight_kernel<T, 3, 3, 1>;
      if (groups.step == 2) return depthwise_weight_kernel<T, 3, 3, 2>;
    }
    return depthwise_weight_kernel<T, 1, 1, 0>;
  }();
  simt::launch({.grid = dim3(unsigned(at.channel_tiles * groups.count(p)), unsigned(at.parts)),
                .block = dim3(kThreads),
                .stream = stream},
               kernel, task);
  const int64_t sums = p.taps() * at.x_plan.channels;
  simt::launch({.grid = dim3(unsigned(simt::ceil_div<int64_t>(sums, simt::kWarpSize))),
                .block = dim3(kThreads),
                .stream = stream},
               add_taps_kernel<T>, at.of_part, dw, at.parts, p.taps(), p.in_channels,
               at.x_plan.channels);
}

BRASA_INSTANTIATE(depthwise_backward_weight, float, double, float16, bfloat16)
BRASA_INSTANTIATE(depthwise_weight_workspace, float, double, float16, bfloat16)

}  // namespace brasa::cuda
