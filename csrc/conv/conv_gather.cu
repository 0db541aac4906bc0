// Convolutions in float32 and float64 FMA on CUDA: implicit GEMM by the main loop of matrix
// products (matmul/gemm_fma.cuh), x in either memory format; and, in all dtypes, groups of few
// channels, a thread per result.
//
// Forward and each residue class of backward data are a product of (pixels) x (taps, input
// channels) by (taps, input channels) x (output channels). The weights are written in that order
// first, those of a class at a time, a millionth of the work: read as they lie, neighbouring
// outputs are a filter apart. What a load needs beside its pixel is a place of the depth: those of
// 512 steps are worked out at a time, outside of the rounds (conv_tile.cuh), and which taps of a
// pixel lie in the image is a bit each of one word, so that a pack of four channels costs an
// address and a bit. Worked out in each round by as many threads as it has steps, the divisions
// kept one warp, and with it the barrier, 150 instructions behind: with 8 x 4 results a thread 25
// to 27 of 60 TFLOP/s.
//
// The tile is the one that leaves least work to the multiprocessor with most of it: 256 x 16 and
// 256 x 32 for narrow layers, and parts of the depth, added in order, where pixels are few.
#include "conv/conv_gather.cuh"

namespace brasa::cuda {

/// packed[group][tap][channel][column] for the taps of a grid, zeros behind the columns.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_weight_kernel(GatherWeights<T> from, Grid grid, T* packed, int64_t count,
                       simt::Divisor columns) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t rest = i;
    const int64_t column = columns.take_remainder(rest);
    int64_t at = column * from.column + grid.channels.take_remainder(rest) * from.channel;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      const int64_t j = grid.taps[d].take_remainder(rest);
      at += (grid.axis[d].kernel_first + j * grid.axis[d].kernel_step) * from.tap[d];
    }
    packed[i] = column < from.columns ? from.w[rest * from.group + at] : T{};
  }
}

/// A block computes one tile of pixels x output channels; blockIdx.x counts tiles, blockIdx.y parts
/// of the depth, whose results follow one another from y on, blockIdx.z groups.
template <class T, class Tile, bool kPacks>
__global__ void __launch_bounds__(Tile::kThreads, kPacks ? Tile::kBlocks : (Tile::kBlocks + 1) / 2)
    gather_kernel(GatherTask<T> task, FmaResults<PixelRows> results, T* y, Epilogue<T> epilogue) {
  using Operands = GatherOperands<T, Tile, kPacks>;
  using Shared = FmaShared<T, Tile>;
  using Table = typename Operands::Table;
  BRASA_SHARED(Shared, shared, [1]);
  BRASA_SHARED(Table, table, [1]);
  BRASA_SHARED(Place, places, [kSectionTaps]);
  const auto column_tiles = unsigned(simt::ceil_div<int64_t>(task.group_out, Tile::kColumns));
  const int64_t row = int64_t(blockIdx.x / column_tiles) * Tile::kRows;
  const int64_t column = int64_t(blockIdx.x % column_tiles) * Tile::kColumns;
  const int64_t begin = part_begin(task.depth(), gridDim.y, blockIdx.y);
  const int64_t end = part_begin(task.depth(), gridDim.y, blockIdx.y + 1);
  Operands operands{table[0], places, task};
  for (int64_t group = blockIdx.z; group < task.groups; group += gridDim.z) {
    FmaSums<T, Tile> sum = {};
    for (int64_t first = begin; first < end; first += operands.depth) {
      operands.start(group, row, column, first, end);
      multiply_rounds<T, Tile>(unsigned(simt::ceil_div(operands.depth, Tile::kDepth)), shared[0],
                               operands, sum);
    }
    const int64_t channel = group * task.group_out;
    store_sums<T, Tile>(results, epilogue,
                        channel * results.step + blockIdx.y * results.m * results.n, y, row, column,
                        channel + column, sum);
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
    const T* w = task.w + group * task.depth() * task.w_columns + of_group;
    Wide<T> sum = 0;
    for (int64_t d = 0; d < axis[0].taps; ++d)
      for (int64_t h = 0; h < axis[1].taps; ++h)
        for (int64_t k = 0; k < axis[2].taps; ++k) {
          const int64_t j[3] = {d, h, k};
          Place step{{}, 0};
          const int64_t tap = (d * axis[1].taps + h) * axis[2].taps + k;
#pragma unroll
          for (int e = 0; e < 3; ++e) {
            step.at[e] = int(j[e] * axis[e].tap_step);
            step.offset += step.at[e] * task.in_layout.step[e];
          }
          if (!inside(task.in_layout, row, step)) continue;
          for (int64_t channel = 0; channel < task.group_in; ++channel)
            sum += simt::widen(in[step.offset + channel * task.in_layout.channel]) *
                   simt::widen(w[(tap * task.group_in + channel) * task.w_columns]);
        }
    const int64_t offset = out_offset(task, pixel, column);
    sum = before_activation(epilogue, sum, column, offset);
    activate_each<Wide<T>>(epilogue.activation, [&](const auto& activate) { activate(sum); });
    task.out[offset] = simt::narrow<T>(sum);
  }
}

