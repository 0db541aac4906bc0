"""Cases of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, torch_autograd
from brasa._bench.harness import Call, Case


def embedding(count: int, rows: int, columns: int, against: Peers, *, backward: bool = False) -> Case:
    """Rows of a table, or the gradient of the table besides."""

    def make() -> dict[str, Call]:
        weight, dy = array(rows, columns), array(count, columns, seed=2)
        indices = np.random.default_rng(1).integers(0, rows, count)

        def both() -> Any:
            ops.embedding(indices, weight)
            return [ops.embedding_backward(dy, indices, weight)]

        calls: dict[str, Call] = {"brasa": both if backward else lambda: ops.embedding(indices, weight)}
        if "numpy" in against and not backward:
            calls["numpy"] = lambda: weight[indices]
        if "torch" in against:
            import torch

            tw, ti = torch.from_numpy(weight), torch.from_numpy(indices)
            calls["torch"] = lambda: torch.nn.functional.embedding(ti, tw)
            if backward:
                calls["torch"] = torch_autograd(
                    lambda w: torch.nn.functional.embedding(ti, w), [tw.clone()], torch.from_numpy(dy)
                )
        return calls

    name = f"embedding {'fwd+bwd' if backward else 'fwd'} {count} of {rows}x{columns}"
    size = count * columns
    nbytes = 8.0 * size + (4.0 * (rows * columns + size) if backward else 0)
    return Case("embedding", name, make, 0, nbytes)
