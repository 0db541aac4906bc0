"""Optimiser steps: all parameters of a model in one native call, in place.

Each function takes lists of arrays, one entry per parameter: float32 or float64, all of one dtype on one
device, the parameters and their states C-contiguous. ``scale`` multiplies every gradient first: it undoes
the scaling of a loss, applies the factor of a clipping, or, negative, climbs. For arrays on a device it may
be one float64 there, which is not waited for. `brasa.optim` keeps the states and calls these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brasa import _backend, _capture, _cpu
from brasa.ops import _check

__all__ = ["adadelta_step", "adagrad_step", "adam_step", "rmsprop_step", "sgd_step"]

Arrays = Sequence[Any]


def _numbers(**values: Any) -> list[float]:
    """The values as floats; only the first step of a training pays for a look at anything but floats."""
    return [value if type(value) is float else _check.number(name, value) for name, value in values.items()]


def _memory(name: str, value: Any) -> float:
    """`value`, the share of an average that is kept, in [0, 1)."""
    share = _check.number(name, value)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return share


def _split(scale: Any) -> tuple[float, Any]:
    """`scale` as a number, and the device array that takes its place, or None."""
    if type(scale) is float:
        return scale, None
    if getattr(scale, "size", 0) == 1 and type(scale) is not np.ndarray and _backend.is_array(scale):
        if scale.dtype != np.float64:
            raise TypeError(f"scale: expected a number or one float64, got {scale.dtype}")
        return 1.0, scale
    return _check.number("scale", scale), None


def _step(
    name: str,
    params: Arrays,
    grads: Arrays,
    states: Sequence[Arrays | None],
    numbers: Sequence[float],
    scale_at: Any,
    *choices: bool,
) -> None:
    """Call the kernel. `numbers`, the scale among them, and `choices` are what its Params hold, in order."""
    collected = _capture.collected()
    if collected is not None:
        collected.append((numbers, choices))
        return
    if not isinstance(params, (list, tuple)):
        raise TypeError(f"params: expected a list of arrays, got {type(params).__name__}")
    recording, at, guard = _capture.current(), None, None
    if recording is not None:
        guard = recording.guard
        at = recording.reserve(numbers, np.float64, 1 if guard is None else guard.rows)
    kernel = getattr(_backend.backend_of(params[0]).kernels if params else _cpu, name)
    arguments = *states, *numbers, *choices, at, scale_at, None if guard is None else guard.flags
    if not kernel(params, grads, *arguments):
        kernel(params, [_backend.contiguous(g) for g in grads], *arguments)


def sgd_step(
    params: Arrays,
    grads: Arrays,
    buffers: Arrays | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    scale: float = 1.0,
) -> None:
    """One step of stochastic gradient descent.

    With g = scale grad + weight_decay p: ``v = momentum v + (1 - dampening) g`` and
    ``p -= lr (g + momentum v if nesterov else v)``; without momentum ``p -= lr g``.

    Parameters
    ----------
    params, grads : list of array
        The parameters, which change, and their gradients.
    buffers : list of array or None
        v, which change; unused without momentum. They start as zeros, and the first step is made with
        ``dampening=0``, so that v becomes g as it does in torch.
    lr, momentum, dampening, weight_decay, scale : float
        As above.
    nesterov : bool, default False
        Nesterov's momentum.

    Raises
    ------
    ValueError, TypeError
        An entry whose shape, dtype, device or layout does not fit, by its list and position; nothing has
        changed then.

    Examples
    --------
    >>> import numpy as np
    >>> p = np.float32([1, 2])
    >>> sgd_step([p], [np.float32([1, 1])], None, lr=0.5)
    >>> p
    array([0.5, 1.5], dtype=float32)
    """
    scale, scale_at = _split(scale)
    numbers = [
        *_numbers(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay),
        scale,
    ]
    _step("sgd_step", params, grads, [buffers], numbers, scale_at, bool(nesterov))


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    scale: float = 1.0,
) -> None:
    """One step of Adam (Kingma and Ba 2015), or of AdamW where the weight decay is decoupled.

    With g = scale grad + weight_decay p: ``m = beta1 m + (1 - beta1) g``, ``s = beta2 s + (1 - beta2) g^2``
    and ``p -= lr (m / (1 - beta1^step)) / (sqrt(s / (1 - beta2^step)) + eps)``. Decoupled, g is scale grad
    and p is multiplied with 1 - lr weight_decay first.

    Parameters
    ----------
    params, grads : list of array
        The parameters, which change, and their gradients.
    exp_avg, exp_avg_sq : list of array
        m and s, which change; zeros before the first step.
    step : int
        The number of this step, from 1.
    lr, beta1, beta2, eps, weight_decay, scale : float
        As above; the betas lie in [0, 1).
    decoupled : bool
        Whether the weight decay acts on the parameter itself.

    Raises
    ------
    ValueError, TypeError
        As for `sgd_step`.

    Examples
    --------
    >>> import numpy as np
    >>> p, m, s = np.ones((3, 2), np.float32)
    >>> m[:] = s[:] = 0
    >>> adam_step([p], [p], [m], [s], step=1, lr=0.5, beta1=0.9, beta2=0.999, eps=0, weight_decay=0,
    ...           decoupled=False)
    >>> p
    array([0.5, 0.5], dtype=float32)
    """
    step = _check.integer("step", step, minimum=1, maximum=2**63 - 1)
    scale, scale_at = _split(scale)
    lr, eps, weight_decay = _numbers(lr=lr, eps=eps, weight_decay=weight_decay)
    beta1, beta2 = _memory("beta1", beta1), _memory("beta2", beta2)
    step_size, root_correction = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    decay, added = (lr * weight_decay, 0.0) if decoupled else (0.0, weight_decay)
    numbers = step_size, beta1, beta2, eps, root_correction, added, decay, scale
    _step("adam_step", params, grads, [exp_avg, exp_avg_sq], numbers, scale_at)


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avg: Arrays,
    momentum_buffer: Arrays | None,
    grad_avg: Arrays | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
    scale: float = 1.0,
) -> None:
    """One step of RMSprop (Hinton 2012).

    With g = scale grad + weight_decay p: ``s = alpha s + (1 - alpha) g^2`` and
    ``u = g / (sqrt(s - a^2) + eps)``, where ``a = alpha a + (1 - alpha) g`` if centered, else 0. Then
    ``p -= lr b`` with ``b = momentum b + u``, or ``p -= lr u`` without momentum.

    Parameters
    ----------
    params, grads : list of array
        The parameters, which change, and their gradients.
    square_avg : list of array
        s, which change.
    momentum_buffer, grad_avg : list of array or None
        b and a, which change; unused without momentum, and where it is not centered.
    lr, alpha, eps, weight_decay, momentum, scale : float
        As above.
    centered : bool
        Whether to divide by the estimated variance.

    Raises
    ------
    ValueError, TypeError
        As for `sgd_step`.

    Examples
    --------
    >>> import numpy as np
    >>> p, s = np.float32([1]), np.float32([0])
    >>> rmsprop_step([p], [np.float32([4])], [s], None, None, lr=0.5, alpha=0.75, eps=0, weight_decay=0,
    ...              momentum=0, centered=False)
    >>> p, s
    (array([0.], dtype=float32), array([4.], dtype=float32))
    """
    scale, scale_at = _split(scale)
    numbers = [
        *_numbers(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum),
        scale,
    ]
    states = [square_avg, momentum_buffer, grad_avg]
    _step("rmsprop_step", params, grads, states, numbers, scale_at, bool(centered))


def adagrad_step(
    params: Arrays,
    grads: Arrays,
    state_sum: Arrays,
    *,
    step: int,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    scale: float = 1.0,
) -> None:
    """One step of Adagrad (Duchi et al. 2011).

    With g = scale grad + weight_decay p: ``s += g^2`` and
    ``p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)``.

    Parameters
    ----------
    params, grads : list of array
        The parameters, which change, and their gradients.
    state_sum : list of array
        s, which change.
    step : int
        The number of this step, from 1.
    lr, lr_decay, weight_decay, eps, scale : float
        As above.

    Raises
    ------
    ValueError, TypeError
        As for `sgd_step`.

    Examples
    --------
    >>> import numpy as np
    >>> p, s = np.float32([1]), np.float32([0])
    >>> adagrad_step([p], [np.float32([3])], [s], step=1, lr=0.5, lr_decay=0, weight_decay=0, eps=0)
    >>> p, s
    (array([0.5], dtype=float32), array([9.], dtype=float32))
    """
    step = _check.integer("step", step, minimum=1, maximum=2**63 - 1)
    scale, scale_at = _split(scale)
    lr, lr_decay, weight_decay, eps = _numbers(lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)
    numbers = lr / (1 + (step - 1) * lr_decay), weight_decay, eps, scale
    _step("adagrad_step", params, grads, [state_sum], numbers, scale_at)


def adadelta_step(
    params: Arrays,
    grads: Arrays,
    square_avg: Arrays,
    acc_delta: Arrays,
    *,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
    scale: float = 1.0,
) -> None:
    """One step of Adadelta (Zeiler 2012).

    With g = scale grad + weight_decay p: ``s = rho s + (1 - rho) g^2``,
    ``d = g sqrt(u + eps) / sqrt(s + eps)``, ``u = rho u + (1 - rho) d^2`` and ``p -= lr d``.

    Parameters
    ----------
    params, grads : list of array
        The parameters, which change, and their gradients.
    square_avg, acc_delta : list of array
        s and u, which change.
    lr, rho, eps, weight_decay, scale : float
        As above.

    Raises
    ------
    ValueError, TypeError
        As for `sgd_step`.

    Examples
    --------
    >>> import numpy as np
    >>> p, s, u = np.float32([1]), np.float32([0]), np.float32([4])
    >>> adadelta_step([p], [np.float32([2])], [s], [u], lr=0.25, rho=0.0, eps=0, weight_decay=0)
    >>> p, s, u
    (array([0.5], dtype=float32), array([4.], dtype=float32), array([4.], dtype=float32))
    """
    scale, scale_at = _split(scale)
    numbers = [*_numbers(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay), scale]
    _step("adadelta_step", params, grads, [square_avg, acc_delta], numbers, scale_at)
