// How convolutions on tensor cores are planned, and the calls of their kernels.
#include "conv/conv_layout.h"
#include "conv/conv_tensor.cuh"
#include "core/driver.cuh"
#include "matmul/gemm_finish.cuh"

namespace brasa::cuda {

constexpr int64_t kMultiprocessors = 132;  // an H100's; fixed, so that rounding is

// ---------------------------------------------------------------------------------------- plans

template <class T> static ImagePlan plan_x(const ConvParams& p) {
  return plan_image<T>(p, p.groups, p.group_in(), p.in_pixels(), p.x_channels_last);
}
template <class T> static ImagePlan plan_y(const ConvParams& p) {
  return plan_image<T>(p, p.groups, p.group_out(), p.out_pixels(), true);
}

/// The largest tiles that are enough for a GPU.
static ConvTile plan_tile(int64_t rows, int64_t columns, int64_t groups) {
  const auto tiles = [&](int64_t r, int64_t c) {
    return simt::ceil_div(rows, r) * simt::ceil_div(columns, c) * groups;
  };
  if (columns > 64 && tiles(128, 128) >= kMultiprocessors) return ConvTile::large;
  if (tiles(128, 64) >= kMultiprocessors) return ConvTile::tall;
  return ConvTile::small;
}

static int64_t tiles_of(ConvTile tile, int64_t rows, int64_t columns) {
  const int64_t width = tile == ConvTile::wgmma_wide                         ? 256
                        : tile == ConvTile::wgmma || tile == ConvTile::large ? 128
                                                                             : 64;
  return simt::ceil_div<int64_t>(rows, tile == ConvTile::small ? 64 : 128) *
         simt::ceil_div<int64_t>(columns, width);
}

/// Splits a depth, where there are too few tiles for a GPU, into parts of at least `least` lines.
template <class T> static ConvCut cut_depth(int64_t depth, int64_t tiles, int64_t least) {
  const int64_t wanted = 2 * kMultiprocessors;
  const int64_t most = simt::ceil_div<int64_t>(depth, least * kLine<T>);
  int64_t splits = tiles < 1 || 2 * tiles > wanted ? 1 : simt::ceil_div(wanted, tiles);
  splits = splits < most ? splits : most > 1 ? most : 1;
  const int64_t split_depth = whole(simt::ceil_div<int64_t>(depth, splits), kLine<T>);
  return {depth, depth < 1 ? 1 : simt::ceil_div(depth, split_depth), split_depth};
}

static int64_t pixels_of(const ConvParams& p, const Axis* axes) {
  return p.batch * axes[0].count * axes[1].count * axes[2].count;
}
static int64_t taps_of(const Axis* axes) {
  return axes[0].taps * axes[1].taps * axes[2].taps;
}

/// Whether Hopper's copy engine can walk a grid over an image, and full lines of channels are most
/// of what it would bring.
template <class T>
static bool can_walk(const ConvParams& p, const Axis* axes, const int64_t* size, int64_t channels) {
  constexpr int64_t kFarthest = 255;
  const bool full = 3 * channels >= 2 * whole(channels, kLine<T>);
  const bool flat = size[0] == 1 && axes[0].taps == 1 && axes[0].in_first == 0;
  if (!full || !flat || p.groups > 1 || simt::device_properties().capability != 90) return false;
  simt::PixelBox box{};
  for (int d = 0; d < 2; ++d) {
    const Axis& axis = axes[2 - d];
    if (axis.taps == 0 || (axis.taps - 1) * axis.tap_step > kFarthest || axis.in_step > 8 ||
        axis.in_first < -kFarthest)
      return false;
    box.size[d] = size[2 - d], box.count[d] = int(axis.count);
    box.first[d] = int(axis.in_first), box.step[d] = int(axis.in_step);
  }
  return box.is_possible();
}

/// Hopper's tile that needs less time: two narrow ones take a tenth longer than a wide one.
static ConvTile walked_tile(int64_t rows, int64_t columns) {
  if (columns <= 64) return ConvTile::wgmma_narrow;
  const int64_t across = simt::ceil_div<int64_t>(rows, 128);
  const int64_t waves =
      simt::ceil_div(across * simt::ceil_div<int64_t>(columns, 128), kMultiprocessors);
  const int64_t wide =
      simt::ceil_div(across * simt::ceil_div<int64_t>(columns, 256), kMultiprocessors);
  return 11 * waves > 20 * wide ? ConvTile::wgmma_wide : ConvTile::wgmma;
}

/// Forward, or a class of data, over an image of `size` with `channels` in a group.
template <class T>
static ConvPlan plan_pixels(const ConvParams& p, const Axis* axes, const int64_t* size,
                            int64_t channels, int64_t columns) {
  constexpr int64_t kFewestTiles = 32, kLeastColumns = 32;
  const int64_t pixels = pixels_of(p, axes), taps = taps_of(axes);
  if (columns > kLeastColumns && can_walk<T>(p, axes, size, channels)) {
    const ConvTile tile = walked_tile(pixels, columns);
    const int64_t tiles = tiles_of(tile, pixels, columns), depth = whole(channels, kLine<T>) * taps;
    if (tiles >= smaller(kFewestTiles, simt::device_properties().multiprocessors))
      return {tile, depth / taps, {depth, 1, depth}};
  }
  const ConvTile tile = plan_tile(pixels, columns, p.groups);
  const int64_t tiles = p.groups > 1 ? kMultiprocessors * 2 : tiles_of(tile, pixels, columns);
  return {tile, channels, cut_depth<T>(taps * channels, tiles, 4)};
}

/// The number of parts that leaves the least to do one after another, each with some lines of its
/// own beside.
template <class T> static ConvCut cut_evenly(int64_t depth, int64_t tiles) {
  constexpr int64_t kMostParts = 64, kOwnLines = 8;
  const int64_t lines = simt::ceil_div<int64_t>(depth, kLine<T>);
  int64_t best = 0, best_splits = 1;
  for (int64_t splits = 1; splits <= kMostParts && splits * kOwnLines <= lines; ++splits) {
    const int64_t time = simt::ceil_div(tiles * splits, kMultiprocessors) *
                         (simt::ceil_div(lines, splits) + kOwnLines);
    if (best == 0 || time < best) best = time, best_splits = splits;
  }
  const int64_t split_depth = simt::ceil_div(lines, best_splits) * kLine<T>;
  return {depth, simt::ceil_div(depth, split_depth), split_depth};
}

/// As many parts as fill a GPU.
template <class T> static ConvPlan plan_weight(const ConvParams& p) {
  constexpr int64_t kLeastColumns = 32, kLeastRows = 64;
  const int64_t channels = plan_x<T>(p).channels, columns = p.group_out();
  const int64_t pixels = p.batch * p.out_pixels(), rows = p.taps() * channels;
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  if (sizeof(T) == 2 && columns > kLeastColumns && rows > kLeastRows && pixels > 0 &&
      can_walk<T>(p, axes, p.in, channels)) {
    const int64_t filled = whole(channels, kLine<T>);
    const ConvTile tile = walked_tile(p.taps() * filled, columns);
    return {tile, filled, cut_evenly<T>(pixels, tiles_of(tile, p.taps() * filled, columns))};
  }
  const ConvTile tile = rows >= 128 && columns > 64 ? ConvTile::large
                        : rows >= 128               ? ConvTile::tall
                                                    : ConvTile::small;
  return {tile, channels, cut_depth<T>(pixels, tiles_of(tile, rows, columns) * p.groups, 8)};
}
static int64_t parts_of_weight(const ConvParams& p, const ConvPlan& plan) {
  return plan.cut.splits * p.groups * p.taps() * plan.channels * p.group_out();
}

template <class T>
static int64_t parts_of_pixels(const ConvParams& p, const Axis* axes, const int64_t* size,
                               int64_t channels, int64_t columns) {
  const ConvPlan plan = plan_pixels<T>(p, axes, size, channels, columns);
  return plan.cut.splits > 1 ? plan.cut.splits * pixels_of(p, axes) * columns : 0;
}

/// What forward or backward data keeps in the workspace.
template <class T> struct PixelScratch {
  T *image, *weights, *dx;
  float* parts;

  PixelScratch(Scratch& scratch, const ConvParams& p, const ImagePlan& plan, int64_t columns,
               int64_t parts_, int64_t dx_)
      : image(scratch.take<T>(plan.elements)),
        weights(scratch.take<T>(p.groups * columns * p.taps() * whole(plan.channels, kLine<T>))),
        dx(scratch.take<T>(dx_)),
        parts(scratch.take<float>(parts_)) {}
};

template <class T> static PixelScratch<T> forward_scratch(Scratch& scratch, const ConvParams& p) {
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const ImagePlan image = plan_x<T>(p);
  const int64_t parts = parts_of_pixels<T>(p, axes, p.in, image.channels, p.group_out());
  return {scratch, p, image, p.group_out(), parts, 0};
}

template <class T> static PixelScratch<T> input_scratch(Scratch& scratch, const ConvParams& p) {
  const ImagePlan image = plan_y<T>(p);
  int64_t parts = 0;
  for_classes(p, [&](const Axis* axes) {
    parts = larger(parts, parts_of_pixels<T>(p, axes, p.out, image.channels, p.group_in()));
  });
  const int64_t dx = p.x_channels_last ? 0 : p.batch * p.in_pixels() * p.in_channels;
  return {scratch, p, image, p.group_in(), parts, dx};
}

template <class T> struct WeightScratch {
  T *x, *dy;
  float* parts;

  WeightScratch(Scratch& scratch, const ConvParams& p)
      : x(scratch.take<T>(plan_x<T>(p).elements)),
        dy(scratch.take<T>(plan_y<T>(p).elements)),
        parts(scratch.take<float>(parts_of_weight(p, plan_weight<T>(p)))) {}
};

template <class T> size_t tensor_forward_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  forward_scratch<T>(scratch, p);
  return scratch.used();
}
template <class T> size_t tensor_input_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  input_scratch<T>(scratch, p);
  return scratch.used();
}
template <class T> size_t tensor_weight_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  WeightScratch<T>(scratch, p);
  return scratch.used();
}

