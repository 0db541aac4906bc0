"""What was measured in each epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from brasa import _files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]


class History(Mapping[str, list[float]]):
    """One number per epoch and measure: ``history["loss"]``, ``history["val_accuracy"]`` ...

    A measure that was not taken in an epoch, such as one added later, is NaN there.

    Examples
    --------
    >>> history = History()
    >>> history.append({"loss": 0.5, "accuracy": 0.75})
    >>> history.append({"loss": 0.25, "accuracy": 0.875})
    >>> history["loss"], history.epochs, history.last()
    ([0.5, 0.25], 2, {'loss': 0.25, 'accuracy': 0.875})
    """

    def __init__(self, columns: Mapping[str, list[float]] | None = None) -> None:
        self._columns = {name: list(values) for name, values in (columns or {}).items()}
        if len({len(values) for values in self._columns.values()}) > 1:
            raise ValueError("all measures need the same number of epochs")

    @property
    def epochs(self) -> int:
        """How many epochs were measured."""
        return len(next(iter(self._columns.values()), []))

    def append(self, measures: Mapping[str, float]) -> None:
        """Add an epoch."""
        epochs, nan = self.epochs, float("nan")
        for name in measures:
            self._columns.setdefault(name, [nan] * epochs)
        for name, values in self._columns.items():
            values.append(float(measures.get(name, nan)))

    def last(self) -> dict[str, float]:
        """Return the measures of the last epoch."""
        return {name: values[-1] for name, values in self._columns.items()}

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._columns:
            raise KeyError(f"{name!r} was not measured; there is {', '.join(self._columns) or 'nothing'}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        last = ", ".join(f"{k}={v:.4g}" for k, v in self.last().items()) if self.epochs else "empty"
        return f"History({self.epochs} epochs, last: {last})"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with one row per epoch, whose numbers read back exactly.

        Parameters
        ----------
        path : path-like
            The file to create or replace.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self._columns])
        for epoch, row in enumerate(zip(*self._columns.values(), strict=True), 1):
            writer.writerow([epoch, *map(repr, row)])
        _files.write_text(path, text.getvalue())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curves: a panel for the loss, one for each other measure; validation dashed.

        Parameters
        ----------
        path : path-like, optional
            Where to write the picture; its ending says the format (png, svg, pdf).

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            matplotlib is missing; the message says how to install it.
        ValueError
            There is no epoch to draw, or the ending is unknown.
        """
        from .pictures import draw_history, write_figure

        figure = draw_history(self)
        if path is not None:
            write_figure(figure, path)
        return figure

    def state_dict(self) -> dict[str, Any]:
        """Return the columns."""
        return {name: list(values) for name, values in self._columns.items()}
