// Forward and backward data of depthwise convolutions on CUDA.
#include "conv/conv_depthwise.cuh"
#include "conv/conv_layout.h"

namespace brasa::cuda {

/// One grid: forward, or a residue class of backward data.
template <class T> struct DepthwiseTask {
  RunGrid grid;
  TensorImage<T> in;
  const T* w;  ///< [tap][channel], channels as those of `in`
  T* out;
  Layout5 out_layout;
  int64_t channels;   ///< that are written
  int along;          ///< threads of a place
  int runs_of_block;  ///< along a row, a power of two; the others are rows
  unsigned run_tiles, channel_tiles;
  bool packs;  ///< pieces are whole, and arrays laid out as `out` aligned for them
};

template <class T> using RunSums = Wide<T>[kRun][kPiece<T>];

/// sum += a row of the window of taps kTaps wide, kStep apart.
template <class T, int kTaps, int kStep>
BRASA_DEVICE_FN void add_row(const T* row, int64_t first, int width, int64_t step, const T* w,
                             int64_t w_step, RunSums<T>& sum) {
  Window<T, kTaps, kStep> window;
  load_window<T, kTaps, kStep>(row, first, width, step, window);
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    Piece<T> weight;
    load_piece(w + tap * w_step, weight);
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
#pragma unroll
      for (int i = 0; i < kPiece<T>; ++i) sum[o][i] += window[o * kStep + tap][i] * weight[i];
    }
  }
}

/// The same for any taps and steps.
template <class T>
BRASA_DEVICE_FN void add_any_row(const T* row, int64_t first, int width, int64_t step, const T* w,
                                 int64_t w_step, const Axis& axis, RunSums<T>& sum) {
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    Piece<T> weight;
    load_piece(w + tap * w_step, weight);
#pragma unroll
    for (int o = 0; o < kRun; ++o) {
      const int64_t column = first + o * axis.in_step + tap * axis.tap_step;
      if (column < 0 || column >= width) continue;
      Piece<T> piece;
      load_piece(row + column * step, piece);
#pragma unroll
      for (int i = 0; i < kPiece<T>; ++i) sum[o][i] += piece[i] * weight[i];
    }
  }
}

/// Sums of the run at `q`, over all rows of the window.
template <class T, int kTaps, int kStep>
BRASA_DEVICE_FN void sum_run(const DepthwiseTask<T>& task, int64_t image, const int64_t (&q)[3],
                             int64_t channel, RunSums<T>& sum) {
  const Axis* axis = task.grid.axis;
  const Layout5& layout = task.in.layout;
  const int64_t first = q[2] * axis[2].in_step + axis[2].in_first;
  const T* from = task.in.data + image * layout.image + channel;
  for (int64_t d = 0; d < axis[0].taps; ++d) {
    const int64_t z = q[0] * axis[0].in_step + axis[0].in_first + d * axis[0].tap_step;
    if (z < 0 || z >= layout.size[0]) continue;
    for (int64_t h = 0; h < axis[1].taps; ++h) {
      const int64_t y = q[1] * axis[1].in_step + axis[1].in_first + h * axis[1].tap_step;
      if (y < 0 || y >= layout.size[1]) continue;
      const T* row = from + z * layout.step[0] + y * layout.step[1];
      const T* w = task.w + (d * axis[1].taps + h) * axis[2].taps * task.in.channels + channel;
      if constexpr (kTaps > 0)
        add_row<T, kTaps, kStep>(row, first, layout.size[2], layout.step[2], w, task.in.channels,
                                 sum);
      else
        add_any_row<T>(row, first, layout.size[2], layout.step[2], w, task.in.channels, axis[2],
                       sum);
    }
  }
}

/// A thread's results on their way through the epilogue, in shared memory: there they have
/// addresses, so that loops over them stay loops. Unrolled, what finishes them was 30 times what
/// sums them. Neighbouring threads have neighbouring pairs.
template <class T> using RunStash = Wide<T>[kRun * kPiece<T> / 2][kThreads][2];

