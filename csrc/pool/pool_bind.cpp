#include <pybind11/stl.h>

#include <array>

#include "bind/bind.h"
#include "pool/pool.h"

namespace brasa {
namespace {

/// kernel, stride, padding, dilation
using AxisNumbers = std::array<int64_t, 4>;

PoolAxis axis_of(int64_t in, int64_t out, const AxisNumbers& numbers, bool adaptive) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  const auto [kernel, stride, pad, dilation] = numbers;
  BRASA_REQUIRE(kernel > 0 && stride > 0 && dilation > 0 && pad >= 0, "bad pooling window");
  BRASA_REQUIRE(kernel < kLimit && stride < kLimit && dilation < kLimit, "window too large");
  BRASA_REQUIRE(pad <= checked_multiply(kernel, dilation), "more padding than window");
  checked_add(checked_multiply(out, stride), checked_multiply(kernel, dilation));
  checked_multiply(in + 1, out + 1);
  return {in, out, kernel, stride, pad, dilation, adaptive};
}

/// Are these three channels-last (true) or C-contiguous (false)? Where both hold, either will do;
/// planes of one pixel are better taken as pixels.
bool all_channels_last(const ArrayView& x, const ArrayView& y, const ArrayView& z) {
  if (is_channels_last(x) && is_channels_last(y) && is_channels_last(z) && x.shape[1] != 1)
    return true;
  BRASA_REQUIRE(is_c_order(x) && is_c_order(y) && is_c_order(z),
                "all arrays must be C-contiguous or all channels-last");
  return false;
}

/// Checks an image, its pooled image and the offsets (None: pass y again).
PoolParams pool_params(const ArrayView& x, const ArrayView& y, const ArrayView& offsets,
                       const AxisNumbers& h, const AxisNumbers& w, bool adaptive) {
  require_rank(x, 4);
  require_shape(y, x.shape[0], x.shape[1], y.rank == 4 ? y.shape[2] : -1,
                y.rank == 4 ? y.shape[3] : -1);
  require_same_shape(y, offsets);
  BRASA_REQUIRE(y.size == 0 || x.size > 0, "the image is empty");
  PoolParams p{};
  p.n = x.shape[0];
  p.c = x.shape[1];
  p.h = axis_of(x.shape[2], y.shape[2], h, adaptive);
  p.w = axis_of(x.shape[3], y.shape[3], w, adaptive);
  p.channels_last = all_channels_last(x, y, offsets);
  return p;
}

/// Offsets of windows that an offset can number.
PoolOffsets offsets_of(const ArrayView& offsets, const PoolParams& p) {
  constexpr int64_t kMostTaps = int64_t{1} << 30;
  const int64_t taps = checked_multiply(p.h.kernel, p.w.kernel);
  BRASA_REQUIRE(taps <= kMostTaps, "the window has more than 2^30 elements");
  if (is_none(offsets)) return {nullptr, false};
  const bool wide = offsets.dtype == DType::int32;
  BRASA_REQUIRE(wide || (offsets.dtype == DType::uint8 && taps <= 256),
                "unexpected dtype of offsets");
  return {offsets.data, wide};
}

void max_forward(In x, Out y, OptionalOut offsets, AxisNumbers h, AxisNumbers w, bool adaptive) {
  require_same_dtype(x, y);
  const PoolParams p =
      pool_params(x, y, offsets ? ArrayView(offsets) : ArrayView(y), h, w, adaptive);
  const PoolOffsets kept = offsets_of(offsets, p);
  visit_floating(x.dtype, [&]<class T>() {
    Context ctx = make_context(x);
    const Workspace workspace(ctx, device::pool_workspace<T>(p, ctx.threads));
    const ReleaseGil gil(x.size);
    device::max_pool_forward<T>(ctx, x.as<const T>(), y.as<T>(), kept, p);
  });
}

void max_backward(In dy, In offsets, Out dx, AxisNumbers h, AxisNumbers w, bool adaptive) {
  require_same_dtype(dy, dx);
  const PoolParams p = pool_params(dx, dy, offsets, h, w, adaptive);
  const PoolOffsets kept = offsets_of(offsets, p);
  visit_floating(dy.dtype, [&]<class T>() {
    Context ctx = make_context(dy);
    const Workspace workspace(ctx, device::pool_workspace<T>(p, ctx.threads));
    const ReleaseGil gil(dx.size);
    device::max_pool_backward<T>(ctx, dy.as<const T>(), kept, dx.as<T>(), p);
  });
}

void max_indices(In offsets, Out indices, int64_t image_h, int64_t image_w, AxisNumbers h,
                 AxisNumbers w, bool adaptive) {
  require_rank(offsets, 4);
  require_dtype(indices, DType::int64);
  BRASA_REQUIRE(image_h > 0 && image_w > 0, "the image is empty");
  checked_multiply(image_h, image_w);
  PoolParams p = pool_params(offsets, indices, offsets, h, w, adaptive);
  p.h = axis_of(image_h, offsets.shape[2], h, adaptive);
  p.w = axis_of(image_w, offsets.shape[3], w, adaptive);
  const PoolOffsets kept = offsets_of(offsets, p);
  const Context ctx = make_context(offsets);
  const ReleaseGil gil(offsets.size);
  device::max_pool_indices<int64_t>(ctx, kept, indices.as<int64_t>(), p);
}

void mean_forward(In x, Out y, AxisNumbers h, AxisNumbers w, bool adaptive, bool include_pad,
                  int64_t divisor_override) {
  require_same_dtype(x, y);
  PoolParams p = pool_params(x, y, y, h, w, adaptive);
  p.include_pad = include_pad;
  p.divisor_override = divisor_override;
  visit_floating(x.dtype, [&]<class T>() {
    Context ctx = make_context(x);
    const Workspace workspace(ctx, device::pool_workspace<T>(p, ctx.threads));
    const ReleaseGil gil(x.size);
    device::mean_pool_forward<T>(ctx, x.as<const T>(), y.as<T>(), p);
  });
}

void mean_backward(In dy, Out dx, AxisNumbers h, AxisNumbers w, bool adaptive, bool include_pad,
                   int64_t divisor_override) {
  require_same_dtype(dy, dx);
  PoolParams p = pool_params(dx, dy, dy, h, w, adaptive);
  p.include_pad = include_pad;
  p.divisor_override = divisor_override;
  visit_floating(dy.dtype, [&]<class T>() {
    Context ctx = make_context(dy);
    const Workspace workspace(ctx, device::pool_workspace<T>(p, ctx.threads));
    const ReleaseGil gil(dx.size);
    device::mean_pool_backward<T>(ctx, dy.as<const T>(), dx.as<T>(), p);
  });
}

}  // namespace

void bind_pool(py::module_& m) {
  m.def("max_pool_forward", &max_forward, "x"_a, "y"_a, "offsets"_a, "h"_a, "w"_a, "adaptive"_a);
  m.def("max_pool_backward", &max_backward, "dy"_a, "offsets"_a, "dx"_a, "h"_a, "w"_a,
        "adaptive"_a);
  m.def("max_pool_indices", &max_indices, "offsets"_a, "indices"_a, "image_h"_a, "image_w"_a, "h"_a,
        "w"_a, "adaptive"_a);
  m.def("mean_pool_forward", &mean_forward, "x"_a, "y"_a, "h"_a, "w"_a, "adaptive"_a,
        "include_pad"_a, "divisor_override"_a);
  m.def("mean_pool_backward", &mean_backward, "dy"_a, "dx"_a, "h"_a, "w"_a, "adaptive"_a,
        "include_pad"_a, "divisor_override"_a);
}

}  // namespace brasa
