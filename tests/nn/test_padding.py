"""Sequences of different lengths in one array."""

from __future__ import annotations

import numpy as np
import pytest

from brasa import Tensor
from brasa.nn.utils.rnn import pad_sequence, sequence_mask, unpad_sequence


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_torchs(batch_first, side):
    torch = pytest.importorskip("torch")
    parts = [values(n, 2, seed=n) for n in (3, 1, 4)]
    padded = pad_sequence(parts, batch_first, -1.0, side)
    expected = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in parts], batch_first, -1.0, side)
    np.testing.assert_array_equal(padded, expected)
    if side == "right":
        for a, b in zip(unpad_sequence(padded, [3, 1, 4], batch_first), parts, strict=True):
            np.testing.assert_array_equal(a, b)


def test_padding_hands_gradients_through(xp):
    parts = [Tensor(xp.asarray(values(n, 2)), requires_grad=True) for n in (3, 1)]
    padded = pad_sequence(parts)
    assert type(padded.data) is type(parts[0].data)
    (padded * padded).sum().backward()
    for part in parts:
        np.testing.assert_allclose(xp.asnumpy(part.grad.data), 2 * xp.asnumpy(part.data))
    for a, b in zip(unpad_sequence(padded, xp.asarray(np.array([3, 1]))), parts, strict=True):
        np.testing.assert_array_equal(xp.asnumpy(a.data), xp.asnumpy(b.data))


def test_masks(xp):
    mask = sequence_mask(xp.asarray(np.array([2, 0, 3])), 4)
    assert xp.asnumpy(mask).tolist() == [[t < n for t in range(4)] for n in (2, 0, 3)]
    assert sequence_mask(np.array([1, 2])).shape == (2, 2)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([5, 1], ValueError, r"lengths: expected values in \[0, 3\].*got 5 at position 0"),
        ([1, -1], ValueError, "got -1 at position 1"),
        ([1, 1.5], TypeError, "lengths: expected integers"),
        ([1, np.nan], TypeError, "lengths: expected integers"),
    ],
)
def test_lengths_are_checked(lengths, error, message):
    for call in (lambda: unpad_sequence(values(3, 2), lengths), lambda: sequence_mask(lengths, 3)):
        with pytest.raises(error, match=message):
            call()
    if error is TypeError or -1 in lengths:
        with pytest.raises(error, match="lengths"):
            sequence_mask(lengths)


def test_no_lengths():
    assert sequence_mask([]).shape == (0, 0)
    assert unpad_sequence(values(3, 0), []) == []


def test_refusals_of_padding():
    with pytest.raises(ValueError, match="at least one"):
        pad_sequence([])
    with pytest.raises(ValueError, match="padding_side"):
        pad_sequence([values(2)], padding_side="middle")
    with pytest.raises(ValueError, match="one for each of 2"):
        unpad_sequence(values(3, 2), [1])
    with pytest.raises(ValueError, match="lengths"):
        sequence_mask(3)