template <class T>
BRASA_DEVICE_FN void stash_piece(RunStash<T>& stash, int o, const Piece<T>& piece) {
#pragma unroll
  for (int i = 0; i < kPiece<T>; ++i)
    stash[o * (kPiece<T> / 2) + i / 2][threadIdx.x][i % 2] = piece[i];
}
template <class T> BRASA_DEVICE_FN void take_piece(RunStash<T>& stash, int o, Piece<T>& piece) {
#pragma unroll
  for (int i = 0; i < kPiece<T>; ++i)
    piece[i] = stash[o * (kPiece<T> / 2) + i / 2][threadIdx.x][i % 2];
}

/// v += an operand's first `live` lanes; `packs` says that whole pieces may be read at once.
template <class E, class W, int kLanes>
BRASA_DEVICE_FN void add_operand(const E* from, int live, bool packs, W (&v)[kLanes]) {
  if (packs) {
    const auto operand = simt::load_wide<kLanes>(from);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += operand[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i)
    if (i < live) v[i] += simt::widen(from[i]);
}

/// Whether the kernel of `taps` taps has activations: one and two are for backward data.
BRASA_HOST_DEVICE_FN constexpr bool can_activate(int taps) {
  return taps != 1 && taps != 2;
}

/// Where a thread's results go.
struct RunPlace {
  int64_t offset, step, channel;  ///< of the first pixel, to the next, and of lane 0
  int pixels, live;               ///< that exist; lanes
};

/// Bias and residual for the results in `stash`, which stay there if there is an activation.
template <class T>
BRASA_DEVICE_FN void add_operands(const DepthwiseTask<T>& task, const Epilogue<T>& e,
                                  const RunPlace& to, bool activates, RunStash<T>& stash) {
#pragma unroll 1
  for (int o = 0; o < to.pixels; ++o) {
    const int64_t at = to.offset + o * to.step;
    Piece<T> v;
    take_piece<T>(stash, o, v);
    if (e.bias) add_operand(e.bias + to.channel, to.live, task.packs, v);
    if (sizeof(T) == 2 && e.wide_bias)
      add_operand(e.wide_bias + to.channel, to.live, task.packs, v);
    if (e.residual) add_operand(e.residual + at, to.live, task.packs, v);
    if (e.pre_activation) store_piece<T>(e.pre_activation + at, v, to.live, task.packs);
    if (activates)
      stash_piece<T>(stash, o, v);
    else
      store_piece<T>(task.out + at, v, to.live, task.packs);
  }
}

/// Finishes a thread's results and writes them.
template <class T, bool kActivates>
BRASA_DEVICE_FN void finish_run(const DepthwiseTask<T>& task, const Epilogue<T>& e,
                                const RunPlace& to, RunSums<T>& sum) {
  using Lane = Wide<T>;
  BRASA_SHARED(Lane, stash, [kRun * kPiece<T> / 2][kThreads][2]);
  const bool trivial = e.is_trivial();
  const bool activates = kActivates && e.activation.kind != ActivationKind::none;
#pragma unroll
  for (int o = 0; o < kRun; ++o) {
    if (o >= to.pixels) break;
    if (trivial)
      store_piece<T>(task.out + to.offset + o * to.step, sum[o], to.live, task.packs);
    else
      stash_piece<T>(stash, o, sum[o]);
  }
  if (trivial) return;
  add_operands(task, e, to, activates, stash);
  if (!activates) return;
  activate_each<Lane>(e.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int pair = 0; pair < to.pixels * (kPiece<T> / 2); ++pair) {
      activate(stash[pair][threadIdx.x][0]);
      activate(stash[pair][threadIdx.x][1]);
    }
  });
#pragma unroll 1
  for (int o = 0; o < to.pixels; ++o) {
    Piece<T> v;
    take_piece<T>(stash, o, v);
    store_piece<T>(task.out + to.offset + o * to.step, v, to.live, task.packs);
  }
}

