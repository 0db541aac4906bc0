"""Functions made from signatures: the wrapper of an operator and the two calls behind it.

All three are a few lines of Python source, compiled once at import. Their point is the cost of a call:
``*args, **kwargs`` with a look at every argument costs 0.2 to 0.6 us, the same in the forward's own
signature 0.06 to 0.15 us.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

_GRADIENT_SOURCES = {"y": "y", "saved": "saved", "mask": "mask"}


def make_wrapper(
    forward: Callable[..., Any],
    parameters: Sequence[Parameter],
    possible: Sequence[str],
    scope: dict[str, Any],
) -> Callable[..., Any]:
    """A function with the signature of `forward` that calls it, or ``apply`` when there is more to do.

    There is more to do when an argument named in `possible` is a Tensor or something intercepts calls.
    `scope` holds ``tensors``, ``interceptors``, ``apply`` and ``op``.
    """
    head, straight, values, plain, checks = [], [], [], [], []
    scope = {f"_{key}": value for key, value in scope.items()} | {"_forward": forward}
    starred = False
    for i, p in enumerate(parameters):
        variadic = p.kind is Parameter.VAR_POSITIONAL
        if p.kind is Parameter.KEYWORD_ONLY and not starred:
            head.append("*")
        starred |= variadic or p.kind is Parameter.KEYWORD_ONLY
        scope[f"_default{i}"] = p.default
        default = "" if p.default is Parameter.empty else f"=_default{i}"
        head.append(f"*{p.name}" if variadic else p.name + default)
        keyword = p.kind is Parameter.KEYWORD_ONLY
        straight.append(f"{p.name}={p.name}" if keyword else head[-1].partition("=")[0])
        values.append(f"*{p.name}" if variadic else p.name)
        is_array = f"type({p.name}) in _tensors"
        plain.append(f"{p.name}.data if {is_array} else {p.name}" if p.name in possible else p.name)
        if variadic:
            checks.append(f"not _tensors.isdisjoint(map(type, {p.name}))")
        elif p.name in possible:
            given = f"{p.name} is not None and " if p.default is None else ""
            checks.append(f"{given}{is_array}")
    if any(value.startswith("*") for value in values):
        values.sort(key=lambda value: value.startswith("*"))
        arrays = "None"
    else:
        arrays = f"[{', '.join(plain)}]"
    source = (
        f"def operator({', '.join(head)}):\n"
        f"    if {' or '.join([*checks, '_interceptors'])}:\n"
        f"        return _apply(_op, ({', '.join(values)},), {arrays})\n"
        f"    return _forward({', '.join(straight)})\n"
    )
    return functools.wraps(forward)(_compile(source, "operator", scope))


def make_positional(forward: Callable[..., Any], parameters: Sequence[Parameter]) -> Callable[..., Any]:
    """`forward` as a function of its arguments by position, a variadic one last."""
    heads, passed = [], []
    for p in parameters:
        if p.kind is Parameter.VAR_POSITIONAL:
            passed.append(f"*{p.name}")
        else:
            heads.append(p.name)
            passed.append(f"{p.name}={p.name}" if p.kind is Parameter.KEYWORD_ONLY else p.name)
    heads += [value for value in passed if value.startswith("*")]
    if heads == passed:
        return forward
    source = f"def positional({', '.join(heads)}):\n    return _forward({', '.join(passed)})\n"
    return _compile(source, "positional", {"_forward": forward})


def make_pull(
    backward: Callable[..., Any],
    parameters: Sequence[Parameter],
    kept: Sequence[str],
    several: bool,
) -> Callable[..., Any]:
    """`backward` as ``pull(dys, y, saved, mask, kept)``, each argument taken from its source."""
    passed, leading = [], 0
    for p in parameters:
        if p.name in kept:
            value = f"kept[{kept.index(p.name)}]"
        elif p.name in _GRADIENT_SOURCES:
            value = _GRADIENT_SOURCES[p.name]
        else:
            value = f"dys[{leading}]" if several else "dys[0] if len(dys) == 1 else dys"
            leading += 1
        passed.append(f"{p.name}={value}" if p.kind is Parameter.KEYWORD_ONLY else value)
    source = f"def pull(dys, y, saved, mask, kept):\n    return _backward({', '.join(passed)})\n"
    return _compile(source, "pull", {"_backward": backward})


def leading_gradients(parameters: Sequence[Parameter], forward_names: Sequence[str]) -> list[str]:
    """The names of the backward's parameters that are gradients of results."""
    known = {*forward_names, *_GRADIENT_SOURCES}
    names: list[str] = []
    for p in parameters:
        if p.name in known:
            break
        names.append(p.name)
    return names


def _compile(source: str, name: str, scope: dict[str, Any]) -> Callable[..., Any]:
    code = compile(source, f"<brasa {name}>", "exec")
    exec(code, scope)
    made: Callable[..., Any] = scope[name]
    return made
