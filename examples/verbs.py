"""Conjugate Portuguese verbs that the network has never seen: sequence to sequence, with attention.

The encoder reads what is asked and the verb, letter by letter: "E1chegar" is the first person of the perfect of
"chegar". The decoder writes "cheguei", and looks back at every letter (additive attention: D. Bahdanau, K. Cho,
Y. Bengio, "Neural machine translation by jointly learning to align and translate", 2015). Run

    python examples/verbs.py                    (710 verbs, conjugated by the rules of the grammar)
    python examples/verbs.py --verbs /usr/lib/brazilian-conjugate/verbos-UTF-8
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import brasa as br
from brasa import data, nn, optim
from portuguese_verbs import FORMS, PERSONS, TENSES, by_rules, from_debian

PAD, BEGIN, END = "\0^$"
SHOWN = ("E1chegar", "S4conhecer")


class Inflector(nn.Module):
    """Encoder, decoder and the attention between them, all of the same width."""

    def __init__(self, symbols: int, hidden: int, embedding: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.encoder = nn.GRU(embedding, hidden // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(embedding, hidden, batch_first=True)
        self.attention = nn.AdditiveAttention(hidden, hidden, hidden)
        self.output = nn.Linear(2 * hidden, symbols)

    def encode(self, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Return what the decoder looks back at, (N, S, hidden), and the state it begins with."""
        memory, state = self.encoder(self.embedding(x), lengths=lengths)
        return memory, br.cat([state[:1], state[1:]], axis=-1)  # of both directions, side by side

    def decode(self, y: Any, state: Any, memory: Any, lengths: Any) -> tuple[Any, Any, Any]:
        """Return the scores after each letter of `y`, (N, T, symbols), the state, and the weights (N, T, S)."""
        outputs, state = self.decoder(self.embedding(y), state)
        context, weights = self.attention(outputs, memory, lengths=lengths)
        return self.output(br.cat([outputs, context], axis=-1)), state, weights

    def forward(self, x: Any, lengths: Any, y: Any) -> Any:
        """Return the scores (N * T, symbols) of the letters that follow those of `y`, the right ones so far."""
        memory, state = self.encode(x, lengths)
        scores, _, _ = self.decode(y, state, memory, lengths)
        return scores.reshape(-1, scores.shape[-1])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train and test; return the share of right forms of held-out verbs."""
    options = parse(arguments)
    verbs = from_debian(options.verbs) if options.verbs else by_rules()
    pairs = Pairs(verbs, options)
    print(
        f"{len(verbs)} verbs, of which {len(pairs.held_out)} are held out; {len(pairs.train)} forms to train on"
    )
    br.manual_seed(options.seed)
    model = Inflector(len(pairs.letters), options.hidden)
    optimizer = optim.Adam(model.parameters(), lr=options.lr)
    schedule = optim.OneCycleLR(optimizer, options.lr, epochs=options.epochs, steps_per_epoch=len(pairs))
    loss = nn.CrossEntropyLoss(ignore_index=pairs.letters.encode(PAD)[0])
    trainer = br.Trainer(model, optimizer, loss, scheduler=schedule, metrics=(), clip_norm=1.0)
    trainer.fit(pairs, epochs=options.epochs)
    right, wrong = judge(model, pairs)
    for form in FORMS:
        print(f"{TENSES[form[0]]:<26} {PERSONS[form[1]]:<5} {right[form]:.3f}")
    print(f"mistakes, for example: {', '.join(wrong[:: max(len(wrong) // 8, 1)])}")
    draw(model, pairs, right, options.out)
    searched, _ = judge(model, pairs, options.beams)
    greedy, beam = (float(np.mean(list(found.values()))) for found in (right, searched))
    print(
        f"right forms of held-out verbs: {greedy:.4f} greedy, {beam:.4f} by a search of {options.beams} beams"
    )
    return {"greedy": greedy, "beam": beam}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--verbs", help="Debian's data base of verbs (default: examples/data/verbs.txt)")
    add("--forms", type=int, default=20000, help="forms to train on in an epoch, at most (default: 20000)")
    add("--hidden", type=int, default=128, help="units of encoder and decoder (default: 128)")
    add("--epochs", type=int, default=8, help="passes over the forms (default: 8)")
    add("--lr", type=float, default=4e-3, help="top of the one-cycle learning rate (default: 0.004)")
    add("--batch-size", type=int, default=64)
    add("--beams", type=int, default=4, help="width of the beam search (default: 4)")
    add("--seed", type=int, default=0)
    add("--out", default="verbs.png", help="the picture (default: verbs.png)")
    return parser.parse_args(arguments)


# --- data -----------------------------------------------------------------------------------------


class Pairs:
    """Batches of questions and answers for training, in a new order each time; and the verbs held out.

    A batch is ``(x, lengths, y), target``: `x` (N, S) padded questions, `y` (N, T) the answers after a mark of
    their beginning, `target` (N * T,) the answers and a mark of their end.
    """

    def __init__(self, verbs: dict[str, dict[str, str]], options: argparse.Namespace) -> None:
        self.rng = np.random.default_rng(options.seed)
        self.batch_size, self.limit = options.batch_size, options.forms
        self.verbs = verbs
        names = self.rng.permutation(sorted(verbs)).tolist()
        chosen = {question[2:] for question in SHOWN}
        self.held_out = [name for name in names if name not in chosen][: len(names) // 8] + sorted(chosen)
        rest = sorted(set(names) - set(self.held_out))
        self.train = [(form + name, verbs[name][form]) for name in rest for form in FORMS]
        everything = "".join(name + "".join(forms.values()) for name, forms in verbs.items())
        self.letters = data.Vocabulary(PAD + BEGIN + END + "".join(FORMS) + everything)

    def __len__(self) -> int:
        return -(-min(len(self.train), self.limit) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = self.rng.permutation(len(self.train))[: self.limit]
        for start in range(0, len(order), self.batch_size):
            questions, answers = zip(
                *(self.train[i] for i in order[start : start + self.batch_size]), strict=True
            )
            x, lengths = self.padded(questions)
            y, _ = self.padded([BEGIN + answer for answer in answers])
            target, _ = self.padded([answer + END for answer in answers])
            yield (x, lengths, y), target.ravel()

    def padded(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return texts as rows of numbers, filled up to the longest, and their lengths."""
        lengths = np.array([len(text) for text in texts])
        rows = self.letters.encode("".join(text.ljust(max(lengths), PAD) for text in texts))
        return rows.reshape(len(texts), -1), lengths


