"""Attention layers against torch's with its state dicts, and additive attention against its formula."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, nn

BOUND = {np.float32: 2e-5, np.float64: 1e-12}  # of the largest value: no sum has a thousand terms


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(actual, expected, dtype):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= BOUND[dtype] * max(np.abs(expected).max(initial=0), 1)


def hidden(shape, seed=0):
    """True where there is no attention, never for the first key."""
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[..., 0] = False
    return mask


def paired(torch, **options):
    """Ours and torch's with the same weights."""
    theirs = torch.nn.MultiheadAttention(12, 3, **options).double()
    state = {k: values(t.shape, 7 + i) * 0.4 for i, (k, t) in enumerate(theirs.state_dict().items())}
    theirs.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return nn.MultiheadAttention(12, 3, **options), theirs


OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "other_sizes": {"kdim": 7, "vdim": 5},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 7, "vdim": 5},
}


@pytest.mark.torch
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multihead_attention_against_torch(options, weights, dtype):
    torch = pytest.importorskip("torch")
    options = OPTIONS[options]
    ours, theirs = paired(torch, **options)
    ours.to(dtype).load_state_dict(theirs.state_dict())
    length, positions, n = 6, 9, 2

    def shaped(length, features):
        return (n, length, features) if options.get("batch_first") else (length, n, features)

    sizes = ((length, 12), (positions, options.get("kdim", 12)), (positions, options.get("vdim", 12)))
    data = [values(shaped(*size), i).astype(dtype) for i, size in enumerate(sizes)]
    inputs = [Tensor(d, requires_grad=True) for d in data]
    inputs_torch = [torch.tensor(d.astype(np.float64), requires_grad=True) for d in data]
    padding, mask = hidden((n, positions)), hidden((length, positions), 1)
    y, w = ours(*inputs, key_padding_mask=padding, need_weights=weights, attn_mask=mask)
    y_torch, w_torch = theirs(
        *inputs_torch,
        key_padding_mask=torch.tensor(padding),
        need_weights=weights,
        attn_mask=torch.tensor(mask),
    )
    close(y.data, y_torch.detach(), dtype)
    assert (w is None) == (not weights)
    if weights:
        close(w.data, w_torch.detach(), dtype)
    dy = values(y.shape, 9).astype(dtype)
    y.backward(dy)
    y_torch.backward(torch.tensor(dy.astype(np.float64)))
    for a, b in zip(inputs, inputs_torch, strict=True):
        close(a.grad.data, b.grad, dtype)
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    for p, p_torch in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad.data, p_torch.grad, dtype)


MASKS = {
    "none": (None, None),
    "padding": (hidden((2, 6)), None),
    "added_padding": (values((2, 6)), None),
    "heads": (None, hidden((6, 6, 6))),
    "added": (None, values((6, 6))),
    "added_and_bool": (hidden((2, 6)), values((6, 6, 6))),
    "both_added": (values((2, 6)), values((6, 6))),
}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("weights", ["none", "averaged", "apart"])
@pytest.mark.parametrize("masks", MASKS)
def test_masks_and_weights_against_torch(masks, weights):
    """Self-attention, where all three inputs are one."""
    torch = pytest.importorskip("torch")
    ours, theirs = paired(torch, batch_first=True)
    ours.to(np.float64).load_state_dict(theirs.state_dict())
    padding, mask = MASKS[masks]
    data = values((2, 6, 12))
    x, x_torch = Tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    options = {"need_weights": weights != "none", "average_attn_weights": weights == "averaged"}
    y, w = ours(x, x, x, padding, attn_mask=mask, **options)
    moved = [None if m is None else torch.tensor(m) for m in (padding, mask)]
    y_torch, w_torch = theirs(x_torch, x_torch, x_torch, moved[0], attn_mask=moved[1], **options)
    close(y.data, y_torch.detach(), np.float64)
    if weights != "none":
        close(w.data, w_torch.detach(), np.float64)
    (y * y).sum().backward()
    (y_torch * y_torch).sum().backward()
    close(x.grad.data, x_torch.grad, np.float64)
    for p, p_torch in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad.data, p_torch.grad, np.float64)


