"""Convolution: what its descriptor's generic properties do not cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brasa import Tensor, _cpu, ops
from brasa.ops.activation import native_activation
from conftest import CpuArrays
from descriptors.conv import draw_geometry
from references import conv as reference

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def integers(rng, shape, dtype=np.float32):
    """Small integers: every partial sum is exact, so results must be too."""
    return rng.integers(-3, 4, shape).astype(dtype)


def gradients(xp, dy, x, weight, **arguments):
    results = ops.conv2d_backward(xp.asarray(dy), xp.asarray(x), xp.asarray(weight), **arguments)
    return [xp.asnumpy(r) for r in results[:3]]


def check_exact(xp, x, weight, bias, dtype, **arguments):
    """Forward and gradients of integers, against the reference bit for bit, in both memory formats."""
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    expected = reference.conv2d(*wide, **arguments)
    dy = integers(np.random.default_rng(1), expected.shape, dtype)
    expected_gradients = reference.conv2d_backward(dy.astype(np.float64), *wide[:2], **arguments)
    for image in (x, channels_last(x)):
        y = ops.conv2d(xp.asarray(image), xp.asarray(weight), xp.asarray(bias), **arguments)
        np.testing.assert_array_equal(xp.asnumpy(y), expected)
        assert y.dtype == dtype
        for got, want in zip(gradients(xp, dy, image, weight, **arguments), expected_gradients, strict=True):
            np.testing.assert_array_equal(got, want)


@given(seed=seeds, dtype=dtypes)
def test_integers_are_exact(xp, seed, dtype):
    rng = np.random.default_rng(seed)
    arguments, x, weight = draw_geometry(rng)
    if xp.name == "emulated" and seed % 3:
        return
    x, weight, bias = (integers(rng, shape, dtype) for shape in (x, weight, weight[:1]))
    check_exact(xp, x, weight, bias, dtype, **arguments)


# (N, C, H, W), (O, C / groups, KH, KW), arguments: every path of the kernels and the edges between them
CASES = {
    "lenet 1": ((3, 1, 12, 12), (6, 1, 5, 5), {"padding": 2}),
    "lenet 2": ((3, 6, 10, 10), (16, 6, 5, 5), {}),
    "first layer": ((2, 3, 15, 15), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "many channels": ((1, 40, 7, 7), (70, 40, 3, 3), {"padding": 1}),
    "one pixel per image": ((5, 33, 1, 1), (17, 33, 1, 1), {}),
    "kernel as large as the image": ((2, 32, 4, 5), (9, 32, 4, 5), {}),
    "kernel larger than the image": ((2, 32, 2, 2), (5, 32, 5, 5), {"padding": 2}),
    "more taps than a table holds": ((1, 33, 9, 9), (4, 33, 9, 8), {"padding": 3}),
    "1x1 with stride": ((2, 34, 7, 7), (48, 34, 1, 1), {"stride": 2}),
    "patches": ((2, 3, 12, 12), (20, 3, 4, 4), {"stride": 4}),
    "stride beyond the kernel": ((2, 3, 11, 11), (4, 3, 2, 2), {"stride": 3}),
    "stride and dilation share a factor": (
        (1, 4, 16, 17),
        (3, 4, 3, 3),
        {"stride": 4, "dilation": 2, "padding": 5},
    ),
    "padding beyond the kernel": ((1, 2, 3, 3), (3, 2, 2, 2), {"padding": 6}),
    "asymmetric": ((2, 5, 6, 7), (7, 5, 3, 2), {"padding": ((0, 2), (3, 1))}),
    "same, even kernel": ((2, 3, 6, 6), (4, 3, 4, 2), {"padding": "same"}),
    "depthwise": ((2, 37, 8, 9), (37, 1, 3, 3), {"groups": 37, "padding": 1}),
    "depthwise with stride": ((2, 16, 9, 9), (16, 1, 5, 5), {"groups": 16, "padding": 2, "stride": 2}),
    "depthwise, dilated": ((1, 5, 9, 9), (5, 1, 3, 3), {"groups": 5, "dilation": 2}),
    "depthwise, tiles of seven pixels": ((2, 40, 7, 14), (40, 1, 3, 3), {"groups": 40, "padding": 1}),
    "depthwise, tiles that overlap": ((1, 16, 5, 13), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    "depthwise, 5x5": ((1, 35, 9, 15), (35, 1, 5, 5), {"groups": 35, "padding": 2}),
    "depthwise, 7x7": ((1, 18, 8, 9), (18, 1, 7, 7), {"groups": 18, "padding": 3}),
    "depthwise, 3x3 with stride": ((2, 33, 15, 29), (33, 1, 3, 3), {"groups": 33, "padding": 1, "stride": 2}),
    "depthwise, several bands": ((1, 17, 64, 60), (17, 1, 3, 3), {"groups": 17, "padding": 1}),
    "depthwise, more rows than a list holds": (
        (1, 16, 20, 8),
        (16, 1, 17, 3),
        {"groups": 16, "padding": (8, 1)},
    ),
    "depthwise, 1024 channels and a rest": ((1, 1030, 4, 5), (1030, 1, 3, 3), {"groups": 1030, "padding": 1}),
    "depthwise, padding beyond the kernel": ((1, 20, 3, 3), (20, 1, 2, 2), {"groups": 20, "padding": 4}),
    "depthwise with a multiplier": ((2, 4, 6, 6), (12, 1, 3, 3), {"groups": 4, "padding": 1}),
    "groups": ((2, 64, 6, 6), (66, 32, 3, 3), {"groups": 2, "padding": 1}),
    "one row": ((2, 3, 1, 40), (4, 3, 1, 7), {"padding": (0, 3)}),
    "one row of one channel": ((3, 1, 1, 40), (5, 1, 1, 7), {"padding": (0, 3), "dilation": (1, 2)}),
    "one channel, 8 outputs, two rows apart": (
        (9, 1, 35, 18),
        (8, 1, 4, 3),
        {"stride": (2, 1), "padding": 1},
    ),
    "one channel, more outputs than a vector": ((2, 1, 14, 13), (17, 1, 3, 3), {"padding": 1}),
    "rows of taps fill vectors, stride and dilation": (
        (3, 5, 11, 12),
        (7, 5, 3, 3),
        {"stride": 2, "dilation": (1, 3), "padding": (2, 3)},
    ),
    "rows of taps fill vectors, stride beyond the kernel": ((2, 4, 9, 9), (3, 4, 1, 4), {"stride": (3, 5)}),
    "rows of taps of several panels": ((2, 8, 12, 13), (5, 8, 10, 10), {"padding": 1}),
    "gather with stride": ((2, 12, 9, 10), (20, 12, 3, 3), {"stride": 2, "padding": 1}),
    "gather with dilation": ((2, 12, 9, 10), (20, 12, 3, 3), {"dilation": 2, "padding": 2}),
    "many channels, C order, with stride": ((2, 33, 9, 10), (10, 33, 3, 3), {"stride": 2, "padding": 1}),
    "runs longer than a unit": ((2, 11, 8, 8), (5, 11, 3, 3), {"padding": 1}),
    "units and panels with tails": ((6, 55, 7, 7), (147, 55, 1, 1), {}),
    "1x1, planes as they lie": ((2, 19, 9, 11), (75, 19, 1, 1), {}),
    "1x1, planes of several blocks": ((1, 33, 13, 17), (40, 33, 1, 1), {}),
    "1x1, rows of planes with stride": ((2, 18, 5, 51), (21, 18, 1, 1), {"stride": 2}),
    "C order, rows of whole vectors and a rest": ((1, 20, 3, 37), (6, 20, 3, 3), {}),
    "1x1 with padding": ((2, 35, 5, 6), (70, 35, 1, 1), {"padding": 1, "stride": 2}),
    "a product": ((2, 131, 7, 5), (53, 131, 1, 1), {}),
    "a product, with stride": ((2, 129, 9, 6), (130, 129, 1, 1), {"stride": (2, 3)}),
    "a product of many weights": ((1, 730, 3, 3), (720, 730, 1, 1), {}),
    "a product but for its padding": ((2, 129, 4, 4), (130, 129, 1, 1), {"padding": 1}),
    "weights alone are a product": ((1, 64, 10, 10), (60, 64, 1, 1), {}),
    "panels in parts, by lines": ((1, 210, 8, 8), (220, 210, 3, 3), {"padding": 1}),
    "panels in parts, by a table": ((2, 210, 3, 3), (220, 210, 3, 3), {"padding": 1}),
    "lines of several pieces": ((2, 3, 5, 103), (20, 3, 3, 3), {"padding": 1}),
    "blocks of several short lines": ((9, 3, 30, 22), (20, 3, 3, 3), {"padding": 1}),
    "several parts": ((5, 4, 40, 40), (18, 4, 3, 3), {"padding": 1}),
    "several blocks in a part": ((8, 2, 300, 4), (3, 2, 3, 3), {"padding": 1}),
    "one channel, several blocks in a part": ((1, 1, 520, 24), (8, 1, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_named_cases_are_exact(xp, name):
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight, bias = (integers(rng, shape) for shape in (x, weight, weight[:1]))
    check_exact(xp, x, weight, bias, np.float32, **arguments)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("depthwise", "1x1", "a product"))]
)
def test_float64_on_a_device(device, name):
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight, bias = (integers(rng, shape, np.float64) for shape in (x, weight, weight[:1]))
    check_exact(device, x, weight, bias, np.float64, **arguments)


@pytest.mark.parametrize("outputs", range(1, 10))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_channel_is_exact_for_any_number_of_outputs(isa, outputs, dtype):
    rng = np.random.default_rng(outputs)
    for width in (10, 16, 31, 50):
        shapes = (3, 1, 9, width), (outputs, 1, 3, 3), (outputs,)
        x, weight, bias = (integers(rng, shape, dtype) for shape in shapes)
        check_exact(CpuArrays(), x, weight, bias, dtype, padding=1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_on_every_instruction_set_and_thread_count(name, dtype, set_threads):
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(dtype) for s in (x, weight))
    before, results = _cpu.isa(), {}
    try:
        for isa in _cpu.supported_isas():
            _cpu._set_isa(isa)
            for threads in (1, 2, 3):
                set_threads(threads)
                found = []
                for image in (x, channels_last(x)):
                    y = ops.conv2d(image, weight, **arguments)
                    found += [y, *ops.conv2d_backward(y, image, weight, **arguments)[:3]]
                results[isa, threads] = [np.ascontiguousarray(a).tobytes() for a in found]
    finally:
        _cpu._set_isa(before)
    for isa, threads in results:
        assert results[isa, threads] == results[isa, 1]
        if isa != "baseline":
            assert results[isa, 1] == results["scalar", 1]


@pytest.mark.parametrize("name", CASES)
def test_a_sample_alone_is_the_sample_in_a_batch(name):
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in (x, weight))
    for image in (x, channels_last(x)):
        y = ops.conv2d(image, weight, **arguments)
        dx = ops.conv2d_backward(y, image, weight, **arguments, mask=(True, False, False, False))[0]
        assert (ops.conv2d(image[-1:], weight, **arguments) == y[-1:]).all()
        alone = ops.conv2d_backward(
            y[-1:], image[-1:], weight, **arguments, mask=(True, False, False, False)
        )[0]
        assert (alone == dx[-1:]).all()


@given(seed=seeds)
@settings(max_examples=20)
def test_gradients_are_within_their_bound(seed):
    """dx: a chain over taps and channels; dweight and dbias: over all pixels at most."""
    rng = np.random.default_rng(seed)
    arguments, x, weight = draw_geometry(rng, 40, 14)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in (x, weight))
    dy = rng.standard_normal(ops.conv2d(x, weight, **arguments).shape).astype(np.float32)
    wide = [a.astype(np.float64) for a in (dy, x, weight)]
    expected = reference.conv2d_backward(*wide, **arguments)
    size = reference.conv2d_backward(*map(np.abs, wide), **arguments)
    pixels = dy[:, 0].size
    terms = (weight[:, 0].size, pixels, pixels)
    for got, want, s, n in zip(
        ops.conv2d_backward(dy, x, weight, **arguments), expected, size, terms, strict=False
    ):
        assert (np.abs(got - want) <= (n + 4) * 2.0**-24 * s + n * 2.0**-149).all()


@given(seed=seeds)
@settings(max_examples=20)
def test_torch_agrees(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    arguments, x, weight = draw_geometry(rng, 20, 12)
    arguments["padding"] = tuple(p[0] for p in arguments["padding"])
    try:
        x, weight, bias = (rng.standard_normal(s).astype(np.float32) for s in (x, weight, weight[:1]))
        y = ops.conv2d(x, weight, bias, **arguments)
    except ValueError:  # the kernel is larger than the image with this padding
        return
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*tensors, **arguments)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    expected.backward(torch.tensor(np.ascontiguousarray(y)))
    for got, tensor in zip(ops.conv2d_backward(y, x, weight, **arguments), tensors, strict=False):
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "activation", ["relu", ("leaky_relu", 0.2), "tanh", "gelu", "hardswish", ("leaky_relu", -0.5)]
)
def test_fused_activation_is_the_activation_after(xp, activation):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 6, 5), (7, 3, 3, 3), 7))
    residual = rng.standard_normal((2, 7, 4, 3)).astype(np.float32)
    x, weight, bias, residual = map(xp.asarray, (x, weight, bias, residual))
    plain = ops.conv2d(x, weight, bias, residual=residual)
    y, saved = ops.conv2d(x, weight, bias, activation=activation, residual=residual, save=True)
    np.testing.assert_array_equal(xp.asnumpy(y), xp.asnumpy(ops.activation(plain, activation)))
    dy = xp.asarray(rng.standard_normal(y.shape).astype(np.float32))
    results = ops.conv2d_backward(dy, x, weight, activation=activation, y=y, saved=saved)
    needs_input = ops.ACTIVATIONS[activation if isinstance(activation, str) else activation[0]].needs == "x"
    source = plain if needs_input or activation == ("leaky_relu", -0.5) else y
    g = ops.activation_backward(dy, source, activation)
    np.testing.assert_array_equal(xp.asnumpy(results[3]), xp.asnumpy(g))
    for got, want in zip(results[:3], ops.conv2d_backward(g, x, weight), strict=False):
        np.testing.assert_array_equal(xp.asnumpy(got), xp.asnumpy(want))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 37, 8, 9), (37, 1, 3, 3), 37),
        ((1, 70, 70, 64), (70, 1, 3, 3), 70),
        ((2, 20, 8, 9), (75, 20, 1, 1), 1),
    ],
    ids=["depthwise", "depthwise, several bands", "1x1"],
)
def test_fused_epilogue_in_both_memory_formats(isa, shapes):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in shapes[:2])
    bias = rng.standard_normal(len(weight)).astype(np.float32)
    arguments = {"groups": shapes[2], "padding": shapes[1][2] // 2}
    residual = rng.standard_normal(ops.conv2d(x, weight, **arguments).shape).astype(np.float32)
    plain = ops.conv2d(x, weight, bias, **arguments)
    expected = ops.activation(plain + residual, "gelu")
    for image in (x, channels_last(x)):
        y, saved = ops.conv2d(
            image, weight, bias, activation="gelu", residual=residual, save=True, **arguments
        )
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(saved[0], plain + residual)


def test_memory_formats():
    rng = np.random.default_rng(0)
    x, weight = integers(rng, (2, 4, 6, 6)), integers(rng, (5, 4, 3, 3))
    for image in (x, channels_last(x), np.asfortranarray(x), x[:, :, ::-1].copy()[:, :, ::-1]):
        y = ops.conv2d(image, weight)
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous
        dx, dweight, _, _ = ops.conv2d_backward(y, image, weight)
        assert dweight.flags.c_contiguous
        last = image.transpose(0, 2, 3, 1).flags.c_contiguous
        assert (dx.transpose(0, 2, 3, 1) if last else dx).flags.c_contiguous
        np.testing.assert_array_equal(y, ops.conv2d(x, weight))


def test_out_takes_the_result():
    rng = np.random.default_rng(0)
    x, weight = integers(rng, (2, 4, 6, 6)), integers(rng, (5, 4, 3, 3))
    expected = ops.conv2d(x, weight)
    for out in (
        np.empty((2, 5, 4, 4), np.float32),
        np.empty_like(expected),
        np.empty((2, 5, 4, 8), np.float32)[..., ::2],
    ):
        assert ops.conv2d(x, weight, out=out) is out
        np.testing.assert_array_equal(out, expected)
    read_only = np.empty_like(expected)
    read_only.flags.writeable = False
    for bad, error in (
        (read_only, ValueError),
        (np.empty((2, 5, 4, 5), np.float32), ValueError),
        (np.empty((2, 5, 4, 4)), TypeError),
    ):
        with pytest.raises(error, match="out"):
            ops.conv2d(x, weight, out=bad)
    with pytest.raises(ValueError, match="overlap"):
        ops.conv2d(x, integers(rng, (4, 4, 1, 1)), out=x)


def test_an_empty_batch_has_zero_gradients(xp):
    x, weight = xp.asarray(np.empty((0, 3, 8, 8), np.float32)), xp.asarray(np.ones((4, 3, 3, 3), np.float32))
    y = ops.conv2d(x, weight)
    assert y.shape == (0, 4, 6, 6)
    dx, dweight, dbias, _ = ops.conv2d_backward(y, x, weight)
    assert dx.shape == x.shape
    assert not xp.asnumpy(dweight).any()
    assert not xp.asnumpy(dbias).any()


def test_mask_leaves_gradients_out():
    rng = np.random.default_rng(0)
    x, weight = integers(rng, (2, 4, 6, 6)), integers(rng, (5, 4, 3, 3))
    dy = integers(rng, (2, 5, 4, 4))
    everything = ops.conv2d_backward(dy, x, weight)
    for i in range(4):
        mask = tuple(j == i for j in range(4))
        for wanted, got, full in zip(
            mask, ops.conv2d_backward(dy, x, weight, mask=mask), everything, strict=True
        ):
            assert (got is not None) == wanted
            if wanted:
                np.testing.assert_array_equal(got, full)


def test_nan_stays_where_it_belongs():
    x, weight = np.zeros((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 3), np.float32)
    x[0, 1, 4, 4] = np.nan
    y = ops.conv2d(x, weight, padding=1)
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(expected, y.shape))


# (N, C, H, W), (O, C / groups, KH, KW), groups: every algorithm that reads packed weights
PACKED = [
    ((2, 3, 9, 8), (5, 3, 3, 3), 1),
    ((1, 1, 12, 12), (6, 1, 5, 5), 1),
    ((1, 1, 5, 5), (12, 1, 3, 3), 1),
    ((2, 8, 7, 7), (8, 1, 3, 3), 8),
    ((2, 8, 7, 7), (12, 4, 3, 3), 2),
    ((1, 130, 7, 7), (70, 130, 1, 1), 1),
    ((1, 130, 9, 9), (70, 130, 1, 1), 1),
]


@pytest.mark.parametrize("shapes", PACKED)
def test_packed_weights_give_the_same_bits(xp, isa, shapes):
    rng = np.random.default_rng(5)
    (n, c, h, w), weight_shape, groups = shapes
    for dtype, stride in itertools.product((np.float32, np.float64), (1, 2)):
        x, weight = (xp.asarray(rng.standard_normal(s).astype(dtype)) for s in ((n, c, h, w), weight_shape))
        bias = xp.asarray(rng.standard_normal(weight_shape[0]).astype(dtype))
        packed = ops.prepack(weight, "conv2d", groups)
        assert (packed.kind, packed.shape, packed.groups) == ("conv2d", weight_shape, groups)
        for image in (x, xp.asarray(channels_last(xp.asnumpy(x)))):
            for padding in (0, 1):
                plain = ops.conv2d(image, weight, bias, stride, padding, groups=groups, activation="relu")
                y = ops.conv2d(image, packed, bias, stride, padding, groups=groups, activation="relu")
                assert xp.asnumpy(y).tobytes() == xp.asnumpy(plain).tobytes()
                out = xp.asarray(np.empty(plain.shape, dtype))
                assert ops.conv2d(image, packed, bias, stride, padding, groups=groups, out=out) is out


def test_packed_weights_say_what_they_do_not_fit():
    x, weight = np.ones((1, 4, 5, 5), np.float32), np.ones((6, 2, 3, 3), np.float32)
    packed = ops.prepack(weight, "conv2d", 2)
    with pytest.raises(ValueError, match="weight: expected 4 dimensions"):
        ops.prepack(weight[0], "conv2d")
    with pytest.raises(ValueError, match="groups: 4 does not divide the outputs"):
        ops.prepack(weight, "conv2d", 4)
    with pytest.raises(ValueError, match="weight: packed for groups=2, got groups=1"):
        ops.conv2d(x[:, :2], packed)
    with pytest.raises(TypeError, match="weight: expected float64 as x has, got one packed from float32"):
        ops.conv2d(x.astype(np.float64), packed, groups=2)
    with pytest.raises(ValueError, match="b: packed as 'conv2d'"):
        ops.matmul(x, packed)
    with pytest.raises(ValueError, match="weight: expected 4 dimensions"):
        ops.conv2d(x, ops.prepack(weight[0, 0]))
    with pytest.raises(TypeError, match="without gradient"):
        ops.conv2d(Tensor(x, requires_grad=True), packed, groups=2).sum().backward()
    y, none = np.empty((1, 6, 3, 3), np.float32), native_activation(None)
    for size in (0, 1, 16, 17, 1000):
        with pytest.raises((ValueError, RuntimeError)):
            _cpu.conv_forward(x, np.zeros(size, np.float32), None, None, None, channels_last(y), (1, 1), (0,) * 4,
                              (1, 1), 2, none)  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (((1, 3, 4, 4), (2, 3, 5, 5)), {}, r"kernel \(5, 5\).*larger than the image \(4, 4\)"),
        (((1, 3, 4, 4), (2, 2, 3, 3)), {}, r"weight: expected shape \(2, 3, \.\.\.\)"),
        (((1, 3, 4, 4), (2, 3, 3)), {}, "weight: expected 4 dimensions"),
        (((3, 4, 4), (2, 3, 3, 3)), {}, r"x: expected 4 dimensions \(N, C, H, W\)"),
        (((1, 3, 4, 4), (2, 3, 3, 3)), {"groups": 2}, "groups: 2 does not divide"),
        (((1, 3, 4, 4), (2, 3, 3, 3)), {"stride": 0}, "stride: expected at least 1"),
        (((1, 3, 4, 4), (2, 3, 3, 3)), {"padding": -1}, "padding: expected at least 0"),
        (((1, 3, 4, 4), (2, 3, 3, 3)), {"padding": "all"}, "padding: expected"),
        (((1, 3, 4, 4), (2, 3, 3, 3)), {"padding": "same", "stride": 2}, "needs stride 1"),
        (((1, 3, 0, 4), (2, 3, 1, 1)), {}, "not empty"),
    ],
)
def test_errors_name_the_argument(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.conv2d(*(np.zeros(s, np.float32) for s in shapes), **arguments)


def test_bindings_refuse_what_does_not_fit():
    """A direct call of the kernels with arrays that do not fit must not reach them."""
    x, w, y = (np.zeros(s, np.float32) for s in ((1, 2, 4, 4), (3, 2, 3, 3), (1, 3, 2, 2)))
    y = channels_last(y)
    good = (x, w, None, None, None, y, (1, 1), (0, 0, 0, 0), (1, 1), 1, None)
    _cpu.conv_forward(*good)
    wrong_height = channels_last(np.zeros((1, 3, 3, 3), np.float32))
    changes = {
        0: [x[:, :, ::2], x[0], x.astype(np.float64), np.zeros((1, 3, 4, 4), np.float32)],
        1: [w[:, :1], w[..., ::-1], w.astype(np.float64)],
        2: [np.zeros(2, np.float32), np.zeros(3)],
        3: [np.zeros((1, 3, 2, 3), np.float32)],
        5: [np.zeros((1, 3, 2, 2), np.float32), wrong_height],
        6: [(0, 1), (1,), (2**62, 1)],
        7: [(-1, 0, 0, 0), (2**62, 2**62, 0, 0), (0, 0)],
        8: [(2**62, 1), (0, 1)],
        9: [0, -1, 2],
    }
    for position, values in changes.items():
        for value in values:
            bad = [*good[:position], value, *good[position + 1 :]]
            with pytest.raises((ValueError, TypeError)):
                _cpu.conv_forward(*bad)


@pytest.mark.parametrize("name", ["lenet 1", "lenet 2", "depthwise"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_weights_alone_take_the_activation_along(xp, name, activation):
    """The first layer of a network, which needs no dx: the same bits as by way of the gradient before."""
    x, weight, arguments = CASES[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in (x, weight))
    y, (v,) = ops.conv2d(x, weight, **arguments, activation=activation, save=True)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    g = ops.activation_backward(channels_last(dy), y if v is None else v, activation)
    expected = ops.conv2d_backward(g, x, weight, **arguments, mask=(False, True, True, False))
    arrays = [xp.asarray(a) for a in (channels_last(dy), x, weight, y)]
    saved = (None if v is None else xp.asarray(v),)
    got = ops.conv2d_backward(
        *arrays[:3],
        **arguments,
        activation=activation,
        y=arrays[3],
        saved=saved,
        mask=(False, True, True, False),
    )
    assert got[0] is None
    assert got[3] is None
    for found, wanted in zip(got[1:3], expected[1:3], strict=True):
        if xp.name == "cpu":
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(xp.asnumpy(found), wanted, rtol=1e-4, atol=1e-3)
