"""The tape: nodes, grad mode and `differentiable`, which turns a function of arrays into an operator.

An operator is a pair of functions of arrays, a forward and a backward:

    conv2d = differentiable(_conv2d, conv2d_backward, arrays=("x", "weight", "bias", "residual"))

Called with arrays alone the operator is its forward and nothing is recorded. With one Tensor among its
arguments every array it returns is a Tensor, and where grad mode is on and an argument requires a gradient
a `Node` joins the tape. The names of the backward's parameters, read once, say what it is given:

    dy            the gradient of the result (leading parameters, one per result, None where unused; a
                  lone ``dy`` beside several results is a tuple of them)
    y             the result
    saved         the second value that the forward returns when called with ``save=True``
    mask          which of `arrays` need a gradient, a tuple of bool
    other names   that parameter of the forward, as it was passed

and it returns one gradient per name in `arrays`, in that order, None where `mask` is False.

This module knows no operator and no method of a Tensor; the Tensor class registers itself here. The cost
of a call is the reason for the two pieces of generated code: an operator of arrays costs one Python call
more than its forward (0.06 us for one argument, 0.15 us for ten), because its wrapper has the forward's own
signature and not ``*args, **kwargs``; and its backward is called by a function made at import, not by
looking names up at every call.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from operator import is_not
from typing import Any, NamedTuple, TypeVar

from brasa import _signature

Function = TypeVar("Function", bound=Callable[..., Any])

_tensors: set[type] = set()  # the Tensor class and its subclasses
_interceptors: list[Any] = []  # not empty while a watcher or a pre-call hook is active anywhere
_watchers: list[Any] = []  # profilers and anomaly detectors: they see every call of the process
_number = itertools.count()
_new = object.__new__
_make: Callable[[Any, Node | None, int], Any]


class Mode(NamedTuple):
    """What holds for the operators called in this thread or task."""

    grad: bool = True
    precall: Callable[[Operator, Sequence[Any]], Sequence[Any]] | None = None
    strict: bool = False  # a gradient of a gradient is being recorded: no Tensor may turn into an array


mode: ContextVar[Mode] = ContextVar("brasa_mode", default=Mode())  # noqa: B039 (a NamedTuple does not change)


def register_tensor(cls: type, make: Callable[[Any, Node | None, int], Any]) -> None:
    """Let the tape know the Tensor class and the function that makes one from (array, node, index)."""
    global _make
    _make = make
    _tensors.add(cls)


def register_subclass(cls: type) -> None:
    """Let the tape take instances of `cls`, a subclass of the Tensor class, for Tensors."""
    _tensors.add(cls)


def is_tensor(value: Any) -> bool:
    """Whether `value` is a Tensor."""
    return type(value) in _tensors


def make_tensor(array: Any) -> Any:
    """A Tensor that holds `array` and no history."""
    return _make(array, None, 0)


@cache
def is_floating(dtype: Any) -> bool:
    """Whether an array of `dtype` may carry a gradient (bfloat16 and float8 call themselves kind V)."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


class Node:
    """One recorded call.

    `edges` has an entry per array argument: where its gradient goes, (node, index of its result) or
    (leaf Tensor, -1), or None. `kept` are the forward's arguments that the backward asks for, `sources`
    those of them that were Tensors, as (position in `kept`, Tensor, its version then). `cast` says that some
    argument was computed with in another dtype than its own, which its gradient is cast back to.
    """

    __slots__ = (
        "cast",
        "edges",
        "hooks",
        "kept",
        "mask",
        "metas",
        "number",
        "op",
        "result",
        "saved",
        "sources",
    )

    op: Operator
    edges: list[Any]
    mask: tuple[bool, ...]
    kept: list[Any]
    sources: list[Any]
    saved: Any
    number: int
    cast: bool
    result: Any  # (array, its version cell, its version), where the backward takes y
    metas: tuple[Any, ...]  # (shape, dtype) of every result that carries a gradient
    hooks: dict[int, list[Callable[[Any], Any]]] | None

    def free(self) -> None:
        """Release everything but the name; ``edges`` is None from then on."""
        self.edges = self.kept = self.sources = self.saved = self.result = None  # type: ignore[assignment]


