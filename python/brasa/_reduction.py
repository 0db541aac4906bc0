"""Reductions with gradients: sum, mean, maximum, minimum; product, variance and logsumexp built of others.

The axis may be None (all), an int or a tuple. Integers are summed as integers; their mean is float32.
"""

from __future__ import annotations

from typing import Any

from brasa._backend import namespace
from brasa._elementary import exp, log
from brasa._elementwise import add, divide_by, floating, multiply, sqrt, subtract, where
from brasa._shape import as_array_of, broadcast_to, cat, getitem, in_float32, reshape, transpose
from brasa._tape import differentiable, is_floating, is_tensor

Axis = int | tuple[int, ...] | None


def _axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """The axes that are reduced, counted from 0."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(i % ndim if ndim else i for i in (axis if isinstance(axis, tuple) else (axis,)))


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction with ``keepdims=True``."""
    axes = _axes(len(shape), axis)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _count(shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements are reduced to one."""
    count = 1
    for i in _axes(len(shape), axis):
        count *= shape[i]
    return count


def _restore(dy: Any, shape: tuple[int, ...], axis: Axis) -> Any:
    """The result of a reduction, repeated to the shape of its argument."""
    return broadcast_to(reshape(dy, _kept(shape, axis)), shape)


def _sum(x: Any, axis: Axis = None, keepdims: bool = False, *, save: bool = False) -> Any:
    """The sum over `axis`."""
    y = in_float32(x, lambda x: x.sum(axis=axis, keepdims=keepdims))
    return (y, x.shape) if save else y


def _sum_backward(dy: Any, axis: Axis, saved: Any) -> Any:
    return _restore(dy, saved, axis)


def _mean(x: Any, axis: Axis = None, keepdims: bool = False, *, save: bool = False) -> Any:
    """The mean over `axis`; of integers as float32."""
    dtype = None if is_floating(x.dtype) else "float32"
    y = in_float32(x, lambda x: x.mean(axis=axis, keepdims=keepdims, dtype=dtype))
    return (y, x.shape) if save else y


def _mean_backward(dy: Any, axis: Axis, saved: Any) -> Any:
    return _restore(divide_by(dy, float(_count(saved, axis) or 1)), saved, axis)


def _max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element over `axis`; equal ones share the gradient."""
    return as_array_of(x.max(axis=axis, keepdims=keepdims), x)


def _min(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element over `axis`; equal ones share the gradient."""
    return as_array_of(x.min(axis=axis, keepdims=keepdims), x)


def _extremum_backward(dy: Any, y: Any, x: Any, axis: Axis) -> Any:
    values = x.data if is_tensor(x) else x
    best = y.data if is_tensor(y) else y
    shape = values.shape
    chosen = (values == best.reshape(_kept(shape, axis))) | (values != values)
    ties = chosen.sum(axis=_axes(len(shape), axis), keepdims=True)
    share = (chosen / namespace(values).maximum(ties, 1)).astype(values.dtype)
    return multiply(_restore(dy, shape, axis), as_array_of(share, values))


sum_over = differentiable(_sum, _sum_backward)
mean_over = differentiable(_mean, _mean_backward)
max_over = differentiable(_max, _extremum_backward)
min_over = differentiable(_min, _extremum_backward)


def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The variance over `axis`: squared distances from the mean, divided by their number less `ddof`."""
    centred = subtract(x, mean_over(x, axis, True))
    total = sum_over(multiply(centred, centred), axis, keepdims)
    return divide_by(total, float(_count(x.shape, axis) - ddof))


def std(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The square root of `var`."""
    return sqrt(var(x, axis, ddof, keepdims))


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The product over `axis`.

    Halves are multiplied with each other until one is left: the gradient needs no division, so that
    zeros are no special case.
    """
    shape = x.shape
    axes = _axes(len(shape), axis)
    others = tuple(i for i in range(len(shape)) if i not in axes)
    extents = tuple(shape[i] for i in others)
    y = reshape(transpose(x, others + axes), (*extents, _count(shape, axis)))
    if y.shape[-1] == 0:
        y = broadcast_to(namespace(y.data if is_tensor(y) else y).ones((1,), y.dtype), (*extents, 1))
    while y.shape[-1] > 1:
        half, rest = divmod(y.shape[-1], 2)
        product = multiply(getitem(y, (..., slice(0, half))), getitem(y, (..., slice(half, 2 * half))))
        if rest:
            last = getitem(y, (..., slice(-1, None)))
            first = multiply(getitem(product, (..., slice(0, 1))), last)
            product = cat((first, getitem(product, (..., slice(1, None)))), -1)
        y = product
    return reshape(y, _kept(shape, axis) if keepdims else extents)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """``log(sum(exp(x)))`` over `axis`, without overflow."""
    x = floating(x)
    values = x.data if is_tensor(x) else x
    top = as_array_of(values.max(axis=_axes(len(x.shape), axis), keepdims=True), values)
    top = where(namespace(top).isfinite(top), top, 0.0)
    total = log(sum_over(exp(subtract(x, top)), axis, True))
    y = add(total, top)
    return y if keepdims else reshape(y, _dropped(x.shape, axis))


def _dropped(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    axes = _axes(len(shape), axis)
    return tuple(n for i, n in enumerate(shape) if i not in axes)
