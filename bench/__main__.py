"""``python -m bench [FAMILY ...]``: every family on the shapes of real networks, against its peers.

Each line has the time, GFLOP/s or GB/s, the share of this machine's limit, measured in the same run, and the
ratio to each peer (above 1, brasa is faster) with its quartiles. Geometric means follow. ``--json`` records
the run, ``--plot`` draws it, ``--compare`` names the rows that lost more than 10 % of their share.
"""

from __future__ import annotations

import argparse
import json
import sys

from bench.families import FAMILIES
from brasa import _cpu
from brasa._bench import report
from brasa._bench.command import limits, run

PEERS = ("numpy", "torch")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[1])
    parser.add_argument("family", nargs="*", help=f"any of {', '.join(FAMILIES)}; all without one")
    parser.add_argument("--against", default="", help=f"peers, separated by commas: {', '.join(PEERS)}")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (default 9)")
    parser.add_argument("--isa", choices=_cpu.supported_isas(), help="instruction set (default: the best)")
    parser.add_argument("--threads", type=int, help="threads of brasa and of PyTorch")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", metavar="DIR", help="draw the results into this folder")
    parser.add_argument("--compare", metavar="FILE", help="name rows that lost against this recorded run")
    options = parser.parse_args(arguments)
    options.against = [peer for peer in options.against.split(",") if peer]
    for given, known in ((options.family, FAMILIES), (options.against, PEERS)):
        for name in given:
            if name not in known:
                parser.error(f"unknown {name!r}: choose from {', '.join(known)}")
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--rounds and --threads: expected at least 1")
    return options


def losses(results: list, recorded: dict) -> list[str]:
    """Rows whose best share of the limit fell by more than a tenth since the recorded run."""
    before = {(row["family"], row["name"]): row["best_share"] for row in recorded["results"]}
    lines = []
    for result in results:
        old = before.get((result.family, result.name))
        if old and result.best_share < 0.9 * old:
            lines.append(f"  {result.name}: {old:.0%} of the limit, now {result.best_share:.0%}")
    return lines


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.isa:
        _cpu._set_isa(options.isa)
    if options.threads:
        _cpu.set_num_threads(options.threads)
    if "torch" in options.against:
        import torch

        torch.set_num_threads(_cpu.num_threads())
    machine = limits()
    print(report.machine_line(machine))
    print(report.header())
    results: list = []
    for name in options.family or FAMILIES:
        chosen = (case for case in FAMILIES[name](options.against) if options.only in case.name)
        results += run(chosen, machine, options.rounds)
    if not results:
        print(f"no case has {options.only!r} in its name", file=sys.stderr)
        return 2
    print(report.means(results))
    if options.json:
        report.write_json(options.json, results, machine)
    if options.plot:
        for path in report.plot(options.plot, results, machine):
            print(path)
    if options.compare:
        with open(options.compare) as file:
            lost = losses(results, json.load(file))
        print(f"\n{len(lost)} of {len(results)} rows lost more than 10 % against {options.compare}")
        print("\n".join(lost))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
