"""`profile` and `detect_anomaly`: what watches every operator call, forward and backward."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from brasa import _tape
from brasa._backend import is_array, namespace
from brasa._tape import Operator

__all__ = ["Profile", "detect_anomaly", "profile"]


class Row(NamedTuple):
    """One line of a profile."""

    operator: str
    calls: int
    seconds: float


class Profile:
    """The calls seen so far; `print` it for a table.

    An operator that calls others is charged for its own time only, so the times add up to `seconds`. On a
    GPU every call is waited for, which makes the program slower and the times true.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._times: dict[str, tuple[int, int]] = {}

    def around(self, op: Operator, phase: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function and take its time."""
        inner: list[int] = self._local.__dict__.setdefault("inner", [])
        inner.append(0)
        begin = time.perf_counter_ns()
        try:
            result = function(*args)
            for array in _arrays(result):
                _wait(array)
                break
        finally:
            spent = time.perf_counter_ns() - begin
            own = spent - inner.pop()
            if inner:
                inner[-1] += spent
            self._add(op.name if phase == "forward" else f"{op.name} backward", own)
        return result

    def _add(self, name: str, nanoseconds: int) -> None:
        with self._lock:
            calls, total = self._times.get(name, (0, 0))
            self._times[name] = (calls + 1, total + nanoseconds)

    @property
    def rows(self) -> list[Row]:
        """One row per operator and direction, the most time first."""
        with self._lock:
            rows = [Row(name, calls, total * 1e-9) for name, (calls, total) in self._times.items()]
        return sorted(rows, key=lambda row: (-row.seconds, row.operator))

    @property
    def seconds(self) -> float:
        """The time spent in operators."""
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        rows = self.rows
        total = sum(row.seconds for row in rows)
        width = max([len("operator"), *(len(row.operator) for row in rows)])
        lines = [f"{'operator':<{width}}  {'calls':>7}  {'time':>10}  {'per call':>10}  {'share':>6}"]
        for row in rows:
            each, share = row.seconds / row.calls, row.seconds / total if total else 0.0
            lines.append(
                f"{row.operator:<{width}}  {row.calls:>7}  {_time(row.seconds):>10}  "
                f"{_time(each):>10}  {share:>6.1%}"
            )
        calls = sum(row.calls for row in rows)
        lines.append(f"{'total':<{width}}  {calls:>7}  {_time(total):>10}")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.2f} us"


def _wait(array: Any) -> None:
    """Wait for the device to finish, where `array` is on one."""
    cuda = getattr(namespace(array), "cuda", None)
    if cuda is not None:
        cuda.get_current_stream().synchronize()


def _arrays(value: Any) -> Iterator[Any]:
    """The arrays in a result or among arguments, nested or not."""
    if _tape.is_tensor(value):
        yield value.data
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _arrays(part)
    elif is_array(value):
        yield value


@contextmanager
def profile() -> Iterator[Profile]:
    """Measure the operators called within the block, by all threads, forward and backward.

    Examples
    --------
    >>> from brasa import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with profile() as measured:
    ...     (x * x).sum().backward()
    >>> max(row.calls for row in measured.rows if row.operator.startswith("multiply"))
    3
    """
    measured = Profile()
    with _tape.watch(measured):
        yield measured


class _Detector:
    """Raises where a NaN or an infinity first appears."""

    def around(self, op: Operator, phase: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function and look at what it made."""
        given = [_worst(array) for array in _arrays(args)]
        had_nan, had_infinity = "NaN" in given, "infinity" in given
        if phase == "forward":
            self._check_arguments(op, args)
        result = function(*args)
        names = [op.names[i] for i in op.arrays] if phase == "backward" and not op.variadic else []
        parts = result if isinstance(result, (tuple, list)) else (result,)
        for i, part in enumerate(parts):
            for array in _arrays(part):
                found = _worst(array)
                if found is None or had_nan or (found == "infinity" and had_infinity):
                    continue
                where = f"the gradient of '{names[i]}'" if i < len(names) else "its result"
                what = op.name if phase == "forward" else f"the backward of {op.name}"
                raise RuntimeError(f"{what} made {found} in {where}; its arguments had none")
        return result

    def _check_arguments(self, op: Operator, values: Sequence[Any]) -> None:
        """A NaN that no operator made comes from the data or the parameters."""
        for i, value in enumerate(values):
            for array in _arrays(value):
                if _worst(array) == "NaN":
                    name = op.names[min(i, len(op.names) - 1)]
                    raise RuntimeError(f"'{name}' of {op.name} holds NaN, and no operator made it")


def _worst(array: Any) -> str | None:
    """ "NaN" or "infinity" where `array` holds one."""
    if not _tape.is_floating(array.dtype):
        return None
    xp = namespace(array)
    if bool(xp.isfinite(array).all()):
        return None
    return "NaN" if bool(xp.isnan(array).any()) else "infinity"


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within the block, raise at the first operator that makes a NaN or an infinity, forward or backward.

    The message names the operator, and for a backward the argument whose gradient it is. Infinities that
    are arguments already, such as those of an attention mask, are let through. Every array is read once
    more, so this is for finding an error.

    Raises
    ------
    RuntimeError
        Within the block, from the call that makes the value.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import Tensor
    >>> with np.errstate(divide="ignore"), detect_anomaly():
    ...     Tensor([0.0]).log()
    Traceback (most recent call last):
    RuntimeError: log made infinity in its result; its arguments had none
    """
    with _tape.watch(_Detector()):
        yield