@pytest.mark.torch
@pytest.mark.parametrize("weights", [False, True])
def test_without_a_batch_against_torch(weights):
    torch = pytest.importorskip("torch")
    ours, theirs = paired(torch)
    ours.to(np.float64).load_state_dict(theirs.state_dict())
    x, memory, padding = values((4, 12)), values((5, 12), 1), hidden((5,))
    y, w = ours(x, memory, memory, padding, need_weights=weights)
    y_torch, w_torch = theirs(*map(torch.tensor, (x, memory, memory, padding)), need_weights=weights)
    close(y.data, y_torch.detach(), np.float64)
    if weights:
        close(w.data, w_torch.detach(), np.float64)


def test_causal_is_the_causal_mask_on_both_ways():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, mask = values((2, 70, 8)).astype(np.float32), ~np.tri(70, dtype=bool)
    padding = hidden((2, 70))
    for p in (None, padding):
        results = [
            layer(x, x, x, p, need_weights=weights, attn_mask=None if causal else mask, is_causal=causal)[
                0
            ].data
            for weights in (False, True)
            for causal in (False, True)
        ]
        for other in results[1:]:
            np.testing.assert_allclose(results[0], other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [False, True])
def test_a_query_that_may_attend_to_nothing_gets_the_bias(weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    layer.out_proj.bias.data[...] = 3
    mask = np.zeros((4, 4), bool)
    mask[2] = True
    x = Tensor(values((1, 4, 8)).astype(np.float32), requires_grad=True)
    y, _ = layer(x, x, x, need_weights=weights, attn_mask=mask)
    np.testing.assert_array_equal(y.data[0, 2], np.full(8, 3, np.float32))
    y.sum().backward()
    assert np.isfinite(x.grad.data).all()


def test_dropout_is_the_same_with_and_without_weights():
    layer = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
    x = values((3, 9, 8)).astype(np.float32)
    results = []
    for weights in (False, True):
        br.manual_seed(3)
        results.append(layer(x, x, x, need_weights=weights)[0].data)
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)
    assert not np.allclose(results[0], layer.eval()(x, x, x)[0].data)


def test_multihead_attention_gradcheck():
    layer = nn.MultiheadAttention(4, 2, batch_first=True).to(np.float64)
    names = [name for name, _ in layer.named_parameters() if "." not in name]

    def call(x, memory, *parameters):
        vars(layer).update(zip(names, parameters, strict=True))
        return layer(x, memory, memory, need_weights=False)[0]

    parameters = [getattr(layer, name).data for name in names]
    assert br.testing.gradcheck(call, [values((2, 3, 4)), values((2, 5, 4), 1), *parameters])


def test_what_is_no_array_of_the_layers_dtype_is_refused_by_name():
    layer, other, x = (
        nn.MultiheadAttention(8, 2),
        nn.AdditiveAttention(8, 8, 4),
        values((2, 5, 8)).astype(np.float32),
    )
    wide, rows = x.astype(np.float64), x.tolist()
    for call, text in (
        (lambda: layer(rows, x, x), "query: expected an array or Tensor, got list"),
        (lambda: layer(x, rows, x), "key: expected an array or Tensor, got list"),
        (lambda: layer(x, x, wide), "value: expected float32 as the layer's weights are, got float64"),
        (lambda: other(x[:, 0].tolist(), x), "query: expected an array or Tensor, got list"),
        (lambda: other(x[:, 0], wide), "key: expected float32"),
    ):
        with pytest.raises(TypeError, match=text):
            call()


