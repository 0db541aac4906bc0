// The calls of convolutions on tensor cores.
#include "conv/conv_few.cuh"
#include "conv/conv_layout.h"
#include "conv/conv_tensor_plan.cuh"
#include "matmul/gemm_finish.cuh"

namespace brasa::cuda {

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
  const bool joined = join_classes<T>(p).count > 0;
  for_classes(p, [&](const Axis* axes) {
    if (joined) return;
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

/// Few channels: forward and the gradient of the weight, where that is planned.
template <class T> struct FewScratch {
  T *image, *weights;
  float* parts;

  FewScratch(Scratch& scratch, const ConvParams& p, const FewChannels& few, int64_t splits)
      : image(scratch.take<T>(few.elements())),
        weights(scratch.take<T>(p.out_channels * few.depth())),
        parts(scratch.take<float>(splits * p.out_channels * few.depth())) {}
};
/// The plan; not walked where the channels are not few.
template <class T> static ConvPlan plan_few_forward(const FewChannels& few) {
  if (!few.used) return {};
  const ConvParams& q = few.over_windows;
  const Axis axes[3] = {forward_axis(q, 0), forward_axis(q, 1), forward_axis(q, 2)};
  return plan_pixels<T>(q, axes, q.in, q.in_channels, q.out_channels);
}
template <class T> static ConvPlan plan_few_weight(const FewChannels& few) {
  if (!plan_few_forward<T>(few).is_walked()) return {};
  const ConvParams& q = few.over_windows;
  return plan_walked_weight<T>(q.in_channels, few.depth(), q.out_channels,
                               q.batch * q.out_pixels());
}

template <class T> size_t tensor_forward_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  const FewChannels few = few_channels<T>(p);
  if (plan_few_forward<T>(few).is_walked()) {
    FewScratch<T>(scratch, p, few, 0);
    return scratch.used();
  }
  forward_scratch<T>(scratch, p);
  return scratch.used();
}
/// Few channels: backward data, where all of that fits.
template <class T> struct FewInputScratch {
  T *weights, *columns;

  FewInputScratch(Scratch& scratch, const ConvParams& p, const FewInputs& few)
      : weights(scratch.take<T>(few.columns * few.taps() * whole(p.out_channels, kLine<T>))),
        columns(scratch.take<T>(pixels_of(p, few.axis) * few.columns)) {}
};
template <class T> static bool joins_few_inputs(const ConvParams& p, const FewInputs& few) {
  return few.used && can_walk<T>(p, few.axis, p.out, p.out_channels);
}

template <class T> size_t tensor_input_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  const FewInputs few = few_inputs<T>(p);
  if (joins_few_inputs<T>(p, few)) {
    FewInputScratch<T>(scratch, p, few);
    return scratch.used();
  }
  input_scratch<T>(scratch, p);
  return scratch.used();
}
template <class T> size_t tensor_weight_workspace(const ConvParams& p) {
  Scratch scratch(nullptr);
  const FewChannels few = few_channels<T>(p);
  if (const ConvPlan plan = plan_few_weight<T>(few); plan.is_walked()) {
    FewScratch<T>(scratch, p, few, plan.cut.splits);
    return scratch.used();
  }
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

/// The product of one grid.
template <class T>
static void multiply_grid(simt::stream_t stream, const ConvParams& p, const ConvPlan& plan,
                          const TensorImage<T>& image, const PackedGrid<T>& weights, float* parts,
                          Results<T, PixelRows> results) {
  if (results.m == 0) return;
  results.parts = plan.cut.splits > 1 ? parts : nullptr;
  results.packs = results.packs && results.n % kPiece<T> == 0 && simt::pack_aligned(results.y);
  const PixelOperand<T> left{image, Grid(weights.axis, image.channels), results.m};
  const ConvMatrix<T> right{weights.to, weights.pitch, results.n * weights.pitch};
  plan.is_walked() ? launch_walked_pixels(stream, plan, left, right, results)
                   : launch_pixels(stream, plan, p.groups, left, right, results);
  if (results.parts) finish_parts(stream, plan.cut.splits, results.m, results);
}

template <class T> static bool takes_packs(const Epilogue<T>& e) {
  return simt::pack_aligned(e.bias) && simt::pack_aligned(e.wide_bias) &&
         simt::pack_aligned(e.residual) && simt::pack_aligned(e.pre_activation);
}

template <class T>
static void few_forward(simt::stream_t stream, const FewScratch<T>& at, const ConvPlan& plan,
                        const FewChannels& few, const T* x, const T* w, T* y, const ConvParams& p,
                        const Epilogue<T>& e) {
  const ConvParams& q = few.over_windows;
  const Axis axes[3] = {forward_axis(q, 0), forward_axis(q, 1), forward_axis(q, 2)};
  fold_image(stream, p, few, x, at.image);
  fold_weights(stream, p, few, w, at.weights);
  const PackedGrid<T> packed{{axes[0], axes[1], axes[2]}, at.weights, q.in_channels, few.depth()};
  const PixelRows rows(Grid(axes, q.in_channels), layout_of_image(p.out_channels, p.out, true));
  multiply_grid(stream, q, plan, {at.image, few.layout(), q.in_channels}, packed, at.parts,
                {pixels_of(q, axes), p.out_channels, 0, y, nullptr, e, takes_packs(e), rows});
}

template <class T>
void tensor_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& e) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  if constexpr (sizeof(T) == 2) {
    const FewChannels few = few_channels<T>(p);
    if (const ConvPlan plan = plan_few_forward<T>(few); plan.is_walked())
      return few_forward(stream, FewScratch<T>(scratch, p, few, 0), plan, few, x, w, y, p, e);
  }
  const PixelScratch<T> at = forward_scratch<T>(scratch, p);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const TensorImage<T> image = read_x(stream, p, x, at.image);
  const int64_t filter = p.group_in() * p.taps(), pixels = pixels_of(p, axes);
  const ConvPlan plan = plan_pixels<T>(p, axes, p.in, image.channels, p.group_out());
  GridPacker<T> packer(stream,
                       {.w = w,
                        .groups = p.groups,
                        .columns = p.group_out(),
                        .channels = p.group_in(),
                        .w_group = p.group_out() * filter,
                        .w_column = filter,
                        .w_channel = p.taps(),
                        .kernel = {p.kernel[0], p.kernel[1], p.kernel[2]}},
                       at.weights);
  const PackedGrid<T> packed = packer.add(axes, plan.channels);
  packer.flush();
  const PixelRows rows(Grid(axes, image.channels), layout_of_image(p.out_channels, p.out, true));
  multiply_grid(stream, p, plan, image, packed, at.parts,
                {pixels, p.group_out(), 0, y, nullptr, e, takes_packs(e), rows});
}

