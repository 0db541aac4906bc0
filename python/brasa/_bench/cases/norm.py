"""Cases of softmax, layer norm and batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import (
    BYTES,
    Peers,
    array,
    in_layout,
    in_precision,
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


def _way(precision: str) -> str:
    """What stands behind a row's name."""
    return "" if precision == "float32" else f" {precision}"


def softmax(
    rows: int, columns: int, against: Peers, *, backward: bool = False, precision: str = "float32"
) -> Case:
    """Softmax over the last axis, or its gradient alone; of arrays in "float32" or "bfloat16"."""

    def make() -> dict[str, Call]:
        x, dy = (in_precision(array(rows, columns, seed=i), precision) for i in range(2))
        y = ops.softmax(x)
        calls: dict[str, Call] = {"brasa": lambda: ops.softmax(x)}
        if backward:
            calls["brasa"] = lambda: [ops.softmax_backward(dy, y)]
        own = library(against)
        if own and not backward:
            calls[own] = lambda: _softmax_by_numpy(x)
        if "torch" in against:
            import torch

            tx, tdy = (tensor(a) for a in (x, dy))
            calls["torch"] = lambda: torch.softmax(tx, -1)
            if backward:
                calls["torch"] = torch_backward(lambda t: torch.softmax(t, -1), [tx], tdy)
        if "jax" in against and not backward:
            import jax

            calls["jax"] = jax_call(jax.nn.softmax, x)
        return calls

    name = f"softmax {'bwd ' if backward else ''}{rows}x{columns}{_way(precision)}"
    nbytes = (3 if backward else 2) * BYTES[precision] * rows * columns
    return Case(f"softmax{_way(precision)}", name, make, 0, nbytes)


def layer_norm(
    rows: int, columns: int, against: Peers, *, backward: bool = False, precision: str = "float32"
) -> Case:
    """Layer norm over the last axis, with weight and bias, forward or with all gradients."""

    def make() -> dict[str, Call]:
        x, dy = (in_precision(array(rows, columns, seed=i), precision) for i in (0, 3))
        weight, bias = array(columns, seed=1), array(columns, seed=2)

        def both() -> Any:
            _, saved = ops.layer_norm(x, weight, bias, save=True)
            return ops.layer_norm_backward(dy, x, weight, saved=saved)[:3]

        calls: dict[str, Call] = {"brasa": both if backward else lambda: ops.layer_norm(x, weight, bias)}
        if "torch" in against:
            import torch

            leaves = [tensor(a) for a in (x, in_precision(weight, precision), in_precision(bias, precision))]

            def theirs(*t: Any) -> Any:
                return torch.nn.functional.layer_norm(t[0], (columns,), t[1], t[2])

            calls["torch"] = lambda: theirs(*leaves)
            if backward:
                calls["torch"] = torch_autograd(theirs, leaves, tensor(dy))
        return calls

    name = f"layer_norm {'fwd+bwd ' if backward else ''}{rows}x{columns}{_way(precision)}"
    size = BYTES[precision] * rows * columns
    nbytes, distinct = ((5 if backward else 2) * size, (4 if backward else 2) * size)
    return Case(f"norm{_way(precision)}", name, make, 0, nbytes, distinct=distinct)


def batch_norm(
    n: int,
    c: int,
    size: int,
    against: Peers,
    *,
    layout: str,
    backward: bool = False,
    precision: str = "float32",
) -> Case:
    """Batch norm in training, with weight, bias and running statistics, forward or with all gradients."""

    def make() -> dict[str, Call]:
        x, dy = (array(n, c, size, size, seed=i) for i in (0, 3))
        vectors = [array(c, seed=i) for i in range(3)] + [placed(np.ones(c, np.float32))]
        weight, bias, mean, var = vectors
        ours, dours = (in_precision(in_layout(a, layout), precision) for a in (x, dy))

        def both() -> Any:
            _, saved = ops.batch_norm(ours, weight, bias, mean, var, training=True, save=True)
            return ops.batch_norm_backward(dours, ours, weight, True, saved=saved)[:3]

        def forward() -> Any:
            return ops.batch_norm(ours, weight, bias, mean, var, training=True)

        def theirs(tensors: list[Any]) -> Call:
            import torch

            tx, tdy, *others = tensors
            if precision == "bfloat16":
                tx, tdy = tx.bfloat16(), tdy.bfloat16()
            tw, tb, tm, tv = others
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
    name = (
        f"batch_norm training {'fwd+bwd ' if backward else ''}{n}x{c}x{size}x{size} {layout}{_way(precision)}"
    )
    array_bytes = BYTES[precision] * n * c * size * size
    distinct = (4 if backward else 2) * array_bytes
    return Case(f"norm{_way(precision)}", name, make, 0, passes * array_bytes, distinct=distinct)
