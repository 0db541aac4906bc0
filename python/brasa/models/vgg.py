"""The VGG networks."""

from __future__ import annotations

from typing import Any

from brasa import nn

__all__ = ["VGG", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]

_WIDTHS = (64, 128, 256, 512, 512)
# Convolutions in each of the five stages, by configuration of the paper's table 1.
_A, _B, _D, _E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by pooling, and three linear layers.

    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
    arXiv:1409.1556 (2014).

    Parameters
    ----------
    depths : tuple of int
        Number of convolutions in each of the five stages.
    batch_norm : bool, default: False
        Whether each convolution is followed by batch normalisation.
    num_classes : int, default: 1000
        Number of outputs.
    dropout : float, default: 0.5
        Probability with which units of the two hidden linear layers are dropped.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        batch_norm: bool = False,
        num_classes: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*_stages(depths, batch_norm))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:
        """Return logits (N, num_classes) for images ``x`` (N, 3, H, W)."""
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def _stages(depths: tuple[int, ...], batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in zip(_WIDTHS, depths, strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
    else:
        return
    nn.init.zeros_(module.bias)


def vgg11(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-11 (configuration A) without batch normalisation: 132,863,336 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_A, False, num_classes, dropout)


def vgg11_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-11 (configuration A) with batch normalisation: 132,868,840 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_A, True, num_classes, dropout)


def vgg13(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-13 (configuration B) without batch normalisation: 133,047,848 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_B, False, num_classes, dropout)


def vgg13_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-13 (configuration B) with batch normalisation: 133,053,736 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_B, True, num_classes, dropout)


def vgg16(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-16 (configuration D) without batch normalisation: 138,357,544 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_D, False, num_classes, dropout)


def vgg16_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-16 (configuration D) with batch normalisation: 138,365,992 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_D, True, num_classes, dropout)


def vgg19(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-19 (configuration E) without batch normalisation: 143,667,240 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_E, False, num_classes, dropout)


def vgg19_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Return VGG-19 (configuration E) with batch normalisation: 143,678,248 parameters.

    See ``VGG`` for the paper and the arguments. Input (N, 3, 224, 224), output logits (N, num_classes).
    """
    return VGG(_E, True, num_classes, dropout)
