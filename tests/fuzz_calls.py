"""``python tests/fuzz_calls.py SEED CALLS``: calls with spoiled arguments, which must return or be refused.

The public operators are called with the samples of their descriptors, their gradients with what those calls
returned, the native functions with the arguments that were handed down to them, one to three of the arguments
replaced by something hostile. `test_fuzz.py` runs this
in a process of its own, because what it looks for would take the process with it; the last line of the output is then
the call that did it.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import random
import resource
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from brasa import _cpu, ops
from brasa.tensor import Tensor
from descriptors import all_operators
from hostile import HOSTILE_ARRAYS, HOSTILE_NUMBERS

REFUSALS = (ValueError, TypeError, MemoryError)
# What Python, NumPy or pybind11 say of an argument that nobody looked at.
RAW = (
    "incompatible function arguments", "subscriptable", "unhashable", "no attribute", "unpack",
    "not iterable", "zip()", "not supported between", "unsupported operand", "could not be broadcast",
)  # fmt: skip
HOST_FUNCTIONS = {"set_num_threads", "empty_cache"}  # they change the process, not an array


def describe(value):
    """A value in a line: arrays by dtype, shape and strides."""
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {value.shape} {value.strides}>"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)[:60]


def spoil(value, rng):
    """Something else in the place of `value`, near it or far from it."""
    kind = rng.randrange(4)
    if isinstance(value, np.ndarray) and kind < 3:
        try:
            return HOSTILE_ARRAYS[rng.choice(list(HOSTILE_ARRAYS))](value)
        except (ValueError, TypeError, IndexError):  # not every array can be spoiled in every way
            return None
    if isinstance(value, (tuple, list)) and value and kind < 3:
        parts = list(value)
        parts[rng.randrange(len(parts))] = spoil(rng.choice(parts), rng)
        return type(value)(parts)
    return rng.choice(HOSTILE_NUMBERS)


def sample(op, rng):
    return op.sample(np.random.default_rng(rng.randrange(2**32)), rng.choice([np.float32, np.float64]))


def forward_calls(rng):
    """Every operator with a descriptor: (name, function, keyword arguments)."""
    for op in all_operators():
        yield op.name, getattr(ops, op.name), sample(op, rng)


def backward_calls(rng):
    """The gradient of every operator that has a public one."""
    for op in all_operators():
        name = f"{op.name}_backward"
        if name not in ops.__all__:
            continue
        backward, forward, arguments = getattr(ops, name), getattr(ops, op.name), sample(op, rng)
        taken = inspect.signature(backward).parameters
        results, saved = forward(**arguments, save=True) if "saved" in taken else (forward(**arguments), None)
        results = results if isinstance(results, tuple) else (results,)
        known = {**arguments, "y": results[0], "saved": saved}
        own = inspect.signature(forward).parameters
        leading = [n for n in taken if n not in own and n not in ("y", "saved", "mask")]
        given = dict(zip(leading, map(np.ones_like, results), strict=True))
        given |= {n: known[n] for n in taken if n in known}
        if "mask" in taken:
            given["mask"] = taken["mask"].default
        yield name, backward, given


def other_calls(rng):
    """The public functions that no descriptor leads to."""
    a, b = (np.random.default_rng(rng.randrange(2**32)).uniform(0.5, 1, (2, 3, 4)) for _ in range(2))
    yield "activation", ops.activation, {"x": a, "name": ("elu", 0.5)}
    yield "activation_backward", ops.activation_backward, {"dy": a, "v": b, "name": "gelu"}
    for kind, array in (("matmul", a[0]), ("linear", b[0]), ("conv2d", a[..., None])):
        yield "prepack", ops.prepack, {"weight": array, "kind": kind, "groups": 1}
        yield "PackedWeight", ops.PackedWeight, {"array": array, "kind": kind, "groups": 1}
    for name in [name for name in ops.__all__ if name.endswith("_step")]:
        arguments = {}
        for p in inspect.signature(getattr(ops, name)).parameters.values():
            is_list = p.kind is not inspect.Parameter.KEYWORD_ONLY
            is_choice = p.name in ("nesterov", "decoupled", "centered")
            value = [a.copy(), b[0].copy()] if is_list else True if is_choice else 0.5
            arguments[p.name] = 3 if p.name == "step" else value
        yield name, getattr(ops, name), arguments


def public_calls(rng):
    """Every public function, called as it should be."""
    return [*forward_calls(rng), *backward_calls(rng), *other_calls(rng)]


def record(function, name, corpus):
    def recorded(*args):
        corpus.append((name, function, dict(enumerate(args))))
        return function(*args)

    return recorded


def native_calls(rng):
    """What the operators and their gradients call below: (function, positional arguments)."""
    corpus = []
    functions = {
        n: f for n, f in vars(_cpu).items() if callable(f) and n[0] != "_" and n not in HOST_FUNCTIONS
    }
    for name, function in functions.items():
        setattr(_cpu, name, record(function, name, corpus))
    try:
        for _, function, arguments in forward_calls(rng):
            tensors = {
                k: Tensor(v, requires_grad=True) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
                for k, v in arguments.items()
            }
            try:
                results = function(**tensors)
                for result in results if isinstance(results, tuple) else (results,):
                    if result.requires_grad:
                        result.backward(np.ones_like(result.data), retain_graph=True)
            except TypeError:  # no gradient for that argument, or one that takes arrays alone
                function(**arguments)
    finally:
        for name, function in functions.items():
            setattr(_cpu, name, function)
    return corpus


def copied(value):
    """`value` with arrays of its own, so that one call does not spoil the next."""
    if isinstance(value, np.ndarray):
        return value.copy(order="K")
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def main(seed, calls):
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    rng = random.Random(seed)
    corpus = [*public_calls(rng), *native_calls(rng)]
    refused = 0
    for number in range(calls):
        name, function, arguments = rng.choice(corpus)
        arguments = {k: copied(v) for k, v in arguments.items()}
        for key in rng.sample(list(arguments), min(len(arguments), rng.choice([1, 1, 2, 3]))):
            arguments[key] = spoil(arguments[key], rng)
        line = f"{number} {name}({', '.join(f'{k}={describe(v)}' for k, v in arguments.items())})\n"
        os.write(1, line.encode())
        native = all(isinstance(k, int) for k in arguments)
        try:
            if native:
                function(*arguments.values())
            else:
                function(**arguments)
        except REFUSALS as error:
            refused += 1
            if not native and any(raw in str(error) for raw in RAW):
                raise AssertionError(f"{name} did not look at its arguments") from error
    print(f"{calls} calls, {refused} refused, {len({name for name, *_ in corpus})} functions")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
