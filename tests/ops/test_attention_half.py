"""Attention on tensor cores, of 16 bits and in tf32: within bounds of float64, exact where nothing is rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brasa
from brasa import ops
from descriptors.attention import attention as reference
from descriptors.attention import bound as bound_of_float32
from descriptors.attention import scores, weights
from ops.test_attention import operands, reference_gradients, wide

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
FLOAT32 = np.dtype(np.float32)  # operands are cut to tf32, weights rounded to it
ROUNDING = {HALVES[0]: 2.0**-11, HALVES[1]: 2.0**-8, FLOAT32: 2.0**-10}
LEAST = {HALVES[0]: 2.0**-25, HALVES[1]: 2.0**-134, FLOAT32: 2.0**-126}  # half of the smallest number above 0
# Of float32 sums on tensor cores, whose additions may be cut, and of exponentials within 2^-22 of themselves.
UNIT = 2.0**-22
every_half = pytest.mark.parametrize("half", HALVES, ids=str)
every_kind = pytest.mark.parametrize("half", [*HALVES, FLOAT32], ids=str)
seeds = st.integers(0, 2**32 - 1)

lengths = st.sampled_from([1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129]) | st.integers(1, 140)
features = st.sampled_from([1, 8, 32, 33, 64, 80, 96, 97, 128]) | st.integers(1, 128)
KINDS = ["none", "causal", "bool", "added", "both"]


@pytest.fixture
def gpu(device):
    """A function that sets how the emulator orders threads and copies, and its generation; tf32 is allowed."""
    brasa.set_matmul_precision("tf32")
    if device.name != "emulated":
        yield lambda **_: None
    else:
        set_option = device.kernels.set_option
        yield lambda **options: [set_option(*option) for option in options.items()]
        set_option("order", "forward")
        set_option("async", "lazy")
        set_option("capability", 90)
    brasa.set_matmul_precision("ieee")


def masked(rng, kind, batch, rows, s):
    """A mask of `kind`, some of whose rows hide everything, and whether order is causal."""
    allowed = rng.random((*batch, rows, s)) < 0.7
    allowed[..., rng.integers(rows), :] = False
    mask = {"bool": allowed, "both": allowed, "added": rng.standard_normal((rows, s)).astype(np.float32)}
    return mask.get(kind), kind in ("causal", "both")


def laid_out(x, how):
    """`x` as it lies by itself, as heads within rows of all heads, or where no row begins at 16 bytes."""
    if how == 1:
        return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    if how == 2:
        wider = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)[..., 1 : x.shape[-1] + 1]
        wider[...] = x
        return wider
    return x


def result_bound(half, q, k, v, mask, causal, y, dropout_p=0.0):
    """float32's bound; weights, relative to a row's largest, and results are rounded to 16 bits besides; in tf32
    weights and all operands.
    """
    arguments = {"q": q, "k": k, "v": v, "mask": mask, "causal": causal, "dropout_p": dropout_p}
    size = reference(q, k, np.abs(v), mask, causal) / (1 - dropout_p)
    least = LEAST[half] * (np.abs(v).sum(-2, keepdims=True) / (1 - dropout_p) + 1)
    tf32 = half == FLOAT32
    own = bound_of_float32(arguments, y, UNIT, 2.1 * ROUNDING[half] if tf32 else 0.0)
    return own + ROUNDING[half] * (size + own + (size if tf32 else np.abs(y))) + least


def gradient_bounds(half, arrays, mask, causal, kept=1.0):
    """float32's bound as in test_attention; weights, slopes, y and the gradients are rounded to 16 bits besides; in
    tf32 slopes and all operands, which counts twice in the scores of a weight and in the log of their sum.
    """
    dy, q, k, v = arrays
    expected, sizes = reference_gradients(dy, q, k, v, mask, causal, kept=kept)
    score = np.abs(scores(np.abs(q), np.abs(k), None, False, None)).max(initial=0) + 4
    relative = (4 * (q.shape[-1] + 4) * score + 4 * max(q.shape[-2], k.shape[-2]) + 64) * UNIT
    factor, r = q.shape[-1] ** -0.5, ROUNDING[half]
    rounded = (4.2 * score + 5 if half == FLOAT32 else 2.1) * r
    largest = np.max(kept)
    least = [
        factor * np.abs(k).sum(-2, keepdims=True),
        factor * np.abs(q).sum(-2, keepdims=True),
        largest * np.abs(dy).sum(-2, keepdims=True),
    ]
    return [
        (e, (relative + rounded) * size + r * np.abs(e) + LEAST[half] * (lost + 1) + 1e-40)
        for e, size, lost in zip(expected, sizes, least, strict=True)
    ]


@every_kind
@given(rows=lengths, s=lengths, e=features, ev=features, seed=seeds)
@settings(max_examples=60)
def test_results_are_near_those_of_float64(device, gpu, half, rows, s, e, ev, seed):
    rng = np.random.default_rng(seed)
    gpu(
        order=("forward", "reverse", "random")[seed % 3],
        **{"async": ("lazy", "eager", "random")[seed // 3 % 3], "capability": (90, 80)[seed // 135 % 2]},
    )
    q, k, v, _ = operands(rng, (2, 2), rows, s, e, ev, half)
    mask, causal = masked(rng, KINDS[seed // 9 % 5], (1, 2), rows, s)
    given_arrays = [device.asarray(laid_out(x, (seed // 45 + i) % 3)) for i, x in enumerate((q, k, v))]
    y, (log_sum, _) = ops.attention(
        *given_arrays, None if mask is None else device.asarray(mask), causal, save=True
    )
    q, k, v = wide(q, k, v)
    expected = reference(q, k, v, mask, causal)
    assert y.dtype == half
    error = np.abs(device.asnumpy(y).astype(np.float64) - expected)
    assert np.all(error <= result_bound(half, q, k, v, mask, causal, expected))
    s = scores(q, k, mask, causal, None)
    seen = np.isfinite(s).any(-1)
    log_sum = device.asnumpy(log_sum)
    assert log_sum.dtype == np.float32
    assert np.all(log_sum[~seen] == np.inf)
    top = np.where(seen, s.max(-1), 0)
    exact = top + np.log(np.where(seen, np.exp(s - top[..., None]).sum(-1), 1))
    size = np.abs(scores(np.abs(q), np.abs(k), None, False, None)).max(-1) + 5
    cut = 2.1 * ROUNDING[half] if half == FLOAT32 else 0.0
    assert np.all(np.abs(log_sum - exact)[seen] <= (((e + 8) * UNIT + cut) * size + s.shape[-1] * UNIT)[seen])


SHAPES = [  # rows, keys, features, features of values: the last are for wgmma, in tiles of both widths
    (1, 1, 1, 1),
    (3, 5, 2, 7),
    (64, 64, 64, 64),
    (65, 129, 20, 33),
    (130, 70, 128, 80),
    (17, 200, 96, 8),
    (129, 127, 64, 64),
    (260, 190, 128, 64),
]


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_near_those_of_float64(device, gpu, half, shape, kind):
    rng = np.random.default_rng(1)
    gpu(order="random", **{"async": "random"})
    arrays = operands(rng, (2,), *shape, half)
    mask, causal = masked(rng, kind, (1,), *shape[:2])
    q, k, v, dy = (device.asarray(laid_out(x, i % 3)) for i, x in enumerate(arrays))
    y, saved = ops.attention(q, k, v, None if mask is None else device.asarray(mask), causal, save=True)
    got = ops.attention_backward(dy, q, k, v, causal, y=y, saved=saved)
    q, k, v, dy = wide(*arrays)
    for a, (b, bound) in zip(got, gradient_bounds(half, (dy, q, k, v), mask, causal), strict=True):
        assert a.dtype == half
        assert np.all(np.abs(device.asnumpy(a).astype(np.float64) - b) <= bound)


@every_half
@given(seed=seeds)
@settings(max_examples=8)
def test_dropout_is_that_of_float32(device, half, seed):
    """The same weights are dropped, forward and backward, as on the CPU."""
    rng = np.random.default_rng(seed)
    rows, s = (int(i) for i in rng.integers(1, 80, 2))
    arrays = operands(rng, (2,), rows, s, 5, 6, half)
    options = {"dropout_p": 0.25, "seed": seed, "offset": 7}
    q, k, v, dy = map(device.asarray, arrays)
    y, saved = ops.attention(q, k, v, save=True, **options)
    got = ops.attention_backward(dy, q, k, v, y=y, saved=saved, **options)
    q, k, v, dy = wide(*arrays)
    expected = reference(q, k, v, **options)
    bound = result_bound(half, q, k, v, None, False, expected, 0.25)
    assert np.all(np.abs(device.asnumpy(y).astype(np.float64) - expected) <= bound)
    basis = np.broadcast_to(np.eye(s), (2, s, s))
    kept = reference(q, k, basis, **options) / weights(scores(q, k, None, False, None))  # 0 or 4/3
    for a, (b, bound) in zip(got, gradient_bounds(half, (dy, q, k, v), None, False, kept), strict=True):
        assert np.all(np.abs(device.asnumpy(a).astype(np.float64) - b) <= bound)


@every_half
def test_integer_values_of_equal_weights_are_exact(device, half):
    """Equal scores weigh 1 / S each: with S a power of two and small integers nothing is rounded."""
    rng = np.random.default_rng(0)
    for s in (1, 16, 64, 128):
        q, k = np.zeros((3, 70, 5), half), rng.standard_normal((3, s, 5)).astype(half)
        v = (rng.integers(-8, 9, (3, 1, 9)) + 8 * (np.arange(s)[:, None] % 2)).astype(half)
        y = device.asnumpy(ops.attention(*map(device.asarray, (q, k, v))))
        mean = v.astype(np.float64).mean(1, keepdims=True)
        np.testing.assert_array_equal(y.astype(np.float64), np.broadcast_to(mean, y.shape))


@every_half
def test_rows_that_see_nothing_are_zero_and_have_no_gradient(device, half):
    q, k, v, dy = (device.asarray(x) for x in operands(np.random.default_rng(0), (2,), 70, 80, 4, 5, half))
    y, saved = ops.attention(q, k, v, device.asarray(np.zeros((70, 80), bool)), save=True)
    assert not device.asnumpy(y).astype(np.float32).any()
    gradients = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    assert not any(device.asnumpy(g).astype(np.float32).any() for g in gradients)


@every_half
def test_a_hidden_key_counts_for_nothing_whatever_its_score(device, half):
    q, k, v, _ = operands(np.random.default_rng(0), (), 5, 9, 4, 3, half)
    allowed = np.arange(9) < 6

    def attend():
        return device.asnumpy(ops.attention(*map(device.asarray, (q, k, v)), mask=device.asarray(allowed)))

    expected = attend().tobytes()
    k[6:] = np.nan
    assert attend().tobytes() == expected


@every_kind
@pytest.mark.usefixtures("gpu")
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(device, half):
    arrays = operands(np.random.default_rng(0), (3,), 70, 90, 40, 24, half)

    def run(q, k, v, dy):
        y, saved = ops.attention(q, k, v, causal=True, save=True)
        return [y, *ops.attention_backward(dy, q, k, v, True, y=y, saved=saved)]

    together = [device.asnumpy(x) for x in run(*map(device.asarray, arrays))]
    alone = [device.asnumpy(x) for x in run(*(device.asarray(x[1:2].copy()) for x in arrays))]
    for a, b in zip(together, alone, strict=True):
        assert a[1:2].tobytes() == b.tobytes()


@every_half
@pytest.mark.parametrize("shape", [(0, 5, 3, 4), (5, 0, 3, 4), (5, 6, 3, 0)], ids=str)
def test_empty_arrays(device, half, shape):
    q, k, v, dy = (device.asarray(x) for x in operands(np.random.default_rng(0), (2,), *shape, half))
    y, saved = ops.attention(q, k, v, save=True)
    assert not device.asnumpy(y).astype(np.float32).any()
    gradients = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    assert not any(device.asnumpy(g).astype(np.float32).any() for g in gradients)


@every_half
def test_only_the_gradients_that_are_wanted(device, half):
    q, k, v, dy = (device.asarray(x) for x in operands(np.random.default_rng(0), (2,), 20, 30, 8, 6, half))
    y, saved = ops.attention(q, k, v, save=True)
    everything = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    for i in range(8):
        mask = tuple(bool(i >> d & 1) for d in range(3))
        some = ops.attention_backward(dy, q, k, v, y=y, saved=saved, mask=mask)
        for wanted, a, b in zip(mask, some, everything, strict=True):
            assert (a is None) != wanted
            assert a is None or device.asnumpy(a).tobytes() == device.asnumpy(b).tobytes()


@every_half
@pytest.mark.parametrize("many", [(129, 4), (4, 130)], ids=str)
def test_more_features_than_tiles_have_go_by_float32(device, half, many):
    arrays = operands(np.random.default_rng(0), (2,), 9, 11, *many, half)
    q, k, v, dy = map(device.asarray, arrays)
    y, saved = ops.attention(q, k, v, save=True)
    got = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    wide_q, wide_k, wide_v, wide_dy = (device.asarray(x.astype(np.float32)) for x in arrays)
    wide_y, _ = ops.attention(wide_q, wide_k, wide_v, save=True)
    assert device.asnumpy(y).tobytes() == device.asnumpy(wide_y).astype(half).tobytes()
    given_y = device.asarray(device.asnumpy(y).astype(np.float32))
    expected = ops.attention_backward(wide_dy, wide_q, wide_k, wide_v, y=given_y, saved=saved)
    for a, b in zip(got, expected, strict=True):
        assert device.asnumpy(a).tobytes() == device.asnumpy(b).astype(half).tobytes()


@every_half
def test_numbers_of_a_mask_may_have_16_bits_or_32(device, half):
    q, k, v, _ = (device.asarray(x) for x in operands(np.random.default_rng(0), (2,), 9, 11, 8, 8, half))
    mask = np.random.default_rng(1).standard_normal((9, 11)).astype(half)
    narrow = ops.attention(q, k, v, device.asarray(mask))
    float32 = ops.attention(q, k, v, device.asarray(mask.astype(np.float32)))
    assert device.asnumpy(narrow).tobytes() == device.asnumpy(float32).tobytes()


@every_half
def test_refusals(device, half):
    q, k, v, dy = operands(np.random.default_rng(0), (2,), 3, 4, 5, 6, half)
    with pytest.raises(
        TypeError, match=f"q: expected float32 or float64, got {half}, which is for arrays on CUDA"
    ):
        ops.attention(q, k, v)
    q, k, v, dy = map(device.asarray, (q, k, v, dy))
    with pytest.raises(TypeError, match=f"k: expected {half} as q has, got float32"):
        ops.attention(q, device.asarray(np.ones((2, 4, 5), np.float32)), v)
    with pytest.raises(TypeError, match=f"mask: expected bool or {half} as q has, got float64"):
        ops.attention(q, k, v, device.asarray(np.ones((3, 4))))
    y, (log_sum, mask) = ops.attention(q, k, v, save=True)
    narrow = device.asarray(device.asnumpy(log_sum).astype(half))
    with pytest.raises(TypeError, match=f"saved: expected float32 beside q of {half}, got {half}"):
        ops.attention_backward(dy, q, k, v, y=y, saved=(narrow, mask))


@pytest.mark.usefixtures("gpu")
def test_tf32_is_for_up_to_96_features_where_it_is_allowed(device):
    for e, ev, differs in ((96, 8, True), (8, 96, True), (97, 8, False), (8, 97, False)):
        q, k, v, dy = (device.asarray(x) for x in operands(np.random.default_rng(0), (2,), 9, 11, e, ev))
        found = []
        for precision in ("tf32", "ieee"):
            brasa.set_matmul_precision(precision)
            y, saved = ops.attention(q, k, v, save=True)
            found.append([y, *ops.attention_backward(dy, q, k, v, y=y, saved=saved)])
        for a, b in zip(*found, strict=True):
            assert (device.asnumpy(a).tobytes() != device.asnumpy(b).tobytes()) == differs
