"""Convolution.

Images are (N, C, H, W), C-contiguous or channels-last; both are read as they lie. Results are
channels-last, so that a network's layers hand that format on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check
from brasa.ops.activation import Native, native_activation, needs_input
from brasa.ops.prepack import PackedWeight, check_packed_conv

__all__ = ["conv2d", "conv2d_backward"]

_SHAPES = {2: "(N, C, H, W)"}
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


def _padding(value: Any, count: int) -> Any:
    """(before, after) of each dimension, in one tuple; "same" stays as it is."""
    if isinstance(value, str):
        if value not in ("valid", "same"):
            raise ValueError(
                f"padding: expected an int, one per dimension, pairs, 'same' or 'valid', got {value!r}"
            )
        return value if value == "same" else (0,) * (2 * count)
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, (tuple, list)) for v in value):
        if len(value) != count:
            raise ValueError(f"padding: expected {count} (before, after) pairs, got {value!r}")
        return tuple(part for pair in value for part in _check.integers("padding", pair, 2, minimum=0))
    return tuple([p for p in _check.integers("padding", value, count, minimum=0) for _ in range(2)])


def _geometry(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Geometry, tuple[int, ...]]:
    """What the arguments mean, and the shape of the result."""
    if _check.plain_integers(stride, padding, dilation, groups):
        return _known_geometry(x.shape, weight.shape, stride, padding, dilation, groups)
    return _new_geometry(x.shape, weight.shape, stride, padding, dilation, groups)


def _new_geometry(
    x: tuple[int, ...], weight: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Geometry, tuple[int, ...]]:
    """`_geometry` of shapes."""
    count = len(x) - 2
    stride = _check.integers("stride", stride, count, minimum=1)
    padding = _padding(padding, count)
    dilation = _check.integers("dilation", dilation, count, minimum=1)
    groups = _check.integer("groups", groups, minimum=1)
    channels, outputs = x[1], weight[0]
    if channels % groups or outputs % groups or min(channels, outputs) < 1:
        raise ValueError(
            f"groups: {groups} does not divide the {channels} channels of x {x} and the {outputs} of "
            f"weight {weight}"
        )
    if weight[1] * groups != channels:
        raise ValueError(
            f"weight: expected shape ({outputs}, {channels // groups}, ...) for x {x} and groups={groups}, "
            f"got {weight}"
        )
    size, kernel = x[2:], weight[2:]
    if min(size) < 1 or min(kernel) < 1:
        raise ValueError(f"x: expected images and kernels that are not empty, got {x} and {weight}")
    if isinstance(padding, str):
        padding = _same_padding(kernel, dilation, stride)
    out = []
    for i in range(len(size)):
        window, padded = dilation[i] * (kernel[i] - 1) + 1, size[i] + padding[2 * i] + padding[2 * i + 1]
        if window > padded:
            raise ValueError(
                f"weight: the kernel {kernel} with dilation {dilation} is larger than the image {size} with "
                f"padding {padding}"
            )
        out.append((padded - window) // stride[i] + 1)
    return (stride, padding, dilation, groups), (x[0], outputs, *out)


_known_geometry = lru_cache(maxsize=1024)(_new_geometry)  # a network asks for the same few again and again


def _same_padding(
    kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[int, ...]:
    """What keeps the size of the image."""
    if set(stride) != {1}:
        raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
    around = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(part for total in around for part in (total // 2, total - total // 2))


def _channels_last(x: Any) -> Any:
    """`x`, or a copy of it that is channels-last."""
    if _backend.layout(x) == _backend.CHANNELS_LAST:
        return x
    return _backend.to_channels_last(_backend.contiguous(x))


def _operands(x: Any, weight: Any, bias: Any, spatial: int) -> tuple[Any, Any, Any]:
    x = _check.any_floating("x", x)
    packed = type(weight) is PackedWeight
    weight = weight if packed else _check.any_floating("weight", weight)
    _check.rank("x", x, spatial + 2, shape=_SHAPES[spatial])
    _check.rank("weight", weight, spatial + 2, shape="(O, C / groups, kernel)")
    if bias is not None:
        bias = _backend.contiguous(_check.any_floating("bias", bias))
        _check.shape("bias", bias, (weight.shape[0],), "one per output channel")
    _check.same_dtype_but_bias(bias, x=x, weight=None if packed else weight)
    return _backend.dense(x), weight if packed else _backend.contiguous(weight), bias


def _plain_forward(x: Any, weight: Any, bias: Any, options: tuple[Any, ...], native: Any) -> Any:
    """The convolution of arrays that lie as the kernel takes them, or None for any other: most calls are
    this one, and in a small network they last no longer than the checks of the general way.
    """
    try:
        kind = type(x)
        if not (bias is None or type(bias) is kind) or x.ndim != 4:
            return None
        geometry, shape = _geometry(x, weight, *options)
        if type(weight) is not kind:
            check_packed_conv(weight, x, geometry[3])
            weight = weight.operand
        backend = _backend.backend_of(x)
        y = backend.empty(shape, x.dtype, True)
        backend.kernels.conv_forward(x, weight, bias, None, None, y, *geometry, native)
    except _check.UNUSUAL:
        return None
    return y


def _conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: Any = None,
    *,
    residual: Any = None,
    save: bool = False,
    out: Any = None,
) -> Any:
    """2-D convolution (cross-correlation) with bias, residual and activation in one pass.

    ``y[n, o, i, j] = activation(bias[o] + residual[n, o, i, j] + sum over c, p, q of
    weight[o, c, p, q] * x[n, c, i * stride + p * dilation - padding, j * stride + q * dilation - padding])``,
    where x is 0 outside of the image.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32, float64, float16 or bfloat16, C-contiguous or channels-last; any other is copied
        first.
    weight : array, Tensor or PackedWeight
        (O, C / groups, KH, KW), the dtype of `x`; one packed by `prepack` is a constant.
    bias : array or Tensor, optional
        (O,). May be float32 beside 16-bit arrays.
    stride, dilation : int or (int, int), default: 1
        Steps between windows, and between the elements of a window.
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid", default: 0
        Zeros around the image: the same on all sides, one number per dimension, or a (before, after) pair
        per dimension. "same" (stride 1 only) keeps the image's size, "valid" is 0.
    groups : int, default: 1
        Channels are cut into so many groups that see nothing of each other.
    activation : str or tuple, optional
        One of `ACTIVATIONS`, or ``(name, alpha[, beta])``.
    residual : array or Tensor, optional
        (N, O, H', W'), added before the activation.
    save : bool, default: False
        Return ``(y, saved)`` with what `conv2d_backward` needs beside its inputs.
    out : array, optional
        Where the result goes; overlaps no input.

    Returns
    -------
    array or Tensor
        (N, O, H', W') with channels-last strides, H' = (H + padding - dilation * (KH - 1) - 1) // stride + 1
        with the padding of both sides.

    Raises
    ------
    ValueError
        When shapes do not fit, `groups` does not divide the channels, or the kernel is larger than the
        padded image.
    TypeError
        For another dtype, mixed dtypes or mixed devices.

    Notes
    -----
    Arrays of 16 bits are multiplied and summed in float32, and each result is rounded once. On CUDA they go
    to tensor cores; so do float32 arrays where `brasa.set_matmul_precision` is "tf32".

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> conv2d(x, np.ones((1, 1, 3, 3), np.float32))[0, 0]
    array([[45., 54.],
           [81., 90.]], dtype=float32)
    """
    native = native_activation(activation)
    keep = save and native is not None and needs_input(native)
    if residual is None and out is None and not keep:
        y = _plain_forward(x, weight, bias, (stride, padding, dilation, groups), native)
        if y is not None:
            return (y, (None,)) if save else y
    x, weight, bias = _operands(x, weight, bias, 2)
    geometry, shape = _geometry(x, weight, stride, padding, dilation, groups)
    if type(weight) is PackedWeight:
        check_packed_conv(weight, x, geometry[3])
        weight = weight.operand
    y = _backend.empty(x, shape, channels_last=True)
    if residual is not None:
        residual = _check.any_floating("residual", residual)
        _check.shape("residual", residual, shape, "as the result")
        _check.same_dtype(x=x, residual=residual)
    if out is not None:
        _check.output(out, x, shape, x, weight, bias, residual)
        if _backend.layout(out) == _backend.CHANNELS_LAST:
            y = out
    pre_activation = _backend.empty_like(y) if keep else None
    _run(x, weight, bias, residual, pre_activation, y, geometry, native)
    if out is not None and y is not out:
        out[...] = y
        y = out
    return (y, (pre_activation,)) if save else y


def _run(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    pre_activation: Any,
    y: Any,
    geometry: Geometry,
    native: Any,
) -> None:
    """The kernel. The CPU has none for 16-bit dtypes: there operands are widened and results rounded once."""
    kernels, results = _backend.backend_of(x).kernels, (y, pre_activation)
    if _check.in_float32(x):
        x, weight, bias, residual = (_check.widened(a) for a in (x, weight, bias, residual))
        y, pre_activation = (
            None if a is None else _backend.empty(x, a.shape, channels_last=True) for a in results
        )
    if residual is not None:
        residual = _channels_last(residual)
    kernels.conv_forward(x, weight, bias, residual, pre_activation, y, *geometry, native)
    for result, wide in zip(results, (y, pre_activation)):
        if result is not wide:
            result[...] = wide


def _gradient_before_activation(dy: Any, source: Any, native: Native | None) -> Any:
    """dy times the activation's derivative, channels-last."""
    dy = _channels_last(dy)
    if native is None:
        return dy
    if source is None:
        name = "saved" if needs_input(native) else "y"
        raise ValueError(f"{name}: the gradient of this activation needs it, got None")
    _check.shape("y", source, dy.shape, "as dy")
    _check.same_dtype(dy=dy, y=source)
    g = _backend.empty_like(dy)
    _backend.backend_of(dy).kernels.activation_backward(dy, _channels_last(source), g, native)
    return g


