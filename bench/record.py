"""Recorded runs: one JSON file a day, the pictures beside it, and the page that shows both.

Recording some families replaces their rows in the day's file and keeps the others, so that a long run can be cut
into parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import page, sweep
from bench.compare import RESULTS, records
from bench.pictures import draw
from brasa._bench.report import FORMAT, as_text, rounded
from brasa._files import write_text

_PEAKS = ("peak_gflops", "copy_gbytes")  # of parts recorded in bad and good moments the best counts


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The record of a day: `new`, and the rows and parts of `old` that it has not."""
    if old is None:
        return new
    fresh = {(row["family"], row["name"]): row for row in new["results"]}
    kept = [fresh.pop((row["family"], row["name"]), row) for row in old["results"]]
    together = {**old, **new, "results": kept + list(fresh.values())}
    together["versions"] = {**old["versions"], **new["versions"]}
    return together | {key: max(old[key], new[key]) for key in _PEAKS}


def save(record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write the day's record, all that it has."""
    path = folder / f"{record['date'][:10]}.json"
    old = None
    if path.exists():
        old = json.loads(path.read_text())
        old = old if old.get("format") == FORMAT else None
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, as_text(merged(old, rounded(record))))
    return path


def publish(folder: Path = RESULTS, where: Path = page.PAGE) -> list[Path]:
    """Draw the newest record and fill the page's tables from it. Returns the files."""
    record = records(folder)[-1]
    for old in folder.glob("*.png"):
        old.unlink()
    rows = page.results_of(record)
    files = draw(folder, rows, record["peak_gflops"] * 1e9, record["copy_gbytes"] * 1e9) if rows else []
    if record.get("sweep"):
        files.append(sweep.draw(folder, record["sweep"]))
    write_text(where, page.fill(where.read_text(), record))
    return [*files, where]
