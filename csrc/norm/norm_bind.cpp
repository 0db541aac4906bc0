#include "bind/bind.h"
#include "norm/norm.h"

namespace brasa {
namespace {

template <class T> T* pointer(const ArrayView& a) {
  return is_none(a) ? nullptr : a.as<T>();
}

/// One number per channel (or per normalised element), in C order; float32 beside 16 bits.
void require_vector(const ArrayView& a, int64_t size, const ArrayView& like) {
  if (is_none(a)) return;
  require_dtype(a, wide_of(like.dtype));
  BRASA_REQUIRE(a.size == size && is_c_order(a), "unexpected vector " + shape_text(a));
}

void require_like(const ArrayView& x, const ArrayView& other) {
  if (is_none(other)) return;
  require_same_dtype(x, other);
  require_same_shape(x, other);
}

/// Checks arrays of the shape of x, which lie as x does; None is passed over.
template <class... Views>
BatchNormParams batch_params(const ArrayView& x, bool training, const Views&... others) {
  BRASA_REQUIRE(x.rank >= 2 && x.rank <= 5, "rank 2 to 5 needed, got " + shape_text(x));
  (require_like(x, others), ...);
  const auto all = [&](auto&& lies) {
    return lies(x) && ((is_none(others) || lies(others)) && ...);
  };
  const bool c_order = all(is_c_order), channels_last = x.rank == 2 || all(is_channels_last);
  BRASA_REQUIRE(c_order || (channels_last && x.rank > 2),
                "all arrays must be C-contiguous or all channels-last");
  BatchNormParams p{};
  p.n = x.shape[0];
  p.c = x.shape[1];
  p.s = 1;
  for (int i = 2; i < x.rank; ++i) p.s *= x.shape[i];
  p.channels_last = channels_last && (p.c > 1 || !c_order);
  p.training = training;
  return p;
}

void batch_forward(In x, OptionalIn weight, OptionalIn bias, OptionalIn residual,
                   OptionalOut running_mean, OptionalOut running_var, Out mean, Out rstd,
                   OptionalOut pre_activation, Out y, bool training, double momentum, double eps,
                   Activation activation) {
  BatchNormParams p = batch_params(x, training, residual, pre_activation, y);
  p.momentum = momentum;
  p.eps = eps;
  p.activation = activation;
  for (const ArrayView* v :
       {static_cast<const ArrayView*>(&weight), static_cast<const ArrayView*>(&bias),
        static_cast<const ArrayView*>(&running_mean), static_cast<const ArrayView*>(&running_var),
        static_cast<const ArrayView*>(&mean), static_cast<const ArrayView*>(&rstd)})
    require_vector(*v, p.c, x);
  BRASA_REQUIRE(is_none(running_mean) == is_none(running_var), "both running statistics or none");
  BRASA_REQUIRE(training || running_mean, "statistics are missing");
  visit_floating(x.dtype, [&]<class T>() {
    Context ctx = make_context(x);
    const Workspace workspace(ctx, device::batch_norm_workspace<T>(p));
    const ReleaseGil gil(x.size);
    device::batch_norm_forward<T>(
        ctx,
        BatchNormForward<T>{.x = x.as<const T>(),
                            .residual = pointer<const T>(residual),
                            .weight = pointer<const Wide<T>>(weight),
                            .bias = pointer<const Wide<T>>(bias),
                            .running_mean = pointer<Wide<T>>(running_mean),
                            .running_var = pointer<Wide<T>>(running_var),
                            .mean = mean.as<Wide<T>>(),
                            .rstd = rstd.as<Wide<T>>(),
                            .pre_activation = pointer<T>(pre_activation),
                            .y = y.as<T>()},
        p);
  });
}

void batch_backward(In dy, In x, OptionalIn weight, In mean, In rstd, OptionalIn relu_bias,
                    OptionalOut dx, OptionalOut dweight, OptionalOut dbias, bool training) {
  const BatchNormParams p = batch_params(x, training, dy, dx);
  for (const ArrayView* v :
       {static_cast<const ArrayView*>(&weight), static_cast<const ArrayView*>(&mean),
        static_cast<const ArrayView*>(&rstd), static_cast<const ArrayView*>(&relu_bias),
        static_cast<const ArrayView*>(&dweight), static_cast<const ArrayView*>(&dbias)})
    require_vector(*v, p.c, x);
  visit_floating(x.dtype, [&]<class T>() {
    Context ctx = make_context(x);
    const Workspace workspace(ctx, device::batch_norm_workspace<T>(p));
    const ReleaseGil gil(x.size);
    device::batch_norm_backward<T>(
        ctx,
        BatchNormBackward<T>{.dy = dy.as<const T>(),
                             .x = x.as<const T>(),
                             .weight = pointer<const Wide<T>>(weight),
                             .mean = mean.as<const Wide<T>>(),
                             .rstd = rstd.as<const Wide<T>>(),
                             .relu_bias = pointer<const Wide<T>>(relu_bias),
                             .dx = pointer<T>(dx),
                             .dweight = pointer<Wide<T>>(dweight),
                             .dbias = pointer<Wide<T>>(dbias)},
        p);
  });
}

/// x as (rows, width): its last `normalized_ndim` dimensions are one row.
template <class... Views>
LayerNormParams layer_params(const ArrayView& x, int normalized_ndim, const Views&... others) {
  BRASA_REQUIRE(normalized_ndim >= 1 && normalized_ndim <= x.rank, "bad number of dimensions");
  (require_like(x, others), ...);
  BRASA_REQUIRE(is_c_order(x) && ((is_none(others) || is_c_order(others)) && ...),
                "C-contiguous arrays needed");
  LayerNormParams p{.rows = 1, .width = 1};
  for (int i = 0; i < x.rank; ++i) (i < x.rank - normalized_ndim ? p.rows : p.width) *= x.shape[i];
  return p;
}

void layer_forward(In x, OptionalIn weight, OptionalIn bias, OptionalIn residual, Out mean,
                   Out rstd, OptionalOut pre_activation, Out y, int normalized_ndim, double eps,
                   Activation activation) {
  LayerNormParams p = layer_params(x, normalized_ndim, residual, pre_activation, y);
  p.eps = eps;
  p.activation = activation;
  require_vector(weight, p.width, x);
  require_vector(bias, p.width, x);
  require_vector(mean, p.rows, x);
  require_vector(rstd, p.rows, x);
  visit_floating(x.dtype, [&]<class T>() {
    const Context ctx = make_context(x);
    const ReleaseGil gil(x.size);
    device::layer_norm_forward<T>(ctx,
                                  LayerNormForward<T>{.x = x.as<const T>(),
                                                      .residual = pointer<const T>(residual),
                                                      .weight = pointer<const Wide<T>>(weight),
                                                      .bias = pointer<const Wide<T>>(bias),
                                                      .mean = mean.as<Wide<T>>(),
                                                      .rstd = rstd.as<Wide<T>>(),
                                                      .pre_activation = pointer<T>(pre_activation),
                                                      .y = y.as<T>()},
                                  p);
  });
}

void layer_backward(In dy, In x, OptionalIn weight, In mean, In rstd, OptionalOut dx,
                    OptionalOut dweight, OptionalOut dbias, int normalized_ndim) {
  const LayerNormParams p = layer_params(x, normalized_ndim, dy, dx);
  require_vector(weight, p.width, x);
  require_vector(mean, p.rows, x);
  require_vector(rstd, p.rows, x);
  require_vector(dweight, p.width, x);
  require_vector(dbias, p.width, x);
  visit_floating(x.dtype, [&]<class T>() {
    Context ctx = make_context(x);
    const Workspace workspace(ctx, device::layer_norm_workspace<T>(p));
    const ReleaseGil gil(x.size);
    device::layer_norm_backward<T>(ctx,
                                   LayerNormBackward<T>{.dy = dy.as<const T>(),
                                                        .x = x.as<const T>(),
                                                        .weight = pointer<const Wide<T>>(weight),
                                                        .mean = mean.as<const Wide<T>>(),
                                                        .rstd = rstd.as<const Wide<T>>(),
                                                        .dx = pointer<T>(dx),
                                                        .dweight = pointer<Wide<T>>(dweight),
                                                        .dbias = pointer<Wide<T>>(dbias)},
                                   p);
  });
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("batch_norm_forward", &batch_forward, "x"_a, "weight"_a, "bias"_a, "residual"_a,
        "running_mean"_a, "running_var"_a, "mean"_a, "rstd"_a, "pre_activation"_a, "y"_a,
        "training"_a, "momentum"_a, "eps"_a, "activation"_a);
  m.def("batch_norm_backward", &batch_backward, "dy"_a, "x"_a, "weight"_a, "mean"_a, "rstd"_a,
        "relu_bias"_a, "dx"_a, "dweight"_a, "dbias"_a, "training"_a);
  m.def("layer_norm_forward", &layer_forward, "x"_a, "weight"_a, "bias"_a, "residual"_a, "mean"_a,
        "rstd"_a, "pre_activation"_a, "y"_a, "normalized_ndim"_a, "eps"_a, "activation"_a);
  m.def("layer_norm_backward", &layer_backward, "dy"_a, "x"_a, "weight"_a, "mean"_a, "rstd"_a,
        "dx"_a, "dweight"_a, "dbias"_a, "normalized_ndim"_a);
}

}  // namespace brasa
