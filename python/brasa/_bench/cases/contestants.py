"""What the cases of all families share: random arrays, and the peers' ways of calling.

`on` says where arrays are made: NumPy's on the CPU, or CuPy's on a GPU, whose memory PyTorch's tensors share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Any

import numpy as np

from brasa._bench.harness import Call

Peers = Collection[str]


_DRAWN = (
    1 << 20
) - 3  # elements that are random; larger arrays repeat them, which is quicker and looks the same

_device = "cpu"


def on(device: str) -> None:
    """Make the arrays of all cases on this device from now on: "cpu" or "cuda"."""
    global _device
    _device = device


def placed(x: np.ndarray) -> Any:
    """`x` on the device of the cases."""
    if _device == "cpu":
        return x
    import cupy

    return cupy.asarray(x)


def array(*shape: int, seed: int = 0) -> Any:
    """Normal numbers, float32."""
    count = prod(shape)
    drawn = placed(np.random.default_rng(seed).standard_normal(min(count, _DRAWN), dtype=np.float32))
    return (drawn if count <= _DRAWN else np.tile(drawn, -(-count // _DRAWN))[:count]).reshape(shape)


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


def narrowed(x: Any, *, channels_last: bool = False) -> Any:
    """`x` in bfloat16."""
    import ml_dtypes

    host = (x.get() if hasattr(x, "get") else x).astype(ml_dtypes.bfloat16)
    if not channels_last:
        return placed(host)
    return placed(host.transpose(0, 2, 3, 1).copy()).transpose(0, 3, 1, 2)


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
