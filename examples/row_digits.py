"""Read handwritten digits row by row: 28 steps of 28 pixels, and the last state tells the digit.

python examples/row_digits.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import brasa as br
from brasa import data, nn, optim

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RowReader(nn.Module):
    """A recurrent layer over the rows of an image, and scores for the classes from its last output."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.recurrent = CELLS[cell](28, hidden, batch_first=True)
        self.decoder = nn.Linear(hidden, 10)

    def read(self, x: Any) -> Any:
        """Return the scores after every row: (N, 28, 10)."""
        outputs, _ = self.recurrent(x.reshape(-1, 28, 28))
        return self.decoder(outputs)

    def forward(self, x: Any) -> Any:
        """Return the scores after the last row: (N, 10)."""
        outputs, _ = self.recurrent(x.reshape(-1, 28, 28))
        return self.decoder(outputs[:, -1])


def main(arguments: Sequence[str] | None = None) -> float:
    """Train and test; return the accuracy on the test part."""
    options = parse(arguments)
    br.manual_seed(options.seed)
    train, test = data.mnist(options.root)
    train = data.Subset(train, range(0, len(train), options.every))
    model = RowReader(options.cell, options.hidden)
    steps = -(-len(train) // 32)
    optimizer = optim.Adam(model.parameters(), lr=options.lr)
    schedule = optim.OneCycleLR(optimizer, options.lr, epochs=options.epochs, steps_per_epoch=steps)
    trainer = br.Trainer(
        model, optimizer, nn.CrossEntropyLoss(), scheduler=schedule, clip_norm=1.0, seed=options.seed
    )
    transform = None if options.no_augment else data.RandomAffine()
    trainer.fit(train, validation=test, epochs=options.epochs, batch_size=32, transform=transform)
    accuracy = trainer.evaluate(test)["accuracy"]
    draw(model, test, options.out)
    print(
        f"test accuracy {accuracy:.4f} of the {options.cell} ({round(accuracy * len(test))} of {len(test)})"
    )
    return accuracy


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", help="folder of MNIST's four files (default: the bundled sample of 5,000)")
    add("--cell", choices=list(CELLS), default="lstm")
    add("--hidden", type=int, default=128, help="units of the recurrent layer (default: 128)")
    add("--epochs", type=int, default=20, help="passes over the images (default: 20)")
    add("--every", type=int, default=1, help="use only every so many-th training image")
    add("--lr", type=float, default=5e-3, help="top of the one-cycle learning rate (default: 0.005)")
    add("--no-augment", action="store_true", help="leave out the small shifts and turns")
    add("--seed", type=int, default=0)
    add("--out", default="row_digits.png", help="the picture (default: row_digits.png)")
    return parser.parse_args(arguments)


def draw(model: RowReader, test: Any, path: str) -> None:
    """Draw one image of each digit beside what the network thinks of it after each row."""
    chosen = [int((test.targets == digit).argmax()) for digit in range(10)]
    x, _ = test[chosen]
    model.eval()
    with br.no_grad():
        shares = model.read(br.Tensor(x)).softmax(-1).numpy()
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(2, 10, height_ratios=(1, 2.2))
    for digit in range(10):
        top, bottom = panels[:, digit]
        top.imshow(x[digit, 0], cmap="gray_r")
        top.set_axis_off()
        bottom.imshow(shares[digit], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        bottom.set_xticks(range(10), [str(d) for d in range(10)], fontsize=7)
        bottom.set_yticks([0, 13, 27] if digit == 0 else [], ["1", "14", "28"] if digit == 0 else [])
        bottom.set_xlabel("digit", fontsize=8)
    panels[1, 0].set_ylabel("rows read")
    figure.suptitle("Probability of each digit while the image is read from top to bottom")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