def _gradients(
    g: Any,
    x: Any,
    weight: Any,
    geometry: Geometry,
    mask: tuple[bool, bool, bool, bool],
    bias_dtype: Any,
    source: Any = None,
    native: Native | None = None,
) -> tuple[Any, Any, Any, Any]:
    """The gradients from `g`, that of what the activation was applied to; with `native`, which needs
    `source`, that of the result.
    """
    backend = _backend.backend_of(x)
    dx = dweight = dbias = None
    if mask[0]:
        dx = backend.empty_like(x)
        backend.kernels.conv_backward_input(g, weight, dx, *geometry)
    if mask[1] or mask[2]:
        dweight = backend.empty(weight.shape, weight.dtype, False) if mask[1] else None
        dbias = backend.empty(weight.shape[:1], bias_dtype, False) if mask[2] else None
        backend.kernels.conv_backward_weight(g, x, weight, source, dweight, dbias, *geometry, native)
    return dx, dweight, dbias, g if mask[3] else None


def _gradients_in_float32(
    dy: Any,
    x: Any,
    weight: Any,
    geometry: Geometry,
    mask: tuple[bool, bool, bool, bool],
    bias_dtype: Any,
    source: Any,
    native: Native | None,
) -> tuple[Any, ...]:
    """The gradients of 16-bit arrays on the CPU, each rounded once."""
    dtype = x.dtype
    dy, x, weight, source = (_check.widened(a) for a in (dy, x, weight, source))
    g = _gradient_before_activation(dy, source, native)
    found = _gradients(g, x, weight, geometry, mask, g.dtype)
    dtypes = dtype, dtype, bias_dtype, dtype
    return tuple([None if a is None else a.astype(t) for a, t in zip(found, dtypes)])


