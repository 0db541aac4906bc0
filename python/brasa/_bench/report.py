"""Results as lines, geometric means and JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brasa import __version__, _cpu
from brasa._bench.harness import Result, geometric_mean
from brasa._bench.limits import Limits

FORMAT = 2  # of the records: the shares of earlier ones are of other limits


def header() -> str:
    """The head of the table."""
    return f"{'case':48} {'time':>10} {'rate':>16} {'of limit':>8}  ratio to peers (quartiles)"


def seconds(t: float) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> seconds(0.0021)
    '2.1 ms'
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if t * scale >= 1:
            return f"{t * scale:.3g} {unit}"
    return f"{t * 1e6:.3g} us"


def line(result: Result) -> str:
    """One case."""
    ratios = ", ".join(
        f"{peer} {middle:.2f} ({low:.2f}-{high:.2f})" for peer, (low, middle, high) in result.ratios.items()
    )
    rate = f"{result.rate:.1f} {result.unit}"
    return f"{result.name:48} {seconds(result.seconds):>10} {rate:>16} {result.share:>8.0%}  {ratios}"


def families(results: list[Result]) -> dict[str, list[Result]]:
    """Results by family, in order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.family, []).append(result)
    return grouped


def peers(results: list[Result]) -> list[str]:
    """The peers in the results, in order."""
    return list({peer: None for result in results for peer in result.ratios})


def means(results: list[Result]) -> str:
    """The geometric mean of the share and of each peer's ratio, per family, with the least row."""
    lines = ["", "geometric means (a ratio above 1: brasa is faster)"]
    for family, members in families(results).items():
        parts = [f"{geometric_mean([r.share for r in members]):.0%} of the limit"]
        for peer in peers(members):
            rows = [r for r in members if peer in r.ratios]
            mean = geometric_mean([r.ratios[peer][1] for r in rows])
            least = min(rows, key=lambda r: r.ratios[peer][1])
            parts.append(f"{peer} {mean:.2f} ({len(rows)} rows, least {least.ratios[peer][1]:.2f})")
        lines.append(f"  {family:18} {', '.join(parts)}")
    return "\n".join(lines)


def cpu_model() -> str:
    """The processor's name, as it tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "unknown")


def machine_line(machine: Limits) -> str:
    """What the shares are shares of."""
    return (
        f"{cpu_model()}, {_cpu.isa()}, {_cpu.num_threads()} threads: "
        f"{machine.peak / 1e9:.0f} GFLOP/s, copy {machine.bandwidth / 1e9:.1f} GB/s"
    )


def gpu_line(machine: Limits, gpu: dict[str, Any]) -> str:
    """The same of a GPU."""
    tensor_cores = ", ".join(
        f"cuBLAS in {name} {gpu[f'{name}_gflops'] / 1e3:.0f} TFLOP/s"
        for name in ("tf32", "bf16")
        if f"{name}_gflops" in gpu
    )
    return (
        f"{gpu['name']}, driver {gpu['driver']}: FMA {machine.peak / 1e12:.1f} TFLOP/s, "
        f"copy {machine.bandwidth / 1e12:.2f} TB/s{', ' if tensor_cores else ''}{tensor_cores}"
    )


def commit() -> str:
    """The last commit that touched kernels or package, with a "+" where files differ from it; "" without a checkout."""
    here = str(Path(__file__).parent.parent)
    paths = ["--", ".", ":(exclude)_bench", "../../csrc"]
    try:
        log = ["git", "-C", here, "log", "-1", "--format=%h", *paths]
        found = subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "-C", here, "diff", "--quiet", "HEAD", *paths], check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found + "+" * bool(found and changed.returncode)


def setting() -> dict[str, Any]:
    """What rows of one record have in common."""
    return {"cpu": cpu_model(), "cpus": os.cpu_count(), "threads": _cpu.num_threads(), "isa": _cpu.isa()}


def as_record(results: list[Result], machine: Limits) -> dict[str, Any]:
    """The results with machine, date and versions."""
    versions = {"brasa": __version__, "python": platform.python_version()}
    for name in ("numpy", "cupy", "torch", "jax"):
        if name in sys.modules:
            versions[name] = sys.modules[name].__version__
    now = commit()
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **setting(),
        "versions": versions,
        "peak_gflops": round(machine.peak / 1e9, 1),
        "copy_gbytes": round(machine.bandwidth / 1e9, 1),
        "results": [rounded({**asdict(result), "commit": now}) for result in results],
    }


def rounded(value: Any) -> Any:
    """Five digits of every number: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return value


def as_text(record: dict[str, Any]) -> str:
    """The record as JSON with one line for each result."""
    rows = record["results"]
    head = json.dumps({**record, "results": []}, indent=1)
    return (
        head.replace('"results": []', '"results": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]")
        + "\n"
    )


def write_json(path: str | Path, results: list[Result], machine: Limits, **more: Any) -> None:
    """Write the record; the file is whole or not there."""
    from brasa._files import write_text

    write_text(path, as_text({**as_record(results, machine), **more}))
