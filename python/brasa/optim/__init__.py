"""Optimisers and learning-rate schedules, with torch.optim's names, arguments and defaults.

>>> import numpy as np
>>> import brasa as br
>>> from brasa import optim
>>> weight = br.Tensor(np.ones(3, np.float32), requires_grad=True)
>>> optimizer = optim.SGD([weight], lr=0.5)
>>> schedule = optim.StepLR(optimizer, step_size=10)
>>> (weight * weight).sum().backward()
>>> optimizer.step()
>>> weight.numpy()
array([0., 0., 0.], dtype=float32)
"""

from __future__ import annotations

from . import lr_scheduler
from .adam import Adam, AdamW
from .adaptive import Adadelta, Adagrad, RMSprop
from .lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from .optimizer import Optimizer
from .sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "StepLR",
    "lr_scheduler",
]
