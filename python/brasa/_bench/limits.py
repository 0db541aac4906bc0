"""What this machine gives at most: FMA operations and bytes per second, on brasa's threads.

The limits are probed again beside every turn, so that a share compares a kernel with the clock and the memory
bandwidth of its moment: a virtual machine may have half of either a second later. Bandwidth depends on which
cache the data lie in, so a case's limit is that of a probe of arrays as large: a copy, one pass of
reading, or one pass over an array in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from brasa import _cpu, ops

_LEAST, _MOST = 1 << 16, 1 << 26  # bytes of a probe: a call's cost matters below, memory alone above
_GOOD_MOMENT = 0.75  # of the peak
_SECONDS = 0.002  # of one timing of a probe


class Limits:
    """Probes of the machine.

    Parameters
    ----------
    peak : callable, optional
        Returns FMA operations per second; by default measured.
    bandwidth : callable, optional
        Returns bytes per second for a kind of traffic and a number of bytes; by default measured.
    most : int, optional
        Bytes beyond which memory alone counts.
    tensor_cores : dict, optional
        What tensor cores give in "bf16" and "tf32", operations per second.
    """

    def __init__(
        self,
        peak: Callable[[], float] = _cpu._fma_peak,
        bandwidth: Callable[[str, int], float] | None = None,
        most: int = _MOST,
        tensor_cores: Mapping[str, float] | None = None,
    ) -> None:
        self._peak = peak
        self._most = most
        self._tensor_cores = {} if tensor_cores is None else tensor_cores
        self._bandwidth = _Probes() if bandwidth is None else bandwidth
        self.peak = max(peak() for _ in range(5))
        self.bandwidth = max(self.rate("copy", most) for _ in range(5))

    def bound(
        self, flops: float, nbytes: float, traffic: str, size: float, unit: str = "fma"
    ) -> tuple[str, float]:
        """What limits the work by the roofline, `unit` or the traffic of arrays of `size`, and the amount of it.

        Where the rate of `unit` is not known, the traffic does, or else fused multiply-adds.
        """
        if not flops or (unit != "fma" and unit not in self._tensor_cores and nbytes):
            return traffic, nbytes
        unit = unit if unit in self._tensor_cores else "fma"
        peak = self._tensor_cores.get(unit, self.peak)
        seconds = nbytes / self.rate(traffic, size) if nbytes else 0.0
        return (unit, flops) if flops / peak > seconds else (traffic, nbytes)

    def rate(self, bound: str, size: float) -> float:
        """Operations per second, or bytes per second moved within `size` bytes, now."""
        if bound == "fma":
            return self._peak()
        if bound in self._tensor_cores:
            return self._tensor_cores[bound]
        return self._bandwidth(bound, int(min(max(size, _LEAST), self._most)))

    def wait_for_peak(self) -> None:
        """Return when the machine has its peak again, a third of a second later at most.

        The host of a virtual machine may put two of its cores on one of its own for a moment; a ratio of turns
        from before and after would compare nothing.
        """
        for _ in range(10):
            now = self._peak()
            self.peak = max(self.peak, now)  # the run may have begun in a bad moment
            if now > _GOOD_MOMENT * self.peak:
                return
            time.sleep(0.03)


class _Probes:
    """Bandwidth of the three kinds of traffic; the arrays are shared by all sizes."""

    def __init__(self) -> None:
        self._x = np.ones(_MOST // 4, np.float32)
        self._y = _cpu.empty_like(self._x)
        self._readers = ThreadPoolExecutor(_cpu.num_threads())

    def __call__(self, traffic: str, nbytes: int) -> float:
        count = nbytes // 8 // 64 * 64
        if traffic == "copy":
            return _cpu._copy_bandwidth(self._x[:count], self._y[:count])
        if traffic == "read":
            parts = np.array_split(self._x[: 2 * count], _cpu.num_threads())
            return max(
                self._timed(lambda f=f: list(self._readers.map(f, parts)), 8 * count)  # type: ignore[misc]
                for f in (np.maximum.reduce, lambda part: np.dot(part, part))
            )
        x = self._x[: 2 * count]  # as large as the case's arrays: half of them might fit into a cache
        return self._timed(lambda: ops.relu(x, out=x), 16 * count)

    @staticmethod
    def _timed(pass_over: Callable[[], object], nbytes: int) -> float:
        """Bytes per second of the best of three timings."""
        pass_over()
        repeats = max(1, int(_SECONDS * 5e10 / nbytes))
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(repeats):
                pass_over()
            best = min(best, time.perf_counter() - start)
        return nbytes * repeats / best
