"""The kinds of array brasa computes on, and what belongs to each: the only module that names a library.

An array's type decides where its operators run: `numpy.ndarray` on the CPU kernels (`brasa._cpu`), CuPy
arrays on the CUDA kernels (`brasa._cuda`, imported on first use). `register` adds a kind of array.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from brasa import _capture, _cpu

C_ORDER, CHANNELS_LAST = 1, 2  # what `layout` answers for dense arrays; 0 for every other


class Backend(NamedTuple):
    """What one kind of array comes with."""

    name: str  # "cpu" or "cuda"
    namespace: Any  # numpy, cupy or what stands in for it
    kernels: Any  # the native module
    empty: Callable[[tuple[int, ...], Any, bool], Any]  # (shape, dtype, channels_last)
    empty_like: Callable[[Any], Any]


_backends: dict[type, Backend] = {np.ndarray: Backend("cpu", np, _cpu, _cpu.empty, _cpu.empty_like)}

_math_mode = 0


def register(
    kind: type,
    namespace: Any,
    kernels: Any,
    *,
    current_stream: Callable[[], int],
    allocate: Callable[[int], Any],
    current_device: Callable[[], int] | None = None,
    empty: Callable[[tuple[int, ...], Any, bool], Any] | None = None,
) -> None:
    """Add a kind of device array.

    Parameters
    ----------
    kind : type
        The arrays' type. They have ``shape``, ``strides``, ``dtype`` and ``data.ptr``, an address.
    namespace : module
        What NumPy's functions are for this type, such as the module ``cupy``.
    kernels : module
        The native module that computes on these arrays.
    current_stream : callable
        Returns the address of the stream that work goes to now.
    allocate : callable
        Returns an object whose ``ptr`` is the address of that many bytes of device memory, which live
        as long as the object, in stream order.
    current_device : callable, optional
        Returns the number of the device that work goes to now, where there are several: arrays on
        another one (by their ``device.id``) are then refused.
    empty : callable, optional
        ``empty(shape, dtype, channels_last)`` makes an array; without it ``namespace.empty`` does.
    """

    def by_transpose(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Any:
        if not channels_last:
            return namespace.empty(shape, dtype)
        rank = len(shape)
        inner_first = namespace.empty((shape[0], *shape[2:], shape[1]), dtype)
        return inner_first.transpose(0, rank - 1, *range(1, rank - 1))

    new = by_transpose if empty is None else empty

    def empty_like(array: Any) -> Any:
        return new(array.shape, array.dtype, kernels.layout(array) == CHANNELS_LAST)

    kernels._set_callbacks(kind, current_stream, allocate, current_device)
    kernels._set_math_mode(_math_mode)
    _backends[kind] = Backend("cuda", namespace, kernels, new, empty_like)


def set_math_mode(mode: int) -> None:
    """How products of float32 are made on devices: a `MathMode` of csrc/core/context.h."""
    global _math_mode
    _math_mode = mode
    for backend in _backends.values():
        if backend.name != "cpu":
            backend.kernels._set_math_mode(mode)


def math_mode() -> int:
    """What `set_math_mode` was told last."""
    return _math_mode


def _register_cupy(kind: type) -> Backend:
    cupy = sys.modules["cupy"]
    try:
        from brasa import _cuda
    except ImportError as error:
        raise TypeError(
            "this build of brasa has no CUDA kernels, so it cannot compute on CuPy arrays; "
            "build it with BRASA_CUDA=on, or pass NumPy arrays"
        ) from error
    runtime = cupy.cuda.runtime
    fault = _fault_of_gpu(cupy, runtime.getDevice())
    if fault:
        raise TypeError(f"brasa cannot compute on CuPy arrays: {fault}")
    stream_in_use = cupy.cuda.get_current_stream
    register(
        kind,
        cupy,
        _cuda,
        current_stream=lambda: stream_in_use().ptr,
        allocate=cupy.cuda.alloc,
        current_device=runtime.getDevice if runtime.getDeviceCount() > 1 else None,
        empty=cupy_empty(cupy),
    )
    return _backends[kind]


def cupy_empty(cupy: Any) -> Callable[[tuple[int, ...], Any, bool], Any]:
    """`Backend.empty` for CuPy's arrays, made with their strides: a transposed array takes half as long again, and
    with a base it is a view, which the tape does not add gradients to in place.
    """
    ndarray, allocate = cupy.ndarray, cupy.cuda.alloc

    def empty(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Any:
        if not channels_last or 0 in shape:
            return ndarray(shape, dtype)
        batch, channels, *image = shape
        itemsize = np.dtype(dtype).itemsize
        strides, step = [itemsize], channels * itemsize
        for extent in reversed(image):
            strides.insert(1, step)
            step *= extent
        return ndarray(shape, dtype, allocate(batch * step), (step, *strides))

    return empty


def is_array(x: Any) -> bool:
    """Whether `x` is an array that kernels take as it is."""
    return type(x) in _backends or _is_cupy(x)


def _is_cupy(x: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def backend_of(array: Any) -> Backend:
    """What belongs to this array's type."""
    try:
        return _backends[type(array)]
    except KeyError:
        if _is_cupy(array):
            return _register_cupy(type(array))
        raise TypeError(f"no array: {type(array).__name__}") from None


