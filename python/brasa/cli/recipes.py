"""Which data sets and networks the commands know by name, and how each is trained by default."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from brasa import data, models
from brasa.nn import Module

from .errors import UsageError, closest, user_input

__all__ = [
    "Recipe",
    "check_fit",
    "data_kind",
    "input_size",
    "load_data",
    "make_model",
    "model_arguments",
    "model_name",
    "recipe_for",
]


@dataclass(frozen=True)
class Recipe:
    """How a data set is read and trained on, unless options say otherwise.

    The learning rate is the top of a one-cycle schedule of Adam.
    """

    load: Callable[[str | None, int], tuple[Any, Any]]
    epochs: int
    augment: Callable[[], Any] | None
    batch_size: int = 32
    lr: float = 3e-3
    kind: str = "images"


def _crop_and_flip() -> Any:
    return data.Compose(data.RandomCrop(4), data.RandomHorizontalFlip())


def _folder(root: str | None, size: int) -> tuple[Any, Any]:
    # The same fifth is set aside in every run, so that accuracies can be compared.
    return data.split(data.image_folder(root, size), 0.8, seed=0)


_SETS = {
    "mnist": Recipe(lambda root, size: data.mnist(root), 30, data.RandomAffine),
    "fashion-mnist": Recipe(lambda root, size: data.fashion_mnist(root), 8, None),
    "cifar10": Recipe(lambda root, size: data.cifar10(root), 30, _crop_and_flip, batch_size=64),
    "digits": Recipe(lambda root, size: data.digits(), 30, None),
    "text": Recipe(lambda root, size: data.text(root), 15, None, batch_size=16, kind="text"),
    "fortunes-br": Recipe(
        lambda root, size: data.fortunes_br(root) if root else data.fortunes_br(), 15, None, 16, kind="text"
    ),
}
_FOLDER = Recipe(_folder, 30, data.RandomHorizontalFlip)

# Height and width that a network's first layers are made for; the large ones take 224.
_INPUT_SIZES = {"lenet": 28, "mlp": 28, "resnet20": 32}

_TEXT_MODELS = ("char_lstm", "char_gru", "char_rnn")


def recipe_for(name: str) -> Recipe:
    """The recipe of a data set, or of a folder of images with one subfolder per class."""
    if name in _SETS:
        return _SETS[name]
    if os.path.isdir(name):
        return _FOLDER
    raise UsageError(
        f"--data: there is no data set and no folder {name!r}{closest(name, _SETS)} "
        f"(known sets: {', '.join(_SETS)})"
    )


def model_name(text: str) -> str:
    """The name of a network as `models.get` takes it: hyphens are as good as underscores."""
    name = text.replace("-", "_")
    _check_model(name)
    return name


def data_kind(model: str) -> str:
    """What a network is made for: "images" or "text"."""
    return "text" if model in _TEXT_MODELS else "images"


def check_fit(model: str, name: str) -> None:
    """Refuse a network for a data set of another kind."""
    wanted = data_kind(model)
    if recipe_for(name).kind != wanted:
        known = ", ".join(n for n, recipe in _SETS.items() if recipe.kind == wanted)
        raise UsageError(f"{model} is for {wanted}, which {name} is not (--data: {known})")


def input_size(model: str) -> int:
    """Height and width of the images that a network takes."""
    return _INPUT_SIZES.get(model, 224)


def load_data(name: str, root: str | None, size: int) -> tuple[Any, Any]:
    """Read the training and the test part of a data set or folder."""
    recipe = recipe_for(name)
    with user_input():
        return recipe.load(name if recipe is _FOLDER else root, size)


def model_arguments(name: str, input_shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The arguments that fit a network to images of a shape and a number of classes."""
    _check_model(name)
    parameters = inspect.signature(getattr(models, name)).parameters
    arguments: dict[str, Any] = {}
    if "sizes" in parameters:
        default = list(parameters["sizes"].default)
        return {"sizes": [int(np.prod(input_shape)), *default[1:-1], classes]}
    if "in_channels" in parameters:
        arguments["in_channels"] = input_shape[0]
    return {"num_classes": classes, **arguments}


def make_model(name: str, arguments: dict[str, Any]) -> Module:
    """Make a network by name."""
    _check_model(name)
    with user_input():
        return models.get(name, **arguments)


def _check_model(name: str) -> None:
    known = models.names()
    if name not in known:
        raise UsageError(f"there is no model {name!r}{closest(name, known)} (known: {', '.join(known)})")
