"""Cross-entropy of classes and probabilities, in every combination of its options."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from descriptors.softmax import log_softmax, relative_error


def sample(rng, dtype):
    shape = [int(n) for n in rng.integers(1, 7, int(rng.integers(2, 5)))]
    shape[1] = int(rng.choice([1, 2, 10, 16, 17, 40]))
    logits = (rng.standard_normal(shape) * rng.choice([1, 10])).astype(dtype)
    if rng.random() < 0.6:
        targets = rng.integers(0, shape[1], (shape[0], *shape[2:])).astype(rng.choice([np.int32, np.int64]))
        targets[rng.random(targets.shape) < 0.2] = -100
        targets.flat[0] = 0  # a mean over nothing is NaN
    else:
        targets = rng.random(shape).astype(dtype)
    weight = (rng.random(shape[1]) + 0.5).astype(dtype) if rng.random() < 0.5 else None
    return {
        "logits": logits, "targets": targets, "weight": weight, "ignore_index": -100,
        "label_smoothing": float(rng.choice([0.0, 0.1, 1.0])), "reduction": str(rng.choice(["mean", "sum", "none"])),
    }  # fmt: skip


def _terms(logits, targets, weight, ignore_index, label_smoothing):
    """What -log p of every element is multiplied with, and the weight of every position."""
    classes = logits.shape[1]
    weight = np.ones(classes) if weight is None else weight
    along = weight.reshape(-1, *[1] * (logits.ndim - 2))
    if targets.dtype.kind == "f":
        return along * ((1 - label_smoothing) * targets + label_smoothing / classes), np.ones(
            (logits.shape[0], *logits.shape[2:])
        )
    used = targets != ignore_index
    chosen = np.where(used, targets, 0)
    one_hot = np.moveaxis(np.eye(classes)[chosen], -1, 1)
    factors = along * ((1 - label_smoothing) * one_hot + label_smoothing / classes)
    return factors * used[:, None], weight[chosen] * used


def cross_entropy(logits, targets, *, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    factors, weights = _terms(logits, targets, weight, ignore_index, label_smoothing)
    losses = -(factors * log_softmax(logits, 1)).sum(1)
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() / (weights.sum() if reduction == "mean" else 1))


def _bound(arguments, y, unit):
    """Each -log p within softmax's bound, times its factor; a chain of n / 16 + 8 for each sum."""
    logits = arguments["logits"]
    keys = ("targets", "weight", "ignore_index", "label_smoothing")
    factors, weights = _terms(logits, *(arguments[key] for key in keys))
    minus_log = -log_softmax(logits, 1)
    chain = (8 + logits.shape[1] / 16) * unit
    each = relative_error({"x": logits, "axis": 1}, unit) + (4 * unit + chain) * minus_log
    losses = (factors * each).sum(1)
    if arguments["reduction"] == "none":
        return losses + 1e-44
    return losses.sum() / (weights.sum() if arguments["reduction"] == "mean" else 1) + 4 * unit * np.abs(y)


OPERATORS = [
    Operator("cross_entropy", sample, cross_entropy, _bound, gradients=("logits",), indices=("targets",)),
]
