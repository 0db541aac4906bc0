"""Optimiser steps: one step within the bound of its terms, cuts that change no bit, refusals that change nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import _cpu, ops
from descriptors import UNIT

seeds = st.integers(0, 2**32 - 1)
# Lists of shapes: vectors and their tails, no elements, rank 0, more tensors than one launch takes.
SHAPES = [
    [(3, 5), (16,), (17,), (1,)],
    [(), (0, 3), (33, 2)],
    [(2,)] * 60 + [(0,)] + [(3,)] * 3,
    [],
]


def sgd(p, g, state, o):
    g = o["scale"] * g + o["weight_decay"] * p
    if not o["momentum"]:
        return p - o["lr"] * g, []
    v = o["momentum"] * state[0] + (1 - o["dampening"]) * g
    return p - o["lr"] * (g + o["momentum"] * v if o["nesterov"] else v), [v]


def adam(p, g, state, o):
    g = o["scale"] * g
    if o["decoupled"]:
        p = p * (1 - o["lr"] * o["weight_decay"])
    else:
        g = g + o["weight_decay"] * p
    m = o["beta1"] * state[0] + (1 - o["beta1"]) * g
    s = o["beta2"] * state[1] + (1 - o["beta2"]) * g**2
    m_hat, s_hat = m / (1 - o["beta1"] ** o["step"]), s / (1 - o["beta2"] ** o["step"])
    return p - o["lr"] * m_hat / (np.sqrt(s_hat) + o["eps"]), [m, s]


def rmsprop(p, g, state, o):
    g = o["scale"] * g + o["weight_decay"] * p
    s = o["alpha"] * state[0] + (1 - o["alpha"]) * g**2
    out, below = [s], s
    if o["centered"]:
        a = o["alpha"] * state[-1] + (1 - o["alpha"]) * g
        below = s - a**2
    u = g / (np.sqrt(below) + o["eps"])
    if o["momentum"]:
        u = o["momentum"] * state[1] + u
        out.append(u)
    return p - o["lr"] * u, [*out, a] if o["centered"] else out


def adagrad(p, g, state, o):
    g = o["scale"] * g + o["weight_decay"] * p
    s = state[0] + g**2
    return p - o["lr"] / (1 + (o["step"] - 1) * o["lr_decay"]) * g / (np.sqrt(s) + o["eps"]), [s]


def adadelta(p, g, state, o):
    g = o["scale"] * g + o["weight_decay"] * p
    s = o["rho"] * state[0] + (1 - o["rho"]) * g**2
    d = g * np.sqrt(state[1] + o["eps"]) / np.sqrt(s + o["eps"])
    return p - o["lr"] * d, [s, o["rho"] * state[1] + (1 - o["rho"]) * d**2]


SGD = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "scale": 1.0}
ADAM = {
    "step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False,
    "scale": 1.0,
}  # fmt: skip
RMSPROP = {
    "lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.0, "centered": False, "scale": 1.0,
}  # fmt: skip
# name -> (step, rule, number of states, options)
CASES = {
    "sgd": (ops.sgd_step, sgd, 0, SGD),
    "sgd-momentum": (ops.sgd_step, sgd, 1, SGD | {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
    "sgd-nesterov": (ops.sgd_step, sgd, 1, SGD | {"momentum": 0.9, "nesterov": True, "scale": 0.25}),
    "adam": (ops.adam_step, adam, 2, ADAM),
    "adam-decay": (ops.adam_step, adam, 2, ADAM | {"weight_decay": 0.1, "step": 1, "scale": -2.0}),
    "adamw": (ops.adam_step, adam, 2, ADAM | {"weight_decay": 0.1, "decoupled": True, "eps": 1e-3}),
    "rmsprop": (ops.rmsprop_step, rmsprop, 1, RMSPROP),
    "rmsprop-momentum": (ops.rmsprop_step, rmsprop, 2, RMSPROP | {"momentum": 0.5}),
    "rmsprop-centered": (ops.rmsprop_step, rmsprop, 2, RMSPROP | {"centered": True}),
    "rmsprop-both": (ops.rmsprop_step, rmsprop, 3, RMSPROP | {"centered": True, "momentum": 0.5}),
    "adagrad": (ops.adagrad_step, adagrad, 1, {
        "step": 4, "lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-10, "scale": 1.0,
    }),
    "adadelta": (ops.adadelta_step, adadelta, 2, {
        "lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.1, "scale": 1.0,
    }),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def lists_of(case, states):
    """The state arguments of a step: lists by their place, None where a rule goes without."""
    step, _, count, options = CASES[case]
    if step is ops.sgd_step:
        return [states[0] if count else None]
    if step is not ops.rmsprop_step:
        return states
    rest = iter(states[1:])
    return [
        states[0],
        next(rest) if options["momentum"] else None,
        next(rest) if options["centered"] else None,
    ]


def draw(rng, shapes, states, dtype):
    """Parameters, gradients and states; the first state of a rule, an average of squares, has room for others'."""
    make = lambda scale: [np.asarray(rng.standard_normal(s) * scale, dtype) for s in shapes]  # noqa: E731
    params, grads = make(1), make(1)
    kept = [[np.abs(a) + dtype(2) for a in make(1)]] if states else []
    return params, grads, kept + [[np.minimum(np.abs(a), 1) for a in make(0.5)] for _ in range(states - 1)]


