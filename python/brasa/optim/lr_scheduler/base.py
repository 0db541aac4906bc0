"""What schedules share: when they are stepped, where they write, and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brasa.optim.optimizer import Optimizer

__all__ = ["LRScheduler", "per_group", "positive"]


class LRScheduler:
    """Base of the schedules that depend on the number of steps alone.

    A subclass defines ``factor(step)``, by which the first learning rate of each group is
    multiplied, or overrides `_rates`.

    Parameters
    ----------
    optimizer : Optimizer
        Whose groups are written to, at once and by each `step`.

    Attributes
    ----------
    last_epoch : int
        How often `step` was called.
    base_lrs : list of float
        The groups' learning rates at the beginning.
    interval : str
        "epoch" or "batch": when a trainer calls `step`.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> from brasa import optim
    >>> optimizer = optim.SGD([br.Tensor(np.zeros(1), requires_grad=True)], lr=1.0)
    >>> schedule = optim.StepLR(optimizer, step_size=2, gamma=0.5)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    interval = "epoch"

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = 0
        self._write()

    def factor(self, step: int) -> float:
        """What the first learning rate is multiplied by after `step` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Go on by one step and write the new learning rates."""
        self.last_epoch += 1
        self._write()

    def get_last_lr(self) -> list[float]:
        """Return the present learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule stands, as plain numbers."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to where another schedule of the same kind and options stood."""
        base_lrs = [float(lr) for lr in state_dict["base_lrs"]]
        if len(base_lrs) != len(self.optimizer.param_groups):
            raise ValueError(f"state_dict: {len(base_lrs)} groups, the optimiser has {len(self.base_lrs)}")
        self.base_lrs = base_lrs
        self.last_epoch = int(state_dict["last_epoch"])
        self._write()

    def _rates(self) -> list[float]:
        factor = self.factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]

    def _write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self._rates(), strict=False):
            group["lr"] = lr


def positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def per_group(name: str, value: float | Sequence[float], groups: int) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [float(value)] * groups
    if len(values) != groups:
        raise ValueError(f"{name}: {len(values)} values for {groups} groups")
    return values
