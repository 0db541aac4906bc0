#include "bind/bind.h"
#include "elementary/elementary.h"

namespace brasa {
namespace {

template <ElementaryFunction kFunction> void elementary(In x, Out y) {
  require_same_dtype(x, y);
  require_same_dense_layout(x, y);
  const Context ctx = make_context(x);
  const ReleaseGil gil(x.size);
  visit_floating(x.dtype, [&]<class T>() {
    device::elementary_forward<T>(ctx, x.as<const T>(), y.as<T>(), x.size, kFunction);
  });
}

void add(In x, In y, Out sum) {
  require_same_dtype(x, y);
  require_same_dtype(x, sum);
  require_same_dense_layout(x, y);
  require_same_dense_layout(x, sum);
  const Context ctx = make_context(x);
  const ReleaseGil gil(x.size);
  visit_floating(x.dtype, [&]<class T>() {
    device::add<T>(ctx, x.as<const T>(), y.as<const T>(), sum.as<T>(), x.size);
  });
}

#if defined(BRASA_FOR_CUDA)
void cast(In x, Out y) {
  require_same_dense_layout(x, y);
  const Context ctx = make_context(x);
  const ReleaseGil gil(x.size);
  if (x.dtype == DType::float32) {
    visit<float16, bfloat16>(
        y.dtype, [&]<class T>() { device::cast(ctx, x.as<const float>(), y.as<T>(), x.size); });
  } else {
    require_dtype(y, DType::float32);
    visit<float16, bfloat16>(
        x.dtype, [&]<class T>() { device::cast(ctx, x.as<const T>(), y.as<float>(), x.size); });
  }
}
#endif

}  // namespace

void bind_elementary(py::module_& m) {
#define BRASA_DEF(name, function) \
  m.def(#name "_forward", &elementary<ElementaryFunction::name>, "x"_a, "y"_a);
  BRASA_ELEMENTARY(BRASA_DEF)
#undef BRASA_DEF
  m.def("add", &add, "x"_a, "y"_a, "sum"_a);
#if defined(BRASA_FOR_CUDA)
  m.def("cast", &cast, "x"_a, "y"_a);  // the CPU has no kernels of 16 bits
#endif
}

}  // namespace brasa
