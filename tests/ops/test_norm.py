"""Normalisation beyond the properties that all operators share: gradients, hard data, running statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import ops
from brasa.testing import gradcheck
from descriptors import UNIT
from references import norm as reference

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
BATCHES = [(8, 5), (3, 17, 9), (4, 3, 7, 6), (2, 40, 5, 3), (3, 2, 2, 3, 4), (1, 3, 70, 65), (300, 2)]
ROWS = [(4, 1), (5, 2), (3, 16), (7, 33), (2, 3, 100), (2, 1000), (300, 5)]


def laid_out(x, layout):
    if layout == "contiguous" or x.ndim < 3:
        return np.ascontiguousarray(x)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def within(got, expected, bound):
    error = np.abs(np.asarray(got, np.float64) - expected)
    assert np.all(error <= bound + 1e-44), float((error / (bound + 1e-44)).max())


# Values and gradients ---------------------------------------------------------------------------------


def check_batch(xp, x, weight, bias, dy, training, running=(None, None)):
    """Result and gradients of one call against the reference in float64."""
    unit, axes, count = UNIT[x.dtype.type], (0, *range(2, x.ndim)), x.size / x.shape[1]
    on_device = [xp.asarray(a) if a is not None else None for a in (weight, bias, *running)]
    y, saved = ops.batch_norm(xp.asarray(x), *on_device, training, eps=1e-3, save=True)
    if training:
        mean, var = reference.batch_statistics(x.astype(np.float64))
    else:
        mean, var = wide(*running)
    mean, var, gain, shift = (reference.over_channels(v, x) for v in (mean, var, *wide(weight, bias)))
    rstd = 1 / np.sqrt(var + 1e-3)
    expected = (x - mean) * rstd * gain + shift
    within(
        xp.asnumpy(y),
        expected,
        reference.error_bound(*wide(x), mean, var, 1e-3, count, gain, expected, 0, unit),
    )
    results = ops.batch_norm_backward(xp.asarray(dy), xp.asarray(x), on_device[0], training, saved=saved)
    dx, dweight, dbias = (xp.asnumpy(g) for g in results[:3])
    expected, xhat = reference.backward(*wide(dy, x), axes, mean, rstd, gain, fixed=not training)
    bound = reference.backward_bound(*wide(dy), xhat, mean, rstd, gain, axes, count, unit)
    within(dx, expected, bound)
    g = dy.astype(np.float64)
    chain = (16 + count / 16) * unit
    within(dbias, g.sum(axes), chain * np.abs(g).sum(axes))
    within(
        dweight,
        (g * xhat).sum(axes),
        chain * (np.abs(g) * (2 + np.abs(xhat) + np.abs(mean) * rstd)).sum(axes) * 2,
    )


@pytest.mark.parametrize("shape", BATCHES, ids=str)
@layouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm(xp, shape, layout, training, dtype):
    if xp.name != "cpu" and np.prod(shape) > 3000:
        shape = (1, 2, 9, 8)
    rng = np.random.default_rng(1)
    x = laid_out(normal(rng, dtype, *shape) * dtype(2) + dtype(3), layout)
    vectors = normal(rng, dtype, shape[1]), normal(rng, dtype, shape[1])
    running = normal(rng, dtype, shape[1]), np.abs(normal(rng, dtype, shape[1])) + dtype(0.1)
    dy = laid_out(normal(rng, dtype, *shape), layout)
    check_batch(xp, x, *vectors, dy, training, (None, None) if training else running)


# With packs of neighbours and without; the last has threads with more than they take at once.
@pytest.mark.parametrize("shape", [(2, 36, 68, 64), (3, 35, 61, 61), (2, 530, 36, 36)], ids=str)
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_of_more_than_one_block_adds_up(device, shape, layout, dtype):
    rng = np.random.default_rng(2)
    x, dy = (laid_out(normal(rng, dtype, *shape) * dtype(2) + dtype(3), layout) for _ in range(2))
    check_batch(device, x, normal(rng, dtype, shape[1]), normal(rng, dtype, shape[1]), dy, True)


def check_rows(xp, x, weight, bias, dy, eps=1e-3):
    unit, n = UNIT[x.dtype.type], x.shape[-1]
    y, saved = ops.layer_norm(*map(xp.asarray, (x, weight, bias)), eps, save=True)
    exact, gain, shift = wide(x, weight, bias)
    mean, var = exact.mean(-1, keepdims=True), exact.var(-1, keepdims=True)
    expected, rstd = reference.layer_norm(exact, gain, shift, eps), 1 / np.sqrt(var + eps)
    for i in np.ndindex(*x.shape[:-1]):
        bound = reference.error_bound(exact[i], mean[i], var[i], eps, n, gain, expected[i], 0, unit)
        within(xp.asnumpy(y)[i], expected[i], bound)
    dx, dweight, dbias, _ = ops.layer_norm_backward(*map(xp.asarray, (dy, x, weight)), saved=saved)
    expected, xhat = reference.backward(*wide(dy), exact, -1, mean, rstd, gain)
    within(xp.asnumpy(dx), expected, reference.backward_bound(*wide(dy), xhat, mean, rstd, gain, -1, n, unit))
    axes, g = tuple(range(x.ndim - 1)), dy.astype(np.float64)
    chain = (16 + min(128, x.size / n) + x.size / n / 128 + n / 16) * unit
    within(xp.asnumpy(dbias), g.sum(axes), chain * np.abs(g).sum(axes))
    within(
        xp.asnumpy(dweight),
        (g * xhat).sum(axes),
        chain * (np.abs(g) * (2 + np.abs(xhat) + np.abs(mean) * rstd)).sum(axes) * 2,
    )


@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layer_norm(xp, shape, dtype):
    if xp.name != "cpu" and np.prod(shape) > 1000:
        shape = (2, 300)
    rng = np.random.default_rng(2)
    x = normal(rng, dtype, *shape) * dtype(2) - dtype(1)
    check_rows(
        xp, x, normal(rng, dtype, shape[-1]), normal(rng, dtype, shape[-1]), normal(rng, dtype, *shape)
    )


@pytest.mark.parametrize("width", [131, 256, 515, 1028, 4099, 8196, 16387, 32772])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layer_norm_of_all_widths(device, width, dtype):
    """Rows of few threads, a warp, a block and a large one, kept and read again, in packs and one by one."""
    rng = np.random.default_rng(width)
    x, dy = (normal(rng, dtype, 3, width) * dtype(2) - dtype(1) for _ in range(2))
    check_rows(device, x, normal(rng, dtype, width), normal(rng, dtype, width), dy)


@layouts
def test_batch_norm_is_exact_on_integers_and_powers_of_two(xp, layout):
    rng = np.random.default_rng(3)
    x, dy = (laid_out(rng.integers(-8, 9, (3, 5, 4, 7)).astype(np.float32), layout) for _ in range(2))
    mean, weight, bias = (rng.integers(-3, 4, 5).astype(np.float32) for _ in range(3))
    on_device = map(xp.asarray, (x, weight, bias, mean, np.full(5, 4, np.float32)))
    y, saved = ops.batch_norm(*on_device, eps=0, save=True)
    mean, gain, shift = (reference.over_channels(v, x) for v in (mean, weight, bias))
    np.testing.assert_array_equal(xp.asnumpy(y), (x - mean) / 2 * gain + shift)
    gradients = ops.batch_norm_backward(xp.asarray(dy), xp.asarray(x), xp.asarray(weight), saved=saved)
    dx, dweight, dbias, dresidual = map(xp.asnumpy, gradients)
    np.testing.assert_array_equal(dx, dy * gain / 2)
    np.testing.assert_array_equal(dweight, (dy * (x - mean) / 2).sum((0, 2, 3)))
    np.testing.assert_array_equal(dbias, dy.sum((0, 2, 3)))
    np.testing.assert_array_equal(dresidual, dy)


@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2)])
def test_the_fused_epilogue_is_the_chain(xp, activation):
    rng = np.random.default_rng(4)
    x, residual, dy = (xp.asarray(normal(rng, np.float64, 3, 4, 5, 6)) for _ in range(3))
    chains = (
        (ops.batch_norm, ops.batch_norm_backward, {"training": True}, {"training": True}),
        (ops.layer_norm, ops.layer_norm_backward, {"normalized_ndim": 2}, {"normalized_ndim": 2}),
    )
    for forward, backward, options, back_options in chains:
        plain, plain_saved = forward(x, **options, save=True)
        y, saved = forward(x, **options, residual=residual, activation=activation, save=True)
        before = plain + residual
        expected = ops.activation(before, activation)
        np.testing.assert_allclose(xp.asnumpy(y), xp.asnumpy(expected), rtol=1e-13, atol=1e-13)
        needs = ops.ACTIVATIONS[activation if isinstance(activation, str) else activation[0]].needs
        g = ops.activation_backward(dy, before if needs == "x" else expected, activation)
        dx, _, dbias, dresidual = backward(dy, x, **back_options, activation=activation, y=y, saved=saved)
        wanted = backward(g, x, **back_options, saved=plain_saved)
        for got, want in ((dx, wanted[0]), (dbias, wanted[2]), (dresidual, g)):
            np.testing.assert_allclose(xp.asnumpy(got), xp.asnumpy(want), rtol=1e-11, atol=1e-11)


@layouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 33, 3, 5), (4, 64, 7, 7), (70, 3)])
def test_the_relu_behind_is_taken_along(xp, isa, layout, training, shape):
    """The kernel finds again where a relu passed: the bits of a pass of its own, infinities included."""
    rng = np.random.default_rng(sum(shape))
    for dtype in (np.float32, np.float64):
        x, dy = (laid_out(normal(rng, dtype, *shape), layout) for _ in range(2))
        x[0], dy[0, 0] = x.mean(), -np.inf  # the first are close to the mean, or where the relu stops
        x, dy, weight, bias, mean = map(xp.asarray, (x, dy, *normal(rng, dtype, 3, shape[1])))
        for vectors in ((weight, bias), (None, None)):
            arguments = (*vectors, mean, weight * weight + 1, training)
            with np.errstate(invalid="ignore"):
                y, saved = ops.batch_norm(x, *arguments, activation="relu", save=True)
                both = [
                    ops.batch_norm_backward(
                        dy, x, vectors[0], training, "relu", bias=vectors[1], y=y, saved=saved, mask=mask
                    )
                    for mask in ((True, True, True, False), (True, True, True, True))
                ]
            for got, wanted in zip(both[0][:3], both[1][:3], strict=True):
                np.testing.assert_array_equal(xp.asnumpy(got), xp.asnumpy(wanted))
            assert both[0][3] is None


@layouts
def test_gradients_agree_with_finite_differences(layout):
    rng = np.random.default_rng(5)
    x, residual = (laid_out(rng.standard_normal((3, 4, 3, 2)), layout) for _ in range(2))
    weight, bias = rng.standard_normal((2, 4))

    def batch(x, weight, bias, residual):
        return ops.batch_norm(x, weight, bias, training=True, activation="silu", residual=residual)

    def layer(x, weight, bias):
        return ops.layer_norm(x, weight, bias, normalized_ndim=2, activation="tanh")

    assert gradcheck(batch, [x, weight, bias, residual])
    assert gradcheck(layer, [x, rng.standard_normal((3, 2)), rng.standard_normal((3, 2))])


# Hard data --------------------------------------------------------------------------------------------


@layouts
def test_batch_norm_where_the_mean_is_ten_thousand_deviations(xp, layout):
    """E[x^2] - E[x]^2 in float32 would leave no digit of the variance."""
    rng = np.random.default_rng(6)
    x = laid_out(normal(rng, np.float32, 4, 3, 17, 9) + np.float32(1e4), layout)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    y = xp.asnumpy(ops.batch_norm(xp.asarray(x), xp.asarray(one), xp.asarray(zero), training=True, eps=0))
    mean, var = (reference.over_channels(v, x) for v in reference.batch_statistics(x.astype(np.float64)))
    expected = (x - mean) / np.sqrt(var)
    within(
        y,
        expected,
        reference.error_bound(*wide(x), mean, var, 0, x.size / 3, 1, expected, 0, UNIT[np.float32]),
    )
    assert abs(y.astype(np.float64).std() - 1) < 1e-3


def test_layer_norm_where_the_mean_is_ten_thousand_deviations(xp):
    rng = np.random.default_rng(7)
    x = normal(rng, np.float32, 3, 257) + np.float32(1e4)
    check_rows(xp, x, np.ones(257, np.float32), np.zeros(257, np.float32), normal(rng, np.float32, 3, 257), 0)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4, 1e-30, 0.1])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 100, 1000])
def test_constant_rows_give_the_bias(xp, value, n):
    x = np.full((3, n), value, np.float32)
    bias = np.linspace(-1, 1, n, dtype=np.float32)
    y = xp.asnumpy(ops.layer_norm(xp.asarray(x), None, xp.asarray(bias)))
    # The mean errs by half a unit of the value, which eps alone divides.
    within(y, np.broadcast_to(bias, y.shape), abs(value) * UNIT[np.float32] * (1e-5**-0.5) + 1e-7)


@layouts
def test_constant_channels_give_the_bias(xp, layout):
    x = laid_out(
        np.broadcast_to(reference.over_channels([0, 3, -1e4, 0.1], np.empty((2, 4, 9, 8))), (2, 4, 9, 8)),
        layout,
    )
    bias = np.float32([1, 2, 3, 4])
    y = xp.asnumpy(ops.batch_norm(xp.asarray(x.astype(np.float32)), None, xp.asarray(bias), training=True))
    within(y, reference.over_channels(bias, y), 1e4 * UNIT[np.float32] * 1e-5**-0.5 + 1e-6)


def test_one_element(xp):
    x = xp.asarray(np.float32([[5], [-2]]))
    bias = xp.asarray(np.float32([0.5]))
    assert (xp.asnumpy(ops.layer_norm(x, None, bias)) == 0.5).all()
    assert (xp.asnumpy(ops.layer_norm(x, None, bias, eps=1e-12)) == 0.5).all()
    single = xp.asarray(np.full((1, 3), 7, np.float32))
    with pytest.raises(ValueError, match="more than one value"):
        ops.batch_norm(single, training=True)
    mean, var = xp.asarray(np.full(3, 5, np.float32)), xp.asarray(np.full(3, 4, np.float32))
    assert (xp.asnumpy(ops.batch_norm(single, None, None, mean, var, eps=0)) == 1).all()


@layouts
def test_nan_and_infinity_stay_in_their_channel(xp, layout):
    x = np.random.default_rng(8).standard_normal((2, 40, 3, 5)).astype(np.float32)
    x[0, 1, 2, 3], x[1, 37, 0, 0] = np.nan, np.inf
    y = xp.asnumpy(ops.batch_norm(xp.asarray(laid_out(x, layout)), training=True))
    spoiled = np.isnan(y).any((0, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(spoiled), [1, 37])
    assert np.isnan(y[:, 1]).all()


def test_nan_and_infinity_stay_in_their_row(xp):
    x = np.random.default_rng(9).standard_normal((5, 33)).astype(np.float32)
    x[1, 32], x[3, 0] = np.nan, -np.inf
    y = xp.asnumpy(ops.layer_norm(xp.asarray(x)))
    np.testing.assert_array_equal(np.isnan(y).any(1), [False, True, False, True, False])
    assert np.isnan(y[1]).all()


# Running statistics -----------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.0, 1.0])
def test_running_statistics(xp, layout, dtype, momentum):
    """running = (1 - momentum) running + momentum batch, with the unbiased variance; written in place."""
    rng = np.random.default_rng(10)
    mean, var = normal(rng, dtype, 6), np.abs(normal(rng, dtype, 6))
    running = xp.asarray(mean.copy()), xp.asarray(var.copy())
    expected = wide(mean, var)
    for _ in range(3):
        x = laid_out(normal(rng, dtype, 4, 6, 3, 5) * dtype(3) + dtype(2), layout)
        ops.batch_norm(xp.asarray(x), None, None, *running, True, momentum)
        of_batch = x.mean((0, 2, 3), dtype=np.float64), x.astype(np.float64).var((0, 2, 3), ddof=1)
        expected = [(1 - momentum) * a + momentum * b for a, b in zip(expected, of_batch, strict=True)]
    for got, want in zip(running, expected, strict=True):
        np.testing.assert_allclose(xp.asnumpy(got), want, rtol=24 * UNIT[dtype], atol=24 * UNIT[dtype])


def test_running_statistics_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    ours = np.zeros(7, np.float32), np.ones(7, np.float32)
    theirs = torch.zeros(7), torch.ones(7)
    for _ in range(4):
        x = normal(rng, np.float32, 6, 7, 5, 4)
        y = ops.batch_norm(x, None, None, *ours, True, 0.3)
        expected = torch.nn.functional.batch_norm(torch.from_numpy(x), *theirs, training=True, momentum=0.3)
        np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=3e-6)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-7)
    y = ops.batch_norm(x, None, None, *ours)
    expected = torch.nn.functional.batch_norm(torch.from_numpy(x), *theirs)
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=3e-6)


def test_only_training_writes_running_statistics(xp):
    x = xp.asarray(np.random.default_rng(12).standard_normal((4, 3)).astype(np.float32))
    running = xp.asarray(np.float32([1, 2, 3])), xp.asarray(np.float32([4, 5, 6]))
    ops.batch_norm(x, None, None, *running)
    np.testing.assert_array_equal(xp.asnumpy(running[0]), [1, 2, 3])
    np.testing.assert_array_equal(xp.asnumpy(running[1]), [4, 5, 6])


# Same bits, PyTorch, arguments ------------------------------------------------------------------------


def all_bits(x, dy):
    """Results and gradients of both norms, as bytes."""
    y, saved = ops.batch_norm(x, training=True, save=True)
    results = [y, *saved[:2], *ops.batch_norm_backward(dy, x, training=True, saved=saved)[:3]]
    y, saved = ops.layer_norm(x, save=True)
    results += [y, *saved[:2], *ops.layer_norm_backward(dy, x, saved=saved)[:3]]
    return tuple(a.tobytes() for a in results)


@pytest.mark.parametrize("shape", [*BATCHES, (5, 33, 20, 31)], ids=str)
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_on_every_instruction_set(every_isa, shape, layout, dtype):
    rng = np.random.default_rng(13)
    x, dy = (laid_out(normal(rng, dtype, *shape), layout) for _ in range(2))
    assert len(set(every_isa(lambda: all_bits(x, dy)))) == 1


@layouts
def test_same_bits_for_any_number_of_threads(set_threads, isa, layout):
    rng = np.random.default_rng(14)
    x, dy = (laid_out(normal(rng, np.float32, 9, 35, 30, 41), layout) for _ in range(2))
    results = set()
    for n in (1, 2, 3):
        set_threads(n)
        results.add(all_bits(x, dy))
    assert len(results) == 1


def test_streamed_rows_have_the_bits_of_cached_ones(isa):
    """Results of 16 MiB and more go past the caches; those of a half of the rows do not."""
    rng = np.random.default_rng(3)
    x, dy = normal(rng, np.float32, 4104, 1024), normal(rng, np.float32, 4104, 1024)
    weight, bias = normal(rng, np.float32, 1024), normal(rng, np.float32, 1024)
    y, saved = ops.layer_norm(x, weight, bias, save=True)
    dx = ops.layer_norm_backward(dy, x, weight, saved=saved)[0]
    for part in (slice(2052), slice(2052, None)):
        y_part, saved_part = ops.layer_norm(x[part], weight, bias, save=True)
        dx_part = ops.layer_norm_backward(dy[part], x[part], weight, saved=saved_part)[0]
        assert y[part].tobytes() == y_part.tobytes()
        assert dx[part].tobytes() == dx_part.tobytes()


@layouts
def test_streamed_images_have_the_bits_of_cached_ones(isa, layout):
    rng = np.random.default_rng(4)
    x, dy = (laid_out(normal(rng, np.float32, 18, 64, 60, 64), layout) for _ in range(2))
    vectors = [normal(rng, np.float32, 64) for _ in range(3)] + [np.ones(64, np.float32)]
    y, saved = ops.batch_norm(x, *vectors, save=True)
    dx = ops.batch_norm_backward(dy, x, vectors[0], saved=saved)[0]
    for part in (slice(9), slice(9, None)):
        y_part, saved_part = ops.batch_norm(x[part], *vectors, save=True)
        dx_part = ops.batch_norm_backward(dy[part], x[part], vectors[0], saved=saved_part)[0]
        np.testing.assert_array_equal(y[part], y_part)
        np.testing.assert_array_equal(dx[part], dx_part)


@pytest.mark.parametrize("shape", [(64, 32, 64, 65), (40000, 200)])
def test_large_results_are_stored_right(shape):
    """Results that exceed the caches may be written past them."""
    rng = np.random.default_rng(15)
    x = rng.standard_normal(shape, dtype=np.float32)
    y, saved = ops.layer_norm(x, save=True)
    np.testing.assert_array_equal(y[5:6], ops.layer_norm(x[5:6]))
    dx, *_ = ops.layer_norm_backward(y, x, saved=saved)
    _, part = ops.layer_norm(x[5:6], save=True)
    np.testing.assert_array_equal(dx[5:6], ops.layer_norm_backward(y[5:6], x[5:6], saved=part)[0])
    for layout in ("contiguous", "channels-last"):
        x = laid_out(x, layout)
        mean, var = reference.batch_statistics(x[:, :2].astype(np.float64))
        y = ops.batch_norm(x, training=True)
        want = (x[:, :2] - reference.over_channels(mean, x)) / np.sqrt(reference.over_channels(var, x) + 1e-5)
        np.testing.assert_allclose(y[:, :2], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 200, 14, 13), (3, 40, 101, 91)], ids=str)
def test_a_channel_of_a_large_batch_is_as_it_is_alone(isa, shape):
    """Groups of channels take both passes in turn; of whole planes in a block, and of parts of planes."""
    rng = np.random.default_rng(15)
    x, dy = (normal(rng, np.float32, *shape) + np.float32(3) for _ in range(2))
    weight, bias = normal(rng, np.float32, 2, shape[1])
    for activation in (None, "relu", "silu"):

        def both(x, dy, weight, bias, activation=activation):
            running = np.zeros_like(bias), np.ones_like(bias)
            y, saved = ops.batch_norm(x, weight, bias, *running, True, activation=activation, save=True)
            gradients = ops.batch_norm_backward(dy, x, weight, True, activation, y=y, saved=saved)
            return y, *gradients[:3], *running

        whole = both(x, dy, weight, bias)
        for c in (0, 7, shape[1] - 1):
            alone = both(x[:, c : c + 1], dy[:, c : c + 1], weight[c : c + 1], bias[c : c + 1])
            for got, expected in zip(whole, alone, strict=True):
                part = got[:, c : c + 1] if got.ndim > 1 else got[c : c + 1]
                np.testing.assert_array_equal(part, expected)


@given(seed=seeds, dtype=dtypes)
def test_torch_agrees(seed, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    shape = (
        int(rng.integers(2, 6)),
        int(rng.integers(1, 40)),
        *map(int, rng.integers(1, 9, rng.integers(0, 3))),
    )
    x, dy = normal(rng, dtype, *shape) * dtype(2) + dtype(1), normal(rng, dtype, *shape)
    weight, bias = normal(rng, dtype, 2, shape[1])
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, weight, bias)]
    theirs = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=1e-2)
    y, saved = ops.batch_norm(x, weight, bias, training=True, eps=1e-2, save=True)
    tolerance = {"rtol": 0, "atol": 4096 * UNIT[dtype]}
    np.testing.assert_allclose(y, theirs.detach().numpy(), **tolerance)
    expected = torch.autograd.grad(theirs, leaves, torch.from_numpy(dy))
    got = ops.batch_norm_backward(dy, x, weight, True, saved=saved)
    for ours, want in zip(got, expected, strict=False):
        np.testing.assert_allclose(ours, want.numpy(), rtol=0, atol=16 * 4096 * UNIT[dtype])
    rows = np.ascontiguousarray(x.reshape(shape[0], -1))
    np.testing.assert_allclose(
        ops.layer_norm(rows),
        torch.nn.functional.layer_norm(torch.from_numpy(rows), rows.shape[1:]).numpy(),
        **tolerance,
    )


def test_nothing_to_normalise(xp):
    empty = xp.asarray(np.empty((0, 3, 4), np.float32))
    vectors = [xp.asarray(np.ones(3, np.float32)) for _ in range(4)]
    y, saved = ops.batch_norm(empty, *vectors, save=True)
    assert y.shape == (0, 3, 4)
    dx, dweight, dbias, _ = ops.batch_norm_backward(empty, empty, vectors[0], saved=saved)
    assert dx.shape == (0, 3, 4)
    assert (xp.asnumpy(dweight) == 0).all()
    assert (xp.asnumpy(dbias) == 0).all()
    assert ops.batch_norm(xp.asarray(np.empty((4, 0, 2), np.float32)), training=True).shape == (4, 0, 2)
    with pytest.raises(ValueError, match="more than one value"):
        ops.batch_norm(empty, training=True)
    y, saved = ops.layer_norm(empty, save=True)
    assert y.shape == (0, 3, 4)
    _, dweight, dbias, _ = ops.layer_norm_backward(empty, empty, saved=saved)
    assert (xp.asnumpy(dweight) == 0).all()
    assert (xp.asnumpy(dbias) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "running_mean"),
        ({"running_mean": np.zeros(3, np.float32)}, "running_var"),
        ({"running_mean": np.zeros(2, np.float32), "running_var": np.ones(3, np.float32)}, "running_mean"),
        ({"training": True, "weight": np.ones(2, np.float32)}, "weight"),
        ({"training": True, "bias": np.ones((3, 1), np.float32)}, "bias"),
        ({"training": True, "residual": np.ones((4, 3, 1), np.float32)}, "residual"),
        ({"training": True, "eps": -1.0}, "eps"),
        ({"training": True, "eps": float("nan")}, "eps"),
        ({"training": True, "activation": "nonsense"}, "activation|nonsense"),
    ],
)
def test_refusals_of_batch_norm(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.batch_norm(np.zeros((4, 3, 2), np.float32), **arguments)


def test_refusals():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(TypeError, match="float32"):
        ops.batch_norm(x, np.ones(3), training=True)
    with pytest.raises(TypeError, match="x"):
        ops.layer_norm(x.astype(np.int64))
    with pytest.raises(TypeError, match="momentum"):
        ops.batch_norm(x, training=True, momentum=None)
    for bad in (0, 3, -1):
        with pytest.raises(ValueError, match="normalized_ndim"):
            ops.layer_norm(x, normalized_ndim=bad)
    with pytest.raises(ValueError, match="weight"):
        ops.layer_norm(x, np.ones(4, np.float32))
    with pytest.raises(ValueError, match="at least one element"):
        ops.layer_norm(x[:, :0])
    y, saved = ops.layer_norm(x, save=True)
    with pytest.raises(ValueError, match="dy"):
        ops.layer_norm_backward(y[:2], x, saved=saved)
    with pytest.raises(ValueError, match="saved"):
        ops.layer_norm_backward(y, x, saved=None)
    with pytest.raises(ValueError, match="y"):
        ops.layer_norm_backward(y, x, activation="relu", saved=saved)
    frozen = np.zeros(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        ops.batch_norm(
            x + np.arange(4, dtype=np.float32)[:, None], None, None, frozen, np.ones(3, np.float32), True
        )
