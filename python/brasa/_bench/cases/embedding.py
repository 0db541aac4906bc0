"""Cases of embeddings."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, library, tensor, torch_autograd, whole_numbers
from brasa._bench.harness import Call, Case


def embedding(count: int, rows: int, columns: int, against: Peers, *, backward: bool = False) -> Case:
    """Rows of a table, or the gradient of the table besides."""

    def make() -> dict[str, Call]:
        weight, dy = array(rows, columns), array(count, columns, seed=2)
        indices = whole_numbers(rows, count)

        def both() -> Any:
            ops.embedding(indices, weight)
            return [ops.embedding_backward(dy, indices, weight)]

        calls: dict[str, Call] = {"brasa": both if backward else lambda: ops.embedding(indices, weight)}
        own = library(against)
        if own and not backward:
            calls[own] = lambda: weight[indices]
        if "torch" in against:
            import torch

            tw, ti = tensor(weight), tensor(indices)
            calls["torch"] = lambda: torch.nn.functional.embedding(ti, tw)
            if backward:
                calls["torch"] = torch_autograd(
                    lambda w: torch.nn.functional.embedding(ti, w), [tw.clone()], tensor(dy)
                )
        return calls

    name = f"embedding {'fwd+bwd' if backward else 'fwd'} {count} of {rows}x{columns}"
    size = count * columns
    nbytes = 8.0 * size + (4.0 * (rows * columns + size) if backward else 0)
    return Case("embedding", name, make, 0, nbytes)
