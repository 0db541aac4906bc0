"""Pooling beyond the properties that all operators share: exact values, gradients, ties, NaN, layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import _backend, ops
from brasa.testing import gradcheck
from descriptors import UNIT
from references import pool as reference

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels-last"])

# Windows with a path of their own: those that halve an image, few channels, phases, long walks.
CASES = [
    ((2, 3, 8, 10), {"kernel_size": 2}),
    ((2, 6, 28, 28), {"kernel_size": 2}),
    ((1, 5, 9, 33), {"kernel_size": 2}),
    ((1, 5, 9, 33), {"kernel_size": 2, "ceil_mode": True}),
    ((2, 16, 10, 10), {"kernel_size": 2}),
    ((1, 20, 7, 71), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 7, 35, 36), {"kernel_size": 3, "stride": 2}),
    ((2, 7, 35, 36), {"kernel_size": 3, "stride": 2, "padding": (0, 1), "ceil_mode": True}),
    ((1, 70, 6, 5), {"kernel_size": 3, "stride": 2, "padding": (1, 0), "ceil_mode": True}),
    ((2, 32, 9, 39), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 48, 8, 40), {"kernel_size": 3, "stride": 2}),
    ((1, 2, 1, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 2, 2, 1), {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    ((1, 3, 13, 40), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((1, 17, 11, 12), {"kernel_size": (3, 5), "stride": (1, 3), "padding": (1, 2), "ceil_mode": True}),
    ((2, 4, 13, 70), {"kernel_size": 5, "stride": (7, 9)}),
    ((2, 8, 5, 16), {"kernel_size": 2}),
    ((2, 4, 7, 24), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 8, 7, 20), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ((1, 8, 6, 12), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((1, 8, 9, 9), {"kernel_size": 5, "stride": 3, "padding": 2}),
]
by_case = pytest.mark.parametrize(("shape", "window"), CASES, ids=lambda v: str(v).replace(" ", ""))


def laid_out(x, layout):
    if layout == "contiguous":
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def small_integers(seed, shape, dtype, limit=4):
    """Integers with many ties, whose sums are exact."""
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(dtype)


# Values -----------------------------------------------------------------------------------------------


@by_case
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maximum_and_its_gradient_are_exact(xp, shape, window, layout, dtype):
    if xp.name != "cpu" and np.prod(shape) > 3000:
        shape = (1, 2, *shape[2:])
    x = small_integers(1, shape, dtype)
    expected, winners = reference.max_pool2d(x, return_indices=True, **window)
    device = xp.asarray(laid_out(x, layout))
    y, indices = ops.max_pool2d(device, return_indices=True, **window)
    np.testing.assert_array_equal(xp.asnumpy(y), expected)
    np.testing.assert_array_equal(xp.asnumpy(indices), winners)
    np.testing.assert_array_equal(xp.asnumpy(ops.max_pool2d(device, **window)), expected)
    y, saved = ops.max_pool2d(device, save=True, **window)
    dy = small_integers(2, y.shape, dtype)
    dx = ops.max_pool2d_backward(xp.asarray(laid_out(dy, layout)), saved)
    assert dx.dtype == dtype
    assert _backend.layout(dx) == _backend.layout(device)
    np.testing.assert_array_equal(xp.asnumpy(dx), reference.max_pool2d_backward(dy, winners, shape))


@by_case
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_is_exact_for_a_divisor_of_a_power_of_two(xp, shape, window, layout, dtype):
    if xp.name != "cpu" and np.prod(shape) > 3000:
        shape = (1, 2, *shape[2:])
    x = small_integers(3, shape, dtype)
    device = xp.asarray(laid_out(x, layout))
    y = ops.avg_pool2d(device, divisor_override=8, **window)
    np.testing.assert_array_equal(xp.asnumpy(y), reference.avg_pool2d(x, divisor_override=8, **window))
    dy = small_integers(4, y.shape, dtype)
    dx = ops.avg_pool2d_backward(xp.asarray(laid_out(dy, layout)), device, divisor_override=8, **window)
    assert _backend.layout(dx) == _backend.layout(device)
    expected = reference.avg_pool2d_backward(dy, x, divisor_override=8, **window)
    np.testing.assert_array_equal(xp.asnumpy(dx), expected)


@by_case
@layouts
@pytest.mark.parametrize("include_pad", [False, True])
def test_mean_and_its_gradient_are_within_their_bounds(xp, shape, window, layout, include_pad):
    if xp.name != "cpu" and np.prod(shape) > 3000:
        shape = (1, 2, *shape[2:])
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape).astype(np.float32)
    options = window | {"count_include_pad": include_pad}
    device = xp.asarray(laid_out(x, layout))
    y = ops.avg_pool2d(device, **options)
    taps = int(np.prod(reference.pair(window["kernel_size"])))
    of_magnitudes = reference.avg_pool2d(np.abs(x.astype(np.float64)), **options)
    error = np.abs(xp.asnumpy(y) - reference.avg_pool2d(x.astype(np.float64), **options))
    assert np.all(error <= (taps + 2) * UNIT[np.float32] * of_magnitudes + 1e-45)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = xp.asnumpy(ops.avg_pool2d_backward(xp.asarray(laid_out(dy, layout)), device, **options))
    expected, magnitudes = (
        reference.avg_pool2d_backward(g.astype(np.float64), x, **options) for g in (dy, np.abs(dy))
    )
    assert np.all(np.abs(dx - expected) <= (taps + 2) * UNIT[np.float32] * magnitudes + 1e-45)


@layouts
@pytest.mark.parametrize("size", [1, 4, (3, 2), (None, 1), (7, 5), (9, None)])
def test_adaptive_windows_are_exact(xp, layout, size):
    x = small_integers(6, (2, 3, 7, 5), np.float32)
    device = xp.asarray(laid_out(x, layout))
    y, indices = ops.adaptive_max_pool2d(device, size, return_indices=True)
    expected, winners = reference.adaptive_max_pool2d(x, size, return_indices=True)
    np.testing.assert_array_equal(xp.asnumpy(y), expected)
    np.testing.assert_array_equal(xp.asnumpy(indices), winners)
    dy = small_integers(7, y.shape, np.float32)
    _, saved = ops.adaptive_max_pool2d(device, size, save=True)
    dx = ops.adaptive_max_pool2d_backward(xp.asarray(laid_out(dy, layout)), saved)
    np.testing.assert_array_equal(xp.asnumpy(dx), reference.max_pool2d_backward(dy, winners, x.shape))
    mean = xp.asnumpy(ops.adaptive_avg_pool2d(device, size))
    np.testing.assert_allclose(mean, reference.adaptive_avg_pool2d(x.astype(np.float64), size), rtol=3e-7)
    # The gradient is the transpose: <A x, dy> = <x, A' dy>.
    dx = xp.asnumpy(ops.adaptive_avg_pool2d_backward(xp.asarray(laid_out(dy, layout)), device, size))
    assert abs((mean.astype(np.float64) * dy).sum() - (x.astype(np.float64) * dx).sum()) < 1e-4


@layouts
@pytest.mark.parametrize("shape", [(2, 3, 17, 17), (1, 70, 20, 33), (3, 2, 1, 300), (1, 1, 16, 16)])
def test_global_windows_of_more_than_a_byte_of_elements(xp, layout, shape):
    """Offsets above 255 do not fit a byte; 16 x 16 just does."""
    if xp.name != "cpu" and shape[1] > 3:
        shape = (1, 2, *shape[2:])
    rng = np.random.default_rng(8)
    x = rng.permutation(int(np.prod(shape))).astype(np.float32).reshape(shape)
    x[0, 0, -1, -1] = x.max() + 1  # the last of its window
    device = xp.asarray(laid_out(x, layout))
    y, saved = ops.global_max_pool2d(device, save=True)
    np.testing.assert_array_equal(xp.asnumpy(y), x.max((2, 3), keepdims=True))
    dx = xp.asnumpy(ops.global_max_pool2d_backward(y, saved))
    np.testing.assert_array_equal(dx, np.where(x == x.max((2, 3), keepdims=True), x, 0))
    _, indices = ops.max_pool2d(device, shape[2:], return_indices=True)
    np.testing.assert_array_equal(xp.asnumpy(indices).ravel(), x.reshape(*shape[:2], -1).argmax(2).ravel())
    mean = xp.asnumpy(ops.global_avg_pool2d(device))
    np.testing.assert_allclose(mean, x.mean((2, 3), keepdims=True, dtype=np.float64), rtol=1e-6)
    dx = xp.asnumpy(ops.global_avg_pool2d_backward(y, device))
    expected = np.broadcast_to(xp.asnumpy(y) / np.float32(shape[2] * shape[3]), shape)
    np.testing.assert_allclose(dx, expected, rtol=1e-6)


def test_offsets_are_bytes_up_to_256_elements():
    x = np.zeros((1, 1, 40, 40), np.float32)
    for kernel, dtype in ((16, np.uint8), ((1, 40), np.uint8), (17, np.int32)):
        _, saved = ops.max_pool2d(x, kernel, save=True)
        assert saved[0].dtype == dtype


# Ties, NaN and infinities -----------------------------------------------------------------------------


@by_case
@layouts
def test_nan_wins_and_the_first_of_equals(xp, shape, window, layout):
    """Indices, too, on data of NaN, infinities and equal numbers."""
    if xp.name != "cpu":
        shape = (1, 2, *shape[2:])
    rng = np.random.default_rng(9)
    x = rng.choice(
        np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1]), shape, p=[0.08, 0.1, 0.42, 0.1, 0.1, 0.2]
    )
    expected, winners = reference.max_pool2d(x, return_indices=True, **window)
    device = xp.asarray(laid_out(x, layout))
    y, indices = ops.max_pool2d(device, return_indices=True, **window)
    np.testing.assert_array_equal(xp.asnumpy(y), expected)
    np.testing.assert_array_equal(xp.asnumpy(indices), winners)
    np.testing.assert_array_equal(xp.asnumpy(ops.max_pool2d(device, **window)), expected)


@layouts
def test_equal_numbers_give_the_gradient_to_the_first(xp, layout):
    x = xp.asarray(laid_out(np.full((1, 3, 6, 6), 2, np.float32), layout))
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        y, saved = ops.max_pool2d(x, kernel, stride, padding, save=True)
        dx = xp.asnumpy(ops.max_pool2d_backward(y, saved))
        windows = reference.regular_windows(6, kernel, stride, padding, 1, False)
        first = [min(reference.inside(w, 6)) for w in windows]
        expected = np.zeros((6, 6))
        np.add.at(expected, np.ix_(first, first), 2)
        np.testing.assert_array_equal(dx, np.broadcast_to(expected, dx.shape))


@layouts
def test_padding_never_wins(xp, layout):
    x = xp.asarray(laid_out(np.full((1, 2, 5, 5), -np.inf, np.float32), layout))
    y, indices = ops.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert np.isneginf(xp.asnumpy(y)).all()
    assert xp.asnumpy(indices).min() >= 0
    negative = xp.asarray(laid_out(np.full((1, 2, 5, 5), -3, np.float32), layout))
    assert (xp.asnumpy(ops.max_pool2d(negative, 3, 2, 1)) == -3).all()


@layouts
def test_a_nan_that_did_not_win_leaves_no_trace_in_the_gradient(layout):
    x = small_integers(10, (1, 5, 8, 8), np.float32)
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        y, saved = ops.max_pool2d(laid_out(x, layout), kernel, stride, padding, save=True)
        dy = np.ones(y.shape, np.float32)
        dy[0, 0, 0, 0] = np.nan
        dx = ops.max_pool2d_backward(laid_out(dy, layout), saved)
        assert np.isnan(dx).sum() == 1


@layouts
def test_nan_and_infinity_spread_through_means(xp, layout):
    x = np.ones((1, 3, 6, 6), np.float32)
    x[0, 0, 0, 0], x[0, 1, 2, 2], x[0, 2, :2, 0] = np.nan, np.inf, [np.inf, -np.inf]
    y = xp.asnumpy(ops.avg_pool2d(xp.asarray(laid_out(x, layout)), 2))
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isposinf(y[0, 1, 1, 1])
    assert np.isnan(y[0, 2, 0, 0])
    assert np.isfinite(y).sum() == y.size - 3
    assert (y[np.isfinite(y)] == 1).all()


# Same bits --------------------------------------------------------------------------------------------


def gradients(x, window, layout):
    """Both gradients and the saved offsets, as bytes."""
    y, saved = ops.max_pool2d(laid_out(x, layout), save=True, **window)
    dy = laid_out(np.random.default_rng(11).standard_normal(y.shape).astype(x.dtype), layout)
    mean = ops.avg_pool2d(laid_out(x, layout), **window)
    of_mean = ops.avg_pool2d_backward(dy, laid_out(x, layout), **window)
    return tuple(a.tobytes() for a in (y, saved[0], ops.max_pool2d_backward(dy, saved), mean, of_mean))


@by_case
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_on_every_instruction_set(every_isa, shape, window, layout, dtype):
    x = np.random.default_rng(12).standard_normal(shape).astype(dtype)
    assert len(set(every_isa(lambda: gradients(x, window, layout)))) == 1


@pytest.mark.parametrize(
    "window",
    [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 1}],
)
@pytest.mark.parametrize("channels", [6, 40])
@layouts
def test_same_bits_for_any_number_of_threads(set_threads, isa, window, channels, layout):
    """Large enough for several chunks."""
    x = np.random.default_rng(13).standard_normal((5, channels, 66, 70)).astype(np.float32)
    results = set()
    for n in (1, 2, 3):
        set_threads(n)
        results.add(gradients(x, window, layout))
    assert len(results) == 1


@layouts
@pytest.mark.parametrize("window", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_large_results_are_stored_right(layout, window):
    """From 32 MiB on results go past the caches."""
    x = np.random.default_rng(14).standard_normal((8, 32, 192, 192), dtype=np.float32)
    y, saved = ops.max_pool2d(laid_out(x, layout), save=True, **window)
    np.testing.assert_array_equal(y[3:4], ops.max_pool2d(laid_out(x[3:4], layout), **window))
    dx = ops.max_pool2d_backward(laid_out(y, layout), saved)
    _, part = ops.max_pool2d(laid_out(x[3:4], layout), save=True, **window)
    np.testing.assert_array_equal(dx[3:4], ops.max_pool2d_backward(laid_out(y[3:4], layout), part))


@pytest.mark.parametrize("kernel", [2, 3])
@layouts
def test_nothing_is_written_beside_the_result(kernel, layout, isa):
    """Whole vectors are stored where only part of one is meant; never beyond the array."""
    x = np.random.default_rng(15).standard_normal((1, 3, 9, 9)).astype(np.float32)
    expected = ops.max_pool2d(laid_out(x, layout), kernel, 2)
    memory = np.full(expected.size + 64, 7, np.float32)
    out = memory[32 : 32 + expected.size].reshape(expected.shape if layout == "contiguous" else (1, 4, 4, 3))
    out = out if layout == "contiguous" else out.transpose(0, 3, 1, 2)
    assert ops.max_pool2d(laid_out(x, layout), kernel, 2, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()


# Gradients, PyTorch, arguments ------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("window", [CASES[0][1], CASES[5][1], CASES[11][1]])
def test_gradients_agree_with_finite_differences(layout, window):
    rng = np.random.default_rng(16)
    x = laid_out(rng.permutation(2 * 3 * 7 * 6).reshape(2, 3, 7, 6) * 0.01, layout)
    assert gradcheck(lambda t: ops.max_pool2d(t, **window), [x])
    assert gradcheck(lambda t: ops.avg_pool2d(t, **window), [x])
    assert gradcheck(lambda t: ops.avg_pool2d(t, count_include_pad=False, **window), [x])


@given(seed=seeds, dtype=dtypes)
def test_torch_agrees(seed, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 3)), int(rng.integers(1, 20)), *map(int, rng.integers(4, 40, 2)))
    kernel = tuple(map(int, rng.integers(1, 5, 2)))
    stride = tuple(map(int, rng.integers(1, 4, 2)))
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    ceil_mode, include_pad = bool(rng.integers(2)), bool(rng.integers(2))
    if rng.random() < 0.5:  # the usual windows, more often than chance has them
        kernel, stride, padding = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1))][rng.integers(2)]
    x = rng.integers(-9, 10, shape).astype(dtype)
    layout = ["contiguous", "channels-last"][rng.integers(2)]
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    theirs, winners = torch.nn.functional.max_pool2d(
        leaf, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True
    )
    y, indices = ops.max_pool2d(
        laid_out(x, layout), kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True
    )
    np.testing.assert_array_equal(y, theirs.detach().numpy())
    np.testing.assert_array_equal(indices, winners.numpy())
    dy = rng.integers(-9, 10, y.shape).astype(dtype)
    theirs.backward(torch.from_numpy(dy))
    _, saved = ops.max_pool2d(laid_out(x, layout), kernel, stride, padding, ceil_mode=ceil_mode, save=True)
    dx = ops.max_pool2d_backward(laid_out(dy, layout), saved)
    np.testing.assert_array_equal(dx, leaf.grad.numpy())
    arguments = (kernel, stride, padding, ceil_mode, include_pad)
    leaf.grad = None
    theirs = torch.nn.functional.avg_pool2d(leaf, *arguments)
    theirs.backward(torch.from_numpy(dy))
    tolerance = 16 * UNIT[dtype] * 9
    y = ops.avg_pool2d(laid_out(x, layout), *arguments)
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=0, atol=tolerance)
    dx = ops.avg_pool2d_backward(laid_out(dy, layout), laid_out(x, layout), *arguments)
    np.testing.assert_allclose(dx, leaf.grad.numpy(), rtol=0, atol=16 * tolerance)


@layouts
def test_no_images_and_no_channels(xp, layout):
    for shape in ((0, 3, 6, 6), (2, 0, 6, 6)):
        x = xp.asarray(laid_out(np.empty(shape, np.float32), layout))
        y, saved = ops.max_pool2d(x, 2, save=True)
        assert y.shape == (*shape[:2], 3, 3)
        assert ops.max_pool2d_backward(y, saved).shape == shape
        assert ops.avg_pool2d(x, 3, 2, 1).shape == (*shape[:2], 3, 3)
        assert ops.avg_pool2d_backward(y, x, 2).shape == shape
        assert ops.global_avg_pool2d(x).shape == (*shape[:2], 1, 1)


@pytest.mark.parametrize("function", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": 7}, "smaller than the window"),
        ({"kernel_size": 2**62}, "kernel_size|smaller"),
        ({"kernel_size": (2, 2, 2)}, "kernel_size"),
        ({"kernel_size": 2, "stride": 0}, "stride"),
        ({"kernel_size": 2, "padding": 2}, "padding"),
        ({"kernel_size": 2, "padding": -1}, "padding"),
    ],
)
def test_refusals(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(np.zeros((1, 1, 6, 6), np.float32), **arguments)


def test_refusals_of_arrays():
    x = np.zeros((1, 2, 6, 6), np.float32)
    for bad in (x[0], x[None], x[:, :, :0]):
        with pytest.raises(ValueError, match="x"):
            ops.max_pool2d(bad, 2)
    with pytest.raises(TypeError, match="x"):
        ops.max_pool2d(x.astype(np.int32), 2)
    with pytest.raises(ValueError, match="divisor_override"):
        ops.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(ValueError, match="output_size"):
        ops.adaptive_avg_pool2d(x, (1, 2, 3))
    y, saved = ops.max_pool2d(x, 2, save=True)
    for bad in (y[:, :1], y[..., :2], y[0]):
        with pytest.raises(ValueError, match="dy"):
            ops.max_pool2d_backward(bad, saved)
    with pytest.raises(TypeError):
        ops.max_pool2d_backward(y.astype(np.int64), saved)
    with pytest.raises(ValueError, match="saved"):
        ops.max_pool2d_backward(y, None)
    for out in (y[:, :1].copy(), np.zeros(y.shape, np.float64), x):
        with pytest.raises((ValueError, TypeError), match="out"):
            ops.max_pool2d(x, 2, out=out)
