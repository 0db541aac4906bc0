"""`Tensor`: an array, whether it requires a gradient, and its place on the tape.

The methods follow NumPy in name, argument and result. Activations and products go to `brasa.ops`; the rest
(arithmetic with broadcasting, reductions, reshaping, indexing) is NumPy or CuPy under the operators of
`_elementwise`, `_reduction` and `_shape`, whose backwards are built of the same operators, so that gradients
of gradients work. Results that cannot carry a gradient, comparisons and argmax, are plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import numpy as np

from brasa import _backward, _shape, _tape
from brasa._backend import as_array, device_of, is_array, namespace, to_device
from brasa._elementwise import maximum, minimum, where
from brasa._shape import cat, split, stack
from brasa._tape import is_tensor
from brasa._tensor_methods import TensorMethods

__all__ = ["Tensor", "cat", "maximum", "minimum", "split", "stack", "where"]


class HookHandle:
    """Takes a hook away again."""

    __slots__ = ("_hook", "_hooks")

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        hooks.append(hook)
        self._hooks = hooks
        self._hook = hook

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self._hooks[:] = [hook for hook in self._hooks if hook is not self._hook]


class Tensor(TensorMethods):
    """An array with a gradient.

    Parameters
    ----------
    data
        An array, which is shared and keeps its dtype, or anything that becomes one: a Tensor, a Python
        number or nested list (floats become float32, integers int64, bools bool).
    requires_grad
        Whether operations on it are recorded, so that `backward` reaches it. Floating dtypes only.

    Raises
    ------
    TypeError
        If a gradient is required of integers or booleans.

    Examples
    --------
    >>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([[2., 4.],
            [6., 8.]], dtype=float32)
    """

    __slots__ = (
        "__weakref__",
        "_after",
        "_cell",
        "_hooks",
        "_index",
        "_node",
        "_requires_grad",
        "data",
        "grad",
    )
    __array_ufunc__ = None  # ndarray * Tensor is left to Tensor
    __hash__ = object.__hash__

    data: Any
    grad: Tensor | None

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if is_tensor(data):
            data = data.data
        self.data = data if is_array(data) else as_array(data)
        self.grad = None
        self._requires_grad = False
        self._node = None
        self._index = 0
        self._cell = [0]
        self._hooks: list[Any] | None = None
        self._after: list[Any] | None = None
        if requires_grad:
            self.requires_grad = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _tape.register_subclass(cls)

    # What it is

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can be asked for; on a leaf it can be set."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None and not value:
            raise RuntimeError("requires_grad: this Tensor was computed; use detach()")
        if value and not _tape.is_floating(self.data.dtype):
            raise TypeError(f"requires_grad: only floating dtypes have a gradient, got {self.data.dtype}")
        self._requires_grad = bool(value)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set `requires_grad`; returns the Tensor."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user, not computed from something that requires a gradient."""
        return self._node is None

    @property
    def version(self) -> int:
        """How often the array was changed in place; whoever does that under `no_grad` raises it by one.

        Views share it. `backward` compares it with the version that the forward pass saw.
        """
        return self._cell[0]

    @version.setter
    def version(self, value: int) -> None:
        self._cell[0] = value

    @property
    def device(self) -> str:
        """Where the array is: "cpu" or "cuda:0"."""
        return device_of(self.data)

    def __len__(self) -> int:
        if not self.data.ndim:
            raise TypeError("len() of a Tensor without dimensions")
        return self.data.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        name = type(self).__name__
        text = np.array2string(self.numpy(), separator=", ", prefix=name + "(", threshold=100)
        notes = [text, f"dtype={self.data.dtype}"]
        if self.device != "cpu":
            notes.append(f"device='{self.device}'")
        return f"{name}({', '.join(notes)}{', requires_grad=True' if self._requires_grad else ''})"

    # Values

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values on the host; on the CPU the array itself, shared."""
        return to_device(self.data, "cpu")

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises
        ------
        ValueError
            If there is not exactly one.
        """
        if self.data.size != 1:
            raise ValueError(f"item: one element is needed, the shape is {self.data.shape}")
        return self.data.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.numpy().tolist()

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(f"bool: a Tensor of shape {self.data.shape} is neither true nor false")
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if _tape.mode.get().strict and self._requires_grad:
            raise TypeError("a Tensor that requires a gradient became an array while its use was recorded")
        if self.device != "cpu":
            raise TypeError(
                f"a Tensor on '{self.device}' does not become a NumPy array by itself; use numpy()"
            )
        return np.array(self.data, dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError("deepcopy: only leaves can be copied; use detach() first")
        new = object.__new__(type(self))
        memo[id(self)] = new
        Tensor.__init__(new, self.data.copy(order="K"))
        new._requires_grad = self._requires_grad
        new.grad = None if self.grad is None else self.grad.detach().__deepcopy__(memo)
        for name, value in getattr(self, "__dict__", {}).items():
            setattr(new, name, value)
        return new

    def detach(self) -> Tensor:
        """The same array without history; both count changes in place together."""
        new = _make(self.data, None, 0)
        new._cell = self._cell
        return new

    def __setitem__(self, index: Any, value: Any) -> None:
        if self._node is not None or (self._requires_grad and _tape.mode.get().grad):
            raise RuntimeError(
                "assignment into a Tensor that is recorded; use where(), or no_grad() for a leaf"
            )
        self.data[_shape.plain_index(index)] = value.data if is_tensor(value) else value
        self._cell[0] += 1

    # Gradients

    def backward(self, grad: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this Tensor to ``.grad`` of every leaf it was computed from.

        Parameters
        ----------
        grad
            The gradient of this Tensor, of its shape and dtype; not needed for one element, where it is 1.
        retain_graph
            Keep what the forward pass saved, so that `backward` can be called again.
        create_graph
            Record the pass itself, for the gradient of a gradient; implies `retain_graph`.

        Raises
        ------
        RuntimeError
            If nothing requires a gradient, if it is the second pass, or if an array that the pass needs
            was changed in place.
        ValueError
            If `grad` is missing or has another shape.
        NotImplementedError
            If `create_graph` meets an operator whose backward cannot be recorded; it is named.
        """
        if not self._requires_grad:
            raise RuntimeError(
                "backward: this Tensor was not computed from anything that requires a gradient"
            )
        root = (self, seed_gradient(self, grad, create_graph))
        _backward.run([root], retain_graph=retain_graph, create_graph=create_graph)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
        """Call ``hook(gradient)`` when the gradient of this Tensor is complete; it may return another."""
        if not self._requires_grad:
            raise RuntimeError("register_hook: this Tensor does not require a gradient")
        if self._node is None:
            if self._hooks is None:
                self._hooks = []
            return HookHandle(self._hooks, hook)
        if self._node.hooks is None:
            self._node.hooks = {}
        return HookHandle(self._node.hooks.setdefault(self._index, []), hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> HookHandle:
        """Call ``hook(self)`` on a leaf each time a complete gradient has been added to ``.grad``."""
        if self._node is not None or not self._requires_grad:
            raise RuntimeError("register_post_accumulate_grad_hook: only for a leaf that requires a gradient")
        if self._after is None:
            self._after = []
        return HookHandle(self._after, hook)

    def retain_grad(self) -> None:
        """Let `backward` set ``.grad`` of this Tensor though it is no leaf."""
        if self._node is None:
            return
        me = ref(self)

        def keep(gradient: Tensor) -> None:
            tensor = me()
            if tensor is not None:
                tensor.grad = gradient.copy() if tensor.grad is None else tensor.grad + gradient

        self.register_hook(keep)


_new: Callable[[type[Tensor]], Tensor] = object.__new__


def _make(data: Any, node: Any, index: int) -> Tensor:
    """A Tensor from an array, without checks: the results of operators are made here."""
    tensor = _new(Tensor)
    tensor.data = data
    tensor.grad = None
    tensor._requires_grad = node is not None
    tensor._node = node
    tensor._index = index
    tensor._cell = [0]
    tensor._hooks = tensor._after = None
    return tensor


_tape.register_tensor(Tensor, _make)


def seed_gradient(tensor: Tensor, grad: Any, create_graph: bool) -> Any:
    """The gradient that a pass starts with: an array, or a Tensor where the pass is recorded."""
    data = tensor.data
    if grad is None:
        if data.size != 1:
            raise ValueError(
                f"backward: a gradient is needed for a Tensor of shape {data.shape}; only one element has 1"
            )
        start = namespace(data).ones_like(data)
    else:
        start = grad.data if is_tensor(grad) else grad
        if not is_array(start):
            start = as_array(start).astype(data.dtype)
        if start.shape != data.shape:
            raise ValueError(f"backward: the gradient must have shape {data.shape}, got {start.shape}")
        if start.dtype != data.dtype:
            raise TypeError(f"backward: the gradient must have dtype {data.dtype}, got {start.dtype}")
    if create_graph:
        return grad if is_tensor(grad) else _make(start, None, 0)
    return start
