"""Exponential, logarithm and error function: native kernels, with gradients made of other operators.

Arrays of 16 bits are computed in float32. An array that is C-contiguous or
channels-last is taken as it lies and gives its layout to the result; any other is copied first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from brasa._backend import as_array, backend_of, dense, empty_like, is_narrow, kernels
from brasa._elementwise import divide, multiply, negative, scale, shift
from brasa._tape import differentiable


def _elementary(name: str, x: Any) -> Any:
    """The native function `name` of `x`; half floats are computed in float32."""
    x = as_array(x)
    narrow = x.dtype.char not in "fd"
    if narrow and not is_narrow(x.dtype):
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64, got {x.dtype}")
    if narrow and backend_of(x).name == "cpu":
        with np.errstate(over="ignore"):  # a kernel does not warn either
            return _elementary(name, x.astype("float32")).astype(x.dtype)
    x = dense(x)
    y = empty_like(x)
    getattr(kernels(x), name)(x, y)
    return y


def _exp(x: Any) -> Any:
    """The exponential.

    Examples
    --------
    >>> import numpy as np
    >>> exp(np.float32([0, -np.inf]))
    array([1., 0.], dtype=float32)
    """
    return _elementary("exp_forward", x)


def _expm1(x: Any) -> Any:
    """``exp(x) - 1``, exact for small x.

    Examples
    --------
    >>> import numpy as np
    >>> expm1(np.float32([1e-10]))
    array([1.e-10], dtype=float32)
    """
    return _elementary("expm1_forward", x)


def _log(x: Any) -> Any:
    """The natural logarithm; NaN below 0.

    Examples
    --------
    >>> import numpy as np
    >>> log(np.float32([0, 1]))
    array([-inf,   0.], dtype=float32)
    """
    return _elementary("log_forward", x)


def _log1p(x: Any) -> Any:
    """``log(1 + x)``, exact for small x.

    Examples
    --------
    >>> import numpy as np
    >>> log1p(np.float32([1e-10]))
    array([1.e-10], dtype=float32)
    """
    return _elementary("log1p_forward", x)


def _erf(x: Any) -> Any:
    """The error function, ``2 / sqrt(pi)`` times the integral of ``exp(-t * t)`` from 0 to x.

    Examples
    --------
    >>> import numpy as np
    >>> erf(np.float32([0, 1])).round(4)
    array([0.    , 0.8427], dtype=float32)
    """
    return _elementary("erf_forward", x)


def _erf_backward(dy: Any, x: Any) -> Any:
    return multiply(dy, scale(exp(negative(multiply(x, x))), 2 / math.sqrt(math.pi)))


exp = differentiable(_exp, lambda dy, y: multiply(dy, y))
expm1 = differentiable(_expm1, lambda dy, y: multiply(dy, shift(y, 1.0)))
log = differentiable(_log, lambda dy, x: divide(dy, x))
log1p = differentiable(_log1p, lambda dy, x: divide(dy, shift(x, 1.0)))
erf = differentiable(_erf, _erf_backward)
