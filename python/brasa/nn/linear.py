"""Fully connected layers."""

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
)
from brasa.nn.module import Module

__all__ = ["Identity", "Linear"]


class Identity(Module):
    """Return the input unchanged; the arguments are ignored, so that it can stand in for any layer.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Identity(54, unused=0.1)(np.ones(2, np.float32)).numpy()
    array([1., 1.], dtype=float32)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class Linear(Module):
    """``y = activation(x @ weight.T + bias)``, computed in one pass.

    Parameters
    ----------
    in_features, out_features : int
        ``I`` and ``O``: sizes of the last dimension of input and output.
    bias : bool, default: True
        Whether a bias is added.
    device : str, optional
        Where the parameters live, ``"cpu"`` unless given.
    dtype : dtype, optional
        Of the parameters, float32 unless given.
    activation : str or tuple, optional
        One of ``ops.ACTIVATIONS``, applied to the result: ``"relu"``, ``("leaky_relu", 0.2)``.

    Attributes
    ----------
    weight : Parameter
        (O, I), initially uniform in +-1/sqrt(I).
    bias : Parameter or None
        (O,), initially uniform in +-1/sqrt(I).

    Notes
    -----
    Input (..., I), output (..., O).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Linear(20, 30)(np.zeros((128, 20), np.float32)).shape
    (128, 30)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
        activation: ActivationName | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        self.activation = check_activation(activation)
        self.weight = new_parameter((out_features, in_features), dtype)
        self.bias = new_parameter((out_features,), dtype) if bias else None
        self.reset_parameters()
        if device is not None:
            self.to(device)

    _kept: Any = None  # within `inference`: what keeps the packed weight

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        bound = 1.0 / sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Apply the layer to ``x`` (..., I); ``residual`` (..., O) is added before the activation."""
        return self.fused(x, self.activation, residual)

    def fused(self, x: Any, activation: ActivationName | None, residual: Any = None) -> Any:
        """Apply the layer with another activation; ``Sequential`` calls it."""
        weight = self.weight if self._kept is None else self._kept.of(self.weight)
        return ops.matmul(x, weight, self.bias, activation, residual=residual, transpose_b=True)

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        return text + activation_repr(self.activation)
