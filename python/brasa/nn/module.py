"""The base class of layers and models, and the parameters they hold.

A module keeps nothing in registries of its own: parameters and submodules *are* its attributes, found by
their type in the order in which they were assigned. One place to look means that assigning, deleting,
copying and pickling an attribute need no code here, and that ``self.weight`` is an ordinary attribute
access in the forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from brasa.nn._hooks import RemovableHandle, add_hook
from brasa.nn._state import IncompatibleKeys, convert, copy_into, is_narrow_target, matching_entries
from brasa.nn._summary import summary_table
from brasa.tensor import Tensor

__all__ = ["Module", "Parameter"]

M = TypeVar("M", bound="Module")
ForwardHook = Callable[["Module", tuple[Any, ...], Any], Any]
ForwardPreHook = Callable[["Module", tuple[Any, ...]], Any]


class Parameter(Tensor):
    """A Tensor that a module owns and an optimiser changes.

    Parameters
    ----------
    data : array_like
        The values; an array is shared and keeps its dtype.
    requires_grad : bool, default: True
        Whether ``backward`` fills ``.grad``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Parameter(np.zeros((2, 3), np.float32)).requires_grad
    True
    """

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Module:
    """Base class of every layer and model.

    Subclasses assign parameters, buffers and submodules in ``__init__`` and define ``forward``. Calling the
    module turns array arguments into Tensors, runs the hooks and ``forward``, and returns Tensors. Names,
    methods and the state dict follow ``torch.nn.Module``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> class Residual(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.inner = nn.Linear(width, width, activation="relu")
    ...
    ...     def forward(self, x):
    ...         return x + self.inner(x)
    >>> model = Residual(4)
    >>> model(np.ones((2, 4), np.float32)).shape
    (2, 4)
    >>> [name for name, _ in model.named_parameters()]
    ['inner.weight', 'inner.bias']
    """

    _stays_float32 = False  # when the rest of a model goes to 16 bits: what kernels take beside those
    training: bool
    _buffers: dict[str, bool]
    _forward_hooks: dict[int, ForwardHook]
    _forward_pre_hooks: dict[int, ForwardPreHook]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Here and not in __init__, so that a subclass that forgets super().__init__() still works.
        self = super().__new__(cls)
        vars(self).update(training=True, _buffers={}, _forward_hooks={}, _forward_pre_hooks={})
        return self

    # --- calling ----------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for argument in args:
            if type(argument) is not Tensor and not isinstance(argument, Tensor):
                args = tuple(a if isinstance(a, Tensor) else _as_tensor(a) for a in args)
                break
        if not (self._forward_hooks or self._forward_pre_hooks):
            return self.forward(*args, **kwargs)
        for pre_hook in tuple(self._forward_pre_hooks.values()):
            changed = pre_hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks.values()):
            changed = hook(self, args, result)
            if changed is not None:
                result = changed
        return result

    def register_forward_pre_hook(self, hook: ForwardPreHook) -> RemovableHandle:
        """Call ``hook(module, args)`` before every ``forward``.

        What the hook returns, one argument or a tuple of them, replaces the arguments unless it is None.
        """
        return add_hook(self._forward_pre_hooks, hook)

    def register_forward_hook(self, hook: ForwardHook) -> RemovableHandle:
        """Call ``hook(module, args, result)`` after every ``forward``.

        What the hook returns replaces the result unless it is None.
        """
        return add_hook(self._forward_hooks, hook)

    # --- attributes -------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        old = vars(self).get(name)
        if value is not None and old is not None:
            if isinstance(old, Parameter) and not isinstance(value, Parameter):
                _refuse(name, "a parameter", "an nn.Parameter or None", value)
            if isinstance(old, Module) and not isinstance(value, Module):
                _refuse(name, "a module", "an nn.Module or None", value)
            if name in self._buffers and not isinstance(value, Tensor):
                _refuse(name, "a buffer", "a Tensor or None", value)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._buffers.pop(name, None)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter (or None) under ``name``: setting the attribute, with the name checked."""
        if not isinstance(parameter, Parameter | None):
            raise TypeError(f"parameter: expected an nn.Parameter or None, got {type(parameter).__name__}")
        self._check_name(name, Parameter)
        setattr(self, name, parameter)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Add state that is no parameter, such as running statistics.

        Parameters
        ----------
        name : str
            The attribute's name.
        tensor : Tensor, array or None
            The value; arrays become Tensors.
        persistent : bool, default: True
            Whether it belongs to the state dict.
        """
        self._check_name(name, Tensor)
        if not isinstance(tensor, Tensor | None):
            tensor = Tensor(tensor)
        self._buffers[name] = persistent
        setattr(self, name, tensor)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule (or None) under ``name``, which need not be an identifier."""
        if not isinstance(module, Module | None):
            raise TypeError(f"module: expected an nn.Module or None, got {type(module).__name__}")
        self._check_name(name, Module)
        setattr(self, name, module)

    def _check_name(self, name: str, kind: type) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        if not name or "." in name:
            raise ValueError(f"name: expected a non-empty name without a dot, got {name!r}")
        taken = hasattr(self, name)
        if taken and not (name in vars(self) and isinstance(vars(self)[name], kind | None)):
            raise ValueError(f"name: {type(self).__name__} already has an attribute {name!r} of another kind")

    # --- walking ----------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Iterate over the direct submodules as (name, module), each module once."""
        seen: set[int] = set()
        for name, value in tuple(vars(self).items()):
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def children(self) -> Iterator[Module]:
        """Iterate over the direct submodules."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Iterate over this module and everything below it as (dotted name, module), each module once."""
        return self._walk(prefix, set())

    def modules(self) -> Iterator[Module]:
        """Iterate over this module and everything below it."""
        return (module for _, module in self.named_modules())

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, value in tuple(vars(self).items()):
            if isinstance(value, Module):
                yield from value._walk(_join(prefix, name), seen)

    def _own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return ((name, v) for name, v in tuple(vars(self).items()) if isinstance(v, Parameter))

    def _own_buffers(self) -> Iterator[tuple[str, Tensor]]:
        values = vars(self)
        return ((name, values[name]) for name in tuple(self._buffers) if values.get(name) is not None)

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Iterate over the parameters as (dotted name, parameter), each parameter once.

        Parameters
        ----------
        prefix : str, default: ""
            Put before every name.
        recurse : bool, default: True
            Whether submodules' parameters are included.
        """
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else ((prefix, self),):
            for name, parameter in module._own_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield _join(path, name), parameter

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Iterate over the parameters, each once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the buffers as (dotted name, Tensor), each once."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else ((prefix, self),):
            for name, buffer in module._own_buffers():
                if id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield _join(path, name), buffer

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Iterate over the buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    # --- changing the whole tree ------------------------------------------------------------------

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call ``function`` on every submodule, children first, then on this module; returns the module."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def train(self: M, mode: bool = True) -> M:
        """Switch dropout and batch normalisation to training behaviour, or back; returns the module."""
        if not isinstance(mode, bool):
            raise TypeError(f"mode: expected a bool, got {type(mode).__name__}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Switch to inference behaviour: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set ``requires_grad`` of every parameter; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set ``grad`` of every parameter to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self: M, target: Any) -> M:
        """Move all parameters and buffers to a device, or change the dtype of the floating ones.

        The Tensors stay the same objects and get new ``data``, so an optimiser keeps its references.

        Parameters
        ----------
        target : str or dtype
            A device, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, or a floating dtype such as ``numpy.float64``.
            With one of 16 bits, which kernels on CUDA take, weights and running statistics of norms become
            float32: that is what they are beside 16 bits.
        """
        wide = self._beside_16_bits() if is_narrow_target(target) else set()
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            convert(tensor, "float32" if id(tensor) in wide else target)
        return self

    def _beside_16_bits(self) -> set[int]:
        """The Tensors, by identity, that stay float32 when the others have 16 bits."""
        return {
            id(tensor)
            for module in self.modules()
            if module._stays_float32
            for tensor in itertools.chain(module.parameters(False), (b for _, b in module._own_buffers()))
        }

    # --- state ------------------------------------------------------------------------------------

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and persistent buffers with their names, shared ones under each of them."""
        for path, module in self._walk("", None):
            for name, parameter in module._own_parameters():
                yield _join(path, name), parameter
            for name, buffer in module._own_buffers():
                if module._buffers[name]:
                    yield _join(path, name), buffer

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by name, as Tensors that share memory with the module."""
        return {name: tensor.detach() for name, tensor in self._state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values into parameters and buffers, in place. Nothing is changed unless everything fits.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Names as in ``state_dict()``; values are NumPy or CuPy arrays, Tensors, torch tensors or nested
            lists.
        strict : bool, default: True
            Whether missing and unexpected names are errors.

        Returns
        -------
        IncompatibleKeys
            ``missing_keys`` and ``unexpected_keys``, both empty when ``strict``.

        Raises
        ------
        ValueError
            Listing missing names, unexpected names and wrong shapes.
        """
        own = dict(self._state())
        entries, incompatible = matching_entries(type(self).__name__, own, state_dict, strict)
        for name, values in entries.items():
            copy_into(own[name], values)
        return incompatible

    # --- printing ---------------------------------------------------------------------------------

    def summary(self, input_shape: tuple[int, ...], dtype: Any = None) -> str:
        """Run one sample through the module and return a table of layers, output shapes and parameters.

        Parameters
        ----------
        input_shape : tuple of int
            The shape of one sample, without the batch dimension: (C, H, W) for images.
        dtype : dtype, optional
            Of the input; by default that of the first parameter.

        Examples
        --------
        >>> from brasa import nn
        >>> print(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).summary((4,)))
        layer      output shape  parameters
        -----------------------------------
        0  Linear  (N, 3)                15
        1  ReLU    (N, 3)                 0
        2  Linear  (N, 2)                 8
        -----------------------------------
        total                            23
        trainable                        23
        """
        return summary_table(self, input_shape, dtype)

    def extra_repr(self) -> str:
        """Return what stands between the brackets of this module's own line in ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [self.extra_repr()] if self.extra_repr() else []
        children = [(name, repr(v)) for name, v in vars(self).items() if isinstance(v, Module)]
        if not children:
            return f"{type(self).__name__}({''.join(lines)})"
        lines += [f"({name}): {text}" for name, text in children]
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


def _as_tensor(value: Any) -> Any:
    return Tensor(value) if hasattr(value, "dtype") and hasattr(value, "shape") else value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _refuse(name: str, kind: str, needed: str, value: Any) -> None:
    raise TypeError(f"{name} is {kind}: expected {needed}, got {type(value).__name__}")
