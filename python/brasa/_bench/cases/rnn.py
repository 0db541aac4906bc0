"""Cases of recurrent layers: one layer, one direction, over all steps."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, tensor
from brasa._bench.harness import Call, Case

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _brasa(cell: str, x: Any, weights: list[Any], dy: Any, backward: bool) -> Call:
    operator, gradients = getattr(ops, cell), getattr(ops, f"{cell}_backward")
    states = (None, None) if cell == "lstm" else (None,)
    of_states = (None,) * len(states)

    def both() -> Any:
        _, saved = operator(x, *states, *weights, save=True)
        return gradients(dy, *of_states, x, *states, *weights, saved=saved)

    return both if backward else lambda: operator(x, *states, *weights)[0]


def _torch(cell: str, x: Any, weights: list[Any], dy: Any, backward: bool) -> Call:
    """PyTorch's layer, in the way it is called: in training with autograd, else without."""
    import torch

    layer = getattr(torch.nn, cell.upper())(x.shape[2], dy.shape[2]).to(tensor(x).device)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), weights, strict=True):
            parameter.copy_(tensor(value))
    inputs, dy = tensor(x), tensor(dy)
    if backward:
        leaves = [inputs.requires_grad_(), *layer.parameters()]
        return lambda: torch.autograd.grad(layer(inputs)[0], leaves, dy)

    def run() -> Any:
        with torch.no_grad():
            return layer(inputs)[0]

    return run


def recurrent(
    cell: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    against: Peers,
    *,
    backward: bool = False,
    family: str = "rnn",
) -> Case:
    """A layer "lstm", "gru" or "rnn" over (T, B, I), alone or with the gradients of x and all weights."""
    rows = _GATES[cell] * hidden

    def make() -> dict[str, Call]:
        x, dy = array(steps, batch, inputs), array(steps, batch, hidden, seed=2)
        scale = hidden**-0.5
        weights = [
            array(*shape, seed=3 + i) * scale
            for i, shape in enumerate(((rows, inputs), (rows, hidden), (rows,), (rows,)))
        ]
        calls: dict[str, Call] = {"brasa": _brasa(cell, x, weights, dy, backward)}
        if "torch" in against:
            calls["torch"] = _torch(cell, x, weights, dy, backward)
        return calls

    name = f"{cell} {'fwd+bwd' if backward else 'fwd'} T {steps} B {batch} I {inputs} H {hidden}"
    passes = 3 if backward else 1  # the backward has two products for each of the forward's
    return Case(
        family,
        name,
        make,
        flops=passes * 2.0 * steps * batch * rows * (inputs + hidden),
        nbytes=passes * 4.0 * (rows * (inputs + hidden) + steps * batch * (inputs + hidden)),
    )