/// blockIdx.x counts tiles of channels, fastest, then tiles along rows, then rows.
template <class T, int kTaps, int kStep>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && kTaps * kStep > 3 ? 1 : 2)
    depthwise_kernel(DepthwiseTask<T> task, Epilogue<T> epilogue) {
  const auto channel_tile = int64_t(blockIdx.x % task.channel_tiles);
  const unsigned tile = blockIdx.x / task.channel_tiles;
  const int place = int(threadIdx.x) / task.along, runs = task.runs_of_block;
  const int64_t channel = (channel_tile * task.along + threadIdx.x % task.along) * kPiece<T>;
  const int64_t run = int64_t(tile % task.run_tiles) * runs + place % runs;
  const int64_t row =
      int64_t(tile / task.run_tiles) * (kThreads / task.along / runs) + place / runs;
  if (channel >= task.in.channels || run >= task.grid.runs || row >= task.grid.rows) return;
  int64_t image, outer[2];
  task.grid.split(row, image, outer);
  const int64_t q[3] = {outer[0], outer[1], run * kRun};
  RunSums<T> sum = {};
  sum_run<T, kTaps, kStep>(task, image, q, channel, sum);
  const Axis* axis = task.grid.axis;
  const int64_t live = task.channels - channel;
  RunPlace to{.offset = image * task.out_layout.image + channel,
              .step = axis[2].out_step * task.out_layout.step[2],
              .channel = channel,
              .pixels = axis[2].count - q[2] < kRun ? int(axis[2].count - q[2]) : kRun,
              .live = live < kPiece<T> ? int(live) : kPiece<T>};
#pragma unroll
  for (int d = 0; d < 3; ++d)
    to.offset += (axis[d].out_first + q[d] * axis[d].out_step) * task.out_layout.step[d];
  finish_run<T, can_activate(kTaps)>(task, epilogue, to, sum);
}

// ------------------------------------------------------------------------------------- launchers

template <class T>
static void launch_grid(simt::stream_t stream, DepthwiseTask<T> task, const Epilogue<T>& epilogue) {
  constexpr int64_t kMostRuns = 4;
  if (task.grid.rows == 0 || task.grid.runs == 0) return;
  task.runs_of_block = 1;
  while (task.runs_of_block < kMostRuns && task.runs_of_block < task.grid.runs)
    task.runs_of_block *= 2;
  task.run_tiles = unsigned(simt::ceil_div<int64_t>(task.grid.runs, task.runs_of_block));
  task.along = threads_along<T>(task.in.channels);
  task.channel_tiles = unsigned(simt::ceil_div<int64_t>(task.in.channels, task.along * kPiece<T>));
  const int64_t row_tiles =
      simt::ceil_div<int64_t>(task.grid.rows, kThreads / task.along / task.runs_of_block);
  const Axis& axis = task.grid.axis[2];
  const bool activates = epilogue.activation.kind != ActivationKind::none;
  const auto is = [&](int64_t taps, int64_t step) {
    return axis.taps == taps && axis.in_step == step && (axis.tap_step == 1 || taps == 1) &&
           (!activates || can_activate(int(taps)));
  };
  const auto kernel = [&] {
    if constexpr (sizeof(T) < 8) {  // float64, which few have, has the one for any taps
      if (is(3, 1)) return depthwise_kernel<T, 3, 1>;
      if (is(2, 1)) return depthwise_kernel<T, 2, 1>;
      if (is(1, 1)) return depthwise_kernel<T, 1, 1>;
      if (is(3, 2)) return depthwise_kernel<T, 3, 2>;
      if (is(5, 1)) return depthwise_kernel<T, 5, 1>;
    }
    return depthwise_kernel<T, 0, 0>;
  }();
  simt::launch({.grid = dim3(unsigned(row_tiles) * task.run_tiles * task.channel_tiles),
                .block = dim3(kThreads),
                .stream = stream},
               kernel, task, epilogue);
}

