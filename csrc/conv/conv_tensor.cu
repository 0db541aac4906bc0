// How convolutions on tensor cores are planned, and the calls of their kernels.
#include "conv/conv_layout.h"
#include "conv/conv_tensor.cuh"
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
  return simt::ceil_div<int64_t>(rows, tile == ConvTile::small ? 64 : 128) *
         simt::ceil_div<int64_t>(columns, tile == ConvTile::large ? 128 : 64);
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

template <class T>
static ConvPlan plan_pixels(int64_t pixels, int64_t columns, int64_t depth, int64_t groups) {
  const ConvTile tile = plan_tile(pixels, columns, groups);
  const int64_t tiles = groups > 1 ? kMultiprocessors * 2 : tiles_of(tile, pixels, columns);
  return {tile, cut_depth<T>(depth, tiles, 4)};
}

/// As many parts as fill a GPU twice.
template <class T> static ConvPlan plan_weight(const ConvParams& p) {
  const int64_t rows = p.taps() * plan_x<T>(p).channels, columns = p.group_out();
  const ConvTile tile = rows >= 128 && columns > 64 ? ConvTile::large
                        : rows >= 128               ? ConvTile::tall
                                                    : ConvTile::small;
  return {tile,
          cut_depth<T>(p.batch * p.out_pixels(), tiles_of(tile, rows, columns) * p.groups, 8)};
}
static int64_t parts_of_weight(const ConvParams& p, const ConvPlan& plan, int64_t channels) {
  return plan.cut.splits * p.groups * p.taps() * channels * p.group_out();
}

static int64_t pixels_of(const ConvParams& p, const Axis* axes) {
  return p.batch * axes[0].count * axes[1].count * axes[2].count;
}
static int64_t taps_of(const Axis* axes) {
  return axes[0].taps * axes[1].taps * axes[2].taps;
}

template <class T>
static int64_t parts_of_pixels(const ConvParams& p, const Axis* axes, int64_t channels,
                               int64_t columns) {
  const int64_t pixels = pixels_of(p, axes);
  const auto plan = plan_pixels<T>(pixels, columns, taps_of(axes) * channels, p.groups);
  return plan.cut.splits > 1 ? plan.cut.splits * pixels * columns : 0;
}

/// What forward or backward data keeps in the workspace.
template <class T> struct PixelScratch {
  T *image, *weights, *dx;
  float* parts;

  PixelScratch(Scratch& scratch, const ConvParams& p, const ImagePlan& plan, int64_t columns,
               int64_t parts_, int64_t dx_)
      : image(scratch.take<T>(plan.elements)),
        weights(scratch.take<T>(p.groups * columns * p.taps() * plan.channels)),
        dx(scratch.take<T>(dx_)),
        parts(scratch.take<float>(parts_)) {}
};

template <class T> static PixelScratch<T> forward_scratch(Scratch& scratch, const ConvParams& p) {
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const ImagePlan image = plan_x<T>(p);
  const int64_t parts = parts_of_pixels<T>(p, axes, image.channels, p.group_out());
  return {scratch, p, image, p.group_out(), parts, 0};
}

template <class T> static PixelScratch<T> input_scratch(Scratch& scratch, const ConvParams& p) {
  const ImagePlan image = plan_y<T>(p);
  int64_t parts = 0;
  for_classes(p, [&](const Axis* axes) {
    parts = larger(parts, parts_of_pixels<T>(p, axes, image.channels, p.group_in()));
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
        parts(scratch.take<float>(parts_of_weight(p, plan_weight<T>(p), plan_x<T>(p).channels))) {}
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
                          const TensorImage<T>& image, WeightPacking<T> packing, float* parts,
                          Results<T, PixelRows> results) {
  const int64_t pixels = pixels_of(p, axes), depth = taps_of(axes) * image.channels;
  if (pixels == 0) return;
  packing.groups = p.groups, packing.depth = image.channels;
  packing.set_grid(p, axes);
  pack_weights(stream, packing);
  const auto plan = plan_pixels<T>(pixels, packing.columns, depth, p.groups);
  results.m = pixels, results.n = packing.columns;
  results.parts = plan.cut.splits > 1 ? parts : nullptr;
  results.packs = results.packs && results.n % kPiece<T> == 0 && simt::pack_aligned(results.y);
  launch_pixels<T>(stream, plan, p.groups, {image, Grid(axes, image.channels), pixels},
                   {packing.to, depth, packing.columns * depth}, results);
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
  multiply_grid(stream, p, axes, image, packing, at.parts, {0, 0, 0, y, nullptr, e, packs, rows});
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
    multiply_grid(stream, p, axes, image, packing, at.parts,
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
  const Results<T> results{.m = p.taps() * left.channels,
                           .n = p.group_out(),
                           .parts = at.parts,
                           .packs = p.group_out() % kPiece<T> == 0};
  launch_weight<T>(stream, plan, p.groups, {left, Grid(axes, left.channels), plan.cut.depth},
                   {right.data, right.layout.step[2], right.channels}, results);
  finish_weight(stream, at.parts, plan.cut.splits, dw, p, left.channels);
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
