"""Activations: values and slopes from float64 NumPy; bounds in units in the last place (ULP).

`tests/ops/test_ulp.py` holds every function to its ULP over the bit patterns of float32; the generic
properties use the same figures on small arrays.
"""

from __future__ import annotations

import math

import numpy as np

from descriptors import Operator

_erfc = np.vectorize(math.erfc, otypes=[np.float64])
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _sample(rng, dtype):
    shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    for kink in (0, 1, 3):  # away from kinks, for finite differences
        x[np.abs(np.abs(x) - kink) < 0.05] = 0.5
    return {"x": x}


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _softplus(x, beta=1.0, threshold=20.0):
    z = beta * x
    return np.where(z > threshold, x, np.log1p(np.exp(np.minimum(z, threshold))) / beta)


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _cdf(x):
    return 0.5 * _erfc(-x / math.sqrt(2))


def _density(x):
    return np.exp(-0.5 * np.minimum(x * x, 1e4)) / math.sqrt(2 * math.pi)


def _tanh_argument(x):
    x = np.clip(x, -1e3, 1e3)
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def _gelu_tanh_slope(x):
    t = np.tanh(_tanh_argument(x))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope


def _mish_slope(x):
    t = np.tanh(_softplus(x))
    return t + x * (1 - t * t) * _sigmoid(x)


REFERENCES = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x, slope=0.01: np.where(x > 0, x, slope * x),
    "elu": _elu,
    "selu": lambda x: SELU_SCALE * _elu(x, SELU_ALPHA),
    "celu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)),
    "sigmoid": _sigmoid,
    "tanh": lambda x: np.tanh(x),
    "gelu": lambda x: x * _cdf(x),
    "gelu_tanh": lambda x: x * _sigmoid(2 * _tanh_argument(x)),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softplus": _softplus,
    "hardtanh": lambda x, low=-1.0, high=1.0: np.clip(x, low, high),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "step": lambda x: np.heaviside(x, 0),
    "sign": lambda x: np.sign(x),
}

DERIVATIVES = {
    "relu": lambda x: np.heaviside(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, 1, 0.01),
    "elu": lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, 1, SELU_ALPHA * np.exp(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
    "sigmoid": lambda x: _sigmoid(x) * _sigmoid(-x),
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "gelu": lambda x: _cdf(x) + x * _density(x),
    "gelu_tanh": _gelu_tanh_slope,
    "silu": lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x)),
    "mish": _mish_slope,
    "softplus": _sigmoid,
    "hardtanh": lambda x: (np.abs(x) < 1) * 1.0,
    "hardsigmoid": lambda x: (np.abs(x) < 3) / 6,
    "hardswish": lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
    "step": np.zeros_like,
    "sign": np.zeros_like,
}

WITH_PARAMETERS = [
    ("leaky_relu", (0.3,)),
    ("elu", (0.7,)),
    ("celu", (2.5,)),
    ("softplus", (2.0,)),
    ("softplus", (0.5, 1.0)),
    ("hardtanh", (-0.4, 2.0)),
]


def _bound(arguments, y, unit):
    """8 units of the larger of |y| and |x| / 4: x / 6 + 1 / 2, say, loses digits as it crosses 0."""
    return 8 * unit * np.maximum(np.abs(y), 0.25 * np.abs(arguments["x"])) + 1e-44


OPERATORS = [
    Operator(name, _sample, reference, _bound, gradients=("x",), batched=("x",))
    for name, reference in REFERENCES.items()
    if name != "gelu_tanh"  # gelu with approximate="tanh"
]
