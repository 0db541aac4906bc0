"""Pictures of a run: the roofline, the share of the limit by family, and the ratios to the peers.

Hundreds of rows do not fit as labels in one picture, so the overviews show every row as a dot in its family's
line, and the bars with names come in one picture for each family.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brasa._bench.harness import Result, geometric_mean
from brasa._bench.report import families, peers

AHEAD, BEHIND, INK, GRID = "#2a7f62", "#c0492f", "#222222", "#dddddd"
_PALETTE = ("#3b6fb6", "#d9822b", "#2a7f62", "#8b5fb0", "#c0492f", "#7f6b52", "#d36ba6", "#5c5c5c", "#a8a436")
_DPI = 150


def start(folder: str | Path) -> tuple[Any, Path]:
    """Matplotlib's pyplot, which needs no screen, and the folder, which is there from now on."""
    from brasa._extras import require

    require("matplotlib", "plot", "to draw pictures").use("Agg")
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    return require("matplotlib.pyplot", "plot", "to draw pictures"), where


def draw(folder: str | Path, results: Sequence[Result], peak: float, bandwidth: float) -> list[Path]:
    """Draw all pictures of a run; `peak` and `bandwidth` per second. Returns the files."""
    pyplot, where = start(folder)
    rows = list(results)
    files = [roofline(pyplot, where, rows, peak, bandwidth), shares(pyplot, where, rows)]
    for peer in peers(rows):
        files.append(overview(pyplot, where, rows, peer))
        if peer == "torch":
            files += [bars(pyplot, where, members, peer) for members in families(rows).values()]
    return [file for file in files if file is not None]


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelcolor=INK, labelsize=9)
    axes.set_axisbelow(True)


def save(pyplot: Any, figure: Any, path: Path) -> Path:
    """Write the picture and forget it. With 128 colours it takes a third of the space and looks the same."""
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI, facecolor="white")
    pyplot.close(figure)
    Image.open(content).convert("RGB").quantize(128).save(path, format="PNG", optimize=True)
    return path


def _group(result: Result) -> str:
    """The first word of a family: what shares a colour."""
    return result.family.split()[0]


def roofline(pyplot: Any, folder: Path, results: list[Result], peak: float, bandwidth: float) -> Path | None:
    """Operations per second over operations per byte, under the two limits."""
    rows = [r for r in results if r.flops and r.nbytes]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    groups = list(dict.fromkeys(map(_group, rows)))
    for group, color in zip(groups, _PALETTE, strict=False):
        members = [r for r in rows if _group(r) == group]
        axes.scatter(
            [r.flops / r.nbytes for r in members],
            [r.flops / r.seconds / 1e9 for r in members],
            s=22,
            alpha=0.65,
            color=color,
            edgecolors="none",
            label=f"{group} ({len(members)})",
        )
    intensity = np.array([r.flops / r.nbytes for r in rows])
    x = np.geomspace(min(0.1, intensity.min() / 1.5), intensity.max() * 2, 200)
    axes.plot(x, np.minimum(peak, bandwidth * x) / 1e9, color=INK, linewidth=1.6)
    axes.text(x[-1], peak / 1e9 * 1.06, f"FMA peak {peak / 1e9:.0f} GFLOP/s", ha="right", fontsize=9)
    axes.text(
        x[0] * 1.5, bandwidth * x[0] * 0.95 / 1e9, f"memory, copying: {bandwidth / 1e9:.0f} GB/s", fontsize=9
    )
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("GFLOP/s (median)")
    axes.set_title(
        "Every product and convolution under the roofline; dots above the slope lie in the caches",
        fontsize=10,
        loc="left",
    )
    axes.grid(True, which="major", color=GRID, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _style(axes)
    return save(pyplot, figure, folder / "roofline.png")


def _spread(count: int) -> np.ndarray:
    """Heights within a family's line that keep neighbours apart, the same in every run."""
    return ((np.arange(count) * 0.618034) % 1 - 0.5) * 0.62


def shares(pyplot: Any, folder: Path, results: list[Result]) -> Path:
    """The share of the machine's limit of every row, a line for each family."""
    grouped = families(results)
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.3 * len(grouped)), layout="constrained")
    for i, members in enumerate(grouped.values()):
        values = sorted(100 * r.share for r in members)
        axes.scatter(values, i + _spread(len(values)), s=16, alpha=0.6, color=_PALETTE[0], edgecolors="none")
        middle = float(np.median(values))
        axes.plot([middle, middle], [i - 0.36, i + 0.36], color=INK, linewidth=2)
        axes.text(1.01, i, f"{middle:.0f} %", fontsize=9, va="center", transform=axes.get_yaxis_transform())
    axes.axvline(100, color="#999999", linewidth=1)
    axes.set_yticks(range(len(grouped)), [f"{name} ({len(rows)})" for name, rows in grouped.items()])
    axes.invert_yaxis()
    axes.set_xlim(0, max(105, *(100 * r.share for r in results)))
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    axes.set_xlabel("share of the machine's limit at that moment (%); the line is the median")
    axes.tick_params(left=False)
    _style(axes)
    return save(pyplot, figure, folder / "shares.png")


