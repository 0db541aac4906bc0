"""Elementwise activations.

Every one is an entry of the native list (``csrc/core/activations.h``), which `ACTIVATIONS` mirrors; the
same entries run in the epilogues of matmul, convolution and normalisation. Arrays of any shape, float32 or
float64, on CUDA also float16 or bfloat16, computed in float32 and rounded once. An array that is
C-contiguous or channels-last is taken as it lies and gives its layout to the result; any other is copied
first. A NaN gives a NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from brasa import _backend, _cpu
from brasa._tape import differentiable
from brasa.ops import _check

__all__ = [
    "ACTIVATIONS", "activation", "activation_backward", "celu", "elu", "gelu", "hardsigmoid", "hardswish",
    "hardtanh", "leaky_relu", "mish", "relu", "selu", "sigmoid", "sign", "silu", "softplus", "step", "tanh",
]  # fmt: skip


class ActivationInfo(NamedTuple):
    """What is known of an activation.

    ``needs`` says what its derivative is computed from, the result ("y") or the input ("x").
    """

    kind: int
    needs: str
    alpha: float
    beta: float


ACTIVATIONS = {name: ActivationInfo(*entry) for name, entry in _cpu.activations().items()}
"""The activations that `activation` and every ``activation=`` argument take by name."""

_NAMES = {info.kind: name for name, info in ACTIVATIONS.items()}
_DEFAULTS = {name: (info.kind, info.alpha, info.beta) for name, info in ACTIVATIONS.items()}
_RELU, _SELU, _SIGMOID, _TANH = (_DEFAULTS[name] for name in ("relu", "selu", "sigmoid", "tanh"))

Native = tuple[int, float, float]  # an activation as kernels take it


def native_activation(activation: Any) -> Native | None:
    """A name, or (name, alpha[, beta]), as kernels take it; None stays None."""
    if activation is None:
        return None
    if type(activation) is str and activation in _DEFAULTS:
        return _DEFAULTS[activation]
    name, *parameters = activation if isinstance(activation, (tuple, list)) and activation else (activation,)
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)} or None, got {name!r}")
    if len(parameters) > 2:
        raise ValueError(f"activation: expected (name, alpha, beta), got {activation!r}")
    if not parameters:
        return _DEFAULTS[name]
    kind, alpha, beta = _DEFAULTS[name]
    alpha, beta = [_check.number("activation", p) for p in parameters] + [alpha, beta][len(parameters) :]
    _check_parameters(name, alpha, beta)
    return kind, alpha, beta


def _check_parameters(name: str, alpha: float, beta: float) -> None:
    """Parameters for which the activation is what its name says, and its slope can be had."""
    if name == "elu" and not alpha >= 0:
        raise ValueError(f"alpha: elu expects at least 0, got {alpha}")
    if name == "celu" and not alpha > 0:
        raise ValueError(f"alpha: celu expects a positive number, got {alpha}")
    if name == "softplus" and not alpha > 0:
        raise ValueError(f"beta: softplus expects a positive number, got {alpha}")
    if name == "hardtanh" and not alpha < beta:
        raise ValueError(f"min_val: hardtanh expects less than max_val ({beta}), got {alpha}")


def needs_input(native: Native) -> bool:
    """Whether the derivative is computed from the input. A negative slope hides the sign in the result."""
    name = _NAMES[native[0]]
    return ACTIVATIONS[name].needs == "x" or (name == "leaky_relu" and not native[1] >= 0)


def _new_result(x: Any, native: Native) -> Any:
    _, _, kernels, _, empty_like = _backend.backend_of(x)
    y = empty_like(x)
    kernels.activation_forward(x, y, native)
    return y


def _apply(x: Any, native: Native, *, out: Any = None) -> Any:
    try:  # most arrays lie as the kernel takes them, and small ones last no longer than the checks
        if out is None:
            return _new_result(x, native)
        if type(out) is type(x):
            _backend.backend_of(x).kernels.activation_forward(x, out, native)
            return out
    except _check.UNUSUAL:
        pass
    x = _backend.dense(_check.device_floating("x", x))
    if out is None:
        return _new_result(x, native)
    _check.output(out, x, x.shape)
    if out is not x and (_backend.layout(out) != _backend.layout(x) or _check.overlap(out, x)):
        out[...] = _apply(x, native)
    else:
        _backend.backend_of(x).kernels.activation_forward(x, out, native)
    return out


def _backward(dy: Any, v: Any, native: Native) -> Any:
    dy, v = _check.device_floating("dy", dy), _backend.dense(_check.device_floating("v", v))
    _check.shape("dy", dy, v.shape)
    _check.same_dtype(v=v, dy=dy)
    dy = _backend.laid_out_like(v, dy)
    dx = _backend.empty_like(v)
    _backend.backend_of(v).kernels.activation_backward(dy, v, dx, native)
    return dx


def _backward_from_result(dy: Any, y: Any, native: Native) -> Any:
    return _backward(dy, y, native)


def _backward_from_input(dy: Any, x: Any, native: Native) -> Any:
    return _backward(dy, x, native)


_keeping_result = differentiable(_apply, _backward_from_result, name="activation")
_keeping_input = differentiable(_apply, _backward_from_input, name="activation")
_OPERATORS = {
    name: _keeping_input if needs_input(native) else _keeping_result for name, native in _DEFAULTS.items()
}


def activation(x: Any, name: Any, *, out: Any = None) -> Any:
    """The activation of this name.

    Parameters
    ----------
    x : array or Tensor
        Any shape, float32 or float64, on CUDA also of 16 bits.
    name : str or tuple
        A key of `ACTIVATIONS`, or ``(name, alpha)`` or ``(name, alpha, beta)`` with its parameters.
    out : array, optional
        Where the result goes; may be `x`.

    Returns
    -------
    array or Tensor
        The shape, dtype and layout of `x`.

    Raises
    ------
    ValueError
        For an unknown name, or an `out` of another shape.
    TypeError
        For another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> activation(np.float32([-1, 2]), ("leaky_relu", 0.25))
    array([-0.25,  2.  ], dtype=float32)
    """
    if type(name) is str and name in _OPERATORS:  # small arrays last no longer than looking the name up
        return _OPERATORS[name](x, _DEFAULTS[name], out=out)
    native = native_activation(name)
    if native is None:
        raise ValueError("name: expected an activation, got None")
    return (_keeping_input if needs_input(native) else _keeping_result)(x, native, out=out)


def activation_backward(dy: Any, v: Any, name: Any) -> Any:
    """The gradient of `activation` with respect to its input.

    Parameters
    ----------
    dy : array
        The gradient of the result.
    v : array
        The result or the input, as ``ACTIVATIONS[name].needs`` says.
    name : str or tuple
        As for `activation`.

    Returns
    -------
    array
        The shape, dtype and layout of `v`.

    Examples
    --------
    >>> import numpy as np
    >>> activation_backward(np.float32([5, 5]), np.float32([0, 2]), "relu")
    array([0., 5.], dtype=float32)
    """
    native = native_activation(name)
    if native is None:
        raise ValueError("name: expected an activation, got None")
    return _backward(dy, v, native)


def relu(x: Any, *, out: Any = None) -> Any:
    """max(x, 0).

    Examples
    --------
    >>> import numpy as np
    >>> relu(np.float32([-1, 2]))
    array([0., 2.], dtype=float32)
    """
    return _keeping_result(x, _RELU, out=out)


def leaky_relu(x: Any, negative_slope: float = 0.01, *, out: Any = None) -> Any:
    """x where x > 0, else negative_slope * x.

    Examples
    --------
    >>> import numpy as np
    >>> leaky_relu(np.float32([-1, 2]), 0.5)
    array([-0.5,  2. ], dtype=float32)
    """
    return activation(x, ("leaky_relu", negative_slope), out=out)


def elu(x: Any, alpha: float = 1.0, *, out: Any = None) -> Any:
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015).

    Examples
    --------
    >>> import numpy as np
    >>> elu(np.float32([-np.inf, 2]))
    array([-1.,  2.], dtype=float32)
    """
    return activation(x, ("elu", alpha), out=out)


