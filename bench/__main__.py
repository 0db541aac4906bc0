"""``python -m bench [FAMILY ...]``: every family on the shapes of real networks, against its peers.

Each line has the time, GFLOP/s or GB/s, the share of this machine's limit, measured in the same run, and the
ratio to each peer (above 1, brasa is faster) with its quartiles; geometric means follow. --json records the run,
--plot draws it, --compare names the rows that lost more than 10 % of their share. Ctrl-C ends a run early and
keeps what was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

from bench import families
from bench.compare import comparison
from brasa import _cpu
from brasa._bench import report
from brasa._bench.cases.conv import PASSES
from brasa._bench.command import run
from brasa._bench.harness import Case, Result
from brasa._bench.limits import Limits

PEERS = ("numpy", "torch", "jax")
_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n\n")[1])
    add = result.add_argument
    add(
        "family",
        nargs="*",
        help=f"any of {', '.join(families.FAMILIES)}, or conv, deepbench; all without one",
    )
    add("--against", default="", help=f"peers, separated by commas: {', '.join(PEERS)}")
    add("--only", default="", help="cases whose family and name contain this")
    add("--passes", default="fwd,fwd+bwd", help=f"of convolutions, any of {', '.join(PASSES)}")
    add("--rounds", type=int, default=9, help="turns of each contestant (default 9)")
    add(
        "--patience",
        type=float,
        default=10.0,
        help="seconds after which 3 rounds of a case suffice (default 10)",
    )
    add("--isa", choices=_cpu.supported_isas(), help="instruction set (default: the best)")
    add("--threads", type=int, help="threads of brasa and of PyTorch")
    add("--json", metavar="FILE", help="write the results as JSON")
    add("--plot", metavar="DIR", help="draw the results into this folder")
    add("--compare", metavar="FILE", nargs="?", const="", help="name rows that lost against a recorded run")
    add("--list", action="store_true", help="name the cases and measure nothing")
    return result


def _known(error: argparse.ArgumentParser, given: str, known: tuple[str, ...]) -> list[str]:
    """The parts of a list with commas."""
    parts = [part for part in given.split(",") if part]
    for part in parts:
        if part not in known:
            error.error(f"unknown {part!r}: choose from {', '.join(known)}")
    return parts


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, checked; ends the process with status 2 where they are wrong."""
    arguments_of = parser()
    options = arguments_of.parse_args(arguments)
    options.against = _known(arguments_of, options.against, PEERS)
    options.passes = _known(arguments_of, options.passes, PASSES)
    try:
        families.chosen(options.family)
    except ValueError as error:
        arguments_of.error(str(error))
    for peer in options.against:
        if importlib.util.find_spec(peer) is None:
            arguments_of.error(f"--against {peer}: it is not installed (pip install {peer})")
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        arguments_of.error("--rounds and --threads: expected at least 1")
    return options


class Progress:
    """Tells on a terminal how many cases are left, and about how long they take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        if sys.stderr.isatty():
            text = f"{self.done} of {self.total}, about {left / 60:.0f} min left" if left > 60 else ""
            print(f"\r{text:40}\r", end="", file=sys.stderr, flush=True)


def use_threads(against: list[str]) -> None:
    """As many threads for PyTorch as for brasa."""
    if "torch" in against:
        import torch

        torch.set_num_threads(_cpu.num_threads())


def run_until_interrupted(
    cases: list[Case], machine: Limits, rounds: int, patience: float
) -> tuple[list, bool]:
    """The results, and whether Ctrl-C cut them short."""
    results: list[Result] = []
    try:
        run(cases, machine, rounds, results, done=Progress(len(cases)), patience=patience)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {len(results)} of {len(cases)} cases measured", file=sys.stderr)
        return results, True
    return results, False


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    options = parse(arguments)
    if options.isa:
        _cpu._set_isa(options.isa)
    if options.threads:
        _cpu.set_num_threads(options.threads)
    cases = families.selected(options.family, options.against, options.passes, options.only)
    if not cases:
        print(f"no case has {options.only!r} in its name", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{case.family}: {case.name}" for case in cases))
        return 0
    use_threads(options.against)
    machine = Limits()
    print(report.machine_line(machine))
    print(report.header())
    results, interrupted = run_until_interrupted(cases, machine, options.rounds, options.patience)
    if results:
        conclude(options, results, machine)
    return _INTERRUPTED if interrupted else 0


def conclude(options: argparse.Namespace, results: list[Result], machine: Limits) -> None:
    """Means, JSON, pictures and the comparison, as the options ask for."""
    print(report.means(results))
    if options.json:
        report.write_json(options.json, results, machine)
    if options.plot:
        from bench.pictures import draw

        for path in draw(options.plot, results, machine.peak, machine.bandwidth):
            print(path)
    if options.compare is not None:
        try:
            print(comparison(results, options.compare))
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
