"""Gradient clipping against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brasa import Tensor, nn
from brasa.nn.utils import clip_grad_norm_, clip_grad_value_

SHAPES = ((3, 4), (5,), (), (2, 1, 2))


def parameters():
    """Parameters with gradients, and one without."""
    rng = np.random.default_rng(0)
    made = [nn.Parameter(np.zeros(shape, np.float32)) for shape in SHAPES]
    for p in made:
        p.grad = Tensor(rng.normal(size=p.shape).astype(np.float32) * 3)
    return [*made, nn.Parameter(np.zeros(2, np.float32))]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_norm_against_torch(norm_type, max_norm):
    torch = pytest.importorskip("torch")
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.zeros(p.shape)) for p in ours]
    for p, q in zip(ours[:-1], theirs[:-1], strict=True):
        q.grad = torch.tensor(p.grad.data.copy())
    arrays = [p.grad.data for p in ours[:-1]]
    total = clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert total.shape == ()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for p, q, array in zip(ours[:-1], theirs[:-1], arrays, strict=True):
        assert p.grad.data is array
        np.testing.assert_allclose(array, q.grad.numpy(), rtol=2e-6)


def test_value():
    made = parameters()
    before = [p.grad.data.copy() for p in made[:-1]]
    clip_grad_value_(made, 1.5)
    for p, old in zip(made[:-1], before, strict=True):
        np.testing.assert_array_equal(p.grad.data, old.clip(-1.5, 1.5))


def test_one_parameter_an_iterator_and_none():
    weight = nn.Parameter(np.zeros(2, np.float32))
    assert clip_grad_norm_(weight, 1.0).item() == 0.0
    weight.grad = Tensor(np.float32([3, 4]))
    assert clip_grad_norm_(iter([weight]), 1.0).item() == 5.0
    np.testing.assert_allclose(weight.grad.data, [0.6, 0.8], rtol=1e-5)


def test_norms_that_are_not_finite():
    weight = nn.Parameter(np.zeros(2, np.float32))
    weight.grad = Tensor(np.float32([np.inf, 4]))
    with pytest.raises(RuntimeError, match="norm of the gradients is inf"):
        clip_grad_norm_(weight, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(weight.grad.data, [np.inf, 4])


def test_bad_kinds():
    for call, word in (
        (lambda p: clip_grad_norm_(p, "1"), "max_norm: expected a number, got '1'"),
        (lambda p: clip_grad_norm_(p, 1.0, "inf"), "norm_type"),
        (lambda p: clip_grad_value_(p, "1"), "clip_value"),
        (lambda _: clip_grad_norm_("weight", 1.0), "parameters: expected Tensors, got str"),
    ):
        with pytest.raises(TypeError, match=word):
            call(parameters())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda p: clip_grad_norm_(p, -1.0), "max_norm"),
        (lambda p: clip_grad_norm_(p, 1.0, 0.0), "norm_type"),
        (lambda p: clip_grad_value_(p, -1.0), "clip_value"),
    ],
)
def test_bad_arguments(call, word):
    with pytest.raises(ValueError, match=word):
        call(parameters())
