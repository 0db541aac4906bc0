"""What tests of CUDA graphs train: batches, a small network, every optimiser."""

from __future__ import annotations

import numpy as np

import brasa as br
from brasa import nn, optim

STEPS = 6


def batches(count=STEPS, rows=8):
    rng = np.random.default_rng(5)
    return [(rng.normal(size=(rows, 4)).astype(np.float32), rng.integers(0, 3, rows)) for _ in range(count)]


def network(device, *, norm=False):
    br.manual_seed(3)
    layers = [nn.Linear(4, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(0.4)]
    net = nn.Sequential(*layers, nn.Linear(16, 3))
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = device.asarray(tensor.data)
    return net


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "plain": lambda p: optim.SGD(p, lr=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.05, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "adadelta": lambda p: optim.Adadelta(p),
}  # fmt: skip