def _ratio_axis(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis in plain numbers, with 1 in the picture."""
    axes.set_xscale("log")
    low, high = min(0.8, *values) / 1.06, max(1.25, *values) * 1.06
    axes.set_xlim(low, high)
    marks = [m for m in (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= m <= high]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.axvline(1, color=INK, linewidth=1)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)


def overview(pyplot: Any, folder: Path, results: list[Result], peer: str) -> Path:
    """The ratio to a peer of every row, a line for each family."""
    grouped = families([r for r in results if peer in r.ratios])
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.3 * len(grouped)), layout="constrained")
    everything = []
    for i, members in enumerate(grouped.values()):
        values = sorted(r.ratios[peer][1] for r in members)
        everything += values
        colors = [AHEAD if value >= 1 else BEHIND for value in values]
        axes.scatter(values, i + _spread(len(values)), s=16, alpha=0.6, c=colors, edgecolors="none")
        mean = geometric_mean(values)
        axes.plot([mean, mean], [i - 0.36, i + 0.36], color=INK, linewidth=2)
        axes.text(1.01, i, f"{mean:.2f}", fontsize=9, va="center", transform=axes.get_yaxis_transform())
    _ratio_axis(axes, everything)
    axes.set_yticks(range(len(grouped)), [f"{name} ({len(rows)})" for name, rows in grouped.items()])
    axes.set_ylim(len(grouped) - 0.4, -0.6)
    axes.set_xlabel(
        f"time of {peer} / time of brasa; right of 1 brasa is faster; the line is the geometric mean"
    )
    axes.tick_params(left=False)
    _style(axes)
    return save(pyplot, figure, folder / f"ratios-{peer}.png")


def bars(pyplot: Any, folder: Path, members: list[Result], peer: str) -> Path | None:
    """The rows of one family with their names, sorted by the ratio, with its quartiles."""
    rows = sorted((r for r in members if peer in r.ratios), key=lambda r: r.ratios[peer][1])
    if not rows:
        return None
    family = rows[0].family
    low, middle, high = (np.array([r.ratios[peer][k] for r in rows]) for k in range(3))
    figure, axes = pyplot.subplots(figsize=(8.5, 1.1 + 0.19 * len(rows)), layout="constrained")
    y = np.arange(len(rows))
    axes.barh(y, middle - 1, left=1, height=0.72, color=np.where(middle >= 1, AHEAD, BEHIND), alpha=0.85)
    axes.hlines(y, low, high, color=INK, linewidth=1)
    _ratio_axis(axes, [*low, *high])
    axes.set_yticks(y, [r.name for r in rows], fontsize=7.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"time of {peer} / time of brasa, with quartiles")
    axes.set_title(f"{family}: geometric mean {geometric_mean(list(middle)):.2f}", fontsize=10, loc="left")
    axes.tick_params(left=False)
    _style(axes)
    axes.tick_params(axis="y", labelsize=7.5)
    name = re.sub(r"[^a-z0-9]+", "-", family.lower()).strip("-")
    return save(pyplot, figure, folder / f"ratios-{peer}-{name}.png")