// ------------------------------------------------------------------------------------- launchers

template <class T>
static TensorImage<T> read_x(simt::stream_t stream, const ConvParams& p, const T* x, T* copy) {
  return read_image(stream, p.batch, p.groups, plan_x<T>(p), x, copy, p.group_in(), p.in,
                    p.x_channels_last);
}
template <class T>
static TensorImage<T> read_y(simt::stream_t stream, const ConvParams& p, const T* dy, T* copy) {
  return read_image(stream, p.batch, p.groups, plan_y<T>(p), dy, copy, p.group_out(), p.out, true);
}

/// The product of one grid, whose weights `packing` describes but for its grid.
template <class T>
static void multiply_grid(simt::stream_t stream, const ConvParams& p, const Axis* axes,
                          const int64_t* size, const TensorImage<T>& image,
                          WeightPacking<T> packing, float* parts, Results<T, PixelRows> results) {
  const int64_t pixels = pixels_of(p, axes);
  if (pixels == 0) return;
  const ConvPlan plan = plan_pixels<T>(p, axes, size, image.channels, packing.columns);
  packing.groups = p.groups, packing.depth = plan.channels;
  packing.set_grid(p, axes);
  pack_weights(stream, packing);
  results.m = pixels, results.n = packing.columns;
  results.parts = plan.cut.splits > 1 ? parts : nullptr;
  results.packs = results.packs && results.n % kPiece<T> == 0 && simt::pack_aligned(results.y);
  const PixelOperand<T> left{image, Grid(axes, image.channels), pixels};
  const ConvMatrix<T> right{packing.to, plan.cut.depth, packing.columns * plan.cut.depth};
  plan.is_walked() ? launch_walked_pixels(stream, plan, left, right, results)
                   : launch_pixels(stream, plan, p.groups, left, right, results);
  if (results.parts) finish_parts(stream, plan.cut.splits, pixels, results);
}

