"""Tables of numbers in comma-separated text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._source import DatasetNotFoundError, PathLike
from .dataset import ArrayDataset


def csv(
    path: PathLike, target: str, *, columns: Sequence[str] | None = None, delimiter: str = ","
) -> ArrayDataset:
    r"""Read a table with a header: numbers to learn from, and one column to predict.

    Parameters
    ----------
    path : path
        Text file in UTF-8; the first line names the columns. Fields may be quoted.
    target : str
        Column to predict. Whole numbers are labels, as they are (int64); other numbers are values
        (float32); anything else is the name of a class, numbered in alphabetical order.
    columns : sequence of str, optional
        Columns to learn from, in this order; all but the target when None. They must be numeric.
    delimiter : str
        What separates fields.

    Returns
    -------
    ArrayDataset
        x float32 (N, F), y int64 or float32 (N,), with `classes` where the target has names.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, a field is no number, or the text is damaged; the message names the
        file, the line and the column.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from brasa import data
    >>> file = pathlib.Path(tempfile.mkdtemp(), "iris.csv")
    >>> _ = file.write_text("sepal,petal,species\n5.1,1.4,setosa\n7.0,4.7,versicolor\n")
    >>> iris = data.csv(file, "species")
    >>> x, y = iris.arrays
    >>> x.shape, y, iris.classes
    ((2, 2), array([0, 1]), ('setosa', 'versicolor'))
    """
    import csv as csv_format

    file = Path(path).expanduser()
    if not file.is_file():
        raise DatasetNotFoundError(
            f"table: there is no file {file}: give the path of a text file whose first line names its columns"
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv_format.reader(stream, delimiter=delimiter, strict=True)
            values, answers, width = _read(rows, file, target, columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not text in UTF-8 ({error.reason})") from None
    except csv_format.Error as error:
        raise ValueError(f"{file}: line {rows.line_num}: {error}") from None
    y, classes = _as_target(answers, file)
    return ArrayDataset(_to_float32(values, file).reshape(-1, width), y, classes)


def _read(
    rows: Any, file: Path, target: str, columns: Sequence[str] | None
) -> tuple[array[float], list[str], int]:
    """Return the numbers row after row, the texts of the target, and the numbers in a row."""
    header = [name.strip() for name in next(rows, [])]
    names = [n for n in header if n != target] if columns is None else list(columns)
    places = [_place(header, name, file) for name in names]
    target_place = _place(header, target, file)
    if not places:
        raise ValueError(f"{file}: no column to learn from beside {target!r}")
    if target in names:
        raise ValueError(f"columns must not name the target {target!r}")
    values, answers = array("d"), []
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{file}: line {rows.line_num}: {len(row)} fields, but the header has {len(header)}"
            )
        try:
            values.extend([float(row[place]) for place in places])
        except ValueError:
            raise _not_a_number(row, places, header, f"{file}: line {rows.line_num}") from None
        answers.append(row[target_place].strip())
    if not answers:
        raise ValueError(f"{file}: no rows below the header")
    return values, answers, len(places)


def _place(header: list[str], name: str, file: Path) -> int:
    if header.count(name) != 1:
        many = "no column" if name not in header else "more than one column"
        raise ValueError(f"{file}: {many} {name!r} in the header ({', '.join(header[:20])})")
    return header.index(name)


def _not_a_number(row: list[str], places: list[int], header: list[str], where: str) -> ValueError:
    for place in places:
        try:
            float(row[place])
        except ValueError:
            break
    return ValueError(
        f"{where}: column {header[place]!r}: {row[place][:40]!r} is not a number"
        " (choose the numeric ones with columns=)"
    )


def _as_target(answers: list[str], file: Path) -> tuple[NDArray[Any], list[str] | None]:
    try:
        return np.array([int(answer) for answer in answers], np.int64), None
    except (ValueError, OverflowError):
        pass
    try:
        numbers = [float(answer) for answer in answers]
    except ValueError:
        pass
    else:
        return _to_float32(numbers, file), None
    classes = sorted(set(answers))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in answers], np.int64), classes


def _to_float32(values: Sequence[float], file: Path) -> NDArray[np.float32]:
    wide = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(wide)).any():
        raise ValueError(f"{file}: a number is too large for float32 (about 3.4e38)")
    return narrow
