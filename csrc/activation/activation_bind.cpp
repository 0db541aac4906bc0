#include "activation/activation.h"
#include "bind/bind.h"

namespace brasa {
namespace {

/// name -> (kind, what the derivative needs, default alpha, default beta)
py::dict activations() {
  py::dict list;
#define BRASA_ENTRY(name, type, needs, alpha, beta)                                             \
  list[#name] = py::make_tuple(int(ActivationKind::name), std::string(1, needs), double(alpha), \
                               double(beta));
  BRASA_ACTIVATIONS(BRASA_ENTRY)
#undef BRASA_ENTRY
  return list;
}

}  // namespace

void bind_activation(py::module_& m) {
  m.def("activations", &activations);
  m.def(
      "activation_forward",
      [](In x, Out y, Activation activation) {
        require_same_dtype(x, y);
        require_same_dense_layout(x, y);
        if (y.data != x.data) require_apart(y, x);
        const Context ctx = make_context(x);
        const ReleaseGil gil(x.size);
        visit_floating(x.dtype, [&]<class T>() {
          device::activation_forward<T>(ctx, x.as<const T>(), y.as<T>(), x.size, activation);
        });
      },
      "x"_a, "y"_a, "activation"_a);
  m.def(
      "activation_backward",
      [](In dy, In v, Out dx, Activation activation) {
        require_same_dtype(dy, v);
        require_same_dtype(dy, dx);
        require_same_dense_layout(dy, v);
        require_same_dense_layout(dy, dx);
        const Context ctx = make_context(dy);
        const ReleaseGil gil(dy.size);
        visit_floating(dy.dtype, [&]<class T>() {
          device::activation_backward<T>(ctx, dy.as<const T>(), v.as<const T>(), dx.as<T>(),
                                         dy.size, activation);
        });
      },
      "dy"_a, "v"_a, "dx"_a, "activation"_a);
}

}  // namespace brasa
