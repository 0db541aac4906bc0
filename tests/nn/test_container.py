"""Containers, and the fusion that Sequential does."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from brasa import Tensor, nn, ops

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.ELU(0.7),
    nn.SELU,
    lambda: nn.CELU(1.3),
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.SiLU,
    nn.Mish,
    lambda: nn.Softplus(2.0),
    nn.Sigmoid,
    nn.Tanh,
    lambda: nn.Hardtanh(-0.5, 0.7),
    nn.Hardsigmoid,
    nn.Hardswish,
]
LAYERS = [
    (lambda: nn.Linear(7, 5), (3, 7)),
    (lambda: nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
    (lambda: nn.BatchNorm1d(7), (4, 7)),
    (lambda: nn.BatchNorm2d(3), (2, 3, 5, 5)),
    (lambda: nn.LayerNorm(7), (3, 7)),
]


def grads(model, x):
    """Gradients of a fixed function of the model's result, for the input and the parameters."""
    model.zero_grad()
    x = Tensor(x, requires_grad=True)
    y = model(x)
    weights = np.linspace(-1, 1, y.data.size, dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    return [y.data, x.grad.data, *(p.grad.data for p in model.parameters())]


@pytest.fixture
def calls(monkeypatch):
    """The names of the activations that run as operators of their own."""
    seen = []
    original = ops.activation

    def counted(x, name, **kwargs):
        seen.append(name)
        return original(x, name, **kwargs)

    monkeypatch.setattr(ops, "activation", counted)
    return seen


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "conv", "bn1d", "bn2d", "ln"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fusion_gives_the_same_bits(layer, activation, calls):
    make, shape = layer
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = nn.Sequential(make(), activation())
    fused = grads(model, x)
    assert calls == []
    with model[1].register_forward_hook(lambda *args: None):
        plain = grads(model, x)
    assert len(calls) == 1
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_members_still_work_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    hidden = model[0](x)
    assert (hidden.data < 0).any()
    np.testing.assert_array_equal(model[1](hidden).data, model(x).data)


def test_hooks_on_either_side_stop_the_fusion_and_see_the_values(calls):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for i in (0, 1):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            expected = model(x).data
            seen = []
            getattr(model[i], register)(lambda module, args, *result, seen=seen: seen.append((args, result)))
            np.testing.assert_array_equal(model(x).data, expected)
            assert len(seen) == 1
    assert len(calls) == 4


def test_modules_that_occur_twice_are_not_fused(calls):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    relu, layer = nn.ReLU(), nn.Linear(3, 3)
    nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)(x)
    nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())(x)
    assert len(calls) == 4


def test_derived_and_patched_layers_are_called(calls):
    class Doubling(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 1

    x = np.ones((1, 2), np.float32)
    model = nn.Sequential(Doubling(2, 2), nn.ReLU())
    np.testing.assert_array_equal(model(x).data, np.maximum(model[0](x).data, 0))
    model = nn.Sequential(nn.Linear(2, 2), Shifted())
    np.testing.assert_array_equal(model(x).data, np.maximum(model[0](x).data, 0) + 1)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].forward = lambda x: x - 2
    np.testing.assert_array_equal(model(x).data, [[0, 0]])
    assert len(calls) == 3


def test_layers_with_an_activation_of_their_own_keep_it():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model = nn.Sequential(nn.Linear(3, 3, activation="relu"), nn.Tanh())
    np.testing.assert_array_equal(model(x).data, nn.Tanh()(model[0](x)).data)
    assert (model[0](x).data >= 0).all()


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_residual_is_added_before_the_activation(make, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer = make()
    y = layer(x)
    residual = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    layer.activation = "relu"
    expected = np.maximum(y.data + residual, 0)
    np.testing.assert_allclose(layer(x, residual).data, expected, rtol=1e-5, atol=1e-6)


def test_sequential_is_a_list():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    assert len(model) == 3
    assert list(model) == [model[0], model[1], model[-1]]
    assert isinstance(model[1:], nn.Sequential)
    assert list(model[1:].state_dict()) == ["2.weight", "2.bias"]
    model.append(nn.Tanh()).insert(1, nn.Identity())
    assert [type(m).__name__ for m in model] == ["Linear", "Identity", "ReLU", "Linear", "Tanh"]
    del model[1]
    model[0] = nn.Linear(5, 3)
    assert model(np.ones((1, 5), np.float32)).shape == (1, 4)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for index, error in ((9, IndexError), (-5, IndexError), ("0", TypeError)):
        with pytest.raises(error, match="index"):
            model[index]


def test_sequential_with_names():
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.ReLU()))
    assert list(model.state_dict()) == ["first.weight", "first.bias"]
    assert model.first is model[0]
    assert list(model[:1].state_dict()) == ["first.weight", "first.bias"]
    with pytest.raises(TypeError, match="module 1"):
        nn.Sequential(nn.ReLU(), 3)


def test_empty_sequential_is_the_identity():
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(nn.Sequential()(x).data, x)


def test_module_list():
    layers = nn.ModuleList([nn.Linear(2, 2)])
    layers.extend(nn.Linear(2, 2) for _ in range(2))
    assert len(layers) == 3
    assert len(layers[1:]) == 2
    assert isinstance(layers[1:], nn.ModuleList)
    assert len(list(layers.parameters())) == 6
    with pytest.raises(NotImplementedError):
        layers(np.ones(2))
    with pytest.raises(TypeError, match="module"):
        layers.append(3)


def test_module_dict():
    heads = nn.ModuleDict({"a": nn.Linear(2, 1)})
    heads["b"] = nn.Linear(2, 2)
    assert list(heads) == list(heads.keys()) == ["a", "b"]
    assert "a" in heads
    assert "c" not in heads
    assert [m.out_features for m in heads.values()] == [1, 2]
    assert len(heads) == 2
    assert dict(heads.items())["b"] is heads["b"]
    assert list(heads.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    del heads["a"]
    for action in (lambda: heads["a"], lambda: heads.__delitem__("a"), lambda: heads["training"]):
        with pytest.raises(KeyError):
            action()
    with pytest.raises(ValueError, match="already has an attribute 'items'"):
        heads["items"] = nn.ReLU()


def test_parameter_list():
    scales = nn.ParameterList([nn.Parameter(np.ones(2, np.float32)), np.zeros(3, np.float32)])
    assert len(scales) == 2
    assert scales[1].shape == (3,)
    assert isinstance(scales[1], nn.Parameter)
    assert [name for name, _ in scales.named_parameters()] == ["0", "1"]
