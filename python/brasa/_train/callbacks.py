"""What happens beside the training: stopping early, saving, recording.

A callback overrides the methods whose moment it wants. At the end of an epoch all callbacks first
see the measures (`on_epoch_end`, where they decide and may add measures of their own), and then,
when the schedule and the history have moved on as well, all are told that the state is complete
(`after_epoch`, where it may be saved). What a callback remembers is in its `state_dict`, which is
part of a checkpoint: a resumed run stops, or saves the best, where the uninterrupted one would.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["CSVLogger", "Callback", "Checkpoint", "EarlyStopping", "LearningRateLogger"]


class Callback:
    """Base class; every method does nothing."""

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch of a `fit`."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch, or the next one of an epoch that is resumed."""

    def on_batch_end(self, trainer: Trainer) -> None:
        """After a batch; ``trainer.batch`` were done in this epoch."""

    def on_epoch_end(self, trainer: Trainer, measures: dict[str, float]) -> None:
        """After validation; `measures` go into the history and may be added to."""

    def after_epoch(self, trainer: Trainer) -> None:
        """After everything else of an epoch: what is saved now is a whole epoch."""

    def on_interrupt(self, trainer: Trainer) -> None:
        """After Ctrl-C, between two batches, before KeyboardInterrupt is raised."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, unless an error ended the `fit`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a resume, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class _Best:
    """The best value of a measure so far."""

    def __init__(self, monitor: str, mode: str | None, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", None):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {min_delta}")
        self.monitor = monitor
        self.sign = -1.0 if (mode or ("max" if "accuracy" in monitor else "min")) == "max" else 1.0
        self.min_delta = min_delta
        self.value = math.inf * self.sign

    def improves(self, measures: Mapping[str, float]) -> bool:
        """Whether the measure is better than ever, which it then is from now on."""
        if self.monitor not in measures:
            raise ValueError(f"monitor: {self.monitor!r} is none of {sorted(measures)}")
        value = measures[self.monitor]
        better = self.sign * value < self.sign * self.value - self.min_delta
        if better:
            self.value = value
        return better


class EarlyStopping(Callback):
    """Stop when a measure has not improved for some epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A measure of the history.
    patience : int, default 5
        How many epochs without improvement are tolerated.
    min_delta : float, default 0
        What an improvement has to exceed.
    mode : {"min", "max"}, optional
        Which is better; by default "max" for an accuracy and "min" for all else.

    Attributes
    ----------
    best : float
        The best value so far.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        if patience < 0:
            raise ValueError(f"patience must be at least 0, got {patience}")
        self._best = _Best(monitor, mode, min_delta)
        self.patience = patience
        self.waited = 0

    @property
    def best(self) -> float:
        """The best value so far."""
        return self._best.value

    def on_epoch_end(self, trainer: Trainer, measures: dict[str, float]) -> None:
        """Count the epochs without improvement."""
        self.waited = 0 if self._best.improves(measures) else self.waited + 1
        if self.waited > self.patience:
            trainer.stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the epochs since."""
        return {"best": self._best.value, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the best value and the epochs since."""
        self._best.value, self.waited = float(state["best"]), int(state["waited"])


class Checkpoint(Callback):
    """Save the whole state of the training to one file.

    Parameters
    ----------
    path : path-like
        The file, replaced in one step each time.
    every : int, default 1
        Save after every so many epochs, and after Ctrl-C. Not used with `monitor`.
    monitor : str, optional
        Save only when this measure of the history is better than ever.
    mode : {"min", "max"}, optional
        Which is better; by default "max" for an accuracy and "min" for all else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        monitor: str | None = None,
        mode: str | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = os.fspath(path)
        self.every = every
        self._best = None if monitor is None else _Best(monitor, mode)
        self._due = False

    def on_epoch_end(self, trainer: Trainer, measures: dict[str, float]) -> None:
        """Decide whether this epoch is to be saved."""
        if self._best is not None:
            self._due = self._best.improves(measures)
        else:
            self._due = (trainer.epoch + 1) % self.every == 0

    def after_epoch(self, trainer: Trainer) -> None:
        """Save, if it was decided."""
        if self._due:
            self._due = False
            trainer.save(self.path)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Save where the training stands, unless only the best is wanted."""
        if self._best is None:
            trainer.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {} if self._best is None else {"best": self._best.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the best value so far."""
        if self._best is not None:
            self._best.value = float(state["best"])


class LearningRateLogger(Callback):
    """Add the learning rate at the end of each epoch to the history, as ``"lr"``.

    With several groups of parameters they are ``"lr_0"``, ``"lr_1"`` ...
    """

    def on_epoch_end(self, trainer: Trainer, measures: dict[str, float]) -> None:
        """Read the learning rates."""
        groups = trainer.optimizer.param_groups
        for i, group in enumerate(groups):
            measures["lr" if len(groups) == 1 else f"lr_{i}"] = float(group["lr"])


class CSVLogger(Callback):
    """Keep the history in a CSV file that is whole after every epoch.

    Parameters
    ----------
    path : path-like
        The file, replaced in one step each time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the history so far."""
        trainer.history.to_csv(self.path)
