"""A trainer's whole state in one file, and back.

Tensors: ``model.<name>``, ``optimizer.<position>.<slot>``, and ``gradient.<position>`` where
gradients were being accumulated. Everything else (hyper-parameters, schedule, random state,
position, history, callbacks) is JSON in the file's metadata. Floats survive JSON exactly; NaN and
infinity, which JSON lacks, are the texts that ``float`` reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from brasa import io, random
from brasa.tensor import Tensor

from .history import History

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["load_checkpoint", "save_checkpoint"]

_OWN = {"optimizer", "scheduler", "random", "position", "history", "callbacks"}
_LATER = {"scaler"}  # not in checkpoints of version 0.1


def save_checkpoint(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write the state of `trainer`; what it leaves at `path` is the old file or the new one."""
    tensors: dict[str, Any] = {
        io.MODEL_PREFIX + name: value for name, value in trainer.model.state_dict().items()
    }
    state = trainer.optimizer.state_dict()
    steps = {}
    for i, slots in state["state"].items():
        steps[str(i)] = slots["step"]
        tensors.update({f"optimizer.{i}.{k}": v for k, v in slots.items() if k != "step"})
    tensors.update({f"gradient.{i}": g for i, g in _pending_gradients(trainer).items()})
    metadata = {
        **trainer.about,
        "optimizer": {
            "type": type(trainer.optimizer).__name__,
            "param_groups": state["param_groups"],
            "steps": steps,
        },
        "scheduler": _named_state(trainer.scheduler),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "random": random.default_generator().state_dict(),
        "position": trainer.position(),
        "history": trainer.history.state_dict(),
        "callbacks": [_named_state(callback) for callback in trainer.callbacks],
    }
    io.write(tensors, path, plain(metadata), kind="checkpoint")


def load_checkpoint(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Put `trainer` where the one that wrote `path` was.

    Raises
    ------
    CheckpointError
        The file is damaged, or holds weights alone.
    ValueError
        Model, optimiser, schedule, callbacks or scaling are not those of the file.
    """
    tensors, metadata, kind = io.read(path)
    if kind != "checkpoint" or not metadata.keys() >= _OWN:
        raise io.CheckpointError(f"{os.fspath(path)}: no checkpoint of a training; br.load reads it")
    optimizer, callbacks = metadata["optimizer"], metadata["callbacks"]
    _same_type("optimizer", optimizer, trainer.optimizer)
    _same_type("scheduler", metadata["scheduler"], trainer.scheduler)
    scaler = metadata.get("scaler")
    if (scaler is None) != (trainer.scaler is None):
        raise ValueError(f"precision: the checkpoint was {'not ' if scaler is None else ''}written in fp16")
    if [c["type"] for c in callbacks] != [type(c).__name__ for c in trainer.callbacks]:
        raise ValueError(f"callbacks: the checkpoint has {[c['type'] for c in callbacks]}")

    trainer.model.load_state_dict(io.model_tensors(tensors))
    state = _slots(tensors, optimizer["steps"])
    trainer.optimizer.load_state_dict({"param_groups": optimizer["param_groups"], "state": state})
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(metadata["scheduler"]["state"])
    if trainer.scaler is not None and scaler is not None:
        trainer.scaler.load_state_dict(scaler)
    random.default_generator().load_state_dict(metadata["random"])
    for callback, saved in zip(trainer.callbacks, callbacks, strict=True):
        callback.load_state_dict(saved["state"])
    trainer.history = History(
        {name: [float(v) for v in values] for name, values in metadata["history"].items()}
    )
    trainer.about = {k: v for k, v in metadata.items() if k not in _OWN | _LATER}
    trainer.load_position(metadata["position"])
    _restore_gradients(trainer, tensors)


def plain(value: Any) -> Any:
    """Make JSON values of NumPy numbers, tuples, and floats that are not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _named_state(owner: Any) -> dict[str, Any] | None:
    return None if owner is None else {"type": type(owner).__name__, "state": owner.state_dict()}


def _same_type(what: str, saved: Mapping[str, Any] | None, present: Any) -> None:
    found = None if saved is None else saved["type"]
    own = None if present is None else type(present).__name__
    if found != own:
        raise ValueError(f"{what}: the checkpoint has {found}, this trainer {own}")


def _slots(tensors: Mapping[str, Any], steps: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {int(i): {"step": step} for i, step in steps.items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, slot = name.split(".", 2)
            state[int(i)][slot] = value
    return state


def _parameters(trainer: Trainer) -> list[Tensor]:
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


def _pending_gradients(trainer: Trainer) -> dict[int, Tensor]:
    """Gradients of batches whose update is still to come."""
    grads = {i: p.grad for i, p in enumerate(_parameters(trainer))}
    return {i: g for i, g in grads.items() if g is not None} if trainer.updates.pending else {}


def _restore_gradients(trainer: Trainer, tensors: Mapping[str, Any]) -> None:
    trainer.optimizer.zero_grad()
    for i, param in enumerate(_parameters(trainer)):
        if f"gradient.{i}" in tensors:
            param.grad = Tensor(trainer.engine.on_device(tensors[f"gradient.{i}"]))
