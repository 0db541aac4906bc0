"""Initial values, under the names of ``torch.nn.init`` and with its distributions.

Every function changes its Tensor in place and returns it. Values are drawn on the CPU from the library's
generator (or a given one), so that a model starts with the same values on every device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from brasa import random
from brasa.nn._state import copy_into

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_GAINS = {"sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which the standard deviation of weights grows to make up for a nonlinearity.

    Parameters
    ----------
    nonlinearity : str
        "linear", "conv1d" to "conv3d", "conv_transpose1d" to "conv_transpose3d", "sigmoid": 1; "tanh": 5/3;
        "relu": sqrt(2); "leaky_relu": sqrt(2 / (1 + param**2)); "selu": 3/4.
    param : float, optional
        The negative slope of "leaky_relu", 0.01 unless given.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from brasa.nn import init
    >>> round(init.calculate_gain("leaky_relu", 0.2), 3)
    1.387
    """
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        names = sorted([*_LINEAR, *_GAINS, "leaky_relu"])
        raise ValueError(f"nonlinearity: expected one of {', '.join(names)}, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


def constant_(tensor: Any, val: float) -> Any:
    """Fill with ``val``."""
    return _filled(tensor, np.full(tensor.shape, val, tensor.dtype))


def zeros_(tensor: Any) -> Any:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Any) -> Any:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def eye_(tensor: Any) -> Any:
    """Fill a matrix with the identity: 1 on the diagonal, 0 elsewhere."""
    if len(tensor.shape) != 2:
        raise ValueError(f"tensor: expected 2 dimensions, got shape {tensor.shape}")
    return _filled(tensor, np.eye(*tensor.shape, dtype=tensor.dtype))