class Operator:
    """What `differentiable` found out about a (forward, backward) pair."""

    __slots__ = (
        "array_options", "arrays", "backward", "constants", "forward", "keep", "name", "names", "possible",
        "pull", "save", "shares_memory", "variadic", "wants_result", "wants_saved",
    )  # fmt: skip

    name: str
    names: tuple[str, ...]  # parameters in the order of `values`; a variadic one stands last
    arrays: tuple[int, ...]  # positions that may receive a gradient
    possible: tuple[int, ...]  # positions at which a Tensor is looked for
    constants: tuple[int, ...]  # those of them that never receive a gradient
    save: int  # the position of save, -1 without
    array_options: tuple[int, ...]  # positions of save and out
    keep: tuple[int, ...]  # positions the backward asks for
    wants_saved: bool
    wants_result: bool
    variadic: bool
    shares_memory: bool
    forward: Callable[..., Any]  # takes `values` by position
    backward: Callable[..., Any] | None
    pull: Callable[..., Any]  # (dys, result, saved, mask, kept) -> gradients

    def variable(self, values: Sequence[Any]) -> range:
        """The positions of ``*arrays`` in a call with `values`."""
        return range(len(self.names) - 1, len(values))


def apply(op: Operator, values: Sequence[Any], plain: list[Any] | None) -> Any:
    """Call `op` with `values`, in the order of ``op.names``, some of which may be Tensors; `plain` are the
    same with arrays in place of Tensors, where the caller has them.
    """
    now = mode.get()
    if now.precall is not None:
        used = now.precall(op, values)
        if used is not values:
            values, plain = _recast(values, used)
    if plain is None:
        plain = [value.data if type(value) in _tensors else value for value in values]
    forward = op.forward if not _watchers else watched(op, "forward", op.forward)
    if _interceptors and not any(map(is_not, values, plain)):
        return forward(*plain)
    for i in op.array_options:
        if plain[i] is not None and plain[i] is not False:
            _refuse_array_option(op, i)
    if not now.grad or op.backward is None or not _requires_grad(op, values, plain):
        y = _wrap(forward(*plain))
        if op.shares_memory and type(values[op.arrays[0]]) in _tensors:
            y._cell = values[op.arrays[0]]._cell
        return y
    for i in op.constants:
        if plain[i] is not values[i] and values[i]._requires_grad:
            _refuse_gradient(op, i)
    if op.wants_saved:
        plain[op.save] = True
        result, saved = forward(*plain)
        return _record(op, values, plain, result, saved)
    return _record(op, values, plain, forward(*plain), None)


