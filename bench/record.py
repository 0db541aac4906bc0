"""Recorded runs: one JSON file a day, the pictures beside it, and the page that shows both.

Recording some families replaces their rows and carries the others over from the newest record, so that a long run
can be cut into parts. Every row says when and at which commit it was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import page, sweep
from bench.compare import RESULTS, differences, records
from bench.pictures import draw
from brasa._bench.report import as_text, rounded
from brasa._files import write_text

_PEAKS = ("peak_gflops", "copy_gbytes")  # of parts recorded in bad and good moments the best counts


_PARTS = ("sweep", "isas")  # each of which may be measured in parts too


def newest(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The last record of a folder, if there is one."""
    return (records(folder) or [None])[-1]


def check(old: dict[str, Any] | None, setting: dict[str, Any]) -> None:
    """Refuse to mix rows of different settings.

    Raises
    ------
    ValueError
        The record is of another CPU, number of threads or instruction set.
    """
    other = differences(old, setting) if old else []
    if old and other:
        raise ValueError(
            f"the record of {old['date']} is of another setting ({', '.join(other)}): one record has rows of one "
            "setting; to begin another, move it away"
        )


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """`new`, and the rows and parts of `old` that it has not.

    Raises
    ------
    ValueError
        They are of different settings.
    """
    check(old, new)
    if old is None:
        return new
    fresh = {(row["family"], row["name"]): row for row in new["results"]}
    kept = [fresh.pop((row["family"], row["name"]), row) for row in old["results"]]
    together = {**old, **new, "results": kept + list(fresh.values())}
    for key in ("versions", *_PARTS):
        if key in together:
            together[key] = {**old.get(key, {}), **new.get(key, {})}
    return together | {key: max(old[key], new[key]) for key in _PEAKS}


def save(record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write the day's record, all that it has, with what the newest record has beside it."""
    path = folder / f"{record['date'][:10]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, as_text(merged(newest(folder), rounded(record))))
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
