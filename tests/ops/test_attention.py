"""Attention beyond what all operators share: gradients of single precision, masks, layouts, refusals, torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brasa import Tensor, ops
from descriptors import UNIT
from descriptors.attention import attention as reference
from descriptors.attention import scores, weights

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])


def operands(rng, batch, rows, s, e, ev, dtype=np.float32):
    return [
        rng.standard_normal(shape).astype(dtype)
        for shape in ((*batch, rows, e), (*batch, s, e), (*batch, s, ev), (*batch, rows, ev))
    ]


def reference_gradients(dy, q, k, v, mask=None, causal=False, scale=None, kept=1.0):
    """The gradients and, with every factor's size in its place, what their errors are relative to."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    p = weights(scores(q, k, mask, causal, scale))
    pairs = []
    for size in (lambda x: x, np.abs):
        dp = kept * np.einsum("...le,...se->...ls", size(dy), size(v))
        delta = (p * dp).sum(-1, keepdims=True)
        ds = factor * p * (dp + delta if size is np.abs else dp - delta)
        gradients = (
            np.einsum("...ls,...se->...le", ds, size(k)),
            np.einsum("...ls,...le->...se", ds, size(q)),
            np.einsum("...ls,...le->...se", kept * p, size(dy)),
        )
        pairs.append(gradients)
    return pairs


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


