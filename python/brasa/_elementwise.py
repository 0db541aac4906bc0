"""Elementwise operators: arithmetic with broadcasting, powers, exponentials, selection.

One rule for dtypes: two floating arrays must agree (a mix is a TypeError that names both), an integer or
boolean array beside a floating one is cast to it, a Python scalar takes the array's dtype, and where
integers meet a fraction (``/``, ``exp``, a Python float) the result is float32. Nothing is promoted to
float64 silently.

A scalar operand has operators of its own (`scale`, `shift` ...): they keep nothing for the way back.
Backwards are written in these operators again, so the gradient of a gradient is available.
"""

from __future__ import annotations

import math
from typing import Any

from brasa._backend import add as add_arrays
from brasa._backend import cast, device_of, namespace
from brasa._shape import as_array_of, unbroadcast
from brasa._tape import differentiable, is_floating


def floating(x: Any) -> Any:
    """`x`, integers and booleans as float32."""
    return x if is_floating(x.dtype) else x.astype("float32")


def _weak(x: Any, c: Any) -> tuple[Any, Any]:
    """An array and a Python scalar such that their result has the dtype the rule gives."""
    if type(c) is float:
        x = floating(x)
    return x, (x.dtype.type(c) if x.dtype.kind == "V" else c)


def _operands(name: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Two arrays of one device and one dtype."""
    if type(a) is not type(b) and device_of(a) != device_of(b):
        raise TypeError(f"{name}: one array is on '{device_of(a)}', the other on '{device_of(b)}'; move one")
    if a.dtype is b.dtype or a.dtype == b.dtype:
        return a, b
    floating_a, floating_b = is_floating(a.dtype), is_floating(b.dtype)
    if floating_a and floating_b:
        raise TypeError(f"{name}: dtypes {a.dtype} and {b.dtype} differ; convert one with astype")
    if floating_a:
        return a, b.astype(a.dtype)
    return (a.astype(b.dtype), b) if floating_b else (a, b)


# Two arrays -------------------------------------------------------------------------------------------


def _add(a: Any, b: Any, *, save: bool = False) -> Any:
    """``a + b``."""
    x, y = _operands("add", a, b)
    result = as_array_of(add_arrays(x, y), x)
    return (result, (a.shape, b.shape)) if save else result


def _add_backward(dy: Any, saved: Any, mask: Any) -> Any:
    return tuple(
        unbroadcast(dy, shape) if needed else None for shape, needed in zip(saved, mask, strict=True)
    )


def _subtract(a: Any, b: Any, *, save: bool = False) -> Any:
    """``a - b``."""
    x, y = _operands("subtract", a, b)
    result = as_array_of(x - y, x)
    return (result, (a.shape, b.shape)) if save else result


def _subtract_backward(dy: Any, saved: Any, mask: Any) -> Any:
    da = unbroadcast(dy, saved[0]) if mask[0] else None
    return da, negative(unbroadcast(dy, saved[1])) if mask[1] else None


def _multiply(a: Any, b: Any) -> Any:
    """``a * b``."""
    x, y = _operands("multiply", a, b)
    return as_array_of(x * y, x)


def _multiply_backward(dy: Any, a: Any, b: Any, mask: Any) -> Any:
    da = unbroadcast(multiply(dy, b), a.shape) if mask[0] else None
    return da, unbroadcast(multiply(dy, a), b.shape) if mask[1] else None


def _divide(a: Any, b: Any) -> Any:
    """``a / b``."""
    x, y = _operands("divide", a, b)
    return as_array_of(floating(x) / floating(y), x)


def _divide_backward(dy: Any, y: Any, a: Any, b: Any, mask: Any) -> Any:
    slope = divide(dy, b)
    da = unbroadcast(slope, a.shape) if mask[0] else None
    return da, unbroadcast(negative(multiply(slope, y)), b.shape) if mask[1] else None


def _power(a: Any, b: Any) -> Any:
    """``a ** b``."""
    x, y = _operands("power", a, b)
    return as_array_of(x**y, x)


def _power_backward(dy: Any, y: Any, a: Any, b: Any, mask: Any) -> Any:
    da = db = None
    if mask[0]:  # b a^(b-1), and 0 where b = 0, also at a = 0
        exponent = shift(where(b == 0, 1.0, b), -1.0)
        da = unbroadcast(multiply(dy, multiply(power(a, exponent), b)), a.shape)
    if mask[1]:  # y log a, and 0 where a = 0
        from brasa._elementary import log  # which stands on this module

        db = unbroadcast(multiply(dy, multiply(y, log(where(a == 0, 1.0, a)))), b.shape)
    return da, db


def _maximum(a: Any, b: Any) -> Any:
    """The larger of `a` and `b`; where they are equal each receives half the gradient."""
    x, y = _operands("maximum", a, b)
    return as_array_of(namespace(x).maximum(x, y), x)


def _minimum(a: Any, b: Any) -> Any:
    """The smaller of `a` and `b`; where they are equal each receives half the gradient."""
    x, y = _operands("minimum", a, b)
    return as_array_of(namespace(x).minimum(x, y), x)


def _selection_backward(dy: Any, y: Any, a: Any, b: Any, mask: Any) -> Any:
    half = scale(dy, 0.5)
    from_a, from_b = y == a, y == b
    da = where(from_a & from_b, half, where(from_a, dy, 0.0))
    db = where(from_a & from_b, half, where(from_b, dy, 0.0))
    return unbroadcast(da, a.shape) if mask[0] else None, unbroadcast(db, b.shape) if mask[1] else None


add = differentiable(_add, _add_backward, arrays=("a", "b"))
subtract = differentiable(_subtract, _subtract_backward, arrays=("a", "b"))
multiply = differentiable(_multiply, _multiply_backward, arrays=("a", "b"))
divide = differentiable(_divide, _divide_backward, arrays=("a", "b"))
power = differentiable(_power, _power_backward, arrays=("a", "b"))
maximum = differentiable(_maximum, _selection_backward, arrays=("a", "b"))
minimum = differentiable(_minimum, _selection_backward, arrays=("a", "b"))


# An array and a Python scalar -------------------------------------------------------------------------


def _shift(x: Any, c: float) -> Any:
    """``x + c``."""
    x, c = _weak(x, c)
    return as_array_of(x + c, x)


def _scale(x: Any, c: float) -> Any:
    """``x * c``."""
    x, c = _weak(x, c)
    return as_array_of(x * c, x)


def _divide_by(x: Any, c: float) -> Any:
    """``x / c``."""
    x, c = _weak(floating(x), c)
    return as_array_of(x / c, x)


def _divide_into(x: Any, c: float) -> Any:
    """``c / x``."""
    x, c = _weak(floating(x), c)
    return as_array_of(c / x, x)


def _divide_into_backward(dy: Any, y: Any, x: Any) -> Any:
    return negative(multiply(dy, divide(y, x)))


def _raise_to(x: Any, c: float) -> Any:
    """``x ** c``."""
    x, c = _weak(x, c)
    return as_array_of(x**c, x)


def _raise_to_backward(dy: Any, x: Any, c: float) -> Any:
    return multiply(dy, scale(raise_to(x, c - 1), c)) if c != 0 else scale(dy, 0)


def _raise_from(x: Any, c: float) -> Any:
    """``c ** x``."""
    x, c = _weak(x, c)
    return as_array_of(c**x, x)


def _raise_from_backward(dy: Any, y: Any, c: float) -> Any:
    return multiply(dy, scale(y, math.log(c) if c > 0 else (0.0 if c == 0 else math.nan)))


def _shift_backward(dy: Any) -> Any:
    return dy


def _scale_backward(dy: Any, c: float) -> Any:
    return scale(dy, c)


def _divide_by_backward(dy: Any, c: float) -> Any:
    return divide_by(dy, c)


shift = differentiable(_shift, _shift_backward)
scale = differentiable(_scale, _scale_backward)
divide_by = differentiable(_divide_by, _divide_by_backward)
divide_into = differentiable(_divide_into, _divide_into_backward)
raise_to = differentiable(_raise_to, _raise_to_backward)
raise_from = differentiable(_raise_from, _raise_from_backward)


# One array --------------------------------------------------------------------------------------------


def _negative(x: Any) -> Any:
    """``-x``."""
    return as_array_of(-x, x)


def _absolute(x: Any) -> Any:
    """``|x|``; the slope at 0 is 0."""
    return as_array_of(abs(x), x)


def _absolute_backward(dy: Any, x: Any) -> Any:
    return where(x > 0, dy, where(x < 0, negative(dy), 0.0))


def _sqrt(x: Any) -> Any:
    """The square root."""
    return as_array_of(namespace(x).sqrt(floating(x)), x)


def _sin(x: Any) -> Any:
    """The sine."""
    return as_array_of(namespace(x).sin(floating(x)), x)


def _cos(x: Any) -> Any:
    """The cosine."""
    return as_array_of(namespace(x).cos(floating(x)), x)


def _negative_backward(dy: Any) -> Any:
    return negative(dy)


def _sin_backward(dy: Any, x: Any) -> Any:
    return multiply(dy, cos(x))


def _cos_backward(dy: Any, x: Any) -> Any:
    return negative(multiply(dy, sin(x)))


negative = differentiable(_negative, _negative_backward)
absolute = differentiable(_absolute, _absolute_backward)
sqrt = differentiable(_sqrt, lambda dy, y: divide(scale(dy, 0.5), y))
sin = differentiable(_sin, _sin_backward)
cos = differentiable(_cos, _cos_backward)


def _clip(x: Any, low: float | None, high: float | None) -> Any:
    """`x` within [low, high]; outside the slope is 0."""
    if x.dtype.kind == "V":  # bfloat16, which is clipped as float32 and would stay that
        return cast(as_array_of(cast(x, "float32").clip(low, high), x), x.dtype)
    return as_array_of(x.clip(low, high), x)


def _clip_backward(dy: Any, x: Any, low: float | None, high: float | None) -> Any:
    inside = (x >= (-math.inf if low is None else low)) & (x <= (math.inf if high is None else high))
    return where(inside, dy, 0.0)


clip = differentiable(_clip, _clip_backward)


def _where(condition: Any, a: Any, b: Any, *, save: bool = False) -> Any:
    """`a` where `condition` holds, `b` elsewhere.

    Parameters
    ----------
    condition
        An array of bool, or of numbers that count as true where they are not 0.
    a, b
        Arrays, Tensors or Python scalars; the three are broadcast against each other.

    Raises
    ------
    TypeError
        If `a` and `b` are arrays of different floating dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float32([-1, 2])
    >>> where(x > 0, x, 0.0)
    array([0., 2.], dtype=float32)
    """
    x, y = _where_operands(condition, a, b)
    result = as_array_of(namespace(x).where(condition, x, y), x)
    return (result, (getattr(a, "shape", None), getattr(b, "shape", None))) if save else result


def _where_operands(condition: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Both choices as arrays of one dtype; a scalar takes the other's."""
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        return _operands("where", a, b)
    array, scalar = (a, b) if hasattr(a, "dtype") else (b, a)
    if not hasattr(array, "dtype"):
        kind = "float32" if float in (type(a), type(b)) else "int64"
        xp = namespace(condition)
        return xp.asarray(a, dtype=kind), xp.asarray(b, dtype=kind)
    array, _ = _weak(array, scalar)
    filled = namespace(array).asarray(scalar, dtype=array.dtype)
    return (array, filled) if array is a or hasattr(a, "dtype") else (filled, array)


def _where_backward(dy: Any, condition: Any, saved: Any, mask: Any) -> Any:
    da = unbroadcast(where(condition, dy, 0.0), saved[0]) if mask[0] else None
    return da, unbroadcast(where(condition, 0.0, dy), saved[1]) if mask[1] else None


where = differentiable(_where, _where_backward, arrays=("a", "b"))


def _astype(x: Any, dtype: Any, *, save: bool = False) -> Any:
    """`x` with its elements as `dtype`."""
    y = cast(x, dtype)
    return (y, x.dtype) if save else y


def _astype_backward(dy: Any, saved: Any) -> Any:
    return astype(dy, saved)


astype = differentiable(_astype, _astype_backward)
