"""The table that ``Module.summary`` returns."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from brasa.autograd import no_grad
from brasa.tensor import Tensor

if TYPE_CHECKING:
    from brasa.nn.module import Module


def summary_table(model: Module, input_shape: tuple[int, ...], dtype: Any) -> str:
    """Return one line per leaf module in the order of the calls, then the totals.

    The model runs once, in eval mode and without recording, on a batch of one sample of zeros.
    """
    x = _one_sample(model, input_shape, dtype)
    calls = _recorded_calls(model, x)
    rows = [("layer", "output shape", "parameters")]
    counted: set[int] = set()
    for label, module, shape in calls:
        rows.append((label, shape, f"{_count(module.parameters(), counted):,}"))
    everything = list(model.parameters())
    total = f"{_count(everything, set()):,}"
    trainable = f"{_count((p for p in everything if p.requires_grad), set()):,}"
    rows += [("total", "", total), ("trainable", "", trainable)]
    return _format(rows)


def _one_sample(model: Module, input_shape: tuple[int, ...], dtype: Any) -> Tensor:
    if not isinstance(input_shape, tuple | list) or not all(
        isinstance(n, int) and n >= 0 for n in input_shape
    ):
        raise ValueError(
            f"input_shape: expected a tuple of sizes without the batch dimension, got {input_shape!r}"
        )
    first = next(model.parameters(), None)
    if dtype is None:
        dtype = np.float32 if first is None else first.dtype
    x = Tensor(np.zeros((1, *input_shape), dtype))
    return x if first is None else x.to(first.device)


def _recorded_calls(model: Module, x: Tensor) -> list[tuple[str, Module, str]]:
    """Run the model with a hook on every module that has parameters of its own or no submodules."""
    calls: list[tuple[str, Module, str]] = []
    shown = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None
    ]
    width = max(len(name) for name, _ in shown)
    labels = {id(module): f"{name:<{width}}  {type(module).__name__}".lstrip() for name, module in shown}

    def record(module: Module, args: tuple[Any, ...], result: Any) -> None:
        if getattr(module, "returns_state", False):  # whose shape has no batch in front
            result = result[0]
        calls.append((labels[id(module)], module, _shapes(result)))

    modes = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_hook(record) for _, module in shown]
    try:
        model.eval()
        with no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return calls


def _shapes(result: Any) -> str:
    if isinstance(result, tuple | list):
        return ", ".join(_shapes(r) for r in result)
    return f"({', '.join(['N', *map(str, result.shape[1:])])})" if hasattr(result, "shape") else "-"


def _count(parameters: Any, counted: set[int]) -> int:
    """Sum the sizes of those not counted yet: a shared parameter counts where it comes first."""
    fresh = [p for p in parameters if id(p) not in counted]
    counted.update(id(p) for p in fresh)
    return sum(prod(p.shape) for p in fresh)


def _format(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])