def as_array(x: Any, name: str = "x") -> Any:
    """The door: `x` itself when it is an array, else converted to one.

    Python floats become float32, ints int64, bools bool. Anything with DLPack or ``__array__`` (a torch
    tensor, a subclass of ndarray) becomes a NumPy array, or a CuPy array where it lies on a GPU, without a
    copy where its library allows that. A
    NumPy array that is misaligned or of foreign byte order is copied.

    Raises
    ------
    TypeError
        When `x` is no number, sequence of numbers or array.
    """
    if type(x) in _backends:
        return x if type(x) is not np.ndarray or (x.flags.aligned and x.dtype.isnative) else _native(x)
    if _is_cupy(x):
        backend_of(x)
        return x
    if _is_on_gpu(x):
        return _from_gpu(x, name)
    try:
        converted = np.asarray(x)
    except ValueError:  # a sequence of unequal shapes, such as what a recurrent layer returns
        raise TypeError(f"{name}: expected one array of numbers, got {type(x).__name__} of several") from None
    except (TypeError, RuntimeError, BufferError) as error:  # such as a torch tensor that requires a gradient
        raise TypeError(
            f"{name}: NumPy cannot read this {type(x).__module__}.{type(x).__name__}: {error} "
            "(detach it first, and cast bfloat16 to float32)"
        ) from error
    if converted.dtype == object or converted.dtype.kind in "USmM":
        raise TypeError(f"{name}: expected an array of numbers, got {type(x).__name__}")
    is_typed = hasattr(x, "__array__") or hasattr(x, "__dlpack__")
    if converted.dtype == np.float64 and not is_typed:
        converted = converted.astype(np.float32)
    return _native(converted)


_ON_CUDA = (2, 13)  # DLPack's device types: CUDA memory, and managed


def _is_on_gpu(x: Any) -> bool:
    """Whether another library's array, such as a tensor of PyTorch or JAX, lies on an NVIDIA GPU."""
    ask = getattr(type(x), "__dlpack_device__", None)
    if ask is not None:
        return ask(x)[0] in _ON_CUDA
    return hasattr(type(x), "__cuda_array_interface__")


def _from_gpu(x: Any, name: str) -> Any:
    """A CuPy array that shares the memory of `x`."""
    cupy = import_cupy("cuda")
    try:
        array = cupy.from_dlpack(x) if hasattr(x, "__dlpack__") else cupy.asarray(x)
    except (BufferError, TypeError, RuntimeError) as error:  # such as a tensor that requires a gradient
        raise TypeError(f"{name}: a {type(x).__name__} on a GPU could not be shared: {error}") from error
    backend_of(array)
    return array


def _native(x: np.ndarray) -> np.ndarray:
    return np.require(x, x.dtype.newbyteorder("="), "A").view(np.ndarray)


