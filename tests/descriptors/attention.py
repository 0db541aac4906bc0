"""Attention: the bound follows the weights, whose errors are those of the scores and of the sums of exponentials."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from descriptors.dropout import random_words

_KEYS = 64  # of a block: the longest chain of a sum


def _array(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def _sample(rng, dtype):
    """Batches that broadcast, and a mask of either kind, which all samples share."""
    n, h, rows, s, e, ev = (int(i) for i in rng.integers(1, 5, 6))
    rows, s = int(rng.choice([rows, 7, 66])), int(rng.choice([s, 40, 70]))
    mask = rng.random((1, h, rows, s)) < 0.7 if rng.integers(2) else _array(rng, dtype, 1, 1, s)
    return {
        "q": _array(rng, dtype, n, h, rows, e) * dtype(2),
        "k": _array(rng, dtype, n, 1, s, e) * dtype(2),
        "v": _array(rng, dtype, n, h, s, ev),
        "mask": mask,
        "causal": bool(rng.integers(2)),
        "scale": [None, 0.3][rng.integers(2)],
    }


def _sample_dropout(rng, dtype):
    """The mask of dropout depends on the place in the batch."""
    random = {"dropout_p": 0.3, "seed": int(rng.integers(2**62)), "offset": int(rng.integers(2**40))}
    return _sample_plain(rng, dtype) | {"causal": bool(rng.integers(2))} | random


def _sample_plain(rng, dtype):
    rows, s, e, ev = (int(rng.choice([1, 3, 17, 65])) for _ in range(4))
    return {
        "q": _array(rng, dtype, 2, rows, e),
        "k": _array(rng, dtype, 2, s, e),
        "v": _array(rng, dtype, 2, s, ev),
    }


def scores(q, k, mask, causal, scale):
    """(..., L, S), -inf where a query may not attend."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = scale * np.einsum("...le,...se->...ls", q, k)
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    return np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf) if causal else s


def weights(s):
    """The softmax, 0 in rows that are all -inf."""
    top = s.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    return p / np.where(total == 0, 1, total)


def attention(q, k, v, mask=None, causal=False, scale=None, dropout_p=0.0, seed=0, offset=0):
    p = weights(scores(q, k, mask, causal, scale))
    if dropout_p:
        drop = random_words(p.size, seed, offset) < round(dropout_p * 2**32)
        p = np.where(drop.reshape(p.shape), 0, p / (1 - dropout_p))
    return np.einsum("...ls,...se->...le", p, v)


def bound(arguments, y, unit, cut=0.0):
    """`cut` is how much of their products the operands of scores lost before."""
    a = {"mask": None, "causal": False, "scale": None} | arguments
    q, k, v = a["q"], a["k"], a["v"]
    s = scores(q, k, a["mask"], a["causal"], a["scale"])
    p = weights(s)
    scale = q.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    size = scale * np.einsum("...le,...se->...ls", np.abs(q), np.abs(k))
    if a["mask"] is not None and a["mask"].dtype != bool:
        size = size + np.abs(a["mask"])
    seen = np.isfinite(s)
    error = np.where(seen, ((q.shape[-1] + 4) * unit + cut) * size, 0).max(-1, keepdims=True, initial=0)
    top = np.where(seen, s, -np.inf).max(-1, keepdims=True, initial=-np.inf)
    # Exponents are rounded relative to their size, once for the weight and once for each rise of the maximum.
    fall = np.where(seen, top - np.where(seen, s, 0), 0).max(-1, keepdims=True, initial=0)
    count = k.shape[-2]
    relative = 2 * error + (2 * fall + 2 * min(count, _KEYS) + count / 8 + 32) * unit
    factor = 1 / (1 - arguments["dropout_p"]) if arguments.get("dropout_p") else 1
    return np.einsum("...ls,...se->...le", p * relative, np.abs(v)) * factor + 2.0**-140


OPERATORS = [
    Operator("attention", _sample, attention, bound, ("q", "k", "v"), ("q", "k", "v")),
    Operator("attention", _sample_plain, attention, bound, ("q", "k", "v"), ("q", "k", "v")),
    Operator("attention", _sample_dropout, attention, bound, ("q", "k", "v")),
]
