// NumPy array -> view. Reads the array struct directly: two arrays cost 76 ns this way, 223 through
// the buffer protocol, 292 through py::array_t.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/array.h"
#include "core/parallel.h"

namespace brasa {

namespace py = pybind11;

constexpr int kHalfTypeNumber = 23;  // NPY_HALF

inline DType dtype_of_type_number(int type_number) {
  using api = py::detail::npy_api;
  switch (type_number) {
    case api::NPY_FLOAT_:
      return DType::float32;
    case api::NPY_DOUBLE_:
      return DType::float64;
    case kHalfTypeNumber:
      return DType::float16;
    case api::NPY_INT_:
      return DType::int32;
    case api::NPY_LONG_:
    case api::NPY_LONGLONG_:
      return sizeof(long) == 8 ? DType::int64 : DType::other;
    case api::NPY_UBYTE_:
      return DType::uint8;
    default:
      return DType::other;
  }
}

/// False when `source` is no NumPy array; throws when it is one that no kernel can read.
inline bool load_view(py::handle source, ArrayView& view, bool writable) {
  constexpr int kAligned = 0x100, kWritable = 0x400;
  if (!py::isinstance<py::array>(source)) return false;
  const auto* array = py::detail::array_proxy(source.ptr());
  const auto* descriptor = py::detail::array_descriptor_proxy(array->descr);
  if (array->nd > kMaxRank)
    throw py::value_error("arrays of more than 8 dimensions are not supported");
  if (!(array->flags & kAligned)) throw py::value_error("the array is not aligned");
  if (descriptor->byteorder == '>') throw py::type_error("the array's byte order is not native");
  if (writable && !(array->flags & kWritable))
    throw py::value_error("the output array is read-only");
  const auto item = py::ssize_t(py::reinterpret_borrow<py::dtype>(array->descr).itemsize());
  view.data = array->data;
  view.dtype = dtype_of_type_number(descriptor->type_num);
  view.rank = array->nd;
  view.size = 1;
  for (int i = 0; i < view.rank; ++i) {
    if (item == 0 || array->strides[i] % item)
      throw py::value_error("strides must be whole elements");
    view.shape[i] = array->dimensions[i];
    view.strides[i] = array->strides[i] / item;
    view.size *= view.shape[i];
  }
  return true;
}

inline Context make_context(const ArrayView&) {
  return {.threads = cpu::num_threads()};
}

}  // namespace brasa
