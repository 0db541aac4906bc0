"""``python -m bench [FAMILY ...]``: every family on the shapes of real networks, against its peers.

Each line has the time, GFLOP/s or GB/s, the share of this machine's limit, measured in the same run, and the
ratio to each peer (above 1, brasa is faster) with its quartiles; geometric means follow. Without a family all but the
long lists of DeepBench are measured; "all" takes these too, the footprint, the sweep and the lesser instruction sets.
--json records the run, --plot draws it, --compare names the rows that lost more than 10 % of their share and ends with
status 1 where there are any. --record puts what is measured into bench/results, in place of the rows of that name,
and fills docs/speed.md: "all --record" makes the whole record, which takes an hour.
With --device cuda the CUDA kernels are measured, on the shapes of bench/gpu.py against CuPy and PyTorch on the GPU.
Ctrl-C ends a run early and keeps what was measured. Wrong options end it with status 2 before it begins.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import families
from bench.compare import comparison, recorded
from brasa import _cpu
from brasa._bench import report
from brasa._bench.cases.conv import PASSES
from brasa._bench.command import run
from brasa._bench.harness import ON_CPU, Case, Result, Timer
from brasa._bench.limits import Limits

PEERS = ("numpy", "torch", "jax")
PEERS_ON = {"cpu": PEERS, "cuda": ("cupy", "torch", "torch-tf32", "torch-compile")}
EXTRAS = ("footprint", "sweep", "isa")  # families that are no cases
RECORD = {"rounds": 5, "patience": 1.2}
_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n\n")[1])
    add = result.add_argument
    add(
        "family",
        nargs="*",
        help=f"any of {', '.join([*families.FAMILIES, *EXTRAS])}, or conv, deepbench, all",
    )
    add("--device", choices=PEERS_ON, default="cpu", help="what computes (default cpu)")
    peers = "; ".join(f"on {device} {', '.join(names)}" for device, names in PEERS_ON.items())
    add("--against", default="", help=f"peers, separated by commas: {peers}")
    add("--only", default="", help="cases whose family and name contain this")
    add(
        "--passes",
        default="",
        help=f"of convolutions, any of {', '.join(PASSES)} (default fwd,fwd+bwd; of ResNets and VGG-16 all)",
    )
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
    add(
        "--compare",
        metavar="FILE",
        nargs="?",
        const="",
        help="name rows that lost against a recorded run (status 1)",
    )
    add(
        "--record",
        action="store_true",
        help="against all installed peers, for bench/results and docs/speed.md",
    )
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
    options.against = _known(arguments_of, options.against, PEERS_ON[options.device])
    options.passes = _known(arguments_of, options.passes, PASSES)
    if "all" in options.family and options.device == "cpu":
        options.family += EXTRAS
    options.extras = [name for name in EXTRAS if name in options.family]
    options.family = [name for name in options.family if name not in EXTRAS]
    try:
        families.chosen(options.family, options.device)
    except ValueError as error:
        arguments_of.error(str(error))
    for peer in options.against:
        if not _installed(peer.partition("-")[0]):
            arguments_of.error(f"--against {peer}: it is not installed (pip install {peer})")
    if options.device == "cuda":
        _for_a_gpu(arguments_of, options)
    if options.record:
        _for_the_record(options)
    options.rounds = 9 if options.rounds is None else options.rounds
    options.patience = 10.0 if options.patience is None else options.patience
    _check_numbers(arguments_of, options)
    return options


def _check_numbers(error: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.rounds < 1:
        error.error(f"--rounds {options.rounds}: expected at least 1")
    if not options.patience >= 0:  # which is also so where it is no number
        error.error(f"--patience {options.patience}: expected at least 0 seconds")
    cpus = os.cpu_count() or 1
    if options.threads is not None and not 1 <= options.threads <= cpus:
        error.error(f"--threads {options.threads}: expected at least 1, and at most {cpus}, the CPUs here")


def _for_a_gpu(error: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what is of the CPU alone."""
    for name in ("isa", "threads", "record", "compare", "plot"):
        if getattr(options, name) not in (None, False):
            error.error(f"--{name}: the CPU's, not of --device cuda")
    if options.extras:
        error.error(f"{options.extras[0]} is measured on the CPU alone")


def _installed(peer: str) -> bool:
    return importlib.util.find_spec(peer) is not None


def _for_the_record(options: argparse.Namespace) -> None:
    """What --record sets where nothing else is asked for."""
    options.rounds = options.rounds or RECORD["rounds"]
    options.patience = RECORD["patience"] if options.patience is None else options.patience
    options.against = options.against or [peer for peer in PEERS if _installed(peer)]
    if not options.family and not options.extras:
        options.extras = list(EXTRAS)
        options.family = families.chosen(())