SHAPES = [(1, 1, 1, 1), (3, 5, 2, 7), (64, 64, 64, 64), (65, 129, 20, 33), (130, 70, 16, 80), (5, 200, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "added"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients(isa, shape, kind, dtype):
    """A weight's relative error is that of the forward pass and of the log of the sum; see the descriptor."""
    rng = np.random.default_rng(1)
    q, k, v, dy = operands(rng, (2, 2), *shape, dtype)
    mask = {
        "bool": rng.random((2, 1, *shape[:2])) < 0.8,
        "added": rng.standard_normal(shape[1]).astype(dtype),
    }
    mask = mask.get(kind)
    y, saved = ops.attention(q, k, v, mask, kind == "causal", save=True)
    got = ops.attention_backward(dy, q, k, v, kind == "causal", y=y, saved=saved)
    wide_mask = mask.astype(np.float64) if kind == "added" else mask
    expected, sizes = reference_gradients(*wide(dy, q, k, v), wide_mask, kind == "causal")
    score = np.abs(scores(*wide(np.abs(q), np.abs(k)), None, False, None)).max() + 4
    relative = (4 * (shape[2] + 4) * score + 4 * max(shape) + 64) * UNIT[dtype]
    for a, b, size in zip(got, expected, sizes, strict=True):
        assert np.all(np.abs(a - b) <= relative * size + 1e-40)


@given(seed=seeds)
@settings(max_examples=12)
def test_gradients_of_dropout(xp, seed):
    rng = np.random.default_rng(seed)
    rows, s = (int(i) for i in rng.integers(1, 80, 2))
    q, k, v, dy = operands(rng, (2,), rows, s, 5, 6)
    options = {"dropout_p": 0.25, "seed": seed, "offset": 7}
    p = weights(scores(*wide(q, k), None, False, None))
    basis = np.broadcast_to(np.eye(s, dtype=np.float32), (2, s, s))
    kept = reference(*wide(q, k, basis), **options) / p  # 0 or 4/3
    x = [xp.asarray(a) for a in (q, k, v)]
    y, saved = ops.attention(*x, save=True, **options)
    got = ops.attention_backward(xp.asarray(dy), *x, y=y, saved=saved, **options)
    expected, _ = reference_gradients(*wide(dy, q, k, v), kept=kept)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(xp.asnumpy(a), b, rtol=1e-4, atol=2e-5)


def test_integer_values_of_equal_weights_are_exact(xp):
    """Equal scores weigh 1 / S each: with S a power of two and small integers nothing is rounded."""
    rng = np.random.default_rng(0)
    for s in (1, 16, 64, 256):
        q, k = np.zeros((3, 70, 5), np.float32), rng.standard_normal((3, s, 5)).astype(np.float32)
        v = rng.integers(-8, 9, (3, s, 9)).astype(np.float32)
        y = xp.asnumpy(ops.attention(*map(xp.asarray, (q, k, v))))
        np.testing.assert_array_equal(y, np.broadcast_to(v.mean(1, keepdims=True), y.shape))


def test_a_large_score_picks_its_value(xp):
    rng = np.random.default_rng(0)
    for s in (3, 65, 130):
        q = k = 20 * np.eye(s, dtype=np.float32)
        v = rng.standard_normal((s, 4)).astype(np.float32)
        y = xp.asnumpy(ops.attention(*map(xp.asarray, (q, k, v)), scale=1.0))
        np.testing.assert_array_equal(y, v)


@pytest.mark.parametrize("boolean", [True, False])
def test_rows_that_may_attend_to_nothing_are_zero_and_have_no_gradient(xp, boolean):
    rng = np.random.default_rng(0)
    q, k, v, dy = operands(rng, (2,), 70, 80, 4, 5)
    allowed = rng.random((70, 80)) < 0.5
    allowed[3] = allowed[66] = False
    mask = allowed if boolean else np.where(allowed, 0, -np.inf).astype(np.float32)
    x = [xp.asarray(a) for a in (q, k, v)]
    y, saved = ops.attention(*x, xp.asarray(mask), save=True)
    gradients = ops.attention_backward(xp.asarray(dy), *x, y=y, saved=saved)
    y, dq = xp.asnumpy(y), xp.asnumpy(gradients[0])
    assert not y[:, [3, 66]].any()
    assert not dq[:, [3, 66]].any()
    assert all(np.isfinite(xp.asnumpy(g)).all() for g in gradients)
    np.testing.assert_allclose(y, reference(*wide(q, k, v), allowed), rtol=1e-5, atol=1e-6)
    hidden = np.zeros((70, 80), bool)
    y, saved = ops.attention(*x, xp.asarray(hidden), save=True)
    assert not xp.asnumpy(y).any()
    gradients = ops.attention_backward(xp.asarray(dy), *x, y=y, saved=saved)
    assert not any(xp.asnumpy(g).any() for g in gradients)


def test_a_hidden_key_counts_for_nothing_whatever_its_score(xp):
    """NaN and overflowing scores of keys that no query may attend to; their values are finite."""
    rng = np.random.default_rng(0)
    q, k, v, _ = operands(rng, (), 5, 9, 4, 3)
    allowed = np.arange(9) < 6

    def attend():
        return xp.asnumpy(ops.attention(*map(xp.asarray, (q, k.copy(), v)), mask=xp.asarray(allowed)))

    expected = attend()
    for junk in (np.nan, np.inf, 3e38):
        k[6:] = junk
        np.testing.assert_array_equal(attend(), expected)


def test_nan_and_infinity_spread_over_their_rows(xp):
    rng = np.random.default_rng(0)
    q, k, v, _ = operands(rng, (), 70, 70, 4, 3)
    q[2, 1], q[66] = np.nan, np.inf
    y = xp.asnumpy(ops.attention(*map(xp.asarray, (q, k, v))))
    assert np.isnan(y[[2, 66]]).all()
    assert np.isfinite(np.delete(y, [2, 66], 0)).all()


@pytest.mark.parametrize(("rows", "s"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_attend_to(xp, rows, s):
    q, k, v, dy = (xp.asarray(a) for a in operands(np.random.default_rng(0), (2,), rows, s, 4, 5))
    for causal in (False, True):
        y, saved = ops.attention(q, k, v, causal=causal, save=True)
        assert y.shape == (2, rows, 5)
        assert not xp.asnumpy(y).any()
        gradients = ops.attention_backward(dy, q, k, v, causal, y=y, saved=saved)
        assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]
        assert not any(xp.asnumpy(g).any() for g in gradients)


@pytest.mark.parametrize("empty", [(0, 2, 5, 4, 3), (2, 0, 5, 4, 3), (2, 2, 5, 4, 0)])
def test_empty(xp, empty):
    *batch, rows, e, ev = empty
    q, k, v, dy = (xp.asarray(a) for a in operands(np.random.default_rng(0), batch, rows, rows, e, ev))
    y, saved = ops.attention(q, k, v, save=True)
    assert y.shape == (*batch, rows, ev)
    gradients = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]


def test_heads_of_a_transposed_view_are_read_and_written_as_they_lie(xp):
    """(N, L, H, E) seen as (N, H, L, E): the same bits as from copies, and results that lie as their inputs do."""
    rng = np.random.default_rng(0)
    q, k, v, dy = operands(rng, (2, 3), 70, 20, 8, 8)
    plain = [xp.asarray(a) for a in (q, k, v)]
    views = [xp.asarray(np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)) for a in (q, k, v)]
    y, saved = ops.attention(*plain, save=True)
    y_view, saved_view = ops.attention(*views, save=True)
    assert xp.asnumpy(y).tobytes() == xp.asnumpy(y_view).tobytes()
    assert y_view.swapaxes(1, 2).flags.c_contiguous
    got = ops.attention_backward(xp.asarray(dy), *plain, y=y, saved=saved)
    from_views = ops.attention_backward(xp.asarray(dy), *views, y=y_view, saved=saved_view)
    for a, b in zip(got, from_views, strict=True):
        assert np.ascontiguousarray(xp.asnumpy(a)).tobytes() == np.ascontiguousarray(xp.asnumpy(b)).tobytes()
        assert b.swapaxes(1, 2).flags.c_contiguous


def test_gradients_of_broadcast_operands_are_sums(xp):
    rng = np.random.default_rng(0)
    q, k, v, dy = operands(rng, (2, 3), 5, 6, 4, 4)
    k, v = k[:1, :1], v[0, 0]
    tensors = [Tensor(xp.asarray(a), requires_grad=True) for a in (q, k, v)]
    ops.attention(*tensors).backward(xp.asarray(dy))
    expected, _ = reference_gradients(*wide(dy, q, k, v))
    expected = [expected[0], expected[1].sum((0, 1), keepdims=True), expected[2].sum((0, 1))]
    for t, want in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(xp.asnumpy(t.grad.data), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [1, 63, 64, 65, 100])
def test_a_causal_prefix_does_not_depend_on_what_follows(isa, prefix):
    """Bit for bit, as incremental decoding needs it: so does the last row alone."""
    q, k, v, _ = operands(np.random.default_rng(0), (2,), 130, 130, 16, 16)
    whole = ops.attention(q, k, v, causal=True)
    part = ops.attention(q[:, :prefix], k[:, :prefix], v[:, :prefix], causal=True)
    assert np.ascontiguousarray(whole[:, :prefix]).tobytes() == part.tobytes()
    step = ops.attention(q[:, prefix - 1 : prefix], k[:, :prefix], v[:, :prefix])
    assert step.tobytes() == np.ascontiguousarray(part[:, -1:]).tobytes()


def test_one_position_on_many_threads_has_the_bits_of_one_thread(set_threads):
    """The backward pass goes block by block where positions are fewer than threads."""
    q, k, v, dy = operands(np.random.default_rng(0), (1,), 200, 150, 32, 48)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        y, saved = ops.attention(q, k, v, causal=True, save=True)
        gradients = ops.attention_backward(dy, q, k, v, True, y=y, saved=saved)
        results.append([a.tobytes() for a in (y, *gradients)])
    assert results[0] == results[1] == results[2]


def test_only_the_gradients_that_are_wanted(xp):
    q, k, v, dy = (xp.asarray(a) for a in operands(np.random.default_rng(0), (2,), 70, 20, 8, 6))
    y, saved = ops.attention(q, k, v, save=True)
    everything = ops.attention_backward(dy, q, k, v, y=y, saved=saved)
    for i in range(8):
        mask = tuple(bool(i >> d & 1) for d in range(3))
        some = ops.attention_backward(dy, q, k, v, y=y, saved=saved, mask=mask)
        for wanted, a, b in zip(mask, some, everything, strict=True):
            assert a is None if not wanted else xp.asnumpy(a).tobytes() == xp.asnumpy(b).tobytes()


def test_no_memory_for_the_scores():
    """8,192 queries and keys: their scores would take 256 MiB."""
    import tracemalloc

    q, k, v, _ = operands(np.random.default_rng(0), (), 8192, 8192, 4, 4)
    tracemalloc.start()
    ops.attention(q, k, v)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_refusals():
    q, k, v, dy = operands(np.random.default_rng(0), (2,), 3, 4, 5, 6)
    for arguments, error, text in (
        ((q[0, 0], k, v), ValueError, r"q: expected at least 2 dimensions .* got shape \(5,\)"),
        ((q[..., :3], k, v), ValueError, r"k: expected 3 features as q has, got q \(2, 3, 3\)"),
        ((q[..., :0], k[..., :0], v), ValueError, "k: expected at least 1 features"),
        ((q, k, v[:, :3]), ValueError, r"v: expected 4 positions as k has, got k \(2, 4, 5\), v \(2, 3, 6\)"),
        ((q, np.concatenate([k, k[:1]]), v), ValueError, "q, k, v: their batch dimensions do not broadcast"),
        ((q, k.astype(np.float64), v), TypeError, "k: expected float32 as q has, got float64"),
        (
            (q, k, v, np.ones((3, 5), bool)),
            ValueError,
            r"mask: shape \(3, 5\) does not broadcast to \(2, 3, 4\)",
        ),
        ((q, k, v, np.ones((3, 4))), TypeError, "mask: expected bool or float32 as q has, got float64"),
        ((q, k, v, np.ones((3, 4), np.int64)), TypeError, "mask: expected bool or float32"),
    ):
        with pytest.raises(error, match=text):
            ops.attention(*arguments)
    with pytest.raises(ValueError, match="dropout_p: expected a probability"):
        ops.attention(q, k, v, dropout_p=1.5)
    with pytest.raises(ValueError, match="seed"):
        ops.attention(q, k, v, dropout_p=0.5, seed=-1)
    with pytest.raises(TypeError, match="'mask' requires a gradient"):
        ops.attention(q, k, v, Tensor(np.zeros((3, 4), np.float32), requires_grad=True))
    y, saved = ops.attention(q, k, v, save=True)
    with pytest.raises(ValueError, match="saved: expected what save=True returned"):
        ops.attention_backward(dy, q, k, v, y=y, saved=None)
    with pytest.raises(ValueError, match="dy: expected shape"):
        ops.attention_backward(dy[:, :2], q, k, v, y=y, saved=saved)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "added"])
def test_torch_agrees(kind):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    q, k, v, dy = operands(rng, (2, 3), 70, 70, 16, 24)
    masks = {
        "bool": rng.random((2, 1, 70, 70)) < 0.6,
        "added": rng.standard_normal((70, 70)).astype(np.float32),
    }
    mask = masks.get(kind)
    if kind == "bool":
        mask[0, 0, 5] = False  # torch gives 0 as well
    theirs = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    ours = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    given_mask = None if mask is None else torch.tensor(mask)
    y_torch = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=given_mask, is_causal=kind == "causal"
    )
    y = ops.attention(*ours, mask, kind == "causal")
    np.testing.assert_allclose(y.numpy(), y_torch.detach().numpy(), rtol=2e-5, atol=2e-6)
    y.backward(dy)
    y_torch.backward(torch.tensor(dy))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=2e-5)
