"""Recurrent layers of 16 bits, on tensor cores: within bounds of float64, and the bits that nothing may change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brasa import ops
from ops.test_rnn import CELLS, arguments_of, array_names, back, moved, options_of, random, same_bits
from ops.test_rnn_cuda import GATES, operands, recurrence
from references import rnn as reference

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
# Half of a unit in the last place of 1, and half of the smallest number above 0.
ROUNDING = {HALVES[0]: (2.0**-11, 2.0**-25), HALVES[1]: (2.0**-8, 2.0**-134)}
# Of float32 sums on tensor cores, whose additions may be cut.
UNIT = 2.0**-22
VECTORS = ("b_ih", "b_hh", "peephole")  # which may be float32 beside 16 bits
every_cell = pytest.mark.parametrize("cell", CELLS)
every_half = pytest.mark.parametrize("half", HALVES, ids=str)
seeds = st.integers(0, 2**32 - 1)
# Around tiles of rows, groups of units and slices of the depth.
rows = st.sampled_from([1, 3, 16, 17, 33]) | st.integers(1, 40)
columns = st.sampled_from([1, 7, 8, 9, 16, 31, 33, 48, 64]) | st.integers(1, 70)


@pytest.fixture
def gpu(device):
    """A function that sets how the emulator orders threads and copies."""
    if device.name != "emulated":
        yield lambda **_: None
    else:
        set_option = device.kernels.set_option
        yield lambda **options: [set_option(*option) for option in options.items()]
        set_option("order", "forward")
        set_option("async", "lazy")


def narrowed(arguments, half, vectors=False):
    """The arguments rounded to 16 bits, biases only with `vectors`."""
    return {k: v.astype(half) if vectors or k not in VECTORS else v for k, v in arguments.items()}


def wide(arrays):
    def widened(v):
        return v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind in "fV" else v

    return (
        {k: widened(v) for k, v in arrays.items()} if isinstance(arrays, dict) else list(map(widened, arrays))
    )


def check_results(cell, half, arguments, results, **options):
    call = getattr(reference, cell)
    wanted = call(**wide(arguments), **options)
    bounds = call(**wide(arguments), **options, unit=(UNIT, ROUNDING[half]))
    for ours, theirs, bound in zip(results, wanted, bounds, strict=True):
        assert ours.dtype == half
        assert np.all(np.abs(ours.astype(np.float64) - theirs) <= bound)


def of_magnitudes(cell, saved, arguments):
    """Saved arrays and arguments for which every factor and term of the backward is as large as those given, and
    positive.
    """
    gates, cells, v, y = (a if a is None else np.abs(a) for a in saved)
    if cell == "gru":
        gates[..., 2 * gates.shape[-1] // 3 :] *= -1  # of h' - n
    arguments = {k: np.abs(a) if isinstance(a, np.ndarray) else a for k, a in arguments.items()}
    return (gates, cells, v, y), arguments


def check_gradients(cell, half, arguments, saved, dys, gradients, **options):
    """From what the forward kept, in float64 on the CPU. The backward is linear in `dys`: a rounding on the way is
    worth its relative error of what magnitudes would give. On the way to a result are at most three per step,
    of d-h where it is projected, and of d-gates in two products, and the result's.
    """
    arguments, saved, dys = wide(arguments), wide(saved), wide(dys)
    backward = getattr(ops, f"{cell}_backward")
    expected = backward(*dys, **arguments, **options, saved=tuple(saved))
    saved, arguments = of_magnitudes(cell, saved, arguments)
    sizes = backward(*map(np.abs, dys), **arguments, **options, saved=saved)
    relative, least = ROUNDING[half]
    steps, batch = arguments["x"].shape[:2]
    terms = steps * batch + len(arguments["w_hh"]) + 8
    largest = max(1, *(np.abs(a).max(initial=0) for a in arguments.values()))
    for ours, theirs, size in zip(gradients, expected, sizes, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        bound = (3.1 * (steps + 2) * relative + terms * UNIT) * size + least * 8 * terms * largest
        assert np.all(np.abs(ours.astype(np.float64) - theirs) <= bound)


def run_both(device, cell, arguments, seed=3, **options):
    """The results, what was kept, random gradients of the results, and the gradients."""
    given_arrays = moved(arguments, device) | moved(options, device)
    results, saved = getattr(ops, cell)(**given_arrays, save=True)
    rng = np.random.default_rng(seed)
    dys = [rng.standard_normal(r.shape).astype(r.dtype) for r in results]
    gradients = getattr(ops, f"{cell}_backward")(*map(device.asarray, dys), **given_arrays, saved=saved)
    return back(results, device), back(saved, device), dys, back(gradients, device)


# Values -----------------------------------------------------------------------------------------------


def arguments_for(cell, rng, half, steps, batch, inputs, hidden):
    state = int(rng.integers(1, 20)) if cell == "lstm" and rng.integers(2) else None
    arguments = arguments_of(cell, steps, batch, inputs, hidden, np.float32, state, int(rng.integers(99)))
    if cell == "lstm" and rng.integers(2):
        arguments["peephole"] = random(rng, np.float32, 3, hidden)
    return narrowed(arguments, half, bool(rng.integers(2)))


@every_cell
@every_half
@given(steps=st.integers(1, 5), batch=rows, inputs=columns, hidden=columns, seed=seeds)
@example(steps=3, batch=17, inputs=5, hidden=260, seed=0)  # slices of two chunks, an odd one of them
@example(steps=3, batch=33, inputs=8, hidden=264, seed=3)
@settings(max_examples=20)
def test_results_and_gradients_are_near_those_of_float64(
    device, gpu, cell, half, steps, batch, inputs, hidden, seed
):
    rng = np.random.default_rng(seed)
    gpu(
        order=("forward", "reverse", "random")[seed % 3],
        **{"async": ("lazy", "eager", "random")[seed // 3 % 3]},
    )
    arguments = arguments_for(cell, rng, half, steps, batch, inputs, hidden)
    options = options_of(cell, rng, steps, batch)
    clip = options.pop("clip")
    results = back(
        getattr(ops, cell)(**moved(arguments, device), **moved(options, device), clip=clip), device
    )
    check_results(cell, half, arguments, results, **options, clip=clip)
    _, saved, dys, gradients = run_both(device, cell, arguments, seed, **options)
    check_gradients(cell, half, arguments, saved, dys, gradients, **options)


@every_half
def test_integers_are_exact(device, half):
    rng = np.random.default_rng(0)
    x, w_ih, w_hh = (rng.integers(-1, 2, shape).astype(half) for shape in ((2, 3, 3), (9, 3), (9, 9)))
    y, h_n = ops.rnn(
        *map(device.asarray, (x,)), None, *map(device.asarray, (w_ih, w_hh)), nonlinearity="relu"
    )
    h = np.zeros((3, 9))
    for t in range(2):
        h = np.maximum(x[t].astype(np.float64) @ w_ih.astype(np.float64).T + h @ w_hh.astype(np.float64).T, 0)
        assert np.array_equal(device.asnumpy(y)[t].astype(np.float64), h)
    assert h.max() < 2**8
    assert np.array_equal(device.asnumpy(h_n).astype(np.float64), h)


@every_half
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_carried_is_not_rounded(device, cell, half):
    """A gate that stays open adds 200 times what is less than a rounding of their sum."""
    steps, term = 200, ROUNDING[half][0] / 2
    x, h0 = np.zeros((steps, 1, 1), half), np.zeros((1, 1), half)
    w_hh = np.zeros((CELLS[cell], 1), half)
    b_ih = np.zeros(CELLS[cell], np.float32)
    if cell == "lstm":
        b_ih[:] = [np.log(term / (1 - term)), 100, 100, 0]  # c += term
        start, change = 1.0, steps * term
        given_arrays = [x, h0, np.ones((1, 1), half), w_hh, w_hh, b_ih]
    else:
        z = 1 - term
        b_ih[:] = [0, np.log(z / (1 - z)), 100]  # h = 1 - z + z h
        start, change = 0.5, 0.5 - 0.5 * z**steps
        given_arrays = [x, np.full((1, 1), 0.5, half), w_hh, w_hh, b_ih]
    *_, last = getattr(ops, cell)(*map(device.asarray, given_arrays))
    bound = ROUNDING[half][0] * (start + change + 10 * change)  # of the result, and of G, which is stored
    assert abs(float(device.asnumpy(last)[0, 0]) - start - change) <= bound


@every_cell
@every_half
def test_gates_at_the_limit_have_no_gradient(device, cell, half):
    arguments = narrowed(arguments_of(cell, 3, 4, 6, 9), half)
    arguments["b_ih"][:] = 9
    options = {"clip": 0.25} | ({"nonlinearity": "relu"} if cell == "rnn" else {})
    *_, gradients = run_both(device, cell, arguments, **options)
    by_name = dict(zip(array_names(cell), gradients, strict=True))
    assert not by_name["b_ih"].any()
    assert not by_name["x"].astype(np.float32).any()


@every_half
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_cell
def test_special_values_stay_with_their_sample(device, cell, half, value):
    """As in float32: an infinite input saturates gates, NaN spreads over the sample's later steps alone."""
    arguments = narrowed(arguments_of(cell, 4, 3, 5, 9), half)
    before, _, _, _ = run_both(device, cell, arguments)
    arguments["x"][1, 1] = value
    results, _, _, _ = run_both(device, cell, arguments)
    others = [0, 2]
    same_bits([r[..., others, :] for r in results], [r[..., others, :] for r in before])
    same_bits([results[0][0]], [before[0][0]])
    if np.isnan(value):
        assert np.isnan(results[0][1:, 1].astype(np.float32)).all()
        assert np.isnan(results[1][1].astype(np.float32)).all()


