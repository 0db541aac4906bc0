"""What CUDA kernels ask of the memory system, counted on the emulator: `python tools/access_lint.py [CASE ...]`.

For every kernel of a case, the sectors of 32 bytes that its requests to device memory touch, and the wavefronts of
those to shared memory (bank conflicts make more of them), over the least that the same bytes need. 1.00 is perfect.

--lines    the instructions behind it, worst first, by source line
--write    write what was found to tests/emulator/access_budgets.toml, which a test holds the kernels to

Shapes are small and everyday; a kernel that reads by index, or ends in the middle of a tile, has more than 1.00 for a
reason. Needs what the emulated tests need. See docs/dev/emulator.md.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from access_cases import CASES, fill_cases

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = ROOT / "tests" / "emulator" / "access_budgets.toml"


class Line(NamedTuple):
    """What one instruction of a kernel did in a case."""

    kernel: str
    place: str
    shared: bool
    write: bool
    requests: int
    moved: int
    ideal: int


# Kernels that no case can reach, and why.
WITHOUT_BUDGET = dict.fromkeys(
    ("max_pool_kernel", "max_pool_backward_kernel", "mean_pool_kernel", "mean_pool_backward_kernel"),
    "of images from 2^31 elements on",
)


# --- counting -----------------------------------------------------------------------------------------


def emulated() -> Any:
    """The module `emulated`, on the kernels that count."""
    import os

    os.environ["BRASA_EMULATOR_RACE"] = "1"
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest

    conftest.build_test_modules()
    sys.path.insert(0, str(conftest.modules_folder() / "tests"))
    import emulated

    return emulated


def measure(
    module: Any, names: Iterable[str] = (), races: dict[str, str] | None = None
) -> dict[str, list[Line]]:
    """What the kernels of each case did; with `races`, what the race check says of a case goes there."""
    if not CASES:
        fill_cases()
    kernels = module.kernels
    found: dict[str, list[tuple[Any, ...]]] = {}
    kernels.set_option("race", "off" if races is None else "on")
    kernels.set_option("lint", "on")
    try:
        for name in names or CASES:
            kernels._access_lines()
            try:
                CASES[name](module.asarray)
            except RuntimeError as error:
                if races is None:
                    raise
                races[name] = str(error)
            found[name] = kernels._access_lines()
    finally:
        kernels.set_option("lint", "off")
        kernels.set_option("race", "on")
    offsets = sorted({o for lines in found.values() for line in lines for o in line[:2]})
    places = _resolve(kernels.__file__, offsets)
    return {
        name: [Line(_short(places[k][0]), places[pc][1], *rest) for k, pc, *rest in lines]
        for name, lines in found.items()
    }


def kernel_names() -> set[str]:
    """All kernels of csrc."""
    bounds = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
    kernel = re.compile(rf"__global__\s+void\s+{bounds}(\w+)\s*\(")
    names: list[str] = []
    for path in sorted((ROOT / "csrc").rglob("*.cu*")):
        text = path.read_text()
        here = kernel.findall(text)
        assert len(here) == text.count("__global__ void"), f"{path}: a kernel that is not understood"
        names += here
    return set(names)


def _resolve(module: str, offsets: list[int]) -> dict[int, tuple[str, str]]:
    """The function and the innermost file:line of every offset."""
    command = ["addr2line", "-a", "-f", "-C", "-i", "-e", module]
    done = subprocess.run(
        command, input="\n".join(map(hex, offsets)), capture_output=True, text=True, check=True
    )
    result: dict[int, tuple[str, str]] = {}
    for block in re.split(r"^(?=0x)", done.stdout, flags=re.MULTILINE)[1:]:
        address, *pairs = block.splitlines()
        places = [place.split("/csrc/")[-1].split(" ")[0] for place in pairs[1::2]]
        own = [p for p in places if p.split(":")[0].endswith(".cu")] or places
        inner = places[0] if places[0] == own[0] else f"{own[0]} ({places[0].rpartition('/')[2]})"
        result[int(address, 16)] = pairs[-2], inner
    return result


def _short(function: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    name = function.split(" [clone")[0]
    depth, end = 0, len(name)
    for i, letter in enumerate(name):  # the parameters begin at the first bracket outside < >
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and not depth and not name.startswith("(anonymous", i):
            end = i
            break
    name = re.sub(r"\(anonymous namespace\)::|brasa::|cuda::|simt::", "", name[:end])
    return name.removeprefix("void ")


def ratios(lines: Iterable[Line]) -> dict[str, tuple[float, float]]:
    """For every kernel what it moved over the ideal, in device and in shared memory (0: it did not)."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for line in lines:
        sums[line.kernel][2 * line.shared] += line.moved
        sums[line.kernel][2 * line.shared + 1] += line.ideal
    return {
        kernel: tuple(moved / ideal if ideal else 0.0 for moved, ideal in ((s[0], s[1]), (s[2], s[3])))  # type: ignore[misc]
        for kernel, s in sorted(sums.items())
    }