template <class T>
void tensor_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& e) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  const PixelScratch<T> at = forward_scratch<T>(scratch, p);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const TensorImage<T> image = read_x(stream, p, x, at.image);
  const int64_t filter = p.group_in() * p.taps();
  const WeightPacking<T> packing{.w = w,
                                 .to = at.weights,
                                 .columns = p.group_out(),
                                 .channels = p.group_in(),
                                 .w_group = p.group_out() * filter,
                                 .w_column = filter,
                                 .w_channel = p.taps()};
  const bool packs = simt::pack_aligned(e.bias) && simt::pack_aligned(e.wide_bias) &&
                     simt::pack_aligned(e.residual) && simt::pack_aligned(e.pre_activation);
  const PixelRows rows(Grid(axes, image.channels), layout_of_image(p.out_channels, p.out, true));
  multiply_grid(stream, p, axes, p.in, image, packing, at.parts,
                {0, 0, 0, y, nullptr, e, packs, rows});
}

template <class T>
void tensor_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  const PixelScratch<T> at = input_scratch<T>(scratch, p);
  const TensorImage<T> image = read_y(stream, p, dy, at.image);
  const int64_t filter = p.group_in() * p.taps();
  const WeightPacking<T> packing{.w = w,
                                 .to = at.weights,
                                 .columns = p.group_in(),
                                 .channels = p.group_out(),
                                 .w_group = p.group_out() * filter,
                                 .w_column = p.taps(),
                                 .w_channel = filter};
  T* const to = p.x_channels_last ? dx : at.dx;
  for_classes(p, [&](const Axis* axes) {
    const PixelRows rows(Grid(axes, image.channels), layout_of_image(p.in_channels, p.in, true));
    multiply_grid(stream, p, axes, p.out, image, packing, at.parts,
                  {0, 0, 0, to, nullptr, Epilogue<T>{}, true, rows});
  });
  if (to != dx) images_to_channels_last(ctx, to, dx, p.batch, p.in_pixels(), p.in_channels);
}