// ---------------------------------------------------------------------------------------
// launchers

using SquareTile = FmaTile<float, 4, 8, 2, 2, 16, 3>;  // 64 x 64
using NarrowTile = FmaTile<float, 8, 8, 4, 1, 8, 2>;   // 256 x 32
using ThinTile = FmaTile<float, 8, 4, 4, 1, 8, 3>;     // 256 x 16

enum class GatherTile : int8_t { medium, square, narrow, thin };
struct GatherPlan {
  GatherTile tile;
  int64_t splits;
};

/// Calls f(tile) with a value of the type.
template <class F> static void with_tile(GatherTile tile, const F& f) {
  switch (tile) {
    case GatherTile::medium:
      return f(FmaMedium{});
    case GatherTile::square:
      return f(SquareTile{});
    case GatherTile::narrow:
      return f(NarrowTile{});
    case GatherTile::thin:
      return f(ThinTile{});
  }
}

/// The tile and the parts that are least work for the multiprocessor that has most of it. Parts are
/// for channels-last results of one group.
static GatherPlan plan_gather(int64_t pixels, int64_t columns, int64_t depth, int64_t groups,
                              bool may_split) {
  GatherPlan best{GatherTile::square, 1};
  int64_t least = INT64_MAX;
  for (const auto tile :
       {GatherTile::medium, GatherTile::square, GatherTile::narrow, GatherTile::thin})
    with_tile(tile, [&](auto shape) {
      using Tile = decltype(shape);
      const int64_t most = may_split ? larger(depth / kSplitDepth, 1) : 1;
      for_splits<Tile>(pixels, columns, groups, most, [&](int64_t splits) {
        const int64_t cycles = estimate_fma<Tile>(pixels, columns, depth, groups, splits);
        if (cycles < least) least = cycles, best = {tile, splits};
      });
    });
  return best;
}

template <class T> static int64_t whole_packs(int64_t n) {
  return simt::ceil_div<int64_t>(n, simt::kPackLanes<T>) * simt::kPackLanes<T>;
}

/// What a class of a gather needs in the workspace: weights, then parts.
template <class T> struct GatherScratch {
  T *w, *parts;
  size_t used;

  GatherScratch(void* workspace, const GatherTask<T>& task, int64_t splits) {
    Scratch scratch(workspace);
    w = scratch.take<T>(task.groups * task.depth() * task.w_columns);
    parts = scratch.take<T>(splits > 1 ? splits * task.pixels() * task.group_out : 0);
    used = scratch.used();
  }
};

/// Whether a thread per result computes a class, for groups of few channels.
template <class T> static bool is_direct(const GatherTask<T>& task) {
  return sizeof(T) == 2 || (task.group_out < kFewChannels && task.groups > 1);
}
template <class T> static GatherPlan plan_task(const GatherTask<T>& task) {
  if (sizeof(T) != 4 || is_direct(task)) return {GatherTile::square, 1};
  return plan_gather(task.pixels(), task.group_out, task.depth(), task.groups,
                     task.groups == 1 && task.out_layout.channel == 1);
}

template <class T, class Tile, bool kPacks>
static void launch_tiles(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue,
                         T* parts, int64_t splits) {
  const int64_t tiles = simt::ceil_div<int64_t>(task.pixels(), Tile::kRows) *
                        simt::ceil_div<int64_t>(task.group_out, Tile::kColumns);
  const simt::LaunchConfig config{
      .grid = dim3(unsigned(tiles), unsigned(splits), grid_z(task.groups)),
      .block = dim3(Tile::kThreads),
      .stream = stream_of(ctx)};
  constexpr int64_t kLanes = simt::kPackLanes<T>;
  const int64_t step = task.out_layout.channel;
  const bool packs = step == 1 && task.group_out % kLanes == 0 && simt::pack_aligned(task.out) &&
                     simt::pack_aligned(epilogue.residual) &&
                     simt::pack_aligned(epilogue.pre_activation);
  const PixelRows rows(task.grid, task.out_layout);
  const auto launch = [&](const FmaResults<PixelRows>& results, T* to, const Epilogue<T>& e) {
    simt::launch(config, gather_kernel<T, Tile, kPacks>, task, results, to, e);
  };
  const int64_t columns = task.group_out;
  if (splits == 1) return launch({task.pixels(), columns, step, packs, rows}, task.out, epilogue);
  if constexpr (sizeof(T) == 4) {
    launch({task.pixels(), columns, 1, columns % kLanes == 0, PixelRows(columns)}, parts, {});
    finish_parts(stream_of(ctx), splits, task.pixels(),
                 Results<T, PixelRows>{task.pixels(), columns, 0, task.out, parts, epilogue,
                                       packs && simt::pack_aligned(epilogue.bias), rows});
  }
}

