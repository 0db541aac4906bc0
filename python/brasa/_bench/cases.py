"""Builders of cases: the operator, the work it must do, and the same by NumPy and PyTorch.

`against` names the peers to build calls for. PyTorch is measured at its best: on as many threads, in both of
its memory formats, with its fused optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.harness import Call, Case

Peers = Collection[str]


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def channels_last(x: np.ndarray) -> np.ndarray:
    """A copy with channels-last strides."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _torch_formats(make: Callable[[Any], Call], *arrays: np.ndarray) -> dict[str, Call]:
    """A peer's two variants: `make` gets the tensors, contiguous and channels-last."""
    import torch

    plain = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    inner = [
        t.clone().contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.clone() for t in plain
    ]
    return {"torch/contiguous": make(plain), "torch/channels-last": make(inner)}


def matmul(m: int, k: int, n: int, against: Peers, *, transposed: bool = False) -> Case:
    """(m, k) x (k, n), or with the second operand stored (n, k) as a linear layer's weight is."""
    a, b = _array(m, k), _array(*((n, k) if transposed else (k, n)), seed=1)
    out = np.empty((m, n), np.float32)
    peers: dict[str, Call] = {}
    right = b.T if transposed else b
    if "numpy" in against:
        peers["numpy"] = lambda: np.matmul(a, right, out=out)
    if "torch" in against:
        import torch

        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        tb = tb.T if transposed else tb
        peers["torch"] = lambda: torch.matmul(ta, tb)
    suffix = "^T" if transposed else ""
    return Case(
        "matmul",
        f"{m}x{k} @ {k}x{n}{suffix}",
        lambda: ops.matmul(a, b, transpose_b=transposed),
        flops=2.0 * m * k * n,
        nbytes=4.0 * (m * k + k * n + m * n),
        peers=peers,
    )


def conv2d(layer: dict[str, Any], against: Peers, *, backward: bool, label: str = "") -> Case:
    """A convolution of a network: ``N C H W O kernel stride padding groups``, forward or with all gradients."""
    n, c, h, w, o = (layer[key] for key in "NCHWO")
    kernel, groups = layer["kernel"], layer.get("groups", 1)
    kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    options = {"stride": layer.get("stride", 1), "padding": layer.get("padding", 0), "groups": groups}
    x, weight = channels_last(_array(n, c, h, w)), _array(o, c // groups, *kernel, seed=1)
    weight /= np.float32(np.sqrt(weight[0].size))
    bias = _array(o, seed=2)
    y = ops.conv2d(x, weight, bias, **options)
    dy = channels_last(_array(*y.shape, seed=3))

    def forward() -> Any:
        return ops.conv2d(x, weight, bias, **options)

    def both() -> Any:
        ops.conv2d(x, weight, bias, **options)
        return ops.conv2d_backward(dy, x, weight, **options)

    def torch_call(tensors: list[Any]) -> Call:
        import torch

        tx, tw, tb, tdy = tensors
        if not backward:
            return lambda: torch.nn.functional.conv2d(tx, tw, tb, **options)
        inputs = [t.requires_grad_() for t in (tx, tw, tb)]

        def run() -> Any:
            return torch.autograd.grad(torch.nn.functional.conv2d(*inputs, **options), inputs, tdy)

        return run

    peers = _torch_formats(torch_call, x, weight, bias, dy) if "torch" in against else {}
    passes = 3 if backward else 1
    kind = "fwd+bwd" if backward else "fwd"
    shape = f"{n}x{c}x{h}x{w} -> {o}, {kernel[0]}x{kernel[1]}/{options['stride']}"
    name = f"{label or shape}{f' g{groups}' if groups > 1 and not label else ''} {kind}"
    work = 2.0 * y.size * weight[0].size
    traffic = 4.0 * (x.size + weight.size + y.size)
    return Case(f"conv {kind}", name, both if backward else forward, passes * work, passes * traffic, peers)


def _strided(x: np.ndarray, layout: str) -> np.ndarray:
    return channels_last(x) if layout == "channels-last" else x


def pool(kind: str, kernel: int, stride: int, padding: int, against: Peers, layout: str) -> Case:
    """Max or average pooling of 16x64x112x112."""
    x = _strided(_array(16, 64, 112, 112), layout)
    operator = ops.max_pool2d if kind == "max" else ops.avg_pool2d
    y = operator(x, kernel, stride, padding)

    def torch_call(tensors: list[Any]) -> Call:
        import torch

        function = torch.nn.functional.max_pool2d if kind == "max" else torch.nn.functional.avg_pool2d
        return lambda: function(tensors[0], kernel, stride, padding)

    peers = _torch_formats(torch_call, x) if "torch" in against else {}
    name = f"{kind} {kernel}x{kernel}/{stride} 16x64x112x112 {layout}"
    nbytes = 4.0 * (x.size + y.size)
    return Case("pool", name, lambda: operator(x, kernel, stride, padding), 0, nbytes, peers)


_NUMPY_ACTIVATIONS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "relu": lambda x, out: np.maximum(x, 0, out=out),
    "tanh": lambda x, out: np.tanh(x, out=out),
}


