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


def comparison(results: Sequence[Result], path: str | None) -> str:
    """What was lost against a recorded run, by default the newest ones of `RESULTS`.

    Raises
    ------
    ValueError
        There is no such run, or it is of another format.
    """
    where = Path(path) if path else RESULTS
    runs = records(where) if where.is_dir() else [json.loads(where.read_text())]
    if not runs or any(run.get("format") != FORMAT for run in runs):
        raise ValueError(f"{where}: no recorded run of this benchmark's format ({FORMAT})")
    before = recorded_shares(runs)
    known = sum((result.family, result.name) in before for result in results)
    lost = losses(results, before)
    return "\n".join([f"\n{len(lost)} of {known} recorded rows lost more than 10 % against {where}", *lost])
