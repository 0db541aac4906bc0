"""Commands of tools/gpu_check.py, which end when its time is up, with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRACE = 20  # seconds that a command has to write what it has when its time is up
QUICK = 2  # those of one that has written it, as compute-sanitizer
TIMED_OUT = 124


@dataclass
class Run:
    """Where a run reads and writes, and when it ends."""

    build: Path
    out: Path
    deadline: float = float("inf")
    pytest_arguments: tuple[str, ...] = ()
    bench_arguments: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    running: set[subprocess.Popen] = field(default_factory=set)

    def stop(self) -> None:
        """End what other threads run; nothing more begins."""
        self.deadline = 0.0
        for process in tuple(self.running):
            end(process, QUICK)

    def left(self) -> float:
        """Seconds until the time limit."""
        return self.deadline - time.monotonic()

    def command(
        self,
        arguments: Iterable[object],
        log: str,
        *,
        grace: float = GRACE,
        limit: float = float("inf"),
        **environment: str,
    ) -> int:
        """Run a command, its output in `log`; returns its status, or 124 where the time, or `limit` seconds, was up."""
        seconds = min(self.left(), limit)
        path = os.pathsep.join(
            [str(self.build / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        with (self.out / log).open("w") as file:
            process = subprocess.Popen(
                list(map(str, arguments)),
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **environment},
                start_new_session=True,  # with what it starts: compute-sanitizer's tests are its children
            )
            self.running.add(process)
            try:
                return process.wait(None if seconds == float("inf") else max(seconds, 0.1))
            except subprocess.TimeoutExpired:
                return TIMED_OUT
            finally:
                end(process, grace)
                self.running.discard(process)


def _signal(process: subprocess.Popen, number: int) -> None:
    """Tell a command and what it started, as far as they are there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end(process: subprocess.Popen, grace: float = GRACE) -> None:
    """End a command and what it started as Ctrl-C would, and by force what is there after `grace` seconds."""
    if process.poll() is not None:
        return
    _signal(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    _signal(process, signal.SIGKILL)
    process.wait()


def tail(path: Path, lines: int = 12) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
