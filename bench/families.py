"""The cases of every family: shapes of real networks, in files where there are many."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from brasa import ops
from brasa._bench import cases
from brasa._bench.cases import Peers
from brasa._bench.harness import Case

SHAPES = Path(__file__).parent / "shapes"
NETWORKS = (
    "lenet_conv",
    "alexnet_conv",
    "vgg16_conv",
    "resnet50_conv",
    "resnet20_cifar_conv",
    "mobilenet_depthwise",
)


def layers(network: str) -> list[dict[str, Any]]:
    """The distinct convolutions of a network, from ``shapes/<network>.toml``."""
    with (SHAPES / f"{network}.toml").open("rb") as file:
        return tomllib.load(file)["layer"]


def matmul(peers: Peers) -> Iterator[Case]:
    for n in (64, 128, 256, 512, 1024, 2048):
        yield cases.matmul(n, n, n, peers)
    for m, k, n in ((128, 784, 512), (128, 512, 512), (64, 2048, 64), (1000, 1000, 1000), (8, 4096, 4096)):
        yield cases.matmul(m, k, n, peers)
    for m, k, n in ((1024, 1024, 1024), (32, 400, 120), (128, 784, 512)):
        yield cases.matmul(m, k, n, peers, transposed=True)


def conv(peers: Peers) -> Iterator[Case]:
    for network in NETWORKS:
        for i, layer in enumerate(layers(network)):
            for backward in (False, True):
                kernel = layer["kernel"]
                name = network.removesuffix("_conv")
                label = f"{name} {i + 1} {layer['C']}->{layer['O']} {kernel}x{kernel} {layer['H']}"
                yield cases.conv2d(layer, peers, backward=backward, label=label)


def pool(peers: Peers) -> Iterator[Case]:
    for kind, kernel, stride, padding in (("max", 3, 2, 1), ("max", 2, 2, 0), ("avg", 2, 2, 0)):
        for layout in ("contiguous", "channels-last"):
            yield cases.pool(kind, kernel, stride, padding, peers, layout)


def activation(peers: Peers) -> Iterator[Case]:
    without = {"gelu_tanh", "step", "sign"}  # no function of that name in torch.nn.functional
    for name in (name for name in ops.ACTIVATIONS if name not in without):
        for backward in (False, True):
            yield cases.activation(name, peers, backward=backward)


def norm(peers: Peers) -> Iterator[Case]:
    for rows, columns in ((4096, 1000), (16384, 128), (64, 32000)):
        yield cases.softmax(rows, columns, peers)
    for rows, columns in ((4096, 768), (4096, 1024)):
        yield cases.layer_norm(rows, columns, peers)
    for layout in ("contiguous", "channels-last"):
        yield cases.batch_norm(16, 64, 112, peers, layout=layout)
        yield cases.batch_norm(32, 256, 14, peers, layout=layout)


def loss(peers: Peers) -> Iterator[Case]:
    for rows, classes in ((128, 10), (32, 10), (4096, 1000), (2048, 32000)):
        yield cases.loss(rows, classes, peers)
    yield cases.loss(256, 1000, peers, smoothing=0.1)


def optim(peers: Peers) -> Iterator[Case]:
    lenet = cases.model_sizes("lenet")
    # ResNet-18: the 11.7 million parameters of its convolutions, norms and classifier.
    stages = [(64, 64), (128, 64), (256, 128), (512, 256)]
    resnet: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,), (1000, 512), (1000,)]
    for out, before in stages:
        convolutions = [(out, before, 3, 3), *[(out, out, 3, 3)] * 3]
        convolutions += [(out, before, 1, 1)] if before != out else []
        resnet += [shape for conv in convolutions for shape in (conv, (out,), (out,))]
    for method in ("sgd", "sgd momentum", "adam", "adamw"):
        yield cases.optimizer_step(method, "lenet", lenet, peers)
        yield cases.optimizer_step(method, "resnet18", resnet, peers)


def dropout(peers: Peers) -> Iterator[Case]:
    for shape in ((128, 120), (128, 512), (4096, 4096)):
        for backward in (False, True):
            yield cases.dropout(shape, peers, backward=backward)


def embedding(peers: Peers) -> Iterator[Case]:
    for count, rows, columns in ((512, 10000, 128), (8192, 32000, 256)):
        for backward in (False, True):
            yield cases.embedding(count, rows, columns, peers, backward=backward)


def train(peers: Peers) -> Iterator[Case]:
    for model, batch in (("lenet", 128), ("lenet", 32), ("lenet", 1), ("mlp", 128)):
        yield cases.training_step(model, batch, peers)


FAMILIES: dict[str, Callable[[Peers], Iterator[Case]]] = {
    "matmul": matmul,
    "conv": conv,
    "pool": pool,
    "activation": activation,
    "norm": norm,
    "loss": loss,
    "optim": optim,
    "dropout": dropout,
    "embedding": embedding,
    "train": train,
}
