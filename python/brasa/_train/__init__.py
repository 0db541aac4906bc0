"""Training: the `Trainer`, its history, metrics and callbacks."""

from __future__ import annotations

from . import callbacks, metrics
from .history import History
from .trainer import Trainer

__all__ = ["History", "Trainer", "callbacks", "metrics"]
