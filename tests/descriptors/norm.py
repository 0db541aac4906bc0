"""Batch normalisation with given and with the batch's statistics, and layer normalisation."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from references import norm as reference


def _array(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def _sample_batch(rng, dtype):
    space = tuple(map(int, rng.integers(1, 6, rng.integers(0, 4))))
    shape = (int(rng.integers(2, 6)), int(rng.integers(1, 20)), *space)
    x = _array(rng, dtype, *shape) * dtype(2) + dtype(rng.integers(-3, 4))
    return {
        "x": x,
        "weight": _array(rng, dtype, shape[1]),
        "bias": _array(rng, dtype, shape[1]),
        "eps": 1e-3,
        "residual": _array(rng, dtype, *shape),
    }


def _sample_training(rng, dtype):
    return _sample_batch(rng, dtype) | {"training": True}


def _sample_eval(rng, dtype):
    arguments = _sample_batch(rng, dtype)
    channels = arguments["x"].shape[1]
    arguments["running_mean"] = _array(rng, dtype, channels)
    arguments["running_var"] = np.abs(_array(rng, dtype, channels)) + dtype(0.1)
    return arguments


def _sample_layer(rng, dtype):
    shape = (*map(int, rng.integers(1, 7, rng.integers(1, 4))), int(rng.integers(2, 70)))
    ndim = int(rng.integers(1, len(shape)))
    return {
        "x": _array(rng, dtype, *shape) * dtype(2) + dtype(rng.integers(-3, 4)),
        "weight": _array(rng, dtype, *shape[len(shape) - ndim :]),
        "bias": _array(rng, dtype, *shape[len(shape) - ndim :]),
        "eps": 1e-3,
        "normalized_ndim": ndim,
        "residual": _array(rng, dtype, *shape),
    }


def _batch_bound(arguments, y, unit):
    x = arguments["x"]
    if "training" in arguments:
        mean, var = reference.batch_statistics(x)
    else:
        mean, var = arguments["running_mean"], arguments["running_var"]
    mean, var, gain = (reference.over_channels(v, x) for v in (mean, var, arguments["weight"]))
    count = x.size / x.shape[1]
    return reference.error_bound(x, mean, var, arguments["eps"], count, gain, y, arguments["residual"], unit)


def _layer_bound(arguments, y, unit):
    x, ndim = arguments["x"], arguments["normalized_ndim"]
    axes = tuple(range(x.ndim - ndim, x.ndim))
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    count, gain = x[(0,) * (x.ndim - ndim)].size, arguments["weight"]
    return reference.error_bound(x, mean, var, arguments["eps"], count, gain, y, arguments["residual"], unit)


_ALL = ("x", "weight", "bias", "residual")

OPERATORS = [
    Operator("batch_norm", _sample_training, reference.batch_norm, _batch_bound, _ALL),
    Operator("batch_norm", _sample_eval, reference.batch_norm, _batch_bound, _ALL, ("x", "residual")),
    Operator("layer_norm", _sample_layer, reference.layer_norm, _layer_bound, _ALL, ("x", "residual")),
]
