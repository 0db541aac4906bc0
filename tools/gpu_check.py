"""Build, test and measure the CUDA kernels on this machine's GPU: `python tools/gpu_check.py [PART ...]`.

build      _cpu and _cuda for this GPU, in a folder beside the package's files (nothing is installed)
golden     what this GPU makes of fixed inputs, PTX wrapper by PTX wrapper: tests/emulator/golden/<capability>.npz, to
           be committed; tests/emulator/test_golden.py compares the emulator with it. Builds what it needs, in a minute
tests      the CUDA tests: every test that the fixtures `xp` and `device` run on CuPy's arrays
sanitizer  memcheck, racecheck, synccheck and initcheck of compute-sanitizer over the same tests, few examples each
bench      every family against PyTorch and CuPy (`python -m bench --device cuda`)

Without names, all of them in this order. A line tells how each part ended, a table at the end repeats them. Logs,
results as JSON and the clocks and power of the run are in the folder --out, also after Ctrl-C or a time limit.
The exit status is 0 where everything that was run passed; --list only says what would be run. Needs nvcc, CMake,
ninja, pybind11, CuPy, pytest and hypothesis; PyTorch for ratios, pytest-xdist to test in parallel. Downloads nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import gpu_run
from gpu_run import ROOT, TIMED_OUT, Run, end, tail

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_GOLDEN_SECONDS = 60  # a kernel that waits for ever is to end
_NOT_RUN = "not run: out of time"


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    passed: bool
    seconds: float
    detail: str


# --- parts --------------------------------------------------------------------------------------------


def configure_command(run: Run) -> list[object]:
    """CMake, for the GPUs of this machine."""
    import pybind11

    command = ["cmake", "-S", ROOT, "-B", run.build, "-G", "Ninja", "-DBRASA_CUDA=auto"]
    return [*command, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]


def failure(run: Run, steps: Iterable[tuple[str, Sequence[object]]]) -> str:
    """Run commands by name; which one failed and the end of its log, or nothing."""
    for name, command in steps:
        if run.command(command, f"{name}.log"):
            return f"{name} failed:\n{tail(run.out / f'{name}.log', 40)}"
    return ""


def build(run: Run) -> tuple[bool, str]:
    """Compile for this GPU and put the modules beside the package's Python files."""
    site = run.build / "site"
    steps = (
        ("configure", configure_command(run)),
        ("compile", ["cmake", "--build", run.build]),
        ("install", ["cmake", "--install", run.build, "--prefix", site]),
    )
    if failed := failure(run, steps):
        return False, failed
    shutil.copytree(ROOT / "python" / "brasa", site / "brasa", dirs_exist_ok=True)
    modules = sorted(path.name for path in (site / "brasa").glob("_cuda*.so"))
    return bool(modules), ", ".join(modules) or "no _cuda: is nvcc there?"


def golden(run: Run) -> tuple[bool, str]:
    """Record what this GPU makes of the inputs of tests/emulator/golden.py, in the source tree."""
    steps = (
        ("golden-configure", configure_command(run)),
        ("golden-compile", ["cmake", "--build", run.build, "--target", "_cuda_selftest"]),
    )
    if failed := failure(run, steps):
        return False, failed
    record, log = run.out / "golden.npz", run.out / "golden.log"
    record.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "tests" / "emulator" / "golden.py", run.build, record]
    if run.command(command, log.name, grace=1, limit=_GOLDEN_SECONDS):
        return False, f"ended in the last case of\n{tail(log)}"
    last = tail(log, 1)
    path = ROOT / "tests" / "emulator" / "golden" / f"{last.rpartition(' ')[2]}.npz"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(record, path)
    return True, f"{last}: {path.relative_to(ROOT)}, {path.stat().st_size // 1024} KiB"


def pytest_command(*arguments: object) -> list[object]:
    """pytest over what runs on CuPy's arrays, of which a -k among the arguments selects some."""
    rest, chosen = [], ["cupy"]
    given = iter(arguments)
    for argument in given:
        if argument == "-k":
            chosen.append(f"({next(given, '')})")
        else:
            rest.append(argument)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    return [sys.executable, "-m", "pytest", *options, "-k", " and ".join(chosen), *rest]


