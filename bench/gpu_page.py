"""``python -m bench.gpu_page RUN.json [MORE.json ...]``: record a run of ``--device cuda`` and fill ``docs/gpu.md``.

A GPU is often somewhere else: the run is measured there (`tools/gpu_check.py bench`) and its JSON brought here. Of
more files the first one's rows count, and the others add rows that it has not.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.compare import RESULTS
from bench.families import selected
from bench.page import fill, results_of, table
from brasa._bench.cases.conv import PASSES
from brasa._bench.harness import Result, geometric_mean
from brasa._bench.report import as_text, families, rounded, seconds
from brasa._files import write_text

FOLDER = RESULTS / "gpu"
PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
_PEERS = {"torch": "PyTorch", "torch-tf32": "PyTorch in TF32", "cupy": "CuPy"}


def merged(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the rows of the others that it has not.

    Raises
    ------
    ValueError
        They are of different GPUs.
    """
    first, *others = records
    rows: dict[tuple[str, str], Any] = {}
    for record in records:
        for row in record["results"]:
            rows.setdefault((row["family"], row["name"]), row)
    for other in others:
        if other["gpu"]["name"] != first["gpu"]["name"]:
            raise ValueError(f"runs of different GPUs: {first['gpu']['name']}, {other['gpu']['name']}")
    places = _places()
    last = len(places), len(places)
    return {
        **first,
        "results": sorted(rows.values(), key=lambda row: places.get((row["family"], row["name"]), last)),
    }


def _places() -> dict[tuple[str, str], tuple[int, int]]:
    """Where a row stands, whichever run it comes from: by family, as the benchmark names them."""
    cases = selected([], (), PASSES, device="cuda")
    families_found = list(dict.fromkeys(case.family for case in cases))
    return {(case.family, case.name): (families_found.index(case.family), i) for i, case in enumerate(cases)}


def save(record: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write the record under its date and the card's name."""
    card = re.sub(r"[^a-z0-9]+", "-", record["gpu"]["name"].lower()).strip("-")
    path = folder / f"{record['date'][:10]}-{card}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, as_text(rounded(record)))
    return path


def machine(record: dict[str, Any]) -> str:
    """Where and with what it was measured."""
    gpu, versions = record["gpu"], record["versions"]
    cores = [
        f"cuBLAS {gpu[f'{name}_gflops'] / 1e3:.0f} TFLOP/s in {name}"
        for name in ("tf32", "bf16")
        if f"{name}_gflops" in gpu
    ]
    used = ", ".join(f"{name} {versions[name]}" for name in ("brasa", "cupy", "torch") if name in versions)
    parts = [
        f"FMA in float32 {record['peak_gflops'] / 1e3:.1f} TFLOP/s",
        f"copy {record['copy_gbytes'] / 1e3:.2f} TB/s",
    ]
    return (
        f"Recorded on {record['date'][:10]}: {gpu['name']}, driver {gpu['driver']}; measured limits: "
        f"{', '.join([*parts, *cores])}. {used}. {len(record['results'])} rows."
    )


def _ratio(members: list[Result], peer: str) -> str:
    ratios = [r.ratios[peer][1] for r in members if peer in r.ratios]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else ""


def by_family(record: dict[str, Any]) -> str:
    """Geometric means, and the least row, of every family."""
    rows = [
        [
            family,
            str(len(members)),
            f"{geometric_mean([r.share for r in members]):.0%}",
            *(_ratio(members, peer) for peer in _PEERS),
        ]
        for family, members in families(results_of(record)).items()
    ]
    return table(["family", "rows", "of the limit", *(f"to {name}" for name in _PEERS.values())], rows)


def all_rows(record: dict[str, Any]) -> str:
    """Every row."""
    rows = []
    for r in results_of(record):
        rate = f"{r.rate:.0f} {r.unit}" if r.rate < 1e4 else f"{r.rate / 1e3:.1f} T{r.unit[1:]}"
        ratios = [f"{r.ratios[peer][1]:.2f}" if peer in r.ratios else "" for peer in _PEERS]
        rows.append([r.name, seconds(r.seconds), rate, f"{r.share:.0%}", *ratios])
    head = ["row", "time", "rate", "of the limit", *(f"to {name}" for name in _PEERS.values())]
    return table(head, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "families": by_family,
    "rows": all_rows,
}


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    if not arguments:
        print("python -m bench.gpu_page RUN.json [MORE.json ...]", file=sys.stderr)
        return 2
    record = merged([json.loads(Path(path).read_text()) for path in arguments])
    print(save(record))
    write_text(PAGE, fill(PAGE.read_text(), record, TABLES))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
