"""Modules that hold modules; ``Sequential`` also fuses what can be computed in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brasa.nn.activation import FUSIBLE_ACTIVATIONS
from brasa.nn.conv import Conv2d
from brasa.nn.linear import Linear
from brasa.nn.module import Module, Parameter
from brasa.nn.norm import BatchNorm1d, BatchNorm2d, LayerNorm

__all__ = ["ModuleDict", "ModuleList", "ParameterList", "Sequential"]

# Exact types: a subclass may have changed forward, and then must be called.
_FUSING = frozenset({BatchNorm1d, BatchNorm2d, Conv2d, LayerNorm, Linear})


class _Numbered(Module):
    """Modules under the names "0", "1", ...: what Sequential and ModuleList share."""

    def _items(self) -> list[Module]:
        return [value for value in vars(self).values() if isinstance(value, Module)]

    def _replace(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        for name in [name for name, value in vars(self).items() if isinstance(value, Module)]:
            delattr(self, name)
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def _name(self, index: int) -> str:
        names = [name for name, value in vars(self).items() if isinstance(value, Module)]
        try:
            return names[index]
        except (IndexError, TypeError):
            what = IndexError if isinstance(index, int) else TypeError
            raise what(f"index: expected an int in [-{len(names)}, {len(names)}), got {index!r}") from None

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)._from(self._items()[index])
        return vars(self)[self._name(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._name(index), module)

    def __delitem__(self, index: int | slice) -> None:
        modules = self._items()
        del modules[index]
        self._replace(modules)

    def append(self, module: Module) -> Any:
        """Add a module at the end; returns the container."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add several modules at the end; returns the container."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before the one at ``index``; returns the container."""
        modules = self._items()
        modules.insert(index, module)
        self._replace(modules)
        return self

    @classmethod
    def _from(cls, modules: Iterable[Module]) -> Any:
        raise NotImplementedError


class Sequential(_Numbered):
    """Modules called one after another, each on the result of the one before.

    A convolution, linear or normalisation layer followed by an activation is computed as one operator, with
    identical results. That happens where neither of the two has a hook, both occur only once in the
    container and neither is of a derived class; each module still works alone, as ``model[i](x)``.

    Parameters
    ----------
    *modules : Module
        Or one mapping of names to modules.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model(np.zeros((3, 4), np.float32)).shape
    (3, 2)
    >>> model[:2]
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): ReLU()
    )
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named: Iterable[tuple[str, Any]] = modules[0].items()
        else:
            named = ((str(i), module) for i, module in enumerate(modules))
        for name, module in named:
            if not isinstance(module, Module):
                raise TypeError(f"module {name}: expected an nn.Module, got {type(module).__name__}")
            self.add_module(name, module)

    @classmethod
    def _from(cls, modules: Iterable[Module]) -> Sequential:
        return Sequential(*modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            names = list(vars(self))
            picked = [name for name in names if isinstance(vars(self)[name], Module)][index]
            return Sequential({name: vars(self)[name] for name in picked})
        return super().__getitem__(index)

    def forward(self, x: Any) -> Any:
        """Call the modules in order."""
        steps = vars(self).get("_steps")
        if steps is None:
            steps = vars(self)["_steps"] = _pairs(self._items())
        for module, activation in steps:
            if activation is None:
                x = module(x)
            elif module.activation is None and _is_bare(module) and _is_bare(activation):
                x = module.fused(x, activation.activation)
            else:
                x = activation(module(x))
        return x

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        vars(self).pop("_steps", None)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        vars(self).pop("_steps", None)


def _pairs(modules: list[Any]) -> list[tuple[Any, Any]]:
    """The modules in order, each with the activation behind it where the two might be one operator."""
    pairs: list[tuple[Any, Any]] = []
    i = 0
    while i < len(modules):
        both = modules[i : i + 2]
        fits = len(both) == 2 and type(both[0]) in _FUSING and type(both[1]) in FUSIBLE_ACTIVATIONS
        if fits and all(modules.count(module) == 1 for module in both):
            pairs.append((both[0], both[1]))
            i += 2
        else:
            pairs.append((modules[i], None))
            i += 1
    return pairs


def _is_bare(module: Any) -> bool:
    """Whether nothing but the class's own ``forward`` happens when the module is called."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class ModuleList(_Numbered):
    """A list of modules that counts as submodules of its owner; it has no ``forward``.

    Parameters
    ----------
    modules : iterable of Module, optional
        The first members.

    Examples
    --------
    >>> from brasa import nn
    >>> layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    >>> len(layers), len(list(layers.parameters()))
    (3, 6)
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    @classmethod
    def _from(cls, modules: Iterable[Module]) -> ModuleList:
        return cls(modules)

    def __repr__(self) -> str:
        lines: list[str] = []
        start, texts = 0, [repr(module) for module in self]
        for i, text in enumerate(texts):
            if i + 1 < len(texts) and texts[i + 1] == text:
                continue
            label = f"({i}): " if i == start else f"({start}-{i}): {i - start + 1} x "
            lines.append(label + text)
            start = i + 1
        if not lines:
            return f"{type(self).__name__}()"
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


class ModuleDict(Module):
    """Modules by name, counted as submodules of its owner; it has no ``forward``.

    Parameters
    ----------
    modules : mapping of str to Module, optional
        The first members.

    Examples
    --------
    >>> from brasa import nn
    >>> heads = nn.ModuleDict({"digit": nn.Linear(8, 10), "sign": nn.Linear(8, 1)})
    >>> list(heads), heads["sign"].out_features
    (['digit', 'sign'], 1)
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, name: str) -> Module:
        module = vars(self).get(name)
        if not isinstance(module, Module):
            raise KeyError(name)
        return module

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        delattr(self, name) if name in self else self[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and isinstance(vars(self).get(name), Module)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in vars(self).items() if isinstance(value, Module))

    def keys(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self)

    def values(self) -> Iterator[Module]:
        """Iterate over the modules."""
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Module]]:
        """Iterate over (name, module)."""
        return ((name, self[name]) for name in self)

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace modules."""
        for name, module in modules.items():
            self.add_module(name, module)


class ParameterList(Module):
    """A list of parameters that belong to the list's owner.

    Parameters
    ----------
    parameters : iterable of Parameter or array_like, optional
        The members; what is no Parameter becomes one.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> scales = nn.ParameterList(np.ones(3, np.float32) for _ in range(2))
    >>> [name for name, _ in scales.named_parameters()]
    ['0', '1']
    """

    def __init__(self, parameters: Iterable[Any] = ()) -> None:
        super().__init__()
        for parameter in parameters:
            self.append(parameter)

    def append(self, parameter: Any) -> ParameterList:
        """Add a parameter at the end; returns the list."""
        if not isinstance(parameter, Parameter):
            parameter = Parameter(parameter)
        self.register_parameter(str(len(self)), parameter)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Parameter]:
        return (value for value in vars(self).values() if isinstance(value, Parameter))

    def __getitem__(self, index: int) -> Parameter:
        return list(self)[index]