# What changes no bit ------------------------------------------------------------------------------------


@every_half
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("batch", "hidden"), [(3, 24), (17, 44), (40, 16), (2, 104)])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_launch_per_step_has_the_bits_of_one_for_all(device, cell, half, batch, hidden, reverse):
    """Weights that are kept where they fit give the bits of those that are streamed: a sequence of one step has the
    latter, and so have all where the device's room is taken.
    """
    gates, w_hh, h, c = (a.astype(half) for a in operands(cell, 4, batch, hidden, np.float32))
    y, *last = recurrence(device, cell, gates, w_hh, h, c, reverse)
    t = 3 if reverse else 0
    step, *_ = recurrence(device, cell, gates[t : t + 1], w_hh, h, c, reverse)
    same_bits([step[0]], [y[t]])
    padded = np.zeros((4, 200, gates.shape[-1]), half)  # more rows than fit at a time
    padded[:, :batch] = gates
    states = [np.concatenate([s, np.zeros((200 - batch, hidden), half)]) for s in (h, c)]
    many = recurrence(device, cell, padded, w_hh, *states, reverse)
    same_bits([y, *last], [a if a is None else a[..., :batch, :] for a in many])


@every_half
def test_pieces_of_a_simple_sequence(device, half):
    """Its state is what it returns; of other cells more is carried."""
    arguments = narrowed(arguments_of("rnn", 7, 3, 4, 20), half)
    y, last = back(ops.rnn(**moved(arguments, device)), device)
    pieces, now = [], dict(arguments)
    for begin, end in ((0, 1), (1, 4), (4, 7)):
        piece, h = back(ops.rnn(**moved(now | {"x": arguments["x"][begin:end]}, device)), device)
        pieces.append(piece)
        now["h0"] = h
    same_bits([y, last], [np.concatenate(pieces), now["h0"]])