def _plain_backward(
    dy: Any,
    x: Any,
    weight: Any,
    source: Any,
    options: tuple[Any, ...],
    native: Any,
    mask: Any,
    bias_dtype: Any,
) -> tuple[Any, Any, Any, Any] | None:
    """The gradients where all arrays lie as the kernels take them, or None: see `_plain_forward`."""
    try:
        kind = type(x)
        if type(dy) is not kind or type(weight) is not kind or x.ndim != 4:
            return None
        geometry, shape = _geometry(x, weight, *options)
        if dy.shape != shape:
            return None
        g = dy
        if native is not None:
            if type(source) is not kind:
                return None
            if not (mask[0] or mask[3]) and bias_dtype == x.dtype:
                # Of the first layer: the kernel takes the activation along.
                return _gradients(dy, x, weight, geometry, mask, bias_dtype, source, native)
            backend = _backend.backend_of(dy)
            g = backend.empty_like(dy)
            backend.kernels.activation_backward(dy, source, g, native)
        return _gradients(g, x, weight, geometry, mask, bias_dtype)
    except _check.UNUSUAL:
        return None


def conv2d_backward(
    dy: Any,
    x: Any,
    weight: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: Any = None,
    *,
    bias: Any = None,
    y: Any = None,
    saved: Any = None,
    mask: tuple[bool, bool, bool, bool] = (True, True, True, True),
) -> tuple[Any, Any, Any, Any]:
    """The gradients of `conv2d`.

    Parameters
    ----------
    dy : array
        The gradient of the result, (N, O, H', W').
    x, weight, stride, padding, dilation, groups, activation
        As for `conv2d`.
    bias : array, optional
        As `conv2d` got it; its gradient has its dtype.
    y : array, optional
        The result; needed with an activation whose ``ACTIVATIONS[name].needs`` is "y".
    saved : tuple, optional
        What ``save=True`` returned; needed with the other activations.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dweight, dbias, dresidual : array or None
        `dx` has the format of `x`, `dweight` is C-contiguous, `dbias` has shape (O,), without `bias` the dtype
        of the others.

    Raises
    ------
    ValueError, TypeError
        As for `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> dx, dweight, dbias, _ = conv2d_backward(np.ones((1, 1, 2, 2), np.float32), x, weight)
    >>> dx[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)
    >>> dweight[0, 0], dbias
    (array([[4., 4.],
           [4., 4.]], dtype=float32), array([4.], dtype=float32))
    """
    if type(weight) is PackedWeight:
        raise TypeError("weight: a packed weight is a constant without gradient; pass the weight itself")
    native, mask = native_activation(activation), _check.mask(mask, 4)
    source = y
    if native is not None and needs_input(native):
        source = None if saved is None else _check.saved(saved, 1)[0]
    bias_dtype = getattr(weight if bias is None else bias, "dtype", None)
    options = stride, padding, dilation, groups
    plain = _plain_backward(dy, x, weight, source, options, native, mask, bias_dtype)
    if plain is not None:
        return plain
    x, weight, bias = _operands(x, weight, bias, 2)
    bias_dtype = (weight if bias is None else bias).dtype
    dy = _check.any_floating("dy", dy)
    geometry, shape = _geometry(x, weight, stride, padding, dilation, groups)
    _check.shape("dy", dy, shape, "the result's")
    _check.same_dtype(x=x, dy=dy)
    if source is not None:
        source = _check.any_floating("y", source)
    if _check.in_float32(x):
        return _gradients_in_float32(dy, x, weight, geometry, mask, bias_dtype, source, native)
    g = _gradient_before_activation(dy, source, native)
    return _gradients(g, x, weight, geometry, mask, bias_dtype)


conv2d = differentiable(_conv2d, conv2d_backward, arrays=("x", "weight", "bias", "residual"))
