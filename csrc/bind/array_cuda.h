// An array on a GPU -> view, and the current stream.
//
// An array of the registered kind (CuPy's) is read by its attributes: five of them cost a fifth of
// __cuda_array_interface__, a dict that is built anew at each look. Any other object needs that.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "core/array.h"
#include "core/context.h"

namespace brasa {

namespace py = pybind11;

/// Set once by brasa._backend: what the array library's current stream is, and how it allocates.
struct Callbacks {
  py::object kind;            ///< the arrays' type: with data.ptr, shape, strides and dtype
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

/// The dtype of an array and the bytes of an item, by NumPy's dtype object.
inline std::pair<DType, int64_t> known_dtype(const py::object& dtype) {
  struct Known {
    std::atomic<PyObject*> object{nullptr};
    DType dtype;
    int64_t item;
  };
  static Known known[8];  // the objects are NumPy's singletons; none is given back
  static std::atomic<int> used{0};
  for (Known& k : known) {
    if (k.object.load(std::memory_order_acquire) == dtype.ptr()) return {k.dtype, k.item};
  }
  const auto typestr = dtype.attr("str").cast<std::string>();
  if (typestr[0] == '>') throw py::type_error("the array's byte order is not native");
  const auto item = dtype.attr("itemsize").cast<int64_t>();
  DType found = dtype_of_typestr(typestr);
  if (item == 2 && found == DType::other && is_bfloat16(dtype)) found = DType::bfloat16;
  if (found != DType::other && used.load() < 8) {
    const int mine = used.fetch_add(1);
    if (mine < 8) {
      known[mine].dtype = found, known[mine].item = item;
      known[mine].object.store(dtype.inc_ref().ptr(), std::memory_order_release);
    }
  }
  return {found, item};
}

inline py::object attribute(py::handle object, PyObject* name) {
  PyObject* const value = PyObject_GetAttr(object.ptr(), name);
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

inline void load_registered(py::handle source, ArrayView& view) {
  static PyObject* const kData = PyUnicode_InternFromString("data");
  static PyObject* const kPtr = PyUnicode_InternFromString("ptr");
  static PyObject* const kShape = PyUnicode_InternFromString("shape");
  static PyObject* const kStrides = PyUnicode_InternFromString("strides");
  static PyObject* const kDtype = PyUnicode_InternFromString("dtype");
  const py::object shape = attribute(source, kShape), strides = attribute(source, kStrides);
  if (!PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr()))
    throw py::type_error("an array's shape and strides must be tuples");
  view.rank = int(PyTuple_GET_SIZE(shape.ptr()));
  if (view.rank > kMaxRank || PyTuple_GET_SIZE(strides.ptr()) != view.rank)
    throw py::value_error("arrays of more than 8 dimensions are not supported");
  const auto [dtype, item] = known_dtype(attribute(source, kDtype));
  view.dtype = dtype;
  view.size = 1;
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
    const int64_t stride = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
    if (item == 0 || stride % item) throw py::value_error("strides must be whole elements");
    view.strides[i] = stride / item;
    view.size *= view.shape[i];
  }
  const py::object pointer = attribute(attribute(source, kData), kPtr);
  view.data = PyLong_AsVoidPtr(pointer.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
}

inline bool load_view(py::handle source, ArrayView& view, bool writable) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(source.ptr())) == callbacks().kind.ptr()) {
    require_current_device(source);
    load_registered(source, view);
    return true;
  }
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
