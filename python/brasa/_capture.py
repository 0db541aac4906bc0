"""What a captured step still takes from the host.

A CUDA graph repeats launches with the arguments that they were captured with. Some of those change from step
to step: where dropout's random numbers begin, an optimiser's learning rate and its count of steps. While a
graph is captured, whoever has such a number asks the `Recording` for a place in device memory, hands the
kernel that place, and says how the number is found again. Every replay asks for all numbers, in the order of
the capture, and writes them in front of the graph: as the step would have, had it been run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np

_recording: ContextVar[Recording | None] = ContextVar("brasa_recording", default=None)
_collected: ContextVar[list[Any] | None] = ContextVar("brasa_collected", default=None)

current = _recording.get
collected = _collected.get


class StaleCapture(RuntimeError):
    """What was captured is no longer what a step would do."""


class _Place:
    """Some words of a block, and what finds their values at a replay (None: they stay as they are)."""

    __slots__ = ("again", "host")

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self.again: Callable[[], Sequence[Any]] | None = None


class Guard:
    """Lets the device leave out an optimiser's captured steps, without the host knowing.

    The numbers of a step depend on how many were made before. So each replay is sent those for every count
    that there may be, as rows, and the kernels choose.

    Attributes
    ----------
    flags : device array of int32, shape (2,)
        Whether to leave out this step, and how many were left out since the host looked.
    rows : int
        Most numbers of a step that a replay is sent.
    unknown : int
        Replays since the host looked: below `rows` when one begins.
    states : list of dict
        Whose ``"step"`` the host has counted as if no step were left out.
    """

    __slots__ = ("flags", "rows", "states", "unknown")

    def __init__(self, flags: Any, rows: int) -> None:
        self.flags, self.rows, self.unknown = flags, rows, 0
        self.states: list[dict[str, Any]] = []


class Recording:
    """The numbers of one graph, in device memory of the kind that `backend` has.

    Parameters
    ----------
    backend : Backend
        Of the graph's arrays.
    caller : stream
        What the graph is launched on.

    Attributes
    ----------
    guard : Guard or None
        What the optimiser steps that are captured now obey.
    owners : dict
        What belongs to this graph alone, by the identity of its owner.
    """

    def __init__(self, backend: Any, caller: Any) -> None:
        self.backend, self._caller = backend, caller
        self.guard: Guard | None = None
        self.owners: dict[int, Any] = {}
        self._size = backend.kernels._MOST_WORDS  # what one launch can write
        self._blocks: list[tuple[np.ndarray, Any]] = []  # on the host, on the device
        self._used = 0
        self._places: list[_Place] = []
        self._repeats: list[Callable[[], None]] = []
        self._beginnings: list[Callable[[], None]] = []
        self._endings: list[Callable[[], None]] = []
        self._add_block()

    def _add_block(self) -> None:
        self._blocks.append((np.zeros(self._size, np.int64), self.lasting(self._size)))
        self._used = 0

    def lasting(self, words: int) -> Any:
        """Device memory of so many 64-bit words that is this graph's from one replay to the next.

        A pool hands out, in the order of a stream, what the capture has freed before, and every replay writes there
        again: so it is allocated outside.
        """
        with self.outside():
            return self.backend.empty((words,), np.dtype(np.int64), False)

    def reserve(self, values: Sequence[Any], dtype: Any, rows: int = 1) -> Any:
        """A device array of `dtype` (64 bits) that holds `values` at the first replay, the first of its rows."""
        size = rows * len(values)
        if self._used + size > self._size:
            self._add_block()
        host, device = self._blocks[-1]
        part = slice(self._used, self._used + size)
        self._used = part.stop
        place = _Place(host[part].view(dtype))
        place.host[: len(values)] = values
        self._places.append(place)
        return device[part].view(dtype)

    def renew(self, again: Callable[[], Sequence[Any]]) -> None:
        """Let later replays fill what was reserved last with ``again()``."""
        self._places[-1].again = again

    def repeat(self, on_host: Callable[[], None]) -> None:
        """Let later replays call ``on_host()``, for what a step counts on the host."""
        self._repeats.append(on_host)

    def begin(self, on_host: Callable[[], None]) -> None:
        """Let later replays call ``on_host()`` before they ask for numbers."""
        self._beginnings.append(on_host)

    def at_end(self, on_host: Callable[[], None]) -> None:
        """Call ``on_host()`` when the whole step was captured."""
        self._endings.append(on_host)

    def outside(self) -> AbstractContextManager[Any]:
        """Within the block work is done at once, and not repeated."""
        return self._caller

    def end(self) -> None:
        """The step was captured."""
        for on_host in self._endings:
            on_host()

    def advance(self) -> None:
        """Find the numbers of the next step."""
        for on_host in self._beginnings:
            on_host()
        for place in self._places:
            if place.again is not None:
                numbers = place.again()
                place.host[: len(numbers)] = numbers
        for on_host in self._repeats:  # behind what may refuse the step
            on_host()

    def store(self) -> None:
        """Write the numbers to the device, in stream order."""
        for i, (host, device) in enumerate(self._blocks):
            used = self._used if i == len(self._blocks) - 1 else self._size
            if used:
                self.backend.kernels._store_words(host[:used], device)


@contextmanager
def record(recording: Recording) -> Iterator[None]:
    """Within the block, in this thread or task, a step is captured."""
    token = _recording.set(recording)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def collect(numbers: list[Any]) -> Iterator[None]:
    """Within the block optimiser steps append (numbers, choices) to the list, and do nothing else."""
    token = _collected.set(numbers)
    try:
        yield
    finally:
        _collected.reset(token)


def outside() -> AbstractContextManager[Any]:
    """Within the block, work is no part of what is captured: it makes what lasts from replay to replay."""
    recording = current()
    return nullcontext() if recording is None else recording.outside()


def forbid_host(array: Any) -> None:
    """A captured copy from the host would read memory that is gone at the replay."""
    if current() is not None and type(array) is np.ndarray:
        raise RuntimeError(
            f"a step that is captured cannot copy from the host, and a NumPy array of shape {array.shape} "
            "is on its way to the device; make it before, or pass it to the graph"
        )
