"""Recurrent layers and cells: against torch, in pieces, with lengths, in everything a layer is used in."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, nn, optim

LAYERS = ("RNN", "GRU", "LSTM")
# Against a float64 run of torch, relative to the largest value: sums of fewer than 100 terms, ten steps deep.
BOUND = {np.float32: 2e-5, np.float64: 1e-12}


def values(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def close(actual, expected, dtype=np.float64):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0.0), 1.0)
    assert np.abs(actual - expected).max(initial=0.0) <= BOUND[dtype] * scale


def flat(result):
    """The Tensors of a result in nested tuples, in order."""
    return [part for item in result for part in flat(item)] if isinstance(result, tuple) else [result]


def compare(ours, theirs, x, state, dtype):
    """Results and all gradients of a layer or cell, with the weights of torch's in float64."""
    import torch

    ours.to(dtype).load_state_dict(theirs.state_dict())
    mine = [Tensor(a.astype(dtype), requires_grad=True) for a in (x, *state)]
    others = [torch.tensor(a, requires_grad=True) for a in (x, *state)]

    def call(layer, x, *state):
        return flat(layer(x, *([] if not state else [state if len(state) == 2 else state[0]])))

    results, expected = call(ours, *mine), call(theirs, *others)
    weights = [values(*t.shape, seed=i, dtype=np.float64) for i, t in enumerate(expected)]
    sum((r * w.astype(dtype)).sum() for r, w in zip(results, weights, strict=True)).backward()
    sum((r * torch.tensor(w)).sum() for r, w in zip(expected, weights, strict=True)).backward()
    for a, b in zip(results, expected, strict=True):
        close(a.data, b.detach(), dtype)
    for a, b in zip(mine, others, strict=True):
        close(a.grad.data, b.grad, dtype)
    for (name, a), (name_torch, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == name_torch
        close(a.grad.data, b.grad, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*LAYERS, "RNN relu", "LSTM projected"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias", "batch_first"),
    [(1, False, True, False), (2, True, True, True), (3, False, False, False), (1, True, False, True)],
)
@pytest.mark.parametrize("form", ["batch", "batch and state", "alone", "alone and state"])
def test_against_torch(name, layers, bidirectional, bias, batch_first, form, dtype):
    torch = pytest.importorskip("torch")
    name, _, variant = name.partition(" ")
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    if variant:
        options |= {"nonlinearity": "relu"} if variant == "relu" else {"proj_size": 4}
    ours, theirs = getattr(nn, name)(5, 7, **options), getattr(torch.nn, name)(5, 7, **options).double()
    x = values(6, 3, 5, dtype=np.float64) if "batch" in form else values(6, 5, dtype=np.float64)
    state = ()
    if "state" in form:
        batch = (6 if batch_first else 3,) if "batch" in form else ()
        columns = [4 if variant == "projected" else 7] + [7] * (name == "LSTM")
        state = tuple(
            values(layers * (1 + bidirectional), *batch, n, seed=n, dtype=np.float64) for n in columns
        )
    compare(ours, theirs, x, state, dtype)


@pytest.mark.parametrize("name", [*LAYERS, *(f"{name}Cell" for name in LAYERS)])
def test_every_configuration_that_torch_tests(name):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("torch.testing._internal.common_modules", exc_type=ImportError)
    info = next(m for m in modules.module_db if m.module_cls is getattr(torch.nn, name))
    cases = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    assert len(cases) >= 2
    for case in cases:
        given, call = case.constructor_input, case.forward_input
        x, *state = flat(tuple(call.args))
        options = {k: v for k, v in given.kwargs.items() if k not in ("device", "dtype")}
        ours = getattr(nn, name)(*given.args, **options)
        theirs = getattr(torch.nn, name)(*given.args, **options).double()
        compare(ours, theirs, x.detach().numpy(), [s.detach().numpy() for s in state], np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*LAYERS, "RNN relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["batch", "batch and state", "alone", "alone and state"])
def test_cells_against_torch(name, bias, form, dtype):
    torch = pytest.importorskip("torch")
    name, _, variant = name.partition(" ")
    options = {"bias": bias} | ({"nonlinearity": "relu"} if variant else {})
    ours, theirs = (
        getattr(nn, name + "Cell")(5, 7, **options),
        getattr(torch.nn, name + "Cell")(5, 7, **options).double(),
    )
    batch = (3,) if "batch" in form else ()
    state = (
        [values(*batch, 7, seed=i, dtype=np.float64) for i in range(1 + (name == "LSTM"))]
        if "state" in form
        else []
    )
    compare(ours, theirs, values(*batch, 5, dtype=np.float64), state, dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first"), [(1, False, False), (2, True, True), (2, True, False)]
)
def test_lengths_against_packed_sequences(name, layers, bidirectional, batch_first):
    """Lengths need not be sorted, and nothing beyond them counts."""
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = (
        getattr(nn, name)(5, 7, **options).to(np.float64),
        getattr(torch.nn, name)(5, 7, **options).double(),
    )
    ours.load_state_dict(theirs.state_dict())
    lengths = np.array([4, 6, 1, 3])
    data = values(*((4, 6, 5) if batch_first else (6, 4, 5)), dtype=np.float64)
    x, x_torch = Tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    y, state = ours(x, lengths=lengths)
    packed = pack_padded_sequence(x_torch, torch.tensor(lengths), batch_first, enforce_sorted=False)
    packed, state_torch = theirs(packed)
    y_torch, _ = pad_packed_sequence(packed, batch_first, total_length=6)
    results, expected = flat((y, state)), flat((y_torch, state_torch))
    sum((r * r).sum() for r in results).backward()
    sum((r * r).sum() for r in expected).backward()
    for a, b in zip(results, expected, strict=True):
        close(a.data, b.detach())
    close(x.grad.data, x_torch.grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(a.grad.data, b.grad)


def test_a_length_of_zero_keeps_the_state():
    layer = nn.LSTM(3, 4, bidirectional=True)
    state = Tensor(values(2, 2, 4)), Tensor(values(2, 2, 4, seed=1))
    y, new = layer(values(5, 2, 3), state, np.array([0, 5]))
    assert (y.data[:, 0] == 0).all()
    for a, b in zip(new, state, strict=True):
        np.testing.assert_array_equal(a.data[:, 0], b.data[:, 0])
        assert (a.data[:, 1] != b.data[:, 1]).all()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_step_by_step_gives_the_same_bits(name, layers, isa):
    layer = getattr(nn, name)(5, 17, num_layers=layers)
    x = values(9, 3, 5)
    whole, last = layer(x)
    for pieces in ([1] * 9, [4, 5]):
        state, parts = None, []
        for begin, n in zip(itertools.accumulate([0, *pieces]), pieces, strict=False):
            y, state = layer(x[begin : begin + n], state)
            parts.append(y.data)
        assert np.concatenate(parts).tobytes() == whole.data.tobytes()
        for a, b in zip(flat((state,)), flat((last,)), strict=True):
            assert a.data.tobytes() == b.data.tobytes()


@pytest.mark.parametrize("name", LAYERS)
def test_a_cell_is_a_step_of_its_layer(name):
    layer, cell = getattr(nn, name)(5, 7), getattr(nn, f"{name}Cell")(5, 7)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = values(4, 3, 5)
    y, _ = layer(x)
    state = None
    for step, row in zip(x, y, strict=True):
        state = cell(step, state)
        assert flat((state,))[0].data.tobytes() == row.data.tobytes()


def test_truncated_back_propagation():
    """A detached state hands on values and no history: the second piece alone decides its gradients."""
    torch = pytest.importorskip("torch")
    ours, theirs = nn.LSTM(3, 4).to(np.float64), torch.nn.LSTM(3, 4).double()
    ours.load_state_dict(theirs.state_dict())
    pieces = [values(5, 2, 3, seed=i, dtype=np.float64) for i in range(3)]
    state = state_torch = None
    for piece in pieces:
        ours.zero_grad()
        theirs.zero_grad()
        y, state = ours(piece, state)
        y_torch, state_torch = theirs(torch.tensor(piece), state_torch)
        (y * y).sum().backward()
        (y_torch * y_torch).sum().backward()
        state = tuple(s.detach() for s in state)
        state_torch = tuple(s.detach() for s in state_torch)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(a.grad.data, b.grad)


def test_clipping_is_torchs():
    torch = pytest.importorskip("torch")
    ours, theirs = nn.GRU(3, 4).to(np.float64), torch.nn.GRU(3, 4).double()
    ours.load_state_dict(theirs.state_dict())
    x = values(30, 2, 3, dtype=np.float64) * 5
    for layer, array in ((ours, x), (theirs, torch.tensor(x))):
        (layer(array)[0] ** 2).sum().backward()
    norms = (
        nn.utils.clip_grad_norm_(ours.parameters(), 0.5),
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5),
    )
    assert norms[0].item() > 0.5
    close(norms[0].data, norms[1])
    nn.utils.clip_grad_value_(ours.parameters(), 0.05)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.05)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(a.grad.data, b.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_with_lengths(name):
    layer = getattr(nn, name)(2, 3, num_layers=2, bidirectional=True).to(np.float64)
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *parameters):
        vars(layer).update(zip(names, parameters, strict=True))
        y, state = layer(x, lengths=np.array([2, 3]))
        return y.sum() + sum((s * s).sum() for s in flat((state,)))

    x = values(3, 2, 2, dtype=np.float64)
    assert br.testing.gradcheck(call, [x, *(p.data.copy() for p in layer.parameters())])


def test_dropout_stands_between_the_layers():
    br.manual_seed(0)
    layer = nn.GRU(4, 50, num_layers=2, dropout=0.5)
    x = values(3, 2, 4)
    first, second = layer(x)[0].data, layer(x)[0].data
    assert (first != second).any()
    assert (first != 0).all()  # not after the last
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].data, layer(x)[0].data)
    layer.train()
    layer.dropout = 1.0
    lower, _ = nn.GRU(4, 50)(x)
    assert (lower.data != 0).any()
    y, _ = layer(x)
    assert np.ptp(y.data, axis=1).max() == 0  # the second layer sees zeros in every sample


