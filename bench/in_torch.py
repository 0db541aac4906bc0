"""The networks of the benchmark in PyTorch, built from `torch.nn` alone, and their steps.

Eager mode; the better of both memory formats counts, and Adam is the fused one.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from brasa._bench import networks
from brasa._bench.cases.contestants import device, tensor
from brasa._bench.harness import Call
from brasa._bench.networks import NETWORKS


class _Residual(nn.Module):
    def __init__(self, layer: networks.Residual) -> None:
        super().__init__()
        self.body = nn.Sequential(*map(module, layer.body))
        self.shortcut = nn.Sequential(*map(module, layer.shortcut))

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


class _Subsample(nn.Module):
    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Any) -> Any:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class _Recurrent(nn.Module):
    def __init__(self, layer: networks.Recurrent) -> None:
        super().__init__()
        self.layers = getattr(nn, layer.cell.upper())(layer.inputs, layer.hidden, layer.layers)
        self.state: Any = None
        self.carries = True

    def forward(self, x: Any) -> Any:
        y, state = self.layers(x, self.state)
        if self.carries:
            self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return y


def module(layer: Any) -> nn.Module:
    """One layer of a description."""
    if isinstance(layer, networks.Conv):
        return nn.Conv2d(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, bias=layer.bias
        )
    if isinstance(layer, networks.MaxPool):
        return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
    if isinstance(layer, networks.Linear):
        return nn.Linear(layer.inputs, layer.outputs)
    make = {
        networks.Norm: lambda: nn.BatchNorm2d(layer.channels),
        networks.Relu: nn.ReLU,
        networks.GlobalMean: lambda: nn.AdaptiveAvgPool2d(1),
        networks.Flatten: nn.Flatten,
        networks.Dropout: lambda: nn.Dropout(layer.p),
        networks.PixelShuffle: lambda: nn.PixelShuffle(layer.factor),
        networks.Subsample: lambda: _Subsample(layer.new_channels),
        networks.Residual: lambda: _Residual(layer),
        networks.Embedding: lambda: nn.Embedding(layer.count, layer.size),
        networks.Recurrent: lambda: _Recurrent(layer),
        networks.Rows: lambda: nn.Flatten(0, 1),
    }
    return make[type(layer)]()


def network(name: str, values: list[np.ndarray] | None = None) -> nn.Module:
    """The network, with these values of its parameters."""
    with torch.device(device()):  # which draws its own values there
        result = nn.Sequential(*map(module, NETWORKS[name].layers))
    if values is not None:
        with torch.no_grad():
            for parameter, value in zip(result.parameters(), values, strict=True):
                parameter.copy_(tensor(value))
    return result


def _formats(name: str) -> dict[str, Any]:
    """The memory formats that make a difference to the network."""
    formats = {"contiguous": torch.contiguous_format}
    if len(NETWORKS[name].sample) == 3:
        formats["channels-last"] = torch.channels_last
    return formats


def steps(
    name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray], autocast: str | None = None
) -> dict[str, Call]:
    """A training step for each memory format; the call returns the loss."""
    return {
        f"torch/{label}": step(name, x, target, values, memory_format, autocast)
        for label, memory_format in _formats(name).items()
    }


def compiled_steps(
    name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray], autocast: str | None = None
) -> dict[str, Call]:
    """A training step whose network is compiled, which takes a minute; channels-last where that matters."""
    layout = list(_formats(name).values())[-1]
    return {"torch-compile": step(name, x, target, values, layout, autocast, compiled=True)}


def graph_steps(
    name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray], autocast: str | None = None
) -> dict[str, Call]:
    """The same as CUDA graphs; beside them, as a peer of its own, eager mode."""
    eager = steps(name, x, target, values, autocast)
    graphs = {
        f"torch/{label}": captured(step(name, x, target, values, memory_format, autocast, capturable=True))
        for label, memory_format in _formats(name).items()
    }
    return graphs | {call.replace("torch", "torch-eager", 1): run for call, run in eager.items()}


def captured(run: Call) -> Call:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def step(
    name: str,
    x: np.ndarray,
    target: np.ndarray,
    values: list[np.ndarray] | None,
    layout: Any,
    autocast: str | None = None,
    *,
    capturable: bool = False,
    compiled: bool = False,
) -> Call:
    """A training step: forward and loss, in mixed precision where `autocast` names a dtype; backward, Adam."""
    model = network(name, values).to(memory_format=layout)
    for part in model:
        if isinstance(part, _Recurrent):
            part.carries = not capturable  # a graph cannot
    images, wanted = tensor(x), tensor(target)
    if images.ndim == 4:
        images = images.contiguous(memory_format=layout)
    loss_function = nn.MSELoss() if NETWORKS[name].classes is None else nn.CrossEntropyLoss()
    if NETWORKS[name].classes is None:
        wanted = images
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=capturable)
    forward = torch.compile(model) if compiled else model
    dtype = getattr(torch, autocast) if autocast else None

    def run() -> Any:
        # A capture must not keep casts of weights for the replays.
        kind, cached = images.device.type, not capturable
        with torch.autocast(kind, dtype, cache_enabled=cached) if dtype else nullcontext():
            loss = loss_function(forward(images), wanted)
        loss.backward()
        adam.step()
        adam.zero_grad()
        return loss.detach()

    return run


def inferences(name: str, x: np.ndarray, target: np.ndarray, values: list[np.ndarray]) -> dict[str, Call]:
    """Inference for each memory format; the call returns the result."""
    return {f"torch/{label}": inference(name, x, values, layout) for label, layout in _formats(name).items()}


def inference(name: str, x: np.ndarray, values: list[np.ndarray], layout: Any) -> Call:
    """The network's result, nothing recorded."""
    model = network(name, values).to(memory_format=layout).eval()
    images = tensor(x).contiguous(memory_format=layout)

    def run() -> Any:
        with torch.inference_mode():
            return model(images)

    return run