/// What backward data packs, but for the grids.
template <class T> static WeightPacking<T> packing_of_input(const ConvParams& p, const T* w) {
  const int64_t filter = p.group_in() * p.taps();
  return {.w = w,
          .groups = p.groups,
          .columns = p.group_in(),
          .channels = p.group_out(),
          .w_group = p.group_out() * filter,
          .w_column = p.taps(),
          .w_channel = filter,
          .kernel = {p.kernel[0], p.kernel[1], p.kernel[2]}};
}

/// dx of all classes by one launch.
template <class T>
static void multiply_classes(simt::stream_t stream, const ConvParams& p, const ConvClasses& classes,
                             const TensorImage<T>& image, const T* w, T* weights, T* dx) {
  const ConvClass& last = classes.of[classes.count - 1];
  const int64_t depth = whole(image.channels, kLine<T>);
  const int64_t pitch = (last.first_tap + last.taps()) * depth;
  WeightPacking<T> packing = packing_of_input(p, w);
  for (const ConvClass* c = classes.of; c <= &last; ++c)
    packing.grid[packing.count++] = {
        {c->axis[0], c->axis[1], c->axis[2]}, weights + c->first_tap * depth, depth, pitch};
  pack_weights(stream, packing);
  launch_classes(stream, walked_tile(p.batch * p.in_pixels(), p.in_channels), classes, image,
                 p.batch, {weights, pitch, 0}, dx, layout_of_image(p.in_channels, p.in, true),
                 p.in_channels);
}

/// dx class by class.
template <class T>
static void multiply_each_class(simt::stream_t stream, const ConvParams& p,
                                const PixelScratch<T>& at, const TensorImage<T>& image, const T* w,
                                T* dx) {
  const auto plan_class = [&](const Axis* axes) {
    return plan_pixels<T>(p, axes, p.out, image.channels, p.group_in());
  };
  GridPacker<T> packer(stream, packing_of_input(p, w), at.weights);
  for_classes(p, [&](const Axis* axes) { packer.add(axes, plan_class(axes).channels); });
  packer.flush();
  packer.rewind();
  for_classes(p, [&](const Axis* axes) {
    const ConvPlan plan = plan_class(axes);
    const PixelRows rows(Grid(axes, image.channels), layout_of_image(p.in_channels, p.in, true));
    multiply_grid(stream, p, plan, image, packer.place(axes, plan.channels), at.parts,
                  {pixels_of(p, axes), p.group_in(), 0, dx, nullptr, Epilogue<T>{}, true, rows});
  });
}