def selu(x: Any, *, out: Any = None) -> Any:
    """The self-normalising exponential linear unit (Klambauer et al. 2017), 1.0507 * elu(x, 1.6733).

    Examples
    --------
    >>> import numpy as np
    >>> selu(np.float32([1])).round(4)
    array([1.0507], dtype=float32)
    """
    return _keeping_result(x, _SELU, out=out)


def celu(x: Any, alpha: float = 1.0, *, out: Any = None) -> Any:
    """x where x > 0, else alpha * (exp(x / alpha) - 1) (Barron 2017). alpha > 0.

    Examples
    --------
    >>> import numpy as np
    >>> celu(np.float32([-np.inf, 2]), 2.0)
    array([-2.,  2.], dtype=float32)
    """
    return activation(x, ("celu", alpha), out=out)


def sigmoid(x: Any, *, out: Any = None) -> Any:
    """The logistic function 1 / (1 + exp(-x)).

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid(np.float32([-np.inf, 0]))
    array([0. , 0.5], dtype=float32)
    """
    return _keeping_result(x, _SIGMOID, out=out)


def tanh(x: Any, *, out: Any = None) -> Any:
    """The hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np
    >>> tanh(np.float32([0, np.inf]))
    array([0., 1.], dtype=float32)
    """
    return _keeping_result(x, _TANH, out=out)


