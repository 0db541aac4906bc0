"""Pooling: references loop over the windows in float64."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from references import pool as reference


def _image(rng, dtype):
    """Values at least 0.01 apart, in any order: a finite difference changes no maximum."""
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 20)), *map(int, rng.integers(5, 13, 2)))
    values = (rng.permutation(int(np.prod(shape))) - np.prod(shape) / 2) * 0.01
    return values.reshape(shape).astype(dtype)


def _sample_max(rng, dtype):
    kernel = tuple(map(int, rng.integers(1, 4, 2)))
    return {
        "x": _image(rng, dtype),
        "kernel_size": kernel,
        "stride": tuple(map(int, rng.integers(1, 4, 2))),
        "padding": tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel),
        "dilation": int(rng.integers(1, 3)) if min(kernel) == 1 or rng.random() < 0.3 else 1,
        "ceil_mode": bool(rng.integers(2)),
    }


def _sample_mean(rng, dtype):
    arguments = _sample_max(rng, dtype)
    del arguments["dilation"]
    arguments["count_include_pad"] = bool(rng.integers(2))
    arguments["divisor_override"] = [None, None, 3, -2][rng.integers(4)]
    return arguments


def _sample_adaptive(rng, dtype):
    height, width = map(int, rng.integers(1, 14, 2))
    return {"x": _image(rng, dtype), "output_size": (height, [width, None][rng.integers(2)])}


def _sample_global(rng, dtype):
    return {"x": _image(rng, dtype)}


def _exact(arguments, y, unit):
    return 0.0


def _mean_bound(arguments, y, unit):
    """A window of h rows and w columns is h + w additions and a division, each of half a unit."""
    x = arguments["x"]
    return (x.shape[2] + x.shape[3] + 2) * unit * np.abs(x).max() * 16


OPERATORS = [
    Operator("max_pool2d", _sample_max, reference.max_pool2d, _exact, ("x",), ("x",)),
    Operator("adaptive_max_pool2d", _sample_adaptive, reference.adaptive_max_pool2d, _exact, ("x",), ("x",)),
    Operator("global_max_pool2d", _sample_global, reference.global_max_pool2d, _exact, ("x",), ("x",)),
    Operator("avg_pool2d", _sample_mean, reference.avg_pool2d, _mean_bound, ("x",), ("x",)),
    Operator(
        "adaptive_avg_pool2d", _sample_adaptive, reference.adaptive_avg_pool2d, _mean_bound, ("x",), ("x",)
    ),
    Operator("global_avg_pool2d", _sample_global, reference.global_avg_pool2d, _mean_bound, ("x",), ("x",)),
]
