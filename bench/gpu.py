"""The cases for a GPU: the families of the CPU, on shapes that fill one and lie outside its L2 cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.families import OWN_PASSES, Family, layers, step_peers
from brasa._bench import cases
from brasa._bench.cases.contestants import Peers
from brasa._bench.harness import Case

_BATCH = 64
_HALF = "bfloat16"
_IN_TF32 = [("resnet50", i) for i in (2, 10, 16)]  # of the convolutions


def matmul(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for n in (256, 512, 1024, 2048, 4096, 8192):
        yield cases.matmul(n, n, n, peers)
    for ta, tb in ((True, False), (False, True)):
        yield cases.matmul(4096, 4096, 4096, peers, transposed=tb, transposed_a=ta)
    products = (
        ("AlexNet fc6", 128, 9216, 4096),
        ("ResNet-50 fc", 64, 2048, 1000),
        ("MLP fc1", 128, 784, 512),
    )
    products += (("transformer qkv", 4096, 768, 2304), ("transformer mlp", 4096, 3072, 768))
    for label, m, k, n in products:
        yield cases.matmul(m, k, n, peers, transposed=True, family="matmul layers", label=label)
    for m in (1, 8):
        yield cases.matmul(m, 4096, 4096, peers, transposed=True, family="matmul few rows")
    yield cases.batched_matmul(768, 128, 64, 128, peers, transposed=True)
    yield cases.batched_matmul(768, 128, 128, 64, peers)
    for precision in ("bfloat16", "tf32", "tf32x3"):
        yield from _tensor_core_products(peers, precision)


def _tensor_core_products(peers: Peers, precision: str) -> Iterator[Case]:
    for n in (256, 512, 1024, 2048, 4096, 8192):
        yield cases.matmul(n, n, n, peers, precision=precision)
    for ta, tb in ((True, False), (False, True)):
        yield cases.matmul(4096, 4096, 4096, peers, transposed=tb, transposed_a=ta, precision=precision)
    layer = {"transposed": True, "precision": precision}
    for label, m, k, n in (
        ("transformer qkv", 4096, 768, 2304),
        ("transformer out", 4096, 768, 768),
        ("transformer mlp", 4096, 3072, 768),
    ):
        yield cases.matmul(m, k, n, peers, label=label, **layer)
    yield cases.matmul(4096, 768, 3072, peers, label="transformer mlp", gelu=True, **layer)
    for m in (8, 16, 32, 64, 128, 256):
        yield cases.matmul(m, 4096, 4096, peers, **layer)
    yield cases.batched_matmul(768, 128, 64, 128, peers, **layer)
    yield cases.batched_matmul(768, 128, 128, 64, peers, precision=precision)


def conv(peers: Peers, passes: Sequence[str]) -> Iterator[Case]:
    """Layers of ResNet-50: the stem, a 1x1 and a 3x3 of each stage's kind; and depthwise ones of MobileNet. In float32
    and in bfloat16; a few in TF32.
    """
    chosen = [("resnet50", i) for i in (0, 2, 3, 6, 8, 10, 16, 20, 22)] + [
        ("mobilenet", i) for i in (0, 1, 6)
    ]
    for precision, of_network in (("float32", chosen), ("bfloat16", chosen), ("tf32", _IN_TF32)):
        for network, i in of_network:
            table = layers(f"{network}_conv" if network == "resnet50" else f"{network}_depthwise")
            layer = table[i] | {"N": _BATCH}
            kernel = f"{layer['kernel']}x{layer['kernel']}"
            label = f"{network} {i + 1} {layer['C']}->{layer['O']} {kernel} {layer['H']}"
            for direction in passes or OWN_PASSES:
                yield cases.conv2d(layer, peers, direction=direction, label=label, precision=precision)


def pool(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        for kind, kernel, stride, padding in (("max", 3, 2, 1), ("max", 2, 2, 0), ("avg", 2, 2, 0)):
            for layout in ("contiguous", "channels-last"):
                window = kind, kernel, stride, padding
                yield cases.pool(*window, peers, layout, backward=backward, shape=(_BATCH, 64, 112))
    for backward in (False, True):
        for kind, kernel, stride, padding in (("max", 3, 2, 1), ("avg", 2, 2, 0)):
            window = kind, kernel, stride, padding
            shape = _BATCH, 64, 112
            yield cases.pool(*window, peers, "channels-last", backward=backward, shape=shape, precision=_HALF)


def activation(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name in ("relu", "sigmoid", "tanh", "gelu", "silu"):
        for backward in (False, True):
            yield cases.activation(name, peers, backward=backward, shape=(_BATCH, 64, 112, 112))


def norm(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        for rows, columns in ((65536, 1000), (262144, 128), (2048, 32000)):
            yield cases.softmax(rows, columns, peers, backward=backward)
        for rows, columns in ((65536, 768), (16384, 4096)):
            yield cases.layer_norm(rows, columns, peers, backward=backward)
        for layout in ("contiguous", "channels-last"):
            yield cases.batch_norm(_BATCH, 64, 112, peers, layout=layout, backward=backward)
            yield cases.batch_norm(_BATCH, 512, 28, peers, layout=layout, backward=backward)
    for backward in (False, True):
        yield cases.softmax(65536, 1000, peers, backward=backward, precision=_HALF)
        yield cases.layer_norm(65536, 768, peers, backward=backward, precision=_HALF)
        for channels, size in ((64, 112), (512, 28)):
            yield cases.batch_norm(
                _BATCH, channels, size, peers, layout="channels-last", backward=backward, precision=_HALF
            )


def attention(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        for shape in ((16, 12, 512, 64), (8, 16, 1024, 64), (2, 16, 4096, 64)):
            yield cases.attention(*shape, peers, backward=backward)
        yield cases.attention(8, 16, 1024, 64, peers, causal=True, backward=backward)
    for backward in (False, True):
        for shape in ((16, 12, 512, 64), (8, 16, 1024, 64), (2, 16, 4096, 64), (2, 16, 4096, 128)):
            for causal in (False, True):
                yield cases.attention(*shape, peers, causal=causal, backward=backward, dtype=_HALF)


def loss(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for rows, classes in ((128, 10), (65536, 1000), (4096, 32000)):
        yield cases.loss(rows, classes, peers)
    yield cases.ctc(400, 64, 32, 100, peers)


def optim(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for method in ("sgd", "sgd momentum", "adam", "adamw"):
        for model in ("resnet18", "vgg11"):
            yield cases.optimizer_step(method, model, cases.model_sizes(model), peers)


def dropout(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for backward in (False, True):
        yield cases.dropout((8192, 8192), peers, backward=backward)


def embedding(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for count, rows, columns in ((8192, 32000, 256), (65536, 50257, 768)):
        for backward in (False, True):
            yield cases.embedding(count, rows, columns, peers, backward=backward)


def rnn(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """Steps, batch, inputs, hidden units; the last size is more than fits on the chip of any GPU."""
    sizes = ((100, 64, 256, 256), (100, 64, 512, 512), (100, 32, 1024, 1024), (200, 1, 512, 512))
    for precision in ("float32", _HALF):
        for cell in ("lstm", "gru", "rnn"):
            for size in (*sizes, (50, 32, 2048, 2048)):
                for backward in (False, True):
                    yield cases.recurrent(cell, *size, peers, backward=backward, precision=precision)


def calls(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """What a call costs, launch and Python included: so few elements that nothing else counts."""
    yield cases.activation("relu", peers, shape=(16,), family="calls", launches=True)
    yield cases.matmul(4, 4, 4, peers, family="calls", launches=True)


STEPS = (("mlp", 128), ("lenet", 128), ("resnet20", 128), ("resnet18", 64), ("vgg11", 32))
TEXT = (("char_lstm", 32),)
GRAPHS = (*STEPS[:3], *TEXT)  # what waits for Python
COMPILED = ("resnet18", "char_lstm")  # compiling takes minutes


def _eager(peers: Peers, name: str) -> list[str]:
    """The peers of a step: PyTorch's compiler where it is named, for a few."""
    return [peer for peer in peers if peer == "torch" or (peer == "torch-compile" and name in COMPILED)]