def junit_counts(path: Path) -> dict[str, int]:
    """Tests, failures, errors and skipped tests of a report in JUnit's format."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if path.exists():
        for suite in ET.parse(path).getroot().iter("testsuite"):
            for name in counts:
                counts[name] += int(suite.get(name, 0))
    return counts


def tests(run: Run) -> tuple[bool, str]:
    """The tests that run on the GPU; the emulator's are left out, and so is its build."""
    report = run.out / "tests.xml"
    report.unlink(missing_ok=True)
    workers = ["-n", str(min(16, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    command = pytest_command("-rf", "--tb=short", f"--junitxml={report}", *workers, *run.pytest_arguments)
    status = run.command(command, "tests.log")
    counts = junit_counts(report)
    ran = counts["tests"] - counts["skipped"]
    detail = f"{ran} run, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped"
    if status == TIMED_OUT:
        detail = "out of time"
    if status:
        detail += f"\n{tail(run.out / 'tests.log', 30)}"
    return status == 0 and ran > 0, detail


def sanitizer(run: Run) -> tuple[bool, str]:
    """Every tool over every test file, several processes at a time."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return False, "compute-sanitizer is not in PATH"
    if run.command(pytest_command("--collect-only", *run.pytest_arguments), "sanitizer-collect.log"):
        return False, tail(run.out / "sanitizer-collect.log")
    jobs = sanitizer_jobs((run.out / "sanitizer-collect.log").read_text(), run.tools)

    def check(job: tuple[str, str]) -> tuple[str, str, int, str]:
        tool, name = job
        if run.left() <= 0:
            return tool, name, TIMED_OUT, _NOT_RUN
        log = f"sanitizer-{tool}-{re.sub(r'[^a-z_]+', '-', name.removeprefix('tests/'))}.log"
        # initcheck must see who wrote what a kernel reads, whoever it is; the others look at our kernels alone.
        ours = [] if tool == "initcheck" else ["--kernel-regex", "kns=brasa"]
        options = ["--tool", tool, *ours, "--error-exitcode", "99", "--report-api-errors", "no"]
        command = [program, *options, *pytest_command(name, *run.pytest_arguments)]
        status = run.command(command, log, grace=gpu_run.QUICK, BRASA_TEST_TIER="sanitizer")
        return tool, name, status, sanitizer_summary((run.out / log).read_text(errors="replace"))

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        try:
            results = list(pool.map(check, jobs))
        except KeyboardInterrupt:
            run.stop()
            raise
    clean = sum(status == 0 for _, _, status, _ in results)
    late = sum(text == _NOT_RUN for _, _, _, text in results)
    bad = [f"{tool} {name}: status {status}, {text}" for tool, name, status, text in results if status]
    bad = [line for line in bad if not line.endswith(_NOT_RUN)]
    first = f"{clean} of {len(results)} runs clean" + (f", {late} {_NOT_RUN}" if late else "")
    return clean == len(results) > 0, "\n".join([first, *bad])


def sanitizer_jobs(collected: str, tools: Sequence[str] = TOOLS) -> list[tuple[str, str]]:
    """Tools with what they run, the slow ones first: racecheck function by function, the others file by file."""
    found = re.findall(r"^((tests/\S+\.py)::\w+)", collected, re.MULTILINE)
    functions = [pair for pair in dict.fromkeys(found) if "benchmark" not in pair[1]]
    files = list(dict.fromkeys(file for _, file in functions))
    jobs = [("racecheck", function) for function, _ in functions if "racecheck" in tools]
    return jobs + [(tool, file) for tool in tools if tool != "racecheck" for file in files]


def sanitizer_summary(text: str) -> str:
    """The line in which compute-sanitizer sums up its findings."""
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    return found[-1] if found else "no summary"


def bench(run: Run) -> tuple[bool, str]:
    """Measure; the results are in bench.json, the lines in bench.log."""
    peers = ["cupy"]
    if importlib.util.find_spec("torch"):
        peers += ["torch", "torch-tf32"]
    results = run.out / "bench.json"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--against", ",".join(peers)]
    command += ["--passes", "fwd,bwd-data,bwd-weight", "--rounds", "5", "--patience", "0.6"]
    status = run.command([*command, "--json", results, *run.bench_arguments], "bench.log")
    rows = len(json.loads(results.read_text())["results"]) if results.exists() else 0
    text = (run.out / "bench.log").read_text(errors="replace")
    means = text[text.find("geometric means") :] if "geometric means" in text else tail(run.out / "bench.log")
    return status == 0 and rows > 0, f"{rows} rows\n{means.rstrip()}"


PARTS: dict[str, Callable[[Run], tuple[bool, str]]] = {
    "build": build,
    "golden": golden,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
}

# --- the command ---------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("part", nargs="*", help=f"any of {', '.join(PARTS)}; all without one")
    result.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    result.add_argument("--minutes", type=float, help="end after so long, with what there is")
    result.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR")
    result.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", metavar="DIR")
    result.add_argument("--tools", default=",".join(TOOLS), metavar="NAMES", help="of compute-sanitizer")
    result.add_argument("--pytest", default="", metavar="ARGUMENTS", help="more arguments for pytest")
    result.add_argument("--bench", default="", metavar="ARGUMENTS", help="more arguments for python -m bench")
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, checked; ends the process with status 2 where they are wrong."""
    options = parser().parse_args(arguments)
    for name in options.part:
        if name not in PARTS:
            parser().error(f"unknown part {name!r}: choose from {', '.join(PARTS)}")
    for name in ("pytest", "bench"):
        try:
            setattr(options, name, tuple(shlex.split(getattr(options, name))))
        except ValueError as error:
            parser().error(f"--{name}: {error}")
    options.tools = tuple(options.tools.split(","))
    for name in options.tools:
        if name not in TOOLS:
            parser().error(f"--tools: unknown {name!r}: choose from {', '.join(TOOLS)}")
    if options.minutes is not None and options.minutes <= 0:
        parser().error(f"--minutes: expected more than 0, got {options.minutes:g}")
    options.part = [name for name in PARTS if name in options.part] or list(PARTS)
    return options


def table(outcomes: list[Outcome]) -> str:
    """A line for each part, with the first line of its detail."""
    lines = [f"{'part':10} {'':6} {'time':>8}"]
    for outcome in outcomes:
        word = "passed" if outcome.passed else "FAILED"
        lines.append(
            f"{outcome.part:10} {word:6} {outcome.seconds:6.1f} s  {outcome.detail.partition(chr(10))[0]}"
        )
    return "\n".join(lines)


_SMI = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def card_summary(text: str) -> dict[str, list[float]]:
    """Least, median and greatest of what nvidia-smi logged: clocks (MHz), power (W), temperature (C)."""
    rows = [line.split(", ") for line in text.splitlines()]
    columns: dict[str, list[float]] = {name: [] for name in _SMI}
    for row in rows:
        for name, cell in zip(_SMI, row, strict=False):
            try:
                columns[name].append(float(cell))
            except ValueError:
                continue
    return {name: [min(v), statistics.median(v), max(v)] for name, v in columns.items() if v}


def has_gpu() -> bool:
    """Whether the driver knows a GPU."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def watch_card(out: Path) -> subprocess.Popen:
    """Starts nvidia-smi, which logs the card twice a second."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader,nounits", "-lms", "500"]
    with (out / "card.csv").open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True)


def run_part(name: str, run: Run) -> Outcome:
    """Run a part and time it; what it throws is its failure."""
    start = time.monotonic()
    try:
        passed, detail = PARTS[name](run)
    except Exception as error:
        passed, detail = False, f"{type(error).__name__}: {error}"
    return Outcome(name, passed, round(time.monotonic() - start, 1), detail)


def write(out: Path, outcomes: list[Outcome], started: float) -> None:
    """The outcomes so far and the card's log as JSON."""
    card = out / "card.csv"
    record = {
        "seconds": round(time.monotonic() - started, 1),
        "parts": [asdict(outcome) for outcome in outcomes],
        "card": card_summary(card.read_text()) if card.exists() else {},
    }
    (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")


def listing(options: argparse.Namespace) -> str:
    """A line for each part that would be run, with what narrows it."""
    narrowed = {
        "tests": shlex.join(map(str, pytest_command(*options.pytest)[1:])),
        "sanitizer": ", ".join(options.tools) + " over the tests",
        "bench": shlex.join(["python", "-m", "bench", "--device", "cuda", *options.bench]),
        "golden": f"{_GOLDEN_SECONDS} s at most, besides its build",
    }
    limit = f"within {options.minutes:g} minutes" if options.minutes else "without a time limit"
    lines = [f"{name:10} {narrowed.get(name, f'into {options.build}')}" for name in options.part]
    return "\n".join([*lines, f"{limit}, logs in {options.out}"])


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    options = parse(arguments)
    if options.list:
        print(listing(options))
        return 0
    if not has_gpu():
        print("nvidia-smi finds no GPU on this machine", file=sys.stderr)
        return 2
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a time limit from outside ends it as Ctrl-C does
    started = time.monotonic()
    deadline = started + 60 * options.minutes if options.minutes else float("inf")
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.build.resolve(),
        options.out.resolve(),
        deadline,
        options.pytest,
        options.bench,
        options.tools,
    )
    outcomes: list[Outcome] = []
    watcher = watch_card(run.out)
    try:
        for name in options.part:
            if run.left() <= 0:
                outcomes.append(Outcome(name, False, 0.0, _NOT_RUN))
            else:
                outcomes.append(run_part(name, run))
            print(f"{table(outcomes[-1:]).splitlines()[1]}", flush=True)
            write(run.out, outcomes, started)
    except KeyboardInterrupt:
        outcomes.append(Outcome(options.part[len(outcomes)], False, 0.0, "interrupted"))
    finally:
        end(watcher)
        write(run.out, outcomes, started)
    for outcome in outcomes:
        if "\n" in outcome.detail:
            print(f"\n{outcome.part}: {outcome.detail}")
    print(f"\n{table(outcomes)}\n{run.out}")
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
