"""Batch and layer normalisation with a fused epilogue, and their gradients.

``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``. Mean and variance are taken in two
passes over blocks that fit into cache, so nothing cancels where the mean is far larger than the deviation.
Arrays are float32 or float64, vectors of the same dtype as `x`. On CUDA arrays may be float16 or bfloat16:
vectors and statistics, and the gradients of vectors, are then float32.
"""

from __future__ import annotations

from math import prod
from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check
from brasa.ops.activation import activation_backward, native_activation, needs_input

__all__ = ["batch_norm", "batch_norm_backward", "layer_norm", "layer_norm_backward"]

Mask = tuple[bool, bool, bool, bool]
_RELU = native_activation("relu")
_INFINITY = float("inf")
ALL: Mask = (True, True, True, True)


def _vector(name: str, vector: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """`vector` as a C-contiguous array of this shape and the dtype of `x`, float32 beside 16 bits; None stays
    None.
    """
    if vector is None:
        return None
    vector = _check.vector(name, vector, x=x)
    _check.shape(name, vector, shape)
    return _backend.contiguous(vector)


def _new_vector(x: Any, shape: tuple[int, ...]) -> Any:
    return _backend.empty(x, shape, _check.wide(x.dtype))


def _like(name: str, other: Any, x: Any) -> Any:
    """`other`, of the shape and dtype of `x`, in its layout; None stays None."""
    if other is None:
        return None
    other = _check.device_floating(name, other)
    _check.same_dtype(**{"x": x, name: other})
    _check.shape(name, other, x.shape, "that of x")
    return _backend.laid_out_like(x, other)


def _eps(eps: Any) -> float:
    eps = _check.number("eps", eps)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    return eps


def _before_activation(dy: Any, x: Any, activation: Any, y: Any, saved: Any) -> Any:
    """The gradient of what the activation was applied to, in the layout of `x`."""
    dy = _like("dy", _check.device_floating("dy", dy), x)
    native = native_activation(activation)
    if native is None:
        return dy
    name, v = ("saved", saved) if needs_input(native) else ("y", y)
    if v is None:
        raise ValueError(f"{name}: needed for the gradient of {activation!r}")
    return activation_backward(dy, _like(name, v, x), activation)


# Batch ------------------------------------------------------------------------------------------------


def _batch(x: Any) -> Any:
    x = _backend.dense(_check.device_floating("x", x))
    _check.rank("x", x, 2, 3, 4, 5, shape="(N, C, ...)")
    return x


def _running(running_mean: Any, running_var: Any, x: Any, training: bool) -> tuple[Any, Any]:
    """Both statistics as kernels take them, or None twice."""
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(
            f"{missing}: expected an array, because the other running statistic is given; got None"
        )
    if running_mean is None and not training:
        raise ValueError("running_mean: needed with training=False, got None")
    found = []
    for name, given in (("running_mean", running_mean), ("running_var", running_var)):
        vector = _vector(name, given, x, x.shape[1:2])
        if vector is not None and not training:
            vector = vector if getattr(vector.flags, "writeable", True) else vector.copy()
        elif vector is not None and not _backend.is_array(given) and not hasattr(given, "__array__"):
            raise TypeError(
                f"{name}: training writes to it, so it must be an array; got {type(given).__name__}"
            )
        found.append(vector)
    return found[0], found[1]


def _plain_batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    running: tuple[Any, Any],
    training: Any,
    numbers: tuple[Any, Any],
    native: Any,
    keep: bool,
) -> Any:
    """The result, mean, 1 / deviation and, with `keep`, what the activation was applied to, of arrays as the
    kernel takes them: a network's are, and on a GPU its small layers last no longer than the checks. None for
    any other; the general way then words the error.
    """
    momentum, eps = numbers
    if type(momentum) is not float or type(eps) is not float or not 0 <= eps < _INFINITY:
        return None
    try:
        _, _, kernels, empty, empty_like = _backend.backend_of(x)
        channels = x.shape[1:2]
        if x.size <= channels[0] or (running[0] is None and not training):
            return None
        kind = type(x)
        for vector in (weight, bias, *running):
            if vector is not None and (vector.shape != channels or type(vector) is not kind):
                return None
        if residual is not None and type(residual) is not kind:
            return None
        statistic = _check.wide(x.dtype)
        y, mean, rstd = empty_like(x), empty(channels, statistic, False), empty(channels, statistic, False)
        pre = empty_like(x) if keep else None
        kernels.batch_norm_forward(
            x, weight, bias, residual, *running, mean, rstd, pre, y, bool(training), momentum, eps, native
        )
    except _check.UNUSUAL:
        return None
    return y, mean, rstd, pre


