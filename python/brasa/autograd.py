"""Gradients: when they are recorded, and how to ask for them without a ``backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from contextvars import Token
from typing import Any

from brasa import _backward, _tape
from brasa.tensor import Tensor, seed_gradient

__all__ = ["enable_grad", "grad", "is_grad_enabled", "no_grad"]


class _GradMode(ContextDecorator):
    """Sets grad mode for a block or, as a decorator, for the calls of a function."""

    _enabled = True

    def __init__(self) -> None:
        self._tokens: list[Token[_tape.Mode]] = []

    def _recreate_cm(self) -> _GradMode:
        return type(self)()

    def __enter__(self) -> None:
        self._tokens.append(_tape.mode.set(_tape.mode.get()._replace(grad=self._enabled)))

    def __exit__(self, *_: object) -> None:
        _tape.mode.reset(self._tokens.pop())


class no_grad(_GradMode):
    """Record nothing in this block, or in calls of the function it decorates.

    It holds for the thread (or asyncio task) that enters it. Results are Tensors as ever, and require no
    gradient.

    Examples
    --------
    >>> from brasa import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    _enabled = False


class enable_grad(_GradMode):
    """Record again, inside a `no_grad` block.

    Examples
    --------
    >>> from brasa import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     with enable_grad():
    ...         y = x * 2
    >>> y.requires_grad
    True
    """


def is_grad_enabled() -> bool:
    """Whether operators called here and now are recorded."""
    return _tape.mode.get().grad


def grad(
    target: Callable[..., Any] | Tensor | Sequence[Tensor],
    *inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> Any:
    """The gradient of a function at a point, or of outputs that have been computed.

    ``grad(f, x)`` calls ``f(x)`` and returns the gradient at `x`; ``grad(f, x, w)`` returns a tuple. An
    array gives an array, a Tensor a Tensor. ``grad(outputs, inputs)`` takes Tensors, or sequences of
    them, and always returns a tuple. Nothing is added to any ``.grad``.

    Parameters
    ----------
    target
        A function that returns a Tensor, or the outputs.
    *inputs
        Arrays or Tensors for a function; one Tensor or sequence of Tensors for outputs.
    grad_outputs
        The gradient of every output, one or a sequence; without it each output has one element.
    retain_graph
        Keep what the forward pass saved, for another pass; by default as `create_graph`.
    create_graph
        Record the pass itself, for the gradient of a gradient.
    allow_unused
        Return None for an input that the outputs do not depend on, in place of an error.

    Raises
    ------
    RuntimeError
        If an input is not reached, or the outputs require no gradient.
    ValueError
        If an output has more than one element and no gradient is given for it.

    Examples
    --------
    >>> import numpy as np
    >>> grad(lambda x: (x ** 3).sum(), np.float32([1, 2]))
    array([ 3., 12.], dtype=float32)
    """
    retain = create_graph if retain_graph is None else retain_graph
    if callable(target) and not isinstance(target, Tensor):
        points = [_point(value) for value in inputs]
        with enable_grad():
            outputs = target(*points)
        gradients = _gradients(outputs, points, grad_outputs, retain, create_graph, allow_unused)
        if not any(isinstance(value, Tensor) for value in inputs):
            gradients = tuple(None if g is None else g.data for g in gradients)
        return gradients[0] if len(gradients) == 1 else gradients
    if len(inputs) != 1:
        raise TypeError(f"grad: after outputs it takes one Tensor or sequence of Tensors, got {len(inputs)}")
    return _gradients(target, inputs[0], grad_outputs, retain, create_graph, allow_unused)


def _point(value: Any) -> Tensor:
    """A Tensor at which a gradient can be asked for; one that requires a gradient stays as it is."""
    if isinstance(value, Tensor) and value.requires_grad:
        return value
    return Tensor(value, requires_grad=True)


def _gradients(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any,
    retain: bool,
    create_graph: bool,
    allow_unused: bool,
) -> tuple[Any, ...]:
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor) or hasattr(grad_outputs, "dtype"):
        grad_outputs = [grad_outputs] * len(outputs)
    for name, tensors in (("outputs", outputs), ("inputs", inputs)):
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"grad: {name}[{i}] must be a Tensor, got {type(tensor).__name__}")
            if not tensor.requires_grad:
                raise RuntimeError(f"grad: {name}[{i}] does not require a gradient")
    roots = [(y, seed_gradient(y, dy, create_graph)) for y, dy in zip(outputs, grad_outputs, strict=True)]
    found = _backward.run(roots, inputs, retain_graph=retain, create_graph=create_graph)
    for i, gradient in enumerate(found):
        if gradient is None and not allow_unused:
            raise RuntimeError(
                f"grad: the outputs do not depend on inputs[{i}]; allow_unused=True returns None"
            )
    return tuple(found)
