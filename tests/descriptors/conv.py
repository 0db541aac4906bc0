"""Convolution: the reference is one product per tap, the bound that of a sum of products."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from references import conv as reference


def draw_geometry(rng, most_channels=5, most_size=9):
    """Keyword arguments of a convolution that fits, and the shapes of x and weight."""
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, outputs = (groups * int(rng.integers(1, most_channels + 1)) for _ in range(2))
    while True:
        size, kernel = rng.integers(1, most_size + 1, 2), rng.integers(1, 5, 2)
        stride, dilation, pads = rng.integers(1, 4, 2), rng.integers(1, 3, 2), rng.integers(0, 3, (2, 2))
        if np.all(dilation * (kernel - 1) + 1 <= size + pads.sum(1)):
            break
    arguments = {
        "stride": tuple(map(int, stride)), "padding": tuple(tuple(map(int, p)) for p in pads),
        "dilation": tuple(map(int, dilation)), "groups": groups,
    }  # fmt: skip
    batch = int(rng.integers(1, 4))
    return arguments, (batch, channels, *map(int, size)), (outputs, channels // groups, *map(int, kernel))


def _sample(rng, dtype):
    arguments, x, weight = draw_geometry(rng)
    out = reference.conv2d(np.zeros(x), np.zeros(weight), **arguments).shape
    draw = {"x": x, "weight": weight, "bias": weight[:1], "residual": out}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in draw.items()} | arguments


def _bound(arguments, y, unit):
    """(n + 4) units of the sum of absolute products: one chain of n, the bias and the residual."""
    n = arguments["weight"][0].size
    absolute = {k: np.abs(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    return (n + 4) * unit * reference.conv2d(**absolute) + n * 2.0**-149


OPERATORS = [
    Operator(
        "conv2d",
        _sample,
        reference.conv2d,
        _bound,
        gradients=("x", "weight", "bias", "residual"),
        batched=("x", "residual"),
    ),
]
