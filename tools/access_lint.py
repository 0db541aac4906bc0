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
import contextlib
import math
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


# --- cases --------------------------------------------------------------------------------------------

Case = Callable[[Any], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Add a function of `xp.asarray` to the cases."""

    def add(function: Case) -> Case:
        CASES[name] = function
        return function

    return add


def numbers(to: Any, *shape: int, dtype: Any = np.float32, channels_last: bool = False) -> Any:
    """Normal numbers on the device."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return to(x)


def indices(to: Any, high: int, *shape: int) -> Any:
    """Whole numbers of [0, high) on the device."""
    return to(np.random.default_rng(1).integers(0, high, shape))


def both_ways(function: Callable[..., Any], *arrays: Any) -> None:
    """A function's forward and backward pass."""
    import brasa as br

    tensors = [br.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y = function(*tensors)
    y.backward(br.Tensor(y.data.copy()))


@contextlib.contextmanager
def pretending(**options: int) -> Iterator[None]:
    """Another GPU meanwhile: its `capability` and its number of `multiprocessors`; tf32 is allowed."""
    import brasa
    import emulated

    given = {"capability": 90, "multiprocessors": 132}
    brasa.set_matmul_precision("tf32")
    try:
        for name, value in options.items():
            emulated.kernels.set_option(name, value)
        yield
    finally:
        brasa.set_matmul_precision("ieee")
        for name, value in given.items():
            emulated.kernels.set_option(name, value)


def _fill_cases() -> None:
    """The cases of all families."""
    from brasa import nn, ops

    F = nn.functional

    def operator(
        name: str,
        function: Callable[..., Any],
        image: tuple[int, ...],
        *shapes: tuple[int, ...],
        gpu: dict[str, int] | None = None,
        dtype: Any = np.float32,
        channels_last: bool = False,
    ) -> None:
        @case(name)
        def _run(to: Any) -> None:
            with pretending(**gpu) if gpu else contextlib.nullcontext():
                x = numbers(to, *image, dtype=dtype, channels_last=channels_last)
                both_ways(function, x, *(numbers(to, *shape, dtype=dtype) for shape in shapes))

    operator("gelu", ops.gelu, (4, 1030))
    operator("softmax of 1000", ops.softmax, (6, 1000))
    operator("softmax of 10", ops.softmax, (64, 10))
    operator("log softmax", ops.log_softmax, (6, 1000))
    operator("layer norm", lambda x, w, b: ops.layer_norm(x, w, b), (6, 768), (768,), (768,))
    operator("layer norm of long rows", lambda x, w, b: ops.layer_norm(x, w, b), (3, 9000), (9000,), (9000,))
    for layout in (False, True):
        where = "channels-last" if layout else "contiguous"

        def norm(x: Any) -> Any:
            return ops.batch_norm(x, training=True)

        operator(f"batch norm, {where}", norm, (4, 32, 14, 14), channels_last=layout)
        for pool in (ops.max_pool2d, ops.avg_pool2d):
            kind = pool.__name__.replace("_pool2d", " pool")
            operator(
                f"{kind}, {where}", lambda x, pool=pool: pool(x, 2), (2, 32, 16, 16), channels_last=layout
            )
            operator(
                f"{kind} of 3x2, {where}",
                lambda x, pool=pool: pool(x, (3, 2), (2, 1), padding=(1, 0)),
                (2, 32, 13, 16),
                channels_last=layout,
            )
        operator(
            f"pixel shuffle, {where}", lambda x: ops.pixel_shuffle(x, 2), (2, 32, 8, 8), channels_last=layout
        )
    operator("max pool of 32x32", lambda x: ops.max_pool2d(x, 32), (2, 8, 32, 32))
    operator("avg pool of 32x32", lambda x: ops.avg_pool2d(x, 32), (2, 8, 32, 32))
    case("max pool, indices")(
        lambda to: ops.max_pool2d(numbers(to, 2, 32, 16, 16), 3, 2, padding=1, return_indices=True)
    )
    operator("matmul", ops.matmul, (130, 72), (72, 140))
    operator("matmul by a weight", lambda x, w: ops.matmul(x, w, transpose_b=True), (130, 72), (140, 72))
    operator("matmul of 8 rows", lambda x, w: ops.matmul(x, w, transpose_b=True), (8, 256), (96, 256))
    operator("matmul of 16 bits", ops.matmul, (128, 128), (128, 128), dtype=np.float16)
    hopper, ampere = {"capability": 90, "multiprocessors": 1}, {"capability": 80}
    half: Any = {"dtype": np.float16}
    operator("matmul of 16 bits, Hopper", ops.matmul, (128, 128), (128, 128), gpu=hopper, **half)
    operator("matmul in tf32, Hopper", ops.matmul, (128, 128), (128, 128), gpu=hopper)
    operator("matmul of 16 bits, odd", ops.matmul, (33, 17), (17, 35), gpu=ampere, **half)
    operator("conv 3x3", lambda x, w: ops.conv2d(x, w, padding=1), (2, 16, 12, 12), (32, 16, 3, 3))
    operator("conv 1x1", ops.conv2d, (2, 32, 12, 12), (64, 32, 1, 1))
    operator(
        "conv, depthwise", lambda x, w: ops.conv2d(x, w, padding=1, groups=32), (2, 32, 12, 12), (32, 1, 3, 3)
    )
    operator(
        "conv, groups of 2 channels",
        lambda x, w: ops.conv2d(x, w, padding=1, groups=4),
        (2, 8, 12, 12),
        (8, 2, 3, 3),
    )

    def conv(x: Any, w: Any, b: Any) -> Any:
        return ops.conv2d(x, w, b, padding=1, stride=2)

    images, filters = (2, 64, 12, 12), ((64, 64, 3, 3), (64,))
    for name, gpu in (("", ampere), (", Hopper", hopper)):
        on_hopper = gpu is hopper
        operator(f"conv of 16 bits{name}", conv, images, *filters, channels_last=on_hopper, gpu=gpu, **half)
        operator(f"conv in tf32{name}", conv, images, *filters, gpu=gpu)
    operator("conv of 3 channels in float32", conv, (2, 3, 12, 12), (32, 3, 3, 3), (32,))
    operator("conv of 3 channels", conv, (2, 3, 20, 20), (64, 3, 5, 5), (64,), gpu=hopper, **half)
    operator("attention", ops.attention, (2, 70, 32), (2, 70, 32), (2, 70, 32))
    operator("attention of 16 bits", ops.attention, *[(2, 70, 64)] * 3, gpu=ampere, **half)
    operator("attention of 16 bits, Hopper", ops.attention, *[(2, 70, 64)] * 3, gpu=hopper, **half)
    operator("dropout", lambda x: ops.dropout(x, 0.4, 1, 0), (4, 1030))
    case("cross entropy")(
        lambda to: both_ways(lambda x, y: F.cross_entropy(x, y), numbers(to, 64, 100), indices(to, 100, 64))
    )
    case("embedding")(
        lambda to: both_ways(lambda i, w: ops.embedding(i, w), indices(to, 50, 40), numbers(to, 50, 64))
    )

    @case("adam")
    def _adam(to: Any) -> None:
        from brasa import Tensor, optim

        weight = Tensor(numbers(to, 70, 65), requires_grad=True)
        weight.grad = Tensor(numbers(to, 70, 65))
        optim.Adam([weight]).step()

    @case("exp, sum and cast")
    def _elements(to: Any) -> None:
        from brasa import _backend

        x = numbers(to, 4, 1030)
        kernels = _backend.backend_of(x).kernels
        kernels.exp_forward(x, numbers(to, 4, 1030))
        kernels.add(x, x, numbers(to, 4, 1030))
        _backend.cast(_backend.cast(x, np.float16), np.float32)
        kernels._store_words(np.arange(9), to(np.zeros(9, np.int64)))

    @case("unscale")
    def _unscale(to: Any) -> None:
        from brasa import GradScaler, Tensor, optim

        weight = Tensor(numbers(to, 70, 65), requires_grad=True)
        weight.grad = Tensor(numbers(to, 70, 65))
        GradScaler().unscale_(optim.SGD([weight], 0.1))

    @case("lstm")
    def _lstm(to: Any) -> None:
        layer = nn.LSTM(32, 64)
        for parameter in layer.parameters():
            parameter.data = to(parameter.data)
        both_ways(lambda x: layer(x)[0], numbers(to, 4, 16, 32))

    @case("ctc loss")
    def _ctc(to: Any) -> None:
        scores = ops.log_softmax(numbers(to, 20, 4, 12))
        lengths = np.full(4, 20), np.full(4, 6)
        both_ways(lambda x: ops.ctc_loss(x, 1 + indices(to, 11, 4, 6), *map(to, lengths)), scores)


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
        _fill_cases()
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
    _fill_cases()
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
