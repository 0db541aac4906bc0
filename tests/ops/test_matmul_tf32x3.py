"""3xTF32: products of float32 on tensor cores as exact as a chain of FMA, also where tensor cores cut their sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import brasa as br
from brasa import nn, ops
from brasa.tensor import Tensor

U = 2.0**-24
LARGEST = np.finfo(np.float32).max
EDGES = [(65, 64, 300), (64, 130, 257), (129, 128, 64), (128, 129, 65), (130, 264, 136), (200, 66, 530)]
FLAGS = list(itertools.product((False, True), repeat=2))


@pytest.fixture
def precise(xp):
    """`xp`, products in 3xTF32."""
    br.set_matmul_precision("tf32x3")
    yield xp
    br.set_matmul_precision("ieee")


@pytest.fixture(params=[80, 90])
def gpu(xp, request):
    """A function that sets more of what GPU the emulator pretends to be: one on which small products pay."""
    if xp.name != "emulated":
        if request.param == 80:
            pytest.skip("not an emulated device")
        yield lambda **_: None
        return
    set_option = xp._module.kernels.set_option

    def choose(**options):
        for option in options.items():
            set_option(*option)

    choose(capability=request.param, multiprocessors=1, sums="cut")
    yield choose
    choose(capability=90, multiprocessors=132, sums="rounded", order="forward", **{"async": "lazy"})


def product(xp, a, b, **arguments):
    return xp.asnumpy(ops.matmul(xp.asarray(a), xp.asarray(b), **arguments))


def drawn(shape, seed=0):
    """Normal numbers, of all signs or, where sums are cut in one direction only, of one."""
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.abs(numbers) if seed % 2 else numbers


def bound(a, b):
    """What csrc/matmul/tf32_split.cuh derives; an epilogue adds its own."""
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    return (58 + a.shape[-1] / 16) * U * magnitude


def views(x):
    """`x` as it may lie in memory."""
    spread = np.zeros((x.shape[0] + 3, 2 * x.shape[1] + 1), x.dtype)[1 : x.shape[0] + 1, 1::2]
    spread[...] = x
    return [x, x.T.copy().T, spread, x[::-1].copy()[::-1]]


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_integers_of_14_bits_are_exact(precise, gpu, shape):
    """One operand needs both parts, the other is -1, 0 or 1: every sum is exact."""
    (m, n, k), rng = shape, np.random.default_rng(sum(shape))
    for turn, flags in enumerate(FLAGS):
        gpu(order=("forward", "reverse", "random", "forward")[turn])
        gpu(**{"async": ("lazy", "eager", "random", "eager")[turn]})
        wide, narrow = (m, k), (k, n)
        a, b = rng.integers(-8191, 8192, wide), rng.integers(-1, 2, narrow)
        if turn % 2:
            a, b = rng.integers(-1, 2, wide), rng.integers(-8191, 8192, narrow)
        a, b = a.astype(np.float32), b.astype(np.float32)
        stored = views(a.T if flags[0] else a)[turn], views(b.T if flags[1] else b)[(turn + m) % 4]
        y = product(precise, *stored, transpose_a=flags[0], transpose_b=flags[1])
        assert np.array_equal(y, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(129, 128, 64), (130, 72, 300), (65, 70, 2050)], ids=str)
def test_errors_are_within_the_bound_of_a_chain_of_fma(precise, gpu, shape, seed):
    m, n, k = shape if precise.name == "emulated" else (1024, 1024, shape[2])
    a, b = drawn((m, k), seed), drawn((k, n), seed + 2)
    y = product(precise, a, b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    assert np.all(np.abs(y - exact) <= bound(a, b))
    assert np.all(np.abs(y - exact) <= (k + 2) * U * magnitude)
    br.set_matmul_precision("ieee")
    if precise.name != "cpu":
        assert not np.array_equal(y, product(precise, a, b))  # or tensor cores were not asked


def test_infinities_and_nan_are_those_of_float32(precise, gpu):
    """Beside numbers whose low part is zero, of either sign or zero altogether."""
    special = np.float32([np.inf, -np.inf, np.nan, 0, 1, -1, 1 - 2.0**-13, 1 + 2.0**-13, 1e19, 2.0**-126])
    m, n, k = 130, 100, 70
    a, b = np.zeros((m, k), np.float32), np.ones((k, n), np.float32)
    a[: len(special) ** 2, 5] = np.repeat(special, len(special))
    b[5] = special[np.arange(n) % len(special)]
    y = product(precise, a, b)
    with np.errstate(all="ignore"):
        want = (a[:, 5:6] * b[5:6]).astype(np.float32)
    finite = np.isfinite(want)
    assert np.array_equal(np.isnan(y), np.isnan(want))
    assert np.array_equal(y[np.isinf(want)], want[np.isinf(want)])
    assert np.all(np.abs(y[finite] - want[finite]) <= 12 * U * np.abs(want[finite]) + 2.0**-126)


def test_the_ends_of_the_range(precise, gpu):
    """Cut where rounding would overflow; below 2^-103 the low part has fewer bits, each of which is below 2^-126."""
    m, n, k = 130, 128, 64
    ends = np.float32(
        [LARGEST, -LARGEST, LARGEST / 3, 2.0**-100 / 3, 2.0**-110 / 3, 2.0**-126 / 3, 2.0**-149]
    )
    a, b = np.zeros((m, k), np.float32), np.zeros((k, n), np.float32)
    a[:, 9] = ends[np.arange(m) % len(ends)]
    b[9] = drawn(n) / 8
    y, want = product(precise, a, b), a.astype(np.float64) @ b.astype(np.float64)
    assert np.all(np.abs(y - want) <= 16 * U * np.abs(want) + 2.0**-126 * np.abs(b[9]) + 2.0**-149)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_the_epilogue(precise, gpu, activation):
    m, n, k = 130, 72, 300
    a, b, bias, residual = drawn((m, k)), drawn((k, n), 2), drawn(n, 4), drawn((m, n), 6)
    out = precise.asarray(np.zeros((m, n), np.float32))
    arguments = [*map(precise.asarray, (a, b, bias)), activation]
    y, saved = ops.matmul(*arguments, residual=precise.asarray(residual), out=out, save=True)
    assert y is out
    exact = a.astype(np.float64) @ b.astype(np.float64) + bias + residual
    allowed = bound(a, b) + 2 * U * (np.abs(a) @ np.abs(b) + np.abs(bias) + np.abs(residual))
    if saved is not None:
        assert np.all(np.abs(precise.asnumpy(saved) - exact) <= allowed)
    if activation == "gelu":
        exact = 0.5 * exact * (1 + np.vectorize(erf)(exact / np.sqrt(2)))
        allowed = 1.2 * allowed + 2.0**-20
    elif activation == "relu":
        exact = np.maximum(exact, 0)
    assert np.all(np.abs(precise.asnumpy(y) - exact) <= allowed)


def erf(x):
    from math import erf

    return erf(x)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3, 70, 90), (3, 90, 66)),
        ((2, 1, 65, 80), (3, 80, 64)),
        ((2, 70, 80), (80, 65)),
        ((70, 80), (2, 80, 65)),
    ],
)
def test_batches_and_gradients(precise, gpu, first, second):
    """Of operands that repeat, too, whose gradients are sums over the batch."""
    a, b = drawn(first), drawn(second, 2)
    left, right = (Tensor(precise.asarray(x), requires_grad=True) for x in (a, b))
    y = ops.matmul(left, right)
    dy = drawn(y.shape, 4)
    y.backward(Tensor(precise.asarray(dy)))
    pairs = [(y, a, b), (left.grad, dy, np.swapaxes(b, -1, -2)), (right.grad, np.swapaxes(a, -1, -2), dy)]
    for got, one, other in pairs:
        shape = got.shape
        exact, size = (summed(f(one).astype(np.float64) @ f(other), shape) for f in (np.asarray, np.abs))
        terms = one.shape[-1] * (exact_size(one, other) // int(np.prod(shape)))
        assert np.all(np.abs(precise.asnumpy(got.data) - exact) <= (121 + terms) * U * size)


def exact_size(one, other):
    batch = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    return int(np.prod((*batch, one.shape[-2], other.shape[-1])))


def summed(x, shape):
    """`x` summed to `shape`, as broadcasting asks."""
    x = x.reshape(-1, *x.shape[-(len(shape)) :]) if x.ndim > len(shape) else x[None]
    x = x.sum(0)
    axes = tuple(i for i, (long, short) in enumerate(zip(x.shape, shape)) if long != short)
    return x.sum(axes, keepdims=True)


def test_every_run_has_the_same_bits(precise, gpu):
    a, b = drawn((130, 300)), drawn((300, 136), 2)
    first = product(precise, a, b)
    for order, timing in itertools.product(("forward", "reverse", "random"), ("lazy", "eager", "random")):
        gpu(order=order, **{"async": timing})
        assert product(precise, a, b).tobytes() == first.tobytes()


def test_what_would_be_slower_stays_in_float32(precise, gpu):
    """Small products, few rows, other generations, and convolutions that are no products."""
    rng = np.random.default_rng(0)
    small, few, large = [((20, 70), (70, 30)), ((8, 400), (400, 300)), ((130, 300), (300, 136))]
    x, w = rng.standard_normal((1, 16, 9, 9)), rng.standard_normal((16, 16, 3, 3))
    x, w = (precise.asarray(v.astype(np.float32)) for v in (x, w))
    results = []
    for precision in ("ieee", "tf32x3"):
        br.set_matmul_precision(precision)
        results.append([product(precise, drawn(p), drawn(q, 2)) for p, q in (small, few)])
        results[-1].append(precise.asnumpy(ops.conv2d(x, w)))
        if precise.name == "emulated":
            gpu(multiprocessors=132)
            results[-1].append(product(precise, drawn(large[0]), drawn(large[1], 2)))
            gpu(multiprocessors=1)
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_graph_keeps_the_precision_it_was_captured_in(device):
    if device.name == "emulated":
        set_option = device._module.kernels.set_option
        set_option("multiprocessors", 1)
    weight, x = drawn((130, 300)), drawn((70, 300), 2)
    layer = nn.Linear(300, 130)
    layer.weight.data, layer.bias.data = device.asarray(weight), device.asarray(weight[:, 0].copy())
    results = {}
    try:
        for precision in ("ieee", "tf32x3"):
            br.set_matmul_precision(precision)
            run = br.cuda.graph(lambda x: layer(x))
            for _ in range(4):
                run(device.asarray(x))
            assert run.is_captured
            br.set_matmul_precision("ieee")
            results[precision] = run(device.asarray(x)).numpy().copy()
    finally:
        br.set_matmul_precision("ieee")
        if device.name == "emulated":
            set_option("multiprocessors", 132)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + weight[:, 0]
    for y in results.values():
        assert np.all(
            np.abs(y - exact) <= bound(x, weight.T) + 2 * U * (np.abs(exact) + np.abs(weight[:, 0]))
        )
    if device.name == "emulated":
        assert not np.array_equal(results["ieee"], results["tf32x3"])
