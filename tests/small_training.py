"""A small model and data set that the training tests share."""

from __future__ import annotations

import numpy as np

import brasa as br
from brasa import nn, optim


def samples(n=96, seed=0):
    """Points of three classes that a small network learns."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centres = rng.standard_normal((3, 4)) * 2
    x = centres[y] + rng.standard_normal((n, 4))
    return x.astype(np.float32), y


def model(seed=0):
    """A network with a layer that draws random numbers."""
    br.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def noise(x, y, rng):
    """A transform that draws random numbers."""
    return x + 0.1 * rng.standard_normal(x.shape, dtype=x.dtype), y


def trainer(net=None, *, lr=0.02, **options):
    """A silent trainer of `net` by Adam."""
    net = model() if net is None else net
    options = {"progress": False, **options}
    return br.Trainer(net, optim.Adam(net.parameters(), lr=lr), nn.CrossEntropyLoss(), **options)


def weights(net):
    """All parameters as bytes."""
    return b"".join(p.numpy().tobytes() for p in net.parameters())
