#include "bind/bind.h"
#include "dropout/dropout.h"

namespace brasa {

void bind_dropout(py::module_& m) {
  m.def(
      "dropout_forward",
      [](In x, Out y, double p, Word seed, Word offset) {
        require_same_dtype(x, y);
        require_same_dense_layout(x, y);
        BRASA_REQUIRE(p >= 0 && p <= 1, "p is no probability");
        const Context ctx = make_context(x);
        const ReleaseGil gil(x.size);
        visit_floating(x.dtype, [&]<class T>() {
          device::dropout_forward<T>(ctx, x.as<const T>(), y.as<T>(), x.size,
                                     DropoutParams{p, seed, offset});
        });
      },
      "x"_a, "y"_a, "p"_a, "seed"_a, "offset"_a);
}

}  // namespace brasa
