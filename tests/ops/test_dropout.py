"""Dropout: the words against a plain Philox and its published vectors, the same mask everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import Tensor, ops

MASK32 = 0xFFFFFFFF
seeds = st.integers(0, 2**64 - 1)


def philox(counter, key):
    """Philox4x32-10 from its definition, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def words(n, seed, offset):
    out = []
    for i in range(-(-n // 4)):
        counter = (offset + i) % 2**64
        out += philox((counter & MASK32, counter >> 32, 0, 0), (seed & MASK32, seed >> 32))
    return np.array(out[:n], np.uint64)


def expected(x, p, seed, offset):
    drop = words(x.size, seed, offset) < round(p * 2**32)
    scale = x.dtype.type(1 / (1 - p)) if p < 1 else x.dtype.type(0)
    return np.where(drop, x.dtype.type(0), x.reshape(-1) * scale).reshape(x.shape)


def test_the_reference_gives_the_published_vectors():
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((MASK32,) * 4, (MASK32,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@given(
    seed=seeds, offset=seeds, n=st.integers(0, 200), p=st.floats(0, 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_exact(xp, seed, offset, n, p, dtype):
    x = np.arange(1, n + 1).astype(dtype)
    y = ops.dropout(xp.asarray(x), p, seed, offset)
    np.testing.assert_array_equal(xp.asnumpy(y), expected(x, p, seed, offset))
    dx = ops.dropout_backward(xp.asarray(x), p, seed, offset)
    np.testing.assert_array_equal(xp.asnumpy(dx), xp.asnumpy(y))


def test_same_mask_for_every_instruction_set_and_number_of_threads(isa, set_threads):
    x = np.ones(100_003, np.float32)
    want = expected(x[:300], 0.3, 2**40 + 7, 2**32 - 5)
    for threads in (1, 2, 3):
        set_threads(threads)
        y = ops.dropout(x, 0.3, 2**40 + 7, 2**32 - 5)
        np.testing.assert_array_equal(y[:300], want)
        later = ops.dropout(x[:203], 0.3, 2**40 + 7, 2**32 - 5 + 99_800 // 4)
        np.testing.assert_array_equal(y[99_800:], later)


def test_streamed_results_have_the_bits_of_cached_ones(isa):
    """Results of 16 MiB and more go past the caches; those of a part do not."""
    x = np.arange(1, 2**22 + 1030, dtype=np.float32)
    whole, half = ops.dropout(x, 0.3, 5, 7), 2**21
    assert whole[:half].tobytes() == ops.dropout(x[:half], 0.3, 5, 7).tobytes()
    assert whole[half:].tobytes() == ops.dropout(x[half:], 0.3, 5, 7 + half // 4).tobytes()


def test_share_and_mean():
    y = ops.dropout(np.ones(1_000_000, np.float32), 0.3, 5, 0)
    assert abs((y == 0).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / y.size)
    assert abs(y.mean(dtype=np.float64) - 1) < 0.005


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_what_is_dropped_is_zero(xp, p):
    x = xp.asarray(np.full(64, np.nan, np.float32))
    y = xp.asnumpy(ops.dropout(x, p, 0, 0))
    assert np.isnan(y).sum() == {0.0: 64, 1.0: 0}.get(p, np.isnan(y).sum())
    assert (np.isnan(y) | (y == 0)).all()


@pytest.mark.parametrize("backwards", [False, True])
def test_the_gradient_has_the_mask_whatever_its_layout(xp, backwards):
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32) + 3
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    arrays = [xp.asarray(x), xp.asarray(last)]
    given, gradient = arrays[::-1] if backwards else arrays
    t = Tensor(given, requires_grad=True)
    y = ops.dropout(t, 0.5, 1, 2)
    y.backward(gradient)
    np.testing.assert_array_equal(xp.asnumpy(t.grad.data), xp.asnumpy(y.data))


def test_refusals():
    x = np.ones(3, np.float32)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="p: "):
            ops.dropout(x, p, 0, 0)
    for seed, error in ((-1, ValueError), (2**64, ValueError), (1.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="seed"):
            ops.dropout(x, 0.5, seed, 0)
        with pytest.raises(error, match="offset"):
            ops.dropout(x, 0.5, 0, seed)


def test_seed_and_offset_in_device_memory(device):
    """What a captured step passes: the kernel reads them when it runs."""
    x = np.arange(1, 40, dtype=np.float32)
    seed, offset = (device.asarray(np.array([v])) for v in (7, 2**40))
    y = ops.dropout(device.asarray(x), 0.4, seed, offset)
    np.testing.assert_array_equal(device.asnumpy(y), expected(x, 0.4, 7, 2**40))
    t = Tensor(device.asarray(x), requires_grad=True)
    ops.dropout(t, 0.4, seed, offset).backward(Tensor(device.asarray(x)))
    np.testing.assert_array_equal(device.asnumpy(t.grad.data), device.asnumpy(y))
    with pytest.raises(TypeError, match="seed: expected an int or one int64, got 2 of int64"):
        ops.dropout(device.asarray(x), 0.4, device.asarray(np.array([1, 2])), 0)
