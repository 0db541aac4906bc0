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
from brasa import _files, io, nn, optim, random
from brasa._extras import MissingExtra
from brasa._train import Trainer, callbacks
from brasa._train.metrics import confusion_matrix
from brasa._train.pictures import draw_confusion, write_figure

from .errors import UsageError, user_input
from .parser import Parser, integer, number
from .recipes import Recipe, input_size, load_data, make_model, model_arguments, recipe_for

__all__ = ["add_arguments", "run"]

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"

# What a run is made of. A checkpoint holds it, and resuming may not change it.
_SETTINGS = ("model", "data", "epochs", "batch_size", "lr", "seed", "augment")


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
        help="mnist (default), fashion-mnist, cifar10, digits, or a folder with a subfolder per class",
    )
    add(
        "--root",
        metavar="DIR",
        help="folder of the data set's published files (mnist without it: the bundled sample)",
    )
    add(
        "--epochs",
        type=integer(1),
        metavar="N",
        help="passes over the training set (default: 30; fashion-mnist: 8)",
    )
    add(
        "--batch-size",
        type=integer(1),
        metavar="N",
        help="images per update (default: 32; cifar10: 64)",
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
    add("--device", metavar="D", help="cpu (default), cuda, cuda:1")
    add("--out", metavar="DIR", help="folder to write to (default: runs/MODEL-DATA-N)")
    add("--resume", metavar="FILE", help="go on with the run that wrote this checkpoint, exactly")


def run(options: argparse.Namespace) -> None:
    """Train, write the run's folder, print the test accuracy."""
    settings = _resumed(options) if options.resume else _settings(options)
    recipe = recipe_for(settings["data"])
    train, test = load_data(settings["data"], settings["root"], input_size(settings["model"]))
    if settings.setdefault("samples", len(train)) != len(train):
        raise UsageError(
            f"--resume: the run had {settings['samples']} training images, here are {len(train)}"
        )
    trainer = _trainer(settings, train, options.device)
    if options.resume:
        with user_input("--resume"):
            io.load(trainer.model, options.resume)
    # Only now is a folder made: everything that the user could have got wrong was seen.
    folder = _run_folder(options, settings)
    trainer.callbacks = _callbacks(folder)
    print(_headline(settings, train, test, trainer, folder), flush=True)
    start = time.monotonic()
    try:
        _fit(trainer, settings, recipe, train, test, options.resume)
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            print(f"to go on: brasa train --resume {folder / CHECKPOINT}")
        raise
    _report(trainer, test, folder, time.monotonic() - start)


# --- settings -------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    data = options.data or "mnist"
    recipe = recipe_for(data)
    defaults = {
        "model": "lenet",
        "data": data,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "seed": 0,
        "augment": True,
    }
    given = {name: getattr(options, name) for name in _SETTINGS}
    settings = {name: value if given[name] is None else given[name] for name, value in defaults.items()}
    return {**settings, "root": options.root}


def _resumed(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run that is gone on with."""
    with user_input():
        metadata = io.load_metadata(options.resume)
    settings = metadata.get("run")
    if not isinstance(settings, dict) or not settings.keys() >= {*_SETTINGS, "root"}:
        raise UsageError(f"--resume: {options.resume} is no checkpoint of brasa train")
    for name in _SETTINGS:
        given = getattr(options, name)
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


# --- training -------------------------------------------------------------------------------------


def _trainer(settings: dict[str, Any], train: Any, device: str | None) -> Trainer:
    classes = train.classes or tuple(map(str, range(int(train.targets.max()) + 1)))
    shape = train[0][0].shape
    arguments = model_arguments(settings["model"], shape, len(classes))
    random.manual_seed(settings["seed"])
    model = make_model(settings["model"], arguments)
    with user_input(f"{settings['model']} cannot be trained on images of shape {shape}"):
        _try_out(model, train)
    steps = -(-len(train) // settings["batch_size"])
    optimizer = optim.Adam(model.parameters(), lr=settings["lr"])
    schedule = optim.OneCycleLR(optimizer, settings["lr"], epochs=settings["epochs"], steps_per_epoch=steps)
    with user_input("--device"):
        trainer = Trainer(
            model,
            optimizer,
            nn.CrossEntropyLoss(),
            scheduler=schedule,
            device=device,
            seed=settings["seed"],
        )
    trainer.about = {
        "model": {"name": settings["model"], "arguments": arguments},
        "classes": list(classes),
        "input_shape": list(shape),
        "preprocessing": {"range": [0.0, 1.0], "colour": "grey" if shape[0] == 1 else "rgb"},
        "run": {**settings, "root": settings["root"] and os.path.abspath(settings["root"])},
    }
    return trainer


def _callbacks(folder: Path) -> list[callbacks.Callback]:
    return [
        callbacks.CSVLogger(folder / "history.csv"),
        callbacks.Checkpoint(folder / CHECKPOINT),
        # By the test set: a file to look at, not the result. The accuracy that is printed is of the
        # last epoch's weights, which no test image has helped to choose.
        callbacks.Checkpoint(folder / BEST, monitor="val_accuracy"),
    ]


def _try_out(model: nn.Module, train: Any) -> None:
    """Run two images through the model, to know that it takes them before a folder is made."""
    model.eval()
    with brasa.no_grad():
        model(train[:2][0])
    model.train()


def _fit(
    trainer: Trainer,
    settings: dict[str, Any],
    recipe: Recipe,
    train: Any,
    test: Any,
    resume: str | None,
) -> None:
    augment = recipe.augment() if recipe.augment and settings["augment"] else None
    trainer.fit(
        train,
        validation=test,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        transform=augment,
        resume=resume,
    )


# --- results --------------------------------------------------------------------------------------


def _headline(settings: dict[str, Any], train: Any, test: Any, trainer: Trainer, folder: Path) -> str:
    parameters = sum(p.data.size for p in trainer.model.parameters())
    return (
        f"{settings['model']} ({parameters:,} parameters) on {settings['data']}: "
        f"{len(train):,} images to train, {len(test):,} to test; results go to {folder}"
    )


def _report(trainer: Trainer, test: Any, folder: Path, seconds: float) -> None:
    scores = trainer.predict(test)
    truth = np.asarray(test.targets)
    matrix = confusion_matrix(truth, scores)
    correct, total = int(np.trace(matrix)), len(truth)
    trainer.history.to_csv(folder / "history.csv")
    left_out = _draw(trainer, matrix, folder)
    summary = {
        "run": trainer.about["run"],
        "test": {"accuracy": correct / total, "correct": correct, "total": total},
        "last_epoch": trainer.history.last(),
        "seconds": round(seconds, 3),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": sum(p.data.size for p in trainer.model.parameters()),
        "model": trainer.about["model"],
        "classes": trainer.about["classes"],
        "confusion": matrix.tolist(),
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
    print(f"test accuracy {correct / total:.4f} ({correct} of {total})")


def _draw(trainer: Trainer, matrix: np.ndarray, folder: Path) -> str:
    """Write the pictures; without matplotlib, return what was left out and what to install."""
    try:
        trainer.history.plot(folder / "history.png")
        write_figure(draw_confusion(matrix, trainer.about["classes"]), folder / "confusion.png")
    except MissingExtra as error:
        return f"left out history.png and confusion.png: {error}"
    return ""
