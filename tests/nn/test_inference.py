"""`inference`: the same bits, packed weights kept as long as they are right, and nothing left behind."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import brasa as br
from brasa import nn, optim


def small_model():
    br.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 5))


def kept(layer):
    """The packed weight that a layer holds now, or None."""
    return layer._kept and layer._kept._entry and layer._kept._entry[2]


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_results_have_the_same_bits(rows, xp):
    model = small_model().eval()
    x = xp.asarray(np.random.default_rng(0).standard_normal((rows, 20)).astype(np.float32))
    if xp.name != "cpu":
        for tensor in model.parameters():
            tensor.data = xp.asarray(tensor.data)
    expected = model(x)
    with br.inference(model):
        for _ in range(2):
            y = model(x)
            assert xp.asnumpy(y.data).tobytes() == xp.asnumpy(expected.data).tobytes()
    assert not y.requires_grad


def test_training_flags_come_back_and_packed_weights_go():
    model = small_model()
    model[2].eval()
    with br.inference(model) as entered:
        assert entered is model
        assert not any(module.training for module in model.modules())
        model(np.ones((1, 20), np.float32))
        first = kept(model[0])
        assert first.kind == "linear"
        with br.inference(model):
            model(np.ones((1, 20), np.float32))
            assert kept(model[0]) is first
        assert kept(model[0]) is first
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(layer._kept is None for layer in (model[0], model[3]))
    with pytest.raises(ZeroDivisionError), br.inference(model):
        _ = 1 / 0
    assert model.training
    assert model[0]._kept is None


def test_convolutions_keep_their_weights_where_that_pays():
    br.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 512, 1)
    ).eval()
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
    expected = model(x)
    with br.inference(model):
        for _ in range(2):
            assert model(x).numpy().tobytes() == expected.numpy().tobytes()
        assert kept(model[0]) is None  # too small
        assert [kept(layer).groups for layer in (model[2], model[3])] == [2, 1]
        first = kept(model[3])
        model[3].weight.data = 2 * model[3].weight.data
        model(x)
        assert kept(model[3]) is not first
    assert model[3]._kept is None


def test_it_decorates_functions():
    model = small_model()

    @br.inference(model)
    def predict(x, depth):
        inner = predict(x, depth - 1) if depth else model(x)
        assert not model.training
        return inner

    y = predict(np.ones((2, 20), np.float32), 2)
    assert not y.requires_grad
    assert model.training
    assert model[0]._kept is None


@pytest.mark.parametrize("change", ["optimiser", "load_state_dict", "to", "data"])
def test_a_changed_weight_is_packed_again(change):
    model, x = small_model(), np.ones((2, 20), np.float32)
    model(x).sum().backward()
    optimiser = optim.SGD(model.parameters(), lr=0.1)
    with br.inference(model):
        before = model(x).numpy()
        packed = kept(model[0])
        if change == "optimiser":
            optimiser.step()
        elif change == "load_state_dict":
            model.load_state_dict({name: 2 * t.numpy() for name, t in model.state_dict().items()})
        elif change == "to":
            model.to(np.float64)
            x = x.astype(np.float64)
        else:
            model[0].weight.data = model[0].weight.data + 1
        after = model(x).numpy()
        assert kept(model[0]) is not packed
    assert after.dtype != before.dtype or not np.array_equal(after, before)
    assert np.array_equal(after, model.eval()(x).numpy())


def test_gradients_that_are_asked_for_inside_do_not_pass_packed_weights():
    model, x = small_model(), np.ones((2, 20), np.float32)
    with br.inference(model):
        model(x)
        with br.enable_grad():
            model(x).sum().backward()
    got = model[0].weight.grad.numpy()
    model.zero_grad()
    model.eval()(x).sum().backward()
    assert np.array_equal(got, model[0].weight.grad.numpy())


def test_a_shared_weight_is_packed_once_and_copies_have_no_part_in_it():
    model = small_model()
    model.append(nn.Linear(5, 5)).append(nn.Linear(5, 5))
    model[5].weight = model[4].weight
    with br.inference(model):
        model(np.ones((1, 20), np.float32))
        assert kept(model[4]) is kept(model[5]) is not None
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert kept(other[0]) is None
            assert other(np.ones((1, 20), np.float32)).shape == (1, 5)
        assert set(model.state_dict()) == set(small_model().state_dict()) | {
            "4.weight", "4.bias", "5.weight", "5.bias"
        }  # fmt: skip


def test_only_modules_are_models():
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got function"):
        br.inference(small_model)
