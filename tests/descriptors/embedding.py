"""Embedding: rows are copied, so the result is exact."""

from __future__ import annotations

import numpy as np

from descriptors import Operator


def _sample(rng, dtype):
    rows, columns = int(rng.integers(1, 9)), int(rng.choice([1, 3, 16, 65]))
    indices = rng.integers(0, rows, tuple(rng.integers(1, 5, rng.integers(1, 4)))).astype(
        rng.choice([np.int32, np.int64])
    )
    weight = rng.standard_normal((rows, columns)).astype(dtype)
    return {"indices": indices, "weight": weight, "padding_idx": None}


def _embedding(indices, weight, padding_idx):
    return weight[indices]


OPERATORS = [
    Operator(
        "embedding", _sample, _embedding, lambda a, y, unit: np.zeros_like(y), gradients=("weight",),
        batched=("indices",), indices=("indices",),
    ),
]  # fmt: skip
