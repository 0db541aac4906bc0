"""Softmax layers."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn.module import Module

__all__ = ["LogSoftmax", "Softmax"]


class Softmax(Module):
    """``y = exp(x) / sum(exp(x))`` along one dimension.

    Parameters
    ----------
    dim : int, default: -1
        The dimension whose elements sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Softmax(dim=1)(np.zeros((1, 4), np.float32)).numpy().round(3))
    [[0.25 0.25 0.25 0.25]]
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        """Normalise ``x``, any shape with the dimension."""
        return ops.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """``y = x - log(sum(exp(x)))`` along one dimension.

    Parameters
    ----------
    dim : int, default: -1
        The dimension whose elements' exponentials sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.LogSoftmax(dim=1)(np.zeros((1, 4), np.float32)).numpy().round(3))
    [[-1.386 -1.386 -1.386 -1.386]]
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        """Normalise ``x``, any shape with the dimension."""
        return ops.log_softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