def activation(name: str, against: Peers, *, backward: bool = False) -> Case:
    """One activation of 16x64x112x112, forward or backward."""
    x, dy = _array(16, 64, 112, 112), _array(16, 64, 112, 112, seed=1)
    value = x if ops.ACTIVATIONS[name].needs == "x" else ops.activation(x, name)
    out = np.empty_like(x)
    peers: dict[str, Call] = {}
    if "numpy" in against and name in _NUMPY_ACTIVATIONS and not backward:
        peers["numpy"] = lambda: _NUMPY_ACTIVATIONS[name](x, out)
    if "torch" in against:
        import torch

        tx, tdy = torch.from_numpy(x), torch.from_numpy(dy)
        function = getattr(torch.nn.functional, name, None) or getattr(torch, name)
        if backward:
            leaf = tx.requires_grad_()
            result = function(leaf)
            peers["torch"] = lambda: torch.autograd.grad(result, leaf, tdy, retain_graph=True)
        else:
            peers["torch"] = lambda: function(tx)
    kind = "bwd" if backward else "fwd"
    call = (
        (lambda: ops.activation_backward(dy, value, name)) if backward else (lambda: ops.activation(x, name))
    )
    return Case(
        "activation", f"{name} {kind} 16x64x112x112", call, 0, (3 if backward else 2) * 4.0 * x.size, peers
    )


def softmax(rows: int, columns: int, against: Peers) -> Case:
    """Softmax over the last axis."""
    x = _array(rows, columns)
    peers: dict[str, Call] = {}
    if "numpy" in against:

        def by_numpy() -> Any:
            e = np.exp(x - x.max(axis=-1, keepdims=True))
            return e / e.sum(axis=-1, keepdims=True)

        peers["numpy"] = by_numpy
    if "torch" in against:
        import torch

        tx = torch.from_numpy(x)
        peers["torch"] = lambda: torch.softmax(tx, -1)
    return Case("norm", f"softmax {rows}x{columns}", lambda: ops.softmax(x), 0, 8.0 * x.size, peers)


def layer_norm(rows: int, columns: int, against: Peers) -> Case:
    """Layer norm over the last axis, with weight and bias."""
    x, weight, bias = _array(rows, columns), _array(columns, seed=1), _array(columns, seed=2)
    peers: dict[str, Call] = {}
    if "torch" in against:
        import torch

        tx, tw, tb = (torch.from_numpy(a) for a in (x, weight, bias))
        peers["torch"] = lambda: torch.nn.functional.layer_norm(tx, (columns,), tw, tb)
    name = f"layer_norm {rows}x{columns}"
    return Case("norm", name, lambda: ops.layer_norm(x, weight, bias), 0, 8.0 * x.size, peers)