def kernels(*arrays: Any) -> Any:
    """The native module for these arrays (None counts for nothing).

    Raises
    ------
    TypeError
        When they are of several kinds, such as a NumPy and a CuPy array.
    """
    chosen: Backend | None = None
    for array in arrays:
        if array is None:
            continue
        backend = backend_of(array)
        if chosen is None:
            chosen = backend
        elif backend is not chosen:
            raise TypeError(
                f"all arrays must be on one device, got one on {chosen.name} ({chosen.namespace.__name__}) "
                f"and one on {backend.name} ({backend.namespace.__name__})"
            )
    assert chosen is not None
    return chosen.kernels


def namespace(array: Any) -> Any:
    """NumPy, or what stands for it beside this kind of array."""
    return backend_of(array).namespace


def layout(array: Any) -> int:
    """`C_ORDER`, `CHANNELS_LAST` (which wins for an array that is both), or 0 for a strided array."""
    return backend_of(array).kernels.layout(array)


def dense(array: Any) -> Any:
    """`array`, or a C-contiguous copy when it is neither C-contiguous nor channels-last."""
    backend = backend_of(array)
    return array if backend.kernels.layout(array) else backend.namespace.ascontiguousarray(array)


def laid_out_like(array: Any, other: Any) -> Any:
    """`other`, of the rank of the dense `array`; a copy in its layout when it is laid out differently."""
    backend = backend_of(array)
    wanted = backend.kernels.layout(array)
    if backend.kernels.layout(other) == wanted or (wanted == C_ORDER and other.flags.c_contiguous):
        return other
    if wanted == CHANNELS_LAST and other.dtype.char in "fd" and other.flags.c_contiguous:
        return to_channels_last(other)
    copy = backend.empty(other.shape, other.dtype, wanted == CHANNELS_LAST)
    copy[...] = other
    return copy


_LARGE = 64 * 1024  # elements from which a second thread shortens a sum


@cache
def is_narrow(dtype: Any) -> bool:
    """Whether this is a 16-bit floating dtype: float16, or bfloat16, which NumPy does not have."""
    return dtype.itemsize == 2 and (dtype.char == "e" or dtype.name == "bfloat16")


def _adding(a: Any, b: Any) -> Backend | None:
    """What adds `a` and `b` by a kernel: they are large or on a device, dense and laid out alike.

    CuPy lays the sum of two channels-last arrays out in C order, and the next convolution converts it back.
    """
    if type(a) is np.ndarray and (a.size < _LARGE or a.dtype.char not in "fd"):
        return None
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return None
    if a.dtype.char not in "fd" and not is_narrow(a.dtype):
        return None
    backend = backend_of(a)
    layout = backend.kernels.layout(a)
    return backend if layout and layout == backend.kernels.layout(b) else None


def add(a: Any, b: Any) -> Any:
    """``a + b``."""
    backend = _adding(a, b)
    if backend is None:
        return a + b
    total = backend.empty_like(a)
    backend.kernels.add(a, b, total)
    return total


def add_to(total: Any, other: Any) -> None:
    """``total += other``."""
    backend = _adding(total, other)
    if backend is None:
        total += other
    else:
        backend.kernels.add(total, other, total)


def cast(array: Any, dtype: Any) -> Any:
    """`array` with its elements as `dtype`. Between float32 and 16 bits a device does it by a kernel: CuPy
    would compile one of its own first.
    """
    dtype, given = np.dtype(dtype), array.dtype
    wide = (given.char == "f" and is_narrow(dtype)) or (dtype.char == "f" and is_narrow(given))
    if type(array) is np.ndarray or not wide:
        return array.astype(dtype)
    backend = backend_of(array)
    lies = backend.kernels.layout(array)
    if not lies:
        array = backend.namespace.ascontiguousarray(array)
    result = backend.empty(array.shape, dtype, lies == CHANNELS_LAST)
    backend.kernels.cast(array, result)
    return result


def to_channels_last(images: Any) -> Any:
    """A channels-last copy of `images`, a C-contiguous array of float32 or float64."""
    backend = backend_of(images)
    copy = backend.empty(images.shape, images.dtype, True)
    backend.kernels.images_to_channels_last(images, copy)
    return copy


def contiguous(array: Any) -> Any:
    """`array`, or a copy when it is not C-contiguous."""
    return array if array.flags.c_contiguous else namespace(array).ascontiguousarray(array)


