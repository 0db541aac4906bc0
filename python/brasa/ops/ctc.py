"""Connectionist temporal classification: a loss of sequences whose alignment is not known."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["ctc_loss", "ctc_loss_backward"]

_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
_ANY = 2**31  # what a length or label is compared with depends on the other arguments


def _on_host(array: Any) -> Any:
    """The values of `array` where reading them waits for no device, or waiting was asked for."""
    if type(array) is np.ndarray or os.environ.get("BRASA_CHECK") == "1":
        return _backend.to_numpy(array)
    return None


def _lengths(name: str, lengths: Any, like: Any, count: int) -> tuple[Any, Any]:
    """The lengths as an array of int64 beside `like`, and on the host where that is known."""
    given = _backend.as_array(lengths, name)
    lengths = _check.indices(name, lengths, _ANY, like=like).reshape(-1).astype(np.int64, copy=False)
    _check.shape(name, lengths, (count,), "one for each sample")
    return lengths, _on_host(lengths if type(given) is type(lengths) else given.reshape(-1))


class _Operands:
    """The checked arguments of a call as the kernels take them."""

    def __init__(
        self,
        log_probs: Any,
        targets: Any,
        input_lengths: Any,
        target_lengths: Any,
        blank: Any,
        reduction: Any,
    ) -> None:
        log_probs = _check.floating_in_autocast("log_probs", log_probs)
        _check.rank("log_probs", log_probs, 2, 3, shape="(T, N, C) or (T, C)")
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
        self.reduction = _REDUCTIONS[reduction]
        self.blank = _check.integer("blank", blank, minimum=0)
        if self.blank >= log_probs.shape[-1]:
            raise ValueError(f"blank: expected a class of {log_probs.shape[-1]}, got {self.blank}")
        self.shape = log_probs.shape
        self.loss_shape = log_probs.shape[1:-1] if self.reduction == 0 else ()
        rows = log_probs if log_probs.ndim == 3 else log_probs[:, None]
        self.batch_first = not rows.flags.c_contiguous and rows.transpose(1, 0, 2).flags.c_contiguous
        self.log_probs = rows if self.batch_first else _backend.contiguous(rows)
        self.take_targets(targets, input_lengths, target_lengths)

    def take_targets(self, targets: Any, input_lengths: Any, target_lengths: Any) -> None:
        """Check targets and lengths against `log_probs`, and find the longest target."""
        steps, samples, _ = self.log_probs.shape
        targets = _check.indices("targets", targets, _ANY).astype(np.int64, copy=False)
        _check.rank("targets", targets, 1, 2, shape="(N, S), or those of all samples one after the other")
        if targets.ndim == 2:
            _check.shape("targets", targets, (samples, targets.shape[1]), "a row for each sample")
        _backend.kernels(self.log_probs, targets)
        inputs, known_inputs = _lengths("input_lengths", input_lengths, targets, samples)
        lengths, known = _lengths("target_lengths", target_lengths, targets, samples)
        self.targets = targets, inputs, lengths
        if known_inputs is not None:
            _check.up_to("input_lengths", known_inputs, steps, f"log_probs has {steps} steps")
        if known is None:
            self.longest = min(targets.shape[-1], steps)
            return
        _check.up_to("target_lengths", known, targets.shape[-1], f"targets has shape {targets.shape}")
        if targets.ndim == 1 and known.sum() != targets.size:
            raise ValueError(
                f"target_lengths: expected a sum of {targets.size}, as targets has, got {known.sum()}"
            )
        # A target longer than its steps cannot be spelt and needs no memory.
        self.longest = min(int(known.max(initial=0)), steps)
        if type(targets) is not np.ndarray and os.environ.get("BRASA_CHECK") == "1":
            self.check_labels(_backend.to_numpy(targets), known)

    def check_labels(self, targets: np.ndarray, lengths: np.ndarray) -> None:
        """Labels of a device array that is read back; on the CPU the kernels' binding does it."""
        used = np.ones(targets.shape, bool)
        if targets.ndim == 2:
            used = np.arange(targets.shape[1]) < lengths[:, None]
        classes = self.shape[-1]
        outside = used & ((targets < 0) | (targets >= classes) | (targets == self.blank))
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"targets: expected labels in [0, {classes}) other than the blank {self.blank}, "
                f"got {targets[at]} at position {at}"
            )


