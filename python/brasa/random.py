"""Random numbers that are a function of a seed, a purpose and a position.

A `Generator` holds a seed and one counter per purpose (initialisation, dropout, shuffle, augmentation).
Drawing hands out the next stretch of a counter-based stream, Philox, whose key is made of the seed and the
purpose: what one purpose draws does not move what another one gets, and the state is a few integers.

Kernels draw by themselves: ``next(n)`` gives them (seed, offset), and element i of the dense array in memory
order is word i % 4 of Philox4x32-10 at counter offset + i / 4, on every device. What is drawn on the host
(permutations, initial values) comes from NumPy's Philox with the key (seed of the purpose, offset), one
offset a draw; initial values beyond a million go on at counters of their own, whichever thread draws them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from brasa import _capture, _cpu

__all__ = ["PURPOSES", "Generator", "default_generator", "manual_seed"]

PURPOSES = ("initialisation", "dropout", "shuffle", "augmentation")
_MASK = (1 << 64) - 1
_CHUNK = 1 << 20  # initial values that one thread draws at a time
_SEED_MASK = (1 << 63) - 1  # seeds are handed to kernels, where they must also fit a signed integer


def _mix(seed: int, word: int) -> int:
    """64 bits that depend on every bit of both (the finaliser of SplitMix64, twice)."""
    z = (seed ^ (word * 0x9E3779B97F4A7C15)) & _MASK
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


def _derive(seed: int, key: int | str) -> int:
    """A seed for the sub-stream `key` of `seed`."""
    if isinstance(key, str):
        data = key.encode()
        z = _mix(seed, len(data) + 1)
        for i in range(0, len(data), 8):
            z = _mix(z, int.from_bytes(data[i : i + 8], "little"))
        return z & _SEED_MASK
    return _mix(_mix(seed, 0), int(key) & _MASK) & _SEED_MASK


class Generator:
    """A source of random numbers with a state of its own; threads may share it.

    Parameters
    ----------
    seed
        Any integer. Equal seeds give equal numbers.

    Examples
    --------
    >>> generator = Generator(0)
    >>> generator.permutation(4).tolist() == Generator(0).permutation(4).tolist()
    True
    >>> seed, offset = generator.next(10)  # for a kernel that draws ten numbers
    >>> generator.next(1)[1] - offset      # four numbers a counter
    3
    """

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Start again, from another seed."""
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seed: expected an int, got {seed!r}")
        with self._lock:
            self._seed = int(seed) & _MASK
            self._offsets: dict[str, int] = {}

    @property
    def seed(self) -> int:
        """The seed it started from."""
        return self._seed

    def __repr__(self) -> str:
        return f"Generator({self._seed})"

    def next(self, n: int, purpose: str = "dropout") -> tuple[Any, Any]:
        """Reserve `n` random words and return (seed, offset) for the kernel that draws them.

        While a step is captured (`brasa.cuda.graph`) both are device arrays of one element, which every
        replay fills with what this method would return then.

        Parameters
        ----------
        n
            The number of elements; four share a counter.
        purpose
            The sub-stream: one of `PURPOSES`, or any other name.
        """
        if n < 0:
            raise ValueError(f"n: expected at least 0, got {n}")
        counters = (n + 3) // 4
        taken = self._take(counters, purpose)
        recording = _capture.current()
        if recording is None:
            return taken
        words = recording.reserve(taken, np.int64)
        recording.renew(lambda: self._take(counters, purpose))
        return words[:1], words[1:]

    def _take(self, counters: int, purpose: str) -> tuple[int, int]:
        with self._lock:
            offset = self._offsets.get(purpose, 0)
            self._offsets[purpose] = (offset + counters) & _SEED_MASK
            return _derive(self._seed, purpose), offset

    def _host(self, purpose: str) -> np.random.Generator:
        """NumPy's generator for one draw on the host."""
        key = np.array(self._take(1, purpose), np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def fork(self, key: int | str) -> Generator:
        """A generator of its own for `key` (an epoch, a rank, a name).

        It depends on the seed and the key, not on what has been drawn here.

        Examples
        --------
        >>> a, b = Generator(1), Generator(1)
        >>> _ = a.permutation(5)
        >>> a.fork(3).seed == b.fork(3).seed != b.fork(4).seed
        True
        """
        return Generator(_derive(self._seed, key))

    def permutation(self, n: int, purpose: str = "shuffle") -> np.ndarray:
        """The integers below `n` in random order, int64."""
        return self._host(purpose).permutation(n)

    def integers(
        self, low: int, high: int | None = None, size: Any = None, purpose: str = "augmentation"
    ) -> Any:
        """Integers in [low, high), or in [0, low), int64."""
        return self._host(purpose).integers(low, high, size)

    def uniform(
        self,
        low: float = 0.0,
        high: float = 1.0,
        size: Any = None,
        *,
        dtype: Any = np.float32,
        purpose: str = "initialisation",
        out: np.ndarray | None = None,
    ) -> Any:
        """Numbers in [low, high), drawn in `dtype` (float32 or float64); in `out`, of that size and dtype."""
        one = np.dtype(dtype).type

        def scale(values: np.ndarray) -> None:
            values *= one(high - low)
            values += one(low)
            if high > low:  # the sum may round up to high: the largest number below takes its place
                np.minimum(values, np.nextafter(one(high), one(low)), out=values)

        return self._drawn("random", out, size, dtype, purpose, scale)

    def normal(
        self,
        mean: float = 0.0,
        std: float = 1.0,
        size: Any = None,
        *,
        dtype: Any = np.float32,
        purpose: str = "initialisation",
        out: np.ndarray | None = None,
    ) -> Any:
        """Normally distributed numbers, drawn in `dtype` (float32 or float64); in `out`, of that size and dtype."""
        if std < 0:
            raise ValueError(f"std: expected at least 0, got {std}")
        one = np.dtype(dtype).type

        def scale(values: np.ndarray) -> None:
            values *= one(std)
            values += one(mean)

        return self._drawn("standard_normal", out, size, dtype, purpose, scale)

    def _drawn(
        self,
        method: str,
        out: np.ndarray | None,
        size: Any,
        dtype: Any,
        purpose: str,
        scale: Callable[[np.ndarray], None],
    ) -> Any:
        """What NumPy's generator draws by `method`, scaled in place.

        Every `_CHUNK` elements begin at a counter of their own, so that threads draw them: VGG-11's 133 million in
        half of the time on two threads.
        """
        key = np.array(self._take(1, purpose), np.uint64)
        values = np.empty(() if size is None else size, dtype) if out is None else out
        if not values.flags.c_contiguous:
            raise ValueError("out: expected a C-contiguous array")
        flat = values.reshape(-1)

        def draw(i: int) -> None:
            numpys = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, i]))
            part = flat[i * _CHUNK : (i + 1) * _CHUNK]
            getattr(numpys, method)(out=part, dtype=dtype)
            scale(part)

        chunks = -(-flat.size // _CHUNK)
        if chunks <= 1:
            draw(0)
        else:
            with ThreadPoolExecutor(_cpu.num_threads()) as threads:
                list(threads.map(draw, range(chunks)))
        return values if values.ndim else values[()]

    def state_dict(self) -> dict[str, Any]:
        """Seed and positions, in a form that JSON can hold."""
        with self._lock:
            return {"seed": self._seed, "offsets": dict(self._offsets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the generator that gave `state` stood.

        Raises
        ------
        ValueError
            If `state` is no such state.
        """
        try:
            seed = int(state["seed"]) & _MASK
            offsets = {str(purpose): int(offset) for purpose, offset in state["offsets"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"state: expected the keys seed and offsets, got {state!r}") from error
        if any(offset < 0 for offset in offsets.values()):
            raise ValueError(f"state: offsets must not be negative, got {offsets}")
        with self._lock:
            self._seed, self._offsets = seed, offsets


_default = Generator(0)


def default_generator() -> Generator:
    """The generator that layers, initialisers and loaders draw from when they are given none."""
    return _default


def manual_seed(seed: int) -> Generator:
    """Start the default generator again from `seed`; returns it.

    Examples
    --------
    >>> manual_seed(3)
    Generator(3)
    """
    _default.manual_seed(seed)
    return _default
