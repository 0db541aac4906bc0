"""Forecast the number of sunspots in the next year, against what costs nothing to say.

Trained on 1700 to 1920, tested on 1921 to 2008, always one year ahead. The naive forecast is this year's number,
the seasonal one that of eleven years before the year in question (the length of a solar cycle).

    python examples/forecast.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import brasa as br
from brasa import nn, optim

SERIES = Path(__file__).parent / "data" / "sunspots.csv"
FIRST_TEST_YEAR, CYCLE = 1921, 11


class Forecaster(nn.Module):
    """A GRU over the years of a window; its last output gives the change to the next one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.decoder = nn.Linear(hidden, 1)

    def forward(self, x: Any) -> Any:
        """Return the forecasts (N, 1) for windows (N, T, 1)."""
        outputs, _ = self.recurrent(x)
        return x[:, -1] + self.decoder(outputs[:, -1])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train and test; return the root mean square error of each forecast, in sunspots."""
    options = parse(arguments)
    years, numbers = np.loadtxt(SERIES, delimiter=",", skiprows=1, unpack=True)
    # Variance grows with the number: the square root has nearly the same everywhere.
    scaled = (np.sqrt(numbers) / 5 - 1).astype(np.float32)
    x, y = windows(scaled, options.window)
    test = years[options.window :] >= FIRST_TEST_YEAR
    forecasts = [
        unscale(train_one(x[~test], y[~test], options, seed).predict(x[test])[:, 0])
        for seed in range(options.networks)
    ]
    start = np.flatnonzero(years >= FIRST_TEST_YEAR)[0]
    truth = numbers[start:]
    rivals = {
        "GRU": np.mean(forecasts, axis=0),
        "naive": numbers[start - 1 : -1],
        "seasonal naive": numbers[start - CYCLE : -CYCLE],
    }
    errors = {name: float(np.sqrt(np.mean((guess - truth) ** 2))) for name, guess in rivals.items()}
    draw(years[start:], truth, rivals, errors, options.out)
    print("root mean square error, sunspots: " + ", ".join(f"{k} {v:.1f}" for k, v in errors.items()))
    return errors


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--window", type=int, default=24, help="years that a forecast looks back at (default: 24)")
    add("--hidden", type=int, default=32, help="units of the recurrent layer (default: 32)")
    add("--epochs", type=int, default=60, help="passes over the years (default: 60)")
    add("--networks", type=int, default=5, help="networks whose forecasts are averaged (default: 5)")
    add("--out", default="forecast.png", help="the picture (default: forecast.png)")
    options = parser.parse_args(arguments)
    if options.networks < 1:
        parser.error(f"--networks: expected at least 1, got {options.networks}")
    return options


def windows(series: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a series into windows (N, length, 1), and the values (N, 1) that follow them."""
    views = np.lib.stride_tricks.sliding_window_view(series, length)[:-1]
    return np.ascontiguousarray(views[..., None]), series[length:, None]


def unscale(values: np.ndarray) -> np.ndarray:
    """From the network's scale back to sunspots."""
    return (np.maximum(values, -1) + 1) ** 2 * 25


def train_one(x: np.ndarray, y: np.ndarray, options: argparse.Namespace, seed: int) -> br.Trainer:
    """Train a network."""
    br.manual_seed(seed)
    model = Forecaster(options.hidden)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    schedule = optim.OneCycleLR(optimizer, 1e-2, epochs=options.epochs, steps_per_epoch=-(-len(x) // 32))
    trainer = br.Trainer(
        model, optimizer, nn.MSELoss(), scheduler=schedule, clip_norm=1.0, seed=seed, progress=False
    )
    history = trainer.fit((x, y), epochs=options.epochs, batch_size=32)
    print(f"network {seed + 1} of {options.networks}: training error {history['loss'][-1]:.4f}")
    return trainer


def draw(
    years: np.ndarray,
    truth: np.ndarray,
    rivals: dict[str, np.ndarray],
    errors: dict[str, float],
    path: str,
) -> None:
    """Draw the test years, the forecasts, and the errors of each."""
    colours = {"GRU": "#1f5fa8", "naive": "#d1602a", "seasonal naive": "#8a8a8a"}
    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.plot(years, truth, "o-", color="black", markersize=3, linewidth=1, label="sunspots")
    top.plot(years, rivals["GRU"], color=colours["GRU"], linewidth=2, label="GRU, one year ahead")
    top.set_ylabel("sunspots in a year")
    for name, guess in rivals.items():
        label = f"{name}, r.m.s. {errors[name]:.1f}"
        bottom.plot(years, np.abs(guess - truth), color=colours[name], linewidth=1.4, label=label)
    bottom.set_ylabel("error")
    bottom.set_xlabel("year")
    for axes, room in ((top, 1.15), (bottom, 1.4)):
        axes.set_ylim(top=axes.get_ylim()[1] * room)
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
