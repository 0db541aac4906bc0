"""What is said where something of CUDA is missing, or wrong; a stand-in plays CuPy and its runtime."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import brasa as br
from brasa import _backend, nn, ops


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def runtime_of(*, driver=13000, gpus=((8, 0),), error=None):
    """CuPy's runtime on a machine with these GPUs, by their compute capability."""

    def count():
        if error is not None:
            raise error
        return len(gpus)

    return SimpleNamespace(
        driverGetVersion=lambda: driver,
        getDeviceCount=count,
        getDeviceProperties=lambda i: {"name": b"A card", "major": gpus[i][0], "minor": gpus[i][1]},
        getDevice=lambda: 0,
        CUDARuntimeError=CUDARuntimeError,
        errorNoDevice=100,
    )


@pytest.fixture
def cupy(monkeypatch):
    """A function that puts a stand-in with that runtime in CuPy's place."""

    def install(**machine):
        module = ModuleType("cupy")
        module.cuda = SimpleNamespace(runtime=runtime_of(**machine))
        module.ndarray = type("ndarray", (), {})
        monkeypatch.setitem(sys.modules, "cupy", module)
        return module

    return install


# ---- devices


def test_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    message = r"device 'cuda' needs CuPy: install the extra \[cuda\] of the package brasa-dl"
    with pytest.raises(ValueError, match=message):
        br.Tensor(np.ones(3)).to("cuda")
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        br.Trainer(net, br.optim.SGD(net.parameters()), nn.MSELoss(), device="cuda")


NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
BROKEN = CUDARuntimeError(999, "cudaErrorUnknown: unknown error")
MACHINES = {
    "no driver": ({"driver": 0}, "this machine has no NVIDIA driver"),
    "old driver": (
        {"driver": 12080},
        "the NVIDIA driver is of CUDA 12.8, brasa's kernels need CUDA 13: install driver 580 or later",
    ),
    "no GPU": ({"gpus": ()}, "CUDA finds no GPU on this machine"),
    "no GPU, said by an error": ({"error": NO_DEVICE}, "CUDA finds no GPU on this machine"),
    "a broken one": ({"error": BROKEN}, "CUDA says cudaErrorUnknown: unknown error"),
    "old GPU": (
        {"gpus": ((7, 5),)},
        r"the GPU \(A card\) has compute capability 7.5, brasa's kernels need 8.0 or more",
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_gpu_that_cannot_be_used(cupy, name):
    machine, message = MACHINES[name]
    cupy(**machine)
    with pytest.raises(ValueError, match=f"device 'cuda' cannot be used: {message}"):
        br.Tensor(np.ones(3)).to("cuda")


def test_a_gpu_that_is_not_there(cupy):
    cupy(gpus=((9, 0), (9, 0)))
    with pytest.raises(
        ValueError, match="device 'cuda:2' cannot be used: this machine has 2 GPUs, counted from"
    ):
        br.Tensor(np.ones(3)).to("cuda:2")
    with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:1', got 'cuda:x'"):
        br.Tensor(np.ones(3)).to("cuda:x")


def test_a_build_without_cuda(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "brasa._cuda", None)
    array = cupy().ndarray()
    with pytest.raises(
        TypeError, match=r"this build of brasa has no CUDA kernels.*BRASA_CUDA=on, or pass NumPy"
    ):
        ops.relu(array)


def test_arrays_of_cupy_on_an_old_gpu(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "brasa._cuda", ModuleType("brasa._cuda"))
    monkeypatch.setattr(br, "_cuda", sys.modules["brasa._cuda"], raising=False)
    with pytest.raises(TypeError, match=r"brasa cannot compute on CuPy arrays: the GPU .* capability 6\.1"):
        ops.relu(cupy(gpus=((6, 1),)).ndarray())


# ---- two devices, memory


@pytest.fixture
def callbacks(emulated):
    """Sets the callbacks of the emulated kernels; they are as before after the test."""
    cuda = emulated.cuda
    yield lambda allocate=cuda.alloc, device=None: emulated.kernels._set_callbacks(
        emulated.ndarray, lambda: cuda.get_current_stream().ptr, allocate, device
    )
    emulated.kernels._set_callbacks(emulated.ndarray, lambda: cuda.get_current_stream().ptr, cuda.alloc, None)


def test_an_array_on_another_gpu(emulated, callbacks):
    x = emulated.asarray(np.ones((3, 3), np.float32))
    callbacks(device=lambda: 1)
    message = (
        r"an array is on cuda:0, and the current device is cuda:1: move it, or compute within the block of"
    )
    with pytest.raises(ValueError, match=message):
        ops.matmul(x, x)
    with pytest.raises(ValueError, match=message):
        ops.sgd_step([x], [x], None, lr=0.1)
    callbacks(device=lambda: 0)
    np.testing.assert_array_equal(emulated.asnumpy(ops.matmul(x, x)), 3)


def test_host_and_device(emulated):
    x = emulated.asarray(np.ones((3, 3), np.float32))
    with pytest.raises(TypeError, match="one device"):
        ops.matmul(x, np.ones((3, 3), np.float32))


def test_memory_that_is_not_there_is_a_memory_error(emulated, callbacks, monkeypatch):
    def full(nbytes):
        raise MemoryError(f"Out of memory allocating {nbytes} bytes")

    x, weight = emulated.asarray(np.ones((4, 4096), np.float32)), np.ones((9, 4096), np.float32)
    callbacks(allocate=full)
    with pytest.raises(MemoryError, match=r"Out of memory allocating \d+ bytes"):
        ops.embedding_backward(x, emulated.asarray(np.arange(4)), emulated.asarray(weight))
    callbacks()
    monkeypatch.setattr(emulated.cuda, "alloc", full)
    with pytest.raises(MemoryError, match=r"Out of memory allocating 65536 bytes"):
        ops.relu(x)


# ---- other libraries' arrays


class OnGpu:
    """A tensor of another library, which speaks DLPack."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        if self.error:
            raise self.error
        return self.array


class WithInterface:
    """An array that has CUDA's array interface alone."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


def test_arrays_of_other_libraries_are_shared(cupy, emulated):
    module = cupy()
    module.from_dlpack = lambda x: x.__dlpack__()
    module.asarray = lambda x: x.array
    x = emulated.asarray(np.float32([-1, 2]))
    for foreign in (OnGpu(x), WithInterface(x)):
        assert _backend.as_array(foreign) is x
        y = ops.relu(foreign)
        assert type(y) is type(x)
        np.testing.assert_array_equal(emulated.asnumpy(y), [0, 2])
        assert br.Tensor(foreign).data is x


def test_what_cannot_be_shared_says_why(cupy, emulated, monkeypatch):
    cupy().from_dlpack = lambda x: x.__dlpack__()
    with pytest.raises(TypeError, match="x: a OnGpu on a GPU could not be shared: it requires a gradient"):
        ops.relu(OnGpu(None, BufferError("it requires a gradient")))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match=r"needs CuPy: install the extra \[cuda\]"):
        ops.relu(OnGpu(None))


def test_a_tensor_of_torch_on_the_host_still_becomes_a_numpy_array():
    torch = pytest.importorskip("torch")
    x = torch.tensor([-1.0, 2.0])
    np.testing.assert_array_equal(ops.relu(x), [0, 2])
