"""Schedules that multiply the first learning rate by a function of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from brasa.optim.optimizer import Optimizer

from .base import LRScheduler, positive

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "StepLR",
]


class StepLR(LRScheduler):
    """Multiply the learning rate by `gamma` every `step_size` steps.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    step_size : int
        Steps between changes.
    gamma : float, default 0.1
        The factor.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = positive("step_size", step_size), gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """``gamma ** (step // step_size)``."""
        return self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """Multiply the learning rate by `gamma` at each of the given steps.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    milestones : iterable of int
        The steps; one that occurs twice counts twice.
    gamma : float, default 0.1
        The factor.
    """

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """``gamma`` to the number of milestones that were reached."""
        return self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(LRScheduler):
    """Multiply the learning rate by `gamma` at every step.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    gamma : float
        The factor.
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """``gamma ** step``."""
        return self.gamma**step


class LinearLR(LRScheduler):
    """Go from `start_factor` to `end_factor` times the learning rate in a straight line: a warm-up.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    start_factor : float, default 1/3
        Factor at step 0, above 0 and at most 1.
    end_factor : float, default 1.0
        Factor from step `total_iters` on, in [0, 1].
    total_iters : int, default 5
        Length of the line.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(f"factors must lie in (0, 1], got {start_factor} and {end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = positive("total_iters", total_iters)
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """A point on the line, or its end."""
        share = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * share


class CosineAnnealingLR(LRScheduler):
    """Follow half a cosine from the learning rate down to `eta_min`, and back up after it.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    T_max : int
        Steps from top to bottom.
    eta_min : float, default 0.0
        The lowest learning rate.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = positive("T_max", T_max), eta_min
        super().__init__(optimizer)

    def _rates(self) -> list[float]:
        share = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (lr - self.eta_min) * share for lr in self.base_lrs]


class LambdaLR(LRScheduler):
    """Multiply the learning rate by a function of the step's number.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    lr_lambda : callable, or a list of one per group
        ``lr_lambda(step) -> factor``. It is not part of the state: give it again after a resume.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
    ) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"lr_lambda: {len(self.lr_lambdas)} functions for {groups} groups")
        super().__init__(optimizer)

    def _rates(self) -> list[float]:
        functions = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [lr * float(function(self.last_epoch)) for lr, function in functions]
