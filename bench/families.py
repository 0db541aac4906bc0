"""The cases of every family: shapes of real networks, in files where there are many."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from brasa import ops
from brasa._bench import cases
from brasa._bench.cases.contestants import Peers
from brasa._bench.cases.conv import PASSES
from brasa._bench.harness import Call, Case

SHAPES = Path(__file__).parent / "shapes"
# From the peers and the passes of convolutions, in place of the family's own where there are any.
Family = Callable[[Peers, Sequence[str]], Iterator[Case]]
OWN_PASSES = ("fwd", "fwd+bwd")


def _table(name: str) -> dict[str, Any]:
    with (SHAPES / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def layers(network: str) -> list[dict[str, Any]]:
    """The distinct convolutions of a network, from ``shapes/<network>.toml``."""
    return _table(network)["layer"]


def matmul(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for n in (32, 64, 128):
        yield cases.native_matmul(n, peers)
    for n in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        yield cases.matmul(n, n, n, peers)
    skinny = (32, 512, 2048), (64, 784, 512), (5000, 30, 30), (64, 64, 2048), (2048, 2048, 64), (64, 784, 10)
    skinny += (32, 2048, 512), (64, 512, 784), (64, 2048, 64), (2048, 64, 2048)
    for m, k, n in skinny:
        yield cases.matmul(m, k, n, peers, family="matmul skinny")
    for m in (1, 8):
        yield cases.matmul(m, 4096, 4096, peers, family="matmul few rows")
    yield cases.matmul(1, 4096, 4096, peers, transposed=True, family="matmul few rows")
    yield from _network_products(peers)
    for m, k, n in ((512, 512, 512), (1024, 1024, 1024)):
        for ta, tb in ((True, False), (False, True), (True, True)):
            yield cases.matmul(m, k, n, peers, transposed=tb, transposed_a=ta, family="matmul transposed")
    batches = ((96, 128, 64, 128, True), (96, 128, 128, 64, False), (64, 32, 32, 32, False))
    for batch, m, k, n, transposed in (*batches, (8, 512, 512, 512, False), (1024, 16, 16, 16, False)):
        yield cases.batched_matmul(batch, m, k, n, peers, transposed=transposed)


# Fully connected layers and the gates of recurrent ones: rows, inputs, outputs. Weights are stored (n, k).
_PRODUCTS = (
    ("LeNet fc1", 32, 400, 120),
    ("LeNet fc1", 128, 400, 120),
    ("MLP fc1", 128, 784, 512),
    ("MLP fc2", 128, 512, 512),
    ("AlexNet fc6", 16, 9216, 4096),
    ("VGG fc7", 4, 4096, 4096),
    ("ResNet-50 fc", 8, 2048, 1000),
    ("LSTM 128 gates", 32, 256, 512),
    ("LSTM 512 gates", 64, 1024, 2048),
    ("GRU 256 gates", 64, 512, 768),
    ("transformer qkv", 512, 768, 2304),
    ("transformer mlp", 512, 768, 3072),
)


def _network_products(peers: Peers) -> Iterator[Case]:
    for label, m, k, n in _PRODUCTS:
        yield cases.matmul(m, k, n, peers, transposed=True, family="matmul layers", label=label)
    for label, m, k, n in _PRODUCTS:
        if m <= 64:
            yield cases.packed_matmul(m, k, n, peers, label=label)
    for m, k, n in ((32, 512, 2048), (64, 784, 512), (64, 64, 2048), (64, 784, 10)):
        yield cases.packed_matmul(m, k, n, peers)


def deepbench_gemm(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """Column-major (m, k) x (k, n) is row-major (n, k) x (k, m): transposes change places with the operands."""
    table = _table("deepbench_gemm")
    for part in ("training", "inference_server", "inference_device"):
        for m, n, k, transposed_a, transposed_b in table[part]:
            yield cases.matmul(
                n, k, m, peers, transposed=transposed_a, transposed_a=transposed_b, family="deepbench gemm"
            )


def deepbench_conv(peers: Peers, passes: Sequence[str]) -> Iterator[Case]:
    table = _table("deepbench_conv")
    for part in ("training", "inference_server"):
        for row in table[part]:
            named = dict(zip(table["columns"], row, strict=True))
            layer = {key: named[key] for key in "NCHWO"}
            layer |= {key: (named[f"{key}_h"], named[f"{key}_w"]) for key in ("kernel", "padding", "stride")}
            for direction in passes or OWN_PASSES:
                yield cases.conv2d(layer, peers, direction=direction)


def _network(
    network: str, peers: Peers, passes: Sequence[str], own: Sequence[str] = OWN_PASSES
) -> Iterator[Case]:
    name = network.removesuffix("_conv")
    for i, layer in enumerate(layers(network)):
        label = f"{name} {i + 1} {layer['C']}->{layer['O']} {layer['kernel']}x{layer['kernel']} {layer['H']}"
        for direction in passes or own:
            yield cases.conv2d(layer, peers, direction=direction, label=label)


def conv_nchw(peers: Peers, passes: Sequence[str]) -> Iterator[Case]:
    """Images that come as NCHW: first layers of 1 and 3 channels, 1x1 and depthwise layers."""
    chosen = (
        ("lenet_conv", 0),
        ("alexnet_conv", 0),
        ("vgg16_conv", 0),
        ("resnet50_conv", 0),
        *(("resnet50_conv", i) for i, layer in enumerate(layers("resnet50_conv")) if layer["kernel"] == 1),
        *(("mobilenet_depthwise", i) for i in range(len(layers("mobilenet_depthwise")))),
    )
    for network, i in chosen:
        layer = layers(network)[i]
        name = network.removesuffix("_conv")
        label = (
            f"{name} {i + 1} {layer['C']}->{layer['O']} {layer['kernel']}x{layer['kernel']} {layer['H']} NCHW"
        )
        for direction in passes or OWN_PASSES:
            yield cases.conv2d(layer, peers, direction=direction, label=label, nchw=True)


def conv_other(peers: Peers, passes: Sequence[str]) -> Iterator[Case]:
    """Convolutions over time and transposed ones."""
    for direction in passes or OWN_PASSES:
        yield from _conv_other(peers, direction)


def _conv_other(peers: Peers, direction: str) -> Iterator[Case]:
    for n, c, length, outputs, kernel, stride in (
        (16, 1, 16000, 64, 80, 4),
        (16, 64, 4000, 64, 3, 1),
        (16, 256, 500, 256, 3, 1),
        (8, 80, 3000, 384, 3, 1),
    ):
        yield cases.conv1d(n, c, length, outputs, kernel, stride, peers, direction=direction)
    for n, c, size, outputs, kernel, stride, padding in (
        (16, 512, 4, 256, 4, 2, 1),
        (16, 256, 8, 128, 4, 2, 1),
        (16, 128, 16, 64, 4, 2, 1),
        (16, 64, 32, 3, 4, 2, 1),
        (4, 64, 56, 32, 2, 2, 0),
    ):
        window = kernel, stride, padding
        yield cases.conv_transpose2d(n, c, size, outputs, *window, peers, direction=direction)


def calls(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """What a call costs: so few elements that nothing else counts."""
    yield cases.activation("relu", peers, shape=(16,), family="calls")
    yield cases.matmul(4, 4, 4, peers, family="calls")
    yield cases.matmul(1, 16, 16, peers, family="calls", transposed=True)
    for kind in ({"into": True}, {"recorded": True}):
        yield cases.activation("relu", peers, shape=(16,), family="calls", **kind)
        yield cases.matmul(4, 4, 4, peers, family="calls", **kind)
    yield cases.matmul(32, 32, 32, peers, family="calls", into=True)


def pool(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        for kind, kernel, stride, padding in (("max", 3, 2, 1), ("max", 2, 2, 0), ("avg", 2, 2, 0)):
            for layout in ("contiguous", "channels-last"):
                yield cases.pool(kind, kernel, stride, padding, peers, layout, backward=backward)


def shuffle(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """The auto-encoder's two, and layers of super-resolution."""
    for n, c, size, factor in (
        (32, 64, 16, 2),
        (32, 32, 32, 2),
        (4, 64, 96, 2),
        (1, 3, 224, 3),
        (4, 64, 48, 4),
    ):
        for backward in (False, True):
            for layout in ("contiguous", "channels-last"):
                yield cases.pixel_shuffle((n, c, size), factor, peers, layout, backward=backward)


