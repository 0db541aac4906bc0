"""Cases of pooling."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import (
    BYTES,
    Peers,
    array,
    in_layout,
    in_precision,
    torch_backward,
    torch_dtype,
    torch_formats,
)
from brasa._bench.harness import Call, Case


def pool(
    kind: str,
    kernel: int,
    stride: int,
    padding: int,
    against: Peers,
    layout: str,
    *,
    backward: bool = False,
    shape: tuple[int, int, int] = (16, 64, 112),
    precision: str = "float32",
) -> Case:
    """Max or average pooling of square images, or its gradient alone; in "float32" or "bfloat16"."""
    n, c, size = shape
    out = (size + 2 * padding - kernel) // stride + 1

    def make() -> dict[str, Call]:
        x, dy = array(n, c, size, size), array(n, c, out, out, seed=1)
        ours, dours = (in_precision(in_layout(a, layout), precision) for a in (x, dy))
        calls = {"brasa": _by_brasa(kind, ours, dours, (kernel, stride, padding), backward)}
        if "torch" in against:
            import torch

            name = f"{kind}_pool2d"
            function = getattr(torch.nn.functional, name)

            def theirs(tensors: list[Any]) -> Call:
                tx, tdy = tensors
                if backward:
                    return torch_backward(lambda t: function(t, kernel, stride, padding), [tx], tdy)
                return lambda: function(tx, kernel, stride, padding)

            calls |= torch_formats(theirs, x, dy, dtype=torch_dtype(precision))
        return calls

    direction = "bwd" if backward else "fwd"
    way = "" if precision == "float32" else f" {precision}"
    name = f"{kind} {kernel}x{kernel}/{stride} {n}x{c}x{size}x{size} {layout}{way} {direction}"
    nbytes = BYTES[precision] * n * c * (size * size + out * out)
    return Case(f"pool{way} {direction}", name, make, 0, nbytes)


def _by_brasa(kind: str, x: Any, dy: Any, window: tuple[int, int, int], backward: bool) -> Call:
    forward = ops.max_pool2d if kind == "max" else ops.avg_pool2d
    if not backward:
        return lambda: forward(x, *window)
    if kind == "avg":
        return lambda: [ops.avg_pool2d_backward(dy, x, *window)]
    _, saved = ops.max_pool2d(x, *window, save=True)
    return lambda: [ops.max_pool2d_backward(dy, saved)]
