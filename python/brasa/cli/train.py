"""``brasa train``: a network, a data set, and a folder with all that came of it."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

import brasa
from brasa import _files, io
from brasa._extras import MissingExtra
from brasa._train import Trainer
from brasa._train.engine import PRECISIONS

from .errors import UsageError, user_input
from .parser import Parser, integer, number
from .recipes import check_fit, data_kind, input_size, load_data, model_name, recipe_for
from .tasks import CHECKPOINT, ImageTask, TextTask, task_for

__all__ = ["add_arguments", "run"]

# What a run is made of. A checkpoint holds it, and resuming may not change it.
_SETTINGS = ("model", "data", "epochs", "batch_size", "lr", "seed", "augment", "precision")


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="network (default: lenet); brasa summary lists them",
    )
    add(
        "--data",
        metavar="NAME|FOLDER",
        help="mnist (default), fashion-mnist, cifar10, digits, or a folder with a subfolder per class; for char_lstm,"
        " char_gru and char_rnn: text (default), fortunes-br",
    )
    add(
        "--root",
        metavar="PATH",
        help="folder of the data set's published files (mnist without it: the bundled sample), or the file of"
        " text (text without it: a bundled novel in Portuguese)",
    )
    add(
        "--epochs",
        type=integer(1),
        metavar="N",
        help="passes over the training set (default: 30; fashion-mnist: 8; text: 15)",
    )
    add(
        "--batch-size",
        type=integer(1),
        metavar="N",
        help="images per update (default: 32; cifar10: 64), or places read at once (text: 16)",
    )
    add(
        "--lr",
        type=number(0),
        metavar="F",
        help="top of the one-cycle learning rate (default: 0.003)",
    )
    add(
        "--seed",
        type=integer(0, 2**63 - 1),
        metavar="N",
        help="of weights, order and augmentation (default: 0)",
    )
    add(
        "--no-augment",
        dest="augment",
        action="store_const",
        const=False,
        help="leave out the random shifts, turns, scalings, crops or flips",
    )
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        help="float32 (default), float64; on CUDA bf16 or fp16: products in 16 bits, weights in float32",
    )
    add("--device", metavar="D", help="cpu (default), cuda, cuda:1")
    add("--out", metavar="DIR", help="folder to write to (default: runs/MODEL-DATA-N)")
    add("--resume", metavar="FILE", help="go on with the run that wrote this checkpoint, exactly")


def run(options: argparse.Namespace) -> None:
    """Train, write the run's folder, print the measure of the test set."""
    settings = _resumed(options) if options.resume else _settings(options)
    recipe = recipe_for(settings["data"])
    train, test = load_data(settings["data"], settings["root"], input_size(settings["model"]))
    if settings.setdefault("samples", len(train)) != len(train):
        raise UsageError(
            f"--resume: the run had {settings['samples']} samples to train, here are {len(train)}"
        )
    task = task_for(recipe.kind)(settings, recipe, train, test, options.device)
    trainer = task.trainer
    trainer.about["run"] = {**settings, "root": settings["root"] and os.path.abspath(settings["root"])}
    if options.resume:
        with user_input("--resume"):
            io.load(trainer.model, options.resume)
    # Only now is a folder made: everything that the user could have got wrong was seen.
    folder = _run_folder(options, settings)
    trainer.callbacks = task.callbacks(folder)
    print(_headline(settings, task, folder), flush=True)
    start = time.monotonic()
    try:
        task.fit(options.resume)
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            print(f"to go on: brasa train --resume {folder / CHECKPOINT}")
        raise
    _report(task, folder, time.monotonic() - start)


# --- settings -------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    model = model_name(options.model or "lenet")
    data = options.data or {"images": "mnist", "text": "text"}[data_kind(model)]
    recipe = recipe_for(data)
    check_fit(model, data)
    defaults = {
        "model": model,
        "data": data,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "seed": 0,
        "augment": True,
        "precision": "float32",
    }
    given = {name: getattr(options, name) for name in _SETTINGS if name != "model"}
    settings = defaults | {name: value for name, value in given.items() if value is not None}
    return {**settings, "root": options.root}


def _resumed(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run that is gone on with."""
    with user_input():
        metadata = io.load_metadata(options.resume)
    settings = metadata.get("run")
    if isinstance(settings, dict):
        settings.setdefault("precision", "float32")  # runs of version 0.1 do not say
    if not isinstance(settings, dict) or not settings.keys() >= {*_SETTINGS, "root"}:
        raise UsageError(f"--resume: {options.resume} is no checkpoint of brasa train")
    for name in _SETTINGS:
        given = getattr(options, name)
        if name == "model" and given is not None:
            given = model_name(given)
        if given is not None and given != settings[name]:
            raise UsageError(f"--resume: the run has {name.replace('_', '-')} {settings[name]}, not {given}")
    return {**settings, "root": options.root or settings["root"]}


def _run_folder(options: argparse.Namespace, settings: dict[str, Any]) -> Path:
    if options.out is None and options.resume:
        folder = Path(options.resume).resolve().parent
    elif options.out is None:
        return _next_folder(Path("runs"), settings)
    else:
        folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is a file")
    if not options.resume and (folder / CHECKPOINT).exists():
        raise UsageError(f"--out: {folder} holds a run already")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _next_folder(parent: Path, settings: dict[str, Any]) -> Path:
    """Make the first folder of the run's name whose number is free."""
    data = re.sub(r"\W+", "-", os.path.basename(os.path.normpath(settings["data"]))) or "data"
    parent.mkdir(exist_ok=True)
    for i in range(1, 1_000_000):
        folder = parent / f"{settings['model']}-{data}-{i}"
        try:
            folder.mkdir()
        except FileExistsError:  # also where another run takes the number at this moment
            continue
        return folder
    raise UsageError(f"{parent} is full; give --out")


# --- results --------------------------------------------------------------------------------------


def _headline(settings: dict[str, Any], task: ImageTask | TextTask, folder: Path) -> str:
    return (
        f"{settings['model']} ({_parameters(task.trainer):,} parameters) on {settings['data']}: "
        f"{task.describe()}; results go to {folder}"
    )


def _parameters(trainer: Trainer) -> int:
    return sum(p.data.size for p in trainer.model.parameters())


def _report(task: ImageTask | TextTask, folder: Path, seconds: float) -> None:
    trainer = task.trainer
    facts, line = task.measure()
    trainer.history.to_csv(folder / "history.csv")
    left_out = _draw(task, folder)
    summary = {
        "run": trainer.about["run"],
        **facts,
        "last_epoch": trainer.history.last(),
        "seconds": round(seconds, 3),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": _parameters(trainer),
        "model": trainer.about["model"],
        "versions": {
            "brasa": brasa.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "machine": {"platform": platform.platform(), "device": trainer.engine.device},
    }
    _files.write_text(folder / "run.json", json.dumps(summary, indent=2) + "\n")
    if left_out:
        print(left_out)
    print(line)


def _draw(task: ImageTask | TextTask, folder: Path) -> str:
    """Write the pictures; without matplotlib, return what was left out and what to install."""
    try:
        task.draw(folder)
    except MissingExtra as error:
        return f"left out {' and '.join(task.pictures)}: {error}"
    return ""
