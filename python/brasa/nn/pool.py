"""Pooling layers."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn._arguments import pair
from brasa.nn.module import Module

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "MaxPool2d",
]


class MaxPool2d(Module):
    """Maximum of every window of an image.

    Parameters
    ----------
    kernel_size : int or (int, int)
        Size of the window.
    stride : int or (int, int), optional
        Step between windows; ``kernel_size`` unless given.
    padding : int or (int, int), default: 0
        Minus infinity on each side; at most half the window.
    dilation : int or (int, int), default: 1
        Step between the elements of a window.
    return_indices : bool, default: False
        Whether to return ``(y, indices)``, the indices pointing into the H * W plane.
    ceil_mode : bool, default: False
        Whether a last window that overhangs the image counts.

    Notes
    -----
    Input (N, C, H, W), output (N, C, H', W'),
    H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1, rounded up in ceil mode.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.MaxPool2d(3, stride=2, padding=1)(np.zeros((1, 8, 32, 32), np.float32)).shape
    (1, 8, 16, 16)
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode
        pair("kernel_size", kernel_size)
        pair("stride", self.stride)
        pair("padding", padding, least=0)
        pair("dilation", dilation)

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.max_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """Mean of every window of an image.

    Parameters
    ----------
    kernel_size : int or (int, int)
        Size of the window.
    stride : int or (int, int), optional
        Step between windows; ``kernel_size`` unless given.
    padding : int or (int, int), default: 0
        Zeros on each side; at most half the window.
    ceil_mode : bool, default: False
        Whether a last window that overhangs the image counts.
    count_include_pad : bool, default: True
        Whether the zeros count in the divisor.
    divisor_override : int, optional
        Divides the sums in place of the window's size.

    Notes
    -----
    Input (N, C, H, W), output (N, C, H', W'), H' = (H + 2 padding - kernel) // stride + 1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.AvgPool2d(2)(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)).numpy()
    array([[[[1.5]]]], dtype=float32)
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override
        pair("kernel_size", kernel_size)
        pair("stride", self.stride)
        pair("padding", padding, least=0)

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """Mean over windows chosen such that the output has a given size.

    Window ``i`` of ``n`` over ``H`` rows runs from ``floor(i * H / n)`` to ``ceil((i + 1) * H / n)``.

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        Size of the output; None keeps that of the input.

    Notes
    -----
    Input (N, C, H, W), output (N, C, *output_size).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.AdaptiveAvgPool2d((5, None))(np.zeros((1, 8, 9, 7), np.float32)).shape
    (1, 8, 5, 7)
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size
        sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
        pair("output_size", tuple(1 if size is None else size for size in sizes))

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool2d(Module):
    """Maximum over windows chosen such that the output has a given size.

    Window ``i`` of ``n`` over ``H`` rows runs from ``floor(i * H / n)`` to ``ceil((i + 1) * H / n)``.

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        Size of the output; None keeps that of the input.

    Notes
    -----
    Input (N, C, H, W), output (N, C, *output_size).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.AdaptiveMaxPool2d((5, None))(np.zeros((1, 8, 9, 7), np.float32)).shape
    (1, 8, 5, 7)
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size
        sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
        pair("output_size", tuple(1 if size is None else size for size in sizes))

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.adaptive_max_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Module):
    """Mean over the whole image, which keeps its two dimensions with size 1.

    Notes
    -----
    Input (N, C, H, W), output (N, C, 1, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.GlobalAvgPool2d()(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)).numpy()
    array([[[[1.5]]]], dtype=float32)
    """

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.global_avg_pool2d(x)


class GlobalMaxPool2d(Module):
    """Maximum over the whole image, which keeps its two dimensions with size 1.

    Notes
    -----
    Input (N, C, H, W), output (N, C, 1, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.GlobalMaxPool2d()(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)).numpy()
    array([[[[3.]]]], dtype=float32)
    """

    def forward(self, x: Any) -> Any:
        """Pool ``x`` (N, C, H, W)."""
        return ops.global_max_pool2d(x)
