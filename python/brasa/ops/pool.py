"""Pooling of images, and its gradients.

Images are (N, C, H, W), float32 or float64 (on CUDA also of 16 bits), C-contiguous or channels-last; any
other is copied first. The result has the layout of the image. Semantics are PyTorch's: a NaN wins a
maximum, among equals the first in scan order does, and padding never wins; the last window of ``ceil_mode``
must begin inside the image or its leading padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = [
    "adaptive_avg_pool2d", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward", "avg_pool2d", "avg_pool2d_backward", "global_avg_pool2d",
    "global_avg_pool2d_backward", "global_max_pool2d", "global_max_pool2d_backward", "max_pool2d",
    "max_pool2d_backward",
]  # fmt: skip

_MOST_TAPS = 2**30  # of a window whose maximum is sought
_UINT8, _INT32, _INT64 = (np.dtype(name) for name in ("uint8", "int32", "int64"))


class _Windows(NamedTuple):
    """Windows as kernels take them; `h` and `w` are (kernel, stride, padding, dilation).

    Adaptive windows have the extent of the largest one for a kernel; offsets are numbered by it.
    """

    h: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    adaptive: bool

    def taps(self) -> int:
        return self.h[0] * self.w[0]


def _image(x: Any, name: str = "x") -> Any:
    """`x` as a dense image that is not empty but for its batch and channels."""
    x = _backend.dense(_check.device_floating(name, x))
    _check.rank(name, x, 4, shape="(N, C, H, W)")
    if 0 in x.shape[2:]:
        raise ValueError(f"{name}: expected an image of at least one pixel, got shape {x.shape}")
    return x


def _is_channels_last(x: Any) -> bool:
    return _backend.layout(x) == _backend.CHANNELS_LAST


# Windows ----------------------------------------------------------------------------------------------


def _output_extent(name: str, size: int, window: Sequence[int], ceil_mode: bool) -> int:
    """The number of windows over `size` inputs, torch's rule."""
    kernel, stride, padding, dilation = window
    span = dilation * (kernel - 1) + 1
    count = (size + 2 * padding - span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if count < 1:
        raise ValueError(
            f"x: {name} {size} with padding {padding} is smaller than the window's {span}; no output is left"
        )
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def _regular(
    x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[_Windows, tuple[int, int]]:
    """Windows and the extents of the result."""
    stride = kernel_size if stride is None else stride
    if _check.plain_integers(kernel_size, stride, padding, dilation):
        return _known_windows(x.shape, kernel_size, stride, padding, dilation, bool(ceil_mode))
    return _new_windows(x.shape, kernel_size, stride, padding, dilation, bool(ceil_mode))


def _new_windows(
    shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[_Windows, tuple[int, int]]:
    """`_regular` of an image's shape."""
    kernels = _check.integers("kernel_size", kernel_size, 2, minimum=1)
    strides = _check.integers("stride", stride, 2, minimum=1)
    paddings = _check.integers("padding", padding, 2, minimum=0)
    dilations = _check.integers("dilation", dilation, 2, minimum=1)
    for kernel, pad, step in zip(kernels, paddings, dilations):
        if 2 * pad > step * (kernel - 1) + 1:
            raise ValueError(
                f"padding: expected at most half the window's {step * (kernel - 1) + 1}, got {pad}"
            )
    h, w = zip(kernels, strides, paddings, dilations)
    extents = (
        _output_extent("height", shape[2], h, ceil_mode),
        _output_extent("width", shape[3], w, ceil_mode),
    )
    return _Windows(h, w, False), extents


_known_windows = lru_cache(maxsize=1024)(_new_windows)  # a network asks for the same few again and again


def _adaptive(x: Any, output_size: Any) -> tuple[_Windows, tuple[int, int]]:
    """Windows that give `output_size`, an int or a pair with None for an extent that stays."""
    pair = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(pair) != 2:
        raise ValueError(f"output_size: expected an int or 2 of them, got {output_size!r}")
    sizes = x.shape[2:]
    extents = [
        size if wanted is None else _check.integer("output_size", wanted, minimum=1)
        for wanted, size in zip(pair, sizes)
    ]
    axes = [
        (size // out if size % out == 0 else min(size, size // out + 2), 1, 0, 1)
        for size, out in zip(sizes, extents)
    ]
    return _Windows(axes[0], axes[1], True), (extents[0], extents[1])


# Maximum ----------------------------------------------------------------------------------------------


def _empty(x: Any, extents: tuple[int, int]) -> Any:
    """A new array of the shape of the result, laid out as `x`."""
    return _backend.empty(x, (*x.shape[:2], *extents), None, _is_channels_last(x))


def _maxima(x: Any, windows: _Windows, extents: tuple[int, int], save: bool, y: Any = None) -> Any:
    """The maxima, in `y` or a new array; with `save` beside what their gradient needs."""
    _, _, kernels, empty, _ = _backend.backend_of(x)
    shape = (*x.shape[:2], *extents)
    channels_last = kernels.layout(x) == _backend.CHANNELS_LAST
    if y is None:
        y = empty(shape, x.dtype, channels_last)
    if not save:
        kernels.max_pool_forward(x, y, None, *windows)
        return y
    offsets = empty(shape, _UINT8 if windows.taps() <= 256 else _INT32, channels_last)
    kernels.max_pool_forward(x, y, offsets, *windows)
    return y, (offsets, x.shape, tuple(windows), channels_last)


def _max_pool(
    x: Any, windows: _Windows, extents: tuple[int, int], save: bool, return_indices: bool, out: Any = None
) -> Any:
    if windows.taps() > _MOST_TAPS:
        raise ValueError(
            f"kernel_size: {windows.taps()} elements in a window, at most {_MOST_TAPS} are possible"
        )
    if out is not None:
        _check.output(out, x, (*x.shape[:2], *extents), x)
    fits = out is not None and _backend.layout(out) == _backend.layout(x)
    y, saved = _maxima(x, windows, extents, True, out if fits else None)
    if out is not None and not fits:
        out[...] = y
        y = out
    result = y
    if return_indices:
        indices = _backend.empty(x, y.shape, _INT64, saved[3])
        _backend.backend_of(x).kernels.max_pool_indices(saved[0], indices, *x.shape[2:], *windows)
        result = (y, indices)
    return (result, saved) if save else result


def max_pool2d_backward(dy: Any, saved: Any) -> Any:
    """The gradient of `max_pool2d` with respect to its input.

    Parameters
    ----------
    dy : array
        (N, C, H', W'), the gradient of the result.
    saved : tuple
        What ``max_pool2d(..., save=True)`` returned beside it.

    Returns
    -------
    array
        (N, C, H, W), laid out as the image was: every winner gets the gradients of its windows.

    Raises
    ------
    ValueError
        If `saved` comes from no such call, or `dy` has another shape than the result.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> y, saved = max_pool2d(np.float32([[[[1, 3], [4, 2]]]]), 2, save=True)
    >>> max_pool2d_backward(np.float32([[[[5]]]]), saved)
    array([[[[0., 0.],
             [5., 0.]]]], dtype=float32)
    """
    dy = _check.device_floating("dy", dy)
    try:
        offsets, shape, windows, channels_last = saved
        h, w, adaptive = windows
        offsets_shape = offsets.shape
    except (TypeError, ValueError, AttributeError):
        _check.refuse_saved(saved)
    if type(shape) is not tuple or len(shape) != 4:
        _check.refuse_saved(saved)
    _check.shape("dy", dy, offsets_shape, "that of the result")
    kernels = _backend.kernels(dy, offsets)
    try:
        dy = _backend.laid_out_like(offsets, dy)
        dx = _backend.empty(dy, shape, None, channels_last)
        kernels.max_pool_backward(dy, offsets, dx, h, w, adaptive)
    except _check.UNUSUAL:
        _check.refuse_saved(saved)
    return dx


def _max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    save: bool = False,
    return_indices: bool = False,
    out: Any = None,
) -> Any:
    """The largest element of every window of an image.

    ``H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1``, likewise for W. Padding never wins,
    a NaN always does, and among equals the first in scan order. A window that dilation leads around the
    image gives -inf and the index -1.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    kernel_size : int or (int, int)
        Extents of a window.
    stride : int or (int, int), optional
        Steps between windows; None: `kernel_size`.
    padding : int or (int, int)
        Rows and columns around the image, at most half the window.
    dilation : int or (int, int)
        Distance of the elements in a window.
    ceil_mode : bool
        Whether a last window that overhangs the image counts.
    save : bool
        Return ``(result, saved)``; `saved` goes to `max_pool2d_backward`. For arrays only.
    return_indices : bool
        Return ``(y, indices)``, the latter int64: ``h * W + w`` of every winner.
    out : array, optional
        (N, C, H', W'), where the result goes. For arrays only.

    Returns
    -------
    array or Tensor
        (N, C, H', W'), laid out as `x`.

    Raises
    ------
    ValueError
        For an image of another rank, without pixels or smaller than a window; a window, stride or dilation
        below 1; padding above half a window; an `out` that does not fit.
    TypeError
        For another dtype, or arguments that are no ints.

    Examples
    --------
    >>> import numpy as np
    >>> max_pool2d(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  7.],
             [13., 15.]]]], dtype=float32)
    """
    if out is None and not return_indices:
        with suppress(*_check.UNUSUAL):  # the shortest way; the general one words errors and converts
            if x.ndim == 4 and x.size:
                windows, extents = _regular(x, kernel_size, stride, padding, dilation, ceil_mode)
                return _maxima(x, windows, extents, save)
    x = _image(x)
    windows, extents = _regular(x, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(x, windows, extents, save, return_indices, out)


max_pool2d = differentiable(_max_pool2d, max_pool2d_backward)


def _adaptive_max_pool2d(
    x: Any, output_size: Any, return_indices: bool = False, *, save: bool = False, out: Any = None
) -> Any:
    """The largest element of every window, windows chosen such that the result has a given size.

    Window i of n over H rows runs from ``floor(i H / n)`` to ``ceil((i + 1) H / n)``.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    output_size : int or (int or None, int or None)
        H' and W'; None keeps the image's extent.
    return_indices, save, out
        As for `max_pool2d`.

    Returns
    -------
    array or Tensor
        (N, C, H', W'), laid out as `x`.

    Raises
    ------
    ValueError
        For an image of another rank or without pixels, or an output size below 1.
    TypeError
        For another dtype, or an output size that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_max_pool2d(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), 2)
    array([[[[4., 5.],
             [7., 8.]]]], dtype=float32)
    """
    x = _image(x)
    return _max_pool(x, *_adaptive(x, output_size), save, return_indices, out)


adaptive_max_pool2d = differentiable(_adaptive_max_pool2d, max_pool2d_backward)
adaptive_max_pool2d_backward = max_pool2d_backward


def _global_max_pool2d(x: Any, *, save: bool = False, out: Any = None) -> Any:
    """The largest element of every image and channel.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    save, out
        As for `max_pool2d`.

    Returns
    -------
    array or Tensor
        (N, C, 1, 1).

    Examples
    --------
    >>> import numpy as np
    >>> global_max_pool2d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)).ravel()
    array([3., 7.], dtype=float32)
    """
    x = _image(x)
    return _max_pool(x, *_adaptive(x, 1), save, False, out)


global_max_pool2d = differentiable(_global_max_pool2d, max_pool2d_backward)
global_max_pool2d_backward = max_pool2d_backward


# Mean -------------------------------------------------------------------------------------------------


def _mean_pool(
    x: Any, windows: _Windows, extents: tuple[int, int], include_pad: bool, divisor: int, out: Any
) -> Any:
    if out is not None:
        _check.output(out, x, (*x.shape[:2], *extents), x)
    fits = out is not None and _backend.layout(out) == _backend.layout(x)
    y = out if fits else _empty(x, extents)
    _backend.backend_of(x).kernels.mean_pool_forward(x, y, *windows, include_pad, divisor)
    if out is not None and not fits:
        out[...] = y
        return out
    return y


def _mean_pool_backward(
    dy: Any, x: Any, windows: _Windows, extents: tuple[int, int], include_pad: bool, divisor: int
) -> Any:
    dy = _check.device_floating("dy", dy)
    _check.same_dtype(x=x, dy=dy)
    _check.shape("dy", dy, (*x.shape[:2], *extents), "that of the result")
    dy = _backend.laid_out_like(x, dy)
    dx = _backend.empty_like(x)
    _backend.backend_of(x).kernels.mean_pool_backward(dy, dx, *windows, include_pad, divisor)
    return dx


def _divisor(divisor_override: Any) -> int:
    if divisor_override is None:
        return 0
    divisor = _check.integer("divisor_override", divisor_override, minimum=-(2**31))
    if divisor == 0:
        raise ValueError("divisor_override: expected an int that is not 0, got 0")
    return divisor


def avg_pool2d_backward(
    dy: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The gradient of `avg_pool2d` with respect to its input.

    Parameters
    ----------
    dy : array
        (N, C, H', W'), the gradient of the result.
    x : array
        (N, C, H, W), the image; its shape and layout count, not its values.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As for `avg_pool2d`.

    Returns
    -------
    array
        (N, C, H, W), laid out as `x`.

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool2d_backward(np.float32([[[[4]]]]), np.zeros((1, 1, 2, 2), np.float32), 2)
    array([[[[1., 1.],
             [1., 1.]]]], dtype=float32)
    """
    x = _image(x)
    windows, extents = _regular(x, kernel_size, stride, padding, 1, ceil_mode)
    return _mean_pool_backward(dy, x, windows, extents, bool(count_include_pad), _divisor(divisor_override))


def _avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    out: Any = None,
) -> Any:
    """The mean of every window of an image.

    ``H' = (H + 2 padding - kernel) // stride + 1``, likewise for W. The divisor is the number of elements
    of the window inside the padded image or, without `count_include_pad`, inside the image.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    kernel_size, stride, padding, ceil_mode, out
        As for `max_pool2d`.
    count_include_pad : bool
        Whether zeros of the padding count in the divisor.
    divisor_override : int, optional
        Divides every sum in place of the window's size; not 0.

    Returns
    -------
    array or Tensor
        (N, C, H', W'), laid out as `x`.

    Raises
    ------
    ValueError, TypeError
        As for `max_pool2d`; for a `divisor_override` of 0.

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool2d(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), 2)
    array([[[[1.5]]]], dtype=float32)
    """
    x = _image(x)
    windows, extents = _regular(x, kernel_size, stride, padding, 1, ceil_mode)
    return _mean_pool(x, windows, extents, bool(count_include_pad), _divisor(divisor_override), out)


avg_pool2d = differentiable(_avg_pool2d, avg_pool2d_backward)


def adaptive_avg_pool2d_backward(dy: Any, x: Any, output_size: Any) -> Any:
    """The gradient of `adaptive_avg_pool2d` with respect to its input.

    Parameters
    ----------
    dy : array
        (N, C, H', W'), the gradient of the result.
    x : array
        (N, C, H, W), the image; its shape and layout count, not its values.
    output_size : int or (int or None, int or None)
        As for `adaptive_avg_pool2d`.

    Returns
    -------
    array
        (N, C, H, W), laid out as `x`.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_avg_pool2d_backward(np.float32([[[[4]]]]), np.zeros((1, 1, 2, 2), np.float32), 1)
    array([[[[1., 1.],
             [1., 1.]]]], dtype=float32)
    """
    x = _image(x)
    return _mean_pool_backward(dy, x, *_adaptive(x, output_size), False, 0)


def _adaptive_avg_pool2d(x: Any, output_size: Any, *, out: Any = None) -> Any:
    """The mean of every window, windows chosen such that the result has a given size.

    Window i of n over H rows runs from ``floor(i H / n)`` to ``ceil((i + 1) H / n)``.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    output_size : int or (int or None, int or None)
        H' and W'; None keeps the image's extent.
    out : array, optional
        As for `max_pool2d`.

    Returns
    -------
    array or Tensor
        (N, C, H', W'), laid out as `x`.

    Raises
    ------
    ValueError
        For an image of another rank or without pixels, or an output size below 1.
    TypeError
        For another dtype, or an output size that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_avg_pool2d(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), 2)
    array([[[[2., 3.],
             [5., 6.]]]], dtype=float32)
    """
    x = _image(x)
    return _mean_pool(x, *_adaptive(x, output_size), False, 0, out)


adaptive_avg_pool2d = differentiable(_adaptive_avg_pool2d, adaptive_avg_pool2d_backward)


def global_avg_pool2d_backward(dy: Any, x: Any) -> Any:
    """The gradient of `global_avg_pool2d` with respect to its input.

    Parameters
    ----------
    dy : array
        (N, C, 1, 1), the gradient of the result.
    x : array
        (N, C, H, W), the image; its shape and layout count, not its values.

    Returns
    -------
    array
        (N, C, H, W), laid out as `x`.

    Examples
    --------
    >>> import numpy as np
    >>> global_avg_pool2d_backward(np.float32([[[[3]]]]), np.zeros((1, 1, 1, 3), np.float32))
    array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return adaptive_avg_pool2d_backward(dy, x, 1)


def _global_avg_pool2d(x: Any, *, out: Any = None) -> Any:
    """The mean of every image and channel.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H, W), float32 or float64, on CUDA also of 16 bits.
    out : array, optional
        (N, C, 1, 1), where the result goes. For arrays only.

    Returns
    -------
    array or Tensor
        (N, C, 1, 1).

    Examples
    --------
    >>> import numpy as np
    >>> global_avg_pool2d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)).ravel()
    array([1.5, 5.5], dtype=float32)
    """
    return _adaptive_avg_pool2d(x, 1, out=out)


global_avg_pool2d = differentiable(_global_avg_pool2d, global_avg_pool2d_backward)