def budgets() -> dict[str, dict[str, list[float]]]:
    """What the kernels of each case may move, as `ratios` has it."""
    return tomllib.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}


def over_budget(name: str, found: dict[str, tuple[float, float]]) -> list[str]:
    """What is wrong with the ratios of a case, in words."""
    allowed, wrong = budgets().get(name, {}), []
    for kernel, measured in found.items():
        if kernel not in allowed:
            wrong.append(f"{name}: {kernel} has no budget")
            continue
        for memory, now, most in zip(("device", "shared"), measured, allowed[kernel]):
            if now > most + 0.005:
                wrong.append(
                    f"{name}: {kernel} moves {now:.2f} of the ideal in {memory} memory, budget {most:.2f}"
                )
    return wrong


# --- the command --------------------------------------------------------------------------------------


def as_toml(found: dict[str, list[Line]]) -> str:
    """The budget file."""
    head = """# What kernels may ask of memory over the least that their bytes need: [device, shared]; 0 where they ask
# nothing. Written by `python tools/access_lint.py --write`.
"""
    parts = [head]
    for name, lines in found.items():
        rows = [
            f'"{kernel}" = [{", ".join(f"{math.ceil(100 * r - 0.001) / 100:.2f}" for r in pair)}]'
            for kernel, pair in ratios(lines).items()
        ]
        parts.append("\n".join([f'["{name}"]', *rows]) + "\n")
    return "\n".join(parts)


def report(found: dict[str, list[Line]], with_lines: bool) -> str:
    """A line for each kernel, and those of its instructions that move more than they need."""
    rows = [f"{'device':>7} {'shared':>7}  case and kernel"]
    for name, lines in found.items():
        for kernel, pair in ratios(lines).items():
            rows.append(" ".join(f"{r:7.2f}" if r else "      -" for r in pair) + f"  {name}: {kernel}")
            if not with_lines:
                continue
            wasteful = [x for x in lines if x.kernel == kernel and x.moved > x.ideal]
            for x in sorted(wasteful, key=lambda x: x.ideal - x.moved):
                what = f"{'write' if x.write else 'read'}, {'shared' if x.shared else 'device'} memory"
                rows.append(
                    f"{'':17} {x.place}: {what}: {x.requests} requests, {x.moved} for {x.ideal}"
                    f" {'wavefronts' if x.shared else 'sectors'}"
                )
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help="part of the name of cases; all without one")
    parser.add_argument("--lines", action="store_true", help="also the source lines")
    parser.add_argument("--write", action="store_true", help="write the budget file")
    options = parser.parse_args(arguments)
    module = emulated()
    fill_cases()
    names = [name for name in CASES if not options.case or any(part in name for part in options.case)]
    found = measure(module, names)
    print(report(found, options.lines))
    if options.write:
        kept = {name: found[name] for name in CASES if name in found}
        if len(kept) != len(CASES):
            parser.error("--write needs all cases")
        BUDGETS.write_text(as_toml(found))
        return 0
    wrong = [text for name, lines in found.items() for text in over_budget(name, ratios(lines))]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
