"""Softmax and log-softmax along any axis, and the bound that section 2 of the error analysis gives them."""

from __future__ import annotations

import numpy as np

from descriptors import Operator


def sample(rng, dtype):
    """Short and long lines, contiguous and strided, with values spread over tens of units."""
    rank = int(rng.integers(1, 5))
    shape = [int(n) for n in rng.integers(1, 9, rank)]
    axis = int(rng.integers(-rank, rank))
    shape[axis] = int(rng.choice([1, 2, 10, 15, 16, 17, 31, 32, 33, 70]))
    x = (rng.standard_normal(shape) * rng.choice([1, 10])).astype(dtype)
    return {"x": x, "axis": axis}


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    below = x - x.max(axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis, keepdims=True))


def relative_error(arguments, unit):
    """What an element of softmax is off by, relative to itself.

    The rounding of x - max is a relative error of exp; the sum averages that of all elements, weighted with
    their probabilities; 16 covers exp, the quotient and the tree of the 16 lanes, n / 16 their chains.
    """
    x, axis = arguments["x"], arguments["axis"]
    below = np.abs(x - x.max(axis, keepdims=True))
    average = (softmax(x, axis) * below).sum(axis, keepdims=True)
    return (16 + below + average + x.shape[axis] / 16) * unit


def _softmax_bound(arguments, y, unit):
    return relative_error(arguments, unit) * y + 2.0**-140


def _log_softmax_bound(arguments, y, unit):
    return relative_error(arguments, unit) + 4 * unit * np.abs(y)


BOUNDS = {"softmax": _softmax_bound, "log_softmax": _log_softmax_bound}
OPERATORS = [
    Operator("softmax", sample, softmax, _softmax_bound, gradients=("x",)),
    Operator("log_softmax", sample, log_softmax, _log_softmax_bound, gradients=("x",)),
]
