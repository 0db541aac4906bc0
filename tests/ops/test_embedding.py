"""Embedding: exact sums in the order of the positions, indices out of range, padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import ops

seeds = st.integers(0, 2**32 - 1)


def in_order(dy, indices, rows, padding=None):
    """The gradient by a loop over the positions, in the dtype of dy."""
    out = np.zeros((rows, dy.shape[-1]), dy.dtype)
    for v, row in zip(indices.reshape(-1), dy.reshape(-1, dy.shape[-1]), strict=True):
        if v != padding:
            out[v] += row
    return out


@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_backward_adds_in_the_order_of_positions(xp, seed, dtype):
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 7)), int(rng.choice([1, 15, 17, 64, 130, 200]))
    indices = rng.integers(0, rows, tuple(rng.integers(0, 20, 2))).astype(rng.choice([np.int32, np.int64]))
    dy = rng.standard_normal((*indices.shape, columns)).astype(dtype)
    weight = np.zeros((rows, columns), dtype)
    padding = None if rng.random() < 0.5 else int(rng.integers(-rows, rows))
    dweight = ops.embedding_backward(
        xp.asarray(dy), xp.asarray(indices), xp.asarray(weight), padding_idx=padding
    )
    wanted = in_order(dy, indices, rows, None if padding is None else padding % rows)
    np.testing.assert_array_equal(xp.asnumpy(dweight), wanted)


@pytest.mark.parametrize(("count", "rows"), [(2048, 1), (2049, 255), (5000, 256), (4500, 70_000)])
@pytest.mark.parametrize("often", [False, True])
def test_backward_of_more_positions_than_one_block_sorts(device, count, rows, often):
    """Rows of one, two and three bytes; evenly drawn, or few of them often."""
    rng = np.random.default_rng(count + rows)
    indices = rng.integers(-1, rows + 1, count)  # two of them are no rows
    if often:
        indices = rng.choice(indices[:7], count)
    dy = rng.standard_normal((count, 3)).astype(np.float32)
    weight = device.asarray(np.zeros((rows, 3), np.float32))
    dweight = ops.embedding_backward(device.asarray(dy), device.asarray(indices), weight)
    inside = (indices >= 0) & (indices < rows)
    np.testing.assert_array_equal(device.asnumpy(dweight), in_order(dy[inside], indices[inside], rows))


def test_same_bits_for_every_instruction_set_and_number_of_threads(isa, set_threads):
    rng = np.random.default_rng(2)
    indices, dy = rng.integers(0, 50, 1000), rng.standard_normal((1000, 300)).astype(np.float32)
    wanted = in_order(dy, indices, 50)
    for threads in (1, 2, 3):
        set_threads(threads)
        np.testing.assert_array_equal(
            ops.embedding_backward(dy, indices, np.zeros((50, 300), np.float32)), wanted
        )


def test_other_integers_and_strides(xp):
    weight = xp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3).T.copy().T)
    for dtype in (np.uint8, np.int8, np.int16, np.uint32, np.uint64):
        y = ops.embedding(xp.asarray(np.array([[3, 1], [0, 2]], dtype)), weight)
        np.testing.assert_array_equal(xp.asnumpy(y), xp.asnumpy(weight)[[[3, 1], [0, 2]]])


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((0,), 3, 4), ((2, 0), 0, 4), ((5,), 3, 0), ((), 2, 3)]
)
def test_empty_and_rank_0(xp, shape, rows, columns):
    indices = xp.asarray(np.zeros(shape, np.int64))
    weight = xp.asarray(np.ones((rows, columns), np.float32))
    y = ops.embedding(indices, weight)
    assert y.shape == (*shape, columns)
    assert ops.embedding_backward(y, indices, weight).shape == (rows, columns)


@pytest.mark.parametrize("value", [-1, 4, 2**31, -(2**63), 2**63 - 1])
def test_an_index_out_of_range_is_named(value):
    indices = np.array([[0, 1], [3, value]])
    with pytest.raises(
        ValueError, match=rf"indices: expected values in \[0, 4\), got {value} at position \(1, 1\)"
    ):
        ops.embedding(indices, np.ones((4, 2), np.float32))


def test_an_index_out_of_range_on_a_device(device, monkeypatch):
    indices = device.asarray(np.array([1, 7, -1]))
    weight = device.asarray(np.ones((4, 2), np.float32))
    y = device.asnumpy(ops.embedding(indices, weight))
    assert not np.isnan(y[0]).any()
    assert np.isnan(y[1:]).all()
    dweight = ops.embedding_backward(device.asarray(np.ones((3, 2), np.float32)), indices, weight)
    np.testing.assert_array_equal(device.asnumpy(dweight), in_order(np.ones((1, 2)), np.array([1]), 4))
    monkeypatch.setenv("BRASA_CHECK", "1")
    with pytest.raises(ValueError, match=r"got 7 at position \(1,\)"):
        ops.embedding(indices, weight)


def test_refusals():
    weight = np.ones((4, 2), np.float32)
    with pytest.raises(TypeError, match="indices: expected integers"):
        ops.embedding(np.ones(3), weight)
    with pytest.raises(TypeError, match="indices: expected integers"):
        ops.embedding(np.ones(3, bool), weight)
    with pytest.raises(ValueError, match="weight"):
        ops.embedding(np.array([0]), weight[0])
    with pytest.raises(TypeError, match="weight"):
        ops.embedding(np.array([0]), weight.astype(np.int32))
    for padding in (4, -5):
        with pytest.raises(ValueError, match="padding_idx"):
            ops.embedding(np.array([0]), weight, padding_idx=padding)
    with pytest.raises(ValueError, match="dy"):
        ops.embedding_backward(weight, np.array([0]), weight)
