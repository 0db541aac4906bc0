"""AlexNet."""

from __future__ import annotations

from typing import Any

from brasa import nn

__all__ = ["AlexNet", "alexnet"]


class AlexNet(nn.Module):
    """AlexNet in its one-column form; see ``alexnet``.

    Parameters
    ----------
    num_classes : int, default: 1000
        Number of outputs.
    dropout : float, default: 0.5
        Probability with which units before the two hidden linear layers are dropped.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Any) -> Any:
        """Return logits (N, num_classes) for images ``x`` (N, 3, H, W)."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """Return AlexNet: 61,100,840 parameters.

    A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997
    (2014), the one-column form of the network of 2012.

    Parameters
    ----------
    num_classes : int, default: 1000
        Number of outputs.
    dropout : float, default: 0.5
        Probability with which units before the two hidden linear layers are dropped.

    Returns
    -------
    AlexNet
        Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return AlexNet(num_classes, dropout)
