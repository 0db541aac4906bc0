"""Networks that `brasa train` has trained, from their checkpoints."""

from __future__ import annotations

from typing import Any

from brasa import io
from brasa.nn import Module

from .errors import UsageError, user_input
from .recipes import make_model

__all__ = ["load_trained"]

# The command that uses a checkpoint, by what only that kind of checkpoint has.
_COMMANDS = {"vocabulary": "brasa generate", "classes": "brasa predict"}


def load_trained(path: str, needed: str, what: str) -> tuple[Module, dict[str, Any]]:
    """Read a network, and what its checkpoint says about it.

    Parameters
    ----------
    path : str
        A file that brasa train wrote.
    needed : str
        The entry that tells the kind of network: "classes" or "vocabulary".
    what : str
        What such a network is for, to say so where it is another.
    """
    with user_input():
        tensors, about, kind = io.read(path)
    if kind != "checkpoint" or "model" not in about or not about.keys() & _COMMANDS.keys():
        raise UsageError(f"{path}: no checkpoint of brasa train, so the network is unknown")
    if needed not in about:
        command = next(command for entry, command in _COMMANDS.items() if entry in about)
        raise UsageError(f"{path}: this network is not for {what}; {command} uses it")
    with user_input(path):
        model = make_model(about["model"]["name"], about["model"]["arguments"])
        model.load_state_dict(io.model_tensors(tensors))
    model.eval()
    return model, about
