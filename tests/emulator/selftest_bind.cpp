// Python names of the emulator's test kernels; arrays are addresses that `alloc` returned.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "selftest.h"

namespace py = pybind11;

#ifdef BRASA_EMULATED
namespace brasa {
void bind_emulator(py::module_& m);
}
#endif

namespace {

using namespace brasa::selftest;
using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T> T* as(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_memory(py::module_& m) {
#ifndef BRASA_EMULATED
  m.def("alloc", [](size_t n) { return reinterpret_cast<Address>(device_alloc(n)); }, Release());
  m.def("free", [](Address device) { device_free(as<void>(device)); }, Release());
  m.def("device", [] {
    std::string about;
    const int capability = device_capability(about);
    return py::make_tuple(capability, about);
  });
#endif
  m.def("write", [](Address device, const py::buffer& host) {
    const py::buffer_info from = host.request();
    copy_to_device(as<void>(device), from.ptr, size_t(from.size * from.itemsize));
  });
  m.def("read", [](const py::buffer& host, Address device) {
    const py::buffer_info to = host.request(true);
    copy_to_host(to.ptr, as<void>(device), size_t(to.size * to.itemsize));
  });
}

template <class T> void bind_row_statistics(py::module_& m, const char* name) {
  m.def(
      name,
      [](Address x, Address sums, Address maxima, int rows, int n, int threads) {
        row_statistics(as<T>(x), as<T>(sums), as<T>(maxima), rows, n, threads);
      },
      Release());
}

void bind_matrix_kernels(py::module_& m) {
  m.def(
      "sgemm",
      [](Address a, Address b, Address c, int m, int n, int k, bool second_barrier) {
        sgemm(as<float>(a), as<float>(b), as<float>(c), m, n, k, second_barrier);
      },
      Release());
  m.def(
      "softmax",
      [](Address x, Address y, int rows, int n, int bug) {
        softmax(as<float>(x), as<float>(y), rows, n, static_cast<SoftmaxBug>(bug));
      },
      Release());
  m.def("atomics", [](Address out, int threads) { atomics(as<int>(out), threads); }, Release());
  m.def(
      "recurrence",
      [](Address w, Address x, Address h0, Address h1, int steps, int width) {
        recurrence(as<float>(w), as<float>(x), as<float>(h0), as<float>(h1), steps, width);
      },
      Release());
  m.def(
      "wrapper",
      [](const std::string& name, Address x, Address y, int n) {
        wrapper(name.c_str(), as<uint32_t>(x), as<uint32_t>(y), n);
      },
      Release());
  m.def(
      "tensor_gemm",
      [](const std::string& kind, Address a, Address b, Address c, int m, int n, int k, int bug) {
        if (kind == "tf32") return gemm_tf32(as<float>(a), as<float>(b), as<float>(c), m, n, k);
        gemm_bf16(as<uint16_t>(a), as<uint16_t>(b), as<float>(c), m, n, k,
                  static_cast<StageBug>(bug));
      },
      Release());
}

void bind_cluster(py::module_& m) {
  m.def(
      "multicast",
      [](Address x, Address y, int bug) {
        multicast(as<uint16_t>(x), as<float>(y), static_cast<CastBug>(bug));
      },
      Release());
  m.def(
      "register_product",
      [](const std::string& type, int n, Address a, Address b, Address y, bool overwritten) {
        register_product(type.c_str(), n, as<void>(a), as<void>(b), as<float>(y), overwritten);
      },
      Release());
}

void bind_ordering(py::module_& m) {
  m.def(
      "ordering",
      [](const std::string& name, Address x, Address y, int bug) {
        ordering(name.c_str(), as<uint16_t>(x), as<float>(y), static_cast<OrderBug>(bug));
      },
      Release());
}

void bind_ring(py::module_& m) {
  m.def(
      "panel",
      [](const std::string& kind, Address x, Address y, int bug) {
        panel(kind.c_str(), as<uint16_t>(x), as<void>(y), static_cast<PanelBug>(bug));
      },
      Release());
  m.def(
      "ring_gemm",
      [](Address a, Address b, Address c, int m, int n, int k, int bug) {
        ring_gemm(as<uint16_t>(a), as<uint16_t>(b), as<float>(c), m, n, k,
                  static_cast<RingBug>(bug));
      },
      Release());
}

void bind_boxes(py::module_& m) {
  m.def("share_registers", &share_registers, Release());
  m.def(
      "load_box",
      [](Address x, Address y, const std::array<int64_t, 4>& extent,
         const std::array<int64_t, 3>& stride, const std::array<int, 4>& at) {
        load_box(as<uint16_t>(x), as<uint16_t>(y), {extent[0], extent[1], extent[2], extent[3]},
                 {stride[0], stride[1], stride[2]}, {at[0], at[1], at[2], at[3]});
      },
      Release());
}

using PixelCopy = void (*)(const uint16_t*, uint16_t*, const PixelImage&, const PixelLoad&);

void bind_pixels(py::module_& m, const char* name, PixelCopy copy) {
  m.def(
      name,
      [copy](Address x, Address y, const std::array<int, 4>& shape,
             const std::array<std::array<int, 2>, 3>& walk, const std::array<int, 6>& at) {
        const PixelImage image{shape[0],
                               shape[1],
                               shape[2],
                               shape[3],
                               {walk[0][0], walk[0][1]},
                               {walk[1][0], walk[1][1]},
                               {walk[2][0], walk[2][1]}};
        copy(as<uint16_t>(x), as<uint16_t>(y), image, {at[0], at[1], at[2], at[3], at[4], at[5]});
      },
      Release());
}

void bind_other_kernels(py::module_& m) {
  bind_row_statistics<float>(m, "row_statistics_float32");
  bind_row_statistics<double>(m, "row_statistics_float64");
  bind_row_statistics<int>(m, "row_statistics_int32");
  m.def(
      "scale_by_packs",
      [](Address x, Address y, int64_t n, bool scalar) {
        scale_by_packs(as<float>(x), as<float>(y), n, scalar);
      },
      Release());
  m.def(
      "histogram",
      [](Address x, Address bins, Address odd, int n) {
        histogram(as<int>(x), as<int>(bins), as<int>(odd), n);
      },
      Release());
  m.def("shuffles", [](Address y) { shuffles(as<int>(y)); }, Release());
  m.def(
      "reverse",
      [](Address x, Address y, int n, int n_shared) {
        reverse(as<float>(x), as<float>(y), n, n_shared);
      },
      Release());
  m.def(
      "access_pattern",
      [](Address x, Address y, int stride, int pad) {
        access_pattern(as<float>(x), as<float>(y), stride, pad);
      },
      Release());
  m.def(
      "mistake", [](const std::string& name, Address y) { mistake(name.c_str(), as<float>(y)); },
      Release());
}

}  // namespace

PYBIND11_MODULE(BRASA_MODULE, m) {
#ifdef BRASA_EMULATED
  brasa::bind_emulator(m);
#endif
  bind_memory(m);
  bind_matrix_kernels(m);
  bind_ring(m);
  bind_boxes(m);
  bind_pixels(m, "load_pixels", load_pixels);
  bind_pixels(m, "store_pixels", store_pixels);
  bind_cluster(m);
  bind_ordering(m);
  bind_other_kernels(m);
}
