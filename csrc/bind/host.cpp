// What _cpu has beside the operators: threads, instruction sets, memory and the arrays it hands
// out.
#include <algorithm>
#include <chrono>
#include <vector>

#include "bind/bind.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "probe/probe.h"

namespace brasa {
namespace {

/// Results of at least this size come from the pool: their vectors lie on cache lines, and the heap
/// is not trimmed and faulted in again with every step. Below it NumPy's own allocation is faster.
constexpr int64_t kPooledBytes = 4 * 1024;

/// Elements that point somewhere, such as Python objects, must not be left as they come.
void require_plain_elements(const py::dtype& dtype) {
  constexpr uint64_t kRefcount = 0x01, kPointer = 0x04, kNeedsInit = 0x08;
  if (uint64_t(dtype.flags()) & (kRefcount | kPointer | kNeedsInit))
    throw py::type_error("arrays of " + py::str(dtype).cast<std::string>() + " are not supported");
}

/// A block from the pool; where there is no such memory, NumPy's words for it.
void* acquire(int64_t bytes, const py::dtype& dtype, int rank, const Py_intptr_t* shape) {
  try {
    return cpu::pool_acquire(size_t(bytes));
  } catch (const std::bad_alloc&) {
    py::tuple extents(rank);
    for (int i = 0; i < rank; ++i) extents[size_t(i)] = shape[i];
    const auto message =
        py::str("Unable to allocate {:.1f} GiB for an array with shape {} and data type {}")
            .format(double(bytes) / double(1 << 30), extents, dtype);
    PyErr_SetObject(PyExc_MemoryError, message.ptr());
    throw py::error_already_set();
  }
}

/// A new array of this shape, its dimensions laid out as `order` lists them, outermost first.
py::object new_array(py::handle descriptor, int rank, const Py_intptr_t* shape, const int* order) {
  auto& api = py::detail::npy_api::get();
  const auto dtype = py::reinterpret_borrow<py::dtype>(descriptor);
  require_plain_elements(dtype);
  Py_intptr_t strides[kMaxRank];
  int64_t bytes = dtype.itemsize();
  for (int i = rank - 1; i >= 0; --i) {
    strides[order[i]] = bytes;
    if (shape[order[i]] > 0) bytes = checked_multiply(bytes, shape[order[i]]);
  }
  void* block = bytes >= kPooledBytes ? acquire(bytes, dtype, rank, shape) : nullptr;
  constexpr int kWritable = 0x400;
  descriptor.inc_ref();  // NewFromDescr takes one reference
  auto array = py::reinterpret_steal<py::object>(
      api.PyArray_NewFromDescr_(api.PyArray_Type_, descriptor.ptr(), rank, shape, strides, block,
                                block ? kWritable : 0, nullptr));
  if (!array) {
    if (block) cpu::pool_release(block);
    throw py::error_already_set();
  }
  if (block) {
    const py::capsule owner(block, [](void* p) { cpu::pool_release(p); });
    api.PyArray_SetBaseObject_(array.ptr(), owner.inc_ref().ptr());
  }
  return array;
}

constexpr int kCOrder[kMaxRank] = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr int kChannelsLast[3][5] = {{0, 2, 1}, {0, 2, 3, 1}, {0, 2, 3, 4, 1}};

const int* order_for(int rank, bool channels_last) {
  return channels_last && rank >= 3 && rank <= 5 ? kChannelsLast[rank - 3] : kCOrder;
}

py::object empty(const py::tuple& shape, const py::dtype& dtype, bool channels_last) {
  Py_intptr_t extents[kMaxRank];
  const int rank = int(shape.size());
  BRASA_REQUIRE(rank <= kMaxRank, "arrays of more than 8 dimensions are not supported");
  for (int i = 0; i < rank; ++i) {
    extents[i] = PyNumber_AsSsize_t(py::object(shape[i]).ptr(), PyExc_ValueError);
    if (extents[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    BRASA_REQUIRE(extents[i] >= 0, "a dimension is negative");
  }
  return new_array(dtype, rank, extents, order_for(rank, channels_last));
}

/// Same shape, dtype and, where it is channels-last, same layout.
py::object empty_like(const py::array& array) {
  In view;
  load_view(array, view, false);
  const auto* proxy = py::detail::array_proxy(array.ptr());
  const bool channels_last = layout_of(view) == Layout::channels_last;
  return new_array(proxy->descr, view.rank, proxy->dimensions, order_for(view.rank, channels_last));
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::isa_count(); ++i)
    if (cpu::isa_supported(i)) names.emplace_back(cpu::isa_name(i));
  return names;
}

/// The fewest seconds that one of `repeats` calls of f takes.
template <class F> double best_seconds(int repeats, const F& f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

/// FMA operations per second on the threads of the kernels: the ceiling of every matrix product.
template <class T> double fma_peak() {
  const Context ctx{.threads = cpu::num_threads()};
  std::vector<char> sink(size_t(ctx.threads) * 64);
  const py::gil_scoped_release release;
  int64_t operations = 0;
  const double seconds = best_seconds(5, [&] {
    operations = cpu::fma_loop<T>(ctx, reinterpret_cast<T*>(sink.data()), int64_t{100'000});
  });
  return double(operations) * ctx.threads / seconds;
}

/// Bytes read plus bytes written per second by a copy of x to y, on the threads of the kernels.
double copy_bandwidth(const In& x, const Out& y) {
  require_dtype(x, DType::float32);
  require_same_dtype(x, y);
  require_same_dense_layout(x, y);
  const Context ctx = make_context(x);
  const py::gil_scoped_release release;
  const double seconds = best_seconds(
      3, [&] { cpu::copy_loop<float>(ctx, x.as<const float>(), y.as<float>(), x.size); });
  return 2.0 * double(x.size) * sizeof(float) / seconds;
}

}  // namespace

void bind_host(py::module_& m) {
  if (const char* wanted = cpu::isa_unavailable()) {
    std::string message = "BRASA_ISA=" + std::string(wanted) + ": this CPU and build have";
    for (const std::string& name : supported_isas()) message += " " + name;
    throw py::import_error(message);
  }
  m.def("layout", [](const In& x) { return int(layout_of(x)); }, "x"_a);
  m.def("empty", &empty, "shape"_a, "dtype"_a, "channels_last"_a);
  m.def("empty_like", &empty_like, "array"_a);
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, "n"_a);
  m.def("isa", [] { return cpu::isa_name(cpu::isa_index()); });
  m.def("supported_isas", &supported_isas);
  m.def("_set_isa", [](const std::string& name) {
    if (!cpu::set_isa(name.c_str())) throw py::value_error("this CPU or build has no " + name);
  });
  m.def("memory_stats", [] {
    const cpu::MemoryStats s = cpu::memory_stats();
    return py::dict("in_use"_a = s.in_use, "cached"_a = s.cached, "scratch"_a = s.scratch);
  });
  m.def("empty_cache", &cpu::empty_cache);
  m.def("_fma_peak", &fma_peak<float>);
  m.def("_fma_peak_float64", &fma_peak<double>);
  m.def("_copy_bandwidth", &copy_bandwidth, "x"_a, "y"_a);
}

}  // namespace brasa
