"""Cases of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, jax_call, library, tensor, torch_backward
from brasa._bench.harness import Call, Case
from brasa.tensor import Tensor

_BY_NUMPY: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "relu": lambda x, out: np.maximum(x, 0, out=out),
    "tanh": lambda x, out: np.tanh(x, out=out),
    "hardtanh": lambda x, out: np.clip(x, -1, 1, out=out),
    "sign": lambda x, out: np.sign(x, out=out),
    "step": lambda x, out: np.heaviside(x, np.float32(0), out=out),
}


def torch_function(name: str) -> Callable[[Any], Any] | None:
    """PyTorch's function of that name, None where it has none."""
    import torch

    if name == "gelu_tanh":
        return lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    if name == "step":
        return lambda x: torch.heaviside(x, x.new_zeros(()))
    return getattr(torch.nn.functional, name, None) or getattr(torch, name, None)


def activation(
    name: str,
    against: Peers,
    *,
    backward: bool = False,
    shape: tuple[int, ...] = (16, 64, 112, 112),
    family: str = "",
    launches: bool = False,
    into: bool = False,
    recorded: bool = False,
) -> Case:
    """One activation, or its gradient alone; `into` an array that is there, or `recorded` on the tape."""

    def make() -> dict[str, Call]:
        x, dy = array(*shape), array(*shape, seed=1)
        value = x if ops.ACTIVATIONS[name].needs == "x" else ops.activation(x, name)
        out = np.empty_like(x)
        ours = getattr(ops, name, None)  # some are known by name alone
        calls: dict[str, Call] = {"brasa": lambda: ours(x) if ours else ops.activation(x, name)}
        if into:
            calls["brasa"] = lambda: ops.activation(x, name, out=out)
        if recorded:
            leaf = Tensor(x, requires_grad=True)
            calls["brasa"] = lambda: ops.activation(leaf, name).data
        if backward:
            calls["brasa"] = lambda: [ops.activation_backward(dy, value, name)]
        own = library(against)
        if own and name in _BY_NUMPY and not backward:
            calls[own] = lambda: _BY_NUMPY[name](x, out)
        if "torch" in against:
            calls |= _by_torch(name, x, dy, backward, recorded)
        if "jax" in against and not backward:
            import jax

            function = getattr(jax.nn, name, None)
            if function is not None and name not in ("gelu", "gelu_tanh"):  # jax's gelu is the other formula
                calls["jax"] = jax_call(function, x)
        return calls

    kind = "bwd" if backward else "fwd"
    size = float(np.prod(shape))
    label = f"{name} {kind} {'x'.join(map(str, shape))}{' out=' * into}{' recorded' * recorded}"
    nbytes = (3 if backward else 2) * 4.0 * size
    return Case(family or f"activation {kind}", label, make, 0, nbytes, launches=launches)


def _by_torch(
    name: str, x: np.ndarray, dy: np.ndarray, backward: bool, recorded: bool = False
) -> dict[str, Call]:
    function = torch_function(name)
    if function is None or (backward and name == "step"):
        return {}
    tx = tensor(x)
    if backward:
        return {"torch": torch_backward(function, [tx], tensor(dy))}
    if recorded:
        tx.requires_grad_(True)
        return {"torch": lambda: function(tx).detach()}
    return {"torch": lambda: function(tx)}