def gelu(x: Any, approximate: str = "none", *, out: Any = None) -> Any:
    """x * Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016).

    ``approximate="tanh"`` is the approximation by tanh of a cubic.

    Examples
    --------
    >>> import numpy as np
    >>> gelu(np.float32([1])).round(4)
    array([0.8413], dtype=float32)
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
    return activation(x, "gelu" if approximate == "none" else "gelu_tanh", out=out)


def silu(x: Any, *, out: Any = None) -> Any:
    """x * sigmoid(x), also called swish.

    Examples
    --------
    >>> import numpy as np
    >>> silu(np.float32([0, 1])).round(4)
    array([0.    , 0.7311], dtype=float32)
    """
    return activation(x, "silu", out=out)


def mish(x: Any, *, out: Any = None) -> Any:
    """x * tanh(softplus(x)) (Misra 2019).

    Examples
    --------
    >>> import numpy as np
    >>> mish(np.float32([0, 1])).round(4)
    array([0.    , 0.8651], dtype=float32)
    """
    return activation(x, "mish", out=out)


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0, *, out: Any = None) -> Any:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold.

    Examples
    --------
    >>> import numpy as np
    >>> softplus(np.float32([0])).round(4)
    array([0.6931], dtype=float32)
    """
    return activation(x, ("softplus", beta, threshold), out=out)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0, *, out: Any = None) -> Any:
    """x limited to [min_val, max_val]: the piecewise linear function.

    Examples
    --------
    >>> import numpy as np
    >>> hardtanh(np.float32([-3, 0.5, 3]))
    array([-1. ,  0.5,  1. ], dtype=float32)
    """
    return activation(x, ("hardtanh", min_val, max_val), out=out)


def hardsigmoid(x: Any, *, out: Any = None) -> Any:
    """x / 6 + 1 / 2 limited to [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> hardsigmoid(np.float32([-3, 0, 3]))
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return activation(x, "hardsigmoid", out=out)


def hardswish(x: Any, *, out: Any = None) -> Any:
    """x * hardsigmoid(x) (Howard et al. 2019).

    Examples
    --------
    >>> import numpy as np
    >>> hardswish(np.float32([-3, 0, 3]))
    array([0., 0., 3.], dtype=float32)
    """
    return activation(x, "hardswish", out=out)


def step(x: Any, *, out: Any = None) -> Any:
    """The unit step: 1 where x > 0, else 0. Its gradient is 0.

    Examples
    --------
    >>> import numpy as np
    >>> step(np.float32([-1, 0, 2]))
    array([0., 0., 1.], dtype=float32)
    """
    return activation(x, "step", out=out)


def sign(x: Any, *, out: Any = None) -> Any:
    """-1, 0 or 1. Its gradient is 0.

    Examples
    --------
    >>> import numpy as np
    >>> sign(np.float32([-3, 0, 2]))
    array([-1.,  0.,  1.], dtype=float32)
    """
    return activation(x, "sign", out=out)
