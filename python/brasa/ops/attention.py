"""Scaled dot-product attention, fused: the matrix of scores is never in memory as a whole.

Arrays of float32 or float64, on CUDA also of 16 bits, whose last two dimensions are (positions, features); the
dimensions before them, such as batch and heads, broadcast. An array is taken as it lies where its last dimension
is contiguous: heads that are a transposed view of (N, L, H, E) cost no copy, and a result lies in memory as its
query does.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from brasa import _backend
from brasa._shape import unbroadcast
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["attention", "attention_backward"]

_FLOAT32 = np.dtype(np.float32)
_MOST_FEATURES = 128  # that the kernels of 16 bits take


def _operand(name: str, x: Any) -> Any:
    """`x` with at least two dimensions, the last one contiguous."""
    x = _check.device_floating(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected at least 2 dimensions (..., positions, features), got shape {x.shape}"
        )
    return x if x.strides[-1] == x.itemsize or x.shape[-1] <= 1 else _backend.contiguous(x)


def _broadcast(name: str, x: Any, shape: tuple[int, ...]) -> Any:
    """A view of `x` with the dimensions `shape`."""
    if x.shape == shape:
        return x
    try:
        return _backend.namespace(x).broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name}: shape {x.shape} does not broadcast to {shape}") from None


def _operands(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The three with the same batch dimensions."""
    q, k, v = _operand("q", q), _operand("k", k), _operand("v", v)
    _check.same_dtype(q=q, k=k, v=v)
    if q.shape[-1] != k.shape[-1] or not q.shape[-1]:
        least = q.shape[-1] or "at least 1"
        raise ValueError(f"k: expected {least} features as q has, got q {q.shape}, k {k.shape}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"v: expected {k.shape[-2]} positions as k has, got k {k.shape}, v {v.shape}")
    batches = [x.shape[:-2] for x in (q, k, v)]
    if batches[0] != batches[1] or batches[1] != batches[2]:
        try:
            batch = np.broadcast_shapes(*batches)
        except ValueError:
            raise ValueError(
                f"q, k, v: their batch dimensions do not broadcast, got {q.shape}, {k.shape}, {v.shape}"
            ) from None
        q, k, v = (_broadcast(n, x, (*batch, *x.shape[-2:])) for n, x in (("q", q), ("k", k), ("v", v)))
    return q, k, v


def _computed_in(q: Any, v: Any) -> Any:
    """The dtype that the kernels compute these operands from: float32 where 16 bits have too many features."""
    wide = _backend.is_narrow(q.dtype) and max(q.shape[-1], v.shape[-1]) > _MOST_FEATURES
    return _FLOAT32 if wide else q.dtype


def _cast(dtype: Any, *arrays: Any) -> list[Any]:
    return [x if x is None or x.dtype == dtype else _backend.cast(x, dtype) for x in arrays]


def _mask(mask: Any, q: Any, k: Any) -> Any:
    """`mask` as the kernels read it: bytes or numbers of q's dtype, float32 beside 16 bits, of the scores' shape."""
    if mask is None:
        return None
    mask = _backend.as_array(mask, "mask")
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    elif mask.dtype == q.dtype:
        mask = _cast(_check.wide(q.dtype), mask)[0]
    elif mask.dtype != _check.wide(q.dtype):
        raise TypeError(f"mask: expected bool or {q.dtype} as q has, got {mask.dtype}")
    _backend.kernels(q, mask)
    return _broadcast("mask", mask, (*q.shape[:-1], k.shape[-2]))


def _numbers(q: Any, scale: Any, dropout_p: Any, seed: Any, offset: Any) -> tuple[float, float, Any, Any]:
    scale = 1 / sqrt(q.shape[-1]) if scale is None else _check.number("scale", scale)
    probability = _check.number("dropout_p", dropout_p)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"dropout_p: expected a probability in [0, 1], got {dropout_p!r}")
    return scale, probability, _check.word("seed", seed, q), _check.word("offset", offset, q)


def _laid_out(x: Any, shape: tuple[int, ...]) -> Any:
    """A new array of this shape whose dimensions, but the last, follow each other in memory as those of `x`."""
    order = sorted(range(x.ndim - 1), key=lambda d: -abs(x.strides[d]))
    if order == list(range(x.ndim - 1)) or 0 in x.strides:
        return _backend.empty(x, shape)
    order.append(x.ndim - 1)
    inner = _backend.empty(x, tuple([shape[d] for d in order]))
    return inner.transpose([order.index(d) for d in range(x.ndim)])


