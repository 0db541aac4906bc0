"""Recurrent layers: values, gradients, options, and what must not change a bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import brasa as br
from brasa import _cpu, ops
from brasa.tensor import Tensor
from brasa.testing import gradcheck
from descriptors import UNIT
from references import rnn as reference

CELLS = {"lstm": 4, "gru": 3, "rnn": 1}
KERNELS = {"lstm": "lstm", "gru": "gru", "rnn": "tanh"}  # their names of the cells
every_cell = pytest.mark.parametrize("cell", CELLS)
# Around vectors, tiles of rows and panels of units.
around_tiles = st.one_of(st.integers(1, 17), st.sampled_from([31, 32, 33, 47, 64, 65]))


def random(rng, dtype, *shape):
    return (rng.standard_normal(shape) * 0.4).astype(dtype)


def arguments_of(cell, steps, batch, inputs, hidden, dtype=np.float32, state=None, seed=0):
    """Every array argument, by name, in (T, B, ...) order."""
    rng = np.random.default_rng(seed)
    rows, state = CELLS[cell] * hidden, hidden if state is None else state
    found = {"x": random(rng, dtype, steps, batch, inputs), "h0": random(rng, dtype, batch, state)}
    if cell == "lstm":
        found["c0"] = random(rng, dtype, batch, hidden)
    scale = dtype((1 + state) ** -0.5)
    found["w_ih"] = random(rng, dtype, rows, inputs)
    found["w_hh"] = random(rng, dtype, rows, state) * scale
    found |= {"b_ih": random(rng, dtype, rows), "b_hh": random(rng, dtype, rows)}
    if state != hidden:
        found["w_hr"] = random(rng, dtype, state, hidden)
    return found


def moved(arguments, xp):
    if xp is None:
        return arguments
    return {k: xp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def back(results, xp):
    return [r if xp is None or r is None else xp.asnumpy(r) for r in results]


def run(cell, arguments, xp=None, **options):
    return back(getattr(ops, cell)(**moved(arguments, xp), **moved(options, xp)), xp)


def run_both(cell, arguments, xp=None, seed=3, **options):
    """The results, and the gradients of all arrays for random gradients of the results."""
    given = moved(arguments, xp) | moved(options, xp)
    results, saved = getattr(ops, cell)(**given, save=True)
    rng = np.random.default_rng(seed)
    dys = [rng.standard_normal(r.shape).astype(r.dtype) for r in results]
    dys = dys if xp is None else [xp.asarray(dy) for dy in dys]
    gradients = getattr(ops, f"{cell}_backward")(*dys, **given, saved=saved)
    return back(results, xp), back(gradients, xp)


def double(arguments):
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in arguments.items()}


def check_against_reference(cell, arguments, xp=None, **options):
    unit = UNIT[arguments["x"].dtype.type]
    got = run(cell, arguments, xp, **options)
    wanted = getattr(reference, cell)(**double(arguments), **options)
    bounds = getattr(reference, cell)(**double(arguments), **options, unit=unit)
    for ours, theirs, bound in zip(got, wanted, bounds, strict=True):
        assert ours.dtype == arguments["x"].dtype
        assert np.all(np.abs(ours - theirs) <= bound)


def array_names(cell):
    operator = getattr(ops, cell).operator
    return [operator.names[i] for i in operator.arrays]


def same_bits(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and a.tobytes() == b.tobytes())


def options_of(cell, rng, steps, batch):
    """One random choice of every option that goes with time-major arrays."""
    options = {"reverse": bool(rng.integers(2)), "clip": [None, 0.5][rng.integers(2)]}
    if rng.integers(2):
        options["lengths"] = rng.integers(0, steps + 1, batch)
    if cell == "gru":
        options["reset_after"] = bool(rng.integers(2))
    if cell == "rnn":
        options["nonlinearity"] = ["tanh", "relu"][rng.integers(2)]
    return options


# Values -----------------------------------------------------------------------------------------------


def check_sizes(cell, xp, steps, batch, inputs, hidden, dtype, seed):
    rng = np.random.default_rng(seed)
    state = int(rng.integers(1, 20)) if cell == "lstm" and rng.integers(2) else None
    arguments = arguments_of(cell, steps, batch, inputs, hidden, dtype, state, seed)
    if cell == "lstm" and rng.integers(2):
        arguments["peephole"] = random(rng, dtype, 3, hidden)
    check_against_reference(cell, arguments, xp, **options_of(cell, rng, steps, batch))


sizes = given(
    steps=st.integers(1, 17), batch=st.integers(1, 17), inputs=st.integers(0, 17), hidden=st.integers(1, 17),
    dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip


@every_cell
@sizes
@settings(max_examples=30)
def test_values(cell, xp, steps, batch, inputs, hidden, dtype, seed):
    check_sizes(cell, xp, steps, batch, inputs, hidden, dtype, seed)


@every_cell
@given(batch=around_tiles, hidden=around_tiles, dtype=st.sampled_from([np.float32, np.float64]))
@example(batch=2, hidden=520, dtype=np.float32)  # two blocks of K
@example(batch=2, hidden=260, dtype=np.float64)
@settings(max_examples=15)
def test_values_around_tiles(cell, isa, batch, hidden, dtype):
    check_sizes(cell, None, 2, batch, 3, hidden, dtype, batch + hidden)


@every_cell
@pytest.mark.parametrize("missing", ["states", "b_ih", "b_hh", "biases"])
def test_what_is_left_out_counts_as_zero(cell, xp, missing):
    names = {"states": ("h0", "c0"), "biases": ("b_ih", "b_hh")}.get(missing, (missing,))
    arguments = arguments_of(cell, 3, 2, 4, 5)
    left_out = {k: None if k in names else v for k, v in arguments.items()}
    zeros = {k: np.zeros_like(v) if k in names else v for k, v in arguments.items()}
    (results, gradients), (expected, all_gradients) = (run_both(cell, a, xp) for a in (left_out, zeros))
    same_bits(results, expected)
    for name, ours, theirs in zip(array_names(cell), gradients, all_gradients, strict=True):
        if name in names:
            assert ours is None
        elif theirs is not None:
            assert ours.tobytes() == theirs.tobytes(), name


def test_integers_are_exact(xp, isa):
    rng = np.random.default_rng(0)
    x, w_ih, w_hh = (rng.integers(-2, 3, shape).astype(np.float32) for shape in ((4, 3, 5), (9, 5), (9, 9)))
    y, h_n = run("rnn", {"x": x, "h0": None, "w_ih": w_ih, "w_hh": w_hh}, xp, nonlinearity="relu")
    h = np.zeros((3, 9))
    for t in range(4):
        h = np.maximum(x[t].astype(np.float64) @ w_ih.T + h @ w_hh.T, 0)
        assert np.array_equal(y[t], h)
    assert np.abs(h).max() < 2**24
    assert np.array_equal(h_n, h)


def test_the_forms_of_the_reset_agree_where_the_reset_is_open():
    arguments = arguments_of("gru", 4, 3, 2, 5, np.float64)
    arguments["b_ih"][:5] = 100
    arguments["b_hh"][10:] = 0
    after, before = (run("gru", arguments, reset_after=form) for form in (True, False))
    np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-14)


# Against torch ----------------------------------------------------------------------------------------


def torch_layer(cell, inputs, hidden, dtype, **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[cell])(inputs, hidden, **options)
    return torch, layer.to(torch.float64 if dtype == np.float64 else torch.float32)


def compose(cell, layer, x, states, **options):
    """Layers and directions of a torch module, put together from the operators."""
    lasts = []
    directions = 2 if layer.bidirectional else 1
    for i in range(layer.num_layers):
        ys = []
        for d in range(directions):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            suffix = f"_l{i}{'_reverse' * d}"
            weights = [getattr(layer, name + suffix).detach().numpy() for name in names]
            if getattr(layer, "proj_size", 0):
                options["w_hr"] = getattr(layer, f"weight_hr{suffix}").detach().numpy()
            start = [s[i * directions + d] for s in states]
            y, *last = getattr(ops, cell)(x, *start, *weights, reverse=bool(d), **options)
            ys.append(y)
            lasts.append(last)
        x = np.concatenate(ys, axis=-1)
    return x, *(np.stack(s) for s in zip(*lasts, strict=True))


@pytest.mark.parametrize(("cell", "projection"), [("lstm", 0), ("lstm", 3), ("gru", 0), ("rnn", 0)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_of_torch(cell, projection, batch_first):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    options |= {"proj_size": projection} if projection else {}
    torch, layer = torch_layer(cell, 4, 7, np.float64, **options)
    state = projection or 7
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5, 4) if batch_first else (5, 3, 4))
    states = [rng.standard_normal((4, 3, state))] + [rng.standard_normal((4, 3, 7))] * (cell == "lstm")
    theirs = [torch.from_numpy(s) for s in states]
    y, last = layer(torch.from_numpy(x), tuple(theirs) if cell == "lstm" else theirs[0])
    expected = [y, *(last if cell == "lstm" else [last])]
    got = compose(cell, layer, x, states, batch_first=batch_first)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=1e-13)


@every_cell
def test_packed_sequences_of_torch(cell):
    torch, layer = torch_layer(cell, 4, 6, np.float64, bidirectional=True)
    rng, lengths = np.random.default_rng(2), np.array([5, 3, 3, 1])
    x = rng.standard_normal((5, 4, 4))
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths))
    y, last = layer(packed)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    states = [np.zeros((2, 4, 6))] * (2 if cell == "lstm" else 1)
    got = compose(cell, layer, x, states, lengths=lengths)
    for a, b in zip(got, [y, *(last if cell == "lstm" else [last])], strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [(7, 33, 20, 40), (5, 3, 4, 18)])
@pytest.mark.parametrize(("cell", "projection"), [("lstm", 0), ("lstm", 5), ("gru", 0), ("rnn", 0)])
def test_gradients_of_torch(cell, projection, sizes):
    steps, batch, inputs, hidden = sizes
    torch, layer = torch_layer(
        cell, inputs, hidden, np.float64, **({"proj_size": projection} if projection else {})
    )
    arguments = arguments_of(cell, steps, batch, inputs, hidden, np.float64, projection or None)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"] + ["weight_hr_l0"] * bool(projection)
    ours = ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
    with torch.no_grad():
        for theirs, name in zip(names, ours, strict=False):
            getattr(layer, theirs).copy_(torch.from_numpy(arguments[name]))
    x = torch.from_numpy(arguments["x"]).requires_grad_()
    states = [torch.from_numpy(arguments[k])[None].requires_grad_() for k in ("h0", "c0") if k in arguments]
    y, last = layer(x, tuple(states) if cell == "lstm" else states[0])
    results, gradients = run_both(cell, arguments)
    rng = np.random.default_rng(3)
    dys = [torch.from_numpy(rng.standard_normal(r.shape)) for r in results]
    outputs = [y, *(last if cell == "lstm" else [last])]
    expected = torch.autograd.grad(
        outputs,
        [x, *states, *(getattr(layer, n) for n in names)],
        [d.reshape(o.shape) for d, o in zip(dys, outputs, strict=True)],
    )
    found = [g for g in gradients if g is not None]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        scale = 1 + np.abs(b.numpy()).max()
        np.testing.assert_allclose(a, b.numpy().reshape(a.shape), rtol=0, atol=1e-13 * scale)


# Gradients --------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": np.array([4, 0, 2, 1])},
    "lengths, reverse": {"lengths": np.array([4, 0, 2, 1]), "reverse": True},
    "batch first": {"batch_first": True, "lengths": np.array([3, 0, 2, 4]), "reverse": True},
    "clip": {"clip": 0.3},
    "reset before": {"reset_after": False},
    "reset before, lengths": {"reset_after": False, "lengths": np.array([4, 0, 2, 1]), "clip": 0.3},
    "relu": {"nonlinearity": "relu"},
    "relu, clip": {"nonlinearity": "relu", "clip": 0.4},
}


def allows(cell, options):
    own = {"reset_after": "gru", "nonlinearity": "rnn"}
    return all(own.get(name, cell) == cell for name in options)


CASES = [
    pytest.param(
        cell,
        options,
        peephole,
        state,
        id=f"{cell}, {name}{', peephole' * peephole}{', projected' * bool(state)}",
    )
    for cell, (name, options), peephole, state in itertools.product(
        CELLS, OPTIONS.items(), (False, True), (None, 2)
    )
    if allows(cell, options) and (cell == "lstm" or not (peephole or state))
]


@pytest.mark.parametrize(("cell", "options", "peephole", "state"), CASES)
@pytest.mark.parametrize("hidden", [3, 9])
def test_gradients_agree_with_finite_differences(cell, options, peephole, state, hidden):
    arguments = arguments_of(cell, 4, 4, 2, hidden, np.float64, state)
    if options.get("batch_first"):
        arguments["x"] = np.ascontiguousarray(arguments["x"].swapaxes(0, 1))
    if peephole:
        arguments["peephole"] = random(np.random.default_rng(7), np.float64, 3, hidden)
    names = list(arguments)

    def function(*tensors):
        return getattr(ops, cell)(**dict(zip(names, tensors, strict=True)), **options)

    before = br.get_num_threads()
    br.set_num_threads(1)
    try:
        assert gradcheck(function, list(arguments.values()))
    finally:
        br.set_num_threads(before)


@every_cell
@given(steps=st.integers(1, 6), batch=around_tiles, hidden=around_tiles, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_float32_gradients_are_those_of_float64(cell, xp, steps, batch, hidden, seed):
    """Of all sizes; finite differences hold float64 ones of small sizes to their definition."""
    rng = np.random.default_rng(seed)
    batch, hidden = (min(batch, 17), min(hidden, 17)) if xp.name == "emulated" else (batch, hidden)
    arguments, options = arguments_of(cell, steps, batch, 5, hidden), options_of(cell, rng, steps, batch)
    options["clip"] = None  # where a gate is at its limit the two may disagree whether it is
    if cell == "rnn":
        options["nonlinearity"] = "tanh"  # the same at 0
    _, ours = run_both(cell, arguments, xp, **options)
    _, theirs = run_both(cell, double(arguments), xp, **options)
    for a, b in zip(ours, theirs, strict=True):
        if b is not None:  # sums over steps, batch and units, each term with the errors of some steps
            scale = 1 + np.abs(b).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=0, atol=(64 + steps * hidden) * UNIT[np.float32] * scale)


@pytest.mark.parametrize(
    ("cell", "used"), [("lstm", 0), ("lstm", 1), ("lstm", 2), ("gru", 0), ("gru", 1), ("rnn", 0), ("rnn", 1)]
)
def test_a_result_that_is_not_used_has_no_gradient(cell, used):
    arguments = arguments_of(cell, 3, 4, 2, 5, np.float64)
    results, saved = getattr(ops, cell)(**arguments, save=True)
    dys = [np.ones_like(r) if i == used else None for i, r in enumerate(results)]
    zeros = [np.zeros_like(r) if d is None else d for d, r in zip(dys, results, strict=True)]
    backward = getattr(ops, f"{cell}_backward")
    same_bits(backward(*dys, **arguments, saved=saved), backward(*zeros, **arguments, saved=saved))


@every_cell
def test_mask_leaves_out_what_is_not_wanted(cell, xp):
    arguments = moved(arguments_of(cell, 3, 4, 2, 5), xp)
    results, saved = getattr(ops, cell)(**arguments, save=True)
    dys = [xp.asarray(np.ones(r.shape, np.float32)) for r in results]
    backward, names = getattr(ops, f"{cell}_backward"), array_names(cell)
    whole = backward(*dys, **arguments, saved=saved)
    for i in range(len(names)):
        mask = tuple(j == i for j in range(len(names)))
        gradients = backward(*dys, **arguments, saved=saved, mask=mask)
        assert all((g is None) for j, g in enumerate(gradients) if j != i)
        same_bits(back([gradients[i]], xp), back([whole[i]], xp))


@every_cell
def test_a_graph_that_is_kept_can_be_used_again(cell):
    arguments = arguments_of(cell, 3, 4, 2, 5)
    w = Tensor(arguments["w_hh"], requires_grad=True)
    y = getattr(ops, cell)(**(arguments | {"w_hh": w}))[0].sum()
    y.backward(retain_graph=True)
    first = w.grad.numpy().copy()
    w.grad = None
    y.backward()
    assert first.tobytes() == w.grad.numpy().tobytes()


# What changes no bit ------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("hidden", [17, 96])
def test_threads(cell, isa, set_threads, batch, hidden):
    rng = np.random.default_rng(0)
    arguments, options = arguments_of(cell, 6, batch, 9, hidden), {"lengths": rng.integers(0, 7, batch)}
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        first, second = run_both(cell, arguments, **options)
        results.append([*first, *second])
    same_bits(results[0], results[1])
    same_bits(results[0], results[2])


@every_cell
@pytest.mark.parametrize("hidden", [5, 33])
def test_instruction_sets(cell, every_isa, hidden):
    arguments = arguments_of(cell, 5, 7, 4, hidden)
    results = every_isa(lambda: list(itertools.chain(*run_both(cell, arguments, clip=0.5))))
    for other in results[1:]:
        same_bits(results[0], other)


@every_cell
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden", "state"),
    [(4, 2, 1, 5, None), (6, 7, 600, 33, None), (5, 33, 28, 64, None), (5, 13, 20, 40, 7)],
)
def test_inputs_multiplied_step_by_step(
    cell, isa, monkeypatch, set_threads, steps, batch, inputs, hidden, state
):
    """The kernel makes the product of the inputs itself or is given it: the same bits."""
    arguments = arguments_of(cell, steps, batch, inputs, hidden, state=state if cell == "lstm" else None)
    rng = np.random.default_rng(1)
    for _ in range(3):
        options = options_of(cell, rng, steps, batch) | {"reset_after": True}
        if cell != "gru":
            del options["reset_after"]
        given = {k: v for k, v in arguments.items() if k[:2] != "b_" or rng.integers(2)}
        set_threads(int(rng.integers(1, 4)))
        assert _cpu.rnn_takes_inputs(KERNELS[cell], arguments["x"], arguments["w_hh"], False)
        inside = run(cell, given, **options), *run_both(cell, given, **options)
        with monkeypatch.context() as patch:
            patch.setattr(_cpu, "rnn_takes_inputs", lambda *_: False)
            outside = run(cell, given, **options), *run_both(cell, given, **options)
        for ours, theirs in zip(inside, outside, strict=True):
            same_bits(ours, theirs)


@every_cell
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_pieces_of_a_sequence(cell, xp, batch):
    batch = min(batch, 3) if xp.name == "emulated" else batch
    arguments = arguments_of(cell, 7, batch, 4, 20)
    y, *last = run(cell, arguments, xp)
    states = [k for k in ("h0", "c0") if k in arguments]
    pieces, now = [], dict(arguments)
    for begin, end in ((0, 1), (1, 4), (4, 7)):
        piece, *ends = run(cell, now | {"x": arguments["x"][begin:end]}, xp)
        pieces.append(piece)
        now |= dict(zip(states, ends, strict=True))
    same_bits([y, *last], [np.concatenate(pieces), *(now[k] for k in states)])


@every_cell
@pytest.mark.parametrize("batch", [1, 33])
def test_a_cell_is_a_sequence_of_one_step(cell, xp, batch):
    arguments = arguments_of(cell, 1, batch, 4, 19)
    names = {"x": "x", "h0": "h", "c0": "c"}
    single = {names.get(k, k): v for k, v in arguments.items()} | {"x": arguments["x"][0]}
    given = moved(single, xp)
    step = getattr(ops, f"{cell}_cell")
    states = step(**given)
    states = states if isinstance(states, tuple) else (states,)
    y, *last = run(cell, arguments, xp)
    same_bits(back(states, xp), last)
    same_bits([y[0]], last[:1])

    results, saved = step(**given, save=True)
    results = results if isinstance(results, tuple) else (results,)
    dys = [xp.asarray(np.full(r.shape, 0.5, np.float32)) for r in results]
    gradients = getattr(ops, f"{cell}_cell_backward")(*dys, **given, saved=saved)
    given = moved(arguments, xp)
    _, saved = getattr(ops, cell)(**given, save=True)
    expected = getattr(ops, f"{cell}_backward")(None, *dys, **given, saved=saved)
    same_bits(back(gradients, xp), [back(expected[:1], xp)[0][0], *back(expected[1:], xp)])


@every_cell
def test_reverse_is_the_sequence_turned_round(cell, xp):
    arguments = arguments_of(cell, 5, 3, 4, 7)
    y, *last = run(cell, arguments, xp, reverse=True)
    turned, *its_last = run(cell, arguments | {"x": arguments["x"][::-1].copy()}, xp)
    same_bits([y, *last], [turned[::-1], *its_last])


@every_cell
def test_batch_first_only_moves_the_rows(cell, xp):
    arguments = arguments_of(cell, 5, 3, 4, 7)
    y, *last = run(cell, arguments, xp)
    moved_x = np.ascontiguousarray(arguments["x"].swapaxes(0, 1))
    first, *its_last = run(cell, arguments | {"x": moved_x}, xp, batch_first=True)
    same_bits([y, *last], [first.swapaxes(0, 1), *its_last])


@every_cell
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_shorter_sequences(cell, xp, reverse, batch_first):
    """Whatever stands beyond them: here NaN."""
    lengths = np.array([3, 0, 5, 1, 2])
    arguments = arguments_of(cell, 5, 5, 4, 7)
    x = arguments["x"]
    for b, n in enumerate(lengths):
        x[n:, b] = np.nan
    given = arguments | {"x": np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x}
    y, *last = run(cell, given, xp, lengths=lengths, reverse=reverse, batch_first=batch_first)
    y = y.swapaxes(0, 1) if batch_first else y
    for b, n in enumerate(lengths):
        states = {k: arguments[k][b : b + 1] for k in ("h0", "c0") if k in arguments}
        alone, *its_last = run(cell, arguments | states | {"x": x[:n, b : b + 1]}, xp, reverse=reverse)
        same_bits([y[:n, b : b + 1], *(s[b : b + 1] for s in last)], [alone, *its_last])
        assert not y[n:, b].any()


@every_cell
def test_lengths_of_all_steps_change_nothing(cell, xp):
    arguments = arguments_of(cell, 5, 3, 4, 7)
    for lengths in (np.full(3, 5), np.full(3, 5, np.int32), np.full(3, 5, np.uint8)):
        first, second = run_both(cell, arguments, xp), run_both(cell, arguments, xp, lengths=lengths)
        same_bits(first[0], second[0])
        same_bits(first[1], second[1])


@every_cell
def test_lengths_may_be_a_list(cell, xp):
    arguments = arguments_of(cell, 5, 3, 4, 7)
    lengths = [3, 0, 5]
    (first, gradients), (second, again) = (
        run_both(cell, arguments, xp, lengths=given) for given in (lengths, np.array(lengths))
    )
    same_bits(first, second)
    same_bits(gradients, again)
    assert run(cell, arguments_of(cell, 5, 0, 4, 7), xp, lengths=[])[0].shape == (5, 0, 7)


@every_cell
def test_lengths_beside_arrays_of_a_device(cell, device):
    arguments = moved(arguments_of(cell, 5, 3, 4, 7), device)
    with pytest.raises(TypeError, match="lengths: expected a list, or an array on cuda:0"):
        getattr(ops, cell)(**arguments, lengths=np.array([3, 0, 5]))
    with pytest.raises(ValueError, match=r"lengths: expected values in \[0, 6\), got 6 at position \(1,\)"):
        getattr(ops, cell)(**arguments, lengths=[3, 6, 5])


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_nothing_counts_beyond_the_lengths(cell, xp, batch_first):
    """Results and gradients of padding that is NaN have the bits of those of zeros."""
    arguments, lengths = arguments_of(cell, 5, 3, 4, 7), np.array([3, 0, 5])
    found = []
    for filling in (0.0, np.nan):
        x = arguments["x"].copy()
        x[np.arange(5)[:, None] >= lengths] = filling
        x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
        found.append(run_both(cell, arguments | {"x": x}, xp, lengths=lengths, batch_first=batch_first))
        assert np.isnan(x).any() == np.isnan(filling)  # the argument is left as it was
    same_bits(found[0][0], found[1][0])
    same_bits(found[0][1], found[1][1])


@every_cell
def test_what_is_kept_for_the_backward(cell):
    """An LSTM keeps its gates, cells and results, a GRU its gates, the part that the reset scales and results, a
    simple cell its results: no more than PyTorch keeps (27.5, 11.5 and 1.67 MB at these sizes, against 9.8, 8.2
    and 1.64)."""
    steps, batch, hidden = 50, 32, 256
    _, saved = getattr(ops, cell)(**arguments_of(cell, steps, batch, 128, hidden), save=True)
    kept = [array for array in saved if array is not None]
    assert not any(isinstance(array.base, np.ndarray) for array in kept)  # no part of something larger
    columns = {"lstm": 6, "gru": 5, "rnn": 1}[cell] * hidden
    assert sum(array.nbytes for array in kept) == steps * batch * columns * 4


@every_cell
@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 0, 0, 0)])
def test_empty(cell, xp, sizes):
    arguments = arguments_of(cell, *sizes)
    (y, *last), gradients = run_both(cell, arguments, xp)
    steps, batch, _, hidden = sizes
    assert y.shape == (steps, batch, hidden)
    if steps == 0:
        same_bits(last, [arguments[k] for k in ("h0", "c0") if k in arguments])
    for name, gradient in zip(array_names(cell), gradients, strict=True):
        assert (gradient is None) == (name not in arguments)
        assert gradient is None or gradient.shape == arguments[name].shape


# Bad input --------------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lengths", np.array([3, 1]), ValueError, r"lengths: expected shape \(3,\)"),
        (
            "lengths",
            np.array([3, 6, 1]),
            ValueError,
            r"lengths: expected values in \[0, 6\), got 6 at position \(1,\)",
        ),
        ("lengths", np.array([-1, 5, 1]), ValueError, r"lengths: .* got -1 at position \(0,\)"),
        (
            "lengths",
            np.array([1, 2**63 + 1, 1], np.uint64),
            ValueError,
            r"got 9223372036854775809 at position \(1,\)",
        ),
        ("lengths", np.array([1.0, np.nan, 2.0]), TypeError, "lengths: expected integers, got float64"),
        ("x", np.zeros((3, 4), np.float32), ValueError, r"x: expected 3 dimensions \(T, B, I\)"),
        ("x", np.zeros((5, 3, 9), np.float32), ValueError, "w_ih: expected shape"),
        ("x", np.zeros((5, 3, 4), np.int64), TypeError, "x: expected float32 or float64"),
        ("h0", np.zeros((2, 7), np.float32), ValueError, r"h0: expected shape \(3, 7\)"),
        ("h0", np.zeros((3, 7)), TypeError, "h0: expected float32 as x has, got float64"),
        ("w_ih", np.zeros((4 * 7 + 1, 4), np.float32), ValueError, "w_"),
        ("w_ih", np.zeros(7, np.float32), ValueError, "w_ih: expected 2 dimensions"),
        ("w_hh", np.zeros((5, 5), np.float32), ValueError, "w_hh: expected shape"),
        ("b_ih", np.zeros(3, np.float32), ValueError, "b_ih: expected shape"),
        ("b_hh", np.zeros((1, 1), np.float32), ValueError, "b_hh: expected shape"),
        ("clip", 0.0, ValueError, "clip: expected a number above 0, got 0.0"),
        ("clip", float("nan"), ValueError, "clip: expected a number above 0"),
        ("clip", "1", TypeError, "clip: expected a number"),
    ],
)
def test_bad_arguments(cell, name, value, error, message):
    with pytest.raises(error, match=message):
        run(cell, arguments_of(cell, 5, 3, 4, 7) | {name: value})


@pytest.mark.parametrize(
    ("cell", "name", "value", "message"),
    [
        ("lstm", "c0", np.zeros((3, 6), np.float32), r"c0: expected shape \(3, 7\)"),
        ("lstm", "w_hr", np.zeros((2, 6), np.float32), "expected shape"),
        ("lstm", "w_hr", np.zeros(2, np.float32), r"w_hr: expected 2 dimensions \(P, H\)"),
        ("lstm", "peephole", np.zeros((4, 7), np.float32), r"peephole: expected shape \(3, 7\)"),
        ("rnn", "nonlinearity", "sigmoid", "nonlinearity: expected 'tanh' or 'relu', got 'sigmoid'"),
    ],
)
def test_bad_arguments_of_one_cell(cell, name, value, message):
    with pytest.raises(ValueError, match=message):
        run(cell, arguments_of(cell, 5, 3, 4, 7) | {name: value})


@every_cell
def test_bad_saved_arrays(cell):
    arguments = arguments_of(cell, 5, 3, 4, 7)
    results, saved = getattr(ops, cell)(**arguments, save=True)
    backward = getattr(ops, f"{cell}_backward")
    nothing = (None,) * len(results)
    for bad in (None, saved[:3], (None, None, None, None), (*saved[:3], saved[3][:2])):
        with pytest.raises(ValueError, match="saved"):
            backward(*nothing, **arguments, saved=bad)
    with pytest.raises(ValueError, match="mask: expected"):
        backward(*nothing, **arguments, saved=saved, mask=(True,))
    with pytest.raises(ValueError, match="dy: expected shape"):
        backward(results[0][:2], *nothing[1:], **arguments, saved=saved)
