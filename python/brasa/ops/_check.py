"""Argument checks of the operators: they word the errors a user reads.

Memory safety is the bindings' own business; here is meaning. Every message names the argument, what it
got and what it needs.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from brasa import _cpu
from brasa._backend import (
    as_array,
    backend_of,
    beside,
    contiguous,
    device_of,
    is_array,
    is_narrow,
    kernels,
    to_numpy,
)

FLOATING = "float32 or float64"
ANY_FLOATING = "float16, bfloat16, float32 or float64"

# What a kernel refuses, or an argument that is no array: an operator that tried the shortest way first
# then goes the general way, which words the error or converts the argument.
UNUSUAL = (AttributeError, IndexError, TypeError, ValueError)

_FLOAT32 = np.dtype(np.float32)
_LARGEST_WORD = 2**64 - 1
_INT = frozenset({int})
_BOOL = frozenset({bool})
_MOST = 2**31 - 1


def floating(name: str, x: Any) -> Any:
    """`x` as an array of float32 or float64."""
    x = as_array(x, name)
    if x.dtype.char not in "fd":
        raise TypeError(f"{name}: expected {FLOATING}, got {x.dtype}")
    return x


def floating_in_autocast(name: str, x: Any) -> Any:
    """`floating`, where there are no kernels of 16 bits and `brasa.autocast` computes in float32."""
    x = as_array(x, name)
    if is_narrow(x.dtype):
        raise TypeError(
            f"{name}: expected {FLOATING}, got {x.dtype}, of which this operator has no kernels; "
            "on CUDA br.autocast computes it in float32"
        )
    return floating(name, x)


def in_float32(x: Any) -> bool:
    """Whether `x` is a 16-bit array that has no kernels: operators then compute in float32 and round once."""
    return is_narrow(x.dtype) and backend_of(x).name == "cpu"


def widened(x: Any) -> Any:
    """`x` in float32; None stays None."""
    return x if x is None or x.dtype.char == "f" else x.astype("f")


def any_floating(name: str, x: Any) -> Any:
    """`x` as an array of float32, float64, float16 or bfloat16."""
    x = as_array(x, name)
    if x.dtype.char not in "fd" and not is_narrow(x.dtype):
        raise TypeError(f"{name}: expected {ANY_FLOATING}, got {x.dtype}")
    return x


def device_floating(name: str, x: Any) -> Any:
    """`x` as an array of float32 or float64, or on CUDA of 16 bits."""
    x = as_array(x, name)
    if x.dtype.char in "fd":
        return x
    narrow = is_narrow(x.dtype)
    if backend_of(x).name == "cpu":
        hint = ", which is for arrays on CUDA" if narrow else ""
        raise TypeError(f"{name}: expected {FLOATING}, got {x.dtype}{hint}")
    if not narrow:
        raise TypeError(f"{name}: expected {ANY_FLOATING}, got {x.dtype}")
    return x


def wide(dtype: Any) -> Any:
    """What arrays of `dtype` are computed in, and vectors beside them are kept in: float32 for 16 bits."""
    return _FLOAT32 if is_narrow(dtype) else dtype


def vector(name: str, x: Any, /, **array: Any) -> Any:
    """`x` as an array of the dtype of the other one, or of float32 where that has 16 bits; on its device."""
    [(other_name, other)] = array.items()
    if not is_narrow(other.dtype):
        x = floating(name, x)
        same_dtype(**array, **{name: x})
        return x
    x = as_array(x, name)
    if x.dtype.char != "f":
        raise TypeError(f"{name}: expected float32 beside {other_name} of {other.dtype}, got {x.dtype}")
    kernels(other, x)
    return x


def same_dtype(**arrays: Any) -> None:
    """All arrays that are not None share the first one's dtype and device."""
    first_name, first = next(iter(arrays.items()))
    kind, dtype = type(first), first.dtype
    same_kind = True
    for name, array in arrays.items():
        if array is None:
            continue
        if array.dtype is not dtype and array.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype} as {first_name} has, got {array.dtype}")
        same_kind = same_kind and type(array) is kind
    if not same_kind:
        kernels(*arrays.values())


def same_dtype_but_bias(bias: Any, **arrays: Any) -> None:
    """`same_dtype`, but a bias may be float32 beside 16-bit arrays."""
    first = next(iter(arrays.values()))
    if bias is not None and (bias.dtype.char != "f" or not is_narrow(first.dtype)):
        arrays["bias"] = bias
    same_dtype(**arrays)


def rank(name: str, x: Any, *expected: int, shape: str = "") -> None:
    """`x` has one of these ranks; `shape` spells the dimensions, such as ``(N, C, H, W)``."""
    if x.ndim not in expected:
        wanted = " or ".join(map(str, expected))
        of = f" {shape}" if shape else ""
        raise ValueError(f"{name}: expected {wanted} dimensions{of}, got shape {x.shape}")


def shape(name: str, x: Any, expected: tuple[int, ...], why: str = "") -> None:
    """`x` has exactly this shape."""
    if x.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}{why and f' ({why})'}, got {x.shape}")


