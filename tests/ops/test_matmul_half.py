"""Products of 16-bit arrays, and of float32 arrays in tf32: exact on small integers, within bounds on others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import brasa
from brasa import ops

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BFLOAT16]
UNIT = {HALVES[0]: 2.0**-11, BFLOAT16: 2.0**-8}  # of one rounding
DTYPES = ["float16", "bfloat16", "tf32"]

sides = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129]) | st.integers(1, 140)
depths = st.sampled_from([0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 300, 520]) | st.integers(1, 140)
seeds = st.integers(0, 2**32 - 1)


def dtype_of(name):
    return {"float16": HALVES[0], "bfloat16": BFLOAT16, "tf32": np.dtype(np.float32)}[name]


@pytest.fixture
def kind(xp, request):
    """Arrays and a dtype; tf32 is allowed where it is the dtype."""
    brasa.set_matmul_precision("tf32" if request.param == "tf32" else "ieee")
    yield xp, dtype_of(request.param)
    brasa.set_matmul_precision("ieee")


every_kind = pytest.mark.parametrize("kind", DTYPES, indirect=True)


@pytest.fixture
def gpu(kind, request):
    """A function that sets what GPU the emulator pretends to be."""
    xp, _ = kind
    if xp.name != "emulated":
        yield lambda **_: None
        return
    set_option = xp._module.kernels.set_option
    yield lambda **options: [set_option(*option) for option in options.items()]
    for name, value in (
        ("capability", 90),
        ("multiprocessors", 132),
        ("order", "forward"),
        ("async", "lazy"),
    ):
        set_option(name, value)


def integers(rng, shape, dtype, most=2):
    """Small integers: products, sums of up to 2^8 of them and what becomes of them are exact."""
    return rng.integers(-most, most + 1, shape).astype(np.float32).astype(dtype)


def views(x):
    """`x` as it may lie in memory: in pieces of 16 bytes or not."""
    padded = np.zeros((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1] + 1), x.dtype)
    spread = padded[..., 1 : x.shape[-2] + 1, 1::2]
    spread[...] = x
    wide = np.zeros((*x.shape[:-2], x.shape[-2], -(-x.shape[-1] // 8) * 8), x.dtype)[..., : x.shape[-1]]
    wide[...] = x
    return [x, np.swapaxes(np.swapaxes(x, -1, -2).copy(), -1, -2), spread, x[::-1].copy()[::-1], wide]


@every_kind
@given(m=sides, n=sides, k=depths, seed=seeds, flags=st.tuples(st.booleans(), st.booleans()))
@example(m=130, n=136, k=72, seed=0, flags=(True, True))
@example(m=136, n=136, k=200, seed=0, flags=(True, False))
@example(m=130, n=264, k=65, seed=0, flags=(False, True))
@example(m=5, n=140, k=520, seed=0, flags=(False, True))
@example(m=130, n=256, k=72, seed=9, flags=(True, False))
@example(m=136, n=64, k=200, seed=0, flags=(False, True))
@example(m=40, n=136, k=72, seed=27, flags=(False, True))
@example(m=60, n=264, k=520, seed=45, flags=(True, False))
@example(m=40, n=264, k=1200, seed=45, flags=(False, True))
@example(m=136, n=136, k=1200, seed=15, flags=(False, True))
@example(m=72, n=64, k=6400, seed=75, flags=(True, False))
def test_integers_are_exact(kind, gpu, m, n, k, seed, flags):
    xp, dtype = kind
    rng = np.random.default_rng(seed)
    gpu(capability=(80, 90)[seed % 2], multiprocessors=(1, 2, 132)[seed % 3])
    gpu(
        order=("forward", "reverse", "random")[seed // 3 % 3],
        **{"async": ("lazy", "eager", "random")[seed // 9 % 3]},
    )
    most = 2 if k < 60 else 1
    a, b = integers(rng, (m, k), dtype, most), integers(rng, (k, n), dtype, most)
    bias, residual = integers(rng, n, dtype), integers(rng, (m, n), dtype)
    a_view, b_view = views(a.T if flags[0] else a), views(b.T if flags[1] else b)
    y = ops.matmul(
        xp.asarray(a_view[seed % 5]), xp.asarray(b_view[seed // 5 % 5]),
        xp.asarray(bias.astype(np.float32) if seed % 2 else bias), "relu" if seed % 4 else None,
        residual=xp.asarray(residual), transpose_a=flags[0], transpose_b=flags[1],
    )  # fmt: skip
    want = wide(a) @ wide(b) + wide(bias) + wide(residual)
    assert y.dtype == dtype
    want = np.maximum(want, 0) if seed % 4 else want
    assert np.array_equal(wide(xp.asnumpy(y)), wide(want.astype(dtype)))


def wide(x):
    return x.astype(np.float64)


@every_kind
@pytest.mark.parametrize("shape", [(3, 40, 600), (40, 24, 700), (150, 72, 70), (130, 264, 136)], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_sums_are_rounded_once(kind, gpu, shape, capability):
    """Within the rounding of tf32's operands, a chain of float32 and one rounding."""
    xp, dtype = kind
    if xp.name == "cpu" and dtype == np.float32:
        pytest.skip("the CPU has no tf32")
    (m, n, k), rng = shape, np.random.default_rng(1)
    gpu(capability=capability, multiprocessors=2)
    a, b = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in ((m, k), (k, n)))
    y = wide(xp.asnumpy(ops.matmul(xp.asarray(a), xp.asarray(b), activation="gelu")))
    exact = np.vectorize(gelu)(wide(a) @ wide(b))
    operands = 2.0**-9 if dtype == np.float32 else 0.0
    magnitude = np.abs(wide(a)) @ np.abs(wide(b))
    bound = 1.2 * (operands + (k + 4) * 2.0**-23) * magnitude + UNIT.get(dtype, 0) * np.abs(exact) + 2.0**-20
    assert np.all(np.abs(y - exact) <= bound)


