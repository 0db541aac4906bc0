"""Dropout, its mask a function of a seed and a position.

Element i of the array in memory order uses word i % 4 of Philox4x32-10 with the key `seed` and the counter
``offset + i // 4``: the mask is the same on every device and for any number of threads, and the backward
pass draws it again. `brasa.random.Generator.next` hands out (seed, offset).
"""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["dropout", "dropout_backward"]


def _apply(x: Any, p: Any, seed: Any, offset: Any) -> Any:
    probability = _check.number("p", p)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"p: expected a probability in [0, 1], got {p!r}")
    seed, offset = _check.word("seed", seed, x), _check.word("offset", offset, x)
    y = _backend.empty_like(x)
    _backend.backend_of(x).kernels.dropout_forward(x, y, probability, seed, offset)
    return y


def _dropout(x: Any, p: float, seed: int, offset: int, *, save: bool = False) -> Any:
    """0 with probability `p`, else x / (1 - p).

    Parameters
    ----------
    x : array or Tensor
        Any shape, float32 or float64, on CUDA also of 16 bits.
    p : float
        The probability of dropping an element, in [0, 1]. What is dropped is 0, whatever it was.
    seed, offset : int
        Where the random numbers come from, in [0, 2**64); for arrays on a device also device arrays of one
        int64, which the kernel reads when it runs.
    save : bool, default False
        Also return what `dropout_backward` needs.

    Returns
    -------
    array or Tensor
        The shape, dtype and layout of `x`; with `save` a pair (result, saved).

    Raises
    ------
    ValueError
        When `p`, `seed` or `offset` is out of range.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> (dropout(np.ones(1000, np.float32), 0.5, seed=1, offset=0) == 0).mean().round(1)
    np.float64(0.5)
    """
    x = _backend.dense(_check.device_floating("x", x))
    y = _apply(x, p, seed, offset)
    return (y, _backend.layout(x)) if save else y


def dropout_backward(dy: Any, p: float, seed: int, offset: int, *, saved: int | None = None) -> Any:
    """The gradient of `dropout` with respect to its input: dropout of `dy` with the same mask.

    Parameters
    ----------
    dy : array
        The gradient of the result.
    p, seed, offset
        As they were passed to `dropout`.
    saved : int, optional
        What ``dropout(..., save=True)`` returned beside the result: how its input lay in memory. Without
        it, `dy` is taken to lie as the input did.

    Returns
    -------
    array
        The shape and dtype of `dy`.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_backward(np.ones(3, np.float32), 1.0, seed=1, offset=0)
    array([0., 0., 0.], dtype=float32)
    """
    dy = _backend.dense(_check.device_floating("dy", dy))
    if saved is not None and _check.integer("saved", saved, minimum=0, maximum=2) != _backend.layout(dy):
        moved = _backend.empty(dy, dy.shape, channels_last=saved == _backend.CHANNELS_LAST)
        moved[...] = dy
        dy = moved
    return _apply(dy, p, seed, offset)


dropout = differentiable(_dropout, dropout_backward)
