"""Measure contestants against each other in one run.

Absolute times prove nothing on a machine whose clock and neighbours change, so contestants take turns
(A B C A B C ...), every turn is compared with the turns beside it, and what is reported are medians of those
ratios with their interquartile range. Two pools of threads in one process disturb each other: their threads
spin for a while after work (OpenBLAS's for 0.1 s). So a turn begins when no thread of the process runs any more,
and with one call that is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Call = Callable[[], Any]

_TURN = 0.012  # seconds of timed work per turn


@dataclass
class Case:
    """One line of a benchmark."""

    family: str
    name: str
    brasa: Call
    flops: float = 0.0  # useful operations, 0 where bandwidth is what counts
    nbytes: float = 0.0  # bytes that must be read and written at least
    peers: dict[str, Call] = field(default_factory=dict)  # "torch/channels-last": the better variant counts


@dataclass
class Result:
    """What was measured for a case. Ratios are peer's time / brasa's time: above 1, brasa is faster."""

    family: str
    name: str
    seconds: float
    rate: float
    unit: str  # of the rate: "GFLOP/s" or "GB/s"
    share: float  # of the machine's limit
    best_share: float
    ratios: dict[str, tuple[float, float, float]]  # peer: quartiles of the ratio


def _wait_for_sleep() -> None:
    """Return when the threads of all contestants have fallen asleep, after half a second at most."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def _turn(call: Call, repeats: int) -> float:
    """Seconds per call of one turn."""
    _wait_for_sleep()
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Call) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, int(_TURN / max(time.perf_counter() - start, 1e-7)))


def measure(case: Case, limits: Limits, rounds: int = 9) -> Result:
    """Time a case against its peers and this machine's limit, `rounds` turns each."""
    calls = {"brasa": case.brasa, **case.peers}
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    ceilings = []
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_turn(call, repeats[name]))
        ceilings.append(limits.floor(case))
    ours = np.array(times["brasa"])
    shares = np.array(ceilings) / ours
    work, unit = (case.flops, "GFLOP/s") if limits.is_compute_bound(case) else (case.nbytes, "GB/s")
    return Result(
        family=case.family,
        name=case.name,
        seconds=float(np.median(ours)),
        rate=work / float(np.median(ours)) / 1e9,
        unit=unit,
        share=float(np.median(shares)),
        best_share=float(np.median(ceilings) / ours.min()),
        ratios=_ratios(times, ours),
    )


def _ratios(times: Mapping[str, list[float]], ours: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Quartiles of peer / brasa; of a peer's variants (``torch/...``) the one with the better median."""
    best: dict[str, np.ndarray] = {}
    for name, seconds in times.items():
        peer, theirs = name.partition("/")[0], np.array(seconds)
        if peer != "brasa" and (peer not in best or np.median(theirs) < np.median(best[peer])):
            best[peer] = theirs
    quartiles = {peer: np.percentile(theirs / ours, [25, 50, 75]) for peer, theirs in best.items()}
    return {peer: (float(low), float(mid), float(high)) for peer, (low, mid, high) in quartiles.items()}


class Limits:
    """What this machine gives at most: FMA operations and copied bytes per second, on brasa's threads.

    `floor` measures the one that binds a case anew at each call, so that a share compares a kernel with the
    clock it ran at.
    """

    def __init__(self, peak: Callable[[], float], bandwidth: Callable[[], float]) -> None:
        self._peak, self._bandwidth = peak, bandwidth
        self.peak = max(peak() for _ in range(5))
        self.bandwidth = max(bandwidth() for _ in range(5))

    def is_compute_bound(self, case: Case) -> bool:
        """Whether operations bind the case, by the roofline."""
        return case.flops / self.peak > case.nbytes / self.bandwidth

    def floor(self, case: Case) -> float:
        """The least number of seconds that the case can take."""
        if self.is_compute_bound(case):
            return case.flops / self._peak()
        return case.nbytes / self._bandwidth()


def geometric_mean(values: list[float]) -> float:
    """The geometric mean.

    Examples
    --------
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return float(np.exp(np.mean(np.log(values))))