def _plain_batch_gradients(
    dy: Any,
    x: Any,
    weight: Any,
    training: bool,
    behind: tuple[Any, Any],
    saved: Any,
    relu_bias: Any,
    mask: Mask,
) -> tuple[Any, Any, Any, Any] | None:
    """The gradients where all arrays lie as the kernels take them, or None: see `_plain_batch_norm`. `behind` is
    the activation that the kernel does not take along, and what its slope is computed from.
    """
    native, source = behind
    try:
        _, _, kernels, empty, empty_like = _backend.backend_of(x)
        kind = type(x)
        for array in (dy, weight, relu_bias, *saved[:3]):
            if array is not None and type(array) is not kind:
                return None
        if not x.size or (weight is not None and weight.shape != x.shape[1:2]):
            return None
        if native is not None:
            g = empty_like(dy)
            kernels.activation_backward(dy, source, g, native)
            dy = g
        channels, wide = x.shape[1:2], _check.wide(x.dtype)
        dx = empty_like(x) if mask[0] else None
        dweight = empty(channels, wide, False) if mask[1] else None
        dbias = empty(channels, wide, False) if mask[2] else None
        kernels.batch_norm_backward(
            dy, x, weight, saved[0], saved[1], relu_bias, dx, dweight, dbias, bool(training)
        )
    except _check.UNUSUAL:
        return None
    return dx, dweight, dbias, dy if mask[3] else None


def batch_norm_backward(
    dy: Any,
    x: Any,
    weight: Any = None,
    training: bool = False,
    activation: Any = None,
    *,
    bias: Any = None,
    y: Any = None,
    saved: Any,
    mask: Mask = ALL,
) -> tuple[Any, Any, Any, Any]:
    """The gradients of `batch_norm`.

    Parameters
    ----------
    dy : array
        (N, C, ...), the gradient of the result.
    x, weight, training, activation
        As for `batch_norm`.
    bias : array, optional
        As `batch_norm` got it: with it the kernel finds again where a relu passed, and does not read `y`.
    y : array, optional
        The result; needed with an activation whose ``ACTIVATIONS[name].needs`` is "y".
    saved : tuple
        What ``save=True`` returned.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dweight, dbias, dresidual : array or None
        `dx` and `dresidual` have the layout of `x`, the others shape (C,). None where `mask` is False.

    Raises
    ------
    ValueError, TypeError
        As for `batch_norm`; when `y` is missing, or `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float32([[0], [2], [4]])
    >>> y, saved = batch_norm(x, training=True, save=True)
    >>> dx, dweight, dbias, _ = batch_norm_backward(np.float32([[1], [0], [0]]), x, training=True, saved=saved)
    >>> dx.round(3).ravel(), dweight.round(3), dbias
    (array([ 0.102, -0.204,  0.102], dtype=float32), array([-1.225], dtype=float32), array([1.], dtype=float32))
    """
    mean, rstd, pre, alone = _check.saved(saved, 4)
    if mean is None or rstd is None or type(alone) is not bool:
        _check.refuse_saved(saved)
    native, mask = native_activation(activation), _check.mask(mask, 4)
    taken = alone and bias is not None and not mask[3]  # the kernel takes the relu along
    source = None if native is None or taken else pre if needs_input(native) else y
    if any(mask[:3]) and (native is None or taken or source is not None):
        behind = (None, None) if taken else (native, source)
        relu_bias = bias if taken else None
        plain = _plain_batch_gradients(dy, x, weight, training, behind, saved, relu_bias, mask)
        if plain is not None:
            return plain
    x = _batch(x)
    channels = x.shape[1:2]
    weight, bias = _vector("weight", weight, x, channels), _vector("bias", bias, x, channels)
    mean, rstd = _vector("saved", mean, x, channels), _vector("saved", rstd, x, channels)
    g = (
        _before_activation(dy, x, None, None, None)
        if taken
        else _before_activation(dy, x, activation, y, pre)
    )
    dx = _backend.empty_like(x) if mask[0] else None
    dweight = _new_vector(x, channels) if mask[1] else None
    dbias = _new_vector(x, channels) if mask[2] else None
    if any(mask[:3]):
        _backend.backend_of(x).kernels.batch_norm_backward(
            g, x, weight, mean, rstd, bias if taken else None, dx, dweight, dbias, bool(training)
        )
    return dx, dweight, dbias, g if mask[3] else None


