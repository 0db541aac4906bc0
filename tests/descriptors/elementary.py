"""Elementary functions: float64 NumPy as the reference, bounds in units in the last place."""

from __future__ import annotations

import math

import numpy as np

from descriptors import Operator

ULP = {"exp": 1, "expm1": 2, "log": 1, "log1p": 2, "erf": 2}  # of float32; float64 gets one more


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sample(low, high):
    def sample(rng, dtype):
        shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
        limit = high if dtype == np.float32 else 3  # finite differences need a moderate slope
        return {"x": rng.uniform(max(low, -limit), limit, shape).astype(dtype)}

    return sample


def _bound(ulps):
    def bound(arguments, y, unit):
        return 2 * unit * (ulps + (unit < 2**-30)) * np.abs(y) + 1e-44

    return bound


OPERATORS = [
    Operator(name, _sample(low, high), reference, _bound(ULP[name]), gradients=("x",), batched=("x",))
    for name, reference, low, high in [
        ("exp", lambda x: np.exp(x), -20, 20),
        ("expm1", lambda x: np.expm1(x), -20, 20),
        ("log", lambda x: np.log(x), 1e-3, 20),
        ("log1p", lambda x: np.log1p(x), -0.9, 20),
        ("erf", lambda x: _erf(x), -4, 4),
    ]
]
