"""Rows of a table, picked by index."""

from __future__ import annotations

from typing import Any

from brasa import _backend
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = ["embedding", "embedding_backward"]


def _operands(indices: Any, weight: Any, padding_idx: Any) -> tuple[Any, Any, int]:
    weight = _backend.contiguous(_check.device_floating("weight", weight))
    _check.rank("weight", weight, 2, shape="(V, D)")
    rows = weight.shape[0]
    indices = _check.indices("indices", indices, rows)
    _backend.kernels(weight, indices)
    if padding_idx is None:
        return indices, weight, -1
    padding = _check.integer("padding_idx", padding_idx, minimum=-rows, maximum=rows - 1)
    return indices, weight, padding + rows if padding < 0 else padding


def _embedding(indices: Any, weight: Any, *, padding_idx: int | None = None) -> Any:
    """weight[indices].

    Parameters
    ----------
    indices : array
        Integers in [0, V), any shape (...).
    weight : array or Tensor
        The table (V, D), float32 or float64, on CUDA also of 16 bits.
    padding_idx : int, optional
        A row that gets no gradient; negative counts from the end.

    Returns
    -------
    array or Tensor
        (..., D), of the dtype of `weight`.

    Raises
    ------
    ValueError
        An index out of range, with its value and position. On CUDA its row is NaN instead, unless
        ``BRASA_CHECK=1`` is set, which waits for the device.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> embedding(np.array([2, 0]), np.float32([[1, 1], [2, 2], [3, 3]]))
    array([[3., 3.],
           [1., 1.]], dtype=float32)
    """
    indices, weight, _ = _operands(indices, weight, padding_idx)
    y = _backend.empty(weight, (*indices.shape, weight.shape[1]))
    _backend.backend_of(weight).kernels.embedding_forward(indices, weight, y)
    return y


def embedding_backward(dy: Any, indices: Any, weight: Any, *, padding_idx: int | None = None) -> Any:
    """The gradient of `embedding` with respect to `weight`: each row of `dy` added to the row it came from.

    The rows of one index are added in the order of the positions, on every device and for any number of
    threads.

    Parameters
    ----------
    dy : array
        The gradient of the result, (..., D).
    indices, weight, padding_idx
        As they were passed to `embedding`; of `weight` only the shape counts.

    Returns
    -------
    array
        (V, D).

    Examples
    --------
    >>> import numpy as np
    >>> table = np.zeros((3, 2), np.float32)
    >>> embedding_backward(np.ones((2, 2), np.float32), np.array([2, 2]), table)
    array([[0., 0.],
           [0., 0.],
           [2., 2.]], dtype=float32)
    """
    indices, weight, padding = _operands(indices, weight, padding_idx)
    dy = _backend.contiguous(_check.device_floating("dy", dy))
    _check.shape("dy", dy, (*indices.shape, weight.shape[1]))
    _check.same_dtype(weight=weight, dy=dy)
    dweight = _backend.empty(weight, weight.shape)
    _backend.backend_of(weight).kernels.embedding_backward(dy, indices, dweight, padding)
    return dweight


embedding = differentiable(_embedding, embedding_backward, arrays=("weight",))
