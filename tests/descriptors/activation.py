"""Activations: forward values from float64 NumPy, bounds in ULP as the table of vector functions has them."""

from __future__ import annotations

import math

import numpy as np

from descriptors import Operator

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sample(rng, dtype):
    shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    x[np.abs(x) < 0.05] = 0.5  # away from kinks, for finite differences
    return {"x": x}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


REFERENCES = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "celu": _elu,
    "sigmoid": _sigmoid,
    "tanh": lambda x: np.tanh(x),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "step": lambda x: np.heaviside(x, 0),
    "sign": lambda x: np.sign(x),
}


def _bound(arguments, y, unit):
    """8 units of the larger of |y| and 2^-2 |x|: differences such as expm1's cancel against 1."""
    return 8 * unit * np.maximum(np.abs(y), 0.25 * np.abs(arguments["x"])) + 1e-44


OPERATORS = [
    Operator(name, _sample, reference, _bound, gradients=("x",), batched=("x",))
    for name, reference in REFERENCES.items()
]
