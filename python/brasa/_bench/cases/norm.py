"""Cases of softmax, layer norm and batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import (
    Peers,
    array,
    in_layout,
    jax_call,
    library,
    placed,
    tensor,
    torch_autograd,
    torch_backward,
    torch_formats,
)
from brasa._bench.harness import Call, Case


def _softmax_by_numpy(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax(rows: int, columns: int, against: Peers, *, backward: bool = False) -> Case:
    """Softmax over the last axis, or its gradient alone."""

    def make() -> dict[str, Call]:
        x, dy = array(rows, columns), array(rows, columns, seed=1)
        y = ops.softmax(x)
        calls: dict[str, Call] = {"brasa": lambda: ops.softmax(x)}
        if backward:
            calls["brasa"] = lambda: [ops.softmax_backward(dy, y)]
        own = library(against)
        if own and not backward:
            calls[own] = lambda: _softmax_by_numpy(x)
        if "torch" in against:
            import torch

            tx = tensor(x)
            calls["torch"] = lambda: torch.softmax(tx, -1)
            if backward:
                calls["torch"] = torch_backward(lambda t: torch.softmax(t, -1), [tx], tensor(dy))
        if "jax" in against and not backward:
            import jax

            calls["jax"] = jax_call(jax.nn.softmax, x)
        return calls

    name = f"softmax {'bwd ' if backward else ''}{rows}x{columns}"
    return Case("softmax", name, make, 0, (12.0 if backward else 8.0) * rows * columns)


def layer_norm(rows: int, columns: int, against: Peers, *, backward: bool = False) -> Case:
    """Layer norm over the last axis, with weight and bias, forward or with all gradients."""

    def make() -> dict[str, Call]:
        x, dy = array(rows, columns), array(rows, columns, seed=3)
        weight, bias = array(columns, seed=1), array(columns, seed=2)

        def both() -> Any:
            _, saved = ops.layer_norm(x, weight, bias, save=True)
            return ops.layer_norm_backward(dy, x, weight, saved=saved)[:3]

        calls: dict[str, Call] = {"brasa": both if backward else lambda: ops.layer_norm(x, weight, bias)}
        if "torch" in against:
            import torch

            leaves = [tensor(a) for a in (x, weight, bias)]

            def theirs(*t: Any) -> Any:
                return torch.nn.functional.layer_norm(t[0], (columns,), t[1], t[2])

            calls["torch"] = lambda: theirs(*leaves)
            if backward:
                calls["torch"] = torch_autograd(theirs, leaves, tensor(dy))
        return calls

    name = f"layer_norm {'fwd+bwd ' if backward else ''}{rows}x{columns}"
    size = 4.0 * rows * columns
    return Case("norm", name, make, 0, (5 if backward else 2) * size, distinct=(4 if backward else 2) * size)


def batch_norm(n: int, c: int, size: int, against: Peers, *, layout: str, backward: bool = False) -> Case:
    """Batch norm in training, with weight, bias and running statistics, forward or with all gradients."""

    def make() -> dict[str, Call]:
        x, dy = array(n, c, size, size), array(n, c, size, size, seed=3)
        vectors = [array(c, seed=i) for i in range(3)] + [placed(np.ones(c, np.float32))]
        weight, bias, mean, var = vectors
        ours, dours = in_layout(x, layout), in_layout(dy, layout)

        def both() -> Any:
            _, saved = ops.batch_norm(ours, weight, bias, mean, var, training=True, save=True)
            return ops.batch_norm_backward(dours, ours, weight, True, saved=saved)[:3]

        def forward() -> Any:
            return ops.batch_norm(ours, weight, bias, mean, var, training=True)

        def theirs(tensors: list[Any]) -> Call:
            import torch

            tx, tdy, tw, tb, tm, tv = tensors
            function = torch.nn.functional.batch_norm
            if backward:
                return torch_autograd(lambda *t: function(t[0], tm, tv, t[1], t[2], True), [tx, tw, tb], tdy)
            return lambda: function(tx, tm, tv, tw, tb, True)

        calls: dict[str, Call] = {"brasa": both if backward else forward}
        if "torch" in against:
            calls |= torch_formats(theirs, x, dy, *(vector.copy() for vector in vectors))
        return calls

    # The statistics read x once; the normalising pass reads it again, from memory where it exceeds the caches.
    # The backward does the same with x and dy.
    passes = 8 if backward else 3
    name = f"batch_norm training {'fwd+bwd ' if backward else ''}{n}x{c}x{size}x{size} {layout}"
    array_bytes = 4.0 * n * c * size * size
    distinct = (4 if backward else 2) * array_bytes
    return Case("norm", name, make, 0, passes * array_bytes, distinct=distinct)
