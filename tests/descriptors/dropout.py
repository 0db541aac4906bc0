"""Dropout. Its mask is exact, so the only error is that of the scale 1 / (1 - p) and of the product."""

from __future__ import annotations

import numpy as np

from descriptors import Operator

_M0, _M1, _W0, _W1, _LOW = (
    np.uint64(v) for v in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF)
)
_32 = np.uint64(32)


def random_words(n, seed, offset):
    """Word i % 4 of Philox4x32-10 at counter offset + i // 4, for i < n."""
    counter = np.uint64(offset) + np.arange(-(-n // 4), dtype=np.uint64)
    c0, c1, c2, c3 = counter & _LOW, counter >> _32, np.zeros_like(counter), np.zeros_like(counter)
    k0, k1 = np.uint64(seed) & _LOW, np.uint64(seed) >> _32
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([c0, c1, c2, c3], -1).reshape(-1)[:n]


def _sample(rng, dtype):
    shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    p = float(rng.choice([0.0, 0.1, 0.5, 1.0]))
    return {"x": x, "p": p, "seed": int(rng.integers(2**62)), "offset": int(rng.integers(2**40))}


def _dropout(x, p, seed, offset):
    drop = random_words(x.size, seed, offset) < round(p * 2**32)
    return np.where(drop.reshape(x.shape), 0.0, x / (1 - p if p < 1 else 1))


OPERATORS = [
    Operator("dropout", _sample, _dropout, lambda a, y, unit: 2 * unit * np.abs(y), gradients=("x",)),
]
