"""Checks for tests of operators and layers: closeness with a stated bound, gradients against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brasa import _backward
from brasa._backend import is_array, namespace, to_device
from brasa.tensor import Tensor

__all__ = ["assert_close", "gradcheck"]


def _host(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.data
    return np.asarray(to_device(value, "cpu") if is_array(value) else value)


def _ulp(expected: np.ndarray, dtype: Any) -> np.ndarray:
    """The distance from |expected| to the next larger number of `dtype`."""
    largest = np.nextafter(np.finfo(dtype).max, dtype.type(0))  # its distance, not that of max, is finite
    return np.spacing(np.minimum(np.abs(expected), largest).astype(dtype)).astype(np.float64)


def _allowed(
    actual: np.ndarray,
    expected: np.ndarray,
    bound: Any,
    ulp: float | None,
    rtol: float | None,
    atol: float | None,
) -> np.ndarray:
    """The largest error allowed for every element."""
    given = [name for name, value in (("bound", bound), ("ulp", ulp)) if value is not None]
    given += ["rtol/atol"] if rtol is not None or atol is not None else []
    if len(given) != 1:
        raise ValueError(f"assert_close: give one of bound, ulp, rtol/atol; got {given or 'none'}")
    if bound is not None:
        return np.broadcast_to(_host(bound).astype(np.float64), expected.shape)
    if ulp is not None:
        if actual.dtype.kind != "f":
            raise TypeError(f"assert_close: ulp is for floating arrays, got {actual.dtype}")
        return ulp * _ulp(expected, actual.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return (atol or 0.0) + (rtol or 0.0) * np.abs(expected)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    bound: Any = None,
    ulp: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Assert that two arrays agree within a bound, element by element.

    NaN agrees with NaN, an infinity with the same one. Differences are taken in float64.

    Parameters
    ----------
    actual, expected
        Arrays or Tensors of one shape.
    bound
        The largest error, a number or an array that broadcasts to the shape.
    ulp
        The largest error in units of the last place of `expected` in the dtype of `actual`.
    rtol, atol
        The largest error is ``atol + rtol * |expected|``.

    Raises
    ------
    AssertionError
        With the worst element: its index, both values, the error and what was allowed.
    ValueError
        If not exactly one kind of bound is given.

    Examples
    --------
    >>> assert_close([1.0, 2.0], [1.0, 2.0], ulp=0)
    >>> assert_close([1.0, 2.5], [1.0, 2.0], bound=0.25)
    Traceback (most recent call last):
    AssertionError: 1 of 2 elements differ by more than allowed
      worst at (1,): actual 2.5, expected 2.0, error 0.5, allowed 0.25
    """
    got, want = _host(actual), _host(expected)
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: actual {got.shape}, expected {want.shape}")
    reference = want.astype(np.float64)
    allowed = _allowed(got, reference, bound, ulp, rtol, atol)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - reference)
        same = (got == want) | (np.isnan(got.astype(np.float64)) & np.isnan(reference))
        bad = ~same & ~((error <= allowed) & np.isfinite(error))
        excess = np.where(bad, np.where(np.isnan(error), np.inf, error / np.maximum(allowed, 5e-324)), -1.0)
    if not bad.any():
        return
    worst = np.unravel_index(int(excess.argmax()), got.shape)
    index = tuple(int(i) for i in worst)
    raise AssertionError(
        f"{int(bad.sum())} of {bad.size} elements differ by more than allowed\n"
        f"  worst at {index}: actual {got[worst].item()!r}, expected {want[worst].item()!r}, "
        f"error {error[worst]:.6g}, allowed {allowed[worst]:.6g}"
    )


def gradcheck(
    f: Callable[..., Any], inputs: Any, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> bool:
    """Check gradients in float64 against central differences.

    Every output gets a fixed random gradient; the gradient that comes back at an input is compared,
    element by element, with the differences of the outputs. It is then asked for each input alone, which
    must give the same: backwards skip what is not needed.

    Parameters
    ----------
    f
        A function of Tensors that returns a Tensor or a sequence of them.
    inputs
        One array or Tensor, or a sequence; float64 ones are checked, others are passed as they are.
    eps
        The step of the differences.
    atol, rtol
        What an element may differ by: ``atol + rtol * |difference|``.

    Returns
    -------
    True.

    Raises
    ------
    AssertionError
        With input, index and both values where they disagree.
    TypeError
        If no input is a float64 array.

    Examples
    --------
    >>> gradcheck(lambda x: x * x, np.array([1.0, 2.0]))
    True
    """
    values = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    values = [value.data if isinstance(value, Tensor) else value for value in values]
    values = [np.asarray(value) if isinstance(value, np.generic) else value for value in values]
    checked = [i for i, value in enumerate(values) if getattr(value, "dtype", None) == np.float64]
    if not checked:
        raise TypeError("gradcheck: no input is a float64 array")
    together = _analytic(f, values, checked)
    for i, gradient in zip(checked, together):
        _compare(gradient, _numeric(f, values, i, eps), f"gradient of input {i}", rtol, atol)
    if len(checked) > 1:
        for i, gradient in zip(checked, together):
            alone = _analytic(f, values, [i])[0]
            _compare(alone, gradient, f"gradient of input {i}, asked for alone", 1e-12, 1e-12)
    return True


def _outputs(f: Callable[..., Any], values: Sequence[Any]) -> list[Tensor]:
    """The floating outputs of `f`."""
    result = f(*values)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    return [y for y in outputs if isinstance(y, Tensor) and y.dtype == np.float64]


def _weights(outputs: Sequence[Tensor]) -> list[np.ndarray]:
    """A gradient for every output: random, away from zero, the same in every call."""
    random = np.random.Generator(np.random.Philox(7))
    return [
        np.asarray(random.uniform(0.5, 1.5, y.shape) * random.choice([-1.0, 1.0], y.shape)) for y in outputs
    ]


def _analytic(f: Callable[..., Any], values: Sequence[Any], which: Sequence[int]) -> list[np.ndarray]:
    """The gradients at the inputs `which`, from one backward pass."""
    points = [
        Tensor(value, requires_grad=i in which) if is_array(value) else value
        for i, value in enumerate(values)
    ]
    outputs = _outputs(f, points)
    if not outputs:
        raise AssertionError("gradcheck: the function returned no float64 Tensor")
    roots = [
        (y, namespace(y.data).asarray(dy)) for y, dy in zip(outputs, _weights(outputs)) if y.requires_grad
    ]
    found = _backward.run(roots, [points[i] for i in which])
    return [
        np.zeros(values[i].shape) if gradient is None else _host(gradient)
        for i, gradient in zip(which, found)
    ]


def _numeric(f: Callable[..., Any], values: Sequence[Any], which: int, eps: float) -> np.ndarray:
    """Central differences of the weighted outputs over every element of one input."""
    gradient = np.empty(values[which].shape)
    changed = list(values)

    def at(index: tuple[int, ...], step: float) -> float:
        point = values[which].copy()
        point[index] += step
        changed[which] = point
        outputs = _outputs(f, [Tensor(value) if is_array(value) else value for value in changed])
        return sum(float((_host(y) * w).sum()) for y, w in zip(outputs, _weights(outputs)))

    for index in np.ndindex(*gradient.shape):
        gradient[index] = (at(index, eps) - at(index, -eps)) / (2 * eps)
    return gradient


def _compare(actual: np.ndarray, expected: np.ndarray, what: str, rtol: float, atol: float) -> None:
    try:
        assert_close(actual, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None
