"""How the cost grows with the size: a power law fitted piece by piece.

A kernel that changes its strategy (a second thread, another tile, writing past the caches), or data that leave a
cache, bend the line of log time over log size. The pieces are found by dynamic programming: the fewest lines that
explain the points up to their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brasa._bench import cases
from brasa._bench.harness import Case, measure
from brasa._bench.limits import Limits
from brasa._bench.report import seconds

_NOISE = 0.06  # standard deviation of log time that is not worth a piece
_PRICE = (
    14.0  # of a piece, in squared standard deviations: what four free points would explain by chance, doubled
)
_LEAST_POINTS = 3


@dataclass(frozen=True)
class Piece:
    """time = scale * size ** exponent for sizes from `first` to `last`."""

    first: float
    last: float
    exponent: float
    scale: float


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, offset and sum of squared residuals."""
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset), float(np.sum((y - slope * x - offset) ** 2))


def fit(sizes: Sequence[float], times: Sequence[float]) -> list[Piece]:
    """The pieces, in order of size.

    Parameters
    ----------
    sizes, times : sequence of float
        Positive, sizes ascending; at least three.

    Returns
    -------
    list of Piece
        As few as explain the points.

    Raises
    ------
    ValueError
        Fewer than three points, or sizes that do not ascend.

    Examples
    --------
    >>> [piece.exponent for piece in fit([1, 2, 4, 8], [5, 10, 20, 40])]
    [1.0]
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(times, float))
    count = len(x)
    if count < _LEAST_POINTS or (np.diff(x) <= 0).any():
        raise ValueError(f"sizes: expected at least {_LEAST_POINTS}, ascending, got {list(sizes)}")
    best: list[tuple[float, int]] = [(0.0, 0)] + [(np.inf, 0)] * count  # cost of the first points, last cut
    for end in range(_LEAST_POINTS, count + 1):
        for start in range(end - _LEAST_POINTS + 1):
            cost = best[start][0] + _PRICE + _line(x[start:end], y[start:end])[2] / _NOISE**2
            if cost < best[end][0]:
                best[end] = (cost, start)
    pieces: list[Piece] = []
    end = count
    while end:
        start = best[end][1]
        slope, offset, _ = _line(x[start:end], y[start:end])
        scale = float(np.exp(offset))
        pieces.insert(0, Piece(float(sizes[start]), float(sizes[end - 1]), round(slope, 3), scale))
        end = start
    return pieces


_COLUMNS = 4  # of the picture


def _conv(size: int, direction: str = "fwd") -> Case:
    layer = {"N": 1, "C": 64, "H": size, "W": size, "O": 64, "kernel": 3, "padding": 1}
    return cases.conv2d(layer, (), direction=direction)


SWEEPS: dict[str, tuple[str, Callable[[int], Case], tuple[int, ...]]] = {
    "matmul": (
        "n, of n x n @ n x n",
        lambda n: cases.matmul(n, n, n, ()),
        (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048),
    ),
    "conv": (
        "side of a 64-channel image, 3x3, 64 outputs",
        _conv,
        (3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 160, 224),
    ),
    "relu": (
        "elements",
        lambda n: cases.activation("relu", (), shape=(n,)),
        tuple(2**i for i in range(4, 27)),
    ),
    "softmax": (
        "columns of 512 rows",
        lambda n: cases.softmax(512, n, ()),
        (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    ),
    "conv bwd-weight": (
        "side of a 64-channel image, 3x3, 64 outputs",
        partial(_conv, direction="bwd-weight"),
        (3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 160, 224),
    ),
    "max pool": (
        "side of a 64-channel image, 2x2/2",
        lambda n: cases.pool("max", 2, 2, 0, (), "channels-last", shape=(1, 64, n)),
        (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
    ),
    "lstm": (
        "inputs and hidden units, 20 steps of 16",
        lambda n: cases.recurrent("lstm", 20, 16, n, n, ()),
        (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    ),
}


def run(
    machine: Limits, progress: Callable[[str], None], rounds: int = 5, only: str = ""
) -> dict[str, dict[str, Any]]:
    """Measure and fit every sweep whose name contains `only`; `progress` gets a line for each."""
    found: dict[str, dict[str, Any]] = {}
    for name, (axis, case, sizes) in SWEEPS.items():
        if only not in name:
            continue
        rows = [measure(case(size), machine, rounds, patience=0.5) for size in sizes]
        times = [row.seconds for row in rows]
        pieces = fit(sizes, times)
        found[name] = {
            "axis": axis,
            "sizes": list(sizes),
            "seconds": times,
            "rates": [row.rate for row in rows],
            "unit": rows[-1].unit,
            "pieces": [asdict(piece) for piece in pieces],
        }
        if (
            len({row.unit for row in rows}) > 1
        ):  # small products are bound by the caches: one axis all the same
            found[name]["unit"] = "GFLOP/s"
            found[name]["rates"] = [row.flops / row.seconds / 1e9 for row in rows]
        progress(f"{name} over {axis}: {describe(pieces)}; {seconds(times[0])} to {seconds(times[-1])}")
    return found


def describe(pieces: Sequence[Piece]) -> str:
    """The exponents and where they change."""
    return ", ".join(f"{p.first:g} to {p.last:g}: size^{p.exponent:.2f}" for p in pieces)


def draw(folder: str | Path, sweeps: dict[str, dict[str, Any]]) -> Path:
    """For each sweep the time with the fitted pieces, and below it the rate."""
    from bench.pictures import save, start

    pyplot, where = start(folder)
    columns = min(_COLUMNS, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure, all_axes = pyplot.subplots(
        2 * lines, columns, figsize=(4.1 * columns, 6.4 * lines), layout="constrained", squeeze=False
    )
    for i, (name, sweep) in enumerate(sweeps.items()):
        line, column = divmod(i, columns)
        above, below = all_axes[2 * line][column], all_axes[2 * line + 1][column]
        above.sharex(below)
        _draw_times(above, name, sweep)
        _draw_rates(below, sweep)
        for axes in (above, below):
            _style(axes, sweep)
        above.tick_params(labelbottom=False)
    for i in range(len(sweeps), lines * columns):
        for axes in all_axes[2 * (i // columns) :, i % columns]:
            axes.remove()
    return save(pyplot, figure, where / "sweep.png")


def _draw_rates(axes: Any, sweep: dict[str, Any]) -> None:
    axes.plot(sweep["sizes"], sweep["rates"], "o-", color="#3b6fb6", markersize=4, linewidth=1)
    axes.set_xlabel(sweep["axis"], fontsize=9)
    axes.set_ylabel(sweep["unit"], fontsize=9)
    axes.set_ylim(0)


def _style(axes: Any, sweep: dict[str, Any]) -> None:
    """A logarithmic axis of sizes, with a line where a piece begins."""
    from bench.pictures import GRID, INK

    for piece in sweep["pieces"][1:]:
        before = max(size for size in sweep["sizes"] if size < piece["first"])
        axes.axvline((before * piece["first"]) ** 0.5, color="#999999", linewidth=0.9, linestyle=":")
    axes.set_xscale("log")
    axes.grid(True, color=GRID, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=INK)


def _draw_times(axes: Any, name: str, sweep: dict[str, Any]) -> None:
    axes.plot(sweep["sizes"], sweep["seconds"], "o", color="#3b6fb6", markersize=4)
    for piece in sweep["pieces"]:
        ends = np.array([piece["first"], piece["last"]])
        axes.plot(ends, piece["scale"] * ends ** piece["exponent"], color="#d9822b", linewidth=1.6)
        middle = float(np.sqrt(ends.prod()))
        height = piece["scale"] * middle ** piece["exponent"]
        axes.annotate(
            f"{piece['exponent']:.2f}",
            (middle, height),
            xytext=(-3, 7),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color="#a05a10",
        )
    axes.set_yscale("log")
    axes.set_title(f"{name}: exponents of the time", fontsize=10, loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