def run(case, params, grads, states):
    step, _, _, options = CASES[case]
    step(params, grads, *lists_of(case, states), **options)


@every_case
@given(seed=seeds, shapes=st.sampled_from(SHAPES), dtype=st.sampled_from([np.float32, np.float64]))
def test_one_step(case, xp, seed, shapes, dtype):
    _, rule, count, options = CASES[case]
    params, grads, states = draw(np.random.default_rng(seed), shapes, count, dtype)
    wide = [[a.astype(np.float64) for a in arrays] for arrays in (params, grads, *states)]
    device = [[xp.asarray(a) for a in arrays] for arrays in (params, grads, *states)]
    run(case, device[0], device[1], device[2:])
    for i in range(len(shapes)):
        p, g = wide[0][i], wide[1][i]
        expected, expected_states = rule(p, g, [s[i] for s in wide[2:]], options)
        # 4 ULP of the terms: of p, of what it moves by, and of what the options' rounding to dtype moves.
        scale = np.abs(p) + np.abs(expected - p) * 8 + np.abs(g) * options["lr"]
        assert np.all(np.abs(xp.asnumpy(device[0][i]) - expected) <= 8 * UNIT[dtype] * scale)
        for state, want, old in zip(device[2:], expected_states, wide[2:], strict=True):
            terms = np.abs(want) + np.abs(old[i]) + np.abs(g) + g**2
            assert np.all(np.abs(xp.asnumpy(state[i]) - want) <= 8 * UNIT[dtype] * terms)
        assert np.array_equal(xp.asnumpy(device[1][i]), grads[i])


@every_case
def test_cuts_threads_and_instruction_sets_change_no_bit(case, set_threads):
    """One large tensor, the same elements as many, and each alone."""
    count = CASES[case][2]
    n = 3 * 16 * 1024 + 21
    whole = draw(np.random.default_rng(1), [(n,)], count, np.float32)
    cuts = [0, 5, 16 * 1024, 16 * 1024 + 1, 40_000, n]
    results = {}
    for isa in _cpu.supported_isas():
        for threads in (1, 2, 3):
            for cut in (False, True):
                arrays = [[a.copy() for a in arrays] for arrays in (whole[0], whole[1], *whole[2])]
                parts = [
                    [a[i:j] for a in list_ for i, j in pairwise(cuts)] if cut else list_ for list_ in arrays
                ]
                before = _cpu.isa()
                _cpu._set_isa(isa)
                set_threads(threads)
                run(case, parts[0], parts[1], parts[2:])
                _cpu._set_isa(before)
                results[isa, threads, cut] = b"".join(a[0].tobytes() for a in (arrays[0], *arrays[2:]))
    assert len({bits for (isa, *_), bits in results.items() if isa == "baseline"}) == 1
    assert len({bits for (isa, *_), bits in results.items() if isa != "baseline"}) == 1


@every_case
def test_a_thousand_steps(case):
    _, rule, count, options = CASES[case]
    rng = np.random.default_rng(3)
    params, _, states = draw(rng, [(40,)], count, np.float32)
    p, kept = params[0].astype(np.float64), [s[0].astype(np.float64) for s in states]
    options = options | {"lr": 1e-3}
    for t in range(1, 1001):
        g = (rng.standard_normal(40) + np.sin(p)).astype(np.float32)
        if "step" in options:
            options = options | {"step": t}
        p, kept = rule(p, g.astype(np.float64), kept, options)
        CASES[case][0](params, [g], *lists_of(case, states), **options)
    np.testing.assert_allclose(params[0], p, rtol=1e-5, atol=1e-5)


def test_a_strided_gradient_is_copied(xp):
    p = xp.asarray(np.ones((2, 3), np.float32))
    g = xp.asarray(np.arange(6, dtype=np.float32).reshape(3, 2)).T
    ops.sgd_step([p], [g], None, lr=1.0)
    np.testing.assert_array_equal(xp.asnumpy(p), 1 - np.arange(6, dtype=np.float32).reshape(3, 2).T)