def activation(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name in ops.ACTIVATIONS:
        yield cases.activation(name, peers)
        if name not in ("step", "sign"):  # their derivative is 0
            yield cases.activation(name, peers, backward=True)


def norm(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        for rows, columns in ((128, 10), (4096, 1000), (16384, 128), (64, 32000)):
            yield cases.softmax(rows, columns, peers, backward=backward)
    for backward in (False, True):
        for rows, columns in ((512, 768), (4096, 768), (4096, 1024)):
            yield cases.layer_norm(rows, columns, peers, backward=backward)
        for layout in ("contiguous", "channels-last"):
            yield cases.batch_norm(16, 64, 112, peers, layout=layout, backward=backward)
            yield cases.batch_norm(32, 256, 14, peers, layout=layout, backward=backward)


def attention(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """Heads of 64 features, as most Transformers have; short ones, and one long sequence alone."""
    shapes = (
        (8, 8, 128, 64),
        (8, 8, 256, 64),
        (8, 8, 512, 64),
        (8, 8, 1024, 64),
        (32, 4, 64, 32),
        (1, 1, 4096, 64),
    )
    for backward in (False, True):
        for shape in shapes:
            yield cases.attention(*shape, peers, backward=backward)
        for length in (128, 512, 1024):
            yield cases.attention(8, 8, length, 64, peers, causal=True, backward=backward)


def loss(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for rows, classes in ((128, 10), (32, 10), (4096, 1000), (2048, 32000)):
        yield cases.loss(rows, classes, peers)
    yield cases.loss(256, 1000, peers, smoothing=0.1)
    # Text in images, speech by letters (short and long), speech by word pieces.
    for shape in ((32, 64, 37, 8), (150, 32, 29, 40), (400, 16, 32, 100), (250, 16, 5000, 40)):
        yield cases.ctc(*shape, peers)


def optim(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for method in ("sgd", "sgd momentum", "adam", "adamw"):
        for model in ("lenet", "resnet18"):
            yield cases.optimizer_step(method, model, cases.model_sizes(model), peers)


def dropout(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for shape in ((128, 120), (128, 512), (4096, 4096)):
        for backward in (False, True):
            yield cases.dropout(shape, peers, backward=backward)


def embedding(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for count, rows, columns in ((512, 10000, 128), (8192, 32000, 256)):
        for backward in (False, True):
            yield cases.embedding(count, rows, columns, peers, backward=backward)


def rnn(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """Steps, batch, inputs, hidden units."""
    for cell in ("lstm", "gru", "rnn"):
        for sizes in (
            (50, 32, 128, 256),
            (100, 64, 256, 512),
            (28, 128, 28, 128),
            (200, 1, 128, 512),
            (35, 20, 200, 200),
        ):
            for backward in (False, True):
                yield cases.recurrent(cell, *sizes, peers, backward=backward)


def deepbench_rnn(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """As many inputs as hidden units. Training forward and backward, inference forward."""
    table = _table("deepbench_rnn")
    for part in ("training", "inference_server", "inference_device"):
        for hidden, batch, steps, cell in table[part]:
            for backward in (False, True) if part == "training" else (False,):
                yield cases.recurrent(
                    cell, steps, batch, hidden, hidden, peers, backward=backward, family=f"deepbench {cell}"
                )


STEPS = (
    *(("mlp", 128), ("lenet", 128), ("lenet", 32), ("lenet", 1), ("resnet20", 64), ("autoencoder", 32)),
    *(("resnet18", 8), ("vgg11", 4)),
)
TEXT_STEPS = (("char_lstm", 32), ("char_gru", 32))


def step_peers(kind: str, name: str, peers: Peers, *options: str) -> cases.step.MakePeers | None:
    """What makes the steps ("steps") or inferences of the peers that have networks, with these options."""
    found = [(f"bench.in_{peer}", kind) for peer in ("torch", "jax") if peer in peers]
    if "torch-compile" in peers:
        found.append(("bench.in_torch", "compiled_steps"))
    if not found:
        return None

    def make(x: np.ndarray, target: np.ndarray, values: list[np.ndarray]) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        for module, function in found:
            calls |= getattr(import_module(module), function)(name, x, target, values, *options)
        return calls

    return make


def train(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name, batch in STEPS:
        yield cases.training_step(name, batch, step_peers("steps", name, peers))
    without_jax = tuple(peer for peer in peers if peer != "jax")
    for name, batch in TEXT_STEPS:
        yield cases.training_step(name, batch, step_peers("steps", name, without_jax))


def infer(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name, batch in STEPS:
        yield cases.inference(name, batch, step_peers("inferences", name, peers))


NETWORKS = (
    "lenet_conv",
    "alexnet_conv",
    "vgg16_conv",
    "googlenet_conv",
    "resnet50_conv",
    "resnet20_cifar_conv",
)
ALL_PASSES_OF = ("vgg16_conv", "resnet50_conv", "resnet20_cifar_conv")  # each gradient alone too
FAMILIES: dict[str, Family] = {
    "matmul": matmul,
    "deepbench/gemm": deepbench_gemm,
    **{
        f"conv/{name.removesuffix('_conv')}": partial(
            _network, name, own=PASSES if name in ALL_PASSES_OF else OWN_PASSES
        )
        for name in NETWORKS
    },
    "conv/mobilenet": partial(_network, "mobilenet_depthwise"),
    "conv/nchw": conv_nchw,
    "conv/other": conv_other,
    "deepbench/conv": deepbench_conv,
    "calls": calls,
    "pool": pool,
    "shuffle": shuffle,
    "activation": activation,
    "norm": norm,
    "attention": attention,
    "loss": loss,
    "optim": optim,
    "dropout": dropout,
    "embedding": embedding,
    "rnn": rnn,
    "deepbench/rnn": deepbench_rnn,
    "train": train,
    "infer": infer,
}
BY_NAME_ONLY = ("deepbench/conv", "deepbench/rnn")  # long, and no part of a run without names


def of(device: str) -> dict[str, Family]:
    """The families of a device, "cpu" or "cuda"."""
    if device == "cpu":
        return FAMILIES
    from bench import gpu

    return gpu.FAMILIES


def chosen(names: Sequence[str], device: str = "cpu") -> list[str]:
    """The families of these names; "conv" stands for all that begin with "conv/", "all" for every one.

    Raises
    ------
    ValueError
        No family has the name.
    """
    known = of(device)
    if not names:
        return [family for family in known if family not in BY_NAME_ONLY]
    found: list[str] = []
    for name in names:
        matching = [family for family in known if name in (family, "all") or family.startswith(f"{name}/")]
        if not matching:
            raise ValueError(f"unknown family {name!r}: choose from {', '.join(known)}, conv, deepbench, all")
        found += [family for family in matching if family not in found]
    return found


def selected(
    names: Sequence[str], peers: Peers, passes: Sequence[str], only: str = "", device: str = "cpu"
) -> list[Case]:
    """The cases of these families whose family and name contain `only`; nothing is built yet."""
    return [
        case
        for family in chosen(names, device)
        for case in of(device)[family](peers, passes)
        if only in f"{case.family} {case.name}"
    ]