# --- use ------------------------------------------------------------------------------------------


def write(model: Inflector, pairs: Pairs, questions: Sequence[str], beams: int = 1) -> list[str]:
    """Write the answers letter by letter: the likeliest each time, or the likeliest words that a beam search finds."""
    x, lengths = pairs.padded(questions)
    begin, end = pairs.letters.encode(BEGIN + END).tolist()
    start = np.full(len(questions), begin)
    model.eval()
    with br.no_grad():
        memory, hidden = model.encode(x, lengths)

    def step(letters: Any, state: Any) -> tuple[Any, Any]:
        scores, hidden, _ = model.decode(
            letters[:, None], state["hidden"].swapaxes(0, 1), state["memory"], state["lengths"]
        )
        return scores[:, 0].log_softmax(-1), state | {"hidden": hidden.swapaxes(0, 1)}

    # The first axis of everything counts questions, so that the search can reorder them.
    state = {"hidden": hidden.swapaxes(0, 1), "memory": memory, "lengths": lengths}
    if beams == 1:
        found = br.decode.greedy(step, start, state, end=end, max_length=30).tokens
    else:
        found = br.decode.beam_search(step, start, state, end=end, max_length=30, beams=beams).tokens[:, 0]
    return [pairs.letters.decode(letters).split(END)[0] for letters in found]


def look(model: Inflector, pairs: Pairs, question: str, answer: str) -> np.ndarray:
    """Return how much of each letter of the question counted for each letter of the answer and for its end."""
    x, lengths = pairs.padded([question])
    y, _ = pairs.padded([BEGIN + answer])
    with br.no_grad():
        memory, hidden = model.encode(x, lengths)
        return model.decode(y, hidden, memory, lengths)[2].numpy()[0]


def judge(model: Inflector, pairs: Pairs, beams: int = 1) -> tuple[dict[str, float], list[str]]:
    """Return, for each form, the share of held-out verbs that the network conjugates rightly; and its mistakes."""
    right, wrong = {}, []
    for form in FORMS:
        answers = write(model, pairs, [form + verb for verb in pairs.held_out], beams)
        truth = [pairs.verbs[verb][form] for verb in pairs.held_out]
        mistakes = [f"{a} for {t}" for a, t in zip(answers, truth, strict=True) if a != t]
        right[form] = 1 - len(mistakes) / len(truth)
        wrong += mistakes
    return right, wrong


def draw(model: Inflector, pairs: Pairs, right: dict[str, float], path: str) -> None:
    """Draw where the decoder looks while it writes, and the accuracy of each form."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    *panels, table = figure.subplots(1, len(SHOWN) + 1)
    for axes, question in zip(panels, SHOWN, strict=True):
        (written,) = write(model, pairs, [question])
        axes.imshow(look(model, pairs, question, written), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(question)), list(question))
        axes.set_yticks(range(len(written) + 1), [*written, "end"])
        axes.set_xlabel("read")
        axes.set_title(f"{question} → {written}")
    shares = np.array([[right[tense + person] for person in PERSONS] for tense in TENSES])
    table.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black"
        table.text(column, row, f"{share:.3f}", ha="center", va="center", color=colour, fontsize=8)
    table.set_xticks(range(len(PERSONS)), PERSONS.values())
    table.set_yticks(range(len(TENSES)), TENSES.values())
    panels[0].set_ylabel("written")
    table.set_title("right forms of held-out verbs")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
