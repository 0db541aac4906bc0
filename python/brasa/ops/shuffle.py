"""Pixel shuffle: an image enlarged by making sub-pixels of its channels, and the inverse.

Images are (N, C, H, W), float32 or float64 (on CUDA also of 16 bits), C-contiguous or channels-last; any
other is copied first. The result has the layout of the image. Each operator is the other's gradient.
"""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["pixel_shuffle", "pixel_unshuffle"]


def _image(x: Any, name: str = "x") -> Any:
    x = _backend.dense(_check.device_floating(name, x))
    _check.rank(name, x, 4, shape="(N, C, H, W)")
    return x


def _enlarge(x: Any, factor: int, layout: int) -> Any:
    n, c, h, w = x.shape
    _, _, kernels, empty, _ = _backend.backend_of(x)
    shape = (n, c // (factor * factor), h * factor, w * factor)
    y = empty(shape, x.dtype, layout == _backend.CHANNELS_LAST)
    kernels.pixel_shuffle(x, y, factor)
    return y


def _reduce(x: Any, factor: int, layout: int) -> Any:
    n, c, h, w = x.shape
    _, _, kernels, empty, _ = _backend.backend_of(x)
    shape = (n, c * factor * factor, h // factor, w // factor)
    y = empty(shape, x.dtype, layout == _backend.CHANNELS_LAST)
    kernels.pixel_unshuffle(x, y, factor)
    return y


def _gradient(dy: Any, saved: int) -> Any:
    """`dy` laid out as the input of the forward was, of which `saved` tells."""
    dy = _image(dy, "dy")
    if _backend.layout(dy) == saved or (saved == _backend.C_ORDER and dy.flags.c_contiguous):
        return dy
    moved = _backend.empty(dy, dy.shape, None, saved == _backend.CHANNELS_LAST)
    moved[...] = dy
    return moved


def _shuffle_backward(dy: Any, upscale_factor: int, saved: int) -> Any:
    return _reduce(_gradient(dy, saved), int(upscale_factor), saved)


def _unshuffle_backward(dy: Any, downscale_factor: int, saved: int) -> Any:
    return _enlarge(_gradient(dy, saved), int(downscale_factor), saved)


def _pixel_shuffle(x: Any, upscale_factor: int, *, save: bool = False) -> Any:
    """Channels become sub-pixels: ``y[n, c, h r + i, w r + j] = x[n, c r r + i r + j, h, w]``.

    Parameters
    ----------
    x : array or Tensor
        (N, C r r, H, W), float32 or float64, on CUDA also of 16 bits.
    upscale_factor : int
        r, at least 1.
    save : bool
        Return ``(result, saved)``; `saved` is what the gradient needs. For arrays only.

    Returns
    -------
    array or Tensor
        (N, C, H r, W r), laid out as `x`.

    Raises
    ------
    ValueError
        When the channels are no multiple of r r, or `x` has not 4 dimensions.
    TypeError
        For another dtype, or a factor that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> pixel_shuffle(np.arange(8, dtype=np.float32).reshape(1, 4, 1, 2), 2)
    array([[[[0., 2., 1., 3.],
             [4., 6., 5., 7.]]]], dtype=float32)
    """
    x = _image(x)
    factor = _check.integer("upscale_factor", upscale_factor, minimum=1)
    if x.shape[1] % (factor * factor):
        raise ValueError(
            f"x: expected a multiple of {factor * factor} channels for a factor of {factor}, "
            f"got shape {x.shape}"
        )
    layout = _backend.layout(x)
    y = _enlarge(x, factor, layout)
    return (y, layout) if save else y


def _pixel_unshuffle(x: Any, downscale_factor: int, *, save: bool = False) -> Any:
    """Sub-pixels become channels: ``y[n, c r r + i r + j, h, w] = x[n, c, h r + i, w r + j]``.

    Parameters
    ----------
    x : array or Tensor
        (N, C, H r, W r), float32 or float64, on CUDA also of 16 bits.
    downscale_factor : int
        r, at least 1.
    save : bool
        Return ``(result, saved)``; `saved` is what the gradient needs. For arrays only.

    Returns
    -------
    array or Tensor
        (N, C r r, H, W), laid out as `x`.

    Raises
    ------
    ValueError
        When height or width is no multiple of r, or `x` has not 4 dimensions.
    TypeError
        For another dtype, or a factor that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> pixel_unshuffle(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), 2).ravel()
    array([0., 1., 2., 3.], dtype=float32)
    """
    x = _image(x)
    factor = _check.integer("downscale_factor", downscale_factor, minimum=1)
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x: expected height and width to be multiples of the factor {factor}, got shape {x.shape}"
        )
    layout = _backend.layout(x)
    y = _reduce(x, factor, layout)
    return (y, layout) if save else y


pixel_shuffle = differentiable(_pixel_shuffle, _shuffle_backward)
pixel_unshuffle = differentiable(_pixel_unshuffle, _unshuffle_backward)