def _ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    *,
    reduction: str = "mean",
    zero_infinity: bool = False,
    save: bool = False,
) -> Any:
    """-log of the probability that log_probs spell the target, summed over all alignments.

    Parameters
    ----------
    log_probs : array or Tensor
        (T, N, C), or (T, C) for one sample: logarithms of the probabilities of C classes at each of T steps,
        float32 or float64. A transposed (N, T, C) is read as it lies.
    targets : array
        Labels, integers in [0, C) other than `blank`: (N, S), of which each row's first `target_lengths`
        count, or those of all samples one after the other, (sum of `target_lengths`,).
    input_lengths, target_lengths : array or sequence of int
        (N,): the steps of each sample, at most T, and the labels of each target. For one sample also an int.
    blank : int, default 0
        The class that stands for no label.
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of the samples. The mean is that of the losses each divided by the
        length of its target (by 1 where that is empty), as PyTorch has it; the mean of none is NaN.
    zero_infinity : bool, default False
        Whether a target that cannot be spelt (it needs a step for each label and one between equal ones)
        counts as 0, without gradient, and not as infinity, with a gradient of NaN.
    save : bool, default False
        Also return what `ctc_loss_backward` needs.

    Returns
    -------
    array or Tensor
        Shape (), or (N,) with ``reduction="none"``; with `save` a pair (loss, saved).

    Raises
    ------
    ValueError
        Shapes that do not fit; a length or label out of range, with its value and position. On CUDA such
        a sample's loss is NaN and its gradient 0 instead (lengths are looked at where they are no device
        arrays), unless ``BRASA_CHECK=1`` is set, which waits for the device.
    TypeError
        For another dtype.

    Notes
    -----
    The gradient is that by `log_probs` as they are given: -(the share of alignments that stand at class c
    at step t). PyTorch adds exp(log_probs), which the `log_softmax` before would add; through it both agree.

    A log-probability below -10^6 counts as minus infinity. Graves, Fernández, Gomez and Schmidhuber (2006),
    "Connectionist temporal classification".

    Examples
    --------
    >>> import numpy as np
    >>> log_probs = np.log(np.float32([[[0.6, 0.4]], [[0.5, 0.5]]]))  # two steps; blank and one label
    >>> loss = ctc_loss(log_probs, np.array([[1]]), [2], [1])          # "-1", "1-" and "11": 0.7
    >>> round(float(np.exp(-loss)), 3)
    0.7
    """
    o = _Operands(log_probs, targets, input_lengths, target_lengths, blank, reduction)
    steps, samples, _ = o.log_probs.shape
    losses = _backend.empty(o.log_probs, o.loss_shape)
    occupation = _backend.empty(o.log_probs, (samples, steps, o.longest + 1)) if save else None
    _backend.backend_of(o.log_probs).kernels.ctc_forward(
        o.log_probs, *o.targets, o.longest, o.blank, bool(zero_infinity), o.reduction, losses, occupation
    )
    return (losses, occupation) if save else losses


def ctc_loss_backward(
    dy: Any,
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    *,
    reduction: str = "mean",
    saved: Any,
) -> Any:
    """The gradient of `ctc_loss` with respect to `log_probs`.

    Parameters
    ----------
    dy : array
        The gradient of the result.
    log_probs, targets, input_lengths, target_lengths, blank, reduction
        As they were passed to `ctc_loss`; of `log_probs` only shape, dtype and layout count.
    saved : array
        What ``ctc_loss(..., save=True)`` returned beside the loss: the probability of standing at the blank
        and at each label, for every sample and step.

    Returns
    -------
    array
        The shape, dtype and layout of `log_probs`.

    Examples
    --------
    >>> import numpy as np
    >>> log_probs = np.log(np.float32([[[0.6, 0.4]], [[0.5, 0.5]]]))
    >>> arguments = log_probs, np.array([[1]]), [2], [1]
    >>> loss, saved = ctc_loss(*arguments, save=True)
    >>> ctc_loss_backward(np.float32(1), *arguments, saved=saved)[1, 0].round(3)
    array([-0.286, -0.714], dtype=float32)
    """
    o = _Operands(log_probs, targets, input_lengths, target_lengths, blank, reduction)
    dy = _backend.contiguous(_check.floating_in_autocast("dy", dy))
    _check.shape("dy", dy, o.loss_shape)
    _check.same_dtype(log_probs=o.log_probs, dy=dy)
    steps, samples, classes = o.log_probs.shape
    saved = _backend.contiguous(_check.floating("saved", saved))
    _check.same_dtype(log_probs=o.log_probs, saved=saved)
    _check.shape("saved", saved, (samples, steps, o.longest + 1), "as for the forward")
    if o.batch_first:
        gradient = _backend.empty(o.log_probs, (samples, steps, classes)).transpose(1, 0, 2)
    else:
        gradient = _backend.empty(o.log_probs, (steps, samples, classes))
    _backend.backend_of(gradient).kernels.ctc_backward(dy, *o.targets, o.blank, o.reduction, saved, gradient)
    return gradient.reshape(o.shape) if len(o.shape) == 2 else gradient


ctc_loss = differentiable(_ctc_loss, ctc_loss_backward)
