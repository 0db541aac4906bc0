"""What a convolution must compute: taps in the padding multiply zeros and do not count."""

from __future__ import annotations


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Outputs along a dimension."""
    return (size + 2 * padding - kernel) // stride + 1


def taps_inside(size: int, kernel: int, stride: int, padding: int) -> int:
    """Taps that fall inside the image, over all outputs along a dimension.

    Examples
    --------
    >>> taps_inside(4, 3, 1, 1)  # of 12, one at either end is in the padding
    10
    """
    starts = range(-padding, output_size(size, kernel, stride, padding) * stride - padding, stride)
    return sum(max(0, min(start + kernel, size) - max(start, 0)) for start in starts)