template <class T, class Tile>
static void choose_packs(Context ctx, const GatherTask<T>& task, const Epilogue<T>& epilogue,
                         T* parts, int64_t splits) {
  if (channels_in_packs(task.in, task.in_layout, task.group_in))
    launch_tiles<T, Tile, true>(ctx, task, epilogue, parts, splits);
  else
    launch_tiles<T, Tile, false>(ctx, task, epilogue, parts, splits);
}

/// Packs the weights of a class and computes it.
template <class T>
static void launch_gather(Context ctx, GatherTask<T> task, const GatherWeights<T>& weights,
                          const Epilogue<T>& epilogue) {
  if (task.pixels() == 0) return;
  const GatherPlan plan = plan_task(task);
  const GatherScratch<T> scratch(ctx.workspace, task, plan.splits);
  const int64_t count = task.groups * task.depth() * task.w_columns;
  if (count > 0)
    simt::launch({.grid = simt::blocks_for(count, kThreads),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 pack_weight_kernel<T>, weights, task.grid, scratch.w, count,
                 simt::Divisor(task.w_columns));
  task.w = scratch.w;
  if (is_direct(task)) {
    const int64_t channels = task.groups * task.group_out;
    simt::launch({.grid = simt::blocks_for(task.pixels() * channels, kThreads),
                  .block = dim3(kThreads),
                  .stream = stream_of(ctx)},
                 direct_gather_kernel<T>, task, epilogue, simt::Divisor(channels),
                 simt::Divisor(task.group_out));
  } else if constexpr (sizeof(T) == 8) {
    choose_packs<T, FmaDouble>(ctx, task, epilogue, scratch.parts, 1);
  } else if constexpr (sizeof(T) == 4) {
    with_tile(plan.tile, [&](auto shape) {
      choose_packs<T, decltype(shape)>(ctx, task, epilogue, scratch.parts, plan.splits);
    });
  }
}

template <class T> static GatherTask<T> forward_task(const T* x, T* y, const ConvParams& p) {
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  return {Grid(axes, p.group_in()),
          p.batch,
          p.groups,
          p.group_in(),
          p.group_out(),
          x,
          layout_of_image(p.in_channels, p.in, p.x_channels_last),
          nullptr,
          whole_packs<T>(p.group_out()),
          y,
          layout_of_image(p.out_channels, p.out, true)};
}

/// Calls f(task) for every class of backward data.
template <class T, class F>
static void for_input_tasks(const T* dy, T* dx, const ConvParams& p, const F& f) {
  for_classes(p, [&](const Axis* axes) {
    f(GatherTask<T>{Grid(axes, p.group_out()), p.batch, p.groups, p.group_out(), p.group_in(), dy,
                    layout_of_image(p.out_channels, p.out, true), nullptr,
                    whole_packs<T>(p.group_in()), dx,
                    layout_of_image(p.in_channels, p.in, p.x_channels_last)});
  });
}

template <class T>
static GatherWeights<T> weights_of(const T* w, const ConvParams& p, bool backward) {
  const int64_t taps = p.taps(), filter = p.group_in() * taps;
  return {w,
          backward ? p.group_in() : p.group_out(),
          p.group_out() * filter,
          backward ? taps : filter,
          backward ? filter : taps,
          {p.kernel[1] * p.kernel[2], p.kernel[2], 1}};
}

template <class T> size_t gather_forward_workspace(const ConvParams& p) {
  const auto task = forward_task<T>(nullptr, nullptr, p);
  return GatherScratch<T>(nullptr, task, plan_task(task).splits).used;
}
template <class T> size_t gather_input_workspace(const ConvParams& p) {
  size_t most = 0;
  for_input_tasks<T>(nullptr, nullptr, p, [&](const GatherTask<T>& task) {
    const size_t used = GatherScratch<T>(nullptr, task, plan_task(task).splits).used;
    if (used > most) most = used;
  });
  return most;
}

template <class T>
void gather_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue) {
  launch_gather(ctx, forward_task(x, y, p), weights_of(w, p, false), epilogue);
}

template <class T>
void gather_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  for_input_tasks(dy, dx, p, [&](const GatherTask<T>& task) {
    launch_gather(ctx, task, weights_of(w, p, true), Epilogue<T>{});
  });
}

BRASA_INSTANTIATE(gather_forward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(gather_input_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(gather_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(gather_backward_input, float, double, float16, bfloat16)

}  // namespace brasa::cuda
