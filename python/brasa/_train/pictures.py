"""Pictures of a training, curves and the confusion matrix: matplotlib without a display."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brasa import _files
from brasa._extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_confusion", "draw_history", "write_figure"]

_TRAINING, _VALIDATION, _GREY = "#1f5fa8", "#d1602a", "#555555"
_PURPOSE = "to draw pictures"


def draw_history(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one panel per measure, training in full lines and validation (``val_``) dashed."""
    names = [n for n in history if not n.startswith("val_")]
    names += [n[4:] for n in history if n.startswith("val_") and n[4:] not in names]
    if not names or not len(next(iter(history.values()))):
        raise ValueError("the history is empty: there is nothing to draw")
    figure = _figure((4.6 * len(names), 3.4))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_panel(axes, history, name)
    return figure


def _draw_panel(axes: Any, history: Mapping[str, Sequence[float]], name: str) -> None:
    curves = ((name, "training", _TRAINING, "-"), ("val_" + name, "validation", _VALIDATION, "--"))
    ends = [history[key][-1] for key, *_ in curves if key in history]
    for key, label, colour, line in curves:
        if key not in history:
            continue
        values = np.asarray(history[key])
        epochs = np.arange(1, len(values) + 1)
        # A single epoch is a point, which a line would not show.
        marker = "o" if len(values) == 1 else ""
        axes.plot(epochs, values, line, color=colour, marker=marker, linewidth=1.6, label=label)
        if np.isfinite(values[-1]):
            axes.annotate(
                f"{values[-1]:.4g}",
                (epochs[-1], values[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                color=colour,
                fontsize=8,
                va="bottom" if values[-1] == max(ends) else "top",  # apart, where the curves meet
            )
    axes.set_title(name, fontsize=11, color=_GREY)
    axes.set_xlabel("epoch", color=_GREY)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.margins(x=0.08)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def draw_confusion(matrix: np.ndarray, classes: Sequence[str] | None = None) -> Figure:
    """Draw a confusion matrix: each row shaded by its share, each cell with its count.

    Parameters
    ----------
    matrix : array of int, shape (C, C)
        Row: true class; column: predicted class.
    classes : sequence of str, optional
        The names of the classes.
    """
    matrix = np.asarray(matrix)
    size = len(matrix)
    names = [str(c) for c in (classes if classes is not None else range(size))]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 0.5 * size + 1.6), 14)
    figure = _figure((side, side))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if size <= 25:
        _write_counts(axes, matrix, share)
    turned = 45 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(size), names, rotation=turned, ha="right" if turned else "center")
    axes.set_yticks(range(size), names)
    axes.set_xlabel("predicted", color=_GREY)
    axes.set_ylabel("true", color=_GREY)
    correct, total = int(np.trace(matrix)), int(matrix.sum())
    axes.set_title(f"{correct} of {total} correct", fontsize=11, color=_GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    return figure


def _write_counts(axes: Any, matrix: np.ndarray, share: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, all or nothing; the path's ending says the format."""
    ending = os.path.splitext(os.fspath(path))[1][1:].lower()
    supported = figure.canvas.get_supported_filetypes()
    if ending not in supported:
        raise ValueError(f"path: {os.fspath(path)!r} needs an ending such as .png, .svg or .pdf")
    content = io.BytesIO()
    figure.savefig(content, format=ending, dpi=150)
    _files.write_bytes(path, content.getvalue())


def _figure(size: tuple[float, float]) -> Figure:
    require("matplotlib", "plot", _PURPOSE)
    # Not through pyplot, which would choose a window system and keep every figure for ever.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
