"""Matrix products: exact on integers along every path, the stated order of summation, gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brasa import _cpu, ops
from brasa.tensor import Tensor
from brasa.testing import gradcheck
from descriptors import UNIT
from descriptors.matmul import product_bound

EDGES = [0, 1, 2, 5, 6, 7, 11, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 48, 63, 64, 65]
sides = st.sampled_from(EDGES) | st.integers(1, 90)
depths = st.sampled_from([0, 1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513]) | st.integers(1, 90)
dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32 - 1)

# (m, n, k): every way through the kernels, by size: one row, few rows, few with a long B, B in place, packed
# for one part of the rows, kept for several, A packed, B packed by all threads, several blocks of K, one column.
PATHS = [
    (1, 1030, 300), (1, 70, 1100), (3, 100, 600), (6, 64, 64), (2, 300, 300), (4, 2100, 70), (8, 150, 1100),
    (13, 33, 1025), (24, 40, 513), (40, 700, 300), (64, 64, 64), (96, 96, 96), (130, 150, 40), (151, 97, 1030),
    (200, 1, 600), (300, 40, 520), (300, 200, 300), (300, 70, 700), (64, 10, 784), (90, 100, 400), (100, 192, 200),
]  # fmt: skip


def integers(rng, shape, dtype):
    """Small integers: every partial sum is exact, so the result has no tolerance."""
    return rng.integers(-4, 5, shape).astype(dtype)


def views(x):
    """`x` as it may lie in memory."""
    padded = np.zeros((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1] + 1), x.dtype)
    spread = padded[..., 1 : x.shape[-2] + 1, 1::2]
    spread[...] = x
    return [x, np.swapaxes(np.swapaxes(x, -1, -2).copy(), -1, -2), spread, x[::-1].copy()[::-1]]


@given(m=sides, n=sides, k=depths, dtype=dtypes, seed=seeds, flags=st.tuples(st.booleans(), st.booleans()))
@example(m=0, n=3, k=2, dtype=np.float32, seed=0, flags=(False, False))
@example(m=3, n=0, k=2, dtype=np.float32, seed=0, flags=(False, True))
@example(m=3, n=4, k=0, dtype=np.float32, seed=0, flags=(True, False))
@example(m=65, n=129, k=33, dtype=np.float32, seed=0, flags=(True, True))
def test_integers_are_exact(xp, m, n, k, dtype, seed, flags):
    rng = np.random.default_rng(seed)
    if xp.name == "emulated":
        k = min(k, 40)
    a, b = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
    bias, residual = integers(rng, n, dtype), integers(rng, (m, n), dtype)
    a_view, b_view = views(a.T if flags[0] else a), views(b.T if flags[1] else b)
    y = ops.matmul(
        xp.asarray(a_view[seed % 4]), xp.asarray(b_view[seed // 4 % 4]), xp.asarray(bias), "relu",
        residual=xp.asarray(residual), transpose_a=flags[0], transpose_b=flags[1],
    )  # fmt: skip
    assert np.array_equal(xp.asnumpy(y), np.maximum(a @ b + bias + residual, 0))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_path_is_exact_and_gives_the_same_bits(path, set_threads):
    m, n, k = path
    rng = np.random.default_rng(m + n + k)
    for dtype in (np.float32, np.float64):
        exact = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
        floats = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        want, expected = exact[0] @ exact[1], None
        for isa, threads, flags in product_of_settings(m * n * k):
            _cpu._set_isa(isa)
            set_threads(threads)
            for a, b, expect_exact in ((*exact, True), (*floats, False)):
                stored = (a.T.copy() if flags[0] else a), (b.T.copy() if flags[1] else b)
                y = ops.matmul(*stored, transpose_a=flags[0], transpose_b=flags[1])
                if expect_exact:
                    assert np.array_equal(y, want), (isa, threads, flags)
                elif isa != "baseline":
                    expected = y if expected is None else expected
                    assert y.tobytes() == expected.tobytes(), (isa, threads, flags)
        error = np.abs(expected - floats[0].astype(np.float64) @ floats[1].astype(np.float64))
        assert np.all(error <= product_bound(*floats, UNIT[dtype]))


def product_of_settings(work):
    before = _cpu.isa()
    isas = [isa for isa in _cpu.supported_isas() if isa != "scalar" or work < 2_000_000]
    yield from itertools.product(isas, (1, 2, 3), itertools.product((False, True), repeat=2))
    _cpu._set_isa(before)


@pytest.mark.parametrize("rows", [1, 5, 20, 40, 150])
def test_each_block_of_k_is_one_chain_and_blocks_are_added_in_order(isa, rows):
    """2^24 + 1 is 2^24 in float32: ones that follow it in its chain vanish, those of the next block stay."""
    a = np.ones((rows, 1024), np.float32)
    a[:, 0] = 2.0**24
    for b in (np.ones((1024, 70), np.float32), np.ones((70, 1024), np.float32).T):
        assert np.all(ops.matmul(a, b) == 2.0**24 + 512)
    wide = a.astype(np.float64)
    wide[:, 0] = 2.0**53
    assert np.all(ops.matmul(wide, np.ones((1024, 33))) == 2.0**53 + 768)


@pytest.mark.parametrize("layout", ["ordinary", "transposed"])
def test_a_row_alone_is_the_row_in_a_batch(layout):
    rng = np.random.default_rng(3)
    for m, n, k in PATHS:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((k, n) if layout == "ordinary" else (n, k)).astype(np.float32)
        whole = ops.matmul(a, b, transpose_b=layout == "transposed")
        for rows in (slice(0, 1), slice(m - 1, m), slice(m // 3, m // 2 + 1)):
            part = ops.matmul(a[rows], b, transpose_b=layout == "transposed")
            assert part.tobytes() == whole[rows].tobytes()


@pytest.mark.parametrize("offset", [1, 3, 5])
def test_where_an_operand_begins_changes_no_bit(offset):
    rng = np.random.default_rng(offset)
    for m, n, k in ((1, 70, 300), (7, 40, 1100), (13, 70, 64), (40, 100, 513)):
        a, weight = (
            rng.standard_normal((m, k)).astype(np.float32),
            rng.standard_normal((n, k)).astype(np.float32),
        )
        moved = np.empty(n * k + offset, np.float32)[offset:].reshape(n, k)
        moved[...] = weight
        expected = ops.matmul(a, weight, transpose_b=True)
        assert ops.matmul(a, moved, transpose_b=True).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("m", "n"), [(9, 20), (33, 70), (64, 100), (100, 520)])
@pytest.mark.parametrize("flags", [(False, True), (True, True)])
def test_where_operands_lie_along_k_changes_no_bit(isa, set_threads, m, n, flags):
    """Such products are computed transposed."""
    rng, k, batch = np.random.default_rng(m), 170, (2, 3)
    for dtype in (np.float32, np.float64):
        a, b = rng.standard_normal((3, m, k)).astype(dtype), rng.standard_normal((2, 1, k, n)).astype(dtype)
        bias, residual = (rng.standard_normal(s).astype(dtype) for s in (n, (*batch, m, n)))
        expected = ops.matmul(a, b, bias, "gelu", residual=residual, save=True)
        stored = [np.swapaxes(x, -1, -2).copy() if flag else x for x, flag in zip((a, b), flags, strict=True)]
        for threads in (1, 2, 3):
            set_threads(threads)
            result = ops.matmul(
                *stored, bias, "gelu", residual=residual, save=True,
                transpose_a=flags[0], transpose_b=flags[1],
            )  # fmt: skip
            for found, want in zip(result, expected, strict=True):
                assert found.tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", ["matmul", "linear"])
def test_a_packed_operand_gives_the_same_bits(xp, kind, isa, set_threads):
    rng = np.random.default_rng(7)
    transposed = kind == "linear"
    paths = [(3, 17, 20), (1, 5, 0)]
    if xp.name != "emulated":
        paths += [*PATHS, (4, 1, 30), (3, 10, 84)] if isa != "scalar" else [(1, 70, 600), (8, 40, 513)]
    for (m, n, k), dtype in itertools.product(paths, (np.float32, np.float64)):
        a, b, bias = (xp.asarray(rng.standard_normal(s).astype(dtype)) for s in ((m, k), (k, n), n))
        stored = xp.asarray(xp.asnumpy(b).T.copy()) if transposed else b
        packed = ops.prepack(stored, kind)
        assert (packed.kind, packed.shape, packed.dtype) == (kind, stored.shape, dtype)
        for threads in (1, 2):
            set_threads(threads)
            expected = xp.asnumpy(ops.matmul(a, stored, bias, "gelu", transpose_b=transposed))
            y = ops.matmul(a, packed, bias, "gelu", transpose_b=transposed)
            assert xp.asnumpy(y).tobytes() == expected.tobytes()
            out = xp.asarray(np.empty((1, m, n), dtype))
            y = ops.matmul(a[None], packed, bias, "gelu", transpose_b=transposed, out=out)
            assert y is out
            assert xp.asnumpy(y).tobytes() == expected.tobytes()


def test_a_packed_operand_says_what_it_does_not_fit():
    a, weight = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    packed = ops.prepack(Tensor(weight, requires_grad=True), "linear")
    with pytest.raises(ValueError, match="kind: expected 'matmul', 'linear' or 'conv2d', got 'conv'"):
        ops.prepack(weight, "conv")
    with pytest.raises(ValueError, match="groups: expected 1 for the kind 'linear', got 2"):
        ops.prepack(weight, "linear", 2)
    with pytest.raises(ValueError, match="weight: expected 2 dimensions"):
        ops.prepack(weight[0], "linear")
    with pytest.raises(TypeError, match="weight: expected float32 or float64"):
        ops.prepack(weight.astype(np.int64))
    with pytest.raises(ValueError, match="needs transpose_b=True, got False"):
        ops.matmul(a, packed)
    with pytest.raises(TypeError, match="b: expected float64"):
        ops.matmul(a.astype(np.float64), packed, transpose_b=True)
    with pytest.raises(ValueError, match="inner dimension of 2"):
        ops.matmul(a[:, :2], packed, transpose_b=True)
    with pytest.raises(TypeError, match="without gradient"):
        ops.matmul(Tensor(a, requires_grad=True), packed, transpose_b=True).sum().backward()


def test_a_packed_operand_belongs_to_its_instruction_set():
    before, a = _cpu.isa(), np.ones((2, 3), np.float32)
    packed = ops.prepack(np.ones((3, 4), np.float32))
    try:
        _cpu._set_isa("scalar" if before != "scalar" else "baseline")
        with pytest.raises(ValueError, match=f"packed for the instruction set {before}"):
            ops.matmul(a, packed)
    finally:
        _cpu._set_isa(before)
    assert np.all(ops.matmul(a, packed) == 3)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000])
def test_the_binding_takes_no_other_vector_for_a_packed_operand(size):
    a, y = np.ones((2, 3), np.float32), np.empty((2, 4), np.float32)
    for dtype in (np.float32, np.uint8):
        with pytest.raises((ValueError, TypeError)):
            _cpu.matmul(a, np.ones(size, dtype), None, None, y, None, False, False, None)


@given(seed=seeds, dtype=dtypes, rank=st.integers(0, 3), other=st.integers(0, 3))
def test_batches_broadcast_as_numpys(xp, seed, dtype, rank, other):
    rng = np.random.default_rng(seed)
    m, n, k = (int(i) for i in rng.integers(1, 6, 3))
    batch = rng.integers(0 if seed % 5 == 0 else 1, 4, 3)
    first = tuple(int(i) for i in np.where(rng.random(3) < 0.3, 1, batch))[3 - rank :]
    second = tuple(int(i) for i in np.where(rng.random(3) < 0.3, 1, batch))[3 - other :]
    a, b = integers(rng, (*first, m, k), dtype), integers(rng, (*second, k, n), dtype)
    want = np.matmul(a, b)
    assert np.array_equal(xp.asnumpy(ops.matmul(xp.asarray(a), xp.asarray(b))), want)
    residual = integers(rng, want.shape, dtype)
    y = ops.matmul(xp.asarray(a), xp.asarray(b), residual=xp.asarray(residual))
    assert np.array_equal(xp.asnumpy(y), want + residual)


def test_an_operand_too_long_to_be_kept_packed(set_threads):
    rng = np.random.default_rng(1)
    a, b = integers(rng, (600, 17000), np.float32), integers(rng, (17000, 70), np.float32)
    for threads in (1, 2, 5):
        set_threads(threads)
        assert np.array_equal(ops.matmul(a, b), a @ b)


def test_an_operand_too_long_to_be_packed_by_the_team_at_once(set_threads):
    """A transposed A is packed, and B by all threads together: here its blocks of K in two passes."""
    rng = np.random.default_rng(2)
    a, b = integers(rng, (2100, 300), np.float32), integers(rng, (2100, 1100), np.float32)
    bias, residual = integers(rng, 1100, np.float32), integers(rng, (300, 1100), np.float32)
    want = np.maximum(a.T @ b + bias + residual, 0)
    for threads in (1, 2, 3):
        set_threads(threads)
        y = ops.matmul(a, b, bias, "relu", residual=residual, transpose_a=True)
        assert np.array_equal(y, want)


def test_many_small_products_and_few_large_ones(set_threads):
    rng = np.random.default_rng(5)
    for shape, k, n in (((300, 7), 9, 5), ((3, 90), 520, 100), ((16, 64), 70, 64)):
        a, b = integers(rng, (*shape, k), np.float32), integers(rng, (shape[0], k, n), np.float32)
        for threads in (1, 2, 3):
            set_threads(threads)
            assert np.array_equal(ops.matmul(a, b), a @ b)


def test_large_tiles_and_long_batches_on_the_device(device):
    """128 x 128 tiles are for many large products; a grid has at most 65,535 blocks along z."""
    rng = np.random.default_rng(8)
    a, b = integers(rng, (132, 66, 17), np.float32), integers(rng, (17, 130), np.float32)
    y = ops.matmul(device.asarray(a).swapaxes(1, 2), device.asarray(b), transpose_a=True)
    assert np.array_equal(device.asnumpy(y), a @ b)
    a, b = integers(rng, (65_540, 1, 1), np.float32), integers(rng, (65_540, 1, 1), np.float32)
    assert np.array_equal(device.asnumpy(ops.matmul(device.asarray(a), device.asarray(b))), a * b)


@pytest.mark.parametrize(
    ("first", "second"), [((7,), (7, 3)), ((3, 7), (7,)), ((7,), (7,)), ((2, 3, 7), (7,)), ((7,), (2, 7, 3))]
)
def test_vectors_are_numpys(xp, first, second):
    rng = np.random.default_rng(1)
    a, b = integers(rng, first, np.float32), integers(rng, second, np.float32)
    y = xp.asnumpy(ops.matmul(xp.asarray(a), xp.asarray(b), transpose_a=False))
    assert y.shape == np.matmul(a, b).shape
    assert np.array_equal(y, np.matmul(a, b))
    bias = np.float32([10]) if len(second) == 1 else np.float32([10, 20, 30])
    y = xp.asnumpy(ops.matmul(xp.asarray(a), xp.asarray(b), xp.asarray(bias), "relu"))
    assert np.array_equal(y, np.maximum(np.matmul(a, b) + (10 if len(second) == 1 else bias), 0))


def test_an_empty_sum_is_zero_under_the_epilogue(xp):
    a, b = xp.asarray(np.empty((3, 0), np.float32)), xp.asarray(np.empty((0, 40), np.float32))
    bias = np.arange(40, dtype=np.float32) - 20
    y = xp.asnumpy(ops.matmul(a, b, xp.asarray(bias), "relu"))
    assert np.array_equal(y, np.broadcast_to(np.maximum(bias, 0), (3, 40)))


def test_infinities_stay_in_their_row_and_column(isa):
    """Padding of the last panel is multiplied with whatever A holds; nothing of it may be stored."""
    for m, n, k in ((1, 19, 5), (5, 19, 5), (40, 19, 70), (1, 19, 5)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        a[0, 0], b[0, 3] = np.inf, np.nan
        for stored in (b, b.T.copy().T):
            y = ops.matmul(a, stored)
            assert np.isnan(y[:, 3]).all()
            assert np.isinf(np.delete(y[0], 3)).all()
            assert (np.delete(y, 3, axis=1)[1:] == k).all()


@pytest.mark.parametrize("activation", list(ops.ACTIVATIONS))
def test_the_epilogue_is_the_activation_of_the_sum(xp, activation):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((4, 37)).astype(np.float32)
    bias, residual = (
        rng.standard_normal(37).astype(np.float32),
        rng.standard_normal((5, 37)).astype(np.float32),
    )
    a, b, bias, residual = map(xp.asarray, (a, b, bias, residual))
    plain = ops.matmul(a, b, bias, residual=residual)
    y, saved = ops.matmul(a, b, bias, activation, residual=residual, save=True)
    want = xp.asnumpy(ops.activation(plain, activation))
    np.testing.assert_allclose(xp.asnumpy(y), want, rtol=1e-5, atol=1e-6)
    if ops.ACTIVATIONS[activation].needs == "x":
        assert np.array_equal(xp.asnumpy(saved), xp.asnumpy(plain))
    else:
        assert saved is None


def test_out_is_written_and_returned():
    rng = np.random.default_rng(0)
    a, b = integers(rng, (4, 5), np.float32), integers(rng, (5, 6), np.float32)
    for out in (
        np.empty((4, 6), np.float32),
        np.empty((6, 4), np.float32).T,
        np.empty((4, 12), np.float32)[:, ::2],
    ):
        assert ops.matmul(a, b, out=out) is out
        assert np.array_equal(out, a @ b)
    out = np.empty(4, np.float32)
    assert ops.matmul(a, b[:, 0].copy(), out=out) is out
    assert np.array_equal(out, a @ b[:, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": np.ones((4, 2), np.float32)}, ValueError, r"b: expected an inner dimension of 3 .* b \(4, 2\)"),
        ({"a": np.ones((3, 2, 3), np.float32), "b": np.ones((2, 3, 2), np.float32)}, ValueError, "b: its batch"),
        ({"a": np.float32(1)}, ValueError, "a: expected at least 1 dimension"),
        ({"a": np.ones((2, 3), np.int32)}, TypeError, "a: expected float16, bfloat16, float32 or float64, got int32"),
        ({"b": np.ones((3, 4))}, TypeError, "b: expected float32 as a has, got float64"),
        ({"bias": np.ones(3, np.float32)}, ValueError, r"bias: expected shape \(4,\)"),
        ({"bias": np.ones(4)}, TypeError, "bias: expected float32"),
        ({"residual": np.ones((1, 4), np.float32)}, ValueError, r"residual: expected shape \(2, 4\)"),
        ({"activation": "swish"}, ValueError, "activation: expected one of"),
        ({"out": np.ones((2, 3), np.float32)}, ValueError, r"out: expected shape \(2, 4\)"),
        ({"out": np.ones((2, 4))}, TypeError, "out: expected float32"),
        ({"out": [[1.0]]}, TypeError, "out: expected ndarray"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    arguments = {"a": np.ones((2, 3), np.float32), "b": np.ones((3, 4), np.float32)} | change
    with pytest.raises(error, match=message):
        ops.matmul(**arguments)


def test_out_must_be_writable_and_apart():
    a, b = np.ones((4, 4), np.float32), np.ones((4, 4), np.float32)
    for name, out in (("a", a), ("b", b[::-1]), ("residual", b)):
        with pytest.raises(ValueError, match="out: overlaps"):
            ops.matmul(**{"a": a, "b": b, name: a if name == "a" else b}, out=out)
    out = np.empty((4, 4), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        ops.matmul(a, b, out=out)


def test_sizes_that_overflow_are_refused():
    one = np.float32(1)
    with pytest.raises(ValueError, match="overflows"):
        ops.matmul(np.broadcast_to(one, (1, 2**58)), np.broadcast_to(one, (2**58, 4)))
    with pytest.raises((ValueError, MemoryError)):
        ops.matmul(np.broadcast_to(one, (2**40, 1)), np.broadcast_to(one, (1, 2**40)))


def test_the_binding_refuses_what_would_read_outside(xp):
    def array(*shape, dtype=np.float32):
        return xp.asarray(np.ones(shape, dtype))

    def call(a=(3, 4), b=(4, 5), y=(3, 5), bias=None, residual=None, saved=None, transpose_a=False):
        arrays = [
            None if s is None else s if hasattr(s, "shape") else array(*s)
            for s in (a, b, bias, residual, y, saved)
        ]
        xp.kernels.matmul(*arrays, transpose_a, False, None)

    call()
    wide = array(3, 10)
    bad = [
        {"b": (5, 5)}, {"y": (5, 3)}, {"y": (2, 3, 5)}, {"a": (4,)}, {"y": (15,)}, {"y": wide[:, ::2]},
        {"bias": (4,)}, {"bias": (1, 5)}, {"residual": (3, 4)}, {"residual": wide[:, ::2]}, {"saved": (5, 3)},
        {"y": array(3, 5, dtype=np.float64)}, {"bias": array(5, dtype=np.float64)}, {"transpose_a": True},
        {"a": (2, 3, 4), "b": (3, 4, 5), "y": (3, 3, 5)}, {"a": (2, 3, 4), "y": (4, 3, 5)},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(ValueError, match=r".+"):
            call(**change)
    for x, y in ((array(3, 4), array(3)), (array(4), array(4)), (wide[:, ::2], array(5))):
        with pytest.raises(ValueError, match=r".+"):
            xp.kernels.column_sums(x, y)


SHAPES = [
    ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((1, 3, 4), (2, 4, 5)), ((4,), (4, 5)),
    ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 5)), ((0, 3, 4), (4, 5)), ((3, 0), (0, 5)),
    ((5, 2, 3, 4), (1, 1, 4, 5)), ((0, 3, 4), (1, 4, 5)), ((3, 4), (4, 0)), ((2, 3, 4), (4, 0)),
]  # fmt: skip


def transposed(x, flag):
    return np.swapaxes(x, -1, -2).copy() if flag and x.ndim > 1 else x


@pytest.mark.parametrize(("first", "second"), SHAPES)
@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=2)))
def test_gradients_on_integers_are_exact(xp, first, second, flags):
    """Against einsum over the broadcast operands, summed where they were repeated."""
    rng = np.random.default_rng(7)
    a, b = integers(rng, first, np.float32), integers(rng, second, np.float32)
    want = np.matmul(a, b)
    dy = integers(rng, want.shape, np.float32)
    bias = np.zeros(second[-1] if len(second) > 1 else 1, np.float32)
    da, db, dbias, dresidual = ops.matmul_backward(
        *map(xp.asarray, (dy, transposed(a, flags[0]), transposed(b, flags[1]), bias)),
        transpose_a=flags[0], transpose_b=flags[1],
    )  # fmt: skip
    a2, b2 = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    batch = np.broadcast_shapes(a2.shape[:-2], b2.shape[:-2])
    dy2 = dy.reshape(*batch, a2.shape[-2], b2.shape[-1])
    for got, operand, full, flag in (
        (
            da,
            a,
            np.einsum("...ij,...kj->...ik", dy2, np.broadcast_to(b2, (*batch, *b2.shape[-2:]))),
            flags[0],
        ),
        (
            db,
            b,
            np.einsum("...ik,...ij->...kj", np.broadcast_to(a2, (*batch, *a2.shape[-2:])), dy2),
            flags[1],
        ),
    ):
        matrix = a2 if operand is a else b2
        lead = full.ndim - matrix.ndim
        full = full.sum(axis=tuple(range(lead)))
        full = full.sum(axis=tuple(i for i, n in enumerate(matrix.shape[:-2]) if n == 1), keepdims=True)
        assert np.array_equal(xp.asnumpy(got), transposed(full.reshape(operand.shape), flag))
    assert np.array_equal(xp.asnumpy(dbias), dy2.reshape(-1, dy2.shape[-1]).sum(axis=0) if dy2.size else bias)
    assert np.array_equal(xp.asnumpy(dresidual), dy)


@pytest.mark.parametrize(("first", "second"), SHAPES[:9])
@pytest.mark.parametrize("activation", [None, "tanh", "gelu", ("leaky_relu", -0.3)])
def test_gradients_agree_with_differences(first, second, activation):
    rng = np.random.default_rng(11)
    a, b = rng.standard_normal(first), rng.standard_normal(second)
    shape = np.matmul(a, b).shape
    bias, residual = rng.standard_normal(second[-1] if len(second) > 1 else 1), rng.standard_normal(shape)

    def function(a, b, bias, residual):
        return ops.matmul(a, b, bias, activation, residual=residual)

    assert gradcheck(function, [a, b, bias, residual])


def test_gradients_that_nobody_needs_are_not_computed():
    a, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    dy = np.ones((3, 5), np.float32)
    for i in range(4):
        mask = tuple(j == i for j in range(4))
        given = ops.matmul_backward(dy, a, b, np.zeros(5, np.float32), mask=mask)
        assert [g is not None for g in given] == list(mask)
    assert ops.matmul_backward(dy, a, b)[2] is None


def test_a_backward_says_what_it_lacks():
    a = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="y: needed for the gradient of 'relu'"):
        ops.matmul_backward(a, a, a, None, "relu")
    with pytest.raises(ValueError, match="saved: needed for the gradient of 'gelu'"):
        ops.matmul_backward(a, a, a, None, "gelu", y=a)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 2\)"):
        ops.matmul_backward(a[:1], a, a)


@given(
    rows=st.integers(0, 700),
    columns=st.sampled_from([1, 3, 16, 17, 127, 128, 129, 300]),
    dtype=dtypes,
    seed=seeds,
)
def test_column_sums(rows, columns, dtype, seed, set_threads):
    rng = np.random.default_rng(seed)
    results = []
    x = rng.standard_normal((rows, columns)).astype(dtype)
    for threads in (1, 2, 3):
        set_threads(threads)
        y = np.empty(columns, dtype)
        _cpu.column_sums(x, y)
        results.append(y.tobytes())
    assert len(set(results)) == 1
    wide = x.astype(np.float64)
    error = np.abs(y - wide.sum(axis=0))
    assert np.all(error <= (128 + rows / 128) * UNIT[dtype] * np.abs(wide).sum(axis=0) + 1e-300)


def test_linear_layers_rows_have_one_gradient(set_threads):
    """A weight's gradient sums over all leading dimensions, as over the rows of one matrix."""
    rng = np.random.default_rng(4)
    x, weight = integers(rng, (6, 50, 30), np.float32), integers(rng, (20, 30), np.float32)
    dy = integers(rng, (6, 50, 20), np.float32)
    for threads in (1, 2):
        set_threads(threads)
        dx, dweight, _, _ = ops.matmul_backward(dy, x, weight, transpose_b=True)
        assert np.array_equal(dx, dy @ weight)
        assert np.array_equal(dweight, dy.reshape(-1, 20).T @ x.reshape(-1, 30))


@pytest.mark.torch
@pytest.mark.parametrize(("first", "second"), SHAPES[:9])
def test_pytorch_agrees(first, second):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal(first), rng.standard_normal(second)
    ours = [Tensor(x, requires_grad=True) for x in (a, b)]
    theirs = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    y = ops.matmul(*ours, activation="gelu")
    want = torch.nn.functional.gelu(theirs[0] @ theirs[1])
    np.testing.assert_allclose(y.numpy(), want.detach().numpy(), rtol=1e-12, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    y.backward(Tensor(dy) if dy.shape else None)
    want.backward(torch.tensor(dy) if dy.shape else None)
    for t, u in zip(ours, theirs):
        np.testing.assert_allclose(t.grad.numpy(), u.grad.numpy(), rtol=1e-11, atol=1e-11)
