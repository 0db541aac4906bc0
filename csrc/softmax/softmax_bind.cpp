#include "bind/bind.h"
#include "softmax/softmax.h"

namespace brasa {
namespace {

/// The dimensions around `axis` as they lie in memory: channels-last arrays keep the channels
/// innermost.
AxisShape axis_shape(const ArrayView& x, int axis) {
  BRASA_REQUIRE(axis >= 0 && axis < x.rank, "axis is out of range");
  int order[kMaxRank] = {0, 1, 2, 3, 4, 5, 6, 7};
  if (is_channels_last(x)) {
    for (int i = 2; i < x.rank; ++i) order[i - 1] = i;
    order[x.rank - 1] = 1;
  }
  AxisShape shape{1, 1, 1};
  bool before = true;
  for (int i = 0; i < x.rank; ++i) {
    const int64_t extent = x.shape[order[i]];
    if (order[i] == axis) {
      shape.n = extent;
      before = false;
    } else {
      (before ? shape.outer : shape.inner) *= extent;
    }
  }
  return shape;
}

}  // namespace

#define BRASA_BIND_FORWARD(name)                                                                   \
  m.def(                                                                                           \
      #name,                                                                                       \
      [](In x, Out y, int axis) {                                                                  \
        require_same_dtype(x, y);                                                                  \
        require_same_dense_layout(x, y);                                                           \
        const AxisShape shape = axis_shape(x, axis);                                               \
        const Context ctx = make_context(x);                                                       \
        const ReleaseGil gil(x.size);                                                              \
        visit_floating(                                                                            \
            x.dtype, [&]<class T>() { device::name<T>(ctx, x.as<const T>(), y.as<T>(), shape); }); \
      },                                                                                           \
      "x"_a, "y"_a, "axis"_a);

#define BRASA_BIND_BACKWARD(name)                                                     \
  m.def(                                                                              \
      #name,                                                                          \
      [](In dy, In y, Out dx, int axis) {                                             \
        require_same_dtype(dy, y);                                                    \
        require_same_dtype(dy, dx);                                                   \
        require_same_dense_layout(y, dy);                                             \
        require_same_dense_layout(y, dx);                                             \
        const AxisShape shape = axis_shape(y, axis);                                  \
        const Context ctx = make_context(y);                                          \
        const ReleaseGil gil(y.size);                                                 \
        visit_floating(y.dtype, [&]<class T>() {                                      \
          device::name<T>(ctx, dy.as<const T>(), y.as<const T>(), dx.as<T>(), shape); \
        });                                                                           \
      },                                                                              \
      "dy"_a, "y"_a, "dx"_a, "axis"_a);

void bind_softmax(py::module_& m) {
  BRASA_BIND_FORWARD(softmax_forward)
  BRASA_BIND_FORWARD(log_softmax_forward)
  BRASA_BIND_BACKWARD(softmax_backward)
  BRASA_BIND_BACKWARD(log_softmax_backward)
}

}  // namespace brasa