def integer(name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """`value` as a Python int (NumPy integers are fine, bools and floats are not), within limits."""
    if type(value) is int:
        number = value
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    else:
        try:
            number = operator.index(value)
        except TypeError:  # an array of several has the method, too
            raise TypeError(f"{name}: expected an int, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    limit = _MOST if maximum is None else maximum
    if number > limit:
        raise ValueError(f"{name}: expected at most {limit}, got {number}")
    return number


def word(name: str, value: Any, like: Any) -> Any:
    """`value` as an int of 64 bits, or as it is: a one-element int64 array beside `like`, on a device."""
    if type(value) is not int and type(value) is type(like) and not isinstance(value, (int, float)):
        if value.size != 1 or value.dtype.char != "l":
            raise TypeError(f"{name}: expected an int or one int64, got {value.size} of {value.dtype}")
        if kernels(value) is not _cpu:
            return value
    return integer(name, value, minimum=0, maximum=_LARGEST_WORD)


def integers(name: str, value: Any, count: int, *, minimum: int | None = None) -> tuple[int, ...]:
    """One int for each of `count` dimensions, from one int or a sequence of `count`."""
    if isinstance(value, (tuple, list)):
        if len(value) != count:
            raise ValueError(f"{name}: expected an int or {count} of them, got {value!r}")
        return tuple([integer(name, v, minimum=minimum) for v in value])
    return (integer(name, value, minimum=minimum),) * count


def mask(value: Any, count: int) -> Any:
    """Which of `count` gradients are wanted: a bool for each."""
    if type(value) is tuple and len(value) == count and _BOOL.issuperset(map(type, value)):
        return value
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise ValueError(f"mask: expected a tuple of {count} bools, got {value!r}")
    if not all(isinstance(wanted, (bool, np.bool_)) for wanted in value):
        raise TypeError(f"mask: expected a tuple of {count} bools, got {value!r}")
    return [bool(wanted) for wanted in value]


def saved(value: Any, count: int) -> Sequence[Any]:
    """The `count` parts of what a forward with ``save=True`` returned beside its result."""
    if not isinstance(value, (tuple, list)) or len(value) != count:
        refuse_saved(value)
    return value


def refuse_saved(value: Any) -> NoReturn:
    """`value` did not come from a forward whose arguments were these."""
    kinds = ", ".join(type(v).__name__ for v in value) if isinstance(value, (tuple, list)) else ""
    raise ValueError(
        f"saved: expected what save=True returned beside the result, got {type(value).__name__}"
        f"{kinds and f' of {kinds}'}"
    )


def plain_integers(*values: Any) -> bool:
    """Whether each is an int or a tuple of ints: a cache may then be asked with them, as ``1 == True == 1.0``
    do not meet in it.
    """
    for value in values:
        if type(value) is not int and not (type(value) is tuple and _INT.issuperset(map(type, value))):
            return False
    return True


def number(name: str, value: Any) -> float:
    """`value` as a Python float."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def output(out: Any, like: Any, shape_: tuple[int, ...], *inputs: Any) -> Any:
    """`out` when it fits the result exactly and overlaps no input.

    An elementwise operator that may work in place leaves that input out of `inputs`.
    """
    if type(out) is not type(like):
        raise TypeError(f"out: expected {type(like).__name__}, got {type(out).__name__}")
    if out.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype}, got {out.dtype}")
    shape("out", out, shape_)
    if not getattr(out.flags, "writeable", True):  # CuPy has no such flag
        raise ValueError("out: the array is read-only")
    for x in inputs:
        if x is not None and overlap(out, x):
            raise ValueError("out: overlaps an input")
    return out


def overlap(a: Any, b: Any) -> bool:
    """Whether the memory spans of two arrays overlap."""
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    first = a.__cuda_array_interface__["data"][0], b.__cuda_array_interface__["data"][0]
    return first[0] < first[1] + b.nbytes and first[1] < first[0] + a.nbytes


def indices(name: str, x: Any, limit: int, *, ignored: int | None = None, like: Any = None) -> Any:
    """`x` as a C-contiguous array of int32 or int64, the ones that kernels take as indices.

    The CPU kernels' bindings check that the values lie in [0, limit) or are `ignored`. On another device
    finding out means waiting for it, which is done when the variable BRASA_CHECK is 1.

    A list of nothing counts as integers. Beside `like`, a sequence goes to its device, after a look at its
    values; an array has to be there.
    """
    given, x = x, as_array(x, name)
    if x.dtype.kind not in "iu" and (x.size or not isinstance(given, (list, tuple))):
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    moves = like is not None and backend_of(x) is not backend_of(like)
    if moves and is_array(given):
        raise TypeError(
            f"{name}: expected a list, or an array on {device_of(like)}, the device of the others, "
            f"got one on {device_of(x)}"
        )
    # As int64 the upper half of uint64 would be negative.
    look = moves or x.dtype == np.uint64 if type(x) is np.ndarray else os.environ.get("BRASA_CHECK") == "1"
    if look:
        host = to_numpy(x)
        outside = ((host < 0) | (host >= limit)) & (True if ignored is None else host != ignored)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(f"{name}: expected values in [0, {limit}), got {host[at]} at position {at}")
    if x.dtype.char not in "il":
        x = x.astype(np.int64)
    return contiguous(beside(x, like) if moves else x)


def up_to(name: str, values: np.ndarray, most: int, why: str) -> None:
    """All of `values`, integers on the host, lie in [0, most]."""
    outside = (values < 0) | (values > most)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise ValueError(f"{name}: expected values in [0, {most}] ({why}), got {values[at]} at position {at}")
