"""Comparison with recorded runs: which rows lost speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brasa._bench.harness import Result
from brasa._bench.report import FORMAT

RESULTS = Path(__file__).parent / "results"
_LOST = 0.9  # of the recorded best share of the limit
_SAME = ("cpu", "threads", "isa")


def records(folder: Path) -> list[dict[str, Any]]:
    """The runs in a folder that have today's format, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and record.get("format") == FORMAT:
            found.append(record)
    return sorted(found, key=lambda record: record["date"])


def recorded_shares(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """The best share of the limit of every row, from the newest run that has the row."""
    return {(row["family"], row["name"]): row["best_share"] for run in runs for row in run["results"]}


def losses(results: Sequence[Result], before: dict[tuple[str, str], float]) -> list[str]:
    """A line for each row whose best share of the limit fell by more than a tenth.

    Shares are compared, not times: they are of the limit that the machine had at that moment.
    """
    lines = []
    for result in results:
        old = before.get((result.family, result.name))
        if old and result.best_share < _LOST * old:
            lines.append(f"  {result.name}: {old:.0%} of the limit, now {result.best_share:.0%}")
    return lines


def differences(run: dict[str, Any], setting: dict[str, Any]) -> list[str]:
    """In what a recorded run was not of this setting: another CPU, number of threads or instruction set."""
    return [
        f"{key} {run[key]!r} there, {setting[key]!r} here" for key in _SAME if run.get(key) != setting[key]
    ]


def recorded(path: str) -> list[dict[str, Any]]:
    """The runs of a file or folder, by default those of `RESULTS`.

    Raises
    ------
    ValueError
        There is no such run, or it is of another format.
    """
    where = Path(path) if path else RESULTS
    try:
        runs = records(where) if where.is_dir() else [json.loads(where.read_text())]
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from error
    if not runs or any(not isinstance(run, dict) or run.get("format") != FORMAT for run in runs):
        raise ValueError(f"{where}: no recorded run of this benchmark's format ({FORMAT})")
    return runs


def comparison(
    results: Sequence[Result], runs: Sequence[dict[str, Any]], setting: dict[str, Any]
) -> tuple[str, int]:
    """What was lost against recorded runs, in words, and how many rows lost."""
    before = recorded_shares(runs)
    known = sum((result.family, result.name) in before for result in results)
    lost = losses(results, before)
    other = dict.fromkeys(text for run in runs for text in differences(run, setting))
    warning = [f"another setting, so that shares compare badly: {', '.join(other)}"] if other else []
    head = f"{len(lost)} of {known} recorded rows lost more than 10 % against the run of {runs[-1]['date']}"
    return "\n".join(["", *warning, head, *lost]), len(lost)
