"""Layers on every kind of array: the results and gradients of the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from brasa import Tensor, nn
from brasa._autocast import narrow_dtype

LABELS = np.array([1, 0, 2])


class Results(nn.Module):
    """A recurrent layer without the states that it returns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


MODELS = {
    "lenet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Tanh(),
            nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(24, 10), nn.GELU(), nn.Linear(10, 3),
        ),
        (3, 1, 10, 10),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=None),
            nn.Dropout(0.25), nn.LogSoftmax(), nn.Linear(8, 3),
        ),
        (3, 2, 5, 5),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.PositionalEncoding(6, 0.25, batch_first=True),
            nn.TransformerEncoderLayer(6, 2, 8, 0.25, batch_first=True), nn.Flatten(), nn.Linear(24, 3),
        ),
        (3, 4, 6),
    ),
    "recurrent": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), Results(nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=5)),
            Results(nn.GRU(10, 5)), Results(nn.RNN(5, 5)), nn.Linear(5, 3),
        ),
        (4, 3, 6),
    ),
}  # fmt: skip
LOSSES = {
    "cross_entropy": (nn.CrossEntropyLoss, LABELS),
    "nll": (nn.NLLLoss, LABELS),
    "mse": (nn.MSELoss, np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)),
    "huber": (nn.HuberLoss, np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)),
    "bce_logits": (nn.BCEWithLogitsLoss, np.eye(3, dtype=np.float32)),
}


def moved(model, xp):
    """A copy of the model whose arrays are of the kind tested."""
    twin = copy.deepcopy(model)
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data = xp.asarray(tensor.data)
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_models(xp, name):
    import brasa as br

    make, shape = MODELS[name]
    here = make()
    there = moved(here, xp)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for mode in (True, False):
        results = []
        for model, array in ((here, x), (there, xp.asarray(x))):
            br.manual_seed(1)
            model.train(mode).zero_grad()
            y = model(array)
            (y * y).mean().backward()
            results.append([y.data, *(p.grad.data for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            assert type(b) is type(there[0].weight.data)
            np.testing.assert_allclose(xp.asnumpy(b), a, rtol=1e-4, atol=1e-5)
    for a, b in zip(here.buffers(), there.buffers(), strict=True):
        np.testing.assert_allclose(xp.asnumpy(b.data), a.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(xp, name):
    make, target = LOSSES[name]
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    results = []
    for array in (np.asarray, xp.asarray):
        t = Tensor(array(x), requires_grad=True)
        loss = make()(t, array(target))
        loss.backward()
        results.append((loss.data, t.grad.data))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(xp.asnumpy(b), a, rtol=1e-5, atol=1e-6)


def test_state_dicts_cross_devices(xp):
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    there = moved(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), xp)
    kind = type(there[0].weight.data)
    there.load_state_dict(source.state_dict())
    assert type(there[0].weight.data) is kind
    np.testing.assert_array_equal(xp.asnumpy(there[0].weight.data), source[0].weight.data)
    there[0].weight.data[...] = 2
    source.load_state_dict(there.state_dict())
    assert type(source[0].weight.data) is np.ndarray
    assert (source[0].weight.data == 2).all()


def test_initialisers_write_to_the_device(xp):
    parameter = nn.Parameter(xp.asarray(np.zeros((4, 4), np.float32)))
    data = parameter.data
    nn.init.orthogonal_(parameter)
    assert parameter.data is data
    np.testing.assert_allclose(xp.asnumpy(data) @ xp.asnumpy(data).T, np.eye(4), atol=1e-5)


def test_clipping(xp):
    parameter = nn.Parameter(xp.asarray(np.zeros(2, np.float32)))
    parameter.grad = Tensor(xp.asarray(np.float32([3, 4])))
    assert nn.utils.clip_grad_norm_(parameter, 1.0).item() == 5.0
    np.testing.assert_allclose(xp.asnumpy(parameter.grad.data), [0.6, 0.8], rtol=1e-5)
    nn.utils.clip_grad_value_(parameter, 0.7)
    np.testing.assert_allclose(xp.asnumpy(parameter.grad.data), [0.6, 0.7], rtol=1e-5)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_16_bits(device, name, half):
    """All in 16 bits but the vectors of norms, which kernels take as float32 beside them."""
    pytest.importorskip("ml_dtypes")
    make, shape = MODELS[name]
    single = moved(make().eval(), device)
    narrow = moved(copy.deepcopy(make().eval()).to(half), device)
    narrow.load_state_dict(single.state_dict())
    for module in narrow.modules():
        norm = isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype.kind != "i":
                assert tensor.dtype == ("float32" if norm else half)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want = single(device.asarray(x)).numpy()
    found = narrow(Tensor(device.asarray(x.astype(narrow_dtype(half))))).numpy()
    assert found.dtype == half
    # Each of up to 12 layers rounds its weights and its result, of which norms make numbers up to 4.
    rounding = 2.0**-11 if half == "float16" else 2.0**-8
    np.testing.assert_allclose(found.astype(np.float32), want, rtol=0, atol=2 * 12 * rounding * 4)


def test_norms_made_for_16_bits_have_vectors_of_float32():
    for norm in (nn.BatchNorm2d(3, dtype="float16"), nn.LayerNorm(3, dtype=np.float16)):
        assert {str(t.dtype) for t in (*norm.parameters(), *norm.buffers())} <= {"float32", "int64"}
        norm.to(np.float64).to("float16")
        assert norm.weight.dtype == np.float32
