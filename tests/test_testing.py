"""The checks themselves: they must fail where they should, and say where."""

from __future__ import annotations

import numpy as np
import pytest

from brasa._tape import differentiable
from brasa.tensor import Tensor
from brasa.testing import assert_close, gradcheck

POINT = np.array([[0.5, -1.5], [2.0, 1.0]])


def test_equal_arrays_pass_with_every_bound():
    x = np.array([1.0, np.nan, np.inf, -np.inf, 0.0, -0.0])
    for bound in ({"bound": 0}, {"ulp": 0}, {"rtol": 0}, {"atol": 0.0}, {"rtol": 1e-5, "atol": 1e-8}):
        assert_close(x, x.copy(), **bound)
    assert_close(Tensor(np.arange(3)), [0, 1, 2], bound=0)
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)), ulp=0)


@pytest.mark.parametrize(
    ("actual", "expected"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf), (1.0, np.inf)]
)
def test_special_values_agree_only_with_themselves(actual, expected):
    for bound in ({"bound": 1e300}, {"ulp": 1e10}, {"rtol": 1.0, "atol": 1.0}):
        with pytest.raises(AssertionError, match="1 of 1 elements"):
            assert_close(np.array([actual]), np.array([expected]), **bound)


def test_the_message_shows_the_worst_element():
    actual, expected = np.zeros((2, 3)), np.zeros((2, 3))
    actual[1, 2], actual[0, 0], expected[0, 1] = 0.5, 0.25, 0.05
    with pytest.raises(AssertionError) as failure:
        assert_close(actual, expected, bound=0.1)
    assert str(failure.value) == (
        "2 of 6 elements differ by more than allowed\n"
        "  worst at (1, 2): actual 0.5, expected 0.0, error 0.5, allowed 0.1"
    )
    with pytest.raises(AssertionError, match=r"worst at \(0, 0\)"):
        assert_close(actual, expected, bound=np.array([[0.1, 1, 1], [1, 1, 0.4]]))


@pytest.mark.parametrize("value", [1.0, 1.5, 1e-3, 3e38, 1e-40, 0.0])
def test_ulp_counts_units_of_the_actual_dtype(value):
    x = np.float32([value])
    above = np.nextafter(np.nextafter(x, np.float32(np.inf)), np.float32(np.inf))
    assert_close(above, x.astype(np.float64), ulp=2)
    with pytest.raises(AssertionError):
        assert_close(above, x.astype(np.float64), ulp=1.9)


def test_relative_and_absolute_tolerance():
    assert_close([100.5], [100.0], rtol=0.005)
    assert_close([0.1], [0.0], atol=0.1)
    with pytest.raises(AssertionError):
        assert_close([0.1], [0.0], rtol=100.0)


def test_wrong_use_of_assert_close():
    with pytest.raises(ValueError, match="one of bound, ulp"):
        assert_close([1.0], [1.0])
    with pytest.raises(ValueError, match="one of bound, ulp"):
        assert_close([1.0], [1.0], ulp=1, rtol=1)
    with pytest.raises(TypeError, match="int64"):
        assert_close(np.array([1]), [1], ulp=1)
    with pytest.raises(AssertionError, match=r"actual \(1,\), expected \(1, 1\)"):
        assert_close([1.0], [[1.0]], ulp=1)


def square(slope, mask_matters=False):
    """x w, with gradients that are right for a slope of 1."""

    def backward(dy, x, w, mask):
        dx = dy * w * slope if mask[0] else None
        dw = dy * x * (0.5 if mask_matters and not mask[0] else 1.0) if mask[1] else None
        return dx, dw

    return differentiable(lambda x, w: x * w, backward, arrays=("x", "w"), name="square")


def test_gradcheck_passes_right_gradients():
    assert gradcheck(square(1.0), (POINT, POINT + 1))
    assert gradcheck(lambda x: [x.exp(), (x * 2).sum()], POINT)
    assert gradcheck(lambda x, n, c: (x * c) ** n, (POINT, 2, np.ones(2, np.float64)))
    assert gradcheck(lambda x: x * 3.0, np.array(2.0))
    assert gradcheck(lambda x: x * 3.0, np.zeros((0, 2)))


@pytest.mark.parametrize("slope", [0.99, -1.0, 0.0])
def test_gradcheck_finds_a_wrong_gradient(slope):
    with pytest.raises(AssertionError, match=r"gradient of input 0: 4 of 4 .*\n  worst at \(\d, \d\)"):
        gradcheck(square(slope), (POINT, POINT + 1.25))


def test_gradcheck_finds_one_wrong_element():
    def backward(dy):
        dx = dy.copy()
        dx[1, 0] *= 1.01
        return dx

    with pytest.raises(AssertionError, match=r"1 of 4 .*\n  worst at \(1, 0\)"):
        gradcheck(differentiable(lambda x: x * 1, backward), POINT)


def test_gradcheck_finds_a_missing_gradient():
    with pytest.raises(AssertionError, match="input 1"):
        gradcheck(lambda x, w: x * w.detach(), (POINT, POINT + 1.25))


def test_gradcheck_finds_what_a_mask_changes():
    with pytest.raises(AssertionError, match="gradient of input 1, asked for alone"):
        gradcheck(square(1.0, mask_matters=True), (POINT, POINT + 1.25))


def test_gradcheck_needs_float64():
    with pytest.raises(TypeError, match="float64"):
        gradcheck(lambda x: x * 2, np.ones(2, np.float32))
    with pytest.raises(AssertionError, match="no float64 Tensor"):
        gradcheck(lambda x: x.data, POINT)