def train(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name, batch in (*STEPS, *TEXT):
        without = _eager(peers, name if name in dict(TEXT) else "")
        yield cases.training_step(name, batch, step_peers("steps", name, without))
    for name, batch in (*STEPS, *TEXT):
        in_torch = step_peers("steps", name, _eager(peers, name), _HALF)
        yield cases.training_step(name, batch, in_torch, autocast=_HALF)


def train_graph(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    """The steps that wait for Python, as CUDA graphs on both sides; PyTorch's eager mode is one more peer."""
    for name, batch in GRAPHS:
        yield cases.training_step(name, batch, step_peers("graph_steps", name, _eager(peers, "")), graph=True)
    for name, batch in (*GRAPHS[1:], ("resnet18", 64)):
        in_torch = step_peers("graph_steps", name, _eager(peers, ""), _HALF)
        yield cases.training_step(name, batch, in_torch, autocast=_HALF, graph=True)


def infer(peers: Peers, _: Sequence[str]) -> Iterator[Case]:
    for name, batch in STEPS:
        yield cases.inference(name, batch, step_peers("inferences", name, peers))


FAMILIES: dict[str, Family] = {
    "matmul": matmul,
    "conv": conv,
    "pool": pool,
    "activation": activation,
    "norm": norm,
    "attention": attention,
    "loss": loss,
    "optim": optim,
    "dropout": dropout,
    "embedding": embedding,
    "rnn": rnn,
    "calls": calls,
    "train": train,
    "train/graph": train_graph,
    "infer": infer,
}
