"""Losses. The L2 term over a model's weights is the trainer's, which knows them all."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn import functional as F
from brasa.nn.module import Module
from brasa.tensor import Tensor

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CTCLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
]


class _Loss(Module):
    weight: Tensor | None

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = F.check_reduction(reduction)


class CrossEntropyLoss(_Loss):
    """``-log(softmax(x)[target])``: softmax and negative log-likelihood in one pass.

    Parameters
    ----------
    weight : array_like, optional
        (C,): weights of the classes; the mean divides by the sum of those used.
    ignore_index : int, default: -100
        A target that counts for nothing.
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the samples.
    label_smoothing : float, default: 0.0
        Share of each target that is spread over all classes.

    Notes
    -----
    Input: logits (N, C, ...). Target: classes, integers (N, ...), or probabilities (N, C, ...).
    Output: a scalar, or (N, ...) with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> round(nn.CrossEntropyLoss()(np.zeros((2, 4), np.float32), np.array([0, 3])).item(), 3)
    1.386
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of logits ``x`` (N, C, ...) against ``target``."""
        return ops.cross_entropy(
            x,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class NLLLoss(_Loss):
    """Negative log-likelihood ``-weight[target] * x[target]`` of log-probabilities.

    Parameters
    ----------
    weight : array_like, optional
        (C,): weights of the classes; the mean divides by the sum of those used.
    ignore_index : int, default: -100
        A target that counts for nothing.
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the samples.

    Notes
    -----
    Input (N, C, ...), target: integers (N, ...). Output: a scalar, or (N, ...) with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.NLLLoss()(np.float32([[-1.0, -2.0]]), np.array([1])).item()
    2.0
    """

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of log-probabilities ``x`` (N, C, ...) against classes ``target`` (N, ...)."""
        return F.nll_loss(x, target, self.weight, self.ignore_index, self.reduction)


class CTCLoss(_Loss):
    """-log of the probability that log-probabilities spell a target, summed over all alignments.

    Parameters
    ----------
    blank : int, default: 0
        The class that stands for no label.
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the samples; the mean is that of the losses each divided by the
        length of its target.
    zero_infinity : bool, default: False
        Whether a target that its steps cannot spell counts as 0 and not as infinity.

    Notes
    -----
    Input: log-probabilities (T, N, C), or (T, C) for one sample. Target: labels (N, S), or those of all
    samples one after the other. Output: a scalar, or (N,) with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> log_probs = np.full((5, 2, 4), np.log(0.25), np.float32)
    >>> round(nn.CTCLoss()(log_probs, np.array([[1, 2], [3, 0]]), [5, 4], [2, 1]).item(), 3)
    2.465
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        super().__init__(reduction)
        self.blank = blank
        self.zero_infinity = zero_infinity

    def forward(self, x: Any, target: Any, input_lengths: Any, target_lengths: Any) -> Any:
        """Return the loss of log-probabilities ``x`` (T, N, C) against ``target``; lengths are (N,)."""
        options = self.blank, self.reduction, self.zero_infinity
        return F.ctc_loss(x, target, input_lengths, target_lengths, *options)


class MSELoss(_Loss):
    """``(x - target)**2``, averaged over all elements.

    Parameters
    ----------
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.

    Notes
    -----
    Input and target have one shape, any. Output: a scalar, or that shape with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.MSELoss()(np.float32([1, 2]), np.float32([1, 4])).item()
    2.0
    """

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of ``x`` against ``target``, of one shape."""
        return F.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """``|x - target|``, averaged over all elements.

    Parameters
    ----------
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.

    Notes
    -----
    Input and target have one shape, any. Output: a scalar, or that shape with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.L1Loss()(np.float32([1, 2]), np.float32([1, 4])).item()
    1.0
    """

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of ``x`` against ``target``, of one shape."""
        return F.l1_loss(x, target, self.reduction)


class SmoothL1Loss(_Loss):
    """``d**2 / (2 beta)`` where d = |x - target| < beta, ``d - beta / 2`` beyond.

    Parameters
    ----------
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.
    beta : float, default: 1.0
        Where the parabola ends; 0 gives ``L1Loss``.

    Notes
    -----
    Input and target have one shape, any. Output: a scalar, or that shape with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.SmoothL1Loss()(np.float32([1, 2]), np.float32([2, 5])).item()
    1.5
    """

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if beta < 0:
            raise ValueError(f"beta: expected at least 0, got {beta}")
        self.beta = beta

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of ``x`` against ``target``, of one shape."""
        return F.smooth_l1_loss(x, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """``d**2 / 2`` where d = |x - target| <= delta, ``delta * (d - delta / 2)`` beyond.

    Parameters
    ----------
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.
    delta : float, default: 1.0
        Where the parabola ends.

    Notes
    -----
    Input and target have one shape, any. Output: a scalar, or that shape with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.HuberLoss(delta=2.0)(np.float32([1, 2]), np.float32([1, 6])).item()
    3.0
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"delta: expected more than 0, got {delta}")
        self.delta = delta

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of ``x`` against ``target``, of one shape."""
        return F.huber_loss(x, target, self.reduction, self.delta)


class BCELoss(_Loss):
    """``-(target * log(x) + (1 - target) * log(1 - x))`` of probabilities; the logarithms stop at -100.

    Parameters
    ----------
    weight : array_like, optional
        Multiplies the losses, broadcast against them.
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.

    Notes
    -----
    Input and target have one shape, any, and values in [0, 1]. Output: a scalar, or that shape with
    ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> round(nn.BCELoss()(np.float32([0.5, 1.0]), np.float32([1, 1])).item(), 3)
    0.347
    """

    def __init__(self, weight: Any = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of probabilities ``x`` against ``target``, of one shape."""
        return F.binary_cross_entropy(x, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """``BCELoss`` of ``sigmoid(x)``, exact for logits of any size.

    Parameters
    ----------
    weight : array_like, optional
        Multiplies the losses, broadcast against them.
    reduction : "mean", "sum" or "none", default: "mean"
        What is done with the losses of the elements.
    pos_weight : array_like, optional
        Multiplies the losses of positive targets, broadcast against them.

    Notes
    -----
    Input and target have one shape, any. Output: a scalar, or that shape with ``reduction="none"``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> round(nn.BCEWithLogitsLoss()(np.float32([0.0, 200.0]), np.float32([1, 1])).item(), 3)
    0.347
    """

    pos_weight: Tensor | None

    def __init__(self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, x: Any, target: Any) -> Any:
        """Return the loss of logits ``x`` against ``target``, of one shape."""
        return F.binary_cross_entropy_with_logits(x, target, self.weight, self.reduction, self.pos_weight)
