"""The networks whose steps are timed, layer by layer: what every contestant builds, and what it must compute.

A description is a tuple of layers in the order of execution, which is also the order of the parameters.
brasa's own networks come from `brasa.models`; the auto-encoder is built here from its description. Networks of
characters read (T, B) integers and carry their state from step to step, without its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from brasa import models, nn
from brasa._bench.geometry import output_size, taps_inside


@dataclass(frozen=True)
class Conv:
    """A convolution."""

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """Batch norm."""

    channels: int


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""


@dataclass(frozen=True)
class MaxPool:
    """The largest element of every window."""

    kernel: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class GlobalMean:
    """The mean of every channel."""


@dataclass(frozen=True)
class Flatten:
    """Images as vectors."""


@dataclass(frozen=True)
class Linear:
    """A fully connected layer."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class Dropout:
    """Zeros with probability p in training."""

    p: float


@dataclass(frozen=True)
class PixelShuffle:
    """(C r r, H, W) as (C, H r, W r): how the decoder enlarges images."""

    factor: int


@dataclass(frozen=True)
class Subsample:
    """Every second pixel, with zeros for the new channels around the old ones."""

    new_channels: int


@dataclass(frozen=True)
class Residual:
    """relu(body(x) + shortcut(x))."""

    body: tuple[Any, ...]
    shortcut: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """A vector for each character."""

    count: int
    size: int


@dataclass(frozen=True)
class Recurrent:
    """Layers of "lstm" or "gru", one upon the other."""

    cell: str
    inputs: int
    hidden: int
    layers: int


@dataclass(frozen=True)
class Rows:
    """(T, B, H) as (T B, H)."""


@dataclass(frozen=True)
class Network:
    """Layers, the shape of a sample, and what the loss compares the result with: classes or the image.

    Where the first layer is an embedding a sample is that many characters, each followed by one.
    """

    layers: tuple[Any, ...]
    sample: tuple[int, ...]
    classes: int | None = 10


def _dense(*sizes: int, dropout: float = 0.0) -> tuple[Any, ...]:
    layers: list[Any] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Linear(inputs, outputs), Relu(), *([Dropout(dropout)] if dropout else [])]
    return tuple(layers[: -1 - bool(dropout)])


def _basic(inputs: int, outputs: int, stride: int, shortcut: tuple[Any, ...]) -> Residual:
    first, second = Conv(inputs, outputs, 3, stride, 1, False), Conv(outputs, outputs, 3, 1, 1, False)
    return Residual((first, Norm(outputs), Relu(), second, Norm(outputs)), shortcut)


def _resnet20() -> tuple[Any, ...]:
    layers: list[Any] = [Conv(3, 16, 3, 1, 1, False), Norm(16), Relu()]
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        grows = inputs != outputs
        layers.append(_basic(inputs, outputs, 1 + grows, (Subsample(outputs - inputs),) if grows else ()))
        layers += [_basic(outputs, outputs, 1, ())] * 2
    return (*layers, GlobalMean(), Flatten(), Linear(64, 10))


def _resnet18() -> tuple[Any, ...]:
    layers: list[Any] = [Conv(3, 64, 7, 2, 3, False), Norm(64), Relu(), MaxPool(3, 2, 1)]
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        grows = inputs != outputs
        shortcut = (Conv(inputs, outputs, 1, 2, 0, False), Norm(outputs)) if grows else ()
        layers += [_basic(inputs, outputs, 1 + grows, shortcut), _basic(outputs, outputs, 1, ())]
    return (*layers, GlobalMean(), Flatten(), Linear(512, 1000))


def _vgg11() -> tuple[Any, ...]:
    layers: list[Any] = []
    channels = 3
    for width, depth in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(depth):
            layers += [Conv(channels, width, 3, 1, 1), Relu()]
            channels = width
        layers.append(MaxPool(2, 2))
    return (*layers, Flatten(), *_dense(512 * 7 * 7, 4096, 4096, 1000, dropout=0.5))


_LENET = (
    *(Conv(1, 6, 5, 1, 2), Relu(), MaxPool(2, 2), Conv(6, 16, 5), Relu(), MaxPool(2, 2), Flatten()),
    *_dense(400, 120, 84, 10),
)
_AUTOENCODER = (
    *(Conv(3, 32, 3, 2, 1), Relu(), Conv(32, 64, 3, 2, 1), Relu(), Conv(64, 16, 3, 1, 1), Relu()),
    *(Conv(16, 256, 3, 1, 1), PixelShuffle(2), Relu(), Conv(64, 128, 3, 1, 1), PixelShuffle(2), Relu()),
    Conv(32, 3, 3, 1, 1),
)


