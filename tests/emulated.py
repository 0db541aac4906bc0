"""Arrays in the emulator's memory: what CuPy and its arrays are to a GPU.

`EmulatedArray` is a NumPy subclass with ``__cuda_array_interface__``. What `empty` and `asarray` make lies
in memory that the emulator allocated, between guard pages; what NumPy's own functions compute from it (the
long tail of Tensor, layers, training) lies in ordinary memory, which the emulated kernels read as well.
Other names of this module are NumPy's functions, their arrays turned into EmulatedArrays.
"""

from __future__ import annotations

import os
import sys
from functools import wraps

import _cuda_emu
import _cuda_emu_race
import numpy as np

from brasa import _backend

kernels = _cuda_emu_race if os.environ.get("BRASA_EMULATOR_RACE") else _cuda_emu


class _Memory:
    """A block of the emulator's memory, freed with its last array."""

    def __init__(self, nbytes: int) -> None:
        self.ptr = kernels.alloc(max(nbytes, 1))
        self.nbytes = nbytes

    def __del__(self) -> None:
        kernels.free(self.ptr)

    @property
    def __array_interface__(self):
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.ptr, False), "version": 3}


class EmulatedArray(np.ndarray):
    """An array on the emulated device. As with CuPy, reductions give arrays of rank 0, not scalars."""

    device = 0  # NumPy's own attribute says "cpu"

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape, "typestr": self.dtype.str, "strides": self.strides, "version": 3,
            "data": (self.ctypes.data, not self.flags.writeable),
        }  # fmt: skip

    def get(self) -> np.ndarray:
        return np.array(self, subok=False)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return np.asarray(array).view(EmulatedArray)


ndarray = EmulatedArray


def empty(shape, dtype=np.float32) -> EmulatedArray:
    """Uninitialised device memory: NaN until it is written."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.asarray(_Memory(nbytes)) if nbytes else np.empty(0, np.uint8)
    return raw.view(dtype).reshape(shape).view(EmulatedArray)


def asarray(x, dtype=None) -> EmulatedArray:
    """A copy in device memory that keeps channels-last and other dense strides."""
    if isinstance(x, EmulatedArray) and dtype in (None, x.dtype):
        return x
    host = np.asarray(x, dtype)
    order = sorted(range(host.ndim), key=lambda d: -abs(host.strides[d]))
    inner = empty(tuple(host.shape[d] for d in order), host.dtype)
    array = inner.transpose(np.argsort(order)) if order else inner
    array[...] = host
    return array


def asnumpy(x) -> np.ndarray:
    """The values as a plain NumPy array."""
    return np.array(x, subok=False)


def __getattr__(name: str):
    attribute = getattr(np, name)
    if not callable(attribute) or isinstance(attribute, type):
        return attribute

    @wraps(attribute)
    def function(*args, **kwargs):
        result = attribute(*args, **kwargs)
        return result.view(EmulatedArray) if type(result) is np.ndarray else result

    if isinstance(attribute, np.ufunc):
        function.at = attribute.at
    return function


_backend.register(
    EmulatedArray,
    sys.modules[__name__],
    kernels,
    current_stream=lambda: 0,
    allocate=_Memory,
)
