"""Fixtures and settings that every test shares.

`xp` runs a test body on each kind of array there is: NumPy on the CPU kernels, the emulator's arrays on
the CUDA kernels compiled for the host, and CuPy where a GPU is; `device` on the latter two. `isa` and `threads` run
it on each instruction set and thread count of the CPU. The modules of the emulator are built on first use.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from brasa import _cpu

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it that starts us in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))  # reference, strategies, tolerances, descriptors, emulated

settings.register_profile(
    "quick", max_examples=50, derandomize=True, deadline=None, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture,
                           HealthCheck.differing_executors],
)  # fmt: skip
settings.register_profile("full", settings.get_profile("quick"), max_examples=150, derandomize=False)
settings.register_profile("soak", settings.get_profile("full"), max_examples=10_000)
# Few examples, and every array of a GPU an allocation of its own: for compute-sanitizer (tools/gpu_check.py).
settings.register_profile("sanitizer", settings.get_profile("quick"), max_examples=2)
settings.load_profile(os.environ.get("BRASA_TEST_TIER", "quick"))


_property_cases = [0]


def pytest_collection_modifyitems(items):
    """Count the cases that hypothesis draws; see `pytest_terminal_summary`."""
    counted = set()
    for item in items:
        handle = getattr(getattr(item, "obj", None), "hypothesis", None)
        if handle is not None and id(handle) not in counted:
            counted.add(id(handle))
            handle.inner_test = _counting(handle.inner_test)


def _counting(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        test(*args, **kwargs)
        _property_cases[0] += 1  # not reached by a case that `assume` turns away

    return run


def pytest_terminal_summary(terminalreporter):
    """Say how many drawn cases the properties held for."""
    terminalreporter.write_line(f"{_property_cases[0]} property cases")


def modules_folder() -> Path:
    """Where the modules that only tests need are built."""
    return Path(os.environ.get("BRASA_TEST_MODULES", ROOT / "build" / "tests"))


def build_test_modules() -> None:
    """Build the emulator's modules, which no wheel contains. A second run finds nothing to do."""
    import pybind11

    folder = modules_folder()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"building the emulator's test modules in {folder} (a few minutes the first time)", flush=True)
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if os.environ.get("BRASA_CCACHE") else []
    configure = [
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DBRASA_TESTS=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}", *launcher,
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", folder, "--target", "brasa_test_modules"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            output = (done.stdout + done.stderr)[-6000:]
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{output}")


@pytest.fixture(scope="session")
def built_modules():
    """Builds the modules that only tests need, and puts them on the path."""
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("the emulator runs on x86-64")
    build_test_modules()
    sys.path.insert(0, str(modules_folder() / "tests"))


@pytest.fixture(scope="session")
def emulated(built_modules):
    """The module `emulated`: arrays in the emulator's memory, computed on by the CUDA kernels."""
    import emulated

    return emulated


def _has_gpu() -> bool:
    try:
        import cupy

        return cupy.cuda.is_available()
    except ImportError:
        return False


class CpuArrays:
    """The array library of one test run: NumPy."""

    name = "cpu"
    examples = 1.0  # share of the profile's examples that is run
    kernels = _cpu

    def asarray(self, x):
        return np.asarray(x)

    def asnumpy(self, x):
        return np.asarray(x)


class DeviceArrays:
    """The same for arrays on a device, real or emulated."""

    def __init__(self, name, module, examples, kernels):
        self.name, self._module, self.examples, self.kernels = name, module, examples, kernels

    def asarray(self, x):
        return self._module.asarray(x)

    def asnumpy(self, x):
        return self._module.asnumpy(x)


class CupyArrays(DeviceArrays):
    """CuPy's arrays. `asarray` keeps channels-last and other dense strides, of which CuPy's own makes C order."""

    def asarray(self, x):
        if isinstance(x, self._module.ndarray):
            return x
        host = np.asarray(x)
        order = sorted(range(host.ndim), key=lambda d: -abs(host.strides[d]))
        inner = self._module.asarray(
            np.ascontiguousarray(host.transpose(order)).reshape([host.shape[d] for d in order])
        )
        return inner.transpose([order.index(d) for d in range(host.ndim)])


@pytest.fixture(scope="session")
def cupy_arrays():
    """CuPy on the GPU."""
    if not _has_gpu():
        pytest.skip("no GPU")
    import cupy

    from brasa import _backend

    if os.environ.get("BRASA_TEST_TIER") == "sanitizer":
        cupy.cuda.set_allocator(None)
    return CupyArrays("cupy", cupy, 1.0, _backend.backend_of(cupy.empty(0)).kernels)


def _device_arrays(request):
    if request.param == "cupy":
        return request.getfixturevalue("cupy_arrays")
    module = request.getfixturevalue("emulated")
    return DeviceArrays("emulated", module, 1 / 3, module.kernels)


@pytest.fixture(params=["cpu", "emulated", "cupy"])
def xp(request):
    """The kinds of array, one after the other: `xp.asarray`, `xp.asnumpy`, `xp.name`."""
    return CpuArrays() if request.param == "cpu" else _device_arrays(request)


@pytest.fixture(params=["emulated", "cupy"])
def device(request):
    """The kinds of array on a device, emulated or real: what `xp` has, and `device.kernels`, the native module."""
    return _device_arrays(request)


@pytest.fixture(params=_cpu.supported_isas())
def isa(request):
    """Every instruction set this machine has, in use for the test."""
    before = _cpu.isa()
    _cpu._set_isa(request.param)
    yield request.param
    _cpu._set_isa(before)


@pytest.fixture
def every_isa():
    """A function that calls another on every instruction set with FMA and returns the results."""
    before = _cpu.isa()

    def run(function):
        results = []
        for name in set(_cpu.supported_isas()) - {"baseline"}:
            _cpu._set_isa(name)
            results.append(function())
        return results

    yield run
    _cpu._set_isa(before)


@pytest.fixture
def set_threads():
    """A function that sets the number of threads; the old number comes back after the test."""
    before = _cpu.num_threads()
    yield _cpu.set_num_threads
    _cpu.set_num_threads(before)
