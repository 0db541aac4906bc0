"""Constructor arguments that several layers share: their checks, and the parameters made from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa.nn.module import Parameter

# An entry of ``ops.ACTIVATIONS``, alone or with its parameters: "relu", ("hardtanh", 0.0, 6.0).
ActivationName = str | tuple[str, float] | tuple[str, float, float]


_WIDE = {np.dtype(np.float32), np.dtype(np.float64)}


def new_parameter(shape: tuple[int, ...], dtype: Any = None) -> Parameter:
    """Return a parameter with memory but no values yet; float32 unless a dtype is given."""
    return Parameter(np.empty(shape, np.float32 if dtype is None else dtype))


def check_positive(name: str, value: Any) -> int:
    """Return ``value`` if it is an int above 0, else raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def check_array(name: str, value: Any) -> None:
    """Refuse what is no array or Tensor, such as a list: layers ask for its shape."""
    if not hasattr(value, "ndim"):
        raise TypeError(f"{name}: expected an array or Tensor, got {type(value).__name__}")


def check_input(name: str, x: Any, weight: Any) -> None:
    """Refuse what is no array, or of the other of float32 and float64 than the layer is."""
    check_array(name, x)
    if x.dtype != weight.dtype and {x.dtype, weight.dtype} == _WIDE:
        raise TypeError(f"{name}: expected {weight.dtype} as the layer's weights are, got {x.dtype}")


def pair(name: str, value: Any, *, least: int = 1) -> tuple[int, int]:
    """Return an int, or two of them, as a tuple (height, width); each must be at least ``least``."""
    both = (value, value) if not isinstance(value, tuple | list) else tuple(value)
    if len(both) != 2:
        raise ValueError(f"{name}: expected an int or two of them, got {value!r}")
    for one in both:
        if isinstance(one, bool) or not isinstance(one, int | np.integer):
            raise TypeError(f"{name}: expected an int or two of them, got {value!r}")
        if one < least:
            raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def check_activation(activation: ActivationName | None) -> ActivationName | None:
    """Return ``activation`` if it is None or an entry of ``ops.ACTIVATIONS`` with at most two parameters."""
    name, *parameters = activation if isinstance(activation, tuple | list) else (activation,)
    if activation is not None and (name not in ops.ACTIVATIONS or len(parameters) > 2):
        known = ", ".join(ops.ACTIVATIONS)
        raise ValueError(f"activation: expected None or one of {known}, got {activation!r}")
    return activation


def check_nonlinearity(nonlinearity: str) -> str:
    """Return ``nonlinearity`` if a simple recurrent layer has it."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return nonlinearity


def activation_repr(activation: Any) -> str:
    """Return what a fused activation adds to a layer's ``repr``: nothing where there is none."""
    return "" if activation is None else f", activation={activation!r}"