/// What forward or backward data keeps in the workspace.
template <class T> struct DepthwiseScratch {
  ImagePlan plan;
  T *image, *weights, *dx;

  DepthwiseScratch(Scratch& scratch, const ConvParams& p, int64_t pixels, bool channels_last,
                   int64_t dx_)
      : plan(plan_image<T>(p, 1, p.in_channels, pixels, channels_last)),
        image(scratch.take<T>(plan.elements)),
        weights(scratch.take<T>(p.taps() * plan.channels)),
        dx(scratch.take<T>(dx_)) {}
};
template <class T>
static DepthwiseScratch<T> forward_scratch(Scratch& scratch, const ConvParams& p) {
  return {scratch, p, p.in_pixels(), p.x_channels_last, 0};
}
template <class T> static DepthwiseScratch<T> input_scratch(Scratch& scratch, const ConvParams& p) {
  const int64_t dx = p.x_channels_last ? 0 : p.batch * p.in_pixels() * p.in_channels;
  return {scratch, p, p.out_pixels(), true, dx};
}
template <class T> size_t depthwise_forward_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  forward_scratch<T>(scratch, p);
  return scratch.used();
}
template <class T> size_t depthwise_input_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  input_scratch<T>(scratch, p);
  return scratch.used();
}

template <class T> static WeightPacking<T> packing_of(const ConvParams& p, const T* w) {
  return {.w = w,
          .groups = 1,
          .columns = 1,
          .channels = p.in_channels,
          .w_column = p.in_channels * p.taps(),
          .w_channel = p.taps(),
          .kernel = {p.kernel[0], p.kernel[1], p.kernel[2]}};
}

template <class T>
static void sum_grid(simt::stream_t stream, const ConvParams& p, const Axis* axes,
                     const TensorImage<T>& in, const PackedGrid<T>& packed, T* out,
                     const int64_t* out_size, const Epilogue<T>& e) {
  launch_grid<T>(stream,
                 {.grid = RunGrid(axes, p.batch),
                  .in = in,
                  .w = packed.to,
                  .out = out,
                  .out_layout = layout_of_image(p.in_channels, out_size, true),
                  .channels = p.in_channels,
                  .packs = p.in_channels % kPiece<T> == 0 && simt::pack_aligned(out) &&
                           simt::pack_aligned(e.bias) && simt::pack_aligned(e.wide_bias) &&
                           simt::pack_aligned(e.residual) && simt::pack_aligned(e.pre_activation)},
                 e);
}

template <class T>
void depthwise_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                       const Epilogue<T>& epilogue) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  const DepthwiseScratch<T> at = forward_scratch<T>(scratch, p);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const auto image =
      read_image(stream, p.batch, 1, at.plan, x, at.image, p.in_channels, p.in, p.x_channels_last);
  GridPacker<T> packer(stream, packing_of(p, w), at.weights);
  const PackedGrid<T> packed = packer.add(axes, image.channels);
  packer.flush();
  sum_grid(stream, p, axes, image, packed, y, p.out, epilogue);
}

template <class T>
void depthwise_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  const DepthwiseScratch<T> at = input_scratch<T>(scratch, p);
  const auto image =
      read_image(stream, p.batch, 1, at.plan, dy, at.image, p.in_channels, p.out, true);
  T* const to = p.x_channels_last ? dx : at.dx;
  GridPacker<T> packer(stream, packing_of(p, w), at.weights);
  for_classes(p, [&](const Axis* axes) { packer.add(axes, image.channels); });
  packer.flush();
  packer.rewind();
  for_classes(p, [&](const Axis* axes) {
    sum_grid(stream, p, axes, image, packer.place(axes, image.channels), to, p.in, Epilogue<T>{});
  });
  if (to != dx) images_to_channels_last(ctx, to, dx, p.batch, p.in_pixels(), p.in_channels);
}

BRASA_INSTANTIATE(depthwise_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(depthwise_backward_input, float, double, float16, bfloat16)
BRASA_INSTANTIATE(depthwise_forward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(depthwise_input_workspace, float, double, float16, bfloat16)

}  // namespace brasa::cuda
