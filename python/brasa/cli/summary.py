"""``brasa summary``: a network's layers, output shapes and parameters."""

from __future__ import annotations

import argparse

from brasa import models

from .errors import UsageError, user_input
from .parser import Parser, integer
from .recipes import data_kind, input_size, make_model, model_arguments, model_name

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"one of {', '.join(models.names())}")
    add("--input", metavar="C,H,W", help="shape of an image (default: what the network is made for)")
    add(
        "--classes",
        type=integer(1, 1_000_000),
        default=10,
        metavar="N",
        help="outputs (default: 10)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    name = model_name(options.model)
    if data_kind(name) == "text":
        print(make_model(name, {}).summary((1,), "int64"))
        return
    shape = _shape(options.input) if options.input else _default_shape(name)
    model = make_model(name, model_arguments(name, shape, options.classes))
    with user_input(f"{name} on images of shape {shape}"):
        table = model.summary(shape)
    print(table)


def _default_shape(model: str) -> tuple[int, ...]:
    side = input_size(model)
    return (1 if side == 28 else 3, side, side)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) <= 10_000 for part in parts):
        raise UsageError(f"--input: need sizes such as 1,28,28, got {text!r}")
    return tuple(map(int, parts))
