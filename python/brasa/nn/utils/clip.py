"""Gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from brasa._backend import namespace
from brasa.ops import _check
from brasa.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients, in place, such that their common norm is at most ``max_norm``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without a gradient are passed over.
    max_norm : float
        The limit.
    norm_type : float, default: 2.0
        ``p`` of the p-norm; ``float("inf")`` is the largest absolute value.
    error_if_nonfinite : bool, default: False
        Whether a norm that is NaN or infinite is an error; otherwise the gradients become so too.

    Returns
    -------
    Tensor
        The norm before clipping, ().

    Raises
    ------
    ValueError
        If the limit is negative or the norm's exponent is not positive.
    TypeError
        If one of them is no number.
    RuntimeError
        If the norm is not finite and ``error_if_nonfinite``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> weight = nn.Parameter(np.float32([3, 4]))
    >>> (weight * weight * 0.5).sum().backward()
    >>> float(nn.utils.clip_grad_norm_([weight], 1.0).numpy())
    5.0
    >>> weight.grad.numpy().round(3)
    array([0.6, 0.8], dtype=float32)
    """
    max_norm, norm_type = _check.number("max_norm", max_norm), _check.number("norm_type", norm_type)
    if not max_norm >= 0:
        raise ValueError(f"max_norm: expected at least 0, got {max_norm}")
    if not norm_type > 0:
        raise ValueError(f"norm_type: expected more than 0, got {norm_type}")
    grads = _gradients(parameters)
    if not grads:
        return Tensor(0.0)
    xp = namespace(grads[0])
    norms = xp.stack([xp.linalg.norm(g.reshape(-1), norm_type) for g in grads])
    total = norms.max() if math.isinf(norm_type) else xp.linalg.norm(norms, norm_type)
    if error_if_nonfinite and not bool(xp.isfinite(total)):
        raise RuntimeError(f"the norm of the gradients is {float(total)}; they were left as they are")
    # Always multiplied: deciding whether to would wait for the device.
    scale = xp.minimum(max_norm / (total + 1e-6), 1.0)
    for g in grads:
        g *= scale.astype(g.dtype)
    return Tensor(xp.asarray(total))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit every element of every gradient, in place, to [-clip_value, clip_value].

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without a gradient are passed over.
    clip_value : float
        The limit.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> weight = nn.Parameter(np.float32([3, -4]))
    >>> (weight * weight).sum().backward()
    >>> nn.utils.clip_grad_value_(weight, 7.0)
    >>> weight.grad.numpy()
    array([ 6., -7.], dtype=float32)
    """
    clip_value = _check.number("clip_value", clip_value)
    if not clip_value >= 0:
        raise ValueError(f"clip_value: expected at least 0, got {clip_value}")
    for g in _gradients(parameters):
        namespace(g).clip(g, -clip_value, clip_value, out=g)


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Any]:
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for t in tensors:
        if not isinstance(t, Tensor):
            raise TypeError(f"parameters: expected Tensors, got {type(t).__name__}")
    return [t.grad.data for t in tensors if t.grad is not None]
