"""What `brasa train` does differently for images and for text: the network, the measures, the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import brasa
from brasa import data, nn, optim, random
from brasa._train import Trainer, callbacks
from brasa._train.metrics import confusion_matrix
from brasa._train.pictures import draw_confusion, write_figure

from .errors import user_input
from .recipes import Recipe, make_model, model_arguments

__all__ = ["ImageTask", "TextTask", "task_for"]

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"

# Characters that a text network is trained through at a time (truncated backpropagation): some ten words.
_STEPS = 64


class ImageTask:
    """A classifier of images.

    Attributes
    ----------
    trainer : Trainer
        The network, and how it is trained.
    pictures : tuple of str
        Files that `draw` writes.
    """

    pictures = ("history.png", "confusion.png")

    def __init__(
        self, settings: dict[str, Any], recipe: Recipe, train: Any, test: Any, device: str | None
    ) -> None:
        self.train, self.test = train, test
        self._settings, self._recipe = settings, recipe
        self._classes = train.classes or tuple(map(str, range(int(train.targets.max()) + 1)))
        shape = train[0][0].shape
        arguments = model_arguments(settings["model"], shape, len(self._classes))
        random.manual_seed(settings["seed"])
        model = make_model(settings["model"], arguments)
        with user_input(f"{settings['model']} cannot be trained on images of shape {shape}"):
            self._try_out(model)
        steps = -(-len(train) // settings["batch_size"])
        self.trainer = _trainer(model, settings, steps, device)
        self.trainer.about = {
            "model": {"name": settings["model"], "arguments": arguments},
            "classes": list(self._classes),
            "input_shape": list(shape),
            "preprocessing": {"range": [0.0, 1.0], "colour": "grey" if shape[0] == 1 else "rgb"},
        }

    def _try_out(self, model: nn.Module) -> None:
        """Run two images through the model, to know that it takes them before a folder is made."""
        model.eval()
        with brasa.no_grad():
            model(self.train[:2][0])
        model.train()

    def describe(self) -> str:
        """Say what there is to train and to test."""
        return f"{len(self.train):,} images to train, {len(self.test):,} to test"

    def callbacks(self, folder: Path) -> list[callbacks.Callback]:
        """What is written to the run's folder while training."""
        return [
            callbacks.CSVLogger(folder / "history.csv"),
            callbacks.Checkpoint(folder / CHECKPOINT),
            # By the test set: a file to look at, not the result. The accuracy that is printed is of the
            # last epoch's weights, which no test image has helped to choose.
            callbacks.Checkpoint(folder / BEST, monitor="val_accuracy"),
        ]

    def fit(self, resume: str | None) -> None:
        """Train to the end."""
        augment = self._recipe.augment() if self._recipe.augment and self._settings["augment"] else None
        self.trainer.fit(
            self.train,
            validation=self.test,
            epochs=self._settings["epochs"],
            batch_size=self._settings["batch_size"],
            transform=augment,
            resume=resume,
        )

    def measure(self) -> tuple[dict[str, Any], str]:
        """Measure the trained network: what the run's JSON says about it, and the line that ends the command."""
        self._matrix = confusion_matrix(np.asarray(self.test.targets), self.trainer.predict(self.test))
        correct, total = int(np.trace(self._matrix)), len(self.test)
        facts = {
            "test": {"accuracy": correct / total, "correct": correct, "total": total},
            "classes": list(self._classes),
            "confusion": self._matrix.tolist(),
        }
        return facts, f"test accuracy {correct / total:.4f} ({correct} of {total})"

    def draw(self, folder: Path) -> None:
        """Write the pictures."""
        self.trainer.history.plot(folder / "history.png")
        write_figure(draw_confusion(self._matrix, self._classes), folder / "confusion.png")


class TextTask:
    """A network that predicts a text's next character; attributes and methods as of `ImageTask`."""

    pictures = ("history.png",)

    def __init__(
        self, settings: dict[str, Any], recipe: Recipe, train: Any, test: Any, device: str | None
    ) -> None:
        self.train, self.test = train, test
        self._settings = settings
        with user_input("--batch-size"):
            self._batches = data.TextBatches(train, settings["batch_size"], _STEPS)
        arguments = {"characters": len(train.vocabulary)}
        random.manual_seed(settings["seed"])
        model = make_model(settings["model"], arguments)
        self.trainer = _trainer(model, settings, len(self._batches), device, clip_norm=1.0)
        self.trainer.about = {
            "model": {"name": settings["model"], "arguments": arguments},
            "vocabulary": train.vocabulary.characters,
        }

    def describe(self) -> str:
        """Say what there is to train and to test."""
        return (
            f"{len(self.train):,} characters of {len(self.train.vocabulary)} kinds to train, "
            f"{len(self.test):,} to test"
        )

    def callbacks(self, folder: Path) -> list[callbacks.Callback]:
        """What is written to the run's folder while training."""
        return [
            _Perplexity(),
            callbacks.CSVLogger(folder / "history.csv"),
            _WholeEpochs(folder / CHECKPOINT),
            callbacks.Checkpoint(folder / BEST, monitor="val_loss"),
        ]

    def fit(self, resume: str | None) -> None:
        """Train to the end."""
        self.trainer.fit(
            self._batches, validation=self._test_batches(), epochs=self._settings["epochs"], resume=resume
        )

    def measure(self) -> tuple[dict[str, Any], str]:
        """Measure the trained network: what the run's JSON says about it, and the line that ends the command."""
        loss = self.trainer.evaluate(self._test_batches())["loss"]
        perplexity, bits = math.exp(loss), loss / math.log(2)
        facts = {"test": {"perplexity": perplexity, "bits": bits, "characters": len(self.test)}}
        return facts, f"test perplexity {perplexity:.3f} ({bits:.3f} bits per character)"

    def draw(self, folder: Path) -> None:
        """Write the pictures."""
        self.trainer.history.plot(folder / "history.png")

    def _test_batches(self) -> data.TextBatches:
        """Read the test part as one stream: each character is predicted from all that stand before it."""
        return data.TextBatches(self.test, batch_size=1, steps=256)


class _Perplexity(callbacks.Callback):
    """Add the perplexity to each epoch's measures."""

    def on_epoch_end(self, trainer: Trainer, measures: dict[str, float]) -> None:
        """Take it from the losses."""
        for name in [name for name in measures if name.endswith("loss")]:
            measures[name.replace("loss", "perplexity")] = float(np.exp(measures[name]))


class _WholeEpochs(callbacks.Checkpoint):
    """Save after epochs only: in the middle of one, the state that is carried on would be lost."""

    def on_interrupt(self, trainer: Trainer) -> None:
        """Leave the checkpoint of the epoch before."""


def task_for(kind: str) -> type[ImageTask] | type[TextTask]:
    """The task of a kind of data."""
    return TextTask if kind == "text" else ImageTask


def _trainer(
    model: nn.Module, settings: Mapping[str, Any], steps: int, device: str | None, **options: Any
) -> Trainer:
    """Adam with a one-cycle schedule of `steps` updates an epoch."""
    optimizer = optim.Adam(model.parameters(), lr=settings["lr"])
    schedule = optim.OneCycleLR(optimizer, settings["lr"], epochs=settings["epochs"], steps_per_epoch=steps)
    with user_input("--device"):
        return Trainer(
            model,
            optimizer,
            nn.CrossEntropyLoss(),
            scheduler=schedule,
            device=device,
            precision=settings["precision"],
            seed=settings["seed"],
            **options,
        )
