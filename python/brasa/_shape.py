"""Operators that move elements and compute nothing: reshape, transpose, indexing, joining, broadcasting.

All but `concatenate` and copies that NumPy has to make return views: the result shares memory with the
argument, and with it the count of changes in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from brasa._backend import cast, empty, is_narrow, namespace
from brasa._tape import differentiable, is_tensor


def as_array_of(result: Any, like: Any) -> Any:
    """`result`, where NumPy made a scalar of it, as an array with no dimension."""
    return result if result.ndim else namespace(like).asarray(result)


def in_float32(x: Any, reduce: Callable[[Any], Any]) -> Any:
    """``reduce(x)``, with sums of 16 bits in float32, rounded once."""
    if not is_narrow(x.dtype):
        return as_array_of(reduce(x), x)
    return cast(as_array_of(reduce(cast(x, "float32")), x), x.dtype)


# Broadcasting -----------------------------------------------------------------------------------------


def _broadcast_to(x: Any, shape: Any, *, save: bool = False) -> Any:
    """`x` repeated along new axes and axes of extent 1 (a read-only view)."""
    y = namespace(x).broadcast_to(x, shape)
    return (y, x.shape) if save else y


def _broadcast_to_backward(dy: Any, saved: Any) -> Any:
    return sum_to(dy, saved)


def _sum_to(x: Any, shape: Any, *, save: bool = False) -> Any:
    """The sum of `x` over the axes that broadcasting an array of `shape` would repeat."""
    lead = x.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(x.shape) if i < lead or (shape[i - lead] == 1 and n != 1))
    y = in_float32(x, lambda x: x.sum(axis=axes)).reshape(shape)
    return (y, x.shape) if save else y


def _sum_to_backward(dy: Any, saved: Any) -> Any:
    return broadcast_to(dy, saved)


broadcast_to = differentiable(_broadcast_to, _broadcast_to_backward, shares_memory=True)
sum_to = differentiable(_sum_to, _sum_to_backward)


def unbroadcast(dy: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of an argument of `shape` from `dy`, the gradient of what it was broadcast to."""
    return dy if dy.shape == shape else sum_to(dy, shape)


# Shape ------------------------------------------------------------------------------------------------


def _reshape(x: Any, shape: Any, *, save: bool = False) -> Any:
    """`x` with another shape, elements in C order; one extent may be -1."""
    y = x.reshape(shape)
    return (y, x.shape) if save else y


def _reshape_backward(dy: Any, saved: Any) -> Any:
    return reshape(dy, saved)


def _transpose(x: Any, axes: tuple[int, ...]) -> Any:
    """`x` with its axes in the order `axes`."""
    return x.transpose(axes)


def _transpose_backward(dy: Any, axes: tuple[int, ...]) -> Any:
    inverse = [0] * len(axes)
    for i, axis in enumerate(axes):
        inverse[axis % len(axes)] = i
    return transpose(dy, tuple(inverse))


reshape = differentiable(_reshape, _reshape_backward, shares_memory=True)
transpose = differentiable(_transpose, _transpose_backward, shares_memory=True)


# Indexing ---------------------------------------------------------------------------------------------


def _getitem(x: Any, index: Any, *, save: bool = False) -> Any:
    """``x[index]``."""
    y = as_array_of(x[index], x)
    return (y, x.shape) if save else y


def _getitem_backward(dy: Any, index: Any, saved: Any) -> Any:
    return scatter(dy, index, saved)


def _scatter(parts: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """An array of `shape` that is zero but for `parts` added at `index`."""
    inner = parts.ndim == len(shape) >= 3 and parts.shape[1] > 1 and parts.strides[1] == parts.itemsize
    dx = empty(parts, shape, channels_last=inner)  # the format of dx meets that of other gradients
    in_memory = (0, *range(2, dx.ndim), 1) if inner else tuple(range(dx.ndim))
    dx.transpose(in_memory).fill(0)  # CuPy walks through arrays in C order: a third of the time
    if may_repeat(index):
        namespace(parts).add.at(dx, index, parts)
    elif inner and type(index) is tuple and all(type(part) is slice for part in index):
        dx[index].transpose(in_memory)[...] = parts.transpose(in_memory)
    else:
        dx[index] = parts
    return dx


def _scatter_backward(dy: Any, index: Any) -> Any:
    return getitem(dy, index)


def may_repeat(index: Any) -> bool:
    """Whether `index` can name an element twice: it can if it holds an array of integers."""
    parts = index if type(index) is tuple else (index,)
    return any(hasattr(part, "dtype") and part.dtype.kind != "b" and part.ndim for part in parts) or any(
        isinstance(part, list) for part in parts
    )


def plain_index(index: Any) -> Any:
    """`index` with arrays in place of Tensors."""
    if type(index) is tuple:
        return tuple(plain_index(part) for part in index)
    return index.data if is_tensor(index) else index


getitem = differentiable(_getitem, _getitem_backward, shares_memory=True)
scatter = differentiable(_scatter, _scatter_backward)


# Joining and dividing ---------------------------------------------------------------------------------


def _concatenate(*arrays: Any, axis: int = 0, save: bool = False) -> Any:
    """`arrays` one after the other along `axis`."""
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) > 1:
        names = " and ".join(sorted(str(dtype) for dtype in dtypes))
        raise TypeError(f"cat: the arrays must share a dtype, got {names}")
    y = namespace(arrays[0]).concatenate(arrays, axis=axis)
    return (y, [a.shape[axis] for a in arrays]) if save else y