template <class T>
void tensor_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                            void* workspace) {
  const auto stream = stream_of(ctx);
  Scratch scratch(workspace);
  const WeightScratch<T> at(scratch, p);
  const TensorImage<T> left = read_x(stream, p, x, at.x), right = read_y(stream, p, dy, at.dy);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const ConvPlan plan = plan_weight<T>(p);
  const Results<T> results{.m = p.taps() * plan.channels,
                           .n = p.group_out(),
                           .parts = at.parts,
                           .packs = p.group_out() % kPiece<T> == 0};
  const PixelOperand<T> operand{left, Grid(axes, left.channels), plan.cut.depth};
  const ConvMatrix<T> matrix{right.data, right.layout.step[2], right.channels};
  if (!plan.is_walked()) launch_weight(stream, plan, p.groups, operand, matrix, results);
  if constexpr (sizeof(T) == 2) {
    if (plan.is_walked()) launch_walked_weight(stream, plan, operand, matrix, results);
  }
  finish_weight(stream, at.parts, plan.cut.splits, dw, p, plan.channels);
}

#define BRASA_TENSOR_CONV(T)                                                                  \
  template void tensor_forward<T>(Context, const T*, const T*, T*, const ConvParams&,         \
                                  const Epilogue<T>&);                                        \
  template void tensor_backward_input<T>(Context, const T*, const T*, T*, const ConvParams&); \
  template void tensor_backward_weight<T>(Context, const T*, const T*, T*, const ConvParams&, \
                                          void*);                                             \
  template size_t tensor_forward_workspace<T>(const ConvParams&);                             \
  template size_t tensor_input_workspace<T>(const ConvParams&);                               \
  template size_t tensor_weight_workspace<T>(const ConvParams&);
BRASA_TENSOR_CONV(float)
BRASA_TENSOR_CONV(float16)
BRASA_TENSOR_CONV(bfloat16)

}  // namespace brasa::cuda
