"""Arrays in emulated device memory, and the calls of the emulator's test kernels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

ORDERS = ["forward", "reverse", "random"]
TIMINGS = ["lazy", "eager", "random"]
# Bugs of softmax and of the bf16 product, as in selftest.h.
MISSING_BARRIER, DIVERGENT_BARRIER, READ_PAST_END = 1, 2, 3
WEAK_WAIT, STAGE_REUSED = 1, 2
# Bugs of the ring of stages.
NO_FENCE, NO_BARRIER = 1, 2  # of a panel
NO_WAIT_FOR_STAGE, GIVEN_BACK_EARLY, NO_WAIT_FOR_PRODUCT, WRONG_BYTES, NOT_INITIALISED = 1, 2, 3, 4, 5


class DeviceArray:
    """An array in device memory, the emulator's or a GPU's, copied from `values`."""

    def __init__(self, emulator: ModuleType, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        self.emulator, self.shape, self.dtype = emulator, values.shape, values.dtype
        self.nbytes = values.nbytes
        self.address: int = emulator.alloc(values.nbytes)
        emulator.write(self.address, values)

    def __del__(self) -> None:
        self.emulator.free(self.address)

    def get(self) -> np.ndarray:
        values = np.empty(self.shape, self.dtype)
        self.emulator.read(values, self.address)
        return values


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def run_sgemm(emulator: ModuleType, a: np.ndarray, b: np.ndarray, second_barrier: bool = True) -> np.ndarray:
    (m, k), n = a.shape, b.shape[1]
    left, right = DeviceArray(emulator, a), DeviceArray(emulator, b)
    product = DeviceArray(emulator, np.empty((m, n), np.float32))
    emulator.sgemm(left.address, right.address, product.address, m, n, k, second_barrier)
    return product.get()


def run_softmax(emulator: ModuleType, x: np.ndarray, bug: int = 0) -> np.ndarray:
    source, result = DeviceArray(emulator, x), DeviceArray(emulator, np.full_like(x, np.nan))
    emulator.softmax(source.address, result.address, *x.shape, bug)
    return result.get()


def softmax_reference(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    result: np.ndarray = e / e.sum(1, keepdims=True)
    return result


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of x, which bfloat16 holds exactly."""
    bits = x.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def run_tensor_gemm(
    emulator: ModuleType, kind: str, a: np.ndarray, b: np.ndarray, bug: int = 0
) -> np.ndarray:
    (m, k), n = a.shape, b.shape[1]
    if kind == "bf16":
        left, right = DeviceArray(emulator, to_bf16(a)), DeviceArray(emulator, to_bf16(b))
    else:
        left, right = DeviceArray(emulator, a), DeviceArray(emulator, b)
    product = DeviceArray(emulator, np.empty((m, n), np.float32))
    emulator.tensor_gemm(kind, left.address, right.address, product.address, m, n, k, bug)
    return product.get()


def run_ring_gemm(emulator: ModuleType, a: np.ndarray, b: np.ndarray, bug: int = 0) -> np.ndarray:
    """a (m, k) times the transpose of b (n, k)."""
    (m, k), n = a.shape, b.shape[0]
    left, right = DeviceArray(emulator, to_bf16(a)), DeviceArray(emulator, to_bf16(b))
    product = DeviceArray(emulator, np.full((m, n), np.nan, np.float32))
    emulator.ring_gemm(left.address, right.address, product.address, m, n, k, bug)
    return product.get()


def run_load_box(emulator: ModuleType, x: np.ndarray, at: tuple[int, ...]) -> np.ndarray:
    """What one load brings of `x`, 16-bit integers of four dimensions, from `at`, innermost first."""
    source = DeviceArray(emulator, x)
    result = DeviceArray(emulator, np.full((24, 64), 0xFFFF, np.uint16))
    strides = [stride // x.itemsize for stride in x.strides[2::-1]]
    emulator.load_box(source.address, result.address, x.shape[::-1], strides, at)
    return result.get()


def run_load_pixels(
    emulator: ModuleType, x: np.ndarray, walk: tuple[tuple[int, int], ...], at: tuple[int, ...]
) -> np.ndarray:
    """What one load brings of images `x` (N, H, W, C) of 16-bit integers; see selftest.h."""
    source = DeviceArray(emulator, x)
    result = DeviceArray(emulator, np.full((24, 64), 0xFFFF, np.uint16))
    emulator.load_pixels(source.address, result.address, x.shape, walk, at)
    return result.get()


def run_store_pixels(
    emulator: ModuleType,
    x: np.ndarray,
    shape: tuple[int, ...],
    walk: tuple[tuple[int, int], ...],
    at: tuple[int, ...],
) -> np.ndarray:
    """Images of `shape` and of ones but for what one store of x (24, 64) writes."""
    source = DeviceArray(emulator, x)
    result = DeviceArray(emulator, np.ones(shape, np.uint16))
    emulator.store_pixels(source.address, result.address, shape, walk, at)
    return result.get()


def run_wrapper(emulator: ModuleType, name: str, x: np.ndarray, words: int) -> np.ndarray:
    """What the PTX wrapper `name` of wrappers.cu makes of the words `x`."""
    source, result = DeviceArray(emulator, x), DeviceArray(emulator, np.full(words, 0xFFFFFFFF, np.uint32))
    emulator.wrapper(name, source.address, result.address, words)
    return result.get()


def run_panel(emulator: ModuleType, kind: str, x: np.ndarray, bug: int = 0) -> np.ndarray:
    """A copy (64, 64) of the bits of x, or x @ x.T twice side by side."""
    source = DeviceArray(emulator, to_bf16(x))
    shape, dtype = ((64, 64), np.uint16) if kind == "copy" else ((64, 128), np.float32)
    result = DeviceArray(emulator, np.zeros(shape, dtype))
    emulator.panel(kind, source.address, result.address, bug)
    return result.get()


def small_integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)
