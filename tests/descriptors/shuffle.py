"""Pixel shuffle: references move one sub-pixel at a time."""

from __future__ import annotations

import numpy as np

from descriptors import Operator


def shuffled(x, upscale_factor):
    r = upscale_factor
    n, c, h, w = x.shape
    y = np.empty((n, c // (r * r), h * r, w * r), x.dtype)
    for k in range(c):
        y[:, k // (r * r), k // r % r :: r, k % r :: r] = x[:, k]
    return y


def unshuffled(x, downscale_factor):
    r = downscale_factor
    n, c, h, w = x.shape
    y = np.empty((n, c * r * r, h // r, w // r), x.dtype)
    for k in range(c * r * r):
        y[:, k] = x[:, k // (r * r), k // r % r :: r, k % r :: r]
    return y


def _sample(rng):
    """Batch, channels, height and width of the small image, and the factor."""
    return (*map(int, rng.integers(1, 7, 4)), int(rng.choice([1, 2, 2, 3, 4])))


def _sample_shuffle(rng, dtype):
    n, c, h, w, r = _sample(rng)
    return {"x": rng.standard_normal((n, c * r * r, h, w)).astype(dtype), "upscale_factor": r}


def _sample_unshuffle(rng, dtype):
    n, c, h, w, r = _sample(rng)
    return {"x": rng.standard_normal((n, c, h * r, w * r)).astype(dtype), "downscale_factor": r}


def _exact(arguments, y, unit):
    return 0.0


OPERATORS = [
    Operator("pixel_shuffle", _sample_shuffle, shuffled, _exact, ("x",), ("x",)),
    Operator("pixel_unshuffle", _sample_unshuffle, unshuffled, _exact, ("x",), ("x",)),
]
