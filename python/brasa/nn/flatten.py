"""Layers that only change the shape."""

from __future__ import annotations

from math import prod
from typing import Any

from brasa.nn.module import Module

__all__ = ["Flatten", "Unflatten"]


class Flatten(Module):
    """Merge a range of dimensions into one, in C order whatever the memory format.

    Parameters
    ----------
    start_dim, end_dim : int, default: 1 and -1
        First and last dimension to merge.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Flatten()(np.zeros((2, 3, 4, 5), np.float32)).shape
    (2, 60)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Any) -> Any:
        """Flatten ``x``, any shape with the dimensions named."""
        shape = x.shape
        rank = len(shape)
        if not (-rank <= self.start_dim < rank and -rank <= self.end_dim < rank):
            raise ValueError(f"x: expected dimensions {self.start_dim} and {self.end_dim}, got shape {shape}")
        first, last = self.start_dim % rank, self.end_dim % rank
        if first > last:
            raise ValueError(
                f"start_dim: {self.start_dim} comes after end_dim {self.end_dim} in shape {shape}"
            )
        return x.reshape((*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Cut one dimension into several: the inverse of ``Flatten``.

    Parameters
    ----------
    dim : int
        The dimension to cut.
    unflattened_size : tuple of int
        The new sizes; one may be -1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Unflatten(1, (3, -1))(np.zeros((2, 60), np.float32)).shape
    (2, 3, 20)
    """

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, x: Any) -> Any:
        """Unflatten ``x``, whose dimension ``dim`` has the product of the new sizes."""
        shape = x.shape
        rank = len(shape)
        if not -rank <= self.dim < rank:
            raise ValueError(f"x: expected a dimension {self.dim}, got shape {shape}")
        dim = self.dim % rank
        sizes = list(self.unflattened_size)
        if sizes.count(-1) == 1:
            known = -prod(sizes)
            sizes[sizes.index(-1)] = shape[dim] // known if known else 0
        if any(size < 0 for size in sizes) or prod(sizes) != shape[dim]:
            raise ValueError(
                f"x: dimension {self.dim} of {shape} does not divide into {self.unflattened_size}"
            )
        return x.reshape((*shape[:dim], *sizes, *shape[dim + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
