"""Streams, events, graphs and memory pools of the emulated device: what `cupy.cuda` is to a GPU.

A stream does its work at once, except that

* one that captures keeps it, launches of kernels and the long tail's NumPy functions alike, and a `Graph` does
  it again, with the same arguments and into the same arrays;
* one that copies (`EmulatedArray.set` with a stream) does so as late as CUDA allows: when another stream waits
  for an event recorded behind the copy, or the host does. Whoever forgets to wait finds NaN.

Kernels of both kinds run in the order in which they were launched.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import defaultdict
from contextlib import contextmanager

import numpy as np

kernels = None  # set by `emulated`
_numbers = itertools.count(1)
_local = threading.local()


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of CUDA's runtime."""


def refuse_while_capturing(operation: str) -> None:
    """Reading a value waits for the device, which a capture does not allow."""
    if get_current_stream().is_capturing():
        get_current_stream()._host = None
        raise CUDARuntimeError(
            f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing ({operation})"
        )


class Event:
    """A place in a stream's work."""

    def __init__(self, *_, **__) -> None:
        self.stream, self.position = None, 0

    def record(self, stream=None) -> Event:
        self.stream = stream or get_current_stream()
        self.position = len(self.stream._pending)
        return self

    def synchronize(self) -> None:
        refuse_while_capturing("cudaEventSynchronize")
        self.reach()

    def reach(self) -> None:
        """Let what was in the stream before the event be done."""
        if self.stream is not None:
            for copy in self.stream._pending[: self.position]:
                copy()

    @property
    def done(self) -> bool:
        return self.stream is None or all(copy.done for copy in self.stream._pending[: self.position])


class _Copy:
    """A copy that has not been made."""

    def __init__(self, target, source) -> None:
        self.target, self.source, self.done = target, source, False

    def __call__(self) -> None:
        if not self.done:
            np.ndarray.__setitem__(self.target, ..., self.source)
            self.done = True


class Stream:
    """Work in order."""

    def __init__(self, null=False, non_blocking=False) -> None:
        self.ptr = 0 if null else next(_numbers)
        self.non_blocking = non_blocking
        self._pending = []
        self._host = None  # while it captures: (launches before it, the function)

    def __enter__(self) -> Stream:
        _stack().append(self)
        return self

    def __exit__(self, *_) -> None:
        _stack().pop()

    def record(self, event=None) -> Event:
        return (event or Event()).record(self)

    def wait_event(self, event) -> None:
        event.reach()

    def synchronize(self) -> None:
        refuse_while_capturing("cudaStreamSynchronize")
        self.record().reach()

    def copy_later(self, target, source) -> None:
        """A copy from pinned memory: made when somebody waits for it."""
        self._pending = [copy for copy in self._pending if not copy.done]
        self._pending.append(_Copy(target, source))

    def is_capturing(self) -> bool:
        return self._host is not None

    def begin_capture(self, mode=None) -> None:
        kernels._begin_capture(self.ptr)
        self._host = []

    def end_capture(self) -> Graph:
        size = kernels._captured(self.ptr)
        number, host, self._host = kernels._end_capture(self.ptr), self._host, None
        if host is None:
            kernels._forget(number)
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: the capture was invalidated")
        return Graph(number, host, size)

    def keep(self, function) -> None:
        """Do this at every replay, between the launches that it stands between now."""
        self._host.append((kernels._captured(self.ptr), function))


class Graph:
    """Captured work."""

    def __init__(self, number, host, size) -> None:
        self._number, self._host, self._size = number, host, size

    def launch(self, stream=None) -> None:
        done = 0
        for place, function in self._host:
            kernels._replay(self._number, done, place)
            done = place
            function()
        kernels._replay(self._number, done, self._size)

    def __del__(self) -> None:
        kernels._forget(self._number)


class Memory:
    """Emulated device memory, from a pool (or none) that takes it back."""

    def __init__(self, nbytes, pool=None) -> None:
        self.nbytes, self.pool = nbytes, pool
        self._free = pool.free[get_current_stream().ptr, nbytes] if pool is not None else []
        self.ptr = self._free.pop() if self._free else kernels.alloc(max(nbytes, 1))

    def __del__(self) -> None:
        if self.pool is not None:
            self._free.append(self.ptr)
        else:
            kernels.free(self.ptr)

    @property
    def __array_interface__(self):
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.ptr, False), "version": 3}


class MemoryPool:
    """Keeps what it has handed out, so that a captured address stays valid; as CuPy's, a stream's for that stream."""

    def __init__(self, allocator=None) -> None:
        self.free = defaultdict(list)

    def malloc(self, nbytes) -> Memory:
        return Memory(nbytes, self)

    def __del__(self) -> None:
        for blocks in self.free.values():
            for ptr in blocks:
                kernels.free(ptr)


def alloc_pinned_memory(nbytes):
    """Host memory that copies are made from."""
    return bytearray(nbytes)


@contextmanager
def using_allocator(malloc):
    before = getattr(_local, "malloc", Memory)
    _local.malloc = malloc
    try:
        yield
    finally:
        _local.malloc = before


def alloc(nbytes):
    """Memory from the allocator in use in this thread."""
    return getattr(_local, "malloc", Memory)(nbytes)


def _stack():
    if not hasattr(_local, "streams"):
        _local.streams = [Stream.null]
    return _local.streams


def get_current_stream() -> Stream:
    return _stack()[-1]


Stream.null = Stream(null=True)


# ---- the long tail under a capture ---------------------------------------------------------------------


def device_call(function, *args, **kwargs):
    """``function(*args, **kwargs)``, a NumPy function of device arrays; captured, where the stream captures.

    Nothing is computed then: what is written in place stays as it was, and a new array holds what happened
    to be in memory.
    """
    stream = get_current_stream()
    if not stream.is_capturing() or getattr(_local, "inside", False):
        return function(*args, **kwargs)
    out = kwargs.get("out")
    if out is not None:
        stream.keep(lambda: function(*args, **kwargs))
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    _local.inside = True
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(*args, **kwargs)
    finally:
        _local.inside = False
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    for part in result if isinstance(result, (tuple, list)) else [result]:
        if isinstance(part, np.ndarray) and any(np.may_share_memory(part, a) for a in arrays):
            return result  # a view needs nothing at the replay
    stream.keep(lambda: _again(function, args, kwargs, result))
    return result


def _again(function, args, kwargs, result) -> None:
    """Compute what was captured, into the array that was returned then."""
    found = function(*args, **kwargs)
    several = isinstance(result, (tuple, list))
    for old, new in zip(result if several else [result], found if several else [found]):
        if isinstance(old, np.ndarray):
            np.ndarray.__setitem__(old, ..., new)


def device_change(function, *args):
    """``function(*args)``, which changes its first argument and returns nothing."""
    stream = get_current_stream()
    if stream.is_capturing() and not getattr(_local, "inside", False):
        stream.keep(lambda: function(*args))
    else:
        function(*args)