def _concatenate_backward(dy: Any, axis: int, saved: list[int], mask: tuple[bool, ...]) -> Any:
    gradients, begin = [], 0
    for extent, needed in zip(saved, mask, strict=True):
        cut = (slice(None),) * (axis % dy.ndim) + (slice(begin, begin + extent),)
        gradients.append(getitem(dy, cut) if needed else None)
        begin += extent
    return gradients


concatenate = differentiable(_concatenate, _concatenate_backward)


def cat(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays or Tensors joined along an axis that they have.

    Parameters
    ----------
    arrays
        One or more, equal in dtype and in every extent but that of `axis`.
    axis
        The axis along which they follow each other.

    Raises
    ------
    TypeError
        If their dtypes differ.
    ValueError
        If there is none, or their shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> cat([np.zeros((1, 2)), np.ones((2, 2))]).shape
    (3, 2)
    """
    if not arrays:
        raise ValueError("cat: at least one array is needed")
    return concatenate(*arrays, axis=axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays or Tensors of one shape joined along a new axis.

    Parameters
    ----------
    arrays
        One or more, equal in shape and dtype.
    axis
        Where the new axis stands in the result.

    Raises
    ------
    ValueError
        If there is none, or their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> stack([np.zeros(3), np.ones(3)], axis=1).shape
    (3, 2)
    """
    if not arrays:
        raise ValueError("stack: at least one array is needed")
    shape = arrays[0].shape
    different = [a.shape for a in arrays if a.shape != shape]
    if different:
        raise ValueError(f"stack: all shapes must be equal, got {shape} and {different[0]}")
    place = axis % (len(shape) + 1) if -len(shape) - 1 <= axis <= len(shape) else None
    if place is None:
        raise ValueError(f"stack: axis {axis} is out of range for {len(shape) + 1} dimensions")
    wide = (*shape[:place], 1, *shape[place:])
    return concatenate(*(reshape(a, wide) for a in arrays), axis=place)


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Any]:
    """`x` cut along an axis.

    Parameters
    ----------
    x
        An array or Tensor.
    sections
        The extent of every part (the last may be smaller), or the list of extents.
    axis
        The axis that is cut.

    Raises
    ------
    ValueError
        If an extent is not positive or a list of extents does not add up to that of `axis`.

    Examples
    --------
    >>> import numpy as np
    >>> [part.shape for part in split(np.zeros((5, 2)), 2)]
    [(2, 2), (2, 2), (1, 2)]
    """
    extent = x.shape[axis]
    if isinstance(sections, int):
        if sections < 1:
            raise ValueError(f"split: the extent of a part must be positive, got {sections}")
        sections = [min(sections, extent - begin) for begin in range(0, extent, sections)]
    elif sum(sections) != extent or min(sections, default=0) < 0:
        raise ValueError(
            f"split: extents {list(sections)} do not add up to {extent}, the extent of axis {axis}"
        )
    before = (slice(None),) * (axis % len(x.shape))
    ends = [sum(sections[: i + 1]) for i in range(len(sections))]
    return [getitem(x, (*before, slice(end - n, end))) for end, n in zip(ends, sections, strict=True)]


def _thirds(x: Any, axis: int) -> Any:
    """Three equal parts of `x` along `axis`, views."""
    return tuple(namespace(x).split(x, 3, axis=axis))


def _thirds_backward(dy: Any, axis: int) -> Any:
    known = next(d for d in dy if d is not None)
    zero = None if all(d is not None for d in dy) else known * 0
    return concatenate(*(zero if d is None else d for d in dy), axis=axis)


thirds = differentiable(_thirds, _thirds_backward)
