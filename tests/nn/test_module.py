"""Module: registration, walking, state dicts, hooks, copies, printing."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest

from brasa import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.inner = nn.Linear(3, 3)
        self.register_buffer("shift", np.zeros(3, np.float32))
        self.register_buffer("scratch", np.zeros(1, np.float32), persistent=False)

    def forward(self, x):
        return self.inner(x) * self.scale + self.shift


def names(pairs):
    return [name for name, _ in pairs]


def test_attributes_register_themselves():
    block = Block()
    assert names(block.named_parameters()) == ["scale", "inner.weight", "inner.bias"]
    assert names(block.named_buffers()) == ["shift", "scratch"]
    assert names(block.named_children()) == ["inner"]
    assert names(block.named_modules()) == ["", "inner"]
    assert list(block.modules()) == [block, block.inner]
    assert list(block.children()) == [block.inner]
    assert names(block.named_parameters("net", recurse=False)) == ["net.scale"]
    assert len(list(block.buffers())) == 2


def test_deleted_and_replaced_attributes_are_seen():
    block = Block()
    del block.scale
    del block.shift
    block.inner = nn.Identity()
    assert names(block.named_parameters()) == []
    assert names(block.named_buffers()) == ["scratch"]
    assert names(block.named_children()) == ["inner"]


def test_plain_tensors_are_no_parameters():
    module = nn.Module()
    module.constant = Tensor(np.ones(2, np.float32))
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


def test_shared_parameters_are_listed_once_and_saved_under_every_name():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert names(model.named_parameters()) == ["0.weight"]
    assert list(model.state_dict()) == ["0.weight", "1.weight"]
    repeated = nn.Sequential(model[0], model[0])
    assert list(repeated.state_dict()) == ["0.weight", "1.weight"]
    assert names(repeated.named_modules()) == ["", "0"]


@pytest.mark.parametrize("value", [np.zeros(3), Tensor(np.zeros(3, np.float32)), 1.0])
def test_a_parameter_is_only_replaced_by_a_parameter(value):
    block = Block()
    with pytest.raises(TypeError, match="scale is a parameter"):
        block.scale = value
    with pytest.raises(TypeError, match="inner is a module"):
        block.inner = value
    with pytest.raises(TypeError, match="shift is a buffer"):
        block.shift = 1.0
    block.scale = None
    assert names(block.named_parameters()) == ["inner.weight", "inner.bias"]


@pytest.mark.parametrize("name", ["", "a.b"])
def test_names_without_a_dot(name):
    for register, value in (
        ("add_module", nn.ReLU()),
        ("register_parameter", None),
        ("register_buffer", None),
    ):
        with pytest.raises(ValueError, match="name"):
            getattr(nn.Module(), register)(name, value)


def test_registering_refuses_taken_names_and_wrong_kinds():
    block = Block()
    with pytest.raises(ValueError, match="already has an attribute 'forward'"):
        block.add_module("forward", nn.ReLU())
    with pytest.raises(ValueError, match="already has an attribute 'inner'"):
        block.register_buffer("inner", np.zeros(1))
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module"):
        block.add_module("x", 3)
    with pytest.raises(TypeError, match=r"parameter: expected an nn\.Parameter"):
        block.register_parameter("x", np.zeros(1))
    with pytest.raises(TypeError, match="name: expected a str"):
        block.add_module(3, nn.ReLU())


def test_a_subclass_without_super_init_works():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    assert Forgetful()(np.ones((1, 2), np.float32)).shape == (1, 2)


def test_a_module_without_forward_says_so():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty defines no forward"):
        Empty()(1)


def test_arrays_in_tensors_out():
    x = np.ones((2, 3), np.float32)
    for module in (nn.Identity(), nn.ReLU(), nn.Dropout().eval(), nn.Sequential(), Block()):
        assert isinstance(module(x), Tensor)


def test_train_eval_and_requires_grad():
    model = nn.Sequential(Block(), nn.Dropout())
    assert model.eval() is model
    assert [m.training for m in model.modules()] == [False] * 4
    model.train()
    assert all(m.training for m in model.modules())
    with pytest.raises(TypeError, match="mode"):
        model.train(1)
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())


def test_zero_grad_and_backward():
    block = Block()
    block(np.ones((2, 3), np.float32)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_apply_children_first():
    seen = []
    block = Block()
    assert block.apply(seen.append) is block
    assert seen == [block.inner, block]


def test_to_keeps_the_objects_and_only_floating_values_change_dtype():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = list(model.parameters())
    model(np.ones((4, 3), np.float32)).sum().backward()
    assert model.to(np.float64) is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    assert model[1].running_mean.dtype == np.float64
    assert model[1].num_batches_tracked.dtype == np.int64
    assert model(np.ones((4, 3), np.float64)).dtype == np.float64
    model.to("cpu")
    assert next(model.parameters()).dtype == np.float64


@pytest.mark.parametrize("target", ["tpu", "int32", np.int64, 3, None, "cuda:x"])
def test_to_refuses_what_is_neither(target):
    with pytest.raises((ValueError, TypeError)):
        nn.Linear(2, 2).to(target)


# --- state dicts ----------------------------------------------------------------------------------


def test_state_dict_has_persistent_state_and_shares_memory():
    block = Block()
    state = block.state_dict()
    assert list(state) == ["scale", "shift", "inner.weight", "inner.bias"]
    assert not any(t.requires_grad for t in state.values())
    assert np.shares_memory(state["scale"].data, block.scale.data)


def test_load_state_dict_copies_in_place():
    source, target = Block(), Block()
    kept = target.inner.weight
    data = kept.data
    result = target.load_state_dict(source.state_dict())
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    assert target.inner.weight is kept
    assert kept.data is data
    np.testing.assert_array_equal(data, source.inner.weight.data)
    source.inner.weight.data[:] = 7
    assert not (data == 7).any()


def test_load_state_dict_raises_the_version():
    layer = nn.Linear(2, 2)
    y = layer(Tensor(np.ones((1, 2), np.float32), requires_grad=True)).sum()
    before = layer.weight.version
    layer.load_state_dict(layer.state_dict())
    assert layer.weight.version > before
    with pytest.raises(RuntimeError, match="matmul"):
        y.backward()


@pytest.mark.parametrize(
    "kind", [np.asarray, lambda a: Tensor(a), lambda a: a.tolist(), lambda a: a.astype(np.float64)]
)
def test_load_state_dict_takes_anything_array_like(kind):
    layer = nn.Linear(3, 2)
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    layer.load_state_dict({"weight": kind(weight), "bias": kind(bias)})
    np.testing.assert_array_equal(layer.weight.data, weight)
    assert layer.weight.dtype == np.float32


def test_load_state_dict_lists_all_that_is_wrong_and_changes_nothing():
    model = nn.Sequential(OrderedDict(first=nn.Linear(3, 2), second=nn.Linear(2, 1)))
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    state = {**{k: v + 1 for k, v in before.items()}, "first.weight": np.zeros((3, 2)), "extra": np.zeros(1)}
    del state["second.bias"]
    with pytest.raises(ValueError, match="does not fit Sequential") as caught:
        model.load_state_dict(state)
    for part in (
        "first.weight has shape (3, 2), expected (2, 3)",
        "missing: second.bias",
        "unexpected: extra",
    ):
        assert part in str(caught.value)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.data, before[name])


def test_load_state_dict_not_strict():
    layer = nn.Linear(3, 2)
    result = layer.load_state_dict({"weight": np.ones((2, 3)), "extra": 1}, strict=False)
    assert result.missing_keys == ["bias"]
    assert result.unexpected_keys == ["extra"]
    assert (layer.weight.data == 1).all()
    with pytest.raises(ValueError, match="shape"):
        layer.load_state_dict({"weight": np.ones((3, 3))}, strict=False)


def test_load_state_dict_refuses_wrong_kinds():
    with pytest.raises(TypeError, match="mapping"):
        nn.Linear(3, 2).load_state_dict([1, 2])
    with pytest.raises(TypeError, match="num_batches_tracked"):
        nn.BatchNorm1d(2).load_state_dict({"num_batches_tracked": np.float32(1.5)}, strict=False)
    with pytest.raises(TypeError, match="weight"):
        nn.Linear(1, 2, bias=False).load_state_dict({"weight": [["a"], ["b"]]})


# --- hooks ----------------------------------------------------------------------------------------


def test_hooks_see_and_replace_arguments_and_result():
    layer = nn.Identity()
    calls = []
    pre = layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    post = layer.register_forward_hook(lambda module, args, result: calls.append((module, args, result)))
    double = layer.register_forward_hook(lambda module, args, result: result * 2)
    y = layer(np.float32([1.0]))
    assert y.item() == 4.0
    assert calls[0][0] is layer
    assert calls[0][1][0].item() == 2.0
    assert calls[0][2].item() == 2.0
    for handle in (pre, post, double, double):
        handle.remove()
    assert layer(np.float32([1.0])).item() == 1.0
    with pytest.raises(TypeError, match="hook"):
        layer.register_forward_hook(3)


def test_a_pre_hook_may_return_one_value_and_a_handle_is_a_context():
    layer = nn.Identity()
    with layer.register_forward_pre_hook(lambda module, args: args[0] * 3):
        assert layer(np.float32([1.0])).item() == 3.0
    assert layer(np.float32([1.0])).item() == 1.0


# --- copies, printing -----------------------------------------------------------------------------


def test_deepcopy_is_independent():
    model = nn.Sequential(Block(), nn.BatchNorm1d(3))
    model(np.ones((2, 3), np.float32)).sum().backward()
    twin = copy.deepcopy(model)
    assert names(twin.named_parameters()) == names(model.named_parameters())
    assert isinstance(twin[0].scale, nn.Parameter)
    assert twin[0].scale.requires_grad
    assert not np.shares_memory(twin[0].scale.data, model[0].scale.data)
    twin[0].scale.data[:] = 9
    assert not (model[0].scale.data == 9).any()
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    twin.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(twin.eval()(x).data, model.eval()(x).data)


def test_deepcopy_keeps_sharing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    twin = copy.deepcopy(model)
    assert twin[0].weight is twin[1].weight


def build(nn):
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=(2, 1), padding=1, dilation=2, groups=2, bias=False),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Sequential(
            nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(), nn.GELU("tanh"), nn.Softplus(), nn.Hardtanh(), nn.SiLU()
        ),
        nn.MaxPool2d(2),
        nn.AvgPool2d((2, 1)),
        nn.AdaptiveAvgPool2d((1, None)),
        nn.Flatten(),
        nn.Unflatten(1, (2, 4)),
        nn.Linear(3, 4, bias=False),
        nn.LayerNorm((3, 4)),
        nn.Embedding(5, 2, padding_idx=1),
        nn.Dropout(0.1),
        nn.Softmax(dim=1),
        nn.Identity(),
        nn.ModuleDict({"a": nn.Tanh(), "b": nn.ModuleList([nn.Sigmoid(), nn.Sigmoid(), nn.CELU()])}),
        nn.CrossEntropyLoss(),
    )


def test_repr_is_torchs():
    torch = pytest.importorskip("torch")
    assert repr(build(nn)) == repr(build(torch.nn))


def test_repr_of_small_things():
    assert repr(nn.Sequential()) == "Sequential()"
    assert repr(nn.Linear(2, 3, activation="relu")) == (
        "Linear(in_features=2, out_features=3, bias=True, activation='relu')"
    )
    assert repr(nn.BatchNorm2d(3)) == (
        "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    )
    assert repr(Block()) == "Block(\n  (inner): Linear(in_features=3, out_features=3, bias=True)\n)"
    assert repr(nn.Parameter(np.zeros(2, np.float32))).startswith("Parameter([0., 0.]")


def test_summary_counts_and_leaves_no_trace():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
    )
    model[4].bias.requires_grad = False
    model[1].eval()
    text = model.summary((1, 4, 4))
    lines = text.splitlines()
    assert lines[2].split() == ["0", "Conv2d", "(N,", "6,", "4,", "4)", "156"]
    assert lines[6].split() == ["4", "Linear", "(N,", "2)", "194"]
    assert lines[-2].split() == ["total", "362"]
    assert lines[-1].split() == ["trainable", "360"]
    assert model.training
    assert not model[1].training
    assert model[0].training
    assert (model[1].running_mean.data == 0).all()
    assert not any(m._forward_hooks for m in model.modules())


def test_summary_of_one_layer_of_shared_layers_and_of_indices():
    assert nn.Linear(2, 3).summary((2,)).splitlines()[2].split() == ["Linear", "(N,", "3)", "9"]
    layer = nn.Linear(2, 2)
    text = nn.Sequential(layer, layer).summary((2,))
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["6", "0"]
    assert "(N, 5, 3)" in nn.Embedding(7, 3).summary((5,), dtype=np.int64)
    with pytest.raises(ValueError, match="input_shape"):
        layer.summary(2)