def _attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    save: bool = False,
) -> Any:
    """softmax(scale * q @ k.T + mask) @ v, in one kernel that needs no memory for the scores.

    Parameters
    ----------
    q : array or Tensor
        (..., L, E), queries. float32 or float64, on CUDA also float16 or bfloat16: products are then made on
        tensor cores, sums in float32 (and everything in float32 where E or Ev is above 128).
    k : array or Tensor
        (..., S, E), keys.
    v : array or Tensor
        (..., S, Ev), values. The dimensions in front broadcast.
    mask : array, optional
        Broadcasts to (..., L, S). Booleans, True where a query may attend to a key, or numbers of the dtype of
        `q` (or float32 beside 16 bits) that are added to the scores. It has no gradient.
    causal : bool
        Whether query i may attend to the keys j <= i only; with a mask, both hold.
    scale : float, optional
        1 / sqrt(E) unless given.
    dropout_p : float
        The probability of dropping a weight after the softmax, in [0, 1].
    seed, offset : int
        Where dropout's random numbers come from, as in `dropout`; the array is that of all scores, (..., L, S).
    save : bool
        Return ``(y, saved)``; `saved` goes to `attention_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        (..., L, Ev). A row whose query may attend to nothing is 0, also where S is 0.

    Raises
    ------
    ValueError
        For shapes that do not fit, or a number out of range.
    TypeError
        For another dtype or a mix of them.

    Notes
    -----
    Vaswani et al. (2017), "Attention is all you need"; computed block by block as in Dao et al. (2022),
    "FlashAttention". A weight is off by at most 2 d + (2 min(S, 64) + S / 8 + 32) u of itself, where d bounds the
    error of the row's scores, (E + 4) u scale sum(abs(q k)), and u is half a unit in the last place of 1. With
    16 bits u is float32's; each weight and the result are rounded to 16 bits besides. Of float32 on CUDA with up to
    96 features, operands and weights are cut to tf32 where `brasa.set_matmul_precision` allows it.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.zeros((1, 2), np.float32)
    >>> attention(q, np.ones((2, 2), np.float32), np.float32([[1], [3]]))
    array([[2.]], dtype=float32)
    >>> attention(q, np.ones((2, 2), np.float32), np.float32([[1], [3]]), mask=[[True, False]])
    array([[1.]], dtype=float32)
    """
    q, k, v = _operands(q, k, v)
    bias = _mask(mask, q, k)
    numbers = _numbers(q, scale, dropout_p, seed, offset)
    dtype = q.dtype
    q, k, v = _cast(_computed_in(q, v), q, k, v)
    y = _laid_out(q, (*q.shape[:-1], v.shape[-1]))
    log_sum = _backend.empty(q, q.shape[:-1], dtype=_check.wide(dtype)) if save else None
    _backend.backend_of(q).kernels.attention_forward(q, k, v, bias, y, log_sum, bool(causal), *numbers)
    [y] = _cast(dtype, y)
    return (y, (log_sum, mask)) if save else y


def attention_backward(
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    causal: bool = False,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    y: Any,
    saved: Any,
    mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """The gradients of `attention`. The weights are computed again, block by block.

    Parameters
    ----------
    dy : array
        (..., L, Ev), the gradient of the result.
    q, k, v, causal, scale, dropout_p, seed, offset
        As for `attention`.
    y : array
        The result.
    saved : tuple
        What ``save=True`` returned; it holds attention's mask.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dq, dk, dv : array or None
        The shapes of `q`, `k` and `v`. None where `mask` is False.

    Raises
    ------
    ValueError, TypeError
        As for `attention`; when `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 2), np.float32), np.ones((2, 2), np.float32), np.float32([[1], [3]])
    >>> y, saved = attention(q, k, v, save=True)
    >>> attention_backward(np.float32([[1]]), q, k, v, y=y, saved=saved)[2].ravel()
    array([0.5, 0.5], dtype=float32)
    """
    kept, given = _check.saved(saved, 2)
    mask = _check.mask(mask, 3)
    shapes = [np.shape(x) for x in (q, k, v)]
    q, k, v = _operands(q, k, v)
    dy, y, log_sum = _operand("dy", dy), _operand("y", y), _check.vector("saved", kept, q=q)
    _check.same_dtype(q=q, dy=dy, y=y)
    result = (*q.shape[:-1], v.shape[-1])
    _check.shape("dy", dy, result)
    _check.shape("y", y, result)
    _check.shape("saved", log_sum, q.shape[:-1])
    numbers = _numbers(q, scale, dropout_p, seed, offset)
    dtype, bias = q.dtype, _mask(given, q, k)
    dy, q, k, v, y = _cast(_computed_in(q, v), dy, q, k, v, y)
    gradients = [_laid_out(x, x.shape) if wanted else None for x, wanted in zip((q, k, v), mask)]
    if any(mask):
        _backend.backend_of(q).kernels.attention_backward(
            dy,
            q,
            k,
            v,
            bias,
            y,
            _backend.contiguous(log_sum),
            *gradients,
            bool(causal),
            *numbers,
        )
    gradients = _cast(dtype, *gradients)
    dq, dk, dv = (None if g is None else unbroadcast(g, shape) for g, shape in zip(gradients, shapes))
    return dq, dk, dv


attention = differentiable(_attention, attention_backward, arrays=("q", "k", "v"))