def test_multihead_attention_refusals():
    with pytest.raises(ValueError, match="embed_dim: expected a multiple of num_heads 3, got 8"):
        nn.MultiheadAttention(8, 3)
    with pytest.raises(ValueError, match="probability"):
        nn.MultiheadAttention(8, 2, dropout=1.5)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = np.zeros((2, 5, 8), np.float32)
    for arguments, text in (
        ((x[..., :7], x, x), r"query: expected shape \(..., 8\) .* got \(2, 5, 7\)"),
        ((x, x[0], x), r"key: expected shape \(..., 8\) of 2 or 3 dimensions"),
        ((x, x[:1], x[:1]), r"key: expected 2 samples as query has, got \(1, 5, 8\)"),
        ((x, x, x[:, :4]), r"value: expected \(2, 5\) positions as key has, got \(2, 4, 8\)"),
        ((x, x, x, np.zeros((2, 4), bool)), r"key_padding_mask: expected shape \(2, 5\), got \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=text):
            layer(*arguments)
    with pytest.raises(
        ValueError, match=r"attn_mask: expected shape \(5, 5\) or \(4, 5, 5\), got \(2, 5, 5\)"
    ):
        layer(x, x, x, attn_mask=np.zeros((2, 5, 5), bool))
    with pytest.raises(TypeError, match="attn_mask: expected bool or floating numbers, got int64"):
        layer(x, x, x, attn_mask=np.zeros((5, 5), np.int64))


# Additive ---------------------------------------------------------------------------------------------


def additive(query, key, value, w, u, v, lengths):
    """Bahdanau's formula, one score at a time."""
    context, weights = [], []
    for q, keys, vs, length in zip(query, key, value, lengths, strict=True):
        scores = np.array([v @ np.tanh(w @ q + u @ k) for k in keys[:length]])
        e = np.exp(scores - scores.max())
        p = np.zeros(len(keys))
        p[:length] = e / e.sum()
        weights.append(p)
        context.append(p @ vs)
    return np.array(context), np.array(weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_additive_attention_against_its_formula(dtype):
    layer = nn.AdditiveAttention(5, 6, 7).to(dtype)
    query, key, value = values((3, 5)), values((3, 8, 6), 1), values((3, 8, 2), 2)
    parameters = [p.data.astype(np.float64) for p in layer.parameters()]
    lengths = [8, 1, 5]
    expected = additive(query, key, value, *parameters[:2], parameters[2][0], lengths)
    arrays = [a.astype(dtype) for a in (query, key, value)]
    for got, want in zip(layer(*arrays, lengths=lengths), expected, strict=True):
        close(got.data, want, dtype)
    several = layer(np.stack([arrays[0]] * 2, axis=1), *arrays[1:], lengths=lengths)
    for got, want in zip(several, expected, strict=True):
        close(got.data, np.stack([want] * 2, axis=1), dtype)
    projected = layer.key_proj(arrays[1])
    for got, want in zip(layer(*arrays, lengths=lengths, projected=projected), expected, strict=True):
        close(got.data, want, dtype)


def test_additive_attention_gradcheck():
    layer = nn.AdditiveAttention(3, 4, 2).to(np.float64)
    assert [name for name, _ in layer.named_parameters()] == [
        "query_proj.weight", "key_proj.weight", "score.weight",
    ]  # fmt: skip

    def call(query, key, w, u, v):
        for part, weight in zip((layer.query_proj, layer.key_proj, layer.score), (w, u, v), strict=True):
            vars(part)["weight"] = weight
        return layer(query, key, lengths=[5, 2])[0]

    assert br.testing.gradcheck(
        call, [values((2, 3)), values((2, 5, 4), 1), *(p.data for p in layer.parameters())]
    )


def test_additive_attention_refusals():
    layer, query, key = (
        nn.AdditiveAttention(3, 4, 2),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 5, 4), np.float32),
    )
    for arguments, text in (
        ((query[:, :2], key), r"query: expected shape \(N, 3\) or \(N, L, 3\), got \(2, 2\)"),
        ((query, key[:1]), r"key: expected shape \(2, S, 4\), got \(1, 5, 4\)"),
        ((query, key, key[:, :4]), r"value: expected shape \(2, 5, V\), got \(2, 4, 4\)"),
        ((query, key, None, [5]), "lengths: expected 2 integers"),
        ((query, key, None, [5, 6]), r"lengths: expected values in \[1, 5\], got 6 at position 1"),
        ((query, key, None, [0, 1]), r"lengths: expected values in \[1, 5\], got 0 at position 0"),
    ):
        with pytest.raises(ValueError, match=text):
            layer(*arguments)
