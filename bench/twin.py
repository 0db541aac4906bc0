"""``python -m bench.twin --root DIR``: LeNet on Fashion-MNIST by brasa and by PyTorch, the same recipe.

Both train on the same batches in the same order, with Adam under a one-cycle schedule; initial weights are each
library's own, of the same distribution. The epochs alternate. PyTorch runs on as many threads, with the fused Adam,
in its better memory format (measured first). Reported: test accuracies of every seed, the difference of their means,
and the ratio of the epochs' times (above 1, brasa is faster).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import brasa as br
from brasa import data, models, nn, optim
from brasa._files import write_text

Batches = Iterator[np.ndarray]


@dataclass
class Twin:
    """One library's half: an epoch over batches of positions, and the test accuracy afterwards."""

    epoch: Callable[[Batches], None]
    accuracy: Callable[[], float]


def brasa_twin(train: tuple, test: tuple, steps: int, lr: float, seed: int) -> Twin:
    br.manual_seed(seed)
    model, loss = models.lenet(), nn.CrossEntropyLoss()
    adam = optim.Adam(model.parameters(), lr=lr)
    schedule = optim.OneCycleLR(adam, lr, total_steps=steps)

    def epoch(batches: Batches) -> None:
        x, y = train
        for batch in batches:
            loss(model(x[batch]), y[batch]).backward()
            adam.step()
            adam.zero_grad()
            schedule.step()

    def accuracy() -> float:
        with br.no_grad():
            return float(np.mean(model(test[0]).numpy().argmax(1) == test[1]))

    return Twin(epoch, accuracy)


def torch_twin(train: tuple, test: tuple, steps: int, lr: float, seed: int, channels_last: bool) -> Twin:
    import torch

    from bench import in_torch

    torch.manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, loss = in_torch.network("lenet").to(memory_format=layout), torch.nn.CrossEntropyLoss()
    x, y = torch.from_numpy(train[0]).contiguous(memory_format=layout), torch.from_numpy(train[1])
    adam = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps)

    def epoch(batches: Batches) -> None:
        for batch in batches:
            positions = torch.from_numpy(batch)
            loss(model(x[positions]), y[positions]).backward()
            adam.step()
            adam.zero_grad()
            schedule.step()

    def accuracy() -> float:
        with torch.inference_mode():
            guess = model(torch.from_numpy(test[0]).contiguous(memory_format=layout)).argmax(1)
        return float(np.mean(guess.numpy() == test[1]))

    return Twin(epoch, accuracy)


def seconds(twin: Twin, batches: list[np.ndarray]) -> float:
    """The time of one epoch; the pause lets the other library's threads fall asleep."""
    time.sleep(0.05)
    start = time.perf_counter()
    twin.epoch(iter(batches))
    return time.perf_counter() - start


def cut(samples: int, batch: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(samples)
    return [order[i : i + batch] for i in range(0, samples, batch)]


def better_layout(train: tuple, test: tuple, batch: int, lr: float) -> bool:
    """Whether PyTorch's LeNet trains faster channels-last."""
    batches = cut(len(train[0]), batch, 0)[:200]
    times = [
        seconds(torch_twin(train, test, 400, lr, 0, inner), batches) for inner in (False, True, False, True)
    ]
    return min(times[1::2]) < min(times[::2])


def compare(train: tuple, test: tuple, options: argparse.Namespace) -> dict[str, Any]:
    """Train `options.seeds` pairs; prints a line for each."""
    steps = options.epochs * -(-len(train[0]) // options.batch_size)
    inner = better_layout(train, test, options.batch_size, options.lr)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        ours = brasa_twin(train, test, steps, options.lr, seed)
        theirs = torch_twin(train, test, steps, options.lr, seed, inner)
        times: tuple[list[float], list[float]] = ([], [])
        for epoch in range(options.epochs):
            batches = cut(len(train[0]), options.batch_size, 1000 * seed + epoch)
            for twin, taken in zip((ours, theirs), times, strict=True):
                taken.append(seconds(twin, batches))
        row = {"seed": seed, "brasa": ours.accuracy(), "torch": theirs.accuracy()}
        row |= {"brasa_seconds": times[0], "torch_seconds": times[1]}
        rows.append(row)
        print(
            f"seed {seed}: brasa {row['brasa']:.2%}, torch {row['torch']:.2%}; epochs of "
            f"{statistics.median(times[0]):.2f} s and {statistics.median(times[1]):.2f} s",
            flush=True,
        )
    ratios = [t / b for row in rows for b, t in zip(row["brasa_seconds"], row["torch_seconds"], strict=True)]
    mean = {name: statistics.fmean(row[name] for row in rows) for name in ("brasa", "torch")}
    return {
        "rows": rows,
        "mean": mean,
        "epoch_ratio": statistics.median(ratios),
        "torch_format": "channels-last" if inner else "contiguous",
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.twin", description=__doc__.split("\n\n")[1])
    parser.add_argument("--root", required=True, help="folder with the published files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=5, help="pairs to train (default 5)")
    parser.add_argument("--epochs", type=int, default=8, help="(default 8)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default 32)")
    parser.add_argument("--lr", type=float, default=3e-3, help="top of the schedule (default 0.003)")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(br.get_num_threads())
    parts = [part[:] for part in data.fashion_mnist(options.root)]
    train, test = ((np.asarray(x, np.float32), np.asarray(y, np.int64)) for x, y in parts)
    result = compare(train, test, options)
    mean = result["mean"]
    print(
        f"mean of {options.seeds} seeds: brasa {mean['brasa']:.2%}, torch {mean['torch']:.2%}; "
        f"epoch time torch ({result['torch_format']}) / brasa {result['epoch_ratio']:.2f}"
    )
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