@every_cell
@every_half
@pytest.mark.parametrize("hidden", [9, 40])
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(device, cell, half, hidden):
    arguments = narrowed(arguments_of(cell, 3, 35, 7, hidden), half)
    results, _, dys, gradients = run_both(device, cell, arguments)
    b = 33
    one = {k: v[..., b : b + 1, :] if k in ("x", "h0", "c0") else v for k, v in arguments.items()}
    given_arrays = moved({k: np.ascontiguousarray(v) for k, v in one.items()}, device)
    alone, saved = getattr(ops, cell)(**given_arrays, save=True)
    same_bits(back(alone, device), [r[..., b : b + 1, :] for r in results])
    dys = [device.asarray(np.ascontiguousarray(d[..., b : b + 1, :])) for d in dys]
    of_one = back(getattr(ops, f"{cell}_backward")(*dys, **given_arrays, saved=saved), device)
    for name, ours, theirs in zip(array_names(cell), of_one, gradients, strict=True):
        if name in ("x", "h0", "c0"):
            same_bits([ours], [theirs[..., b : b + 1, :]])


@every_cell
@every_half
def test_order_of_threads_and_copies(device, gpu, cell, half):
    arguments = narrowed(arguments_of(cell, 3, 19, 7, 24), half)
    found = []
    for order, when in itertools.product(("forward", "reverse", "random"), ("lazy", "eager")):
        gpu(order=order, **{"async": when})
        results, _, _, gradients = run_both(device, cell, arguments)
        found.append([*results, *gradients])
    for other in found[1:]:
        same_bits(found[0], other)


