"""Convolutions of 16-bit arrays, and of float32 arrays in tf32: exact on small integers, within bounds on others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import brasa
from brasa import ops
from references import conv as reference

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
UNIT = {HALF: 2.0**-11, BFLOAT16: 2.0**-8, SINGLE: 2.0**-24}  # of one rounding
DTYPES = {"float16": HALF, "bfloat16": BFLOAT16, "tf32": SINGLE}
ORDERS, TIMINGS = ("forward", "reverse", "random"), ("lazy", "eager", "random")

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def kind(xp, request):
    """Arrays and a dtype; tf32 is allowed where it is the dtype."""
    brasa.set_matmul_precision("tf32" if request.param == "tf32" else "ieee")
    yield xp, DTYPES[request.param]
    brasa.set_matmul_precision("ieee")


every_kind = pytest.mark.parametrize("kind", DTYPES, indirect=True)
halves = pytest.mark.parametrize("kind", ["float16", "bfloat16"], indirect=True)


@pytest.fixture
def gpu(kind):
    """A function that sets what GPU the emulator pretends to be."""
    xp, _ = kind
    if xp.name != "emulated":
        yield lambda **_: None
        return
    set_option = xp.kernels.set_option
    yield lambda **options: [set_option(*option) for option in options.items()]
    for name, value in {
        "capability": 90, "multiprocessors": 132, "order": "forward", "async": "lazy"
    }.items():  # fmt: skip
        set_option(name, value)


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def wide(x):
    return np.asarray(x).astype(np.float64)


def sparse_integers(rng, shape, dtype, most, nonzero):
    """Integers up to `most`, of which about `nonzero` are not 0: their sums stay small."""
    kept = rng.random(shape) < min(1.0, nonzero)
    return (
        (rng.integers(1, most + 1, shape) * rng.choice([-1, 1], shape) * kept)
        .astype(np.float32)
        .astype(dtype)
    )


def draw(rng, shapes, dtype):
    """x, weight, bias and dy's maker, whose sums bfloat16 holds: they have up to 8 bits."""
    x, weight = shapes
    terms = int(np.prod(weight[1:]))
    return (
        sparse_integers(rng, x, dtype, 2, 1.0),
        sparse_integers(rng, weight, dtype, 2, 24 / terms),
        sparse_integers(rng, weight[:1], dtype, 2, 1.0),
    )


def check_exact(xp, x, weight, bias, seed, **arguments):
    """Forward and gradients of integers, against the reference rounded once, in one of the memory formats."""
    dtype = x.dtype
    expected = reference.conv2d(wide(x), wide(weight), wide(bias), **arguments)
    rng = np.random.default_rng(seed)
    residual = sparse_integers(rng, expected.shape, dtype, 2, 1.0)
    dy = sparse_integers(rng, expected.shape, dtype, 2, 24 / expected[:, 0].size)
    image = channels_last(x) if seed % 2 else x
    wide_bias = bias.astype(np.float32) if seed % 3 else bias
    activation = ("relu", None)[seed % 5 == 0]
    y = ops.conv2d(
        *map(xp.asarray, (image, weight, wide_bias)), activation=activation, residual=xp.asarray(residual),
        **arguments,
    )  # fmt: skip
    expected = expected + wide(residual)
    expected = np.maximum(expected, 0) if activation else expected
    assert y.dtype == dtype
    np.testing.assert_array_equal(wide(xp.asnumpy(y)), wide(expected.astype(dtype)))
    want = reference.conv2d_backward(wide(dy), wide(x), wide(weight), **arguments)
    got = ops.conv2d_backward(*map(xp.asarray, (dy, image, weight)), bias=xp.asarray(wide_bias), **arguments)
    for name, gradient, exact, like in zip(
        ("dx", "dw", "db"), got, want, (x, weight, wide_bias), strict=False
    ):
        assert gradient.dtype == like.dtype
        np.testing.assert_array_equal(
            wide(xp.asnumpy(gradient)), wide(exact.astype(like.dtype)), err_msg=name
        )


CHANNELS = [1, 3, 8, 15, 16, 17, 33, 64, 70]


