"""``brasa generate``: a network trained on text goes on from a few words."""

from __future__ import annotations

import argparse
import sys

from brasa.data import Vocabulary
from brasa.models import CharacterModel

from .checkpoints import load_trained
from .errors import UsageError, user_input
from .parser import Parser, integer, number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a file that brasa train wrote of a text")
    add("--prompt", default="", metavar="TEXT", help="what to go on from (default: a new line)")
    add("--length", type=integer(1), default=500, metavar="N", help="characters to write (default: 500)")
    add(
        "--temperature",
        type=number(0),
        default=0.8,
        metavar="F",
        help="below 1 plays safe, above 1 is daring (default: 0.8)",
    )
    add("--top-k", type=integer(1), metavar="K", help="choose among the K likeliest characters only")
    add(
        "--seed",
        type=integer(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="another one writes another text (default: 0)",
    )
    add("--device", default="cpu", metavar="D", help="cpu (default), cuda, cuda:1")


def run(options: argparse.Namespace) -> None:
    """Print the prompt and what the network makes of it."""
    model, about = load_trained(options.checkpoint, "vocabulary", "text")
    if not isinstance(model, CharacterModel):
        raise UsageError(f"{options.checkpoint}: no network that writes text")
    vocabulary = Vocabulary(about["vocabulary"])
    with user_input("--prompt"):
        prompt = vocabulary.encode(options.prompt or _beginning(vocabulary))
    with user_input("--device"):
        model.to(options.device)
    ids = model.generate(
        prompt, options.length, temperature=options.temperature, top_k=options.top_k, seed=options.seed
    )
    # A terminal without UTF-8 still shows what it can.
    encoding = sys.stdout.encoding or "utf-8"
    print((options.prompt + vocabulary.decode(ids)).encode(encoding, "replace").decode(encoding))


def _beginning(vocabulary: Vocabulary) -> str:
    return "\n" if "\n" in vocabulary.characters else vocabulary.characters[0]
