"""What the CUDA kernels of the recurrent layers promise: nothing depends on how steps become launches."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from brasa import ops

GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "tanh": 1}
every_cell = pytest.mark.parametrize("cell", GATES)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def random(rng, dtype, *shape):
    return (rng.standard_normal(shape) * 0.4).astype(dtype)


def recurrence(device, cell, gates, w_hh, h0, c0, reverse=False):
    """The states of all steps and the last ones, from `gates` that hold the products of the inputs."""
    steps, batch, rows = gates.shape
    hidden = rows // GATES[cell]
    y, h_n, c_n = (np.empty(s, gates.dtype) for s in ((steps, batch, hidden), h0.shape, h0.shape))
    arrays = [device.asarray(a.copy()) for a in (gates, w_hh, h0, c0, y, h_n, c_n)]
    given, w_hh, h0, c0, y, h_n, c_n = arrays
    c0, c_n = (c0, c_n) if cell == "lstm" else (None, None)
    device.kernels.rnn_forward(
        cell, given, None, None, None, w_hh, None, None, None, h0, c0, None, y, None, None, h_n, c_n, reverse,
        False, inf, False,
    )  # fmt: skip
    return [None if a is None else device.asnumpy(a) for a in (y, h_n, c_n)]


def operands(cell, steps, batch, hidden, dtype, seed=0):
    rng = np.random.default_rng(seed)
    rows = GATES[cell] * hidden
    w_hh = random(rng, dtype, rows, hidden) * dtype((1 + hidden) ** -0.5)
    states = (random(rng, dtype, batch, hidden) for _ in range(2))
    return random(rng, dtype, steps, batch, rows), w_hh, *states


@every_cell
@every_dtype
@pytest.mark.parametrize(("batch", "hidden"), [(3, 20), (9, 44), (40, 17), (2, 100)])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_launch_per_step_has_the_bits_of_one_for_all(device, cell, dtype, batch, hidden, reverse):
    """A sequence of one step streams the weights that a longer one keeps, where they fit."""
    gates, w_hh, h, c = operands(cell, 4, batch, hidden, dtype)
    y, *last = recurrence(device, cell, gates, w_hh, h, c, reverse)
    for t in reversed(range(4)) if reverse else range(4):
        step, h, c_n = recurrence(device, cell, gates[t : t + 1], w_hh, h, c, reverse)
        c = c if c_n is None else c_n
        assert np.array_equal(step[0], y[t])
    assert np.array_equal(h, last[0])
    assert last[1] is None or np.array_equal(c, last[1])


@every_cell
@every_dtype
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(device, cell, dtype):
    """Blocks have fewer rows for small batches."""
    gates, w_hh, h, c = operands(cell, 3, 70, 36, dtype)
    y, h_n, _ = recurrence(device, cell, gates, w_hh, h, c)
    for b in (0, 13, 69):
        one = slice(b, b + 1)
        alone, last, _ = recurrence(device, cell, gates[:, one], w_hh, h[one], c[one])
        assert np.array_equal(alone, y[:, one])
        assert np.array_equal(last, h_n[one])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_length_that_is_none_makes_its_sample_nan(device, cell, reverse, monkeypatch):
    monkeypatch.delenv("BRASA_CHECK", raising=False)
    rng = np.random.default_rng(0)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell] * 5
    shapes = {"x": (4, 5, 3), "h0": (5, 5), "w_ih": (gates, 3), "w_hh": (gates, 5)}
    given = {k: device.asarray(random(rng, np.float32, *s)) for k, s in shapes.items()}
    given |= {"c0": None} if cell == "lstm" else {}
    fine, wrong = (device.asarray(np.array(v)) for v in ([4, 2, 0, 1, 3], [4, -1, 0, 5, 3]))
    expected, _ = getattr(ops, cell)(**given, lengths=fine, reverse=reverse, save=True)
    results, saved = getattr(ops, cell)(**given, lengths=wrong, reverse=reverse, save=True)
    good, bad = [0, 2, 4], [1, 3]
    for ours, theirs in zip(results, expected, strict=True):
        ours, theirs = (device.asnumpy(a).reshape(-1, 5, 5) for a in (ours, theirs))
        assert np.isnan(ours[:, bad]).all()
        assert np.array_equal(ours[:, good], theirs[:, good])
    ones = [device.asarray(np.ones(r.shape, np.float32)) for r in results]
    dx, dh0, *_ = getattr(ops, f"{cell}_backward")(
        *ones, **given, lengths=wrong, reverse=reverse, saved=saved
    )
    assert np.isnan(device.asnumpy(dx)[:, bad]).all()
    assert np.isnan(device.asnumpy(dh0)[bad]).all()
    assert np.isfinite(device.asnumpy(dx)[:, good]).all()
