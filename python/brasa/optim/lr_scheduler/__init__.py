"""Learning rates that change while training, with torch's names and arguments.

A schedule writes ``"lr"`` (and, for one-cycle, the momentum) into its optimiser's groups. Every
value is computed from the step's number alone, not from the value before, so that nothing drifts
and a schedule can be put at any step; only `ReduceLROnPlateau` has a memory.

`interval` says how often a trainer calls `step`: "epoch" or "batch". Set it on a schedule to have
it the other way.
"""

from __future__ import annotations

from .base import LRScheduler
from .one_cycle import OneCycleLR
from .plateau import ReduceLROnPlateau
from .simple import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    StepLR,
)

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "StepLR",
]
