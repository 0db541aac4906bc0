"""Cases of dropout."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from brasa import ops
from brasa._bench.cases.contestants import Peers, array, tensor, torch_autograd
from brasa._bench.harness import Call, Case


def dropout(shape: tuple[int, ...], against: Peers, *, backward: bool = False) -> Case:
    """Dropout of half of an array, its mask drawn anew; PyTorch draws once and keeps it for the backward."""

    def make() -> dict[str, Call]:
        x = array(*shape)

        def both() -> Any:
            ops.dropout(x, 0.5, 1, 0)
            return ops.dropout_backward(x, 0.5, 1, 0)

        calls: dict[str, Call] = {"brasa": both if backward else lambda: ops.dropout(x, 0.5, 1, 0)}
        if "numpy" in against and not backward:
            rng = np.random.default_rng(1)
            calls["numpy"] = lambda: np.where(rng.random(shape, np.float32) < 0.5, 0, x * 2)
        if "torch" in against:
            import torch

            tx, function = tensor(x), torch.nn.functional.dropout
            calls["torch"] = lambda: function(tx, 0.5)
            if backward:
                calls["torch"] = torch_autograd(lambda t: function(t, 0.5), [tx.clone()], tx)
        return calls

    name = f"dropout {'fwd+bwd' if backward else 'fwd'} {'x'.join(map(str, shape))}"
    return Case("dropout", name, make, 0, (16.0 if backward else 8.0) * prod(shape))
