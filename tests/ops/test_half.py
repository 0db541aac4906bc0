"""Operators on arrays of 16 bits: against float64, within the bound of float32 and one rounding more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brasa import _backend, ops
from brasa.tensor import Tensor
from descriptors import UNIT, all_operators
from layouts import check_gradients, weights_of

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
ROUNDING = {HALVES[0]: 2.0**-11, HALVES[1]: 2.0**-8}
LEAST = {HALVES[0]: 2.0**-25, HALVES[1]: 2.0**-134}  # half of the smallest number above 0
LARGEST = {HALVES[0]: 65504.0, HALVES[1]: 3.3895e38}
every_half = pytest.mark.parametrize("half", HALVES, ids=str)
seeds = st.integers(0, 2**32 - 1)

# Families whose kernels take 16 bits, and the arrays that then stay float32 beside them.
STAY_WIDE = {
    "batch_norm": {"weight", "bias", "running_mean", "running_var"},
    "layer_norm": {"weight", "bias"},
    "cross_entropy": {"targets", "weight"},
}
WITHOUT = {
    "attention",
    "conv2d",
    "ctc_loss",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "rnn",
    "rnn_cell",
    "matmul",
}
OPERATORS = [op for op in all_operators() if op.name not in WITHOUT]


def is_float(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def narrowed(op, seed, half):
    """A call's arguments, the floating arrays rounded to `half` where the operator takes it."""
    arguments = op.sample(np.random.default_rng(seed), np.float32)
    return {
        k: v.astype(half) if is_float(v) and k not in STAY_WIDE.get(op.name, ()) else v
        for k, v in arguments.items()
    }


def widened(arguments, dtype):
    """The same values in float32 or float64."""
    return {
        k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind in "fV" else v
        for k, v in arguments.items()
    }


