"""Copying values into the Tensors of a module: state dicts, devices, dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from brasa._backend import is_narrow, namespace, to_numpy
from brasa._tape import is_floating
from brasa.autograd import no_grad
from brasa.tensor import Tensor


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` did not find, and what it found and did not use."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def as_array(value: Any) -> Any:
    """Return the array behind an array, a Tensor, a torch tensor, or nested lists."""
    if isinstance(value, Tensor):
        return value.data
    if hasattr(value, "detach"):  # a torch tensor; NumPy refuses those that require a gradient
        value = value.detach().cpu()
        return (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    return value if hasattr(value, "__cuda_array_interface__") else np.asarray(value)


def matching_entries(
    owner: str, own: Mapping[str, Tensor], given: Mapping[str, Any], strict: bool
) -> tuple[dict[str, Any], IncompatibleKeys]:
    """Pair the given values with a module's own Tensors, checking all names, shapes and dtypes first.

    Returns
    -------
    entries : dict of str to array
        For every name in both.
    incompatible : IncompatibleKeys
        The names in only one.

    Raises
    ------
    ValueError
        Listing wrong shapes and, if ``strict``, missing and unexpected names.
    TypeError
        If ``given`` is no mapping, or a value cannot be cast to the dtype of its Tensor.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to arrays, got {type(given).__name__}")
    incompatible = IncompatibleKeys([k for k in own if k not in given], [k for k in given if k not in own])
    entries = {name: as_array(given[name]) for name in own if name in given}
    problems = [
        f"{name} has shape {tuple(values.shape)}, expected {tuple(own[name].shape)}"
        for name, values in entries.items()
        if tuple(values.shape) != tuple(own[name].shape)
    ]
    if strict:
        problems += _listed("missing", incompatible.missing_keys)
        problems += _listed("unexpected", incompatible.unexpected_keys)
    if problems:
        raise ValueError(f"state_dict does not fit {owner}:\n  " + "\n  ".join(problems))
    for name, values in entries.items():
        if not np.can_cast(values.dtype, own[name].dtype, "same_kind"):
            raise TypeError(
                f"state_dict: {name} has dtype {values.dtype}, which does not fit {own[name].dtype}"
            )
    return entries, incompatible


def _listed(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"{what}: {', '.join(names)}"] if names else []


def copy_into(tensor: Tensor, values: Any) -> None:
    """Copy an array of the same shape into a Tensor's own memory, on whichever device that is."""
    if type(values) is not type(tensor.data):
        values = namespace(tensor.data).asarray(to_numpy(values))
    with no_grad():
        tensor[...] = values


class HostCount(Tensor):
    """A count that Python keeps: it stays on the host wherever its module is, as one on a GPU would cost a launch."""


def convert(tensor: Tensor, target: Any) -> None:
    """Give a Tensor and its gradient new ``data``: on a device or, where floating, of a dtype."""
    if type(tensor) is HostCount:
        return
    if not _is_device(target):
        target = _floating_dtype(target)
        if not is_floating(tensor.dtype):
            return
    for part in (tensor, tensor.grad):
        if part is not None:
            part.data = part.detach().to(target).data
            part.version += 1


def is_narrow_target(target: Any) -> bool:
    """Whether `convert` would make arrays of 16 bits."""
    return not _is_device(target) and is_narrow(_floating_dtype(target))


def _is_device(target: Any) -> bool:
    return isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda")


def _floating_dtype(target: Any) -> np.dtype[Any]:
    try:
        dtype = None if target is None else np.dtype(target)
    except TypeError:
        dtype = None
    if dtype is None or not is_floating(dtype):
        raise TypeError(
            f"target: expected a device ('cpu', 'cuda', 'cuda:1') or a floating dtype, got {target!r}"
        )
    return dtype