def empty(like: Any, shape: tuple[int, ...], dtype: Any = None, channels_last: bool = False) -> Any:
    """A new array of the kind and device of `like`; results are allocated here and nowhere else."""
    return backend_of(like).empty(shape, like.dtype if dtype is None else dtype, channels_last)


def empty_like(array: Any) -> Any:
    """A new array of this shape, dtype and kind, channels-last where `array` is."""
    return backend_of(array).empty_like(array)


def device_of(array: Any) -> str:
    """``"cpu"`` or ``"cuda:0"``."""
    backend = backend_of(array)
    if backend.name == "cpu":
        return "cpu"
    device = getattr(array, "device", 0)
    return f"cuda:{getattr(device, 'id', device)}"


def to_numpy(array: Any) -> np.ndarray:
    """The values on the host; a NumPy array is returned as it is."""
    if type(array) is np.ndarray:
        return array
    return array.get() if hasattr(array, "get") else np.asarray(array)


def to_device(array: Any, device: str) -> Any:
    """`array` on ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; the array itself when it is there already.

    Raises
    ------
    ValueError
        When the name is no device, or this machine or build has no such device.
    """
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind == "cpu" and not number:
        return to_numpy(array)
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:1', got {device!r}")
    cupy = import_cupy(device)
    with cupy.cuda.Device(int(number or 0)):
        return cupy.asarray(array)


def beside(array: Any, like: Any) -> Any:
    """`array` in the kind of array that `like` is, on its device; the array itself when it is there."""
    if type(array) is type(like) and device_of(array) == device_of(like):
        return array
    if backend_of(like).name == "cpu":
        return to_numpy(array)
    _capture.forbid_host(array)
    device = getattr(like, "device", None)  # CuPy allocates on the current device, whatever it copies
    with device if device is not None and hasattr(device, "__enter__") else nullcontext():
        return namespace(like).asarray(array)


def cuda_backend() -> Backend:
    """What belongs to CuPy's arrays."""
    return backend_of(import_cupy("cuda").empty(0))


def import_cupy(device: str) -> ModuleType:
    """The module cupy, or a ValueError that says what is missing for `device`, such as ``"cuda:1"``."""
    try:
        import cupy
    except ImportError as error:
        raise ValueError(
            f"device {device!r} needs CuPy: install the extra [cuda] of the package {distribution()}"
        ) from error
    number = int(device.partition(":")[2] or 0)
    fault = _fault_of_gpu(cupy, number)
    if fault:
        raise ValueError(f"device {device!r} cannot be used: {fault}")
    return cupy


_OLDEST_CUDA, _OLDEST_DRIVER = 13000, 580  # what the toolkit that builds _cuda asks for
_OLDEST_GPU = 8, 0


def _fault_of_gpu(cupy: Any, number: int) -> str:
    """What keeps GPU `number` from being used, in words; empty where nothing does."""
    runtime = cupy.cuda.runtime
    driver = runtime.driverGetVersion()  # 0 without one
    if not driver:
        return "this machine has no NVIDIA driver"
    if driver < _OLDEST_CUDA:
        return (
            f"the NVIDIA driver is of CUDA {driver // 1000}.{driver % 1000 // 10}, brasa's kernels need "
            f"CUDA {_OLDEST_CUDA // 1000}: install driver {_OLDEST_DRIVER} or later"
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status != runtime.errorNoDevice:
            return f"CUDA says {error}"
        count = 0
    if not count:
        return "CUDA finds no GPU on this machine"
    if number >= count:
        return f"this machine has {count} GPU{'s' * (count > 1)}, counted from cuda:0"
    found = runtime.getDeviceProperties(number)
    capability = found["major"], found["minor"]
    if capability < _OLDEST_GPU:
        return (
            f"the GPU ({found['name'].decode()}) has compute capability {capability[0]}.{capability[1]}, "
            f"brasa's kernels need {_OLDEST_GPU[0]}.{_OLDEST_GPU[1]} or more"
        )
    return ""


def distribution() -> str:
    """The name this package is installed under, for messages that say what to install."""
    from importlib.metadata import packages_distributions

    return next(iter(packages_distributions().get("brasa", [])), "brasa-dl")
