"""What is shown while training: a bar on a terminal, one line per epoch everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Progress", "describe"]

# Reading the running means makes a device wait, so the bar does it a few times a second.
_SECONDS_BETWEEN_READINGS = 0.3


def describe(measures: Mapping[str, float]) -> str:
    """Write measures in one line, such as ``loss 0.1234  accuracy 0.9650``."""
    return "  ".join(f"{name} {_number(value)}" for name, value in measures.items())


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


class Progress:
    """Show the epochs on stderr.

    Parameters
    ----------
    epochs : int
        The number of the last epoch.
    visible : bool
        Whether anything is shown.
    """

    def __init__(self, epochs: int, *, visible: bool) -> None:
        self._epochs = epochs
        self._visible = visible
        self._bar: Any = None
        self._start = self._read_at = 0.0
        self._title = ""

    def begin(self, epoch: int, batches: int | None, done: int) -> None:
        """Start epoch number `epoch`, of whose `batches` batches some are `done` already."""
        self._title = f"epoch {epoch:{len(str(self._epochs))}}/{self._epochs}"
        self._start = self._read_at = time.monotonic()
        if self._visible and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=batches, initial=done, desc=self._title, leave=False, dynamic_ncols=True)

    def advance(self, measures: Callable[[], Mapping[str, float]]) -> None:
        """Count a batch; `measures` is called only when the bar's text is due."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._read_at > _SECONDS_BETWEEN_READINGS:
            self._read_at = now
            self._bar.set_postfix_str(describe(measures()), refresh=False)
        self._bar.update()

    def end(self, measures: Mapping[str, float]) -> None:
        """Finish the epoch with its line."""
        self.close()
        if self._visible:
            seconds = time.monotonic() - self._start
            line = f"{self._title}  {describe(measures)}  {seconds:.1f} s"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
