"""Cases of optimiser steps."""

from __future__ import annotations

from math import prod
from typing import Any

from brasa._bench.cases.contestants import Peers, array, tensor
from brasa._bench.harness import Call, Case
from brasa._bench.networks import NETWORKS, parameter_shapes

_STATES = {"sgd": 0, "sgd momentum": 1, "adam": 2, "adamw": 2}  # arrays beside parameter and gradient
_CLASSES = {"sgd": "SGD", "sgd momentum": "SGD", "adam": "Adam", "adamw": "AdamW"}


def model_sizes(model: str) -> list[tuple[int, ...]]:
    """The shapes of a model's parameters: from its description, as the model itself would draw their values."""
    return parameter_shapes(NETWORKS[model].layers)


def optimizer_step(method: str, name: str, shapes: list[tuple[int, ...]], against: Peers) -> Case:
    """One step of an optimiser over all parameters of a model."""
    options: dict[str, Any] = {"lr": 1e-3} | ({"momentum": 0.9} if method == "sgd momentum" else {})

    def make() -> dict[str, Call]:
        from brasa import nn, optim

        values, grads = ([array(*shape, seed=seed) for shape in shapes] for seed in (0, 1))
        parameters = [nn.Parameter(value.copy()) for value in values]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = parameter.detach() * 0 + grad
        calls: dict[str, Call] = {"brasa": getattr(optim, _CLASSES[method])(parameters, **options).step}
        if "torch" in against:
            import torch

            theirs = [tensor(value.copy()).requires_grad_() for value in values]
            for leaf, grad in zip(theirs, grads, strict=True):
                leaf.grad = tensor(grad)
            calls["torch"] = getattr(torch.optim, _CLASSES[method])(theirs, fused=True, **options).step
        return calls

    count = sum(prod(shape) for shape in shapes)
    reads_and_writes = 3 + 2 * _STATES[method]
    label = f"{method} {name} ({count:,} parameters)"
    distinct = 4.0 * (2 + _STATES[method]) * count
    return Case("optim", label, make, 0, 4.0 * reads_and_writes * count, "update", distinct)
