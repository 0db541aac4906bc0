"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from brasa import nn

__all__ = ["mlp"]


def mlp(
    sizes: Sequence[int] = (784, 512, 512, 10), dropout: float = 0.0, num_classes: int | None = None
) -> nn.Sequential:
    """Return fully connected layers with ReLU between them: 669,706 parameters in the default sizes.

    Parameters
    ----------
    sizes : sequence of int, default: (784, 512, 512, 10)
        Number of inputs, of units in each hidden layer, of outputs.
    dropout : float, default: 0.0
        Probability with which hidden units are dropped in training.
    num_classes : int, optional
        Replaces the number of outputs.

    Returns
    -------
    Sequential
        Input (N, ...) with ``sizes[0]`` elements per sample, output logits (N, sizes[-1]).

    Raises
    ------
    ValueError
        If there are fewer than two sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import models
    >>> models.mlp((12, 8, 3))(np.zeros((2, 1, 3, 4), np.float32)).shape
    (2, 3)
    """
    sizes = list(sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes: expected at least the numbers of inputs and outputs, got {tuple(sizes)}")
    if num_classes is not None:
        sizes[-1] = num_classes
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise(sizes[:-1]):
        layers += [nn.Linear(width, following), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