@every_cell
@every_half
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_shorter_sequences(device, cell, half, batch_first):
    lengths = np.array([3, 0, 5, 1, 2])
    arguments = narrowed(arguments_of(cell, 5, 5, 4, 9), half)
    x = arguments["x"]
    for b, n in enumerate(lengths):
        x[n:, b] = np.nan
    given_x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    options = {"lengths": lengths, "batch_first": batch_first}
    (y, *last), _, _, gradients = run_both(device, cell, arguments | {"x": given_x}, **options)
    y = y.swapaxes(0, 1) if batch_first else y
    for b, n in enumerate(lengths):
        own = {k: arguments[k][b : b + 1] for k in ("h0", "c0") if k in arguments}
        own["x"] = np.ascontiguousarray(x[:n, b : b + 1])
        alone, *its_last = back(getattr(ops, cell)(**moved(arguments | own, device)), device)
        same_bits([y[:n, b : b + 1], *(s[b : b + 1] for s in last)], [alone, *its_last])
        assert not y[n:, b].astype(np.float32).any()
    assert all(np.isfinite(g.astype(np.float32)).all() for g in gradients if g is not None)


@every_cell
@every_half
def test_a_cell_is_a_sequence_of_one_step(device, cell, half):
    arguments = narrowed(arguments_of(cell, 1, 5, 4, 19), half)
    names = {"h0": "h", "c0": "c"}
    single = {names.get(k, k): v for k, v in arguments.items()} | {"x": arguments["x"][0]}
    states = getattr(ops, f"{cell}_cell")(**moved(single, device))
    _, *last = getattr(ops, cell)(**moved(arguments, device))
    same_bits(back(states if isinstance(states, tuple) else [states], device), back(last, device))


# Biases, and refusals -----------------------------------------------------------------------------------


@every_cell
@every_half
@pytest.mark.parametrize("narrow", VECTORS[:2])
def test_biases_have_16_bits_or_32(device, cell, half, narrow):
    """The values count, not what they lie in; a gradient has the dtype of its bias."""
    arguments = narrowed(arguments_of(cell, 3, 4, 6, 9), half, vectors=True)
    as_float32 = {k: v.astype(np.float32) if k in VECTORS else v for k, v in arguments.items()}
    mixed = as_float32 | {narrow: arguments[narrow]}
    found = [run_both(device, cell, a) for a in (arguments, as_float32, mixed)]
    for results, _, _, gradients in found[1:]:
        same_bits(found[0][0], results)
        for name, ours, theirs in zip(array_names(cell), gradients, found[0][3], strict=True):
            assert ours is None or np.array_equal(ours.astype(half), theirs), name
    of_mixed = dict(zip(array_names(cell), found[2][3], strict=True))
    for name in VECTORS[:2]:
        assert of_mixed[name].dtype == (half if name == narrow else np.float32)


@every_half
@every_cell
@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(device, cell, half, sizes):
    arguments = narrowed(arguments_of(cell, *sizes), half)
    (y, *last), _, _, gradients = run_both(device, cell, arguments)
    steps, batch, _, hidden = sizes
    assert y.shape == (steps, batch, hidden)
    if steps == 0:
        same_bits(last, [arguments[k] for k in ("h0", "c0") if k in arguments])
    for name, gradient in zip(array_names(cell), gradients, strict=True):
        assert gradient is None or gradient.shape == arguments[name].shape


@every_half
@every_cell
def test_refusals(device, cell, half):
    arguments = narrowed(arguments_of(cell, 3, 2, 4, 5), half)
    with pytest.raises(
        TypeError, match=f"x: expected float32 or float64, got {half}, which is for arrays on CUDA"
    ):
        getattr(ops, cell)(**arguments)
    given_arrays = moved(arguments, device)
    float32 = device.asarray(np.ones((2, 5), np.float32))
    with pytest.raises(TypeError, match=f"h0: expected {half} as x has, got float32"):
        getattr(ops, cell)(**given_arrays | {"h0": float32})
    with pytest.raises(TypeError, match=f"b_ih: expected {half} as x has, got float64"):
        getattr(ops, cell)(**given_arrays | {"b_ih": device.asarray(np.ones(CELLS[cell] * 5))})
    with pytest.raises(ValueError, match=r"b_ih: expected shape"):
        getattr(ops, cell)(**given_arrays | {"b_ih": float32})
