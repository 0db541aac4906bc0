"""Why the LSTM: gradients that vanish over time, and two problems that need a long memory.

The picture's first panel shows how much the last output of an untrained network depends on the input at each step:
in a simple RNN the gradient shrinks by a factor at every step back, in an LSTM it goes through the cell, by as much
as the forget gates let through (S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9,
1997; their cell forgot nothing, which here is a forget gate that starts open). The others show the consequence:

- adding: of a sequence of random numbers, two are marked; the answer is their sum. Not looking gives an error of 1/6.
- copying: five symbols of eight are shown, then nothing for a while; then they are to be repeated in order.

    python examples/long_memory.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import brasa as br
from brasa import nn, optim

SYMBOLS, SHOWN = 8, 5
BLANK, GO = SYMBOLS, SYMBOLS + 1
OPEN = 4.0  # the forget gates' bias: sigmoid(4) = 0.98 goes on at each step

RATES = {"RNN": 1e-3, "LSTM": 4e-3}
COLOURS = {"RNN": "#d1602a", "LSTM": "#1f5fa8", "LSTM, gates half open": "#8a8a8a"}


class Reader(nn.Module):
    """A recurrent layer, and a linear one on all its outputs."""

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = (nn.RNN if kind == "RNN" else nn.LSTM)(inputs, hidden)
        self.decoder = nn.Linear(hidden, outputs)
        if kind == "LSTM":
            bias = self.recurrent.bias_ih_l0.data
            bias[hidden : 2 * hidden] = OPEN  # gates stand in the order i, f, g, o

    def forward(self, x: Any) -> Any:
        """Return the outputs (T, B, outputs) for inputs (T, B, inputs)."""
        outputs, _ = self.recurrent(x)
        return self.decoder(outputs)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure and train; return the figures by name."""
    options = parse(arguments)
    norms = {kind: gradient_norms(kind, options) for kind in COLOURS}
    found = {f"gradient, {kind}": float(norm[0] / norm[-1]) for kind, norm in norms.items()}
    for name, ratio in found.items():
        print(f"{name}: the first of {options.steps} steps counts {ratio:.1e} times as much as the last")
    curves = {}
    for problem, make, measure in (("adding", adding, squared_error), ("copying", copying, wrong_symbols)):
        if problem in options.problems:
            curves[problem] = {k: train(k, problem, make, measure, options) for k in ("RNN", "LSTM")}
            found |= {f"{problem}, {kind}": values[-1] for kind, values in curves[problem].items()}
    draw(norms, curves, options)
    print("; ".join(f"{name} {value:.2g}" for name, value in found.items()))
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--problems", nargs="*", choices=["adding", "copying"], default=["adding", "copying"])
    add("--steps", type=int, default=60, help="length of the sequences (default: 60)")
    add("--updates", type=int, default=3000, help="batches to train on (default: 3000)")
    add("--hidden", type=int, default=64, help="units of the recurrent layer (default: 64)")
    add("--seed", type=int, default=0)
    add("--out", default="long_memory.png", help="the picture (default: long_memory.png)")
    return parser.parse_args(arguments)


# --- gradients ------------------------------------------------------------------------------------


def gradient_norms(kind: str, options: argparse.Namespace) -> np.ndarray:
    """Return, for each step, the norm of the gradient of the last output by the input of that step."""
    br.manual_seed(options.seed)
    # In float64, because gradients this small are zero in float32.
    model = Reader(kind, 8, options.hidden, 1).to("float64")
    x = np.random.default_rng(options.seed).standard_normal((options.steps, 32, 8))
    inputs = br.Tensor(x, requires_grad=True)
    model(inputs)[-1].sum().backward()
    return np.sqrt((inputs.grad.numpy() ** 2).sum(axis=(1, 2)))


# --- problems -------------------------------------------------------------------------------------


def adding(rng: np.random.Generator, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and marks (T, B, 2), and the sums of the marked numbers (B, 1)."""
    x = np.zeros((steps, batch, 2), np.float32)
    x[..., 0] = rng.random((steps, batch))
    samples, half = np.arange(batch), steps // 2
    for low, high in ((0, half), (half, steps)):
        x[rng.integers(low, high, batch), samples, 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(0)[:, None]


def copying(rng: np.random.Generator, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one-hot symbols (T, B, 10) that end with marks to answer, and the symbols to answer (5, B)."""
    symbols = rng.integers(0, SYMBOLS, (SHOWN, batch))
    x = np.full((steps, batch), BLANK)
    x[:SHOWN], x[-SHOWN:] = symbols, GO
    return np.eye(SYMBOLS + 2, dtype=np.float32)[x], symbols


def squared_error(outputs: Any, targets: np.ndarray) -> tuple[Any, float]:
    """Return the loss and the mean squared error of the last output."""
    loss = nn.functional.mse_loss(outputs[-1], targets)
    return loss, loss.item()


def wrong_symbols(outputs: Any, targets: np.ndarray) -> tuple[Any, float]:
    """Return the loss and the share of wrong symbols among the last outputs."""
    scores = outputs[-SHOWN:].reshape(-1, SYMBOLS)
    loss = nn.functional.cross_entropy(scores, targets.ravel())
    return loss, float(np.mean(scores.numpy().argmax(1) != targets.ravel()))


def train(kind: str, problem: str, make: Any, measure: Any, options: argparse.Namespace) -> list[float]:
    """Train a network on fresh batches; return the mean measure of every fiftieth part of them."""
    br.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    inputs, outputs = (2, 1) if problem == "adding" else (SYMBOLS + 2, SYMBOLS)
    model = Reader(kind, inputs, options.hidden, outputs)
    optimizer = optim.Adam(model.parameters(), lr=RATES[kind])
    values: list[float] = []
    every = max(options.updates // 50, 1)
    curve = []
    for update in range(1, options.updates + 1):
        x, y = make(rng, options.steps, 64)
        loss, value = measure(model(br.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(value)
        if update % every == 0:
            curve.append(float(np.mean(values[-every:])))
        if update % (10 * every) == 0:
            print(f"{problem}, {kind}: {update} of {options.updates} batches, {curve[-1]:.4f}")
    return curve


# --- picture --------------------------------------------------------------------------------------


def draw(norms: dict[str, np.ndarray], curves: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the gradients over time, and the errors over the training."""
    figure = Figure(figsize=(4.6 * (1 + len(curves)), 4), layout="constrained")
    axes, *others = figure.subplots(1, 1 + len(curves), squeeze=False)[0]
    for kind, values in norms.items():
        axes.semilogy(np.arange(1, len(values) + 1), values / values[-1], color=COLOURS[kind], label=kind)
    axes.set_title("gradient by the input of each step")
    axes.set_xlabel("step")
    axes.set_ylabel("norm, in those of the last step")
    chance = {"adding": 1 / 6, "copying": 1 - 1 / SYMBOLS}
    labels = {"adding": "mean squared error", "copying": "share of wrong symbols"}
    for panel, (problem, both) in zip(others, curves.items(), strict=True):
        for kind, values in both.items():
            updates = np.linspace(0, options.updates, len(values) + 1)[1:]
            panel.plot(updates, values, color=COLOURS[kind], label=kind)
        panel.axhline(chance[problem], color="#555555", linestyle=":", label="not looking")
        panel.set_title(f"{problem}, {options.steps} steps")
        panel.set_xlabel("batches")
        panel.set_ylabel(labels[problem])
        panel.set_ylim(bottom=0)
    for panel in (axes, *others):
        panel.legend(frameon=False, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
