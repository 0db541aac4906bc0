"""A `GradScaler` in a captured step: its factor lives on the device, which the host asks now and then.

While a step is captured nothing is read. A flag on the device tells the optimiser's kernels to leave out a step,
and `update_scale` finds the next factor there. How many steps were made the host does not know, so every replay
brings the optimiser's numbers for each count that there may be (`_capture.Guard`). The host waits for the device
and learns what happened after `_MOST_REPLAYS` of them, or when somebody asks for the factor, for what was
skipped or for an optimiser's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from brasa import _backend, _capture
from brasa.optim import Optimizer

if TYPE_CHECKING:
    from brasa._scaler import GradScaler

__all__ = ["Check", "OnDevice"]

# Between two looks at the device. Each more costs a group of Adam's 3 us of Python in the replays that follow (16 on
# average), a look the time that the device waits for its next step.
_MOST_REPLAYS = 8
_MOST_OPTIMIZERS = 8
_STATE = 5  # numbers of a scaler


@dataclass(slots=True)
class Check:
    """What is known of an optimiser's gradients since the last `update`."""

    flags: list[Any] = field(default_factory=list)  # numbers on their devices: not 0 after infinity or NaN
    unscaled: bool = False
    stepped: bool = False
    guard: _capture.Guard | None = None  # of a captured step

    def found(self) -> bool:
        """Whether a gradient is infinite or NaN; waits for the device."""
        return any(bool(flag[0]) for flag in self.flags)


class OnDevice:
    """What one graph has of a scaler.

    Attributes
    ----------
    state : device array of float64
        The scaler's numbers; the factor is the first.
    checks : dict of int to Check
        By the identity of their optimisers, those since the last captured `update`.
    """

    def __init__(self, scaler: GradScaler, recording: _capture.Recording) -> None:
        self._scaler = scaler
        self._kernels = recording.backend.kernels
        self._on_host = np.zeros(_STATE + _MOST_OPTIMIZERS, np.int64)
        self._words = recording.lasting(self._on_host.size)
        self.state = self._words[:_STATE].view(np.float64)
        self._flags = self._words[_STATE:].view(np.int32).reshape(-1, 2)
        self.checks: dict[int, Check] = {}
        self._steps: list[tuple[Optimizer, Check, _capture.Guard]] = []
        self._unknown = 0  # replays since the host looked
        with recording.outside():
            self._write()
        recording.begin(self._begin)
        recording.repeat(self._count)
        recording.at_end(self._end)

    # --- while the step is captured ---------------------------------------------------------------

    def check_of(self, optimizer: Optimizer) -> Check:
        """The optimiser's check, made when it is first asked for."""
        check = self.checks.get(id(optimizer))
        if check is not None:
            return check
        if any(known is optimizer for known, *_ in self._steps) or len(self._steps) == _MOST_OPTIMIZERS:
            raise RuntimeError(
                f"graph: with a GradScaler a captured step holds one update of each of up to {_MOST_OPTIMIZERS} "
                "optimizers"
            )
        flags = self._flags[len(self._steps)]
        guard = _capture.Guard(flags, _MOST_REPLAYS)
        check = self.checks[id(optimizer)] = Check(flags=[flags[:1]], guard=guard)
        self._steps.append((optimizer, check, guard))
        return check

    def update(self) -> None:
        """Change the factor by what the checks found."""
        self._kernels.update_scale(self.state, self._flags[: len(self._steps)])
        self.checks = {}

    def _end(self) -> None:
        if self.checks:
            raise RuntimeError(
                "graph: unscale_() or step() of a GradScaler was captured without update(); "
                "all of them belong to one graph, or none"
            )
        self._follow()
        self._count()

    # --- replays ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Before the numbers of a replay are found."""
        if self._scaler._ahead is not self or self._unknown == _MOST_REPLAYS:
            self._scaler._catch_up()
            self._follow()
            self._write()
            self._unknown = 0
        for *_, guard in self._steps:
            guard.unknown = self._unknown

    def _follow(self) -> None:
        """Let the optimisers ask the scaler how many steps they made."""
        for optimizer, *_ in self._steps:
            optimizer._catch_up()
            optimizer._catch_up = self._scaler._catch_up

    def _count(self) -> None:
        """A replay begins, whose outcome the host does not know."""
        if self._steps:
            self._scaler._ahead = self
            self._unknown += 1

    def _write(self) -> None:
        """Let the device go on from where the host stands."""
        self._on_host[:_STATE] = self._scaler._state.view(np.int64)
        self._kernels._store_words(self._on_host, self._words)

    def read(self) -> None:
        """Let the host stand where the device does; waits for it."""
        words = _backend.to_numpy(self._words)
        self._scaler._state[:] = words[:_STATE].view(np.float64)
        skipped = words[_STATE:].view(np.int32)[1::2]
        for (_, check, guard), count in zip(self._steps, skipped.tolist(), strict=False):
            for state in guard.states:
                state["step"] -= count
            self._scaler._skipped += count * check.stepped
