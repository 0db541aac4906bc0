"""Cases of pixel shuffle."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, in_layout, torch_formats
from brasa._bench.harness import Call, Case


def pixel_shuffle(
    shape: tuple[int, int, int], factor: int, against: Peers, layout: str, *, backward: bool = False
) -> Case:
    """(N, C r r, size, size) to (N, C, size r, size r) for shape (N, C, size); or its gradient, the inverse."""
    n, c, size = shape
    image = (n, c, size * factor, size * factor) if backward else (n, c * factor**2, size, size)
    name = "pixel_unshuffle" if backward else "pixel_shuffle"

    def make() -> dict[str, Call]:
        x = array(*image)
        ours, operator = in_layout(x, layout), getattr(ops, name)
        calls: dict[str, Call] = {"brasa": lambda: operator(ours, factor)}
        if "torch" in against:
            import torch

            function = getattr(torch.nn.functional, name)

            def theirs(tensors: list[Any]) -> Call:
                return lambda: function(tensors[0], factor)

            calls |= torch_formats(theirs, x)
        return calls

    direction = "bwd" if backward else "fwd"
    nbytes = 2 * 4.0 * n * c * (size * factor) ** 2
    return Case(
        f"shuffle {direction}", f"{name} {factor} {'x'.join(map(str, image))} {layout}", make, 0, nbytes
    )
