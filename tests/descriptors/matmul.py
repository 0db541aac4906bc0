"""Matrix products: the bound counts the additions of one chain and those that join the blocks of K."""

from __future__ import annotations

import math

import numpy as np

from descriptors import Operator

ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))),
}


def _sample(rng, dtype):
    """A batch of rows against one transposed weight, as a linear layer calls it."""
    batch, m, k, n = (int(i) for i in rng.integers(1, 7, 4))
    n = int(rng.choice([n, 17, 33]))
    transpose_b = bool(rng.integers(2))
    return {
        "a": rng.standard_normal((batch, m, k)).astype(dtype),
        "b": rng.standard_normal((n, k) if transpose_b else (k, n)).astype(dtype),
        "bias": rng.standard_normal(n).astype(dtype),
        "residual": rng.standard_normal((batch, m, n)).astype(dtype) + dtype(4),  # away from relu's kink
        "activation": list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))],
        "transpose_b": transpose_b,
    }


def _sample_broadcast(rng, dtype):
    """Batches of matrices that broadcast against each other."""
    outer, inner, m, k, n = (int(i) for i in rng.integers(1, 4, 5))
    transpose_a = bool(rng.integers(2))
    return {
        "a": rng.standard_normal((outer, 1, k, m) if transpose_a else (outer, 1, m, k)).astype(dtype),
        "b": rng.standard_normal((inner, k, n)).astype(dtype),
        "transpose_a": transpose_a,
    }


def _operands(a, b, transpose_a, transpose_b):
    return np.swapaxes(a, -1, -2) if transpose_a else a, np.swapaxes(b, -1, -2) if transpose_b else b


def _reference(a, b, bias=0, activation=None, residual=0, transpose_a=False, transpose_b=False):
    a, b = _operands(a, b, transpose_a, transpose_b)
    return ACTIVATIONS[activation](np.einsum("...ik,...kj->...ij", a, b) + bias + residual)


def product_bound(a, b, unit, extra=0.0):
    """(K + 2) units of the sum of absolute products: no chain is longer than K."""
    magnitude = np.abs(a) @ np.abs(b) + np.abs(extra)
    return (a.shape[-1] + 4) * unit * magnitude + a.shape[-1] * 2.0**-149


def _bound(arguments, y, unit):
    """gelu's slope is at most 1.13, the others' 1; activations add 8 units of their own."""
    a, b = _operands(
        arguments["a"], arguments["b"], arguments.get("transpose_a"), arguments.get("transpose_b")
    )
    extra = np.abs(arguments.get("bias", 0)) + np.abs(arguments.get("residual", 0))
    return 1.2 * product_bound(a, b, unit, extra) + 8 * unit * (np.abs(y) + 0.25)


OPERATORS = [
    Operator(
        "matmul", _sample, _reference, _bound,
        gradients=("a", "b", "bias", "residual"), batched=("a", "residual"),
    ),
    Operator(
        "matmul", _sample_broadcast, _reference, _bound, gradients=("a", "b"), batched=("a",),
    ),
]  # fmt: skip