def good():
    return {
        name: [np.ones((2, 3), np.float32), np.ones(4, np.float32)] for name in ("params", "grads", "m", "s")
    }


def read_only():
    a = np.ones(4, np.float32)
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("name", ["params", "grads", "m", "s"])
@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (np.ones(5, np.float32), ValueError), (np.ones((4, 1), np.float32), ValueError),
        (np.ones(4, np.float64), TypeError), (np.ones(4, np.int32), TypeError), (np.ones(4, np.float16), TypeError),
        (None, TypeError), ([1.0] * 4, TypeError), (np.ma.ones(4, np.float32), TypeError),
        (np.ones(8, np.float32)[::2], ValueError), (read_only(), ValueError),
        (np.ones(4, ">f4"), TypeError), (np.ones((1,) * 9, np.float32), ValueError),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_changes_nothing(name, entry, error):
    lists = good()
    lists[name][1] = entry
    fits = name == "grads" and type(entry) is np.ndarray and entry.shape == (4,) and entry.dtype == np.float32
    arguments = ADAM | {"step": 1}
    if fits:  # gradients may be strided, and are not written
        ops.adam_step(*lists.values(), **arguments)
        return
    before = [a.copy() for a in lists["params"] if a is not entry]
    with pytest.raises(error, match=r"(params|grads|exp_avg|exp_avg_sq)\[1\]"):
        ops.adam_step(*lists.values(), **arguments)
    for old, new in zip(before, (a for a in lists["params"] if a is not entry), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"params": None}, TypeError), ({"params": np.ones(3, np.float32)}, TypeError), ({"params": [1]}, TypeError),
        ({"grads": []}, ValueError), ({"m": None}, TypeError), ({"step": 0}, ValueError), ({"step": 1.0}, TypeError),
        ({"beta1": 1}, ValueError), ({"beta2": -1}, ValueError), ({"lr": "a"}, TypeError), ({"eps": None}, TypeError),
        ({"params": [np.ones(3, np.int64)] * 2}, TypeError), ({"beta1": float("nan")}, ValueError),
    ],
)  # fmt: skip
def test_refusals(change, error):
    arguments = good() | ADAM | change
    arguments["exp_avg"], arguments["exp_avg_sq"] = arguments.pop("m"), arguments.pop("s")
    with pytest.raises(error):
        ops.adam_step(**arguments)


def test_mixed_devices(device):
    a, b = np.ones(3, np.float32), device.asarray(np.ones(3, np.float32))
    for p, g in ((a, b), (b, a)):
        with pytest.raises(TypeError, match=r"grads\[0\].*device"):
            ops.sgd_step([p], [g], None, lr=0.1)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta"])
def test_torch_agrees(name):
    torch = pytest.importorskip("torch")
    own = {"SGD": "sgd-momentum", "AdamW": "adamw", "RMSprop": "rmsprop-both"}.get(name, name.lower())
    _, _, count, options = CASES[own]
    options = (
        options | {"dampening": 0.0}
        if name == "SGD"
        else options | ({"step": 1} if "step" in options else {})
    )
    rng = np.random.default_rng(5)
    params, states = (
        [rng.standard_normal(20).astype(np.float32)],
        [[np.zeros(20, np.float32)] for _ in range(count)],
    )
    theirs = torch.tensor(params[0].copy(), requires_grad=True)
    given = {k: v for k, v in options.items() if k not in ("step", "beta1", "beta2", "decoupled", "scale")}
    betas = {"betas": (options["beta1"], options["beta2"])} if "beta1" in options else {}
    peer = getattr(torch.optim, name)([theirs], **given, **betas)
    for t in range(1, 6):
        g = rng.standard_normal(20).astype(np.float32)
        theirs.grad = torch.from_numpy(g.copy())
        peer.step()
        if "step" in options:
            options = options | {"step": t}
        CASES[own][0](params, [g], *lists_of(own, states), **options)
    np.testing.assert_allclose(params[0], theirs.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_a_scale_in_device_memory(device):
    """What a clipping finds out on the device has the bits of the number on the host."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=9).astype(np.float32) for _ in range(3)]
    results = []
    for scale in (0.3, device.asarray(np.array(0.3))):
        p, g, v = map(device.asarray, map(np.copy, arrays))
        ops.sgd_step([p], [g], [v], lr=0.1, momentum=0.9, scale=scale)
        results.append(device.asnumpy(p).copy())
    np.testing.assert_array_equal(*results)
    with pytest.raises(TypeError, match="scale: expected a number or one float64, got float32"):
        ops.sgd_step([p], [g], None, lr=0.1, scale=device.asarray(np.array(0.3, np.float32)))