def batch_norm(n: int, c: int, size: int, against: Peers, *, layout: str) -> Case:
    """Batch norm in training, with weight, bias and running statistics."""
    x = _strided(_array(n, c, size, size), layout)
    vectors = [_array(c, seed=i) for i in range(3)] + [np.ones(c, np.float32)]

    def torch_call(tensors: list[Any]) -> Call:
        import torch

        tx, tw, tb, mean, var = tensors
        return lambda: torch.nn.functional.batch_norm(tx, mean, var, tw, tb, True)

    weight, bias, mean, var = vectors
    peers = _torch_formats(torch_call, x, *vectors) if "torch" in against else {}
    name = f"batch_norm training {n}x{c}x{size}x{size} {layout}"
    # The statistics read x once; the normalising pass reads it again, from memory where it exceeds the caches.
    return Case(
        "norm",
        name,
        lambda: ops.batch_norm(x, weight, bias, mean, var, training=True),
        0,
        12.0 * x.size,
        peers,
    )


def _autograd(function: Callable[..., Any], leaves: list[Any], dy: Any = None) -> Call:
    """PyTorch's forward and backward."""
    import torch

    inputs = [leaf.requires_grad_() for leaf in leaves]
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def loss(rows: int, classes: int, against: Peers, *, smoothing: float = 0.0) -> Case:
    """Cross-entropy against classes, forward and backward."""
    logits, one = _array(rows, classes), np.ones((), np.float32)
    targets = np.random.default_rng(1).integers(0, classes, rows)
    options: dict[str, Any] = {"label_smoothing": smoothing}

    def both() -> Any:
        _, saved = ops.cross_entropy(logits, targets, save=True, **options)
        return ops.cross_entropy_backward(one, logits, targets, saved=saved, **options)

    peers: dict[str, Call] = {}
    if "numpy" in against and not smoothing:

        def by_numpy() -> Any:
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            e /= e.sum(axis=1, keepdims=True)
            value = -np.log(e[np.arange(rows), targets]).mean()
            e[np.arange(rows), targets] -= 1
            e /= rows
            return value, e

        peers["numpy"] = by_numpy
    if "torch" in against:
        import torch

        theirs = torch.from_numpy(targets)
        peers["torch"] = _autograd(
            lambda t: torch.nn.functional.cross_entropy(t, theirs, **options), [torch.from_numpy(logits)]
        )
    name = f"cross_entropy fwd+bwd {rows}x{classes}{f' smoothing {smoothing}' if smoothing else ''}"
    return Case("loss", name, both, 0, 12.0 * logits.size, peers)


def model_sizes(model: str) -> list[tuple[int, ...]]:
    """The shapes of a model's parameters."""
    from brasa import models

    return [tuple(p.shape) for p in models.get(model).parameters()]


_STATES = {"sgd": 0, "sgd momentum": 1, "adam": 2, "adamw": 2}  # arrays beside parameter and gradient


def optimizer_step(method: str, name: str, shapes: list[tuple[int, ...]], against: Peers) -> Case:
    """One step of an optimiser over all parameters of a model."""
    from brasa import nn, optim

    momentum = 0.9 if method == "sgd momentum" else None
    values, grads = ([_array(*shape, seed=seed) for shape in shapes] for seed in (0, 1))
    parameters = [nn.Parameter(value.copy()) for value in values]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = parameter.detach() * 0 + grad
    make = {"sgd": "SGD", "sgd momentum": "SGD", "adam": "Adam", "adamw": "AdamW"}[method]
    options: dict[str, Any] = {"lr": 1e-3} | ({} if momentum is None else {"momentum": momentum})
    peers: dict[str, Call] = {}
    if "torch" in against:
        import torch

        theirs = [torch.from_numpy(value.copy()).requires_grad_() for value in values]
        for leaf, grad in zip(theirs, grads, strict=True):
            leaf.grad = torch.from_numpy(grad)
        peers["torch"] = getattr(torch.optim, make)(theirs, fused=True, **options).step
    count = sum(value.size for value in values)
    reads_and_writes = 3 + 2 * _STATES[method]
    step = getattr(optim, make)(parameters, **options).step
    label = f"{method} {name} ({count:,} parameters)"
    return Case("optim", label, step, 0, 4.0 * reads_and_writes * count, peers)


