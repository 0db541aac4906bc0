"""Cases of recurrent layers: one layer, one direction, over all steps."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import BYTES, UNITS, Peers, array, in_precision, tensor, torch_dtype
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


def _torch(cell: str, x: Any, weights: list[Any], dy: Any, backward: bool, precision: str) -> Call:
    """PyTorch's layer, in the way it is called: in training with autograd, else without."""
    import torch

    dtype = torch_dtype(precision) or torch.float32
    layer = getattr(torch.nn, cell.upper())(x.shape[2], dy.shape[2]).to(tensor(x).device, dtype)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), weights, strict=True):
            parameter.copy_(tensor(value))
    inputs, dy = tensor(x).to(dtype), tensor(dy).to(dtype)
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
    precision: str = "float32",
) -> Case:
    """A layer "lstm", "gru" or "rnn" over (T, B, I), alone or with the gradients of x and all weights; in "float32" or
    "bfloat16", whose biases are float32.
    """
    rows = _GATES[cell] * hidden
    narrow = precision != "float32"

    def make() -> dict[str, Call]:
        x, dy = array(steps, batch, inputs), array(steps, batch, hidden, seed=2)
        scale = hidden**-0.5
        weights = [
            array(*shape, seed=3 + i) * scale
            for i, shape in enumerate(((rows, inputs), (rows, hidden), (rows,), (rows,)))
        ]
        own = [in_precision(w, precision) if w.ndim > 1 else w for w in weights]
        of_input, slope = (in_precision(a, precision) for a in (x, dy))
        calls: dict[str, Call] = {"brasa": _brasa(cell, of_input, own, slope, backward)}
        if "torch" in against:
            calls["torch"] = _torch(cell, x, weights, dy, backward, precision)
        return calls

    kind = f"{cell} {precision}" if narrow else cell
    name = f"{kind} {'fwd+bwd' if backward else 'fwd'} T {steps} B {batch} I {inputs} H {hidden}"
    passes = 3 if backward else 1  # the backward has two products for each of the forward's
    return Case(
        f"{family} {precision}" if narrow else family,
        name,
        make,
        flops=passes * 2.0 * steps * batch * rows * (inputs + hidden),
        nbytes=passes * BYTES[precision] * (rows * (inputs + hidden) + steps * batch * (inputs + hidden)),
        unit=UNITS[precision],
    )
