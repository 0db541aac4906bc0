"""Softmax and log-softmax along any axis.

Arrays of any shape, float32 or float64, on CUDA also float16 or bfloat16: sums are float32. An array that
is C-contiguous or channels-last is taken as it lies and gives its layout to the result; any other is copied
first. A line that is all -inf, or holds a NaN or +inf, gives NaN.
"""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["log_softmax", "log_softmax_backward", "softmax", "softmax_backward"]


def _axis(x: Any, axis: Any) -> int:
    """`axis` counted from the front."""
    if x.ndim == 0:
        raise ValueError("x: expected at least 1 dimension, got shape ()")
    axis = _check.integer("axis", axis, minimum=-x.ndim, maximum=x.ndim - 1)
    return axis % x.ndim


def _forward(kernel: str, x: Any, axis: Any) -> Any:
    if type(axis) is int:
        try:  # most arrays lie as the kernel takes them, and small ones last no longer than the checks
            _, _, kernels, _, empty_like = _backend.backend_of(x)
            y = empty_like(x)
            getattr(kernels, kernel)(x, y, axis if axis >= 0 else axis + x.ndim)
            return y
        except _check.UNUSUAL:
            pass
    x = _backend.dense(_check.device_floating("x", x))
    y = _backend.empty_like(x)
    getattr(_backend.backend_of(x).kernels, kernel)(x, y, _axis(x, axis))
    return y


def _backward(kernel: str, dy: Any, y: Any, axis: Any) -> Any:
    dy, y = _check.device_floating("dy", dy), _backend.dense(_check.device_floating("y", y))
    _check.shape("dy", dy, y.shape)
    _check.same_dtype(y=y, dy=dy)
    dy = _backend.laid_out_like(y, dy)
    dx = _backend.empty_like(y)
    getattr(_backend.backend_of(y).kernels, kernel)(dy, y, dx, _axis(y, axis))
    return dx


def _softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`, without overflow.

    Parameters
    ----------
    x : array or Tensor
        Any shape of at least one dimension, float32 or float64, on CUDA also of 16 bits.
    axis : int, default -1
        The dimension whose elements sum to 1.

    Returns
    -------
    array or Tensor
        The shape, dtype and layout of `x`.

    Raises
    ------
    ValueError
        When `axis` is out of range.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.float32([[0, 0], [1000, 1000]]))
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    return _forward("softmax_forward", x, axis)


def softmax_backward(dy: Any, y: Any, axis: int = -1) -> Any:
    """The gradient of `softmax` with respect to its input: y * (dy - sum(y * dy)).

    Parameters
    ----------
    dy : array
        The gradient of the result.
    y : array
        The result.
    axis : int, default -1
        As for `softmax`.

    Returns
    -------
    array
        The shape, dtype and layout of `y`.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_backward(np.float32([1, 0]), np.float32([0.5, 0.5]))
    array([ 0.25, -0.25], dtype=float32)
    """
    return _backward("softmax_backward", dy, y, axis)


def _log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) along `axis`, from the maximum and the log of the sum of exponentials.

    Parameters
    ----------
    x : array or Tensor
        Any shape of at least one dimension, float32 or float64, on CUDA also of 16 bits.
    axis : int, default -1
        The dimension whose elements' exponentials sum to 1.

    Returns
    -------
    array or Tensor
        The shape, dtype and layout of `x`.

    Raises
    ------
    ValueError
        When `axis` is out of range.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax(np.float32([0, 0])).round(4)
    array([-0.6931, -0.6931], dtype=float32)
    """
    return _forward("log_softmax_forward", x, axis)


def log_softmax_backward(dy: Any, y: Any, axis: int = -1) -> Any:
    """The gradient of `log_softmax` with respect to its input: dy - exp(y) * sum(dy).

    Parameters
    ----------
    dy : array
        The gradient of the result.
    y : array
        The result.
    axis : int, default -1
        As for `log_softmax`.

    Returns
    -------
    array
        The shape, dtype and layout of `y`.

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax_backward(np.float32([1, 0]), np.log(np.float32([0.5, 0.5]))).round(4)
    array([ 0.5, -0.5], dtype=float32)
    """
    return _backward("log_softmax_backward", dy, y, axis)


softmax = differentiable(_softmax, softmax_backward)
log_softmax = differentiable(_log_softmax, log_softmax_backward)