def check_outputs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Find out before measuring that results cannot be written or compared. Returns the runs to compare with.

    Raises
    ------
    OSError, ValueError, ImportError
        Why they cannot.
    """
    if options.json:
        if Path(options.json).is_dir():
            raise ValueError(f"--json {options.json}: a folder")
        _check_folder(Path(options.json).resolve().parent)
    if options.plot:
        from bench.pictures import start

        _check_folder(start(options.plot)[1])
    if options.record:
        from bench import record
        from bench.pictures import start

        _check_folder(start(record.RESULTS)[1])
        record.check(record.newest(), report.setting())
    return recorded(options.compare) if options.compare is not None else []


def _check_folder(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


class Progress:
    """Tells on a terminal how many cases are left, and about how long they take; and how long each family took."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases, self.done = cases, 0
        self.start = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def __call__(self) -> None:
        now, total = time.monotonic(), len(self.cases)
        family = self.cases[self.done].family
        self.seconds[family] = self.seconds.get(family, 0.0) + now - self.last
        self.last = now
        self.done += 1
        left = (now - self.start) / self.done * (total - self.done)
        if sys.stderr.isatty():
            text = f"{self.done} of {total}, about {left / 60:.0f} min left" if left > 60 else ""
            print(f"\r{text:40}\r", end="", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return ", ".join(f"{family} {seconds:.1f}" for family, seconds in self.seconds.items())


def use_threads(against: list[str]) -> None:
    """As many threads for PyTorch as for brasa."""
    if "torch" in against:
        import torch

        torch.set_num_threads(_cpu.num_threads())


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases that are asked for. In a record JAX takes part in whole steps alone: it is slow to compile."""
    if options.extras and not options.family:
        return []
    if not options.record:
        return families.selected(
            options.family, options.against, options.passes, options.only, options.device
        )
    few = [peer for peer in options.against if peer != "jax"]
    return [
        case
        for name in families.chosen(options.family)
        for case in families.selected(
            [name], options.against if name in ("train", "infer") else few, options.passes, options.only
        )
    ]


def run_all(
    cases: list[Case], options: argparse.Namespace, machine: Limits, timer: Callable[[bool], Timer]
) -> tuple[list[Result], dict, bool]:
    """The results, what the extras found, and whether Ctrl-C cut it short."""
    results: list[Result] = []
    more: dict[str, Any] = {}
    progress = Progress(cases)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit ends a run as Ctrl-C does
    try:
        run(cases, machine, options.rounds, results, progress, options.patience, timer)
        for name in options.extras:
            more |= measure_extra(name, machine, options)
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice; the rest is short
        print(f"\ninterrupted: {len(results)} of {len(cases)} cases measured", file=sys.stderr)
        return results, more, True
    finally:
        print(f"seconds of measuring: {progress}")
    return results, more, False


def measure_extra(name: str, machine: Limits, options: argparse.Namespace) -> dict[str, Any]:
    """The footprint, the sweep or the lesser instruction sets, printed line by line; as parts of a record."""

    def tell(text: str) -> None:
        print(text, flush=True)

    if name == "footprint":
        from bench import footprint

        return {"footprint": footprint.measure(tell)}
    if name == "isa":
        from bench import isa

        return {"isas": isa.run(tell, options.rounds)}
    from bench import sweep

    return {"sweep": sweep.run(machine, tell, options.rounds, options.only)}


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    options = parse(arguments)
    if options.isa:
        _cpu._set_isa(options.isa)
    if options.threads:
        _cpu.set_num_threads(options.threads)
    cases = selected(options)
    if not cases and not options.extras:
        print(f"no case has {options.only!r} in its name", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{case.family}: {case.name}" for case in cases))
        return 0
    try:
        runs = check_outputs(options)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.device == "cuda":
        return on_gpu(cases, options)
    use_threads(options.against)
    machine = Limits()
    print(report.machine_line(machine))
    if cases:
        print(report.header())
    results, more, interrupted = run_all(cases, options, machine, lambda launches: ON_CPU)
    if results or more:
        conclude(options, results, more, machine)
    lost = tell_losses(results, runs) if runs else 0
    return _INTERRUPTED if interrupted else int(lost > 0)


def tell_losses(results: list[Result], runs: list[dict[str, Any]]) -> int:
    """Print which rows lost against these runs. Returns how many."""
    text, lost = comparison(results, runs, report.setting())
    print(text)
    return lost


def on_gpu(cases: list[Case], options: argparse.Namespace) -> int:
    """Measure on the GPU; returns the exit status."""
    from brasa._bench import cuda
    from brasa._bench.cases.contestants import on

    on("cuda")
    more: dict[str, Any] = {"gpu": cuda.describe()}
    rates: dict[str, float] = {}
    if {"torch", "torch-tf32", "torch-compile"} & set(options.against):
        cuda.prepare_torch()
        rates = cuda.tensor_core_rates()
        more["gpu"] |= rates
    if "torch-tf32" in options.against:
        # A captured step stays in the precision that it was captured in.
        cases = [
            with_tf32(case) if case.unit == "fma" and case.flops and case.family != "train graph" else case
            for case in cases
        ]
    machine = cuda.limits(rates)
    print(report.gpu_line(machine, more["gpu"]))
    print(report.header())
    results, _, interrupted = run_all(cases, options, machine, cuda.timers())
    if results:
        conclude(options, results, more, machine)
    return _INTERRUPTED if interrupted else 0


def with_tf32(case: Case) -> Case:
    """The case with PyTorch in TF32 as one more peer."""
    from brasa._bench import cuda

    return replace(case, make=lambda: cuda.with_tf32(case.make()))


def conclude(
    options: argparse.Namespace, results: list[Result], more: dict[str, Any], machine: Limits
) -> None:
    """Means, JSON and pictures, as the options ask for."""
    if results:
        print(report.means(results))
    if options.json:
        report.write_json(options.json, results, machine, **more)
    if options.plot and results:
        from bench.pictures import draw

        print(*draw(options.plot, results, machine.peak, machine.bandwidth), sep="\n")
    if options.plot and more.get("sweep"):
        from bench.sweep import draw as draw_sweep

        print(draw_sweep(options.plot, more["sweep"]))
    if options.record:
        from bench.record import publish, save

        print(save({**report.as_record(results, machine), **more}))
        print(*publish(), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