def gelu(x):
    from math import erf, sqrt

    return 0.5 * x * (1 + erf(x / sqrt(2)))


@every_kind
@pytest.mark.parametrize(
    ("first", "second"), [((3, 20, 40), (40, 16)), ((2, 1, 5, 8), (3, 8, 24)), ((4, 9, 7), (4, 7, 5))]
)
def test_batches(kind, gpu, first, second):
    xp, dtype = kind
    rng = np.random.default_rng(2)
    a, b = integers(rng, first, dtype), integers(rng, second, dtype)
    for capability in (80, 90):
        gpu(capability=capability, multiprocessors=1)
        y = ops.matmul(xp.asarray(a), xp.asarray(b))
        assert np.array_equal(wide(xp.asnumpy(y)), np.matmul(wide(a), wide(b)))


@pytest.mark.parametrize("kind", DTYPES[:2], indirect=True)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("wide_bias", [False, True])
def test_gradients_are_those_of_float32(kind, activation, wide_bias):
    xp, dtype = kind
    rng = np.random.default_rng(3)
    a, b, dy = (integers(rng, s, dtype) for s in ((2, 6, 16), (16, 9), (2, 6, 9)))
    bias = integers(rng, 9, np.float32 if wide_bias else dtype)
    y, saved = ops.matmul(*map(xp.asarray, (a, b, bias)), activation, save=True)
    got = ops.matmul_backward(*map(xp.asarray, (dy, a, b, bias)), activation, y=y, saved=saved)
    wide_saved = None if saved is None else np.float32(xp.asnumpy(saved))
    want = ops.matmul_backward(
        *map(np.float32, (dy, a, b, bias)), activation, y=np.float32(xp.asnumpy(y)), saved=wide_saved
    )
    for gradient, exact, like in zip(got, want, (a, b, bias, dy), strict=True):
        gradient = xp.asnumpy(gradient)
        assert gradient.dtype == like.dtype
        scale = np.abs(exact).max()
        assert np.all(np.abs(np.float32(gradient) - exact) <= 20 * UNIT[dtype] * scale)
        if activation != "gelu":
            assert np.array_equal(gradient, exact.astype(like.dtype))


@every_kind
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("shape", [(5, 8, 24), (136, 72, 264), (70, 40, 72)], ids=str)
def test_saved_and_out(kind, gpu, activation, shape):
    """What is kept for the backward pass is the activation's input, and changes no result."""
    xp, dtype = kind
    (m, k, n), rng = shape, np.random.default_rng(4)
    gpu(multiprocessors=1)
    a, b, bias, residual = (integers(rng, s, dtype, 1) for s in ((m, k), (k, n), n, (m, n)))
    out = xp.asarray(np.zeros((m, n), dtype))
    arguments = [*map(xp.asarray, (a, b, bias)), activation]
    y, saved = ops.matmul(*arguments, residual=xp.asarray(residual), out=out, save=True)
    assert y is out
    want = wide(a) @ wide(b) + wide(bias) + wide(residual)
    if saved is not None:
        assert saved.dtype == dtype
        assert np.array_equal(wide(xp.asnumpy(saved)), want)
    assert np.array_equal(xp.asnumpy(y), xp.asnumpy(ops.matmul(*arguments, residual=xp.asarray(residual))))


def test_dtypes_are_not_mixed():
    a, b = np.ones((2, 2), BFLOAT16), np.ones((2, 2), np.float16)
    with pytest.raises(TypeError, match="b: expected bfloat16 as a has, got float16"):
        ops.matmul(a, b)
    with pytest.raises(TypeError, match="residual: expected bfloat16 as a has, got float32"):
        ops.matmul(a, a, residual=np.ones((2, 2), np.float32))
    with pytest.raises(TypeError, match="bias: expected bfloat16 as a has, got float16"):
        ops.matmul(a, a, b[0])
    with pytest.raises(TypeError, match="a: expected float16, bfloat16, float32 or float64, got int64"):
        ops.matmul(a.astype(np.int64), a)


def test_the_precision_is_ieee_or_tf32_or_three_of_these():
    assert brasa.matmul_precision() == "ieee"
    for precision in ("tf32", "tf32x3", "ieee"):
        brasa.set_matmul_precision(precision)
        assert brasa.matmul_precision() == precision
    with pytest.raises(ValueError, match="precision: expected 'ieee', 'tf32' or 'tf32x3', got 'high'"):
        brasa.set_matmul_precision("high")


@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=2)))
def test_float32_stays_float32_by_default(xp, flags):
    a = np.float32(1) + np.eye(16, dtype=np.float32) * np.float32(2.0**-20)
    y = xp.asnumpy(ops.matmul(*[xp.asarray(a)] * 2, transpose_a=flags[0], transpose_b=flags[1]))
    assert np.abs(y - wide(a) @ wide(a)).max() <= 20 * 2.0**-24 * 16
