"""`profile` and `detect_anomaly`: what watches every operator call, forward and backward."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from brasa import _tape
from brasa._backend import device_of, is_array, namespace
from brasa._tape import Operator

__all__ = ["Profile", "detect_anomaly", "profile"]


class Row(NamedTuple):
    """One line of a profile.

    `flops` counts the operations of products, convolutions, recurrent layers and attention, a multiply-add as
    two; `nbytes` what the arguments and results of all calls hold, each array read or written once.
    """

    operator: str
    calls: int
    seconds: float
    flops: int
    nbytes: int

    def share_of_limit(self, peak: float, bandwidth: float) -> float:
        """The least time this machine needs, over the time it took.

        Parameters
        ----------
        peak : float
            Operations per second.
        bandwidth : float
            Bytes per second. Arrays that stay in the caches may pass its limit.
        """
        return max(self.flops / peak, self.nbytes / bandwidth) / self.seconds if self.seconds else 0.0


class Profile:
    """The calls seen so far; `print` it for a table.

    An operator that calls others is charged for its own time only, so the times add up to `seconds`. On a
    GPU every call is waited for, which makes the program slower and the times true. Where all arrays were on
    the CPU the table has a column "limit": the least time by this machine's FMA peak and copy bandwidth,
    measured when the table is made, as a share of the time taken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._rows: dict[str, Row] = {}
        self._on_cpu = True

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
            of_others = inner.pop()
            if inner:
                inner[-1] += spent
        arrays = list({id(array): array for array in _arrays((args, result))}.values())
        name = op.name if phase == "forward" else f"{op.name} backward"
        work = (0, 0) if of_others else (_flops(op, phase, args, result), sum(a.nbytes for a in arrays))
        with self._lock:
            old = self._rows.get(name, Row(name, 0, 0.0, 0, 0))
            seconds = old.seconds + (spent - of_others) * 1e-9
            self._rows[name] = Row(name, old.calls + 1, seconds, old.flops + work[0], old.nbytes + work[1])
            self._on_cpu = self._on_cpu and all(device_of(array) == "cpu" for array in arrays)
        return result

    @property
    def rows(self) -> list[Row]:
        """One row per operator and direction, the most time first."""
        with self._lock:
            rows = list(self._rows.values())
        return sorted(rows, key=lambda row: (-row.seconds, row.operator))

    @property
    def seconds(self) -> float:
        """The time spent in operators."""
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        rows = self.rows
        total = sum(row.seconds for row in rows)
        width = max([len("operator"), *(len(row.operator) for row in rows)])
        limits = _limits() if rows and self._on_cpu else None
        head = f"{'operator':<{width}}  {'calls':>7}  {'time':>10}  {'per call':>10}  {'share':>6}"
        lines = [head + ("  limit" if limits else "")]
        for row in rows:
            each, share = row.seconds / row.calls, row.seconds / total if total else 0.0
            limit = f"  {row.share_of_limit(*limits):>5.0%}" if limits else ""
            lines.append(
                f"{row.operator:<{width}}  {row.calls:>7}  {_time(row.seconds):>10}  "
                f"{_time(each):>10}  {share:>6.1%}{limit}"
            )
        calls = sum(row.calls for row in rows)
        lines.append(f"{'total':<{width}}  {calls:>7}  {_time(total):>10}")
        return "\n".join(lines)


@lru_cache(maxsize=1)
def _limits() -> tuple[float, float]:
    """This machine's operations and copied bytes per second."""
    from brasa._bench.limits import Limits

    machine = Limits()
    return machine.peak, machine.bandwidth


def _flops(op: Operator, phase: str, args: Sequence[Any], result: Any) -> int:
    """The operations of products, convolutions, recurrent layers and attention; those of other operators do
    not count beside memory.
    """
    count = _MULTIPLY_ADDS.get(op.name)
    if count is None:
        return 0
    if phase == "forward":
        return 2 * count(dict(zip(op.names, args, strict=False)), next(_arrays(result)), None)
    dys, _, _, mask, kept = args
    values = {op.names[i]: value for i, value in zip(op.keep, kept, strict=True)}
    wanted = dict(zip((op.names[i] for i in op.arrays), mask, strict=True))
    return 2 * count(values, next(_arrays(dys)), wanted)


# Each takes the arguments by name, a result or its gradient, and in a backward which gradients are wanted.
_Wanted = Mapping[str, bool] | None


def _of_matmul(values: Mapping[str, Any], y: Any, wanted: _Wanted) -> int:
    a = values["a"]
    depth = a.shape[-2 if values["transpose_a"] and a.ndim > 1 else -1]
    return y.size * depth * (1 if wanted is None else wanted["a"] + wanted["b"])


def _of_conv2d(values: Mapping[str, Any], y: Any, wanted: _Wanted) -> int:
    return (
        y.size * prod(values["weight"].shape[1:]) * (1 if wanted is None else wanted["x"] + wanted["weight"])
    )


def _of_recurrent(values: Mapping[str, Any], _: Any, wanted: _Wanted) -> int:
    """A product with every weight; backward one for the weight's gradient and one for what it was applied to."""
    rows = prod(values["x"].shape[:-1])
    total = 0
    for name in ("w_ih", "w_hh", "w_hr"):
        weight = values.get(name)
        if weight is not None:
            goes_on = wanted is not None and (name != "w_ih" or wanted["x"])
            total += weight.size * (1 if wanted is None else wanted[name] + goes_on)
    return rows * total


def _of_attention(values: Mapping[str, Any], _: Any, wanted: _Wanted) -> int:
    """Two products of the scores' size; backward the scores again, their gradient and one per operand."""
    q, k, v = values["q"], values["k"], values["v"]
    batch = prod(np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]))
    scores = batch * q.shape[-2] * k.shape[-2] // (2 if values["causal"] else 1)
    if wanted is None:
        return scores * (q.shape[-1] + v.shape[-1])
    return scores * (q.shape[-1] * (1 + wanted["q"] + wanted["k"]) + v.shape[-1] * (1 + wanted["v"]))


_MULTIPLY_ADDS: dict[str, Callable[[Mapping[str, Any], Any, _Wanted], int]] = {
    "matmul": _of_matmul,
    "conv2d": _of_conv2d,
    "attention": _of_attention,
    **dict.fromkeys(("rnn", "lstm", "gru", "rnn_cell", "lstm_cell", "gru_cell"), _of_recurrent),
}


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