def _batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Any = None,
    *,
    residual: Any = None,
    save: bool = False,
) -> Any:
    """Normalisation of every channel over batch and space.

    In training, mean and (biased) variance are those of the batch, and ``running = (1 - momentum) running +
    momentum batch``, with the unbiased variance, is written into the running arrays: the only inputs that an
    operator changes. Otherwise the running statistics are used.

    Parameters
    ----------
    x : array or Tensor
        (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), float32 or float64, on CUDA also of 16 bits.
    weight, bias : array or Tensor, optional
        (C,), scale and shift.
    running_mean, running_var : array, optional
        (C,). Needed unless `training`.
    training : bool
        Whether statistics are the batch's.
    momentum : float
        The share of this batch in the running statistics. For a cumulative mean pass ``1 / k`` with the k-th
        batch, as ``nn.BatchNorm2d(momentum=None)`` does: an operator keeps no count, so None is a TypeError.
    eps : float
        Added to the variance.
    activation : str or tuple, optional
        One of `ACTIVATIONS`, applied to the result.
    residual : array or Tensor, optional
        The shape of `x`; added before the activation.
    save : bool
        Return ``(y, saved)``; `saved` goes to `batch_norm_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        The shape and layout of `x`.

    Raises
    ------
    ValueError
        For shapes that do not fit, one value per channel in training, or missing running statistics.
    TypeError
        For another dtype or a mix of them.

    Examples
    --------
    >>> import numpy as np
    >>> mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> batch_norm(np.float32([[0], [2], [4]]), running_mean=mean, running_var=var, training=True).ravel()
    array([-1.2247425,  0.       ,  1.2247425], dtype=float32)
    >>> mean, var
    (array([0.2], dtype=float32), array([1.3], dtype=float32))
    """
    native = native_activation(activation)
    keep = save and native is not None and needs_input(native)
    running = running_mean, running_var
    plain = _plain_batch_norm(x, weight, bias, residual, running, training, (momentum, eps), native, keep)
    if plain is None:
        plain = _checked_batch_norm(
            x, weight, bias, residual, running, bool(training), (momentum, eps), native, keep
        )
    if not save:
        return plain[0]
    return plain[0], (*plain[1:], native == _RELU and residual is None)


def _checked_batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    running: tuple[Any, Any],
    training: bool,
    numbers: tuple[Any, Any],
    native: Any,
    keep: bool,
) -> Any:
    """What `_plain_batch_norm` returns, of any arguments."""
    x = _batch(x)
    channels = x.shape[1:2]
    weight, bias = _vector("weight", weight, x, channels), _vector("bias", bias, x, channels)
    residual = _like("residual", residual, x)
    statistics = _running(*running, x, training)
    momentum, eps = _check.number("momentum", numbers[0]), _eps(numbers[1])
    count = x.shape[0] * prod(x.shape[2:])
    if training and count <= 1 and channels != (0,):
        raise ValueError(f"x: training needs more than one value per channel, got shape {x.shape}")
    y, mean, rstd = _backend.empty_like(x), _new_vector(x, channels), _new_vector(x, channels)
    pre = _backend.empty_like(x) if keep else None
    _backend.backend_of(x).kernels.batch_norm_forward(
        x, weight, bias, residual, *statistics, mean, rstd, pre, y, training, momentum, eps, native
    )
    if training:
        for given, written in zip(running, statistics):
            if written is not None and written is not given:
                given[...] = written
    return y, mean, rstd, pre


batch_norm = differentiable(_batch_norm, batch_norm_backward, arrays=("x", "weight", "bias", "residual"))


# Layer ------------------------------------------------------------------------------------------------


def _rows(x: Any, normalized_ndim: Any) -> tuple[Any, int, tuple[int, ...]]:
    """`x` in C order, how many dimensions make a row, and their extents."""
    x = _backend.contiguous(_check.device_floating("x", x))
    if x.ndim == 0:
        raise ValueError("x: expected at least 1 dimension, got shape ()")
    ndim = _check.integer("normalized_ndim", normalized_ndim, minimum=1, maximum=x.ndim)
    row = x.shape[x.ndim - ndim :]
    if 0 in row:
        raise ValueError(f"x: expected rows of at least one element, got shape {x.shape}")
    return x, ndim, row


def _plain_layer_norm(x: Any, weight: Any, bias: Any, eps: Any, ndim: Any) -> Any:
    """The result and what its gradient needs, of arrays as the kernel takes them: most calls are this one,
    and small ones last no longer than the checks. None for any other; the general way then words the error.
    """
    if type(eps) is not float or not 0 <= eps < float("inf") or type(ndim) is not int or ndim < 1:
        return None
    try:
        _, _, kernels, empty, _ = _backend.backend_of(x)
        shape, dtype = x.shape, x.dtype
        row, rows = shape[-ndim:], shape[:-ndim]
        if (
            0 in row
            or (weight is not None and weight.shape != row)
            or (bias is not None and bias.shape != row)
        ):
            return None
        statistic = _check.wide(dtype)
        y, mean, rstd = (
            empty(shape, dtype, False),
            empty(rows, statistic, False),
            empty(rows, statistic, False),
        )
        kernels.layer_norm_forward(x, weight, bias, None, mean, rstd, None, y, ndim, eps, None)
    except _check.UNUSUAL:
        return None
    return y, (mean, rstd, None)