def dirac_(tensor: Any, groups: int = 1) -> Any:
    """Fill a convolution's weight (O, I, spatial...) so that it copies its channels, I of them per group.

    Output channel i of each group of O / groups is input channel i of that group; those beyond I are 0.
    """
    if not 3 <= len(tensor.shape) <= 5:
        raise ValueError(f"tensor: expected 3 to 5 dimensions, got shape {tensor.shape}")
    outputs, inputs, *window = tensor.shape
    if outputs % groups:
        raise ValueError(f"groups: expected a divisor of {outputs} output channels, got {groups}")
    values = np.zeros(tensor.shape, tensor.dtype)
    centre = tuple(n // 2 for n in window)
    for group in range(groups):
        for i in range(min(outputs // groups, inputs)):
            values[(group * (outputs // groups) + i, i, *centre)] = 1
    return _filled(tensor, values)


def uniform_(tensor: Any, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Any:
    """Draw uniformly from [a, b).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> weight = nn.init.uniform_(nn.Parameter(np.empty(100, np.float32)), -0.5, 0.5)
    >>> bool(abs(weight.numpy()).max() <= 0.5)
    True
    """
    _check_finite(a=a, b=b)
    if not a <= b:
        raise ValueError(f"a: expected at most b {b}, got {a}")
    return _drawn(tensor, _source(generator).uniform, a, b)


def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Any:
    """Draw from the normal distribution with the given mean and standard deviation."""
    _check_finite(mean=mean, std=std)
    if std < 0:
        raise ValueError(f"std: expected at least 0, got {std}")
    return _drawn(tensor, _source(generator).normal, mean, std)


def trunc_normal_(
    tensor: Any, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Any = None
) -> Any:
    """Draw from a normal distribution cut off outside [a, b], limits in the units of the values."""
    _check_finite(mean=mean, std=std)
    if not (std > 0 and a < b):
        raise ValueError(f"std, a, b: expected std > 0 and a < b, got {std}, {a}, {b}")
    low, high = (a - mean) / std, (b - mean) / std
    if math.inf in (low, -high):
        raise ValueError(f"mean: expected one within reach of [{a}, {b}], got {mean} beside std {std}")
    drawn = _truncated(_source(generator), math.prod(tensor.shape), low, high)
    return _filled(tensor, np.clip(drawn.reshape(tensor.shape) * std + mean, a, b))


def _truncated(source: Any, count: int, low: float, high: float) -> np.ndarray:
    """Draw standard normals in [low, high] by rejection.

    Proposals are normal where the interval holds a fair share of the distribution, uniform (accepted with
    the density relative to its peak in the interval) where it does not. Eight beyond the peak nothing is
    left to be drawn.
    """
    peak = min(max(0.0, low), high)
    low, high = max(low, peak - 8.0), min(high, peak + 8.0)
    share = 0.5 * (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0)))
    kept: list[np.ndarray] = [np.empty(0)]
    missing = count
    while missing > 0:
        size = (2 * missing + 64,)
        if share > 0.25:
            x = source.normal(0.0, 1.0, size, dtype=np.float64)
            x = x[(x >= low) & (x <= high)]
        else:
            x = source.uniform(low, high, size, dtype=np.float64)
            x = x[
                source.uniform(0.0, 1.0, size, dtype=np.float64) < np.exp((peak - x) * (0.5 * peak + 0.5 * x))
            ]
        kept.append(x[:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept)


def xavier_uniform_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Draw uniformly with limit ``gain * sqrt(6 / (fan_in + fan_out))`` (Glorot and Bengio, 2010)."""
    _check_finite(gain=gain)
    bound = gain * math.sqrt(6.0 / max(sum(_fans(tensor)), 1))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Draw from a normal distribution with deviation ``gain * sqrt(2 / (fan_in + fan_out))``."""
    _check_finite(gain=gain)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / max(sum(_fans(tensor)), 1)), generator)


def kaiming_uniform_(
    tensor: Any, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Any = None
) -> Any:
    """Draw uniformly with limit ``gain * sqrt(3 / fan)`` (He et al., 2015); ``a`` is the negative slope."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Any, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Any = None
) -> Any:
    """Draw from a normal distribution with deviation ``gain / sqrt(fan)``; ``a`` is the negative slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Fill with ``gain`` times a random matrix of orthonormal rows or columns.

    Dimensions after the first count as one.
    """
    if len(tensor.shape) < 2:
        raise ValueError(f"tensor: expected at least 2 dimensions, got shape {tensor.shape}")
    _check_finite(gain=gain)
    if 0 in tensor.shape:
        return tensor
    rows = tensor.shape[0]
    columns = math.prod(tensor.shape[1:])
    size = (max(rows, columns), min(rows, columns))
    q, r = np.linalg.qr(_source(generator).normal(0.0, 1.0, size, dtype=np.float64))
    q *= np.sign(np.diag(r))  # makes the distribution uniform (Mezzadri, 2007)
    return _filled(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


def sparse_(tensor: Any, sparsity: float, std: float = 0.01, generator: Any = None) -> Any:
    """Draw a matrix from a normal distribution, the share ``sparsity`` of every column 0 (Martens, 2010)."""
    if len(tensor.shape) != 2:
        raise ValueError(f"tensor: expected 2 dimensions, got shape {tensor.shape}")
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity}")
    _check_finite(std=std)
    rows, columns = tensor.shape
    source = _source(generator)
    values = source.normal(0.0, std, tensor.shape, dtype=_drawn_dtype(tensor))
    order = np.argsort(source.uniform(0.0, 1.0, (rows, columns), dtype=np.float64), axis=0)
    np.put_along_axis(values, order[: math.ceil(sparsity * rows)], 0, axis=0)
    return _filled(tensor, values)


def _kaiming_std(tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode: expected 'fan_in' or 'fan_out', got {mode!r}")
    _check_finite(a=a)
    fan = _fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def _check_finite(**parameters: float) -> None:
    """Refuse what would fill a model with NaN, or never be drawn."""
    for name, value in parameters.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")


def _fans(tensor: Any) -> tuple[int, int]:
    """Return how many inputs an output of the layer sees, and how many outputs an input reaches."""
    if len(tensor.shape) < 2:
        raise ValueError(f"tensor: expected at least 2 dimensions, got shape {tensor.shape}")
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


def _source(generator: Any) -> Any:
    return random.default_generator() if generator is None else generator


def _drawn_dtype(tensor: Any) -> Any:
    """Return the dtype to draw in: 16-bit parameters are drawn in float32 and rounded."""
    return np.float64 if tensor.dtype == np.float64 else np.float32


def _drawn(tensor: Any, draw: Any, *parameters: float) -> Any:
    """Fill with what ``draw`` draws, in the array itself where that can be: most of the time goes to new memory."""
    data, dtype = tensor.data, _drawn_dtype(tensor)
    fits = type(data) is np.ndarray and data.dtype == dtype and data.flags.c_contiguous
    if not fits or not tensor.is_leaf:
        return _filled(tensor, draw(*parameters, tensor.shape, dtype=dtype))
    draw(*parameters, tensor.shape, dtype=dtype, out=data)
    tensor.version += 1
    return tensor


def _filled(tensor: Any, values: np.ndarray) -> Any:
    copy_into(tensor, values)
    return tensor
