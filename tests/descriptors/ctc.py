"""Connectionist temporal classification: the sum over alignments by logarithms in float64."""

from __future__ import annotations

import numpy as np

from descriptors import Operator
from descriptors.softmax import log_softmax


def sample(rng, dtype):
    steps, samples, classes = (int(rng.integers(1, n)) for n in (12, 5, 20))
    classes += 1
    blank = int(rng.integers(0, classes))
    zero_infinity = bool(rng.random() < 0.5)
    # At most (T - 1) / 2 labels always fit, repeated or not.
    longest = steps + 1 if zero_infinity else (steps - 1) // 2
    target_lengths = rng.integers(0, longest + 1, samples)
    input_lengths = rng.integers(steps if not zero_infinity else 0, steps + 1, samples)
    targets = rng.integers(0, classes - 1, (samples, longest + 1))
    targets += targets >= blank
    if rng.random() < 0.3:
        targets = np.concatenate([row[:n] for row, n in zip(targets, target_lengths, strict=True)])
    return {
        "log_probs": log_softmax(rng.standard_normal((steps, samples, classes)) * 2, -1).astype(dtype),
        "targets": targets.astype(rng.choice([np.int32, np.int64])),
        "input_lengths": input_lengths, "target_lengths": target_lengths, "blank": blank,
        "zero_infinity": zero_infinity, "reduction": str(rng.choice(["mean", "sum", "none"])),
    }  # fmt: skip


def targets_of(targets, lengths):
    """Each sample's labels as a list."""
    if targets.ndim == 2:
        return [row[:n].tolist() for row, n in zip(targets, lengths, strict=True)]
    return [part.tolist() for part in np.split(targets, np.cumsum(lengths)[:-1])]


def sample_loss(log_probs, labels, blank):
    """-log of the probability of `labels` under log_probs (T, C).

    Logarithms of the size of the loss lose digits that the kernels keep: hence more than float64.
    """
    log_probs = log_probs.astype(np.longdouble)
    states = [blank, *(state for label in labels for state in (label, blank))]
    reach = np.full(len(states), -np.inf)
    reach[0] = 0  # before the first step: as if at the blank
    before_first = True
    for row in log_probs:
        new = np.full(len(states), -np.inf, np.longdouble)
        for s, state in enumerate(states):
            sources = [reach[s]]
            if s > 0:
                sources.append(reach[s - 1])
            if s > 1 and state not in (blank, states[s - 2]) and not before_first:
                sources.append(reach[s - 2])
            new[s] = np.logaddexp.reduce(sources) + row[state]
        reach, before_first = new, False
    return float(-np.logaddexp.reduce(reach[-2:]))


def losses_of(log_probs, targets, input_lengths, target_lengths, blank):
    labels = targets_of(targets, target_lengths)
    return np.array(
        [
            sample_loss(log_probs[:steps, n], labels[n], blank)
            for n, steps in enumerate(np.asarray(input_lengths).reshape(-1))
        ]
    )


def reduced(losses, target_lengths, reduction):
    if reduction == "mean":
        return np.mean(losses / np.maximum(target_lengths, 1))
    return losses.sum() if reduction == "sum" else losses


def ctc_loss(
    log_probs, targets, input_lengths, target_lengths, blank=0, *, reduction="mean", zero_infinity=False
):
    losses = losses_of(log_probs, targets, input_lengths, target_lengths, blank)
    if zero_infinity:
        losses[np.isinf(losses)] = 0
    return np.asarray(reduced(losses, target_lengths, reduction))


def loss_bound(losses, steps, unit):
    """A step adds three probabilities (two roundings), multiplies (one) and takes an exponential (up to 2
    ULP, four units): seven units of relative error, which is absolute in the logarithm. Then the last sum, its
    logarithm and the result are rounded.
    """
    return (8 * np.asarray(steps) + 8) * unit + 2 * unit * np.abs(losses)


def _bound(arguments, y, unit):
    losses = losses_of(
        *(arguments[k] for k in ("log_probs", "targets", "input_lengths", "target_lengths", "blank"))
    )
    losses[np.isinf(losses)] = 0
    each = loss_bound(losses, arguments["input_lengths"], unit)
    return reduced(each, arguments["target_lengths"], arguments["reduction"]) + 4 * unit * np.abs(y)


OPERATORS = [
    Operator(
        "ctc_loss", sample, ctc_loss, _bound, gradients=("log_probs",),
        indices=("targets", "input_lengths", "target_lengths"),
    ),
]  # fmt: skip
