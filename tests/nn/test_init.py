"""Initial values: distributions, limits, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import brasa as br
from brasa import nn
from brasa.nn import init


def empty(*shape, dtype=np.float32):
    return nn.Parameter(np.full(shape, np.nan, dtype))


def test_functions_write_in_place_and_return_the_tensor():
    tensor = empty(3, 4)
    data, version = tensor.data, tensor.version
    for fill in (init.uniform_, init.normal_, init.ones_, init.zeros_, init.xavier_normal_, init.orthogonal_):
        assert fill(tensor) is tensor
        assert tensor.data is data
        assert np.isfinite(data).all()
    assert tensor.version >= version + 6


def test_constants():
    assert (init.constant_(empty(2, 3), 0.3).data == np.float32(0.3)).all()
    assert (init.ones_(empty(2)).data == 1).all()
    assert (init.zeros_(empty(2)).data == 0).all()


def test_identities():
    torch = pytest.importorskip("torch")
    for shape in ((4, 4), (3, 5)):
        assert (init.eye_(empty(*shape)).data == np.eye(*shape)).all()
    for shape, groups in (((4, 2, 3), 1), ((6, 2, 3, 4), 3), ((4, 3, 2, 1, 5), 2)):
        wanted = torch.nn.init.dirac_(torch.empty(shape), groups)
        np.testing.assert_array_equal(init.dirac_(empty(*shape), groups).data, wanted)


def test_sparse():
    drawn = init.sparse_(empty(101, 400), 0.25, std=2.0).data
    assert ((drawn == 0).sum(0) == 26).all()
    assert abs(drawn[drawn != 0].std() / 2 - 1) < 0.02
    assert 0.2 < (drawn[0] == 0).mean() < 0.3  # the zeros of a column stand anywhere


def moments(tensor, mean, std):
    """Mean and standard deviation within five standard errors."""
    n = tensor.data.size
    assert abs(tensor.data.mean() - mean) <= 5 * std / math.sqrt(n)
    assert abs(tensor.data.std() / std - 1) <= 5 / math.sqrt(n)


def test_uniform_and_normal():
    drawn = init.uniform_(empty(200, 200), -2.0, 5.0)
    moments(drawn, 1.5, 7 / math.sqrt(12))
    assert drawn.data.min() >= -2
    assert drawn.data.max() <= 5
    moments(init.normal_(empty(200, 200), 3.0, 0.5), 3.0, 0.5)


@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"), [((200, 300), 300, 200), ((60, 40, 5, 4), 800, 1200)]
)
def test_scaled_distributions(shape, fan_in, fan_out):
    moments(init.xavier_uniform_(empty(*shape), gain=2.0), 0, 2 * math.sqrt(2 / (fan_in + fan_out)))
    moments(init.xavier_normal_(empty(*shape)), 0, math.sqrt(2 / (fan_in + fan_out)))
    moments(init.kaiming_uniform_(empty(*shape), a=math.sqrt(5)), 0, 1 / math.sqrt(3 * fan_in))
    moments(
        init.kaiming_normal_(empty(*shape), mode="fan_out", nonlinearity="relu"), 0, math.sqrt(2 / fan_out)
    )


@pytest.mark.parametrize(("a", "b"), [(-2.0, 2.0), (0.5, 1.0), (4.0, 9.0), (-30.0, -6.0), (-0.01, 50.0)])
def test_truncated_normal(a, b):
    drawn = init.trunc_normal_(empty(100, 100, dtype=np.float64), 0.0, 1.0, a, b).data
    assert a <= drawn.min()
    assert drawn.max() <= b
    grid = np.linspace(max(a, b - 60), min(b, a + 60), 1_000_001)  # all that can be drawn, at a fine step
    density = np.exp(-0.5 * grid**2)
    mean = (grid * density).sum() / density.sum()
    std = math.sqrt(((grid - mean) ** 2 * density).sum() / density.sum())
    assert abs(drawn.mean() - mean) < 5 * std / 100
    assert abs(drawn.std() / std - 1) < 0.1


def test_truncated_normal_is_shifted_and_scaled():
    drawn = init.trunc_normal_(empty(100, 100), 5.0, 2.0, 4.0, 6.0).data
    assert drawn.min() >= 4
    assert drawn.max() <= 6
    assert abs(drawn.mean() - 5) < 0.03


@pytest.mark.parametrize("mean", [1e17, -1e200])
def test_truncated_normal_far_from_its_limits(mean):
    """All that can be told apart so far away is the nearer limit."""
    drawn = init.trunc_normal_(
        empty(5, dtype=np.float64), mean, 1.0, -math.inf if mean < 0 else 1.0, math.inf
    ).data
    np.testing.assert_allclose(drawn, mean)


def test_what_is_empty_stays_empty():
    for fill in (init.orthogonal_, init.xavier_uniform_, init.xavier_normal_, init.kaiming_normal_):
        for shape in ((0, 3), (3, 0), (0, 0)):
            assert fill(empty(*shape)).shape == shape


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (6, 2, 3, 3)])
def test_orthogonal(shape):
    matrix = init.orthogonal_(empty(*shape, dtype=np.float64), gain=3.0).data.reshape(shape[0], -1) / 3
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)


def test_generators_and_seeds():
    br.manual_seed(7)
    first = init.normal_(empty(5)).data.copy()
    second = init.normal_(empty(5)).data.copy()
    br.manual_seed(7)
    np.testing.assert_array_equal(init.normal_(empty(5)).data, first)
    assert (first != second).any()
    one, other = (init.uniform_(empty(5), generator=br.Generator(3)).data for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_gains_are_torchs():
    torch = pytest.importorskip("torch")
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.3)
    )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: init.calculate_gain("gelu2"), "nonlinearity"),
        (lambda: init.uniform_(empty(2), 1.0, 0.0), "a: expected"),
        (lambda: init.normal_(empty(2), 0.0, -1.0), "std"),
        (lambda: init.trunc_normal_(empty(2), a=1.0, b=1.0), "std, a, b"),
        (lambda: init.trunc_normal_(empty(2), mean=math.nan), "mean: expected a finite number, got nan"),
        (lambda: init.trunc_normal_(empty(2), mean=-math.inf), "mean"),
        (lambda: init.trunc_normal_(empty(2), std=math.inf), "std"),
        (lambda: init.trunc_normal_(empty(2), b=math.nan), "std, a, b"),
        (lambda: init.trunc_normal_(empty(2), mean=3.0, std=1e-320), "mean: expected one within reach"),
        (lambda: init.normal_(empty(2), std=math.nan), "std"),
        (lambda: init.normal_(empty(2), mean=math.inf), "mean"),
        (lambda: init.uniform_(empty(2), b=math.inf), "b: expected a finite number"),
        (lambda: init.xavier_uniform_(empty(2, 2), gain=math.nan), "gain"),
        (lambda: init.xavier_normal_(empty(2, 2), gain=math.nan), "gain"),
        (lambda: init.orthogonal_(empty(2, 2), gain=math.nan), "gain"),
        (lambda: init.kaiming_uniform_(empty(2, 2), a=math.nan), "a: expected"),
        (lambda: init.sparse_(empty(2, 2), 0.5, std=math.nan), "std"),
        (lambda: init.kaiming_normal_(empty(2, 2), mode="fan"), "mode"),
        (lambda: init.xavier_normal_(empty(2)), "tensor"),
        (lambda: init.orthogonal_(empty(2)), "tensor"),
        (lambda: init.eye_(empty(2)), "tensor"),
        (lambda: init.dirac_(empty(2, 2)), "tensor"),
        (lambda: init.dirac_(empty(3, 2, 1), groups=2), "groups"),
        (lambda: init.sparse_(empty(2), 0.5), "tensor"),
        (lambda: init.sparse_(empty(2, 2), 1.5), "sparsity"),
    ],
)
def test_bad_arguments(call, word):
    with pytest.raises(ValueError, match=word):
        call()
