"""Named networks, built from ``nn`` alone and compatible with torchvision's state dicts of the same name.

>>> from brasa import models
>>> model = models.get("lenet", num_classes=10)
>>> sum(p.data.size for p in model.parameters())
61706
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from brasa.models.alexnet import AlexNet, alexnet
from brasa.models.character import CharacterModel, char_gru, char_lstm, char_rnn
from brasa.models.lenet import lenet
from brasa.models.markov import MarkovChain
from brasa.models.mlp import mlp
from brasa.models.resnet import (
    CifarResNet,
    ResNet,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from brasa.models.vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)
from brasa.nn import Module

__all__ = [
    "VGG",
    "AlexNet",
    "CharacterModel",
    "CifarResNet",
    "MarkovChain",
    "ResNet",
    "alexnet",
    "char_gru",
    "char_lstm",
    "char_rnn",
    "get",
    "lenet",
    "mlp",
    "names",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

_MODELS: dict[str, Callable[..., Module]] = {
    function.__name__: function
    for function in (
        lenet,
        mlp,
        alexnet,
        vgg11,
        vgg11_bn,
        vgg13,
        vgg13_bn,
        vgg16,
        vgg16_bn,
        vgg19,
        vgg19_bn,
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        resnet20,
        char_lstm,
        char_gru,
        char_rnn,
    )
}


def names() -> list[str]:
    """Return the names that ``get`` takes."""
    return list(_MODELS)


def get(name: str, **kwargs: Any) -> Module:
    """Make a network by name.

    Parameters
    ----------
    name : str
        One of ``names()``.
    **kwargs
        Arguments of the function of that name, such as ``num_classes``.

    Returns
    -------
    Module
        The network, with fresh random weights, in training mode.

    Raises
    ------
    ValueError
        If the name is unknown; the message has the closest one.

    Examples
    --------
    >>> from brasa import models
    >>> models.get("mlp", sizes=(4, 3, 2))
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=4, out_features=3, bias=True)
      (2): ReLU()
      (3): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(str(name), _MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"name: there is no model {name!r}; {hint}Known are {', '.join(_MODELS)}")
    return _MODELS[name](**kwargs)