template <class T>
static void few_input(simt::stream_t stream, const FewInputScratch<T>& at, const FewInputs& few,
                      const T* dy, const T* w, T* dx, const ConvParams& p) {
  const int64_t depth = whole(p.out_channels, kLine<T>), pixels = pixels_of(p, few.axis);
  const int64_t size[3] = {1, few.axis[1].count, few.axis[2].count};
  fold_input_weights(stream, p, few, depth, w, at.weights);
  const PackedGrid<T> packed{
      {few.axis[0], few.axis[1], few.axis[2]}, at.weights, depth, few.taps() * depth};
  const TensorImage<T> image{dy, layout_of_image(p.out_channels, p.out, true), p.out_channels};
  const PixelRows rows(Grid(few.axis, p.out_channels), layout_of_image(few.columns, size, true));
  multiply_grid(stream, p, {ConvTile::wgmma_narrow, depth, {packed.pitch, 1, packed.pitch}}, image,
                packed, nullptr,
                {pixels, few.columns, 0, at.columns, nullptr, Epilogue<T>{}, true, rows});
  unfold_input(stream, p, few, at.columns, dx);
}

template <class T>
void tensor_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  const auto stream = stream_of(ctx);
  Scratch scratch(ctx.workspace);
  if constexpr (sizeof(T) == 2) {
    const FewInputs few = few_inputs<T>(p);
    if (joins_few_inputs<T>(p, few))
      return few_input(stream, FewInputScratch<T>(scratch, p, few), few, dy, w, dx, p);
  }
  const PixelScratch<T> at = input_scratch<T>(scratch, p);
  const TensorImage<T> image = read_y(stream, p, dy, at.image);
  if constexpr (sizeof(T) == 2) {
    const ConvClasses classes = join_classes<T>(p);
    if (classes.count > 0) return multiply_classes(stream, p, classes, image, w, at.weights, dx);
  }
  T* const to = p.x_channels_last ? dx : at.dx;
  multiply_each_class(stream, p, at, image, w, to);
  if (to != dx) images_to_channels_last(ctx, to, dx, p.batch, p.in_pixels(), p.in_channels);
}

template <class T>
static void few_weight(simt::stream_t stream, const FewScratch<T>& at, const ConvPlan& plan,
                       const FewChannels& few, const T* dy, const T* x, T* dw,
                       const ConvParams& p) {
  const ConvParams& q = few.over_windows;
  const Axis axes[3] = {forward_axis(q, 0), forward_axis(q, 1), forward_axis(q, 2)};
  fold_image(stream, p, few, x, at.image);
  const PartSums parts{few.depth(), p.out_channels, 0, at.parts, true};
  const PixelOperand<T> left{
      {at.image, few.layout(), q.in_channels}, Grid(axes, q.in_channels), plan.cut.depth};
  launch_walked_weight(stream, plan, left, {dy, p.out_channels, 0}, parts);
  unfold_weights(stream, p, few, at.parts, plan.cut.splits, dw);
}

template <class T>
void tensor_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                            void* workspace) {
  const auto stream = stream_of(ctx);
  Scratch scratch(workspace);
  if constexpr (sizeof(T) == 2) {
    const FewChannels few = few_channels<T>(p);
    if (const ConvPlan plan = plan_few_weight<T>(few); plan.is_walked())
      return few_weight(stream, FewScratch<T>(scratch, p, few, plan.cut.splits), plan, few, dy, x,
                        dw, p);
  }
  const WeightScratch<T> at(scratch, p);
  const TensorImage<T> left = read_x(stream, p, x, at.x), right = read_y(stream, p, dy, at.dy);
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  const ConvPlan plan = plan_weight<T>(p);
  const PartSums parts{p.taps() * plan.channels, p.group_out(), 0, at.parts,
                       p.group_out() % kPiece<T> == 0};
  const PixelOperand<T> operand{left, Grid(axes, left.channels), plan.cut.depth};
  const ConvMatrix<T> matrix{right.data, right.layout.step[2], right.channels};
  if (!plan.is_walked()) launch_weight(stream, plan, p.groups, operand, matrix, parts);
  if constexpr (sizeof(T) == 2) {
    if (plan.is_walked()) launch_walked_weight(stream, plan, operand, matrix, parts);
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
