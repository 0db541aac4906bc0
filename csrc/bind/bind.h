// What every <family>_bind.cpp includes. The file is compiled once for each module: `device` is
// brasa::cpu in _cpu and brasa::cuda in _cuda and in the emulator's modules.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "core/activations.h"
#include "core/array.h"
#include "core/check.h"
#include "core/context.h"

#if defined(BRASA_FOR_CUDA)
#include "bind/array_cuda.h"
#else
#include "bind/array_cpu.h"
#include "core/memory.h"
#endif

namespace brasa {

namespace py = pybind11;
using namespace py::literals;

#if defined(BRASA_FOR_CUDA)
namespace cuda {}
namespace device = cuda;
#else
namespace cpu {}
namespace device = cpu;
#endif

/// Releases the GIL for work worth it: below about 10 us of kernel time the release costs more than
/// it gives. `work` is a rough count of elements, or of multiply-adds / 16.
class ReleaseGil {
 public:
  explicit ReleaseGil(int64_t work) {
    constexpr int64_t kWorthIt = 32 * 1024;
    if (work >= kWorthIt) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};

/// Scratch memory for one kernel call, put into the context. Make it while the GIL is held.
class Workspace {
 public:
  Workspace(Context& context, size_t bytes) {
    if (bytes == 0) return;
#if defined(BRASA_FOR_CUDA)
    BRASA_REQUIRE(callbacks().allocate, "no CUDA allocator is registered");
    owner_ = callbacks().allocate(bytes);
    context.workspace = reinterpret_cast<void*>(owner_.attr("ptr").cast<uintptr_t>());
#else
    context.workspace = cpu::thread_scratch(bytes);
#endif
    context.workspace_bytes = bytes;
  }

 private:
  py::object owner_;
};

/// visit() for the floating dtypes of this module: the 16-bit ones are CUDA's.
template <class F> inline void visit_floating(DType dtype, const F& f) {
#if defined(BRASA_FOR_CUDA)
  visit<float, double, float16, bfloat16>(dtype, f);
#else
  visit<float, double>(dtype, f);
#endif
}

/// Is `a` the absent array (None)?
inline bool is_none(const ArrayView& a) {
  return a.rank < 0;
}

}  // namespace brasa

namespace pybind11::detail {

template <class View, bool kWritable, bool kOptional> struct view_caster {
  PYBIND11_TYPE_CASTER(View, const_name("array"));
  bool load(handle source, bool) {
    if (kOptional && source.is_none()) {
      value.rank = -1;
      return true;
    }
    return brasa::load_view(source, value, kWritable);
  }
};
template <> struct type_caster<brasa::In> : view_caster<brasa::In, false, false> {};
template <> struct type_caster<brasa::Out> : view_caster<brasa::Out, true, false> {};
template <> struct type_caster<brasa::OptionalIn> : view_caster<brasa::OptionalIn, false, true> {};
template <> struct type_caster<brasa::OptionalOut> : view_caster<brasa::OptionalOut, true, true> {};

/// An integer, or a device array of one int64.
template <> struct type_caster<brasa::Word> {
  PYBIND11_TYPE_CASTER(brasa::Word, const_name("int"));
  bool load(handle source, bool) {
    value = {0, nullptr};
    if (PyLong_Check(source.ptr())) {
      value.value = PyLong_AsUnsignedLongLong(source.ptr());
      if (!PyErr_Occurred()) return true;
      PyErr_Clear();
      return false;
    }
#if defined(BRASA_FOR_CUDA)
    brasa::In view;
    if (!brasa::load_view(source, view, false) || view.dtype != brasa::DType::int64) return false;
    value.at = view.as<const uint64_t>();
    return view.size == 1;
#else
    return false;
#endif
  }
};

/// (kind, alpha, beta), or None.
template <> struct type_caster<brasa::Activation> {
  PYBIND11_TYPE_CASTER(brasa::Activation, const_name("tuple"));
  bool load(handle source, bool) {
    value = {brasa::ActivationKind::none, 0, 0};
    if (source.is_none()) return true;
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
    const long kind = PyLong_AsLong(PyTuple_GET_ITEM(source.ptr(), 0));
    value.kind = brasa::ActivationKind(kind);
    value.alpha = PyFloat_AsDouble(PyTuple_GET_ITEM(source.ptr(), 1));
    value.beta = PyFloat_AsDouble(PyTuple_GET_ITEM(source.ptr(), 2));
    if (PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    return kind >= 0 && kind < int(brasa::ActivationKind::count);
  }
};

}  // namespace pybind11::detail
