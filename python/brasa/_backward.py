"""The way back along the tape.

Nodes are numbered when they are recorded, and a node's arguments exist before it: descending numbers are
an order in which every node comes after all that uses its results. So a pass collects the reachable nodes,
sorts them, and goes through them once. The gradient of a leaf is complete when the last node that uses the
leaf is done, and is handed over (hooks, `.grad`) at that moment, not at the end of the pass.

Gradients are added in place where the sum is ours: an array that a backward made itself and nobody else
holds. Whatever may be shared (the gradient that came in, a view of it, an array returned for two arguments)
is added out of place, and copied before it becomes somebody's `.grad`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Any, NoReturn

import numpy as np

from brasa import _tape
from brasa._backend import add, add_to, as_array, cast, is_array, layout
from brasa._tape import Mode, Node, is_tensor

_leaf_lock = threading.Lock()  # two threads may reach the same parameter


class Pass:
    """One traversal: pending gradients by target, and which of them may be added to in place."""

    __slots__ = ("counts", "create_graph", "needed", "owned", "pending", "results", "retain", "wanted")

    def __init__(self, wanted: Sequence[Any] | None, retain: bool, create_graph: bool) -> None:
        self.retain = retain
        self.create_graph = create_graph
        self.pending: dict[Any, list[Any]] = {}
        self.owned: set[tuple[int, int]] = set()
        self.counts: dict[Any, int] = {}  # leaf -> uses that are still to come
        self.wanted: dict[tuple[Any, int], int] | None = None
        self.results: list[Any] = []
        self.needed: set[Node] = set()
        if wanted is not None:
            self.wanted = dict(zip(wanted, range(len(wanted)), strict=True))
            self.results = [None] * len(wanted)

    def add(self, target: Any, index: int, gradient: Any, owned: bool) -> None:
        """Add `gradient` to what waits for result `index` of `target`."""
        slots = self.pending.get(target)
        if slots is None:
            slots = self.pending[target] = [None] * (1 if index < 0 else len(target.metas))
        held = slots[index]
        if held is None:
            slots[index] = gradient
            if owned:
                self.owned.add((id(target), index))
        elif (id(target), index) in self.owned and held.ndim:
            add_to(held, gradient)
        elif owned and gradient.ndim:
            add_to(gradient, held)
            slots[index] = gradient
            self.owned.add((id(target), index))
        else:
            if self.create_graph:
                slots[index] = held + gradient
            else:
                total = add(held, gradient)
                slots[index] = total if total.ndim else _no_scalar(total)
                self.owned.add((id(target), index))


def edge_of(tensor: Any) -> tuple[Any, int]:
    """Where the gradient of `tensor` goes: (node, index of the result) or (the leaf itself, -1)."""
    return (tensor, -1) if tensor._node is None else (tensor._node, tensor._index)


def run(
    roots: Sequence[tuple[Any, Any]],
    inputs: Sequence[Any] | None = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list[Any]:
    """Carry gradients back from `roots`, pairs (Tensor, its gradient as an array or Tensor).

    Without `inputs` the gradients are added to the leaves; with it nothing is added anywhere, and the
    list returned has a Tensor (or None: not reached) for each of `inputs`.
    """
    wanted = None if inputs is None else [edge_of(tensor) for tensor in inputs]
    state = Pass(wanted, retain_graph or create_graph, create_graph)
    nodes = _reachable(state, [edge_of(tensor) for tensor, _ in roots])
    if inputs is not None:
        _find_needed(state, nodes)
    token = _tape.mode.set(Mode(grad=create_graph, strict=create_graph))
    try:
        for tensor, gradient in roots:
            target, index = edge_of(tensor)
            state.add(target, index, gradient, owned=False)
            if index < 0:
                _count_down(state, target)
        for node in nodes:
            _visit(state, node)
    finally:
        _tape.mode.reset(token)
    if wanted is None:
        return []
    return [state.results[state.wanted[edge]] for edge in wanted]  # type: ignore[index]


def _reachable(state: Pass, roots: Sequence[tuple[Any, int]]) -> list[Node]:
    """All nodes that can be reached, those recorded last first; counts the uses of every leaf."""
    seen: set[Node] = set()
    counts = state.counts
    stack = list(roots)
    while stack:
        target, index = stack.pop()
        if index < 0:
            counts[target] = counts.get(target, 0) + 1
        elif target not in seen:
            seen.add(target)
            if target.edges is None:
                raise RuntimeError(
                    f"backward a second time through '{target.op.name}': what it kept was freed by the "
                    "first pass; give that one retain_graph=True"
                )
            stack += [edge for edge in target.edges if edge is not None]
    return sorted(seen, key=attrgetter("number"), reverse=True)


def _find_needed(state: Pass, nodes: Sequence[Node]) -> None:
    """Find the nodes that lie on a way to something wanted."""
    for node in reversed(nodes):
        if any(edge is not None and _leads_on(state, edge) for edge in node.edges):
            state.needed.add(node)


def _leads_on(state: Pass, edge: tuple[Any, int]) -> bool:
    return edge in state.wanted or edge[0] in state.needed  # type: ignore[operator]


def _visit(state: Pass, node: Node) -> None:
    """Hand the gradients of a node's results to its arguments."""
    edges = node.edges
    dys = state.pending.pop(node, None)
    if dys is not None:
        if state.owned:
            state.owned -= {(id(node), index) for index in range(len(dys))}
        if node.hooks is not None:
            _run_node_hooks(state, node, dys)
        mask = node.mask
        if state.wanted is not None:
            _capture(state, node, dys)
            mask = tuple([edge is not None and _leads_on(state, edge) for edge in edges])
        if True in mask:
            _distribute(state, node, mask, dys)
    if not state.retain:
        node.free()
    counts = state.counts
    for edge in edges:
        if edge is not None and edge[1] < 0 and counts[edge[0]]:
            _count_down(state, edge[0])


