"""Dropout."""

from __future__ import annotations

from typing import Any

from brasa.nn import functional as F
from brasa.nn.module import Module

__all__ = ["Dropout"]


class Dropout(Module):
    """Set elements to 0 with probability ``p`` and scale the others by 1/(1-p), in training only.

    Parameters
    ----------
    p : float, default: 0.5
        Probability of dropping an element, in [0, 1].
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Notes
    -----
    Input and output have the same shape, any. The mask is drawn from the library's default
    generator, is the same on every device, and is drawn again in the backward pass instead of being kept.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Dropout(0.5).eval()(np.ones(3, np.float32)).numpy()
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = F.check_probability(p)
        self.inplace = inplace

    def forward(self, x: Any) -> Any:
        """Drop elements of ``x``, any shape."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
