"""Activation layers: each only names its operator, which ``Sequential`` may hand to the layer before it."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn._arguments import ActivationName
from brasa.nn.module import Module

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class _Activation(Module):
    """Apply ``self.activation`` to every element; input and output have the same shape, any."""

    activation: ActivationName

    def forward(self, x: Any) -> Any:
        """Apply the activation to ``x``, any shape."""
        return ops.activation(x, self.activation)


class _Plain(_Activation):
    """An activation without parameters.

    ``inplace`` is taken for the sake of torch's signatures: the result is always a new array.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLU(_Plain):
    """``y = max(x, 0)``.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.ReLU()(np.array([-1.0, 2.0], np.float32)).numpy().round(3))
    [0. 2.]
    """

    activation = "relu"


class SELU(_Plain):
    """``y = scale * x`` above 0, ``scale * alpha * (exp(x) - 1)`` below.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Notes
    -----
    alpha = 1.6732632 and scale = 1.0507010 keep mean 0 and variance 1 from layer to layer
    (Klambauer et al., 2017).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.SELU()(np.array([0.0, 2.0], np.float32)).numpy().round(3))
    [0.    2.101]
    """

    activation = "selu"


class SiLU(_Plain):
    """``y = x * sigmoid(x)``.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.SiLU()(np.array([0.0, 1.0], np.float32)).numpy().round(3))
    [0.    0.731]
    """

    activation = "silu"


class Mish(_Plain):
    """``y = x * tanh(softplus(x))``.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Mish()(np.array([0.0, 1.0], np.float32)).numpy().round(3))
    [0.    0.865]
    """

    activation = "mish"


class Hardsigmoid(_Plain):
    """``y = min(max(x + 3, 0), 6) / 6``.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Hardsigmoid()(np.array([-3.0, 0.0, 3.0], np.float32)).numpy().round(3))
    [0.  0.5 1. ]
    """

    activation = "hardsigmoid"


class Hardswish(_Plain):
    """``y = x * min(max(x + 3, 0), 6) / 6``.

    Parameters
    ----------
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Hardswish()(np.array([0.0, 1.0, 3.0], np.float32)).numpy().round(3))
    [0.    0.667 3.   ]
    """

    activation = "hardswish"


class Sigmoid(_Activation):
    """``y = 1 / (1 + exp(-x))``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Sigmoid()(np.array([-100.0, 0.0, 100.0], np.float32)).numpy().round(3))
    [0.  0.5 1. ]
    """

    activation = "sigmoid"


class Tanh(_Activation):
    """``y = tanh(x)``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Tanh()(np.array([-100.0, 0.0, 100.0], np.float32)).numpy().round(3))
    [-1.  0.  1.]
    """

    activation = "tanh"


class LeakyReLU(_Activation):
    """``y = x`` above 0, ``negative_slope * x`` below.

    Parameters
    ----------
    negative_slope : float, default: 0.01
        Slope for negative ``x``.
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.LeakyReLU(0.1)(np.array([-1.0, 2.0], np.float32)).numpy().round(3))
    [-0.1  2. ]
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = float(negative_slope)
        self.inplace = inplace
        self.activation = ("leaky_relu", self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}" + (", inplace=True" if self.inplace else "")


class ELU(_Activation):
    """``y = x`` above 0, ``alpha * (exp(x) - 1)`` below.

    Parameters
    ----------
    alpha : float, default: 1.0
        The negative limit is ``-alpha``; at least 0.
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.ELU()(np.array([-1.0, 2.0], np.float32)).numpy().round(3))
    [-0.632  2.   ]
    """

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"alpha: expected at least 0, got {alpha}")
        self.alpha = float(alpha)
        self.inplace = inplace
        self.activation = ("elu", self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


class CELU(_Activation):
    """``y = x`` above 0, ``alpha * (exp(x / alpha) - 1)`` below.

    Parameters
    ----------
    alpha : float, default: 1.0
        The negative limit is ``-alpha``; above 0.
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.CELU(2.0)(np.array([-1.0, 2.0], np.float32)).numpy().round(3))
    [-0.787  2.   ]
    """

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha: expected more than 0, got {alpha}")
        self.alpha = float(alpha)
        self.inplace = inplace
        self.activation = ("celu", self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


class Hardtanh(_Activation):
    """``y = min(max(x, min_val), max_val)``.

    Parameters
    ----------
    min_val, max_val : float, default: -1.0 and 1.0
        The limits.
    inplace : bool, default: False
        Taken for the sake of torch's signature and ignored: the result is always a new array.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Hardtanh()(np.array([-3.0, 0.5, 2.0], np.float32)).numpy().round(3))
    [-1.   0.5  1. ]
    """

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"min_val: expected less than max_val {max_val}, got {min_val}")
        self.min_val = float(min_val)
        self.max_val = float(max_val)
        self.inplace = inplace
        self.activation = ("hardtanh", self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}" + (", inplace=True" if self.inplace else "")


class Softplus(_Activation):
    """``y = log(1 + exp(beta * x)) / beta``, a smooth ReLU.

    Parameters
    ----------
    beta : float, default: 1.0
        Sharpness; above 0.
    threshold : float, default: 20.0
        Where ``beta * x`` exceeds it, ``y = x``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.Softplus()(np.array([-1.0, 0.0, 30.0], np.float32)).numpy().round(3))
    [ 0.313  0.693 30.   ]
    """

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta: expected more than 0, got {beta}")
        self.beta = float(beta)
        self.threshold = float(threshold)
        self.activation = ("softplus", self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class GELU(_Activation):
    """``y = x * Phi(x)``, Phi being the distribution function of the standard normal distribution.

    Parameters
    ----------
    approximate : "none" or "tanh", default: "none"
        "tanh" computes ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> print(nn.GELU()(np.array([-1.0, 0.0, 1.0], np.float32)).numpy().round(3))
    [-0.159  0.     0.841]
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        self.activation = "gelu" if approximate == "none" else "gelu_tanh"

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


# What Sequential may fuse. Exact types, because a derived class may define another forward.
FUSIBLE_ACTIVATIONS = frozenset(
    {
        CELU,
        ELU,
        GELU,
        SELU,
        Hardsigmoid,
        Hardswish,
        Hardtanh,
        LeakyReLU,
        Mish,
        ReLU,
        SiLU,
        Sigmoid,
        Softplus,
        Tanh,
    }
)