def layer_norm_backward(
    dy: Any,
    x: Any,
    weight: Any = None,
    *,
    normalized_ndim: int = 1,
    activation: Any = None,
    y: Any = None,
    saved: Any,
    mask: Mask = ALL,
) -> tuple[Any, Any, Any, Any]:
    """The gradients of `layer_norm`.

    Parameters
    ----------
    dy : array
        (..., *S), the gradient of the result.
    x, weight, normalized_ndim, activation
        As for `layer_norm`.
    y : array, optional
        The result; needed with an activation whose ``ACTIVATIONS[name].needs`` is "y".
    saved : tuple
        What ``save=True`` returned.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dweight, dbias, dresidual : array or None
        `dx` and `dresidual` have the shape of `x`, the others S. None where `mask` is False.

    Raises
    ------
    ValueError, TypeError
        As for `layer_norm`; when `y` is missing, or `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float32([[0, 2, 4]])
    >>> y, saved = layer_norm(x, save=True)
    >>> dx, dweight, dbias, _ = layer_norm_backward(np.float32([[1, 0, 0]]), x, saved=saved)
    >>> dx.round(3), dbias
    (array([[ 0.102, -0.204,  0.102]], dtype=float32), array([1., 0., 0.], dtype=float32))
    """
    x, ndim, row = _rows(x, normalized_ndim)
    mean, rstd, pre = _check.saved(saved, 3)
    if mean is None or rstd is None:
        _check.refuse_saved(saved)
    mask = _check.mask(mask, 4)
    weight, rows = _vector("weight", weight, x, row), x.shape[: x.ndim - ndim]
    mean, rstd = _vector("saved", mean, x, rows), _vector("saved", rstd, x, rows)
    g = _backend.contiguous(_before_activation(dy, x, activation, y, pre))
    dx = _backend.empty(x, x.shape) if mask[0] else None
    dweight = _new_vector(x, row) if mask[1] else None
    dbias = _new_vector(x, row) if mask[2] else None
    if any(mask[:3]):
        _backend.backend_of(x).kernels.layer_norm_backward(g, x, weight, mean, rstd, dx, dweight, dbias, ndim)
    return dx, dweight, dbias, g if mask[3] else None


def _layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    normalized_ndim: int = 1,
    activation: Any = None,
    residual: Any = None,
    save: bool = False,
) -> Any:
    """Normalisation of every sample over its last dimensions.

    Parameters
    ----------
    x : array or Tensor
        (..., *S), float32 or float64, on CUDA also of 16 bits. An array that is not C-contiguous is copied first.
    weight, bias : array or Tensor, optional
        (*S,), scale and shift.
    eps : float
        Added to the (biased) variance.
    normalized_ndim : int
        The number of dimensions in S.
    activation : str or tuple, optional
        One of `ACTIVATIONS`, applied to the result.
    residual : array or Tensor, optional
        The shape of `x`; added before the activation.
    save : bool
        Return ``(y, saved)``; `saved` goes to `layer_norm_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        The shape of `x`, C-contiguous.

    Raises
    ------
    ValueError
        For shapes that do not fit, or rows without elements.
    TypeError
        For another dtype or a mix of them.

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm(np.float32([[0, 2, 4]])).round(4)
    array([[-1.2247,  0.    ,  1.2247]], dtype=float32)
    """
    if residual is None and activation is None:
        plain = _plain_layer_norm(x, weight, bias, eps, normalized_ndim)
        if plain is not None:
            return plain if save else plain[0]
    x, ndim, row = _rows(x, normalized_ndim)
    weight, bias = _vector("weight", weight, x, row), _vector("bias", bias, x, row)
    residual = _like("residual", residual, x)
    residual = None if residual is None else _backend.contiguous(residual)
    eps, native, rows = _eps(eps), native_activation(activation), x.shape[: x.ndim - ndim]
    y, mean, rstd = _backend.empty(x, x.shape), _new_vector(x, rows), _new_vector(x, rows)
    pre = _backend.empty(x, x.shape) if save and native is not None and needs_input(native) else None
    _backend.backend_of(x).kernels.layer_norm_forward(
        x, weight, bias, residual, mean, rstd, pre, y, ndim, eps, native
    )
    return (y, (mean, rstd, pre)) if save else y


layer_norm = differentiable(_layer_norm, layer_norm_backward, arrays=("x", "weight", "bias", "residual"))
