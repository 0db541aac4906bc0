"""Convolution layers."""

from __future__ import annotations

from math import sqrt
from typing import Any

from brasa import ops
from brasa.nn import init
from brasa.nn._arguments import (
    ActivationName,
    activation_repr,
    check_activation,
    check_positive,
    new_parameter,
    pair,
)
from brasa.nn.module import Module

__all__ = ["Conv2d"]


class Conv2d(Module):
    """2-D convolution (cross-correlation) with bias and activation in one pass.

    ``y[n, o, i, j] = activation(bias[o] + sum over c, p, q of weight[o, c, p, q] * x[n, c, i', j'])`` with
    ``i' = i * stride + p * dilation - padding`` and ``j'`` likewise.

    Parameters
    ----------
    in_channels, out_channels : int
        ``C`` and ``O``.
    kernel_size : int or (int, int)
        ``KH`` and ``KW``.
    stride : int or (int, int), default: 1
        Step between windows.
    padding : int, (int, int), "same" or "valid", default: 0
        Zeros on each side of the image; "same" (stride 1 only) keeps its size.
    dilation : int or (int, int), default: 1
        Step between the elements of a window.
    groups : int, default: 1
        ``G``: channels are cut into as many independent groups; C gives a depthwise convolution.
    bias : bool, default: True
        Whether a bias is added.
    padding_mode : "zeros"
        The only mode there is.
    device, dtype
        As for ``Linear``.
    activation : str or tuple, optional
        One of ``ops.ACTIVATIONS``, applied to the result.

    Attributes
    ----------
    weight : Parameter
        (O, C/G, KH, KW), initially uniform in +-1/sqrt(C/G * KH * KW).
    bias : Parameter or None
        (O,), initially uniform in the same interval.

    Notes
    -----
    Input (N, C, H, W), output (N, O, H', W'), H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Conv2d(3, 8, 3, stride=2, padding=1)(np.zeros((4, 3, 32, 32), np.float32)).shape
    (4, 8, 16, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        activation: ActivationName | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive("in_channels", in_channels)
        self.out_channels = check_positive("out_channels", out_channels)
        self.groups = check_positive("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups: {groups} does not divide in_channels {in_channels} and out_channels {out_channels}"
            )
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {padding_mode!r}")
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.dilation = pair("dilation", dilation)
        self.padding = self._checked_padding(padding)
        self.activation = check_activation(activation)
        self.weight = new_parameter((out_channels, in_channels // groups, *self.kernel_size), dtype)
        self.bias = new_parameter((out_channels,), dtype) if bias else None
        self.reset_parameters()
        if device is not None:
            self.to(device)

    _kept: Any = None  # within `inference`: what keeps the packed weight

    def _checked_padding(self, padding: Any) -> str | tuple[int, int]:
        if not isinstance(padding, str):
            return pair("padding", padding, least=0)
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: expected an int, two of them, 'same' or 'valid', got {padding!r}")
        if padding == "same" and self.stride != (1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {self.stride}")
        return padding

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        fan_in = self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]
        bound = 1.0 / sqrt(fan_in)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Convolve ``x`` (N, C, H, W); ``residual`` (N, O, H', W') is added before the activation."""
        return self.fused(x, self.activation, residual)

    def fused(self, x: Any, activation: ActivationName | None, residual: Any = None) -> Any:
        """Apply the layer with another activation; ``Sequential`` calls it."""
        weight = self.weight if self._kept is None else self._kept.of(self.weight)
        return ops.conv2d(
            x,
            weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text + activation_repr(self.activation)
