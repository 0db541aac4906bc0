"""Measure contestants against each other in one run.

Absolute times prove nothing on a machine whose clock and neighbours change, so contestants take turns
(A B C A B C ...), every turn is compared with the turns beside it, and what is reported are medians of those
ratios with their interquartile range. Two pools of threads in one process disturb each other: their threads
spin for a while after work (OpenBLAS's for 0.1 s). So a turn begins when no thread of the process runs any more
and the machine has its full peak, and with one call that is not timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from brasa._bench.limits import Limits

Call = Callable[[], Any]

TRAFFIC = ("copy", "read", "update")

_TURN = 0.012  # seconds of timed work per turn
_LONG = 0.03  # a call of so many seconds wakes the threads on its own account
_LEAST_ROUNDS = 3
_STALLED = 4.0  # times the fastest turn of a contestant, or the time of a turn
_HOPELESS = 1.3  # a peer's variant so much slower than its other one, in both first turns, is dropped


@dataclass(frozen=True)
class Case:
    """One line of a benchmark. `make` builds the arrays and returns each contestant's call, brasa's first.

    A peer may have variants ("torch/channels-last"): the better one counts.
    """

    family: str
    name: str
    make: Callable[[], dict[str, Call]]
    flops: float = 0.0  # useful operations, 0 where bandwidth is what counts
    nbytes: float = 0.0  # bytes that must be read and written at least
    traffic: str = "copy"  # what those bytes are: "copy", "read", or "update" of arrays in place
    distinct: float = 0.0  # bytes of all arrays, where that is not `nbytes`: it says which cache they lie in
    launches: bool = False  # on a GPU, the time that Python needs to launch kernels counts too
    unit: str = "fma"  # what multiplies: fused multiply-adds, or tensor cores in "bf16" or "tf32"


@dataclass(frozen=True)
class Result:
    """What was measured for a case. Ratios are peer's time / brasa's time: above 1, brasa is faster."""

    family: str
    name: str
    seconds: float
    best_seconds: float
    rate: float
    unit: str  # of the rate: "GFLOP/s" or "GB/s"
    share: float  # of the machine's limit at that moment, the median
    best_share: float
    bound: str  # what the limit is: "fma", "bf16", "tf32", "copy", "read" or "update"
    flops: float
    nbytes: float
    ratios: dict[str, tuple[float, float, float]]  # peer: quartiles of the ratio
    measured: str = ""  # when, UTC
    commit: str = ""  # the last one that touched what is measured


@dataclass(frozen=True)
class Timer:
    """How calls are timed: `plan` tries one and returns the arguments that `turn` takes behind it."""

    plan: Callable[[Call], tuple[Any, ...]]
    turn: Callable[..., float]  # seconds per call


def _wait_for_sleep() -> None:
    """Return when the threads of all contestants have fallen asleep, after half a second at most."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def _turn(call: Call, repeats: int, warm: bool) -> float:
    """Seconds per call of one turn."""
    _wait_for_sleep()
    if warm:
        call()
    done, part = 0, max(1, repeats // 8)
    start = time.perf_counter()
    while done < repeats:
        for _ in range(part):
            call()
        done += part
        if time.perf_counter() - start > _STALLED * _TURN:
            break
    return (time.perf_counter() - start) / done


def _steady_turn(turn: Callable[[], float], before: list[float]) -> float:
    """A turn, repeated where something went wrong beside it.

    Now and then the system puts both threads of a contestant on one core; they then wait for each other for a time
    slice at every barrier, and microseconds become milliseconds. This says nothing of the contestant.
    """
    taken = turn()
    for _ in range(2):
        if not before or taken < _STALLED * min(before):
            break
        taken = min(taken, turn())
    return taken


def _repeats(call: Call) -> tuple[int, bool]:
    """How many calls make a turn, and whether one before them is worth its time."""
    call()
    start = time.perf_counter()
    call()
    seconds = max(time.perf_counter() - start, 1e-7)
    return max(1, int(_TURN / seconds)), seconds < _LONG


ON_CPU = Timer(_repeats, _turn)


def measure(
    case: Case, limits: Limits, rounds: int = 9, patience: float = float("inf"), timer: Timer = ON_CPU
) -> Result:
    """Time a case against its peers and this machine's limit.

    Parameters
    ----------
    case : Case
        What to measure.
    limits : Limits
        The machine's limits, probed again right before and after each of brasa's turns.
    rounds : int, default: 9
        Turns of each contestant.
    patience : float, optional
        After so many seconds three rounds are enough.
    timer : Timer, optional
        How turns are timed.

    Returns
    -------
    Result
        Medians over the rounds.
    """
    gc.collect()  # what the case before has left
    calls = case.make()
    plans = {name: timer.plan(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    size = case.distinct or case.nbytes
    bound, work = limits.bound(case.flops, case.nbytes, case.traffic, size, case.unit)
    floors = []
    start = time.perf_counter()
    for done in range(1, rounds + 1):
        rate = 0.0
        for name, call in calls.items():
            limits.wait_for_peak()
            if name == "brasa":
                rate = limits.rate(bound, size)
            turn = partial(timer.turn, call, *plans[name])
            times[name].append(_steady_turn(turn, times[name]))
            if name == "brasa":
                rate = max(rate, limits.rate(bound, size))
        floors.append(work / rate)
        if done == 2:
            calls = _without_hopeless(calls, times)
        if done >= _LEAST_ROUNDS and time.perf_counter() - start > patience:
            break
    ours = np.array(times["brasa"])
    return Result(
        family=case.family,
        name=case.name,
        seconds=float(np.median(ours)),
        best_seconds=float(ours.min()),
        rate=work / float(np.median(ours)) / 1e9,
        unit="GB/s" if bound in TRAFFIC else "GFLOP/s",
        share=float(np.median(np.array(floors) / ours)),
        best_share=float(np.max(np.array(floors) / ours)),
        bound=bound,
        flops=case.flops,
        nbytes=case.nbytes,
        ratios=_ratios({name: times[name] for name in calls if name != "brasa"}, ours),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _without_hopeless(calls: dict[str, Call], times: Mapping[str, list[float]]) -> dict[str, Call]:
    """The calls less the variants of a peer that lose clearly to another variant of it."""
    best: dict[str, float] = {}
    for name in calls:
        peer = name.partition("/")[0]
        best[peer] = min(best.get(peer, float("inf")), *times[name])
    return {
        name: call
        for name, call in calls.items()
        if min(times[name]) < _HOPELESS * best[name.partition("/")[0]]
    }


def _ratios(times: Mapping[str, list[float]], ours: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Quartiles of peer / brasa; of a peer's variants (``torch/...``) the one with the better median."""
    best: dict[str, np.ndarray] = {}
    for name, seconds in times.items():
        peer, theirs = name.partition("/")[0], np.array(seconds)
        if peer not in best or np.median(theirs) < np.median(best[peer]):
            best[peer] = theirs
    quartiles = {peer: np.percentile(theirs / ours, [25, 50, 75]) for peer, theirs in best.items()}
    return {peer: (float(low), float(mid), float(high)) for peer, (low, mid, high) in quartiles.items()}


def geometric_mean(values: list[float]) -> float:
    """The geometric mean.

    Examples
    --------
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return float(np.exp(np.mean(np.log(values))))
