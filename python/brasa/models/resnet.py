"""Residual networks, for ImageNet (torchvision's names) and for CIFAR-10."""

from __future__ import annotations

from typing import Any

from brasa import nn
from brasa._shape import scatter

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ResNet",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """``relu(x + bn2(conv2(relu(bn1(conv1(x))))))`` with 3x3 convolutions.

    The last normalisation, the sum and the last ReLU are one operator.

    Parameters
    ----------
    in_channels, width : int
        Channels of the input and of the output.
    stride : int, default: 1
        Of the first convolution.
    shortcut : Module, optional
        Brings ``x`` to the shape of the sum where they differ.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width, activation="relu")
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width, activation="relu")
        self.downsample = shortcut

    def forward(self, x: Any) -> Any:
        """Return (N, width, H / stride, W / stride) for ``x`` (N, in_channels, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), identity)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, the last with four times the channels.

    Arguments are those of ``BasicBlock``. The stride is that of the 3x3 convolution ("ResNet v1.5").
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, activation="relu")
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width, activation="relu")
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width, activation="relu")
        self.downsample = shortcut

    def forward(self, x: Any) -> Any:
        """Return (N, 4 * width, H / stride, W / stride) for ``x`` (N, in_channels, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return self.bn3(self.conv3(y), identity)


class ResNet(nn.Module):
    """A 7x7 convolution, four stages of residual blocks, global average pooling and a linear layer.

    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", arXiv:1512.03385 (2015).

    Parameters
    ----------
    block : type
        ``BasicBlock`` or ``Bottleneck``.
    depths : tuple of int
        Number of blocks in each of the four stages.
    num_classes : int, default: 1000
        Number of outputs.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, activation="relu")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for i, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True)):
            stage = _projected_stage(block, channels, width, depth, stride=1 if i == 0 else 2)
            self.add_module(f"layer{i + 1}", stage)
            channels = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:
        """Return logits (N, num_classes) for images ``x`` (N, 3, H, W)."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.flatten(self.avgpool(x)))


def _projected_stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """Return a stage whose first shortcut is a 1x1 convolution where shapes differ (option B)."""
    channels = width * block.expansion
    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = block(in_channels, width, stride, shortcut)
    return nn.Sequential(first, *(block(channels, width) for _ in range(depth - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(num_classes: int = 1000) -> ResNet:
    """Return ResNet-18: 11,689,512 parameters. Input (N, 3, 224, 224), output logits (N, num_classes)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """Return ResNet-34: 21,797,672 parameters. Input (N, 3, 224, 224), output logits (N, num_classes)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """Return ResNet-50: 25,557,032 parameters. Input (N, 3, 224, 224), output logits (N, num_classes)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """Return ResNet-101: 44,549,160 parameters. Input (N, 3, 224, 224), output logits (N, num_classes)."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)


def resnet152(num_classes: int = 1000) -> ResNet:
    """Return ResNet-152: 60,192,808 parameters. Input (N, 3, 224, 224), output logits (N, num_classes)."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes)


class _Subsample(nn.Module):
    """Every second pixel, with zeros for the new channels: the paper's option A, which has no parameters."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Any) -> Any:
        x = x[:, :, :: self.stride, :: self.stride]
        n, channels, *image = x.shape
        before = self.new_channels // 2
        old = (slice(None), slice(before, before + channels))
        return scatter(x, old, (n, channels + 2 * before, *image))


class CifarResNet(nn.Module):
    """The paper's networks for CIFAR-10: three stages of basic blocks on 32x32 images, 6 n + 2 layers.

    Parameters
    ----------
    depth : int
        ``n``: blocks in each stage.
    num_classes : int, default: 10
        Number of outputs.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16, activation="relu")
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(depth)))
        self.layer2 = _padded_stage(16, 32, depth)
        self.layer3 = _padded_stage(32, 64, depth)
        self.avgpool = nn.GlobalAvgPool2d()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)
        self.apply(_initialise)

    def forward(self, x: Any) -> Any:
        """Return logits (N, num_classes) for images ``x`` (N, 3, H, W)."""
        x = self.bn1(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))


def _padded_stage(in_channels: int, width: int, depth: int) -> nn.Sequential:
    first = BasicBlock(in_channels, width, 2, _Subsample(2, width - in_channels))
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20 for CIFAR: 269,722 parameters. Input (N, 3, 32, 32), output (N, num_classes)."""
    return CifarResNet(3, num_classes)