@pytest.mark.parametrize("name", [*LAYERS, *(f"{name}Cell" for name in LAYERS)])
def test_initial_distribution(name):
    layer = getattr(nn, name)(40, 100)
    for p in layer.parameters():
        assert np.abs(p.data).max() <= 0.1
        assert abs(p.data.std() * np.sqrt(3) / 0.1 - 1) < 0.15


class Tagger(nn.Module):
    """A class for every sequence, by the state after its last step."""

    def __init__(self, kind="LSTM"):
        super().__init__()
        self.recurrent = getattr(nn, kind)(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        state = self.recurrent(x)[1]
        return self.head(flat((state,))[0][0])


def rising(n):
    """Noisy sequences that rise or fall."""
    rng = np.random.default_rng(n)
    labels = np.arange(n) % 2
    slope = np.linspace(-1, 1, 12)[:, None] * (2 * labels - 1)[:, None, None]
    return (slope + 0.5 * rng.standard_normal((n, 12, 3))).astype(np.float32), labels


@pytest.mark.parametrize("kind", LAYERS)
def test_training_saving_and_the_summary(kind, tmp_path):
    br.manual_seed(0)
    model = Tagger(kind)
    trainer = br.Trainer(
        model, optim.Adam(model.parameters(), lr=0.02), nn.CrossEntropyLoss(), clip_norm=1.0, progress=False
    )
    trainer.fit(rising(64), epochs=8, batch_size=16)
    x, labels = rising(40)
    assert (trainer.predict(x).argmax(1) == labels).mean() > 0.9
    br.save(model, tmp_path / "model.safetensors")
    again = Tagger(kind)
    br.load(again, tmp_path / "model.safetensors")
    with br.inference(again):
        np.testing.assert_array_equal(again(x).data, model(x).data)
    text = model.summary((12, 3))
    assert f"recurrent  {kind}" in text
    assert "(N, 12, 8)  " in text
    copied = copy.deepcopy(model)
    np.testing.assert_array_equal(copied(x).data, model(x).data)


@pytest.mark.parametrize("kind", LAYERS)
def test_on_every_device(xp, kind):
    here = Tagger(kind)
    there = copy.deepcopy(here)
    for p in there.parameters():
        p.data = xp.asarray(p.data)
    x, lengths = values(4, 6, 3), np.array([3, 6, 0, 1])
    results = []
    for model, array in ((here, np.asarray), (there, xp.asarray)):
        y, state = model.recurrent(array(x), lengths=array(lengths))
        sum((part * part).sum() for part in flat((y, state))).backward()
        results.append(
            [part.data for part in flat((y, state))] + [p.grad.data for p in model.recurrent.parameters()]
        )
    for a, b in zip(*results, strict=True):
        assert type(b) is type(there.head.weight.data)
        np.testing.assert_allclose(xp.asnumpy(b), a, rtol=1e-4, atol=1e-5)


def test_printed():
    assert (
        repr(nn.LSTM(3, 4, num_layers=2, bidirectional=True))
        == "LSTM(3, 4, num_layers=2, bidirectional=True)"
    )
    assert repr(nn.GRUCell(3, 4, bias=False)) == "GRUCell(3, 4, bias=False)"
    assert repr(nn.RNN(3, 4, bias=False)) == "RNN(3, 4, bias=False)"
    assert repr(nn.RNN(3, 4, nonlinearity="relu")) == "RNN(3, 4, nonlinearity='relu')"
    assert repr(nn.RNNCell(3, 4, nonlinearity="relu")) == "RNNCell(3, 4, nonlinearity='relu')"


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(xp, name):
    layer, cell = getattr(nn, name)(5, 6), getattr(nn, f"{name}Cell")(5, 6)
    for p in (*layer.parameters(), *cell.parameters()):
        p.data = xp.asarray(p.data)
    x = Tensor(xp.asarray(values(0, 5)), requires_grad=True)
    for given in (None, cell(x)):
        new = flat((cell(x, given),))
        assert [part.shape for part in new] == [(0, 6)] * (1 + (name == "LSTM"))
    sum(part.sum() for part in new).backward()
    assert x.grad.shape == (0, 5)
    y, _ = layer(xp.asarray(values(4, 0, 5)), lengths=[])
    assert y.shape == (4, 0, 6)


@pytest.mark.parametrize("name", LAYERS)
def test_float16_layers_are_for_devices(name, device):
    """A layer of 16 bits can be built, as in torch: on a device it computes, within `autocast` too, in 16 bits."""
    layer = getattr(nn, name)(5, 6, dtype="float16")
    with pytest.raises(TypeError, match="float16"):
        layer(values(4, 3, 5).astype(np.float16))
    for p in layer.parameters():
        p.data = device.asarray(p.data)
    x = device.asarray(values(4, 3, 5).astype(np.float16))
    with br.autocast("float16"):
        y, _ = layer(x)
    y.sum().backward()
    assert y.dtype == np.float16
    assert all(p.grad.dtype == np.float16 for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: nn.LSTM(0, 4), ValueError, "input_size"), (lambda: nn.LSTM(3, 4.0), TypeError, "hidden_size"),
        (lambda: nn.GRU(3, 4, num_layers=0), ValueError, "num_layers"),
        (lambda: nn.GRU(3, 4, dropout=2), ValueError, "p: "),
        (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, "proj_size"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, "nonlinearity"),
        (lambda: nn.RNNCell(3, 4, nonlinearity="gelu"), ValueError, "nonlinearity"),
        (lambda: nn.GRU(3, 4)(values(5, 2, 4)), ValueError, r"x: expected \(T, B, I\).*I = 3, got shape \(5, 2, 4\)"),
        (lambda: nn.GRU(3, 4)(values(3)), ValueError, "x: expected"),
        (lambda: nn.GRU(3, 4)(values(5, 2, 3), values(1, 5, 4)), ValueError, r"expected h of shape \(1, 2, 4\), got"),
        (lambda: nn.LSTM(3, 4)(values(5, 2, 3), (values(1, 2, 4),)), ValueError, "pair"),
        (lambda: nn.LSTM(3, 4)(values(5, 2, 3), (values(1, 2, 4), values(1, 2, 5))), ValueError, "expected c of shape"),
        (lambda: nn.LSTM(3, 4, proj_size=2.5), TypeError, "proj_size: expected an int"),
        (lambda: nn.LSTM(3, 4, proj_size=-1), ValueError, "proj_size"),
        (lambda: nn.GRU(3, 4)(values(5, 2, 3), (values(1, 2, 4),)), TypeError, "one array or Tensor, got tuple"),
        (lambda: nn.GRU(3, 4)(values(5, 2, 3), [values(1, 2, 4)] * 2), TypeError, "state: .* got list"),
        (lambda: nn.RNN(3, 4)(values(5, 2, 3), 1), TypeError, "state: expected an array or Tensor, got int"),
        (lambda: nn.LSTM(3, 4)(values(5, 2, 3), values(1, 2, 4)), TypeError, r"expected a pair \(h, c\), got"),
        (lambda: nn.LSTM(3, 4)(values(5, 2, 3), (values(1, 2, 4), None)), TypeError, "got NoneType as c"),
        (lambda: nn.LSTM(3, 4)([[1.0, 2.0, 3.0]]), TypeError, "x: expected an array or Tensor, got list"),
        (lambda: nn.LSTM(3, 4)(values(5, 2, 3, dtype=np.float64)), TypeError, "x: expected float32 as"),
        (lambda: nn.GRUCell(3, 4)([1.0, 2.0, 3.0]), TypeError, "x: expected an array or Tensor, got list"),
        (lambda: nn.GRUCell(3, 4)(values(3, dtype=np.float64)), TypeError, "x: expected float32"),
        (lambda: nn.GRUCell(3, 4)(values(3), [0.0] * 4), TypeError, "state: expected an array or Tensor, got list"),
        (lambda: nn.LSTMCell(3, 4)(values(3), 1), TypeError, "pair"),
        (lambda: nn.GRU(3, 4)(values(5, 3), lengths=np.array([5])), ValueError, "lengths"),
        (lambda: nn.GRU(3, 4)(values(5, 2, 3), lengths=np.array([5, 6])), ValueError, "lengths"),
        (lambda: nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2))(values(5, 2, 3)), TypeError, "one array.*got tuple"),
        (lambda: nn.GRUCell(3, 4)(values(2, 4)), ValueError, "x: expected"),
        (lambda: nn.GRUCell(3, 4)(values(2, 3), values(3, 4)), ValueError, "state: expected"),
        (lambda: nn.LSTMCell(3, 4)(values(2, 3), (values(2, 4),)), ValueError, "pair"),
    ],
)  # fmt: skip
def test_refusals(make, error, word):
    with pytest.raises(error, match=word):
        make()
