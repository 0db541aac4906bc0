"""Arrays in the emulator's memory: what CuPy and its arrays are to a GPU.

`EmulatedArray` is a NumPy subclass with ``__cuda_array_interface__``. What `empty` and `asarray` make lies
in memory that the emulator allocated, between guard pages; what NumPy's own functions compute from it (the
long tail of Tensor, layers, training) lies in ordinary memory, which the emulated kernels read as well.
Other names of this module are NumPy's functions, their arrays turned into EmulatedArrays.
"""

from __future__ import annotations

import os
import sys
from functools import partial, wraps
from types import SimpleNamespace

import _cuda_emu
import _cuda_emu_race
import numpy as np

import emulated_cuda as cuda
from brasa import _backend

kernels = _cuda_emu_race if os.environ.get("BRASA_EMULATOR_RACE") else _cuda_emu
cuda.kernels = kernels


class EmulatedArray(np.ndarray):
    """An array on the emulated device. As with CuPy, reductions give arrays of rank 0, not scalars."""

    device = SimpleNamespace(id=0)  # NumPy's own attribute says "cpu"

    @property
    def data(self):
        """What CuPy's arrays have in place of a buffer: an object with the address."""
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape, "typestr": self.dtype.str, "strides": self.strides, "version": 3,
            "data": (self.ctypes.data, not self.flags.writeable),
        }  # fmt: skip

    def get(self) -> np.ndarray:
        cuda.refuse_while_capturing("get")
        return np.array(self, subok=False)

    def set(self, host, stream=None) -> None:
        """Copy from the host, in the order of `stream`, which does it when somebody waits for it."""
        if stream is None or not stream.ptr:
            cuda.refuse_while_capturing("copy from the host")
            self[...] = host
        else:
            stream.copy_later(self, host)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return np.asarray(array).view(EmulatedArray)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method == "at":
            return cuda.device_change(partial(_ufunc, ufunc, method), *inputs)
        return cuda.device_call(partial(_ufunc, ufunc, method), *inputs, **kwargs)

    def __setitem__(self, key, value) -> None:
        cuda.device_change(np.ndarray.__setitem__, self, key, value)

    def __getitem__(self, key):
        return cuda.device_call(_item, self, key)

    def fill(self, value) -> None:
        cuda.device_change(np.ndarray.fill, self, value)


def _item(array, key):
    """``array[key]``; one element is an array without dimensions, as with CuPy, which reading it waits for."""
    found = np.ndarray.__getitem__(array, key)
    if isinstance(found, np.ndarray):
        return found
    return np.ndarray.__getitem__(array, (*(key if isinstance(key, tuple) else (key,)), ...))


def _ufunc(ufunc, method, *inputs, **kwargs):
    """A ufunc on plain arrays, its results emulated ones; those of a call are arrays also without dimensions."""
    inputs = [x.view(np.ndarray) if isinstance(x, EmulatedArray) else x for x in inputs]
    out = kwargs.get("out", ())
    if out:
        kwargs["out"] = tuple(o.view(np.ndarray) if isinstance(o, EmulatedArray) else o for o in out)
    found = getattr(ufunc, method)(*inputs, **kwargs)
    if out:
        return out[0] if len(out) == 1 else out
    if isinstance(found, tuple):
        return tuple(np.asarray(f).view(EmulatedArray) for f in found)
    return found if found is None else np.asarray(found).view(EmulatedArray)


def _captured(name: str):
    """The method `name` of NumPy's arrays, which a capture may keep."""
    method = getattr(np.ndarray, name)
    return lambda self, *args, **kwargs: cuda.device_call(method, self, *args, **kwargs)


def _waiting(name: str):
    """The method `name` of NumPy's arrays, which reads a value and so waits for the device."""
    method = getattr(np.ndarray, name)

    def read(self, *args):
        cuda.refuse_while_capturing(name)
        return method(self, *args)

    return read


for _name in ("argmax", "argmin", "argsort", "astype", "copy", "cumsum", "flatten", "mean", "nonzero", "prod",
              "ravel", "repeat", "reshape", "sort", "sum", "take", "max", "min", "any", "all"):  # fmt: skip
    setattr(EmulatedArray, _name, _captured(_name))
for _name in ("item", "tolist", "tobytes", "__float__", "__int__", "__index__", "__bool__"):
    setattr(EmulatedArray, _name, _waiting(_name))

ndarray = EmulatedArray


def empty(shape, dtype=np.float32) -> EmulatedArray:
    """Uninitialised device memory: NaN until it is written."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.asarray(cuda.alloc(nbytes)) if nbytes else np.empty(0, np.uint8)
    return raw.view(dtype).reshape(shape).view(EmulatedArray)


def asarray(x, dtype=None) -> EmulatedArray:
    """A copy in device memory that keeps channels-last and other dense strides."""
    if isinstance(x, EmulatedArray):
        return x if dtype in (None, x.dtype) else x.astype(dtype)
    host = np.asarray(x, dtype)
    if not host.ndim:  # passed to a kernel that fills
        array = empty((), host.dtype)
        array.fill(host)
        return array
    cuda.refuse_while_capturing("copy from the host")
    order = sorted(range(host.ndim), key=lambda d: -abs(host.strides[d]))
    inner = empty(tuple(host.shape[d] for d in order), host.dtype)
    array = inner.transpose(np.argsort(order)) if order else inner
    array[...] = host
    return array


def asnumpy(x) -> np.ndarray:
    """The values as a plain NumPy array."""
    cuda.refuse_while_capturing("get")
    return np.array(x, subok=False)


def _norm(*args, **kwargs) -> EmulatedArray:
    return np.asarray(np.linalg.norm(*args, **kwargs)).view(EmulatedArray)


linalg = SimpleNamespace(norm=partial(cuda.device_call, _norm))


def __getattr__(name: str):
    attribute = getattr(np, name)
    if not callable(attribute) or isinstance(attribute, type):
        return attribute

    @wraps(attribute)
    def function(*args, **kwargs):
        if name == "copyto":
            return cuda.device_change(attribute, *args)
        result = cuda.device_call(attribute, *args, **kwargs)
        return result.view(EmulatedArray) if type(result) is np.ndarray else result

    if isinstance(attribute, np.ufunc):
        function.at = attribute.at
    return function


_backend.register(
    EmulatedArray,
    sys.modules[__name__],
    kernels,
    current_stream=lambda: cuda.get_current_stream().ptr,
    allocate=cuda.alloc,
)
