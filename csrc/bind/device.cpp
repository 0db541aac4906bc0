// What the CUDA modules have beside the operators.
#include "bind/bind.h"
#include "core/words.h"

namespace brasa {

/// Writes the bytes of `words`, a NumPy array of 64-bit numbers, to the beginning of `to`.
static void store_words(const py::buffer& words, const Out& to) {
  const py::buffer_info source = words.request();
  BRASA_REQUIRE(source.itemsize == 8 && source.ndim == 1, "64-bit numbers needed");
  BRASA_REQUIRE(source.size <= kMostWords && source.size <= to.size, "too many words");
  require_dtype(to, DType::int64);
  require_c_order(to);
  cuda::store_words(make_context(to), static_cast<const uint64_t*>(source.ptr), int(source.size),
                    to.as<uint64_t>());
}

void bind_device(py::module_& m) {
  m.def("layout", [](const In& x) { return int(layout_of(x)); }, "x"_a);
  m.def(
      "_set_callbacks",
      [](py::object kind, py::object current_stream, py::object allocate,
         py::object current_device) {
        if (current_device.is_none()) current_device = {};
        callbacks() = {std::move(kind), std::move(current_stream), std::move(allocate),
                       std::move(current_device)};
      },
      "kind"_a, "current_stream"_a, "allocate"_a, "current_device"_a);
  m.attr("_MOST_WORDS") = kMostWords;
  m.def("_store_words", &store_words, "words"_a, "to"_a);
  m.def(
      "_set_math_mode",
      [](int mode) {
        BRASA_REQUIRE(mode >= 0 && mode <= int(MathMode::tf32x3), "unknown mode");
        math_mode() = MathMode(mode);
      },
      "mode"_a);
}

}  // namespace brasa
