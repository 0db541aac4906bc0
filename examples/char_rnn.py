"""Predict a Portuguese text character by character: LSTM, GRU and simple RNN against a Markov chain.

Perplexity is the number of characters that a model hesitates between, on text that it has not seen. Run

    python examples/char_rnn.py                                  (Dom Casmurro, which comes with brasa)
    python examples/char_rnn.py --text /usr/share/games/fortunes/brasil
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import brasa as br
from brasa import data, models, nn, optim

RATE = 3e-3  # top of the one-cycle learning rate
COLOURS = {"lstm": "#1f5fa8", "gru": "#2e8b57", "rnn": "#d1602a"}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train all models; return the perplexity of each on the held-out part."""
    options = parse(arguments)
    train, test = read(options)
    print(f"{len(train):,} characters to train, {len(test):,} held out, {len(train.vocabulary)} kinds")
    found: dict[str, float] = {}
    for order in range(1, options.order + 1):
        chain = models.MarkovChain(order, len(train.vocabulary)).fit(train.ids)
        found[f"Markov chain of order {order}"] = chain.perplexity(test.ids)
    best_chain = min(found, key=lambda name: found[name])
    curves, samples = {}, {}
    for cell in options.cells:
        model, curves[cell] = train_one(cell, train, test, options)
        found[cell] = curves[cell][-1]
        samples[cell] = write(model, train.vocabulary, options)
    show(found, samples)
    draw(curves, best_chain, found[best_chain], options.out)
    cells = ", ".join(f"{cell} {found[cell]:.2f}" for cell in options.cells)
    print(f"held-out perplexity: {cells}, {best_chain} {found[best_chain]:.2f}")
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", help="a file of text, or one of fortune's (default: the bundled novel)")
    add("--characters", type=int, default=0, help="use only so many characters from the beginning")
    add("--cells", nargs="+", choices=list(COLOURS), default=list(COLOURS))
    add("--hidden", type=int, default=256, help="units of the recurrent layer (default: 256)")
    add("--epochs", type=int, default=15, help="passes over the text (default: 15)")
    add("--order", type=int, default=6, help="highest order of the Markov chain (default: 6)")
    add("--prompt", default="A verdade", help="what the samples go on from")
    add("--seed", type=int, default=0)
    add("--out", default="char_rnn.png", help="the picture (default: char_rnn.png)")
    return parser.parse_args(arguments)


def read(options: argparse.Namespace) -> tuple[data.Text, data.Text]:
    """Read the text, and cut it short where that is asked."""
    fortunes = options.text is not None and options.text.endswith("brasil")
    train, test = data.fortunes_br(options.text) if fortunes else data.text(options.text)
    if options.characters:
        share = options.characters / (len(train) + len(test))
        parts = (part.content[: round(share * len(part))] for part in (train, test))
        train, test = (data.Text(part, train.vocabulary) for part in parts)
    return train, test


def train_one(
    cell: str, train: data.Text, test: data.Text, options: argparse.Namespace
) -> tuple[Any, list[float]]:
    """Train a network; return it, and its perplexity on the held-out part after each epoch."""
    print(f"\n{cell}")
    br.manual_seed(options.seed)
    model = models.get(f"char_{cell}", characters=len(train.vocabulary), hidden=options.hidden)
    batches = data.TextBatches(train, batch_size=16, steps=64)
    optimizer = optim.Adam(model.parameters(), lr=RATE)
    schedule = optim.OneCycleLR(optimizer, RATE, epochs=options.epochs, steps_per_epoch=len(batches))
    trainer = br.Trainer(model, optimizer, nn.CrossEntropyLoss(), scheduler=schedule, clip_norm=1.0)
    # One stream: every character is predicted from all that stand before it.
    held_out = data.TextBatches(test, batch_size=1, steps=256)
    history = trainer.fit(batches, validation=held_out, epochs=options.epochs)
    return model, [math.exp(loss) for loss in history["val_loss"]]


def write(model: Any, vocabulary: data.Vocabulary, options: argparse.Namespace) -> str:
    """Let a network go on from the prompt."""
    prompt = "".join(c for c in options.prompt if c in vocabulary.characters) or vocabulary.characters[0]
    ids = model.generate(vocabulary.encode(prompt), 300, temperature=0.7, seed=options.seed)
    return prompt + vocabulary.decode(ids)


def show(found: dict[str, float], samples: dict[str, str]) -> None:
    """Print what each network writes, and the table."""
    for cell, sample in samples.items():
        print(f"\n--- {cell} writes:\n{sample}")
    print(f"\n{'model':<24}  perplexity  bits per character")
    for name, value in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:<24}  {value:10.3f}  {math.log2(value):18.3f}")


def draw(curves: dict[str, list[float]], chain: str, perplexity: float, path: str) -> None:
    """Draw perplexity over epochs, and the best Markov chain as a line."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for cell, values in curves.items():
        epochs = range(1, len(values) + 1)
        axes.plot(
            epochs, values, "o-", color=COLOURS[cell], markersize=3, label=f"{cell.upper()}  {values[-1]:.2f}"
        )
    axes.axhline(perplexity, color="#555555", linestyle="--", label=f"{chain}  {perplexity:.2f}")
    axes.set_ylim(top=min(4 * perplexity, max(map(max, curves.values())) + 0.5))
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity of a held-out character")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
