"""``brasa bench [FAMILY ...]``: a minute of benchmarks that every installation can run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

from brasa._bench import cases, report
from brasa._bench.cases.contestants import Peers
from brasa._bench.harness import ON_CPU, Case, Result, Timer, measure
from brasa._bench.limits import Limits

__all__ = ["FAMILIES", "main"]

_LENET = {"N": 32, "C": 6, "H": 14, "W": 14, "O": 16, "kernel": 5}
_RESNET = {"N": 4, "C": 64, "H": 56, "W": 56, "O": 64, "kernel": 3, "padding": 1}

FAMILIES: dict[str, Callable[[Peers], Iterator[Case]]] = {
    "matmul": lambda peers: (cases.matmul(n, n, n, peers) for n in (64, 256, 512, 1024)),
    "conv": lambda peers: (
        cases.conv2d(layer, peers, direction=direction)
        for layer in (_LENET, _RESNET)
        for direction in ("fwd", "fwd+bwd")
    ),
    "pool": lambda peers: (
        cases.pool(kind, 2, 2, 0, peers, layout)
        for kind in ("max", "avg")
        for layout in ("contiguous", "channels-last")
    ),
    "activation": lambda peers: (cases.activation(name, peers) for name in ("relu", "tanh", "gelu")),
    "norm": lambda peers: (
        build(*shape, peers)
        for build, shape in ((cases.softmax, (4096, 1000)), (cases.layer_norm, (4096, 768)))
    ),
    "attention": lambda peers: (
        cases.attention(8, 8, 256, 64, peers, backward=backward) for backward in (False, True)
    ),
    "loss": lambda peers: (cases.loss(*shape, peers) for shape in ((128, 10), (4096, 1000))),
    "optim": lambda peers: (
        cases.optimizer_step(method, "lenet", cases.model_sizes("lenet"), peers) for method in ("sgd", "adam")
    ),
    "dropout": lambda peers: (cases.dropout(shape, peers) for shape in ((128, 512), (4096, 4096))),
    "embedding": lambda peers: (
        cases.embedding(8192, 32000, 256, peers, backward=backward) for backward in (False, True)
    ),
    "train": lambda peers: (cases.training_step(model, 128) for model in ("lenet", "mlp")),
    "infer": lambda peers: (cases.inference("lenet", batch) for batch in (1, 128)),
}


def run(
    selected: Iterable[Case],
    machine: Limits,
    rounds: int,
    results: list[Result],
    done: Callable[[], None] = lambda: None,
    patience: float = float("inf"),
    timer: Callable[[bool], Timer] = lambda launches: ON_CPU,
) -> None:
    """Measure the cases, printing a line for each as it comes; what was measured is in `results` at any time."""
    for case in selected:
        results.append(measure(case, machine, rounds, patience, timer(case.launches)))
        print(report.line(results[-1]), flush=True)
        done()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="brasa bench",
        description="How far the kernels are from this machine's limit, and NumPy from the kernels.",
    )
    parser.add_argument("family", nargs="*", help=f"any of {', '.join(FAMILIES)}; all without one")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant (default 7)")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.family if name not in FAMILIES]
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}: choose from {', '.join(FAMILIES)}")
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    machine = Limits()
    print(report.machine_line(machine))
    print(report.header())
    results: list[Result] = []
    for name in options.family or FAMILIES:
        run(FAMILIES[name](("numpy",)), machine, options.rounds, results)
    print(report.means(results))
    if options.json:
        report.write_json(options.json, results, machine)
    return 0
