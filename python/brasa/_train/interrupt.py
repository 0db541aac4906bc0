"""Ctrl-C that is obeyed between two batches."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupt"]

_log = logging.getLogger("brasa")


class Interrupt:
    """While entered, a first SIGINT sets `requested`; a second one raises KeyboardInterrupt.

    Outside the main thread, where Python runs no signal handlers, and where SIGINT is ignored or
    is none of Python's, nothing is installed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            old = signal.getsignal(signal.SIGINT)
            if callable(old):
                self._old = old
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._restore()
            raise KeyboardInterrupt
        self.requested = True
        _log.info("interrupted: stopping after this batch")

    def _restore(self) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            self._old = None