def _recast(values: Sequence[Any], used: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What is recorded and what is computed with, where a hook gave an operator `used` in place of `values`."""
    recorded, plain = [], []
    for value, chosen in zip(values, used, strict=True):
        is_array = type(chosen) not in _tensors
        recorded.append(value if is_array and type(value) in _tensors else chosen)
        plain.append(chosen if is_array else chosen.data)
    return recorded, plain


def _requires_grad(op: Operator, values: Sequence[Any], plain: Sequence[Any]) -> bool:
    """Whether a Tensor among the arguments requires a gradient."""
    for i in op.possible if not op.variadic else op.variable(values):
        if values[i] is not plain[i] and values[i]._requires_grad:
            return True
    return False


def _record(op: Operator, values: Sequence[Any], plain: list[Any], result: Any, saved: Any) -> Any:
    """Put a node on the tape; returns the Tensors of `result`.

    Node's attributes are set here: a constructor of its own would add a tenth to what recording costs.
    """
    edges: list[Any] = []
    mask: list[bool] = []
    cast = False
    for i in op.arrays if not op.variadic else op.variable(values):
        value = values[i]
        if value is not plain[i] and value._requires_grad:
            node = value._node
            edges.append((value, -1) if node is None else (node, value._index))
            mask.append(True)
            cast = cast or value.data is not plain[i]
        else:
            edges.append(None)
            mask.append(False)
    kept: list[Any] = []
    sources: list[Any] = []
    for i in op.keep:
        if plain[i] is not values[i] and values[i].data is plain[i]:  # a cast is nobody else's to change
            sources.append((len(kept), values[i], values[i]._cell[0]))
        kept.append(plain[i])
    node = _new(Node)
    node.op, node.edges, node.mask, node.kept, node.sources = op, edges, tuple(mask), kept, sources
    node.saved, node.number, node.cast = saved, next(_number), cast
    node.result = node.hooks = None
    node.metas = ()
    if type(result) is tuple or type(result) is list:
        return _record_several(op, node, result)
    dtype = result.dtype
    if dtype.kind != "f" and not is_floating(dtype):
        return _wrap(result)
    node.metas = ((result.shape, dtype),)
    y = _make(result, node, 0)
    if op.shares_memory:
        y._cell = values[op.arrays[0]]._cell
    if op.wants_result:
        node.result = (result, y._cell, y._cell[0])
    return y


def _record_several(op: Operator, node: Node, results: Any) -> Any:
    """The Tensors of several results; integers (indices, masks) and None carry no gradient."""
    if op.wants_result:
        raise TypeError(f"{op.name}: a backward that takes y needs a forward with one result")
    carries = [r is not None and is_floating(r.dtype) for r in results]
    node.metas = tuple((r.shape, r.dtype) for r, carry in zip(results, carries, strict=True) if carry)
    index = itertools.count()
    return type(results)(
        _make(r, node, next(index)) if carry else _wrap(r) for r, carry in zip(results, carries, strict=True)
    )


def _wrap(result: Any) -> Any:
    """Tensors without history, in the form of `result`."""
    if type(result) is tuple or type(result) is list:
        return type(result)(_wrap(r) for r in result)
    return None if result is None else _make(result, None, 0)


def _refuse_array_option(op: Operator, position: int) -> None:
    if position == op.save:
        raise TypeError(f"{op.name}: save=True is for arrays; a Tensor keeps what its backward needs itself")
    raise TypeError(f"{op.name}: out= is for arrays; with a Tensor among the arguments it is not allowed")


def _refuse_gradient(op: Operator, position: int) -> None:
    name = op.names[position]
    raise TypeError(
        f"{op.name}: '{name}' requires a gradient, and {op.name} has none for it; pass {name}.detach()"
    )


# Hooks ------------------------------------------------------------------------------------------------


@contextmanager
def precall(hook: Callable[[Operator, Sequence[Any]], Sequence[Any]] | None) -> Iterator[None]:
    """Within the block, in this thread or task, operators are called with ``hook(op, values)``.

    `values` are the arguments in the order of ``op.names``, Tensors as they were passed; the hook returns
    the ones to use, `values` itself where it changes nothing. An array in the place of a Tensor is a cast of it:
    the operator computes with the array, and its gradient, cast back, is the Tensor's. It sees arrays-only calls
    too. This is where mixed precision casts.
    """
    token = mode.set(mode.get()._replace(precall=hook))
    marker = object()
    _interceptors.append(marker)
    try:
        yield
    finally:
        _interceptors.remove(marker)
        mode.reset(token)


@contextmanager
def watch(watcher: Any) -> Iterator[None]:
    """Within the block every operator call of the process goes through ``watcher.around``.

    ``around(op, phase, function, *args)`` returns ``function(*args)``; phase is "forward" (the arguments
    are those of ``op.names``) or "backward" (they are those of ``op.pull``).
    """
    _interceptors.append(watcher)
    _watchers.append(watcher)
    try:
        yield
    finally:
        _interceptors.remove(watcher)
        _watchers.remove(watcher)


def watched(op: Operator, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as the watchers see it."""
    for watcher in list(_watchers):
        function = _around(watcher, op, phase, function)
    return function


def _around(watcher: Any, op: Operator, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: watcher.around(op, phase, function, *args)


# Registration -----------------------------------------------------------------------------------------


def differentiable(
    forward: Function,
    backward: Callable[..., Any] | None = None,
    *,
    arrays: Sequence[str] | None = None,
    name: str | None = None,
    shares_memory: bool = False,
) -> Function:
    """An operator from a function of arrays and the function that gives its gradients.

    Parameters
    ----------
    forward
        A function of arrays. ``save`` and ``out``, where it has them, are keyword-only; ``*arrays`` may
        stand first.
    backward
        See the head of this module. None: the results carry no gradient.
    arrays
        The parameters that a gradient is returned for, in the order in which the backward returns them;
        without it, the first parameter.
    name
        The operator's name in messages and profiles; without it the forward's, less a leading underscore.
    shares_memory
        The result is a view of the first array: both count changes in place together.

    Returns
    -------
    The operator: the signature and the docstring of `forward`, for arrays and Tensors.

    Raises
    ------
    TypeError
        If the parameters of the pair do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import Tensor
    >>> def _double(x):
    ...     return x * 2
    >>> double = differentiable(_double, lambda dy: dy * 2)
    >>> double(np.float32([1, 2]))
    array([2., 4.], dtype=float32)
    >>> x = Tensor(np.float32([1, 2]), requires_grad=True)
    >>> double(x).sum().backward()
    >>> x.grad.numpy()
    array([2., 2.], dtype=float32)
    """
    parameters = list(inspect.signature(forward).parameters.values())
    op = _describe(name or forward.__name__.lstrip("_"), parameters, arrays)
    op.forward = _signature.make_positional(forward, parameters)
    op.backward = backward
    op.shares_memory = shares_memory
    if backward is not None:
        _describe_backward(op, backward)
    scope = {"tensors": _tensors, "interceptors": _interceptors, "apply": apply, "op": op}
    wrapper: Any = _signature.make_wrapper(forward, parameters, [op.names[i] for i in op.possible], scope)
    wrapper.__qualname__ = wrapper.__name__ = op.name
    wrapper.operator = op
    return wrapper


def _describe(name: str, parameters: list[Any], arrays: Sequence[str] | None) -> Operator:
    op = Operator()
    op.name = name
    variadic = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    op.variadic = bool(variadic)
    op.names = (*(p.name for p in parameters if p.name not in variadic), *variadic)
    if arrays is None:
        arrays = variadic or op.names[:1]
    unknown = [name for name in arrays if name not in op.names]
    if unknown or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise TypeError(f"{op.name}: arrays={tuple(arrays)!r} must name parameters of the forward")
    op.arrays = tuple(op.names.index(name) for name in arrays)
    absent = (None, inspect.Parameter.empty)
    may_be_array = {p.name for p in parameters if any(p.default is a for a in absent)} | set(arrays)
    op.possible = tuple(i for i, name in enumerate(op.names) if name in may_be_array)
    op.save = op.names.index("save") if "save" in op.names else -1
    op.array_options = tuple(i for i, name in enumerate(op.names) if name in ("save", "out"))
    for p in parameters:
        if p.name in ("save", "out") and p.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{op.name}: '{p.name}' must be keyword-only")
    op.constants = tuple(i for i in op.possible if i not in (*op.arrays, *op.array_options))
    op.keep = ()
    op.wants_saved = op.wants_result = False
    return op


def _describe_backward(op: Operator, backward: Callable[..., Any]) -> None:
    parameters = list(inspect.signature(backward).parameters.values())
    leading = _signature.leading_gradients(parameters, op.names)
    names = [p.name for p in parameters]
    rest = [name for name in names[len(leading) :] if name not in ("y", "saved", "mask")]
    strange = [name for name in rest if name not in op.names or (op.variadic and name == op.names[-1])]
    if not leading or strange or not all(name.startswith("d") for name in leading):
        raise TypeError(
            f"{op.name}: the backward's parameters are {names}; they must be gradients (dy, ...), then any "
            f"of y, saved, mask and the forward's {list(op.names)}; it is not clear what {strange} means"
        )
    if "saved" in names and op.save < 0:
        raise TypeError(f"{op.name}: the backward takes 'saved', but the forward has no parameter 'save'")
    op.wants_saved = "saved" in names
    op.wants_result = "y" in names
    op.keep = tuple(op.names.index(name) for name in rest)
    op.pull = _signature.make_pull(backward, parameters, rest, len(leading) > 1)
