"""The tables of ``docs/speed.md``, written from a record between markers: no figure of that page is typed.

A table stands between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->``; everything else on the page is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.sweep import Piece, describe
from brasa._bench.harness import Result, geometric_mean
from brasa._bench.report import families, seconds

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
_MEBI = 1 << 20
_REACHED = 0.95  # of the limit: what is taken to be within reach
_NAMES = {"torch": "PyTorch", "numpy": "NumPy", "jax": "JAX", "brasa": "brasa"}


def results_of(record: dict[str, Any]) -> list[Result]:
    """The rows of a record."""
    return [
        Result(**{**row, "ratios": {peer: tuple(q) for peer, q in row["ratios"].items()}})
        for row in record["results"]
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of the page."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine(record: dict[str, Any]) -> str:
    """Where and with what it was measured."""
    versions = record["versions"]
    peers = ", ".join(
        f"{_NAMES[name]} {versions[name]}" for name in ("torch", "numpy", "jax") if name in versions
    )
    return (
        f"{record['cpu']}, {record['threads']} threads, {record['isa']} kernels; "
        f"an FMA loop reaches {record['peak_gflops']:.0f} GFLOP/s, a copy {record['copy_gbytes']:.0f} GB/s. "
        f"brasa {versions['brasa']}, Python {versions['python']}, {peers}. "
        f"{_parts(record['results'])}"
    )


def _parts(rows: list[dict[str, Any]]) -> str:
    """When the rows were measured, and of which states of the kernels."""
    times = sorted(row["measured"] for row in rows if row.get("measured"))
    commits = {row["commit"] for row in rows if row.get("commit")}
    first, last = (f"{time[:10]} {time[11:16]}" for time in (times[0], times[-1])) if times else ("?", "?")
    return (
        f"{len(rows)} rows, measured in parts between {first} and {last} UTC, at {len(commits)} states of the kernels "
        "(each row of the record names its time and commit)."
    )


def _ratio_cell(rows: list[Result], peer: str) -> str:
    ratios = [r.ratios[peer][1] for r in rows if peer in r.ratios]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else ""


def by_family(record: dict[str, Any]) -> str:
    """Geometric means, and the least row, of every family."""
    rows = []
    for family, members in families(results_of(record)).items():
        share = float(np.median([r.share for r in members]))
        cells = [_ratio_cell(members, peer) for peer in ("torch", "numpy", "jax")]
        rows.append([family, str(len(members)), f"{share:.0%}", *cells])
    return table(
        ["family", "rows", "share of the limit", "to PyTorch (least)", "to NumPy (least)", "to JAX (least)"],
        rows,
    )


def _quartiles(values: tuple[float, float, float]) -> str:
    return f"{values[1]:.2f} ({values[0]:.2f} to {values[2]:.2f})"


def losses(record: dict[str, Any]) -> str:
    """Rows where a peer is faster: surely (the upper quartile of the ratio is below 1), or in the median."""
    parts = []
    for peer in ("torch", "numpy", "jax"):
        rows = [r for r in results_of(record) if peer in r.ratios]
        if not rows:
            continue
        lost = sorted((r for r in rows if r.ratios[peer][2] < 1), key=lambda r: r.ratios[peer][1])
        level = sum(r.ratios[peer][1] < 1 <= r.ratios[peer][2] for r in rows)
        parts.append(
            f"To {_NAMES[peer]}: {len(lost)} of {len(rows)} rows; in {level} more the median is below 1 and the upper "
            "quartile is not."
        )
        if lost:
            cells = [
                [r.name, r.family, seconds(r.seconds), _quartiles(r.ratios[peer]), f"{r.share:.0%}"]
                for r in lost
            ]
            parts.append(table(["row", "family", "time", "ratio (quartiles)", "share of the limit"], cells))
    return "\n\n".join(parts)


def within_reach(record: dict[str, Any]) -> str:
    """What the geometric means of convolutions would be near the limit."""
    rows = results_of(record)

    def mean(family: str, bounds: tuple[str, ...] | None) -> str:
        ratios = [
            r.ratios["torch"][1] * max(1.0, _REACHED / r.share if not bounds or r.bound in bounds else 1.0)
            for r in rows
            if r.family == family and "torch" in r.ratios
        ]
        return f"{geometric_mean(ratios):.2f}" if ratios else "-"

    ways = ("conv fwd", "conv fwd+bwd")
    forward, both = (mean(family, None) for family in ways)
    by_fma = " and ".join(mean(family, ("fma",)) for family in ways)
    return (
        f"With every row of this record at {_REACHED:.0%} of its limit at least the geometric means to PyTorch would "
        f"be {forward} forward and {both} forward and backward ({by_fma} if only the rows bound by FMA were)."
    )


def isas(record: dict[str, Any]) -> str:
    """The lesser instruction sets, a column each."""
    found = record.get("isas")
    if not found:
        return "Not measured."
    runs = {name: {r.name: r for r in results_of(part)} for name, part in found.items()}
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    rows = [
        [
            name,
            *(f"{run[name].rate:.0f}, {run[name].share:.0%}" if name in run else "" for run in runs.values()),
        ]
        for name in names
    ]
    peaks = [f"{name}: peak {part['peak_gflops']:.0f} GFLOP/s" for name, part in found.items()]
    return table(["GFLOP/s, share of the peak", *peaks], rows)


def steps(record: dict[str, Any]) -> str:
    """Whole steps."""
    rows = []
    for result in results_of(record):
        if result.family in ("train", "infer"):
            ratios = [_quartiles(result.ratios[p]) if p in result.ratios else "" for p in ("torch", "jax")]
            rows.append(
                [result.name, seconds(result.seconds), f"{result.rate:.0f}", f"{result.share:.0%}", *ratios]
            )
    return table(["step", "time", "GFLOP/s", "of the peak", "to PyTorch", "to JAX"], rows)


def footprint(record: dict[str, Any]) -> str:
    """Import times, sizes, peak memory."""
    found = record.get("footprint")
    if not found:
        return "Not measured."
    imports = [[f"`import {name}`", f"{1e3 * t:.0f} ms"] for name, t in found["import_seconds"].items()]
    sizes = [
        [
            f"{_NAMES.get(name, name)}, on disk" if name in _NAMES else f"{name} as a wheel",
            f"{b / _MEBI:.1f} MiB",
        ]
        for name, b in found["installed_bytes"].items()
    ]
    memory = []
    for step, who in found["peak_memory_bytes"].items():
        cells = [f"{who[w]['growth'] / _MEBI:.0f} / {who[w]['total'] / _MEBI:.0f}" for w in who]
        cells += (
            [f"{who['torch'][k] / who['brasa'][k]:.2f}" for k in ("growth", "total")]
            if "torch" in who
            else []
        )
        memory.append([step, *cells])
    head = ["training step", "brasa, MiB", "PyTorch, MiB", "ratio of growth", "ratio of total"]
    return "\n\n".join([table(["what", "figure"], imports + sizes), table(head[: len(memory[0])], memory)])


def sweep(record: dict[str, Any]) -> str:
    """The fitted exponents."""
    found = record.get("sweep")
    if not found:
        return "Not measured."
    rows = [
        [name, swept["axis"], describe([Piece(**piece) for piece in swept["pieces"]])]
        for name, swept in found.items()
    ]
    return table(["kernel", "size", "time grows as"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "families": by_family,
    "within-reach": within_reach,
    "losses": losses,
    "steps": steps,
    "footprint": footprint,
    "sweep": sweep,
    "isas": isas,
}


def fill(
    text: str, record: dict[str, Any], tables: dict[str, Callable[[dict[str, Any]], str]] = TABLES
) -> str:
    """The page with the tables of this record.

    Raises
    ------
    ValueError
        A marker has no table, or a table no place.
    """
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"the page needs exactly one pair of markers begin:{name} and end:{name}")
        body = make(record)
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text
