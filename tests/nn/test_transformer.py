"""The Transformer and its layers against torch's with its state dicts."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(actual, expected, bound):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= bound * max(np.abs(expected).max(initial=0), 1)


def encoder_layer(nn, **options):
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, **options)


def decoder_layer(nn, **options):
    return nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, **options)


LAYERS = {
    "encoder_layer": (encoder_layer, 1),
    "decoder_layer": (decoder_layer, 2),
    "encoder": (lambda nn, **o: nn.TransformerEncoder(encoder_layer(nn, **o), 2, nn.LayerNorm(8)), 1),
    "encoder_plain": (lambda nn, **o: nn.TransformerEncoder(encoder_layer(nn, **o), 2), 1),
    "decoder": (lambda nn, **o: nn.TransformerDecoder(decoder_layer(nn, **o), 2, nn.LayerNorm(8)), 2),
    "transformer": (lambda nn, **o: nn.Transformer(8, 2, 2, 1, 12, 0.0, **o), 2),
}
OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "norm_first": {"norm_first": True, "activation": "gelu", "layer_norm_eps": 1e-3},
    "no_bias": {"bias": False, "batch_first": True},
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_against_torch(name, options, dtype):
    """Outputs, and gradients of inputs and parameters, with a causal mask and padding."""
    torch = pytest.importorskip("torch")
    make, count = LAYERS[name]
    ours, theirs = make(nn, **OPTIONS[options]), make(torch.nn, **OPTIONS[options]).double()
    state = {k: values(t.shape, 3 + i) * 0.5 for i, (k, t) in enumerate(theirs.state_dict().items())}
    theirs.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    ours.to(dtype).load_state_dict(theirs.state_dict())
    lengths = (5, 4)[:count] if name == "transformer" else (4, 5)[:count]
    shapes = [(3, n, 8) if OPTIONS[options].get("batch_first") else (n, 3, 8) for n in lengths]
    data = [values(shape, i).astype(dtype) for i, shape in enumerate(shapes)]
    inputs = [Tensor(d, requires_grad=True) for d in data]
    inputs_torch = [torch.tensor(d.astype(np.float64), requires_grad=True) for d in data]
    padding = np.zeros((3, lengths[0]), bool)
    padding[1, -1] = True
    mask = nn.Transformer.generate_square_subsequent_mask(4).numpy() == -np.inf
    masks = {
        "transformer": {"tgt_mask": mask, "src_key_padding_mask": padding},
        "encoder_layer": {"src_mask": mask, "src_key_padding_mask": padding},
        "decoder_layer": {"tgt_mask": mask, "tgt_key_padding_mask": padding},
        "decoder": {"tgt_mask": mask, "tgt_key_padding_mask": padding},
    }.get(name, {"mask": mask, "src_key_padding_mask": padding})
    y = ours(*inputs, **masks)
    y_torch = theirs(*inputs_torch, **{k: torch.tensor(m) for k, m in masks.items()})
    bound = 1e-12 if dtype == np.float64 else 1e-4  # some forty roundings, one behind the other
    close(y.data, y_torch.detach(), bound)
    dy = values(y.shape, 9).astype(dtype)
    y.backward(dy)
    y_torch.backward(torch.tensor(dy.astype(np.float64)))
    for a, b in zip(inputs, inputs_torch, strict=True):
        close(a.grad.data, b.grad, bound)
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    for p, p_torch in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad.data, p_torch.grad, bound)


@pytest.mark.parametrize("make", [encoder_layer, decoder_layer])
def test_gradcheck(make):
    layer = make(nn, batch_first=True, norm_first=True, activation="gelu").to(np.float64)
    inputs = [values((2, 3, 8)), values((2, 4, 8), 1)][: 1 if make is encoder_layer else 2]
    assert br.testing.gradcheck(layer, inputs)


def test_a_callable_activation_is_called():
    x = values((2, 3, 8)).astype(np.float32)
    for fused, function in (("relu", nn.functional.relu), ("tanh", lambda x: x.tanh())):
        layer = encoder_layer(nn, activation=fused)
        other = encoder_layer(nn, activation=function)
        other.load_state_dict(layer.state_dict())
        np.testing.assert_allclose(layer(x).data, other(x).data, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="activation: expected a callable or one of"):
        encoder_layer(nn, activation="softsign")


def test_a_causal_mask_is_recognised():
    """The same bits as `is_causal`, whatever the form of the mask; another mask is not taken for one."""
    encoder = nn.TransformerEncoder(encoder_layer(nn), 2)
    x = values((70, 2, 8)).astype(np.float32)
    expected = encoder(x, is_causal=True).data
    mask = nn.Transformer.generate_square_subsequent_mask(70)
    for given in (mask, mask.numpy() == -np.inf):
        np.testing.assert_array_equal(encoder(x, given).data, expected)
    other = mask.numpy().copy()
    other[5, 4] = -np.inf
    assert not np.array_equal(encoder(x, other).data, expected)


def test_a_prefix_does_not_depend_on_what_follows():
    """What makes decoding step by step right: the outputs for a prefix, alone and in the whole."""
    model = nn.Transformer(16, 2, 1, 2, 32, batch_first=True).eval()
    source, target = values((2, 7, 16)).astype(np.float32), values((2, 9, 16), 1).astype(np.float32)
    whole = model(source, target, tgt_is_causal=True).data
    for length in range(1, 9):
        part = model(source, target[:, :length], tgt_is_causal=True).data
        np.testing.assert_allclose(whole[:, :length], part, rtol=1e-5, atol=1e-6)


def test_stacks_begin_with_equal_layers_and_share_nothing():
    layer = encoder_layer(nn)
    encoder = nn.TransformerEncoder(layer, 2)
    first, second = encoder.layers
    np.testing.assert_array_equal(first.linear1.weight.data, second.linear1.weight.data)
    assert first.linear1.weight is not second.linear1.weight
    assert len(list(copy.deepcopy(encoder).parameters())) == 2 * len(list(layer.parameters()))


def test_training_drops_and_evaluation_does_not():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.5)
    x = values((4, 2, 8)).astype(np.float32)
    assert not np.array_equal(layer(x).data, layer(x).data)
    layer.eval()
    np.testing.assert_array_equal(layer(x).data, layer(x).data)


def test_transformer_starts_with_xavier_uniform_matrices():
    model = nn.Transformer(32, 4, 1, 1, 64)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            bound = np.sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < np.abs(parameter.data).max() <= bound, name


def test_positional_encoding():
    table = nn.PositionalEncoding(7, dropout=0.0, max_len=50)(np.zeros((50, 7), np.float32)).data
    for t in (0, 1, 49):
        for i in range(7):
            angle = t / 10000 ** (i // 2 * 2 / 7)
            assert abs(table[t, i] - (np.cos(angle) if i % 2 else np.sin(angle))) < 1e-6
    x = values((5, 3, 6)).astype(np.float32)
    first = nn.PositionalEncoding(6, dropout=0.0)(x).data
    second = nn.PositionalEncoding(6, dropout=0.0, batch_first=True)(x.swapaxes(0, 1)).data
    np.testing.assert_array_equal(first, second.swapaxes(0, 1))
    assert not nn.PositionalEncoding(6).state_dict()
    with pytest.raises(ValueError, match=r"x: expected at most max_len 4 positions, got shape \(5, 3, 6\)"):
        nn.PositionalEncoding(6, max_len=4)(x)
    with pytest.raises(ValueError, match="x: expected 2 or 3 dimensions, the last 7"):
        nn.PositionalEncoding(7)(x)


def test_refusals():
    x = np.zeros((5, 2, 8), np.float32)
    with pytest.raises(ValueError, match=r"src, tgt: expected 8 features .* got \(5, 2, 8\) and \(5, 2, 7\)"):
        nn.Transformer(8, 2, 1, 1, 12)(x, x[..., :7])
    with pytest.raises(ValueError, match="num_layers"):
        nn.TransformerEncoder(encoder_layer(nn), 0)


def test_an_encoder_learns_to_pick_the_token_that_is_marked():
    """Attention has to carry the marked token to the first position; chance is one in eight."""
    br.manual_seed(0)
    rng = np.random.default_rng(0)
    embed, marks = nn.Embedding(8, 16), nn.Embedding(2, 16)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 1)
    head = nn.Linear(16, 8)
    parts = nn.ModuleList([embed, marks, encoder, head])
    optimizer = br.optim.Adam(parts.parameters(), lr=5e-3)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(250):
        tokens, at = rng.integers(0, 8, (64, 6)), rng.integers(0, 6, 64)
        marked = (np.arange(6) == at[:, None]).astype(np.int64)
        logits = head(encoder(embed(tokens) + marks(marked))[:, 0])
        target = tokens[np.arange(64), at]
        loss = loss_of(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.numpy().argmax(1) == target).mean() > 0.9
