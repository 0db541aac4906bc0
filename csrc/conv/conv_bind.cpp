#include <array>
#include <cstring>

#include "bind/bind.h"
#include "conv/conv.h"
#include "conv/conv_layout.h"

namespace brasa {
namespace {

/// (stride, padding as (before, after) pairs, dilation, groups), one entry per spatial dimension.
struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

bool is_aligned(const ArrayView& a) {
  return reinterpret_cast<uintptr_t>(a.data) % 16 == 0;
}

bool is_half(DType dtype) {
  return dtype == DType::float16 || dtype == DType::bfloat16;
}

int64_t out_extent(const ConvParams& p, int d) {
  BRASA_REQUIRE(p.stride[d] > 0 && p.dilation[d] > 0, "stride and dilation must be positive");
  BRASA_REQUIRE(p.pad_begin[d] >= 0 && p.pad_end[d] >= 0, "padding must not be negative");
  const int64_t window = checked_add(checked_multiply(p.dilation[d], p.kernel[d] - 1), 1);
  const int64_t padded = checked_add(p.in[d], checked_add(p.pad_begin[d], p.pad_end[d]));
  BRASA_REQUIRE(window <= padded, "the kernel is larger than the padded image");
  return (padded - window) / p.stride[d] + 1;
}

/// The parameters that x, weight and y fit together under; throws when they do not.
ConvParams make_params(const ArrayView& x, const ArrayView& weight, const ArrayView& y,
                       const Geometry& geometry) {
  const int spatial = x.rank - 2;
  BRASA_REQUIRE(spatial >= 1 && spatial <= 3, "images of 1 to 3 dimensions needed");
  require_rank(weight, x.rank);
  require_rank(y, x.rank);
  require_same_dtype(x, weight);
  require_same_dtype(x, y);
  require_c_order(weight);
  BRASA_REQUIRE(is_channels_last(y), "channels-last y needed");
  require_dense(x);
  BRASA_REQUIRE(int(geometry.stride.size()) == spatial &&
                    int(geometry.dilation.size()) == spatial &&
                    int(geometry.padding.size()) == 2 * spatial,
                "one stride, dilation and pair of paddings per dimension needed");
  ConvParams p{x.shape[0], x.shape[1],         weight.shape[0], geometry.groups, {1, 1, 1},
               {1, 1, 1},  {1, 1, 1},          {1, 1, 1},       {1, 1, 1},       {},
               {},         is_channels_last(x)};
  BRASA_REQUIRE(p.groups > 0 && p.in_channels > 0 && p.out_channels > 0,
                "channels and groups must be positive");
  BRASA_REQUIRE(p.in_channels % p.groups == 0 && p.out_channels % p.groups == 0,
                "groups must divide the channels");
  BRASA_REQUIRE(weight.shape[1] == p.group_in(), "the weight does not fit the channels of x");
  BRASA_REQUIRE(y.shape[0] == p.batch && y.shape[1] == p.out_channels,
                "y does not fit x and weight");
  for (int i = 0; i < spatial; ++i) {
    const int d = 3 - spatial + i;
    p.in[d] = x.shape[2 + i];
    p.kernel[d] = weight.shape[2 + i];
    p.out[d] = y.shape[2 + i];
    p.stride[d] = geometry.stride[i];
    p.dilation[d] = geometry.dilation[i];
    p.pad_begin[d] = geometry.padding[2 * i];
    p.pad_end[d] = geometry.padding[2 * i + 1];
    BRASA_REQUIRE(p.in[d] > 0 && p.kernel[d] > 0, "empty images or kernels");
    BRASA_REQUIRE(p.out[d] == out_extent(p, d), "y does not fit x and weight");
  }
  p.aligned = is_aligned(x) && is_aligned(weight) && is_aligned(y);
  return p;
}

#if defined(BRASA_FOR_CUDA)

bool read_packed(ArrayView&, const ArrayView&, int64_t) {
  return false;
}

#else

/// What weights were packed for: the cache line in front of them.
struct PackedHeader {
  int64_t isa, groups, rank, shape[5];
};
constexpr int64_t kPackedHeader = 64;
static_assert(sizeof(PackedHeader) == kPackedHeader);

/// Of weights alone: channels, groups and kernel.
ConvParams weight_params(const PackedHeader& header) {
  ConvParams p{};
  BRASA_REQUIRE(header.rank >= 3 && header.rank <= 5 && header.groups > 0,
                "weights of 1 to 3 spatial dimensions and groups needed");
  p.groups = header.groups;
  p.out_channels = header.shape[0];
  p.in_channels = checked_multiply(header.shape[1], header.groups);
  for (int d = 0; d < 3; ++d) p.kernel[d] = 1;
  for (int64_t i = 2; i < header.rank; ++i) p.kernel[3 - header.rank + i] = header.shape[i];
  int64_t elements = 1024;  // room for the columns of narrow panels
  for (int64_t extent : {p.out_channels, p.in_channels, p.kernel[0], p.kernel[1], p.kernel[2]}) {
    BRASA_REQUIRE(extent > 0, "empty weights");
    elements = checked_multiply(elements, extent);
  }
  BRASA_REQUIRE(p.out_channels % p.groups == 0, "groups must divide the channels");
  return p;
}

int64_t packed_size(const ArrayView& like, const PackedHeader& header) {
  const ConvParams params = weight_params(header);
  int64_t size = 0;
  visit<float, double>(like.dtype, [&]<class T>() {
    size = kPackedHeader / int64_t(sizeof(T)) + cpu::conv_packed_elements<T>(params);
  });
  return size;
}

/// A vector in place of weights is a packed one. Turns it into the weights that it stands for.
bool read_packed(ArrayView& weight, const ArrayView& x, int64_t groups) {
  if (weight.rank != 1) return false;
  require_c_order(weight);
  const int64_t item = weight.dtype == DType::float32 ? 4 : weight.dtype == DType::float64 ? 8 : 0;
  BRASA_REQUIRE(weight.size * item >= kPackedHeader, "no packed weights");
  PackedHeader header;
  std::memcpy(&header, weight.data, sizeof(header));
  BRASA_REQUIRE(header.isa == cpu::isa_index(), "weights were packed for another instruction set");
  BRASA_REQUIRE(header.rank == x.rank && header.groups == groups,
                "weights were packed for other images or groups");
  BRASA_REQUIRE(weight.size == packed_size(weight, header), "no packed weights");
  weight.data = static_cast<char*>(weight.data) + kPackedHeader;
  weight.rank = int(header.rank);
  weight.size = 1;
  for (int i = weight.rank - 1; i >= 0; --i) {
    weight.shape[i] = header.shape[i];
    weight.strides[i] = weight.size;
    weight.size *= header.shape[i];
  }
  return true;
}

PackedHeader packed_header(const ArrayView& weight, int64_t groups) {
  PackedHeader header{cpu::isa_index(), groups, weight.rank, {}};
  BRASA_REQUIRE(weight.rank >= 3 && weight.rank <= 5,
                "weights of 1 to 3 spatial dimensions needed");
  for (int i = 0; i < weight.rank; ++i) header.shape[i] = weight.shape[i];
  return header;
}

void pack(In weight, Out packed, int64_t groups) {
  const PackedHeader header = packed_header(weight, groups);
  const ConvParams params = weight_params(header);
  require_same_dtype(weight, packed);
  require_c_order(weight);
  require_c_order(packed);
  require_shape(packed, packed_size(weight, header));
  std::memcpy(packed.data, &header, sizeof(header));
  const Context ctx = make_context(weight);
  visit<float, double>(weight.dtype, [&]<class T>() {
    const ReleaseGil gil(weight.size);
    cpu::conv_pack<T>(ctx, weight.as<const T>(),
                      packed.as<T>() + kPackedHeader / int64_t(sizeof(T)), params);
  });
}

#endif

/// Multiply-adds / 16, for ReleaseGil.
int64_t work_of(const ConvParams& p) {
  return int64_t(double(p.batch) * double(p.out_pixels()) * double(p.out_channels) *
                 double(p.group_in()) * double(p.taps()) / 16);
}

/// The context of a call. Below some 20 us of work a second thread costs more than it brings.
Context context_for(const ArrayView& a, ConvParams& p) {
  constexpr int64_t kSerialWork = 64 * 1024;  // work_of: a million multiply-adds
  Context ctx = make_context(a);
  p.math_mode = ctx.math_mode;
  if (work_of(p) < kSerialWork) ctx.threads = 1;
  return ctx;
}

void require_like_result(const OptionalIn& a, const ArrayView& y) {
  if (!a) return;
  require_same_dtype(a, y);
  require_same_dense_layout(a, y);
}

void forward(In x, In weight, OptionalIn bias, OptionalIn residual, OptionalOut pre_activation,
             Out y, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups, Activation activation) {
  const bool packed = read_packed(weight, x, groups);
  ConvParams params = make_params(x, weight, y, {stride, padding, dilation, groups});
  params.packed_w = packed;
  const bool wide_bias = bias && bias.dtype != x.dtype;
  if (bias) {
    BRASA_REQUIRE(!wide_bias || (is_half(x.dtype) && bias.dtype == DType::float32),
                  "unexpected dtype of the bias");
    require_shape(bias, params.out_channels);
    require_c_order(bias);
  }
  require_like_result(residual, y);
  if (pre_activation) {
    require_same_dtype(pre_activation, y);
    require_same_dense_layout(pre_activation, y);
  }
  Context ctx = context_for(x, params);
  visit_floating(x.dtype, [&]<class T>() {
    const Workspace workspace(ctx, device::conv_forward_workspace<T>(params, ctx.threads));
    Epilogue<T> epilogue{bias.as<const T>(), residual.as<const T>(), pre_activation.as<T>(),
                         activation};
    if (wide_bias) epilogue.bias = nullptr, epilogue.wide_bias = bias.as<const float>();
    const ReleaseGil gil(work_of(params));
    device::conv_forward<T>(ctx, x.as<const T>(), weight.as<const T>(), y.as<T>(), params,
                            epilogue);
  });
}

void backward_input(In dy, In weight, Out dx, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                    int64_t groups) {
  ConvParams params = make_params(dx, weight, dy, {stride, padding, dilation, groups});
  Context ctx = context_for(dy, params);
  visit_floating(dy.dtype, [&]<class T>() {
    const Workspace workspace(ctx, device::conv_backward_input_workspace<T>(params, ctx.threads));
    const ReleaseGil gil(work_of(params));
    device::conv_backward_input<T>(ctx, dy.as<const T>(), weight.as<const T>(), dx.as<T>(), params);
  });
}

/// `weight` gives the shape alone; dy is multiplied by the activation's derivative at `v`.
void backward_weight(In dy, In x, In weight, OptionalIn v, OptionalOut dweight, OptionalOut dbias,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, int64_t groups, Activation activation) {
  ConvParams params = make_params(x, weight, dy, {stride, padding, dilation, groups});
  if (dweight) {
    require_same_dtype(dweight, dy);
    require_same_shape(dweight, weight);
    require_c_order(dweight);
  }
  const bool wide_bias = dbias && dbias.dtype != dy.dtype;
  if (dbias) {
    BRASA_REQUIRE(!wide_bias || (is_half(dy.dtype) && dbias.dtype == DType::float32 && !v),
                  "unexpected dtype of the bias gradient");
    require_shape(dbias, params.out_channels);
    require_c_order(dbias);
  }
  require_like_result(v, dy);
  BRASA_REQUIRE(bool(v) == (activation.kind != ActivationKind::none),
                "an activation and v needed, or neither");
  Context ctx = context_for(dy, params);
#if defined(BRASA_FOR_CUDA)
  if (wide_bias) {
    visit<float16, bfloat16>(dy.dtype, [&]<class T>() {
      const Workspace workspace(ctx, device::conv_wide_bias_workspace<T>(params));
      device::conv_wide_bias<T>(ctx, dy.as<const T>(), dbias.as<float>(), params);
    });
  }
#endif
  visit_floating(dy.dtype, [&]<class T>() {
    const Workspace workspace(
        ctx, device::conv_backward_weight_workspace<T>(params, bool(v), ctx.threads));
    const ReleaseGil gil(work_of(params));
    device::conv_backward_weight<T>(ctx, dy.as<const T>(), x.as<const T>(), dweight.as<T>(),
                                    wide_bias ? nullptr : dbias.as<T>(), params,
                                    Slope<T>{v.as<const T>(), activation});
  });
}

void to_channels_last(In x, Out y) {
  require_same_dtype(x, y);
  require_same_shape(x, y);
  require_c_order(x);
  BRASA_REQUIRE(x.rank >= 3 && is_channels_last(y), "images and a channels-last y needed");
  const int64_t batch = x.shape[0], channels = x.shape[1];
  if (x.size == 0) return;
  const Context ctx = make_context(x);
  visit_floating(x.dtype, [&]<class T>() {
    const ReleaseGil gil(x.size);
    device::images_to_channels_last<T>(ctx, x.as<const T>(), y.as<T>(), batch, channels,
                                       x.size / (batch * channels));
  });
}

}  // namespace

void bind_conv(py::module_& m) {
#if !defined(BRASA_FOR_CUDA)
  m.def(
      "_conv_packed_size",
      [](In weight, int64_t groups) { return packed_size(weight, packed_header(weight, groups)); },
      "weight"_a, "groups"_a);
  m.def("_conv_pack", &pack, "weight"_a, "packed"_a, "groups"_a);
#endif
  m.def("images_to_channels_last", &to_channels_last, "x"_a, "y"_a);
  m.def("conv_forward", &forward, "x"_a, "weight"_a, "bias"_a, "residual"_a, "pre_activation"_a,
        "y"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "activation"_a);
  m.def("conv_backward_input", &backward_input, "dy"_a, "weight"_a, "dx"_a, "stride"_a, "padding"_a,
        "dilation"_a, "groups"_a);
  m.def("conv_backward_weight", &backward_weight, "dy"_a, "x"_a, "weight"_a, "v"_a, "dweight"_a,
        "dbias"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "activation"_a);
}

}  // namespace brasa
