"""Softmax beyond the properties that all operators share: gradients in float32, special values, identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import _cpu, ops
from descriptors import UNIT
from descriptors.softmax import BOUNDS, log_softmax, sample, softmax

FUNCTIONS = {
    "softmax": (ops.softmax, ops.softmax_backward),
    "log_softmax": (ops.log_softmax, ops.log_softmax_backward),
}
both = pytest.mark.parametrize("name", FUNCTIONS)
seeds = st.integers(0, 2**32 - 1)


def check_backward(xp, name, x, axis, dy):
    dtype = x.dtype.type
    reference = (softmax if name == "softmax" else log_softmax)(x.astype(np.float64), axis)
    y = reference.astype(dtype)
    dx = xp.asnumpy(FUNCTIONS[name][1](xp.asarray(dy), xp.asarray(y), axis))
    y, g = y.astype(np.float64), dy.astype(np.float64)
    chain = x.shape[axis] / 16 + 8
    if name == "softmax":
        expected = y * (g - (y * g).sum(axis, keepdims=True))
        bound = y * (chain * np.abs(y * g).sum(axis, keepdims=True) + 2 * np.abs(g))
    else:
        expected = g - np.exp(y) * g.sum(axis, keepdims=True)
        bound = np.exp(y) * chain * np.abs(g).sum(axis, keepdims=True) + 2 * np.abs(g)
    assert np.all(np.abs(dx - expected) <= bound * UNIT[dtype] + 1e-44)


@both
@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_backward(name, xp, seed, dtype):
    rng = np.random.default_rng(seed)
    x, axis = sample(rng, dtype).values()
    check_backward(xp, name, x, axis, rng.standard_normal(x.shape).astype(dtype))


@pytest.mark.parametrize("n", [131, 256, 515, 1028, 4099, 8196, 16387, 32772])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both
def test_lines_of_all_lengths(name, xp, n, dtype):
    """Of few threads, a warp, a block and a large one, kept and read again, in packs and one by one."""
    rng = np.random.default_rng(n)
    x, dy = ((rng.standard_normal((3, n)) * 3).astype(dtype) for _ in range(2))
    arguments = {"x": x.astype(np.float64), "axis": 1}
    y = xp.asnumpy(FUNCTIONS[name][0](xp.asarray(x), 1))
    wanted = (softmax if name == "softmax" else log_softmax)(**arguments)
    bound = BOUNDS[name](arguments, wanted, UNIT[dtype])
    assert np.all(np.abs(y - wanted) <= bound)
    check_backward(xp, name, x, 1, dy)


@both
@given(seed=seeds)
def test_backward_has_the_same_bits_on_every_instruction_set(name, seed):
    rng = np.random.default_rng(seed)
    x, axis = sample(rng, np.float32).values()
    y, dy = FUNCTIONS[name][0](x, axis), rng.standard_normal(x.shape).astype(np.float32)
    before, results = _cpu.isa(), {}
    try:
        for isa in _cpu.supported_isas():
            _cpu._set_isa(isa)
            results[isa] = FUNCTIONS[name][1](dy, y, axis).tobytes()
    finally:
        _cpu._set_isa(before)
    results.pop("baseline", None)
    assert len(set(results.values())) == 1


@pytest.mark.parametrize("n", [512, 1024])  # by twos, and one after the other
@both
def test_streamed_lines_have_the_bits_of_cached_ones(name, n, isa):
    """Results of 16 MiB and more go past the caches; those of a half of the lines do not."""
    forward, backward = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((4104 * 1024 // n, n)).astype(np.float32) for _ in range(2))
    y = forward(x)
    dx = backward(dy, y)
    half = len(x) // 2
    for part in (slice(half), slice(half, None)):
        assert y[part].tobytes() == forward(x[part]).tobytes()
        assert dx[part].tobytes() == backward(dy[part], y[part]).tobytes()


@both
def test_an_axis_has_the_same_bits_wherever_it_lies(name, isa):
    """Lines along vectors, transposed and strided ones are added in the same order."""
    rng = np.random.default_rng(1)
    for n in (1, 5, 16, 31, 32, 33, 100, 129, 1000):
        lines = (rng.standard_normal((70, n)) * 3).astype(np.float32)
        along = FUNCTIONS[name][0](lines, 1)
        across = FUNCTIONS[name][0](np.ascontiguousarray(lines.T), 0)
        assert along.tobytes() == np.ascontiguousarray(across.T).tobytes()


@pytest.mark.parametrize("n", [32, 33, 63, 64, 65, 511, 512])
@both
def test_pairs_of_lines_have_the_bits_of_single_ones(name, n, isa):
    x = np.random.default_rng(0).normal(size=(1031, n)).astype(np.float32)
    x[5, 3], x[8], x[10, n - 1] = np.nan, -np.inf, np.inf
    forward = FUNCTIONS[name][0]
    single = np.concatenate([forward(x[i : i + 1], 1) for i in range(len(x))])
    np.testing.assert_array_equal(forward(x, 1), single)


def test_channels_last_keeps_its_layout(xp):
    x = np.random.default_rng(2).standard_normal((2, 5, 3, 4)).astype(np.float32)
    last = xp.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    for axis in range(4):
        y = ops.softmax(last, axis)
        assert y.strides == last.strides
        np.testing.assert_allclose(xp.asnumpy(y), softmax(x.astype(np.float64), axis), rtol=1e-5)


@pytest.mark.parametrize("n", [3, 40, 2000])
@pytest.mark.parametrize("axis", [0, 1])
def test_special_values(xp, n, axis):
    def lines(*values):
        x = np.stack([np.resize(np.float32(v), n) for v in values])
        return xp.asarray(x if axis == 1 else np.ascontiguousarray(x.T))

    x = lines([-np.inf], [np.nan, 0], [np.inf, 0], [-np.inf, 0], [3e38, -3e38], [1e-45, 0])
    for function in (ops.softmax, ops.log_softmax):
        y = xp.asnumpy(function(x, axis))
        y = y if axis == 1 else y.T
        assert np.isnan(y[:3]).all()
        assert not np.isnan(y[3:]).any()
    y = xp.asnumpy(ops.softmax(x, axis))
    y = y if axis == 1 else y.T
    zeros, others = y[3, ::2], y[3, 1::2]
    assert (zeros == 0).all()
    np.testing.assert_allclose(others, 1 / others.size, rtol=1e-6)


@given(seed=seeds, shift=st.integers(-1000, 1000))
def test_rows_sum_to_one_and_a_shift_changes_nothing(seed, shift):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    x = rng.integers(-20, 20, (5, n)).astype(np.float32)  # so that adding the shift is exact
    y = ops.softmax(x)
    assert np.all(np.abs(y.astype(np.float64).sum(1) - 1) <= (n / 16 + 8) * UNIT[np.float32])
    np.testing.assert_array_equal(ops.softmax(x + np.float32(shift)), y)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), (2, 0, 3), (3, 2, 0)])
def test_empty(xp, shape):
    for axis in range(len(shape)):
        y = ops.softmax(xp.asarray(np.empty(shape, np.float32)), axis)
        assert y.shape == shape
        assert ops.softmax_backward(y, y, axis).shape == shape


def test_refusals():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="axis"):
        ops.softmax(x, 2)
    with pytest.raises(TypeError, match="axis"):
        ops.softmax(x, 1.0)
    with pytest.raises(ValueError, match="dimension"):
        ops.softmax(np.float32(1))
    with pytest.raises(TypeError, match="x: expected float32"):
        ops.softmax(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="dy: expected shape"):
        ops.softmax_backward(x[:1], x)


@pytest.mark.torch
@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_agrees(name):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((4, 21, 9)).astype(np.float32)
    for axis in range(3):
        theirs = getattr(torch, name)(torch.from_numpy(x), axis).numpy()
        np.testing.assert_allclose(FUNCTIONS[name][0](x, axis), theirs, rtol=3e-6, atol=3e-6)