def _characters(cell: str) -> Network:
    """Two layers of 256 units that read 64 characters at a time, out of as many as the bundled novel has."""
    return Network(
        (Embedding(100, 64), Recurrent(cell, 64, 256, 2), Rows(), Linear(256, 100)), (64,), classes=100
    )


NETWORKS: dict[str, Network] = {
    "mlp": Network(_dense(784, 512, 512, 10), (784,)),
    "lenet": Network(_LENET, (1, 28, 28)),
    "resnet20": Network(_resnet20(), (3, 32, 32)),
    "resnet18": Network(_resnet18(), (3, 224, 224), 1000),
    "vgg11": Network(_vgg11(), (3, 224, 224), 1000),
    "autoencoder": Network(_AUTOENCODER, (3, 64, 64), None),
    "char_lstm": _characters("lstm"),
    "char_gru": _characters("gru"),
}


def parameter_shapes(layers: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """The shapes of the parameters of convolutions, norms and linear layers."""
    shapes: list[tuple[int, ...]] = []
    for layer in layers:
        if isinstance(layer, Residual):
            shapes += parameter_shapes((*layer.body, *layer.shortcut))
        elif isinstance(layer, Conv):
            shapes.append((layer.outputs, layer.inputs, layer.kernel, layer.kernel))
            shapes += [(layer.outputs,)] * layer.bias
        elif isinstance(layer, Linear):
            shapes += [(layer.outputs, layer.inputs), (layer.outputs,)]
        elif isinstance(layer, Norm):
            shapes += [(layer.channels,)] * 2
    return shapes


def reads_characters(name: str) -> bool:
    """Whether the network's samples are texts."""
    return isinstance(NETWORKS[name].layers[0], Embedding)


def forward_flops(name: str) -> float:
    """Operations of one sample's forward: two per multiply-add of convolutions, linear and recurrent layers."""
    network = NETWORKS[name]
    return _flops(network.layers, network.sample)[0]


def _flops(layers: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    total = 0.0
    for layer in layers:
        if isinstance(layer, Residual):
            total += _flops(layer.shortcut, shape)[0]
            work, shape = _flops(layer.body, shape)
        else:
            work, shape = _layer_flops(layer, shape)
        total += work
    return total, shape


def _layer_flops(layer: Any, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    if isinstance(layer, (Conv, MaxPool)):
        window = layer.kernel, layer.stride, layer.padding
        size = tuple(output_size(s, *window) for s in shape[1:])
        if isinstance(layer, MaxPool):
            return 0.0, (shape[0], *size)
        taps = prod(taps_inside(s, *window) for s in shape[1:])
        return 2.0 * layer.outputs * layer.inputs * taps, (layer.outputs, *size)
    if isinstance(layer, Linear):
        return 2.0 * layer.inputs * layer.outputs * prod(shape[:-1]), (*shape[:-1], layer.outputs)
    if isinstance(layer, Embedding):
        return 0.0, (*shape, layer.size)
    if isinstance(layer, Recurrent):
        gates, hidden = {"lstm": 4, "gru": 3}[layer.cell], layer.hidden
        inputs = layer.inputs + (layer.layers - 1) * hidden
        return 2.0 * shape[0] * gates * hidden * (inputs + layer.layers * hidden), (shape[0], hidden)
    if isinstance(layer, PixelShuffle):
        r = layer.factor
        return 0.0, (shape[0] // r**2, shape[1] * r, shape[2] * r)
    if isinstance(layer, (GlobalMean, Flatten)):
        return 0.0, (prod(shape),) if isinstance(layer, Flatten) else (shape[0], 1, 1)
    return 0.0, shape


def in_brasa(name: str) -> nn.Module:
    """The network by brasa, with fresh random weights."""
    if reads_characters(name):
        embedding, recurrent, *_ = NETWORKS[name].layers
        return models.CharacterModel(
            recurrent.cell, embedding.count, recurrent.hidden, recurrent.layers, 0.0, embedding.size
        )
    if name != "autoencoder":
        return models.get(name)
    make = {
        Conv: lambda c: nn.Conv2d(c.inputs, c.outputs, c.kernel, stride=c.stride, padding=c.padding),
        Relu: lambda _: nn.ReLU(),
        PixelShuffle: lambda layer: nn.PixelShuffle(layer.factor),
    }
    return nn.Sequential(*(make[type(layer)](layer) for layer in NETWORKS[name].layers))
