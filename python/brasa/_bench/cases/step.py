"""Cases of whole steps: training with Adam, and inference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

import brasa
from brasa._bench.cases.contestants import UNITS, array, on_device, whole_numbers
from brasa._bench.harness import Call, Case
from brasa._bench.networks import NETWORKS, forward_flops, in_brasa, reads_characters

# Makes the peers' calls from the images, the target (classes, or the images themselves) and the values of the
# parameters in order, so that all start with the same weights.
MakePeers = Callable[[np.ndarray, np.ndarray, list[np.ndarray]], dict[str, Call]]


def random_batch(name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and what the loss compares with: classes, or the images themselves. Or texts, and what follows."""
    network = NETWORKS[name]
    if reads_characters(name):
        steps, kinds = network.sample[0], network.classes or 0
        return whole_numbers(kinds, steps, batch), whole_numbers(kinds, steps * batch)
    x = array(batch, *network.sample)
    if network.classes is None:
        return x, x
    return x, whole_numbers(network.classes, batch)


def training_step(
    name: str,
    batch: int,
    peers: MakePeers | None = None,
    *,
    autocast: str | None = None,
    graph: bool = False,
) -> Case:
    """Forward, loss, backward and Adam on random samples. The call returns the loss.

    With `autocast` forward and loss are computed in mixed precision of that dtype; with `graph` the step is a
    CUDA graph, of peers who also capture theirs.
    """

    def make() -> dict[str, Call]:
        from brasa import nn, optim

        x, target = random_batch(name, batch)
        network = on_device(in_brasa(name))
        values = [p.data.copy() for p in network.parameters()] if peers else []
        loss_function = nn.MSELoss() if NETWORKS[name].classes is None else nn.CrossEntropyLoss()
        adam = optim.Adam(network.parameters(), lr=1e-3)

        # A graph cannot carry a state on in Python: each of its steps begins a new text.
        begin = network.reset if graph and reads_characters(name) else lambda: None

        def step(x: Any = x, target: Any = target) -> Any:
            begin()
            with brasa.autocast(autocast) if autocast else nullcontext():
                loss = loss_function(network(x), target)
            loss.backward()
            adam.step()
            adam.zero_grad()
            return loss

        captured = brasa.cuda.graph(step) if graph else step
        call = (lambda: captured(x, target)) if graph else step
        return {"brasa": call, **(peers(x, target, values) if peers else {})}

    # The backward computes about twice what the forward does: a gradient for each operand of a product.
    work = 3.0 * batch * forward_flops(name)
    ways = [f", {autocast}" if autocast else "", ", CUDA graph" if graph else ""]
    family = f"train{' graph' * graph}{f' {autocast}' if autocast else ''}"
    label = f"{name} training step, Adam, batch {batch}{''.join(ways)}"
    return Case(family, label, make, work, 0, launches=True, unit=UNITS[autocast or "float32"])


def inference(name: str, batch: int, peers: MakePeers | None = None) -> Case:
    """The network's result for random images, nothing recorded. The call returns it."""

    def make() -> dict[str, Call]:
        x, target = random_batch(name, batch)
        network = on_device(in_brasa(name))
        values = [p.data.copy() for p in network.parameters()] if peers else []
        network.eval()

        def infer() -> Any:
            with brasa.no_grad():
                return network(x)

        return {"brasa": infer, **(peers(x, target, values) if peers else {})}

    return Case(
        "infer", f"{name} inference, batch {batch}", make, batch * forward_flops(name), 0, launches=True
    )
