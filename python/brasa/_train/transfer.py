"""Batches on their way to a GPU, while it computes on the ones before.

Host arrays are copied to pinned memory and from there, on a stream of their own, into one of two sets of
device arrays. Events keep the order: a batch is computed on after its copy, and a copy overwrites what has
been computed on. The host waits where it would be more than two batches ahead, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from brasa._backend import namespace

__all__ = ["copied_ahead"]

_SLOTS = 2
_ALIGNMENT = 256  # of arrays in a slot's memory


class _Slot:
    """Memory for one batch, pinned on the host and on the device, which grows with the batches."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._host = np.empty(0, np.uint8)
        self._device: Any = None
        self._used: Any = None  # event: what computes on the last batch is queued before it
        self._copied: Any = None

    def load(self, arrays: list[np.ndarray], stream: Any) -> list[Any]:
        """Start copying the arrays; returns those that will hold them on the device."""
        if self._copied is not None:
            self._copied.synchronize()  # or the pinned bytes would change under the last copy
        if self._used is not None:
            stream.wait_event(self._used)
        offsets = np.cumsum([0] + [-(-a.nbytes // _ALIGNMENT) * _ALIGNMENT for a in arrays])
        self._reserve(int(offsets[-1]), stream)
        loaded = []
        for array, offset in zip(arrays, offsets, strict=False):
            part = slice(int(offset), int(offset) + array.nbytes)
            staged = self._host[part].view(array.dtype).reshape(array.shape)
            staged[...] = array
            to = self._device[part].view(array.dtype).reshape(array.shape)
            to.set(staged, stream)
            loaded.append(to)
        self._copied = stream.record()
        return loaded

    def arrive(self) -> None:
        """Let the current stream go on after the copy."""
        self._xp.cuda.get_current_stream().wait_event(self._copied)

    def release(self) -> None:
        """All that computes on the batch is queued."""
        self._used = self._xp.cuda.get_current_stream().record()

    def _reserve(self, nbytes: int, stream: Any) -> None:
        if nbytes <= self._host.size:
            return
        self._host = np.frombuffer(self._xp.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)
        self._device = self._xp.empty(nbytes, np.uint8)
        # It may be memory that something queued on the current stream still reads.
        stream.wait_event(self._xp.cuda.get_current_stream().record())


def copied_ahead(
    batches: Iterable[tuple[Any, Any]], prepare: Callable[[Any], Any], like: Any, position: Callable[[], Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """(x, y, position) of every batch, on the device of `like`; the next one is copied meanwhile.

    Parameters
    ----------
    batches : iterable of (x, y)
        Arrays; x may be a tuple of several.
    prepare : callable
        Makes the array to be copied of each of them, on the host.
    like : array
        On a GPU.
    position : callable
        Called when a batch was taken: where the iterable stands behind it.

    Notes
    -----
    A batch's arrays are overwritten when the one after the next is taken.
    """
    xp = namespace(like)
    stream = xp.cuda.Stream(non_blocking=True)
    slots = [_Slot(xp) for _ in range(_SLOTS)]
    waiting: tuple[_Slot, Any, Any, Any] | None = None
    for number, (x, y) in enumerate(batches):
        slot = slots[number % _SLOTS]
        taken = (slot, *_start(slot, x, y, prepare, stream), position())
        if waiting is not None:
            yield from _handed_out(waiting)
        waiting = taken
    if waiting is not None:
        yield from _handed_out(waiting)


def _start(slot: _Slot, x: Any, y: Any, prepare: Callable[[Any], Any], stream: Any) -> tuple[Any, Any]:
    """Start the copies of a batch; what is on the device already stays as it is."""
    several = isinstance(x, tuple | list)
    parts = [prepare(part) for part in ([*x, y] if several else [x, y])]
    on_host = [i for i, part in enumerate(parts) if type(part) is np.ndarray]
    for i, array in zip(on_host, slot.load([parts[i] for i in on_host], stream), strict=True):
        parts[i] = array
    return (tuple(parts[:-1]) if several else parts[0]), parts[-1]


def _handed_out(batch: tuple[_Slot, Any, Any, Any]) -> Iterator[tuple[Any, Any, Any]]:
    slot, x, y, position = batch
    slot.arrive()
    yield x, y, position
    slot.release()
