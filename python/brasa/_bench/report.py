"""Results as lines, geometric means, JSON and pictures."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brasa import __version__, _cpu
from brasa._bench.harness import Limits, Result, geometric_mean


def header() -> str:
    """The head of the table."""
    return f"{'case':44} {'time':>10} {'rate':>16} {'of limit':>8}  ratio to peers (quartiles)"


def _seconds(t: float) -> str:
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
    return f"{result.name:44} {_seconds(result.seconds):>10} {rate:>16} {result.share:>8.0%}  {ratios}"


def families(results: list[Result]) -> dict[str, list[Result]]:
    """Results by family, in order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.family, []).append(result)
    return grouped


def means(results: list[Result]) -> str:
    """The geometric mean of the share and of each peer's ratio, per family."""
    lines = ["", "geometric means (a ratio above 1: brasa is faster)"]
    for family, members in families(results).items():
        parts = [f"{geometric_mean([r.share for r in members]):.0%} of the limit"]
        for peer in {peer: None for r in members for peer in r.ratios}:
            ratios = [r.ratios[peer][1] for r in members if peer in r.ratios]
            parts.append(f"{peer} {geometric_mean(ratios):.2f} ({len(ratios)} rows, least {min(ratios):.2f})")
        lines.append(f"  {family:14} {', '.join(parts)}")
    return "\n".join(lines)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "unknown")


def machine_line(machine: Limits) -> str:
    """What the shares are shares of."""
    return (
        f"{_cpu_model()}, {_cpu.isa()}, {_cpu.num_threads()} threads: "
        f"{machine.peak / 1e9:.0f} GFLOP/s, copy {machine.bandwidth / 1e9:.1f} GB/s"
    )


def as_record(results: list[Result], machine: Limits) -> dict[str, Any]:
    """The results with machine, date and versions."""
    versions = {"brasa": __version__, "python": platform.python_version()}
    import sys

    for name in ("numpy", "torch"):
        if name in sys.modules:
            versions[name] = sys.modules[name].__version__
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "threads": _cpu.num_threads(),
        "isa": _cpu.isa(),
        "versions": versions,
        "peak_gflops": machine.peak / 1e9,
        "copy_gbytes": machine.bandwidth / 1e9,
        "results": [vars(result) for result in results],
    }


def write_json(path: str, results: list[Result], machine: Limits) -> None:
    """Write the record; the file is whole or not there."""
    from brasa._files import write_text

    write_text(path, json.dumps(as_record(results, machine), indent=1) + "\n")


def plot(folder: str, results: list[Result], machine: Limits) -> list[Path]:
    """Draw the roofline and, per family, the bars of the ratios. Returns the files."""
    from brasa._extras import require

    pyplot = require("matplotlib.pyplot", "plot", "to draw pictures")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [_roofline(pyplot, Path(folder), results, machine), _bars(pyplot, Path(folder), results)]


def _roofline(pyplot: Any, folder: Path, results: list[Result], machine: Limits) -> Path:
    """Share of the limit of every case, family by family: what a roofline says, readable for 100 cases."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for i, (_family, members) in enumerate(families(results).items()):
        spread = [i + 0.6 * (j + 0.5) / len(members) - 0.3 for j in range(len(members))]
        axes.scatter(spread, [100 * r.share for r in members], s=14, alpha=0.8)
    axes.axhline(100, color="0.6", linewidth=1)
    axes.set_xticks(range(len(families(results))), list(families(results)), rotation=20)
    axes.set_ylabel("share of the machine's limit (%)")
    axes.set_ylim(0, max(110, *(100 * r.share for r in results)))
    axes.set_title(
        f"{machine.peak / 1e9:.0f} GFLOP/s and {machine.bandwidth / 1e9:.0f} GB/s are 100 %", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / "limit.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _bars(pyplot: Any, folder: Path, results: list[Result]) -> Path:
    """The ratio to each peer, one bar per case on a logarithmic axis."""
    peers = list({peer: None for r in results for peer in r.ratios}) or ["numpy"]
    figure, all_axes = pyplot.subplots(
        1, len(peers), figsize=(7 * len(peers), 1.2 + 0.2 * len(results)), layout="constrained", squeeze=False
    )
    for axes, peer in zip(all_axes[0], peers, strict=True):
        rows = [r for r in results if peer in r.ratios]
        middle = [r.ratios[peer][1] for r in rows]
        low, high = ([abs(r.ratios[peer][k] - r.ratios[peer][1]) for r in rows] for k in (0, 2))
        colors = ["#2a7f62" if value >= 1 else "#b5483a" for value in middle]
        axes.barh(range(len(rows)), middle, xerr=[low, high], color=colors, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=6)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="0.3", linewidth=1)
        axes.set_xlabel(f"time of {peer} / time of brasa")
        axes.spines[["top", "right"]].set_visible(False)
    path = folder / "ratios.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
