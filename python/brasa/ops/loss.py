"""Cross-entropy, from the maximum and the log of the sum of exponentials: softmax is never formed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["cross_entropy", "cross_entropy_backward"]

_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


def _options(label_smoothing: Any, reduction: Any) -> tuple[float, int]:
    smoothing = _check.number("label_smoothing", label_smoothing)
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    return smoothing, _REDUCTIONS[reduction]


def _operands(logits: Any, targets: Any, weight: Any, ignore_index: Any) -> tuple[Any, Any, Any, int]:
    """The checked operands as the kernels take them."""
    logits = _backend.dense(_check.device_floating("logits", logits))
    if logits.ndim < 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected shape (N, C, ...) with at least one class, got {logits.shape}")
    ignore_index = _check.integer("ignore_index", ignore_index, minimum=-(2**63), maximum=2**63 - 1)
    positions = (logits.shape[0], *logits.shape[2:])
    targets = _backend.as_array(targets, "targets")
    if targets.dtype.kind == "f":
        _check.shape("targets", targets, logits.shape, "probabilities have the shape of logits")
        _check.vector("targets", targets, logits=logits)
        targets = _backend.laid_out_like(logits, targets)
    else:
        targets = _check.indices("targets", targets, logits.shape[1], ignored=ignore_index)
        _check.shape("targets", targets, positions, f"one class for each position of logits {logits.shape}")
        _backend.kernels(logits, targets)
    if weight is not None:
        weight = _backend.contiguous(_check.vector("weight", weight, logits=logits))
        _check.shape("weight", weight, (logits.shape[1],), "one for each class")
    return logits, targets, weight, ignore_index


def _is_plain(logits: Any, targets: Any, weight: Any, ignore_index: Any) -> bool:
    """Whether the kernels can be asked at once: arrays of one kind, and one class per position. They check
    the rest themselves; where they refuse, the general way converts the arguments or words the error.
    """
    kind = type(logits)
    return (
        _backend.is_array(logits)
        and _backend.backend_of(logits).name == "cpu"  # elsewhere BRASA_CHECK may ask for more
        and type(targets) is kind
        and (weight is None or type(weight) is kind)
        and type(ignore_index) is int
        and targets.ndim == logits.ndim - 1
        and targets.dtype.kind != "f"
    )


def _forward(
    logits: Any, targets: Any, weight: Any, ignore_index: int, smoothing: float, kind: int, save: bool
) -> Any:
    """`cross_entropy` of operands as the kernels take them."""
    positions = (logits.shape[0], *logits.shape[2:])
    _, _, kernels, empty, _ = _backend.backend_of(logits)
    dtype = _check.wide(logits.dtype)
    loss = empty(positions if kind == 0 else (), dtype, False)
    statistics = empty((2, *positions), dtype, False) if save else None
    divisor = empty((), dtype, False) if save else None
    kernels.cross_entropy_forward(
        logits, targets, weight, ignore_index, smoothing, kind, loss, statistics, divisor
    )
    return (loss, (statistics, divisor)) if save else loss


def _statistics(saved: Any, logits: Any) -> tuple[Any, Any]:
    """The arrays that `_forward` kept for `logits`."""
    statistics, divisor = (_check.vector("saved", x, logits=logits) for x in _check.saved(saved, 2))
    _check.shape("saved", statistics, (2, logits.shape[0], *logits.shape[2:]), "as for the forward")
    _check.shape("saved", divisor, (), "as for the forward")
    return _backend.contiguous(statistics), divisor


def _backward(
    dy: Any,
    logits: Any,
    targets: Any,
    weight: Any,
    ignore_index: int,
    smoothing: float,
    kind: int,
    saved: Any,
) -> Any:
    """The gradient for operands as the kernels take them."""
    dy = _backend.contiguous(_check.vector("dy", dy, logits=logits))
    _check.shape("dy", dy, (logits.shape[0], *logits.shape[2:]) if kind == 0 else ())
    statistics, divisor = saved
    backend = _backend.backend_of(logits)
    dlogits = backend.empty_like(logits)
    backend.kernels.cross_entropy_backward(
        dy, logits, targets, weight, ignore_index, smoothing, kind, statistics, divisor, dlogits
    )
    return dlogits


def _cross_entropy(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    save: bool = False,
) -> Any:
    """-log(softmax(logits)) of the target class, or averaged with the target probabilities.

    Parameters
    ----------
    logits : array or Tensor
        (N, C, ...), float32 or float64, on CUDA also of 16 bits: C classes for each position (N, ...).
        Beside 16 bits everything else is float32: probabilities, weights, the loss.
    targets : array
        Classes (N, ...), integers in [0, C); or probabilities (N, C, ...) of the dtype of `logits`.
    weight : array, optional
        (C,), what a class counts. With classes the mean divides by the sum of the weights used.
    ignore_index : int, default -100
        A class that counts for nothing.
    label_smoothing : float, default 0.0
        Share of each target that is spread over all classes, in [0, 1].
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of the positions. The mean of none is NaN.
    save : bool, default False
        Also return what `cross_entropy_backward` needs.

    Returns
    -------
    array or Tensor
        Shape (), or (N, ...) with ``reduction="none"``; with `save` a pair (loss, saved).

    Raises
    ------
    ValueError
        Shapes that do not fit; a class out of range, with its value and position. On CUDA that class gives
        NaN and no gradient instead, unless ``BRASA_CHECK=1`` is set, which waits for the device.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.float32([[0, 0], [0, 1000]])
    >>> cross_entropy(logits, np.array([0, 1]), reduction="none").round(4)
    array([0.6931, 0.    ], dtype=float32)
    """
    smoothing, kind = _options(label_smoothing, reduction)
    if _is_plain(logits, targets, weight, ignore_index):
        with suppress(*_check.UNUSUAL):
            return _forward(logits, targets, weight, ignore_index, smoothing, kind, save)
    return _forward(*_operands(logits, targets, weight, ignore_index), smoothing, kind, save)


def cross_entropy_backward(
    dy: Any,
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    saved: Any,
) -> Any:
    """The gradient of `cross_entropy` with respect to `logits`.

    Parameters
    ----------
    dy : array
        The gradient of the result.
    logits, targets, weight, ignore_index, label_smoothing, reduction
        As they were passed to `cross_entropy`.
    saved : tuple
        What ``cross_entropy(..., save=True)`` returned beside the loss.

    Returns
    -------
    array
        The shape, dtype and layout of `logits`.

    Examples
    --------
    >>> import numpy as np
    >>> logits, targets = np.float32([[0, 0]]), np.array([1])
    >>> loss, saved = cross_entropy(logits, targets, save=True)
    >>> cross_entropy_backward(np.float32(1), logits, targets, saved=saved)
    array([[ 0.5, -0.5]], dtype=float32)
    """
    smoothing, kind = _options(label_smoothing, reduction)
    if _is_plain(logits, targets, weight, ignore_index):
        with suppress(*_check.UNUSUAL):
            return _backward(dy, logits, targets, weight, ignore_index, smoothing, kind, saved)
    operands = _operands(logits, targets, weight, ignore_index)
    return _backward(dy, *operands, smoothing, kind, _statistics(saved, operands[0]))


cross_entropy = differentiable(_cross_entropy, cross_entropy_backward)
