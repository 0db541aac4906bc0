"""The one-cycle schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from brasa.optim.optimizer import Optimizer

from .base import LRScheduler, per_group, positive

__all__ = ["OneCycleLR"]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


_ANNEAL = {"cos": _cosine, "linear": _line}


class OneCycleLR(LRScheduler):
    """Rise to `max_lr`, then fall far below the start, once (Smith and Topin, 2017).

    A trainer steps it after every batch. The momentum (Adam's first beta) goes the other way.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates and momenta change.
    max_lr : float or list of float
        The top, for all groups or for each.
    total_steps : int, optional
        Length of the cycle in batches; or give `epochs` and `steps_per_epoch`.
    epochs, steps_per_epoch : int, optional
        Their product is the length.
    pct_start : float, default 0.3
        Share of the cycle that rises.
    anneal_strategy : {"cos", "linear"}
        Shape of both slopes.
    cycle_momentum : bool, default True
        Whether the momentum changes too.
    base_momentum, max_momentum : float, default 0.85 and 0.95
        Momentum at the top and at both ends.
    div_factor : float, default 25
        The first learning rate is ``max_lr / div_factor``.
    final_div_factor : float, default 1e4
        The last one is the first divided by this.
    three_phase : bool, default False
        Fall back to the first learning rate as fast as it rose, then to the last.

    Raises
    ------
    ValueError
        No length is given, or a momentum is to change in an optimiser that has none; from `step`,
        the cycle is over.
    """

    interval = "batch"

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("total_steps, or epochs and steps_per_epoch, must be given")
            total_steps = positive("epochs", epochs) * positive("steps_per_epoch", steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start must lie in [0, 1], got {pct_start}")
        if anneal_strategy not in _ANNEAL:
            raise ValueError(f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        self.total_steps = positive("total_steps", total_steps)
        self.anneal_strategy = anneal_strategy
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        self.max_lrs = per_group("max_lr", max_lr, len(optimizer.param_groups))
        self.momenta = (max_momentum, base_momentum) if cycle_momentum else None
        if cycle_momentum and not _has_momentum(optimizer):
            raise ValueError("cycle_momentum needs an optimiser with momentum or betas")
        self._phases = self._make_phases(pct_start, three_phase)
        for group, top in zip(optimizer.param_groups, self.max_lrs, strict=True):
            group["initial_lr"] = top / div_factor
        super().__init__(optimizer)

    def _make_phases(self, pct_start: float, three_phase: bool) -> list[tuple[float, str, str]]:
        """(last step, value at its beginning, value at its end) of each slope."""
        top, end = pct_start * self.total_steps - 1, self.total_steps - 1
        if three_phase:
            back = 2 * pct_start * self.total_steps - 2
            return [(top, "low", "high"), (back, "high", "low"), (end, "low", "last")]
        return [(top, "low", "high"), (end, "high", "last")]

    def step(self) -> None:
        """Go on by one batch."""
        # One more step than batches: a trainer steps after the last batch, too.
        if self.last_epoch >= self.total_steps:
            raise ValueError(f"the cycle of {self.total_steps} steps is over")
        super().step()

    def _write(self) -> None:
        share, first, second = self._position()
        anneal = _ANNEAL[self.anneal_strategy]
        for group, top in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            low = top / self.div_factor
            level = {"low": low, "high": top, "last": low / self.final_div_factor}
            group["lr"] = anneal(level[first], level[second], share)
            if self.momenta is not None:
                slow, fast = self.momenta
                level = {"low": slow, "high": fast, "last": slow}
                _set_momentum(group, anneal(level[first], level[second], share))

    def _position(self) -> tuple[float, str, str]:
        """How far along which slope the present step is."""
        step = min(self.last_epoch, self.total_steps - 1)
        begin = 0.0
        for last, first, second in self._phases:
            if step <= last or last == self._phases[-1][0]:
                length = last - begin
                return (step - begin) / length if length > 0 else 1.0, first, second
            begin = last
        raise AssertionError("the last phase ends at the last step")


def _has_momentum(optimizer: Optimizer) -> bool:
    return all("betas" in group or group.get("momentum") for group in optimizer.param_groups)


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, group["betas"][1])
    else:
        group["momentum"] = value