def _capture(state: Pass, node: Node, dys: Sequence[Any]) -> None:
    """Note the gradients of results that are wanted themselves."""
    for index, dy in enumerate(dys):
        place = state.wanted.get((node, index))  # type: ignore[union-attr]
        if place is not None and dy is not None:
            state.results[place] = _as_tensor(_private(dy, False))


def _run_node_hooks(state: Pass, node: Node, dys: list[Any]) -> None:
    for index, hooks in node.hooks.items():  # type: ignore[union-attr]
        if dys[index] is not None:
            dys[index] = _run_hooks(state, hooks, dys[index])


def _run_hooks(state: Pass, hooks: Sequence[Any], gradient: Any) -> Any:
    """What `hooks`, called with a Tensor, make of a gradient."""
    tensor = _as_tensor(gradient)
    for hook in list(hooks):
        changed = hook(tensor)
        if changed is not None:
            tensor = _as_tensor(changed)
    return tensor if state.create_graph else tensor.data


def _as_tensor(value: Any) -> Any:
    return value if is_tensor(value) else _tape.make_tensor(value)


def _distribute(state: Pass, node: Node, mask: tuple[bool, ...], dys: list[Any]) -> None:
    """Call the backward of `node` and add what it returns to the gradients of the arguments."""
    for _, tensor, version in node.sources:
        if tensor._cell[0] != version:
            _refuse_change(node)
    if node.result is not None and node.result[1][0] != node.result[2]:
        _refuse_change(node)
    if state.create_graph:
        gradients = _call_with_tensors(node, mask, dys)
    else:
        result = None if node.result is None else node.result[0]
        pull = node.op.pull if not _tape._watchers else _tape.watched(node.op, "backward", node.op.pull)
        gradients = pull(dys, result, node.saved, mask, node.kept)
    if type(gradients) is not tuple and type(gradients) is not list:
        gradients = (gradients,)
    if len(gradients) != len(mask):
        raise RuntimeError(f"{_what(node)} returned {len(gradients)} gradients for {len(mask)} arguments")
    held: set[int] = set()  # what somebody else may hold; asked for where a leaf is reached
    returned: list[int] = []
    position = -1
    for wanted in mask:
        position += 1
        gradient = gradients[position] if wanted else None
        if gradient is None:
            continue
        target, index = node.edges[position]
        if index < 0:
            shape, dtype = target.data.shape, target.data.dtype
        else:
            shape, dtype = target.metas[index]
        cast_back = False
        if gradient.shape != shape or (gradient.dtype is not dtype and gradient.dtype != dtype):
            if gradient.shape != shape or not node.cast:
                _refuse_gradient(node, position, shape, dtype, gradient)
            gradient = gradient.astype(dtype) if is_tensor(gradient) else cast(gradient, dtype)
            cast_back = True
        if not shape and not is_tensor(gradient):
            gradient = _no_scalar(gradient)
        owned = cast_back
        if (index < 0 or target in state.pending) and not (owned or state.retain):
            if not returned:
                held, returned = _held(node, dys), list(map(id, gradients))
            owned = id(gradient) not in held and returned.count(id(gradient)) == 1 and not _is_view(gradient)
        if index < 0 and state.counts[target] == 1 and target not in state.pending:
            state.counts[target] = 0  # the only use of a leaf, as most are: nothing to wait for
            _hand_over(state, target, gradient, owned)
        else:
            state.add(target, index, gradient, owned)