def moved(device, arguments):
    return {k: device.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def function(op):
    return getattr(ops, op.name)


def rounded(value, half):
    """How far a number within float32's error of `value` may be from it, after one rounding to `half`."""
    return ROUNDING[half] * np.abs(value) + LEAST[half]


@pytest.mark.parametrize("op", OPERATORS, ids=str)
@every_half
@given(seed=seeds)
def test_results_are_those_of_float32_rounded_once(op, device, half, seed):
    arguments = narrowed(op, seed, half)
    got = device.asnumpy(function(op)(**moved(device, arguments)))
    exact = widened(arguments, np.float64)
    want = np.asarray(op.reference(**exact))
    assert got.dtype == (np.float32 if op.name == "cross_entropy" else half)
    with np.errstate(all="ignore"):
        bound = op.bound(exact, want, UNIT[np.float32])
        if got.dtype == half:
            bound = bound * (1 + ROUNDING[half]) + rounded(want, half)
        error = np.abs(got.astype(np.float64) - want)
    overflow = (np.abs(want) + bound > LARGEST[half]) & np.isinf(got)
    assert np.all((error <= bound) | overflow)


def gradients(op, arguments, device):
    """The gradients of the result times numbers that are exact in every dtype."""
    given = moved(device, arguments)
    given |= {name: Tensor(given[name], requires_grad=True) for name in op.gradients}
    result = function(op)(**given)
    result.backward(device.asarray(weights_of(result)))
    return {name: device.asnumpy(given[name].grad.data) for name in op.gradients}


# Roundings on the way that are not the last one, in units of the result or of dy (at most 2): y, from which
# some derivatives are computed; and every step of those that are made of other operators.
STEPS = {"erf": 24.0}


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.gradients], ids=str)
@every_half
@given(seed=seeds)
def test_gradients_are_those_of_float32(op, device, half, seed):
    arguments = narrowed(op, seed, half)
    if op.name in ("exp", "expm1") and half == np.float16:
        arguments["x"] = np.minimum(arguments["x"], half.type(10))  # no infinities
    got = gradients(op, arguments, device)
    want = gradients(op, widened(arguments, np.float32), device)
    for name, gradient in got.items():
        exact = want[name].astype(np.float64)
        assert gradient.dtype == arguments[name].dtype
        assert gradient.shape == exact.shape
        scale = np.abs(exact).max(initial=0) + 2
        bound = 256 * UNIT[np.float32] * scale
        if gradient.dtype == half:
            bound = bound + STEPS.get(op.name, 4.0) * (ROUNDING[half] * (np.abs(exact) + 2) + LEAST[half])
        assert np.all(np.abs(gradient.astype(np.float64) - exact) <= bound), name


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.gradients], ids=str)
@pytest.mark.parametrize("images", ["C order", "channels-last"])
@every_half
@given(seed=seeds)
@settings(max_examples=3)
def test_gradients_are_the_same_for_any_layout_of_dy(op, device, half, images, seed):
    arguments = narrowed(op, seed, half)

    def record(move):
        given = {k: move(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        given |= {name: Tensor(given[name], requires_grad=True) for name in op.gradients}
        return [given[name] for name in op.gradients], function(op)(**given)

    with np.errstate(over="ignore"):  # exponentials
        check_gradients(record, device, images)


# Packs ------------------------------------------------------------------------------------------------

SIZES = [0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1024, 2049]


def at_an_offset(device, x, offset):
    """`x` in device memory, `offset` elements after an address that packs are aligned to."""
    room = device.asarray(np.zeros(x.size + offset, x.dtype))
    part = room[offset:]
    part[...] = device.asarray(x.ravel())
    return part.reshape(x.shape)


@every_half
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_elementwise_kernels_at_every_size_and_alignment(device, half, n, offset):
    rng = np.random.default_rng(n)
    x, dy = (rng.standard_normal(n).astype(half) for _ in range(2))
    given, gradient = at_an_offset(device, x, offset), at_an_offset(device, dy, offset)
    values = x.astype(np.float32)
    assert np.array_equal(device.asnumpy(ops.relu(given)), np.maximum(x, half.type(0)))
    dx = device.asnumpy(ops.activation_backward(gradient, given, "relu"))
    assert np.array_equal(dx, np.where(values > 0, dy, half.type(0)))
    total = at_an_offset(device, dy, offset)
    _backend.add_to(total, given)
    assert np.array_equal(device.asnumpy(total), (values + dy.astype(np.float32)).astype(half))
    kept = device.asnumpy(ops.dropout(given, 0.5, 3, 5)).astype(np.float32)
    whole = np.asarray(ops.dropout(np.ones(n, np.float32), 0.5, 3, 5))
    assert np.array_equal(kept, values * whole)


@every_half
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0, 1])
def test_casts(device, half, n, offset):
    """To nearest, ties to even, and back without a change; special numbers too."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-9, 6, n)).astype(np.float32)
    x[: n // 8] = np.resize(
        np.float32([np.inf, -np.inf, np.nan, 0.0, 1 + 2.0**-9, 1 + 2.0**-12, 1e-41]), n // 8
    )
    with np.errstate(over="ignore"):
        want = x.astype(half)
    got = _backend.cast(at_an_offset(device, x, offset), half)
    assert got.dtype == half
    assert np.array_equal(device.asnumpy(got).astype(np.float32), want.astype(np.float32), equal_nan=True)
    back = _backend.cast(at_an_offset(device, want, offset), np.float32)
    assert np.array_equal(device.asnumpy(back), want.astype(np.float32), equal_nan=True)


@every_half
def test_casts_keep_the_layout(device, half):
    x = device.asarray(np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32))
    last = _backend.to_channels_last(x)
    assert _backend.layout(_backend.cast(last, half)) == _backend.CHANNELS_LAST
    strided = _backend.cast(x[:, ::2], half)
    assert np.array_equal(device.asnumpy(strided), device.asnumpy(x)[:, ::2].astype(half))
    empty = _backend.cast(device.asarray(np.zeros((0, 3), np.float32)), half)
    assert empty.shape == (0, 3)


@every_half
@pytest.mark.parametrize(
    "shape", [(3, 8, 4, 4), (3, 16, 3, 5), (2, 33, 2, 2), (2, 40, 8, 1), (600, 8), (4, 24)], ids=str
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_in_packs_and_without(device, half, shape, channels_last):
    """Statistics and gradients of both layouts are those of the exact values in float32."""
    if channels_last and len(shape) < 3:
        pytest.skip("a matrix has one layout")
    rng = np.random.default_rng(1)
    x, dy, residual = ((rng.standard_normal(shape) + 2).astype(half) for _ in range(3))
    weight, bias = (rng.standard_normal(shape[1]).astype(np.float32) for _ in range(2))
    found = {}
    for dtype in (half, np.dtype(np.float32)):
        arrays = [device.asarray(v.astype(dtype)) for v in (x, dy, residual)]
        if channels_last:
            arrays = [move_channels(device, a) for a in arrays]
        running = [device.asarray(np.zeros(shape[1], np.float32)) for _ in range(2)]
        vectors = [device.asarray(v) for v in (weight, bias)]
        y, saved = ops.batch_norm(
            arrays[0], *vectors, *running, training=True, activation="relu", residual=arrays[2], save=True
        )
        mask = device.asarray((device.asnumpy(y).astype(np.float32) > 0).astype(dtype))
        gradient = ops.batch_norm_backward(
            arrays[1], arrays[0], vectors[0], True, "relu", y=laid_out(y, mask), saved=saved
        )
        found[dtype] = [device.asnumpy(a) for a in (y, *running, *gradient)]
        assert _backend.layout(y) == _backend.layout(arrays[0])
    for got, want in zip(found[half], found[np.dtype(np.float32)], strict=True):
        narrow = got.dtype == half
        bound = 64 * UNIT[np.float32] * np.abs(want).max() * (1 + np.sqrt(x.size / shape[1]))
        bound = bound + (ROUNDING[half] * np.abs(want) + LEAST[half] if narrow else 0)
        assert np.all(np.abs(got.astype(np.float64) - want) <= bound)


def move_channels(device, images):
    host = device.asnumpy(images)
    return device.asarray(np.moveaxis(np.ascontiguousarray(np.moveaxis(host, 1, -1)), -1, 1))


def laid_out(like, array):
    return _backend.laid_out_like(like, array)


# Windows that strips of packs know, windows they do not, and rows of packs and of single elements.
WINDOWS = [
    ((2, 8, 5, 32), {"kernel_size": 2}),
    ((1, 16, 7, 16), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 8, 6, 24), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ((1, 8, 5, 16), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((1, 8, 9, 10), {"kernel_size": 4, "stride": 3, "padding": 1}),
    ((1, 3, 6, 8), {"kernel_size": 2}),
    ((1, 8, 20, 14), {"kernel_size": (20, 14)}),
]


@every_half
@pytest.mark.parametrize(("shape", "window"), WINDOWS, ids=lambda v: str(v).replace(" ", ""))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_pooling_in_packs_and_without(device, half, shape, window, channels_last, offset):
    """Maxima and their gradients are exact here, means those of float32 rounded once."""
    rng = np.random.default_rng(2)
    x = rng.integers(-9, 10, shape).astype(half)
    x.reshape(-1)[5] = np.nan

    def on_device(values, dtype):
        values = values.astype(dtype)
        if not channels_last:
            return at_an_offset(device, values, offset).reshape(values.shape)
        pixels = np.ascontiguousarray(np.moveaxis(values, 1, -1))
        return at_an_offset(device, pixels, offset).reshape(pixels.shape).transpose(0, 3, 1, 2)

    found = {}
    for dtype in (half, np.dtype(np.float32)):
        image = on_device(x, dtype)
        y, saved = ops.max_pool2d(image, save=True, **window)
        dy = np.random.default_rng(3).integers(-9, 10, y.shape).astype(half)
        gradient = ops.max_pool2d_backward(on_device(dy, dtype), saved)
        mean = ops.avg_pool2d(image, **window)
        mean_gradient = ops.avg_pool2d_backward(on_device(dy, dtype), image, **window)
        results = [y, saved[0], gradient, mean, mean_gradient]
        assert all(_backend.layout(r) == _backend.layout(image) for r in (gradient, mean_gradient))
        found[dtype] = [device.asnumpy(r) for r in results]
    for got, want in zip(found[half], found[np.dtype(np.float32)], strict=True):
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(got.dtype).astype(np.float32))


@every_half
@pytest.mark.parametrize("columns", [1, 7, 8, 16, 24])
def test_embedding_in_packs_and_without(device, half, columns):
    rng = np.random.default_rng(columns)
    table, indices = rng.standard_normal((5, columns)).astype(half), np.array([4, 0, 4, -1, 5, 2])
    y = device.asnumpy(ops.embedding(device.asarray(indices), device.asarray(table))).astype(np.float32)
    assert np.array_equal(y[[0, 1, 2, 5]], table[[4, 0, 4, 2]].astype(np.float32))
    assert np.isnan(y[3:5]).all()
    dy = rng.standard_normal((6, columns)).astype(half)
    got = ops.embedding_backward(device.asarray(dy), device.asarray(indices), device.asarray(table))
    want = np.zeros((5, columns), np.float32)
    np.add.at(want, indices[[0, 1, 2, 5]], dy[[0, 1, 2, 5]].astype(np.float32))
    assert np.array_equal(device.asnumpy(got), want.astype(half))


@every_half
@pytest.mark.parametrize("n", [1, 31, 33, 255, 256, 257, 264, 1000, 1024, 3000, 4095, 4096, 4104])
def test_long_lines(device, half, n):
    """A warp and a block per line; sums are float32's, so rows of softmax sum to 1 within one rounding."""
    rng = np.random.default_rng(n)
    x = (3 * rng.standard_normal((3, n))).astype(half)
    wide = x.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    got = device.asnumpy(ops.softmax(device.asarray(x))).astype(np.float64)
    assert np.all(np.abs(got - p) <= (ROUNDING[half] + 2.0**-18) * p + LEAST[half])
    y, saved = ops.layer_norm(device.asarray(x), save=True)
    want = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    error = np.abs(device.asnumpy(y).astype(np.float64) - want)
    assert np.all(error <= (ROUNDING[half] + 2.0**-18) * np.abs(want) + 2.0**-18)
    assert saved[0].dtype == saved[1].dtype == np.float32
    loss = ops.cross_entropy(device.asarray(x), device.asarray(np.array([0, n - 1, n // 2])), reduction="sum")
    assert loss.dtype == np.float32
    exact = -np.log(p[np.arange(3), [0, n - 1, n // 2]]).sum()
    assert abs(float(device.asnumpy(loss)) - exact) <= 2.0**-18 * (1 + exact)


@every_half
@pytest.mark.parametrize("n", [8, 248, 256, 257, 264, 1000, 4096, 4100])
def test_lines_have_the_same_bits_in_packs_and_without(device, half, n):
    """Lines whose arrays are not aligned are read element by element, in the order of packs; float32 agrees."""
    rng = np.random.default_rng(n)
    x, dy = (rng.standard_normal((3, n)).astype(half) for _ in range(2))
    weight, bias, share = (rng.random(n).astype(np.float32) for _ in range(3))
    probabilities = np.tile(share / share.sum(dtype=np.float32), (3, 1))
    labels = device.asarray(np.array([0, n - 1, -100]))

    def results(offset, dtype):
        given, gradient = (at_an_offset(device, a.astype(dtype), offset) for a in (x, dy))
        vectors = [at_an_offset(device, v, offset) for v in (weight, bias)]
        found = []
        for name in ("softmax", "log_softmax"):
            y = getattr(ops, name)(given)
            found += [
                y,
                getattr(ops, name + "_backward")(gradient, at_an_offset(device, x.astype(dtype), offset)),
            ]
        y, saved = ops.layer_norm(given, *vectors, residual=gradient, activation="silu", save=True)
        found += [y, *saved]
        found += ops.layer_norm_backward(gradient, given, vectors[0], saved=saved)[:3]
        one = device.asarray(np.ones((), np.float32))
        for targets, options in (
            (labels, {"weight": vectors[0], "label_smoothing": 0.1}),
            (device.asarray(probabilities), {"weight": vectors[0]}),
        ):
            loss, saved = ops.cross_entropy(given, targets, **options, save=True)
            found += [loss, ops.cross_entropy_backward(one, given, targets, **options, saved=saved)]
        return [device.asnumpy(a) for a in found]

    packs = results(0, half)
    for first, second in zip(packs, results(1, half), strict=True):
        assert first.tobytes() == second.tobytes()
    for got, want in zip(packs, results(0, np.float32), strict=True):
        bound = 2.0**-16 * (np.abs(want) + np.abs(want).max())
        bound = bound + (ROUNDING[half] * np.abs(want) + LEAST[half] if got.dtype == half else 0)
        assert np.all(np.abs(got.astype(np.float64) - want) <= bound)


@every_half
def test_wide_pooling_windows(device, half):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 3, 40, 33)).astype(half)
    got = device.asnumpy(ops.global_max_pool2d(device.asarray(x)))
    assert np.array_equal(got, x.max((2, 3), keepdims=True))
    mean = device.asnumpy(ops.global_avg_pool2d(device.asarray(x))).astype(np.float64)
    exact = x.astype(np.float64).mean((2, 3), keepdims=True)
    assert np.all(np.abs(mean - exact) <= ROUNDING[half] * np.abs(exact) + 2.0**-20)


# What is refused --------------------------------------------------------------------------------------


@every_half
def test_on_the_cpu_16_bits_are_refused(half):
    x, w = np.ones((2, 4), half), np.ones(4, np.float32)
    with pytest.raises(
        TypeError, match=f"x: expected float32 or float64, got {half}, which is for arrays on CUDA"
    ):
        ops.relu(x)
    for call, name in (
        (lambda: ops.softmax(x), "x"),
        (lambda: ops.layer_norm(x, w, w), "x"),
        (lambda: ops.batch_norm(x, w, w, training=True), "x"),
        (lambda: ops.dropout(x, 0.5, 0, 0), "x"),
        (lambda: ops.cross_entropy(x, np.array([0, 1])), "logits"),
        (lambda: ops.embedding(np.array([0]), x), "weight"),
        (lambda: ops.max_pool2d(np.ones((1, 1, 2, 2), half), 2), "x"),
        (lambda: ops.pixel_shuffle(np.ones((1, 4, 2, 2), half), 2), "x"),
    ):
        with pytest.raises(TypeError, match=f"^{name}: .* which is for arrays on CUDA"):
            call()


@every_half
def test_vectors_stay_float32(device, half):
    x, vector = device.asarray(np.ones((4, 8), half)), device.asarray(np.ones(8, half))
    wide = device.asarray(np.ones(8, np.float32))
    for call in (
        lambda: ops.layer_norm(x, vector, wide),
        lambda: ops.batch_norm(x, vector, wide, training=True),
        lambda: ops.cross_entropy(x, device.asarray(np.zeros(4, np.int64)), weight=vector),
    ):
        with pytest.raises(TypeError, match=f"weight: expected float32 beside .* of {half}, got {half}"):
            call()
    other = device.asarray(np.ones((4, 8), HALVES[half == HALVES[0]]))
    with pytest.raises(TypeError, match="dy: expected"):
        ops.activation_backward(other, x, "relu")


@every_half
def test_ctc_names_autocast(xp, half):
    """It has no kernels of 16 bits, on any device."""
    x, lengths = xp.asarray(np.ones((3, 2, 4), half)), (np.array([3, 3]), np.array([1, 1]))
    with pytest.raises(
        TypeError,
        match=f"log_probs: expected float32 or float64, got {half}, .* br.autocast computes it in float32",
    ):
        ops.ctc_loss(x, np.array([[1], [2]]), *lengths)


@every_half
def test_clip_and_its_gradient_keep_16_bits(xp, half):
    x = Tensor(xp.asarray(np.array([-2, -0.5, 0.25, 3], half)), requires_grad=True)
    y = x.clip(-0.5, 1)
    assert y.dtype == half
    y.sum().backward()
    assert x.grad.dtype == half
    assert np.array_equal(y.numpy().astype(np.float32), [-0.5, -0.5, 0.25, 1])
    assert np.array_equal(x.grad.numpy().astype(np.float32), [0, 1, 1, 0])


def test_gradients_that_meet_are_added_in_16_bits(device):
    half = HALVES[1]
    x = Tensor(device.asarray(np.array([1.0, 2.0], half)), requires_grad=True)
    y = ops.relu(x)
    (ops.relu(y) + ops.relu(y)).sum().backward()
    assert x.grad.dtype == half
    assert np.array_equal(x.grad.numpy().astype(np.float32), [2, 2])
