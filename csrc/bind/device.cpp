// What the CUDA modules have beside the operators.
#include "bind/bind.h"

namespace brasa {

void bind_device(py::module_& m) {
  m.def("layout", [](const In& x) { return int(layout_of(x)); }, "x"_a);
  m.def(
      "_set_callbacks",
      [](py::object current_stream, py::object allocate) {
        callbacks() = {std::move(current_stream), std::move(allocate)};
      },
      "current_stream"_a, "allocate"_a);
  m.def("_set_tf32", [](bool on) { math_mode() = on ? MathMode::tf32 : MathMode::ieee; }, "on"_a);
}

}  // namespace brasa