def _call_with_tensors(node: Node, mask: tuple[bool, ...], dys: list[Any]) -> Any:
    """The backward, called so that it is recorded itself."""
    kept, result, saved = list(node.kept), None, node.saved
    pull = _tape.watched(node.op, "backward", node.op.pull)
    for position, tensor, _ in node.sources:
        kept[position] = tensor
    if node.result is not None:
        result = _tape._make(node.result[0], node, 0)
        result._cell = node.result[1]
    tensors = [value for value in (*dys, *kept, result) if is_tensor(value)]
    if not any(tensor._requires_grad for tensor in tensors):
        dys = [dy.data if is_tensor(dy) else dy for dy in dys]
        gradients = pull(dys, None, saved, mask, node.kept)
        several = gradients if type(gradients) in (tuple, list) else (gradients,)
        return tuple(None if g is None else _as_tensor(g) for g in several)
    message = (
        f"the gradient of {node.op.name}'s gradient is not available: its backward is not built of "
        "differentiable operators"
    )
    try:
        gradients = pull(dys, result, saved, mask, kept)
    except (TypeError, AttributeError) as error:
        raise NotImplementedError(message) from error
    several = gradients if type(gradients) in (tuple, list) else (gradients,)
    if any(g is not None and not is_tensor(g) for g in several):
        raise NotImplementedError(message)
    return gradients


def _refuse_change(node: Node) -> NoReturn:
    changed = [p for p, tensor, version in node.sources if tensor._cell[0] != version]
    changed = [node.op.names[node.op.keep[p]] for p in changed]
    if node.result is not None and node.result[1][0] != node.result[2]:
        changed.append("y")
    names = " and ".join(f"'{name}'" for name in changed)
    raise RuntimeError(
        f"{_what(node)} needs {names} as in the forward pass, but there was a change in place since"
    )


def _refuse_gradient(
    node: Node, position: int, shape: tuple[int, ...], dtype: Any, gradient: Any
) -> NoReturn:
    name = node.op.names[-1 if node.op.variadic else node.op.arrays[position]]
    raise RuntimeError(
        f"{_what(node)} returned a gradient of shape {gradient.shape} and dtype {gradient.dtype} "
        f"for '{name}', which has shape {shape} and dtype {dtype}"
    )


def _no_scalar(gradient: Any) -> Any:
    """`gradient`, where arithmetic of arrays without dimensions made a NumPy scalar of it, as an array."""
    return gradient if is_array(gradient) else as_array(gradient)


def _what(node: Node) -> str:
    return f"the backward of '{node.op.name}'"


def _held(node: Node, dys: list[Any]) -> set[int]:
    """The identities of what was given to a backward."""
    saved = node.saved
    several = saved if type(saved) is tuple or type(saved) is list else (saved,)
    return {*map(id, dys), *map(id, node.kept), *map(id, several)}


def _is_view(gradient: Any) -> bool:
    """Whether somebody else can hold the memory of `gradient`: a view's owner, or the graph.

    A new channels-last array is a view too, but a dense one of an array that nobody else holds.
    """
    if is_tensor(gradient):
        return True
    if not hasattr(getattr(gradient, "base", None), "shape"):
        return False
    return _holders(gradient) > _ALONE or _is_view(gradient.base) or not layout(gradient)


def _holders(view: Any) -> int:
    """How many references there are to the array that `view` is a view of; `_ALONE` if it is the only view."""
    return getrefcount(view.base)


_ALONE = _holders(np.empty((1, 1)).T)


def _count_down(state: Pass, leaf: Any) -> None:
    """One use of `leaf` is done; after the last one its gradient is complete."""
    state.counts[leaf] -= 1
    if state.counts[leaf] or leaf not in state.pending:
        return
    gradient = state.pending.pop(leaf)[0]
    owned = (id(leaf), -1) in state.owned
    if owned:
        state.owned.remove((id(leaf), -1))
    _hand_over(state, leaf, gradient, owned)


def _hand_over(state: Pass, leaf: Any, gradient: Any, owned: bool) -> None:
    """Give a leaf its complete gradient."""
    if leaf._hooks:
        gradient, owned = _run_hooks(state, leaf._hooks, gradient), False
    if state.wanted is None:
        with _leaf_lock:
            _accumulate(leaf, gradient, owned)
        if leaf._after:
            for hook in list(leaf._after):
                hook(leaf)
    elif (leaf, -1) in state.wanted:
        state.results[state.wanted[leaf, -1]] = _as_tensor(_private(gradient, owned))


def _private(gradient: Any, owned: bool) -> Any:
    """`gradient` in memory that only its receiver can change."""
    return gradient if owned or is_tensor(gradient) else gradient.copy(order="K")


def _accumulate(leaf: Any, gradient: Any, owned: bool) -> None:
    """Add a complete gradient to ``leaf.grad``."""
    held = leaf.grad
    if held is None:
        gradient = gradient if owned else _private(gradient, False)
        leaf.grad = gradient if is_tensor(gradient) else _tape._make(gradient, None, 0)
    elif is_tensor(gradient) or held._requires_grad or held.data.shape != gradient.shape:
        leaf.grad = held + gradient
    else:
        add_to(held.data, gradient)
        held._cell[0] += 1
