"""LeNet-5 with rectifiers and max pooling."""

from __future__ import annotations

from brasa import nn

__all__ = ["lenet"]


def lenet(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Return LeNet-5 in its modern form: 61,706 parameters.

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86 (1998); with ReLU for the sigmoids and max pooling for the trained
    subsampling.

    Parameters
    ----------
    num_classes : int, default: 10
        Number of outputs.
    in_channels : int, default: 1
        1 for grey, 3 for colour images.

    Returns
    -------
    Sequential
        Input (N, in_channels, 28, 28), output logits (N, num_classes).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import models
    >>> models.lenet()(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