@every_kind
@given(seed=seeds)
def test_integers_are_exact(kind, gpu, seed):
    xp, dtype = kind
    rng = np.random.default_rng(seed)
    gpu(
        capability=(80, 90)[seed % 2], multiprocessors=(1, 132)[seed // 2 % 2],
        order=ORDERS[seed // 4 % 3], **{"async": TIMINGS[seed // 12 % 3]},
    )  # fmt: skip
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels, outputs = (groups * int(rng.choice(CHANNELS)) for _ in range(2))
    while True:
        size, kernel = rng.integers(1, 10, 2), rng.integers(1, 4, 2)
        stride, dilation, pads = rng.integers(1, 4, 2), rng.integers(1, 3, 2), rng.integers(0, 3, (2, 2))
        if np.all(dilation * (kernel - 1) + 1 <= size + pads.sum(1)):
            break
    arguments = {
        "stride": tuple(map(int, stride)), "padding": tuple(tuple(map(int, p)) for p in pads),
        "dilation": tuple(map(int, dilation)), "groups": groups,
    }  # fmt: skip
    shapes = (int(rng.integers(1, 3)), channels, *size), (outputs, channels // groups, *kernel)
    check_exact(xp, *draw(rng, shapes, dtype), seed, **arguments)


# (N, C, H, W), (O, C / groups, KH, KW), arguments
CASES = {
    "first layer": ((2, 3, 15, 15), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "a tile of pixels less one": ((1, 16, 127, 1), (24, 16, 3, 1), {"padding": (1, 0)}),
    "a tile of pixels": ((1, 16, 128, 1), (24, 16, 3, 1), {"padding": (1, 0)}),
    "a tile of pixels and one": ((1, 16, 129, 1), (24, 16, 3, 1), {"padding": (1, 0)}),
    "wide tiles": ((2, 24, 12, 12), (136, 24, 3, 3), {"padding": 1}),
    "tiles enough for a GPU": ((1, 8, 130, 131), (72, 8, 1, 3), {"padding": (0, 1)}),
    "tiles of 64 columns enough for a GPU": ((1, 3, 130, 131), (24, 3, 3, 1), {"padding": (1, 0)}),
    "walked, 64 columns": ((2, 64, 9, 10), (64, 64, 3, 3), {"padding": 1}),
    "walked, with rests": ((3, 120, 5, 7), (136, 120, 2, 3), {"padding": ((0, 1), (2, 2))}),
    "walked, with stride and dilation": (
        (6, 64, 11, 9),
        (128, 64, 3, 3),
        {"stride": 2, "dilation": (1, 2), "padding": ((2, 1), (0, 3))},
    ),
    "walked, 256 columns": ((1, 48, 113, 226), (256, 48, 1, 1), {"stride": (1, 2)}),
    "walked, one tap with stride": ((2, 64, 15, 18), (72, 64, 1, 1), {"stride": 2}),
    "walked, classes of 128 channels": ((2, 128, 13, 16), (64, 128, 3, 3), {"stride": 2, "padding": 1}),
    "walked, classes of 256 columns": ((5, 200, 40, 60), (48, 200, 2, 3), {"stride": (1, 2), "padding": 1}),
    "few channels, 7x7": ((3, 3, 19, 21), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "few channels, 3x3": ((1, 3, 20, 20), (40, 3, 3, 3), {"padding": 1}),
    "few channels, 11x11": ((8, 2, 39, 43), (48, 2, 11, 11), {"stride": 4, "padding": 2}),
    "few channels, other strides": (
        (2, 4, 12, 13),
        (72, 4, 5, 5),
        {"stride": (1, 2), "padding": ((1, 2), (0, 3))},
    ),
    "stride, dilation and asymmetric padding": (
        (2, 72, 11, 9),
        (40, 72, 3, 3),
        {"stride": 2, "dilation": 2, "padding": ((2, 1), (0, 3))},
    ),
    "stride beyond the kernel": ((2, 16, 11, 11), (16, 16, 2, 2), {"stride": 3}),
    "long sums in parts": ((1, 130, 4, 4), (20, 130, 3, 3), {"padding": 1}),
    "one tap with stride": ((2, 40, 9, 9), (72, 40, 1, 1), {"stride": 2}),
    "a product": ((2, 40, 7, 9), (72, 40, 1, 1), {}),
    "a product of odd channels": ((3, 17, 5, 5), (9, 17, 1, 1), {}),
    "groups": ((2, 96, 7, 7), (64, 48, 3, 3), {"groups": 2, "padding": 1}),
    "groups of 17 channels": ((2, 51, 6, 6), (57, 17, 3, 3), {"groups": 3, "padding": 1}),
    "groups of few channels": ((2, 12, 6, 6), (24, 4, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 37, 8, 9), (37, 1, 3, 3), {"groups": 37, "padding": 1}),
    "depthwise with stride": ((2, 64, 9, 12), (64, 1, 5, 5), {"groups": 64, "padding": 2, "stride": 2}),
    "depthwise, whole tiles": ((2, 64, 8, 16), (64, 1, 3, 3), {"groups": 64, "padding": 1}),
    "padding beyond the kernel": ((1, 16, 3, 3), (8, 16, 2, 2), {"padding": 6}),
    "kernel larger than the image": ((2, 32, 2, 2), (8, 32, 5, 5), {"padding": 2}),
}


@every_kind
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("capability", [80, 90])
def test_named_cases_are_exact(kind, gpu, name, capability):
    xp, dtype = kind
    if xp.name != "emulated" and capability == 90:
        pytest.skip("only the emulator pretends")
    x, weight, arguments = CASES[name]
    gpu(capability=capability, multiprocessors=2)
    for seed in (1, 2):
        operands = draw(np.random.default_rng(seed), (x, weight), dtype)
        check_exact(xp, *operands, seed, **arguments)


@every_kind
@given(seed=seeds)
def test_depthwise_is_exact(kind, gpu, seed):
    """Kernels that are read in whole rows of the window and others, runs of pixels and their rests."""
    xp, dtype = kind
    rng = np.random.default_rng(seed)
    gpu(order=ORDERS[seed % 3])
    channels = int(rng.choice([2, 3, 8, 15, 16, 17, 33, 64, 65, 130]))
    kernel = tuple(map(int, rng.choice([[3, 3], [5, 5], [1, 3], [2, 4], [3, 3], [1, 5]])))
    size = rng.integers(5, 20, 2)
    arguments = {
        "stride": tuple(map(int, rng.integers(1, 3, 2))), "dilation": int(rng.choice([1, 1, 2])),
        "padding": tuple(tuple(map(int, p)) for p in rng.integers(0, 4, (2, 2))), "groups": channels,
    }  # fmt: skip
    if any(arguments["dilation"] * (k - 1) >= s for k, s in zip(kernel, size, strict=True)):
        return
    shapes = (int(rng.integers(1, 3)), channels, *size), (channels, 1, *kernel)
    check_exact(xp, *draw(rng, shapes, dtype), seed, **arguments)


@every_kind
@pytest.mark.parametrize(
    "name", ["wide tiles", "first layer", "groups", "depthwise", "a product", "walked, 64 columns"]
)
@pytest.mark.parametrize("capability", [80, 90])
def test_sums_are_rounded_once(kind, gpu, name, capability):
    """Within the rounding of tf32's operands, a chain of float32 and one rounding."""
    xp, dtype = kind
    if xp.name != "emulated" and (capability == 90 or (xp.name == "cpu" and dtype == SINGLE)):
        pytest.skip("only the emulator pretends, and the CPU has no tf32")
    shapes, arguments = CASES[name][:2], CASES[name][2]
    gpu(capability=capability, multiprocessors=2)
    rng = np.random.default_rng(1)
    x, weight = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in shapes)
    expected = reference.conv2d(wide(x), wide(weight), **arguments)
    dy = rng.standard_normal(expected.shape).astype(np.float32).astype(dtype)
    sizes = [np.abs(wide(a)) for a in (dy, x, weight)]
    magnitudes = reference.conv2d(*sizes[1:], **arguments), *reference.conv2d_backward(*sizes, **arguments)
    pixels = dy[:, 0].size
    terms = weight[0].size, weight[:, 0].size, pixels, pixels
    image = channels_last(x)
    got = ops.conv2d(*map(xp.asarray, (image, weight)), **arguments)
    gradients = ops.conv2d_backward(*map(xp.asarray, (dy, image, weight)), **arguments)
    exact = expected, *reference.conv2d_backward(*map(wide, (dy, x, weight)), **arguments)
    for found, want, n, size in zip((got, *gradients[:3]), exact, terms, magnitudes, strict=True):
        operands = 2.0**-9 if dtype == SINGLE else 0.0
        bound = (operands + (n + 4) * 2.0**-23) * size + 1.01 * UNIT[dtype] * np.abs(want) + 2.0**-24
        assert np.all(np.abs(wide(xp.asnumpy(found)) - want) <= bound)


@halves
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("name", ["wide tiles", "groups of few channels", "depthwise"])
def test_activations_and_what_they_keep(kind, activation, name):
    """The pre-activation is kept, rounded; gradients go through it as float32's do."""
    xp, dtype = kind
    x_shape, weight_shape, arguments = CASES[name]
    rng = np.random.default_rng(2)
    x, weight, bias = draw(rng, (x_shape, weight_shape), dtype)
    y, saved = ops.conv2d(*map(xp.asarray, (x, weight, bias)), activation=activation, save=True, **arguments)
    before = reference.conv2d(*map(wide, (x, weight, bias)), **arguments)
    if saved[0] is not None:
        assert saved[0].dtype == dtype
        np.testing.assert_array_equal(wide(xp.asnumpy(saved[0])), before)
    single = before.astype(np.float32)
    want = wide(ops.activation(single, activation))
    assert np.all(np.abs(wide(xp.asnumpy(y)) - want) <= 1.01 * UNIT[dtype] * np.abs(want) + 2.0**-20)
    dy = sparse_integers(rng, y.shape, dtype, 2, 24 / y[:, 0].size)
    for mask in ((True,) * 4, (False, True, True, False)):
        got = ops.conv2d_backward(
            *map(xp.asarray, (dy, x, weight)), activation=activation, y=y, saved=saved, mask=mask, **arguments
        )
        source = np.float32(xp.asnumpy(y if saved[0] is None else saved[0]))
        g = wide(ops.activation_backward(np.float32(dy), source, activation).astype(dtype))
        exact = (*reference.conv2d_backward(g, wide(x), wide(weight), **arguments), g)
        for wanted, gradient, reference_ in zip(mask, got, exact, strict=True):
            assert (gradient is not None) == wanted
            if wanted:
                scale = np.abs(reference_).max()
                assert np.all(np.abs(wide(xp.asnumpy(gradient)) - reference_) <= 20 * UNIT[dtype] * scale)


@halves
def test_arrays_anywhere_in_memory(kind, gpu):
    """Views that do not begin at a multiple of 16 bytes, and what is neither of the two formats."""
    xp, dtype = kind
    gpu(multiprocessors=1)
    rng = np.random.default_rng(3)
    x, weight, _ = draw(rng, ((2, 16, 6, 6), (8, 16, 3, 3)), dtype)
    want = wide(reference.conv2d(wide(x), wide(weight)).astype(dtype))
    flat = xp.asarray(np.concatenate([x.ravel()[:1], channels_last(x).transpose(0, 2, 3, 1).ravel()]))
    shifted = flat[1:].reshape(2, 6, 6, 16).transpose(0, 3, 1, 2)
    for image in (shifted, xp.asarray(x)[:, :, ::-1][:, :, ::-1], xp.asarray(x)):
        np.testing.assert_array_equal(wide(xp.asnumpy(ops.conv2d(image, xp.asarray(weight)))), want)


@halves
def test_an_empty_batch_has_zero_gradients(kind):
    xp, dtype = kind
    for weight_shape, groups in (((8, 16, 3, 3), 1), ((16, 1, 3, 3), 16), ((8, 16, 1, 1), 1)):
        x = xp.asarray(np.empty((0, 16, 8, 8), dtype))
        weight = xp.asarray(np.ones(weight_shape, dtype))
        y = ops.conv2d(x, weight, groups=groups)
        dx, dweight, dbias, _ = ops.conv2d_backward(y, x, weight, groups=groups)
        assert dx.shape == x.shape
        assert not wide(xp.asnumpy(dweight)).any()
        assert not wide(xp.asnumpy(dbias)).any()


def test_dtypes_are_not_mixed():
    x, weight = np.ones((1, 2, 4, 4), BFLOAT16), np.ones((3, 2, 3, 3), BFLOAT16)
    half = np.ones(3, np.float16)
    with pytest.raises(TypeError, match="weight: expected bfloat16 as x has, got float32"):
        ops.conv2d(x, weight.astype(np.float32))
    with pytest.raises(TypeError, match="bias: expected bfloat16 as x has, got float16"):
        ops.conv2d(x, weight, half)
    with pytest.raises(TypeError, match="residual: expected bfloat16 as x has, got float32"):
        ops.conv2d(x, weight, residual=np.ones((1, 3, 2, 2), np.float32))
    with pytest.raises(TypeError, match="x: expected float16, bfloat16, float32 or float64, got int64"):
        ops.conv2d(x.astype(np.int64), weight)
    with pytest.raises(TypeError, match="bias: expected float64 as x has, got float32"):
        ops.conv2d(x.astype(np.float64), weight.astype(np.float64), half.astype(np.float32))


def test_float32_stays_float32_by_default(xp):
    """Products that tf32 would lose."""
    x = np.full((1, 16, 6, 6), 1 + 2.0**-20, np.float32)
    weight = np.full((16, 16, 3, 3), 1 + 2.0**-20, np.float32)
    y = wide(xp.asnumpy(ops.conv2d(xp.asarray(x), xp.asarray(weight))))
    assert np.abs(y - reference.conv2d(wide(x), wide(weight))).max() <= 148 * 2.0**-24 * 145
