"""Measures of a model's output.

A metric is a function ``metric(output, target)`` of arrays. It returns one number per sample, which
are averaged over all samples, or a single number, which is averaged over the batches in proportion
to their size. Its ``__name__`` is its name in the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from brasa._backend import namespace, to_numpy

__all__ = ["Metric", "accuracy", "binary_accuracy", "confusion_matrix", "named_metrics"]

Metric: TypeAlias = Callable[[Any, Any], Any]


def accuracy(output: Any, target: Any) -> Any:
    """Tell for each sample whether the largest output is the target's class.

    Parameters
    ----------
    output : array of shape (N, C, ...)
        Scores or probabilities.
    target : array of shape (N, ...) or (N, C, ...)
        Class indices, or class probabilities.

    Returns
    -------
    array of bool, shape (N, ...)

    Examples
    --------
    >>> import numpy as np
    >>> accuracy(np.array([[0.1, 2.0], [3.0, 1.0]]), np.array([1, 1]))
    array([ True, False])
    """
    if target.ndim == output.ndim:
        target = target.argmax(axis=1)
    return output.argmax(axis=1) == target


def binary_accuracy(output: Any, target: Any) -> Any:
    """Tell for each element whether a logit's sign agrees with its target of 0 or 1.

    Parameters
    ----------
    output : array
        Logits: above 0 means 1.
    target : array of the same shape
        Zeros and ones.

    Returns
    -------
    array of bool, of that shape
    """
    return (output > 0) == (target > 0.5)


def confusion_matrix(target: Any, predicted: Any, classes: int | None = None) -> np.ndarray:
    """Count how often each class was taken for each class.

    Parameters
    ----------
    target : array of shape (N,)
        True class indices.
    predicted : array of shape (N,) or (N, C)
        Predicted class indices, or scores.
    classes : int, optional
        Number of classes C; by default as many as occur, or as there are scores.

    Returns
    -------
    ndarray of int64, shape (C, C)
        Row: true class; column: predicted class.

    Raises
    ------
    ValueError
        The lengths differ, or a class is outside ``range(classes)``.
    TypeError
        The classes are no integers.

    Examples
    --------
    >>> confusion_matrix([0, 0, 1], [0, 1, 1])
    array([[1, 1],
           [0, 1]])
    """
    truth, guess = np.asarray(to_numpy(target)), np.asarray(to_numpy(predicted))
    if guess.ndim == 2:
        classes = guess.shape[1] if classes is None else classes
        guess = guess.argmax(axis=1)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise ValueError(f"target has shape {truth.shape}, predicted {guess.shape}: need (N,) twice")
    both = np.concatenate([truth, guess])
    if both.size and both.dtype.kind not in "iub":
        raise TypeError(f"classes must be integers, got {both.dtype}")
    if classes is None:
        classes = int(both.max(initial=-1)) + 1
    if both.size and not (both.min() >= 0 and both.max() < classes):
        raise ValueError(f"classes from {both.min()} to {both.max()}, need 0 to {classes - 1}")
    pairs = truth.astype(np.int64) * classes + guess.astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


_BY_NAME = {"accuracy": accuracy, "binary_accuracy": binary_accuracy}


def named_metrics(
    metrics: Mapping[str, Metric] | Iterable[str | Metric] | None, loss: Any
) -> dict[str, Metric]:
    """Resolve a trainer's `metrics`; None means accuracy where the loss is of classification."""
    if metrics is None:
        kinds = {c.__name__ for c in type(loss).__mro__}
        return {"accuracy": accuracy} if kinds & {"CrossEntropyLoss", "NLLLoss"} else {}
    if isinstance(metrics, Mapping):
        return dict(metrics)
    resolved: dict[str, Metric] = {}
    for metric in metrics:
        if isinstance(metric, str) and metric not in _BY_NAME:
            raise ValueError(f"metrics: {metric!r} is none of {sorted(_BY_NAME)}")
        function = _BY_NAME[metric] if isinstance(metric, str) else metric
        if not callable(function):
            raise TypeError(f"metrics: {metric!r} is no function")
        resolved[metric if isinstance(metric, str) else function.__name__] = function
    return resolved


def total(value: Any, samples: int) -> tuple[Any, int]:
    """The sum, in float64 on the device, of one number per sample or of the mean of `samples` samples."""
    value = value if hasattr(value, "ndim") else np.asarray(value)
    if value.ndim:
        return namespace(value).sum(value, dtype="float64"), value.size
    return value.astype("float64") * samples, samples


class RunningMeans:
    """Means over the samples of an epoch, summed in float64 on the device of what is added.

    Nothing is read back from a device until `values` is called: asking for a loss after every batch
    would make the device wait for the host.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._sums: dict[str, Any] = dict.fromkeys(names, 0.0)
        self._counts: dict[str, int] = dict.fromkeys(names, 0)

    def add(self, totals: Mapping[str, tuple[Any, int]]) -> None:
        """Add the totals of a batch, by name: what `total` returns."""
        for name, (total, count) in totals.items():
            self._sums[name] = self._sums[name] + total
            self._counts[name] += count

    def values(self) -> dict[str, float]:
        """Return the means so far; NaN where nothing was added."""
        counts = self._counts
        return {k: float(v) / counts[k] if counts[k] else float("nan") for k, v in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts as plain numbers."""
        return {"sums": {k: float(v) for k, v in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums and counts, of the same names."""
        if set(state["sums"]) != set(self._sums):
            raise ValueError(f"metrics are {sorted(self._sums)}, the state has {sorted(state['sums'])}")
        self._sums = {k: float(state["sums"][k]) for k in self._sums}
        self._counts = {k: int(state["counts"][k]) for k in self._counts}
