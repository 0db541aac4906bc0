"""What all optimisers share: parameter groups, state, and the call of a multi-tensor step.

A step gathers the arrays of a group and makes one native call for all of them. Parameters whose
dtype, device or number of past steps differ need a call of their own; in practice there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from brasa import _capture
from brasa._backend import as_array, beside, device_of, is_array, namespace
from brasa.tensor import Tensor

__all__ = ["Batch", "Optimizer", "at_least", "namespace", "within"]


@dataclass(slots=True)
class Batch:
    """Arrays of one dtype and device that a single native call updates."""

    step: int  # how often these parameters were updated, this time included
    params: list[Any]
    grads: list[Any]
    slots: dict[str, list[Any]]


@dataclass(slots=True)
class _Gathered:
    """A group whose parameters all went through one call: the next step needs a look, no search."""

    names: tuple[str, ...]
    batch: Batch
    members: list[Tensor]
    states: list[dict[str, Any]]

    def advance(self, params: list[Tensor]) -> bool:
        """Take the new gradients and count the step; False, and nothing is done, where anything changed."""
        if len(params) != len(self.members):
            return False
        grads = []
        for param, member, data in zip(params, self.members, self.batch.params, strict=True):
            grad = param.grad
            if param is not member or grad is None or param.data is not data:
                return False
            grads.append(grad.data)
        step = self.states[0]["step"] + 1  # replays of a captured step count there, too
        self.batch.step = step
        self.batch.grads = grads
        for state in self.states:
            state["step"] = step
        return True


class Optimizer:
    """Base of all optimisers.

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups ``{"params": [...], "lr": ...}`` with options of their own.
    defaults : mapping
        The options of a group that names none.

    Attributes
    ----------
    param_groups : list of dict
        The groups: ``"params"`` and the options, which may be changed between steps.

    Raises
    ------
    ValueError
        There is no parameter, one occurs twice, or an option is out of its range.
    TypeError
        Something that is no Tensor, or an unknown option.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        # Keyed by identity: two parameters with equal values are still two.
        self._state: dict[int, dict[str, Any]] = {}
        self._gathered: dict[int, _Gathered] = {}  # by the group's identity: what the last step found
        # Learns which steps of a graph were left out: whoever reads a count of steps calls it first.
        self._catch_up: Callable[[], None] = _know_all
        if isinstance(params, Tensor | np.ndarray | Mapping):
            raise TypeError(f"params must be a list of Tensors or groups, got {type(params).__name__}")
        groups = list(params)
        if not groups:
            raise ValueError("params is empty: there is nothing to optimise")
        if not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own, such as a layer that is unfrozen later.

        Parameters
        ----------
        group : mapping
            ``"params"``: a Tensor or an iterable of Tensors; any option that differs from the
            defaults.
        """
        unknown = set(group) - set(self.defaults) - {"params", "initial_lr"}
        if unknown or "params" not in group:
            raise TypeError(
                f"a group needs 'params' and may have {sorted(self.defaults)}, got {sorted(group)}"
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for param in params:
            if not isinstance(param, Tensor):
                raise TypeError(f"params must hold Tensors, got {type(param).__name__}")
            if id(param) in known:
                raise ValueError("params: a parameter occurs twice")
            known.add(id(param))
        new = {**self.defaults, **group, "params": params}
        self._check_options(new)
        self.param_groups.append(new)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters: ``grad`` becomes None."""
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    def step(self, *, scale: Any = 1.0) -> None:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        scale : float, default 1.0
            Multiplies all gradients first: the factor of a gradient clipping, or what undoes the
            scaling of a loss. On a device also one float64 there.
        """
        recording = _capture.current()
        with _capture.outside():
            self._catch_up()
        for group in self.param_groups:
            for batch, members in self._gather(group):
                self._update(group, batch, scale)
                batch.grads = []  # kept, they would lie beside those of the next step
                for param in members:
                    param._cell[0] += 1
                if recording is not None:
                    recording.renew(_Repeat(self, group, batch, members, scale, recording.guard))

    def state_dict(self) -> dict[str, Any]:
        """Return the state in torch's form; the arrays share memory with the optimiser.

        Returns
        -------
        dict
            ``"state"``: by the parameter's position, its ``"step"`` and arrays; ``"param_groups"``:
            options, with positions in place of parameters.
        """
        self._catch_up()
        position = {id(p): i for i, p in enumerate(self._all_params())}
        groups = [
            {**group, "params": [position[id(p)] for p in group["params"]]} for group in self.param_groups
        ]
        state = {position[key]: dict(slots) for key, slots in self._state.items()}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over options and state, of this class or of torch's optimiser of the same name.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned for the same groups of parameters. Arrays are copied.

        Raises
        ------
        ValueError
            Groups, their sizes, positions or shapes differ; nothing has changed then.
        """
        groups, params = state_dict["param_groups"], self._all_params()
        sizes = [len(g["params"]) for g in groups]
        own_sizes = [len(g["params"]) for g in self.param_groups]
        if sizes != own_sizes:
            raise ValueError(f"state_dict: groups of {sizes} parameters, this optimiser has {own_sizes}")
        new_groups = [self._merged(own, group) for own, group in zip(self.param_groups, groups, strict=True)]
        order = [i for group in groups for i in group["params"]]
        place = dict(zip(order, params, strict=True))
        state = {}
        for i, slots in state_dict["state"].items():
            if i not in place:
                raise ValueError(f"state_dict: state of parameter {i!r}, which is in no group")
            state[id(place[i])] = self._loaded_slots(i, place[i], slots)
        self.param_groups, self._state = new_groups, state
        self._gathered.clear()

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            lines.append(f"  group {i}: {len(group['params'])} parameters, {options}")
        return "\n".join([f"{type(self).__name__} (", *lines, ")"])

    # --- for subclasses ---------------------------------------------------------------------------

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError where an option of a group is out of its range."""
        raise NotImplementedError

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Name the arrays that each parameter of the group needs."""
        raise NotImplementedError

    def _new_slot(self, group: dict[str, Any], name: str, data: Any) -> Any:
        """Make a slot's first array, shaped like the parameter's `data`: zeros, usually."""
        return namespace(data).zeros_like(data, order="C")

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        """Make the native call."""
        raise NotImplementedError

    # --- gathering --------------------------------------------------------------------------------

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _gather(self, group: dict[str, Any]) -> list[tuple[Batch, list[Tensor]]]:
        """Collect the arrays of a group that go through one native call each."""
        names = self._slot_names(group)
        known = self._gathered.get(id(group))
        if known is not None and known.names == names and known.advance(group["params"]):
            return [(known.batch, known.members)]
        batches = self._sort(group, names)
        if len(batches) == 1 and len(batches[0][1]) == len(group["params"]):
            batch, members = batches[0]
            self._gathered[id(group)] = _Gathered(
                names, batch, members, [self._state[id(p)] for p in members]
            )
        else:
            self._gathered.pop(id(group), None)
        return batches

    def _sort(self, group: dict[str, Any], names: tuple[str, ...]) -> list[tuple[Batch, list[Tensor]]]:
        """The parameters with a gradient, by the number of their steps, dtype and device."""
        batches: dict[tuple[Any, ...], tuple[Batch, list[Tensor]]] = {}
        for param in group["params"]:
            if param.grad is None:
                continue
            state = self._slots_of(group, param, names)
            state["step"] += 1
            key = (state["step"], param.data.dtype, device_of(param.data))
            if key not in batches:
                batches[key] = (Batch(state["step"], [], [], {name: [] for name in names}), [])
            batch, members = batches[key]
            members.append(param)
            batch.params.append(param.data)
            batch.grads.append(param.grad.data)
            for name in names:
                batch.slots[name].append(state[name])
        return list(batches.values())

    def _slots_of(self, group: dict[str, Any], param: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
        """A parameter's state, made at its first step; it follows the device and the dtype."""
        state = self._state.setdefault(id(param), {"step": 0})
        for name in names:
            slot = state.get(name)
            if slot is None:
                with _capture.outside():  # a replay must not make it anew
                    state[name] = self._new_slot(group, name, param.data)
            elif slot.dtype != param.data.dtype or device_of(slot) != device_of(param.data):
                with _capture.outside():
                    state[name] = like(slot, param.data)
        return state

    def _merged(self, own: dict[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
        options = {k: v for k, v in loaded.items() if k in own or k == "initial_lr"}
        if "betas" in options:  # a list, where the state comes from a file
            options["betas"] = tuple(options["betas"])
        merged = {**own, **options, "params": own["params"]}
        self._check_options(merged)
        return merged

    def _loaded_slots(self, index: Any, param: Tensor, slots: Mapping[str, Any]) -> dict[str, Any]:
        loaded: dict[str, Any] = {"step": int(slots.get("step", 1))}
        for name, value in slots.items():
            if name == "step" or value is None:
                continue
            array = like(value, param.data)
            if array.shape != param.data.shape:
                raise ValueError(
                    f"state_dict: {name!r} of parameter {index} has shape {array.shape}, "
                    f"the parameter {param.data.shape}"
                )
            loaded[name] = array
        return loaded


class _Repeat:
    """The numbers of the next step of parameters whose step was captured; calling it counts the step.

    Raises
    ------
    StaleCapture
        Parameters, states or options are not those that the captured kernel works on.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        group: dict[str, Any],
        batch: Batch,
        members: list[Tensor],
        scale: Any,
        guard: _capture.Guard | None,
    ) -> None:
        self.optimizer, self.group, self.members = optimizer, group, members
        self.scale = 1.0 if is_array(scale) else scale  # one on the device is read there
        self.batch = Batch(batch.step, batch.params, [], batch.slots)
        self.states = [optimizer._state[id(param)] for param in members]
        self.choices = self._numbers(batch.step)[1]
        self.guard = guard
        if guard is not None:
            guard.states += self.states

    def _numbers(self, step: int) -> tuple[Any, Any]:
        self.batch.step = step
        numbers: list[Any] = []
        with _capture.collect(numbers):
            self.optimizer._update(self.group, self.batch, self.scale)
        return numbers[0]

    def _check(self) -> None:
        optimizer, names = self.optimizer, tuple(self.batch.slots)
        whole = any(group is self.group for group in optimizer.param_groups)
        for param, data, state in zip(self.members, self.batch.params, self.states, strict=True):
            whole = whole and param.data is data and optimizer._state.get(id(param)) is state
        if not whole or optimizer._slot_names(self.group) != names:
            raise _capture.StaleCapture(
                "a captured step updates arrays that are no longer those of the optimiser: parameters were "
                "moved, a state was loaded or an option chosen since; capture the step anew"
            )

    def __call__(self) -> Any:
        self._check()
        if self.guard is None:
            self.optimizer._catch_up()
        step = self.states[0]["step"] + 1
        numbers, choices = self._numbers(step)
        if choices != self.choices:
            raise _capture.StaleCapture("an option of the optimiser was switched; capture the step anew")
        for state in self.states:
            state["step"] = step
        for param in self.members:
            param._cell[0] += 1
        if self.guard is None:
            return numbers
        left_out = range(1, self.guard.unknown + 1)  # steps that may have been, before this one
        return [*numbers, *chain.from_iterable(self._numbers(step - n)[0] for n in left_out)]


def _know_all() -> None:
    """What `Optimizer._catch_up` is where no graph with a `GradScaler` makes steps."""


def like(value: Any, data: Any) -> Any:
    """Copy anything array-like to an array of `data`'s kind, device and dtype."""
    array = beside(as_array(value), data)
    return namespace(data).array(array, dtype=data.dtype, order="C", copy=True)


def at_least(group: Mapping[str, Any], low: float, *names: str) -> None:
    """Raise ValueError where an option is below `low`, infinite or no number."""
    for name in names:
        if not low <= group[name] < float("inf"):
            raise ValueError(f"{name} must be a number of at least {low}, got {group[name]!r}")


def within(name: str, value: float) -> None:
    """Raise ValueError unless ``0 <= value < 1``."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
