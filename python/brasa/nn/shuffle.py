"""Layers that exchange channels and sub-pixels."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn._arguments import check_positive
from brasa.nn.module import Module

__all__ = ["PixelShuffle", "PixelUnshuffle"]


class PixelShuffle(Module):
    """Enlarge an image by making sub-pixels of its channels.

    Parameters
    ----------
    upscale_factor : int
        r, by which height and width grow.

    Notes
    -----
    Input (N, C r r, H, W), output (N, C, H r, W r); channel c r r + i r + j is row i and column j of the
    sub-pixels of channel c.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.PixelShuffle(2)(np.zeros((1, 12, 8, 8), np.float32)).shape
    (1, 3, 16, 16)
    """

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = check_positive("upscale_factor", upscale_factor)

    def forward(self, x: Any) -> Any:
        """Enlarge ``x`` (N, C r r, H, W)."""
        return ops.pixel_shuffle(x, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """Make channels of the sub-pixels of an image: the inverse of ``PixelShuffle``.

    Parameters
    ----------
    downscale_factor : int
        r, by which height and width shrink.

    Notes
    -----
    Input (N, C, H r, W r), output (N, C r r, H, W).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.PixelUnshuffle(2)(np.zeros((1, 3, 16, 16), np.float32)).shape
    (1, 12, 8, 8)
    """

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        self.downscale_factor = check_positive("downscale_factor", downscale_factor)

    def forward(self, x: Any) -> Any:
        """Shrink ``x`` (N, C, H r, W r)."""
        return ops.pixel_unshuffle(x, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"
