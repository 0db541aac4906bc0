// An object with __cuda_array_interface__ (a CuPy array) -> view, and the current stream.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstring>
#include <string>

#include "core/array.h"
#include "core/context.h"

namespace brasa {

namespace py = pybind11;

/// Set once by brasa._backend: what the array library's current stream is, and how it allocates.
struct Callbacks {
  py::object current_stream;  ///< () -> int
  py::object allocate;        ///< (bytes) -> object with .ptr, freed in stream order when it dies
  py::object current_device;  ///< () -> int, where there are several; else null
};
inline Callbacks& callbacks() {
  static Callbacks* the_callbacks = new Callbacks;  // never destroyed: Python may be gone by then
  return *the_callbacks;
}

inline DType dtype_of_typestr(const std::string& text) {
  if (text == "<f4") return DType::float32;
  if (text == "<f8") return DType::float64;
  if (text == "<f2") return DType::float16;
  if (text == "<i4") return DType::int32;
  if (text == "<i8") return DType::int64;
  if (text == "|u1") return DType::uint8;
  return DType::other;
}

/// The interface has no name for bfloat16: it calls it two bytes. The dtype has.
inline bool is_bfloat16(const py::object& dtype) {
  return py::str(dtype.attr("name")).cast<std::string>() == "bfloat16";
}

/// Kernels run on the current device and see its memory alone.
inline void require_current_device(py::handle array) {
  const py::object& current = callbacks().current_device;
  if (!current) return;
  const int there = array.attr("device").attr("id").cast<int>(), here = current().cast<int>();
  if (there == here) return;
  const std::string number = std::to_string(there);
  throw py::value_error("an array is on cuda:" + number +
                        ", and the current device is cuda:" + std::to_string(here) +
                        ": move it, or compute within the block of "
                        "cupy.cuda.Device(" +
                        number + ")");
}

inline bool load_view(py::handle source, ArrayView& view, bool writable) {
  if (!py::hasattr(source, "__cuda_array_interface__")) return false;
  require_current_device(source);
  const py::dict interface = source.attr("__cuda_array_interface__");
  const auto data = interface["data"].cast<py::tuple>();
  const auto shape = interface["shape"].cast<py::tuple>();
  const auto typestr = interface["typestr"].cast<std::string>();
  if (shape.size() > kMaxRank)
    throw py::value_error("arrays of more than 8 dimensions are not supported");
  if (typestr[0] == '>') throw py::type_error("the array's byte order is not native");
  if (writable && data[1].cast<bool>()) throw py::value_error("the output array is read-only");
  const int64_t item = std::stoll(typestr.substr(2));
  view.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  view.dtype = dtype_of_typestr(typestr);
  if (item == 2 && view.dtype == DType::other && is_bfloat16(source.attr("dtype")))
    view.dtype = DType::bfloat16;
  view.rank = int(shape.size());
  view.size = 1;
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = shape[i].cast<int64_t>();
    view.size *= view.shape[i];
  }
  const bool strided = interface.contains("strides") && !interface["strides"].is_none();
  int64_t dense = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.strides[i] =
        strided ? interface["strides"].cast<py::tuple>()[i].cast<int64_t>() : dense * item;
    if (view.strides[i] % item) throw py::value_error("strides must be whole elements");
    view.strides[i] /= item;
    dense *= view.shape[i];
  }
  return true;
}

/// Set by brasa.set_matmul_precision.
inline std::atomic<MathMode>& math_mode() {
  static std::atomic<MathMode> mode{MathMode::ieee};
  return mode;
}

inline Context make_context(const ArrayView& like) {
  const py::object& stream = callbacks().current_stream;
  const uintptr_t address = stream ? stream().cast<uintptr_t>() : 0;
  return {.device = like.device,
          .threads = 1,
          .stream = reinterpret_cast<void*>(address),
          .math_mode = math_mode()};
}

}  // namespace brasa
