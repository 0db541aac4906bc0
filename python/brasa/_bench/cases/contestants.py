"""What the cases of all families share: random arrays, and the peers' ways of calling.

`on` says where arrays are made: NumPy's on the CPU, or CuPy's on a GPU, whose memory PyTorch's tensors share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import cache
from math import prod
from typing import Any

import numpy as np

from brasa import _backend
from brasa._autocast import narrow_dtype
from brasa._bench.harness import Call
from brasa._config import set_matmul_precision

Peers = Collection[str]


_DRAWN = (
    1 << 20
) - 3  # elements that are random; larger arrays repeat them, which is quicker and looks the same

_device = "cpu"


def on(device: str) -> None:
    """Make the arrays of all cases on this device from now on: "cpu" or "cuda"."""
    global _device
    _device = device


def device() -> str:
    """Where the arrays of all cases are made."""
    return _device


def placed(x: np.ndarray) -> Any:
    """`x` on the device of the cases."""
    if _device == "cpu":
        return x
    import cupy

    return cupy.asarray(x)


@cache
def _drawn(seed: int, device: str) -> Any:
    """The numbers that all arrays of a seed are made of, drawn once: drawing takes longer than most cases."""
    return placed(np.random.default_rng(seed).standard_normal(_DRAWN, dtype=np.float32))


def array(*shape: int, seed: int = 0) -> Any:
    """Normal numbers, float32."""
    count, drawn = prod(shape), _drawn(seed, _device)
    if count > _DRAWN:
        return np.tile(drawn, -(-count // _DRAWN))[:count].reshape(shape)
    return drawn[:count].copy().reshape(shape)


def whole_numbers(high: int, *shape: int) -> Any:
    """Uniform numbers of [0, high), int64."""
    return placed(np.random.default_rng(1).integers(0, high, shape))


def on_device(model: Any) -> Any:
    """The layers `model`, moved to the device of the cases."""
    return model if _device == "cpu" else model.to(_device)


def library(against: Peers) -> str | None:
    """The array library, "numpy" or "cupy", where it is among the peers."""
    name = "numpy" if _device == "cpu" else "cupy"
    return name if name in against else None


def tensor(x: Any) -> Any:
    """PyTorch's tensor in the memory of `x`."""
    import torch

    return torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.from_dlpack(x)


def channels_last(x: np.ndarray) -> np.ndarray:
    """A copy with channels-last strides."""
    return x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)


def narrowed(x: Any) -> Any:
    """`x` in bfloat16, in its layout."""
    return _backend.cast(x, narrow_dtype("bfloat16"))


def in_precision(x: Any, precision: str) -> Any:
    """`x`, or in the precision "bfloat16" a cast of it; "tf32" and "tf32x3" are matters of calls, not of arrays."""
    return narrowed(x) if precision == "bfloat16" else x


# What multiplies in each precision; tf32x3 is float32 by another way, and has its limit to beat.
UNITS = {"float32": "fma", "bfloat16": "bf16", "tf32": "tf32", "tf32x3": "fma"}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "tf32": 4.0, "tf32x3": 4.0}  # of a number


def torch_dtype(precision: str) -> Any:
    """What PyTorch's tensors are cast to, or None."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else None


def by_setting(calls: dict[str, Call], precision: str) -> dict[str, Call]:
    """The calls with products of float32 in "tf32", which brasa and PyTorch are told each in its own way, or in
    "tf32x3", which the others do not have.
    """
    if precision == "tf32x3":

        def thrice() -> Any:
            set_matmul_precision("tf32x3")
            try:
                return calls["brasa"]()
            finally:
                set_matmul_precision("ieee")

        return calls | {"brasa": thrice}
    if precision != "tf32":
        return calls

    def switched(call: Call) -> Call:
        def run() -> Any:
            set_matmul_precision("tf32")
            allow_tf32(True)
            try:
                return call()
            finally:
                set_matmul_precision("ieee")
                allow_tf32(False)

        return run

    return {name: switched(call) for name, call in calls.items()}


def allow_tf32(on: bool) -> None:
    """Whether PyTorch, where it is in use, computes products of float32 in TF32."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def in_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """`x` "contiguous" or "channels-last"."""
    return channels_last(x) if layout == "channels-last" else x


def torch_formats(make: Callable[[Any], Call], *arrays: np.ndarray, dtype: Any = None) -> dict[str, Call]:
    """PyTorch's two variants: `make` gets the tensors, contiguous and channels-last, of another dtype if given."""
    import torch

    plain = [tensor(a if a.flags.c_contiguous else a.copy()) for a in arrays]
    plain = plain if dtype is None else [t.to(dtype) for t in plain]
    inner = [
        t.clone().contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.clone() for t in plain
    ]
    return {"torch/contiguous": make(plain), "torch/channels-last": make(inner)}


def torch_autograd(function: Callable[..., Any], leaves: list[Any], dy: Any = None) -> Call:
    """PyTorch's forward and backward."""
    import torch

    inputs = [leaf.requires_grad_() for leaf in leaves]
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def torch_backward(function: Callable[..., Any], leaves: list[Any], dy: Any) -> Call:
    """PyTorch's backward alone, of a forward that was computed once."""
    import torch

    inputs = [leaf.requires_grad_() for leaf in leaves]
    result = function(*inputs)
    return lambda: torch.autograd.grad(result, inputs, dy, retain_graph=True)


def jax_call(function: Callable[..., Any], *arrays: np.ndarray) -> Call:
    """JAX's compiled function of arrays; returns when the result is there."""
    import jax

    compiled, inputs = jax.jit(function), [jax.numpy.asarray(a) for a in arrays]
    return lambda: jax.block_until_ready(compiled(*inputs))