def dropout(shape: tuple[int, ...], against: Peers, *, backward: bool = False) -> Case:
    """Dropout of half of an array, its mask drawn anew; PyTorch draws once and keeps it for the backward."""
    x = _array(*shape)
    peers: dict[str, Call] = {}
    if "numpy" in against and not backward:
        rng = np.random.default_rng(1)
        peers["numpy"] = lambda: np.where(rng.random(shape, np.float32) < 0.5, 0, x * 2)
    if "torch" in against:
        import torch

        tx = torch.from_numpy(x)
        peers["torch"] = (
            _autograd(lambda t: torch.nn.functional.dropout(t, 0.5), [tx.clone()], tx)
            if backward
            else lambda: torch.nn.functional.dropout(tx, 0.5)
        )

    def both() -> Any:
        ops.dropout(x, 0.5, 1, 0)
        return ops.dropout_backward(x, 0.5, 1, 0)

    call = both if backward else lambda: ops.dropout(x, 0.5, 1, 0)
    name = f"dropout {'fwd+bwd' if backward else 'fwd'} {'x'.join(map(str, shape))}"
    return Case("dropout", name, call, 0, (16.0 if backward else 8.0) * x.size, peers)


def embedding(count: int, rows: int, columns: int, against: Peers, *, backward: bool = False) -> Case:
    """Rows of a table, or the gradient of the table besides."""
    weight = _array(rows, columns)
    indices = np.random.default_rng(1).integers(0, rows, count)
    dy = _array(count, columns, seed=2)
    peers: dict[str, Call] = {}
    if "numpy" in against and not backward:
        peers["numpy"] = lambda: weight[indices]
    if "torch" in against:
        import torch

        tw, ti = torch.from_numpy(weight), torch.from_numpy(indices)
        peers["torch"] = (
            _autograd(lambda w: torch.nn.functional.embedding(ti, w), [tw.clone()], torch.from_numpy(dy))
            if backward
            else lambda: torch.nn.functional.embedding(ti, tw)
        )

    def both() -> Any:
        ops.embedding(indices, weight)
        return ops.embedding_backward(dy, indices, weight)

    call = both if backward else lambda: ops.embedding(indices, weight)
    name = f"embedding {'fwd+bwd' if backward else 'fwd'} {count} of {rows}x{columns}"
    nbytes = 8.0 * dy.size + (4.0 * (weight.size + dy.size) if backward else 0)
    return Case("embedding", name, call, 0, nbytes, peers)


def training_step(model: str, batch: int, against: Peers) -> Case:
    """Forward, cross-entropy, backward and Adam of LeNet or an MLP on random digits."""
    from brasa import models, nn, optim

    shape = (1, 28, 28) if model == "lenet" else (784,)
    x = _array(batch, *shape)
    labels = np.random.default_rng(1).integers(0, 10, batch)
    network, loss_function = models.get(model), nn.CrossEntropyLoss()
    adam = optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        loss_function(network(x), labels).backward()
        adam.step()
        adam.zero_grad()

    peers: dict[str, Call] = {}
    if "torch" in against:
        peers = {
            f"torch/{name}": _torch_step(model, x, labels, inner)
            for name, inner in (("contiguous", False), ("channels-last", True))
            if model == "lenet" or not inner
        }
    weights = sum(p.size for p in network.parameters())
    return Case("train", f"{model} step, Adam, batch {batch}", step, 0, 28.0 * weights, peers)


def torch_network(model: str) -> Any:
    """The LeNet or MLP of `brasa.models` in PyTorch."""
    from torch import nn

    lenet = (
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    mlp = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(*(lenet if model == "lenet" else mlp))


def _torch_step(model: str, x: np.ndarray, labels: np.ndarray, inner: bool) -> Call:
    import torch

    network = torch_network(model)
    tx, target = torch.from_numpy(x), torch.from_numpy(labels)
    if inner:
        network = network.to(memory_format=torch.channels_last)
        tx = tx.contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    loss_function = torch.nn.CrossEntropyLoss()

    def step() -> None:
        loss_function(network(tx), target).backward()
        adam.step()
        adam.zero_grad()

    return step
