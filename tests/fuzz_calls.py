"""``python tests/fuzz_calls.py SEED CALLS``: calls with spoiled arguments, which must return or be refused.

The public operators are called with the samples of their descriptors, the native functions with the arguments that
those calls handed down to them, one to three of the arguments replaced by something hostile. `test_fuzz.py` runs this
in a process of its own, because what it looks for would take the process with it; the last line of the output is then
the call that did it.
"""

from __future__ import annotations

import faulthandler
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


def public_calls(rng):
    """Every operator with a descriptor: (function, keyword arguments)."""
    for op in all_operators():
        arguments = op.sample(
            np.random.default_rng(rng.randrange(2**32)), rng.choice([np.float32, np.float64])
        )
        yield op.name, getattr(ops, op.name), arguments


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
        for _, function, arguments in public_calls(rng):
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
        try:
            if all(isinstance(k, int) for k in arguments):
                function(*arguments.values())
            else:
                function(**arguments)
        except REFUSALS:
            refused += 1
    print(f"{calls} calls, {refused} refused, {len({name for name, *_ in corpus})} functions")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
