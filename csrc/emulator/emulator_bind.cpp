// What an emulated module has beyond the GPU's: device memory, since no other library hands it out,
// and the emulator's options.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <string>

#include "emulator/capture.h"
#include "emulator/lint.h"
#include "emulator/runtime.h"

namespace py = pybind11;

namespace brasa {

namespace emulator = simt::emulator;

// Streams are the numbers that the module `emulated` gives them; 0 is the default stream.
static void bind_capture(py::module_& m) {
  const auto stream = [](uintptr_t number) { return reinterpret_cast<const void*>(number); };
  m.def("_begin_capture", [=](uintptr_t s) { emulator::begin_capture(stream(s)); });
  m.def("_captured", [=](uintptr_t s) { return emulator::captured(stream(s)); });
  m.def("_end_capture", [=](uintptr_t s) { return emulator::end_capture(stream(s)); });
  m.def("_replay", &emulator::replay, py::call_guard<py::gil_scoped_release>());
  m.def("_forget", &emulator::forget);
}

/// Where in this module's file, as addr2line wants it.
static int64_t offset_in_module(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0) return -1;
  return static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase);
}

static py::list access_lines() {
  py::list result;
  for (const emulator::AccessLine& line : emulator::take_access_lines()) {
    const void* const instruction = static_cast<const char*>(line.pc) - 1;
    result.append(py::make_tuple(offset_in_module(line.kernel), offset_in_module(instruction),
                                 line.shared, line.write, line.requests, line.moved, line.ideal));
  }
  return result;
}

void bind_emulator(py::module_& m) {
  bind_capture(m);
  m.def("_access_lines", &access_lines,
        "What instructions asked of memory while the option lint was on, since the last call: "
        "(kernel, instruction, shared, write, requests, moved, ideal), the first two as offsets in "
        "the module's file.");
  m.def(
      "alloc",
      [](size_t nbytes) { return reinterpret_cast<uintptr_t>(emulator::device_alloc(nbytes)); },
      py::arg("nbytes"), py::call_guard<py::gil_scoped_release>(),
      "Address of nbytes bytes of emulated device memory, filled with 0xff (NaN).");
  m.def(
      "free", [](uintptr_t ptr) { emulator::device_free(reinterpret_cast<void*>(ptr)); },
      py::arg("ptr"), py::call_guard<py::gil_scoped_release>(), "Gives back what alloc returned.");
  m.def(
      "set_option",
      [](const std::string& name, const py::object& value) {
        emulator::set_option(name, py::str(value).cast<std::string>());
      },
      py::arg("name"), py::arg("value"),
      "order of threads: 'forward', 'reverse', 'random'; async, when asynchronous copies land: "
      "'lazy', 'eager', 'random'; race and lint: 'on', 'off'; seed: a number for what is random; "
      "capability "
      "and multiprocessors of the GPU.");
  m.def(
      "stats",
      [] {
        const emulator::Statistics counts = emulator::statistics();
        py::dict result;
        result["launches"] = counts.launches;
        result["blocks"] = counts.blocks;
        result["threads"] = counts.threads;
        result["switches"] = counts.switches;
        result["barriers"] = counts.barriers;
        result["warp_collectives"] = counts.warp_collectives;
        result["buffers"] = counts.buffers;
        result["buffer_bytes"] = counts.buffer_bytes;
        return result;
      },
      "Counters since the module was loaded, and the device buffers alive now.");
}

}  // namespace brasa
