"""``brasa predict``: a trained network and images, the likeliest classes of each."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from brasa._backend import to_device
from brasa.autograd import no_grad
from brasa.data._images import pixels
from brasa.nn import Module

from .checkpoints import load_trained
from .errors import user_input
from .parser import Parser, integer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a file that brasa train wrote")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files; they are scaled to what the network takes",
    )
    add("--top", type=integer(1), default=3, metavar="N", help="classes to show (default: 3)")
    add("--invert", action="store_true", help="swap dark and light: for dark writing on light paper")
    add("--device", default="cpu", metavar="D", help="cpu (default), cuda, cuda:1")


def run(options: argparse.Namespace) -> None:
    """Print a line per image: the file, and classes with their probabilities."""
    model, about = load_trained(options.checkpoint, "classes", "images")
    with user_input("--device"):
        model.to(options.device)
    classes, shape = about["classes"], tuple(about["input_shape"])
    # All images are read before the first line: a bad one must not end a list half-way.
    inputs = [_read(path, shape, invert=options.invert) for path in options.images]
    for path, x in zip(options.images, inputs, strict=True):
        shares = _probabilities(model, x, options.device)
        best = np.argsort(-shares, kind="stable")[: options.top]
        print(f"{path}: " + "  ".join(f"{classes[i]} {shares[i]:.1%}" for i in best))


def _read(path: str, shape: tuple[int, ...], *, invert: bool) -> np.ndarray:
    with user_input():
        image = pixels(Path(path), grey=shape[0] == 1, size=(shape[1], shape[2]))
    return np.divide(255 - image if invert else image, np.float32(255), dtype=np.float32)[None]


def _probabilities(model: Module, x: np.ndarray, device: str) -> np.ndarray:
    with no_grad():
        scores = model(to_device(x, device)).numpy()[0].astype(np.float64)
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()
