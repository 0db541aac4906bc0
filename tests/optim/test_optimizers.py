"""Optimisers against float64 twins written from the formulas, and against torch."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import brasa as br
from brasa import optim

SHAPES = ((3, 4), (5,), (2, 1, 3), (1,))


# --- float64 twins: (w, g, state, t, options) -> new w --------------------------------------------


def sgd_twin(w, g, state, t, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    g = g + weight_decay * w
    if momentum:
        state["v"] = g if t == 1 else momentum * state["v"] + (1 - dampening) * g
        g = g + momentum * state["v"] if nesterov else state["v"]
    return w - lr * g


def adam_twin(w, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
    return _adam(w, g + weight_decay * w, state, t, lr, betas, eps)


def adamw_twin(w, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    return _adam(w * (1 - lr * weight_decay), g, state, t, lr, betas, eps)


def _adam(w, g, state, t, lr, betas, eps):
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    return w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def rmsprop_twin(w, g, state, t, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    g = g + weight_decay * w
    s = state["s"] = alpha * state.get("s", 0) + (1 - alpha) * g**2
    if centered:
        mean = state["mean"] = alpha * state.get("mean", 0) + (1 - alpha) * g
        s = s - mean**2
    u = g / (np.sqrt(s) + eps)
    if momentum:
        u = state["u"] = momentum * state.get("u", 0) + u
    return w - lr * u


def adagrad_twin(w, g, state, t, lr, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10):
    g = g + weight_decay * w
    s = state["s"] = state.get("s", initial_accumulator_value) + g**2
    return w - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s) + eps)


def adadelta_twin(w, g, state, t, lr, rho=0.9, eps=1e-6, weight_decay=0):
    g = g + weight_decay * w
    s = state["s"] = rho * state.get("s", 0) + (1 - rho) * g**2
    d = g * np.sqrt(state.get("d", 0) + eps) / np.sqrt(s + eps)
    state["d"] = rho * state.get("d", 0) + (1 - rho) * d**2
    return w - lr * d


CASES = [
    ("SGD", sgd_twin, {"lr": 0.1}),
    ("SGD", sgd_twin, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", sgd_twin, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    ("SGD", sgd_twin, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", adam_twin, {"lr": 0.01}),
    ("Adam", adam_twin, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", adamw_twin, {"lr": 0.01}),
    ("AdamW", adamw_twin, {"lr": 0.02, "weight_decay": 0.3}),
    ("RMSprop", rmsprop_twin, {"lr": 0.01}),
    ("RMSprop", rmsprop_twin, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", rmsprop_twin, {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-2}),
    ("RMSprop", rmsprop_twin, {"lr": 0.01, "centered": True, "momentum": 0.5, "eps": 1e-2}),
    ("Adagrad", adagrad_twin, {"lr": 0.1}),
    (
        "Adagrad",
        adagrad_twin,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    ("Adadelta", adadelta_twin, {"lr": 1.0}),
    ("Adadelta", adadelta_twin, {"lr": 0.5, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
]
IDS = [f"{name}-{'-'.join(options)}" for name, _, options in CASES]


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def tensors(dtype=np.float64, seed=0):
    return [br.Tensor(values, requires_grad=True) for values in draw(seed, dtype)]


def set_gradients(params, step, dtype=np.float64):
    for param, values in zip(params, draw(100 + step, dtype), strict=True):
        param.grad = br.Tensor(values)


@pytest.mark.parametrize(("name", "twin", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_follow_the_formula(name, twin, options, dtype):
    params = tensors(dtype)
    optimizer = getattr(optim, name)(params, **options)
    weights = [p.numpy().astype(np.float64) for p in params]
    states = [{} for _ in params]
    for step in range(1, 31):
        set_gradients(params, step, dtype)
        weights = [
            twin(w, p.grad.numpy().astype(np.float64), state, step, **options)
            for w, p, state in zip(weights, params, states, strict=True)
        ]
        optimizer.step()
    # 30 roundings of the weight and of what it moves by, which is of the order of the weight.
    bound = {"float32": 3e-5, "float64": 1e-12}[dtype]
    for param, expected in zip(params, weights, strict=True):
        np.testing.assert_allclose(param.numpy(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("name", "twin", "options"), CASES, ids=IDS)
def test_maximize_is_descent_on_the_negative(name, twin, options):
    up, down = tensors(), tensors()
    climber = getattr(optim, name)(up, **options, maximize=True)
    faller = getattr(optim, name)(down, **options)
    for step in range(5):
        set_gradients(up, step)
        set_gradients(down, step)
        for param in down:
            param.grad = br.Tensor(-param.grad.data)
        climber.step()
        faller.step()
    for a, b in zip(up, down, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(("name", "twin", "options"), CASES, ids=IDS)
@pytest.mark.torch
def test_same_as_torch(name, twin, options):
    torch = pytest.importorskip("torch")
    ours, theirs = tensors(), [torch.tensor(v, requires_grad=True) for v in draw(0, np.float64)]
    own = getattr(optim, name)(ours, **options)
    peer = getattr(torch.optim, name)(theirs, **options)

    def steps(first, last):
        for step in range(first, last):
            set_gradients(ours, step)
            for ours_, theirs_ in zip(ours, theirs, strict=True):
                theirs_.grad = torch.tensor(ours_.grad.numpy())
            own.step()
            peer.step()

    steps(0, 10)
    # Half-way, torch's state becomes ours: names and meaning have to agree.
    own.load_state_dict(peer.state_dict())
    for a, b in zip(ours, theirs, strict=True):
        a.data[...] = b.detach().numpy()
    steps(10, 20)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
@pytest.mark.torch
def test_defaults_are_torchs(name):
    torch = pytest.importorskip("torch")
    own = getattr(optim, name)(tensors()).defaults
    peer = getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)]).defaults
    assert own.items() <= peer.items()


# --- groups, missing gradients, versions ----------------------------------------------------------


def test_groups_have_their_own_options():
    params = tensors()
    optimizer = optim.SGD([{"params": params[:2], "lr": 0.5}, {"params": params[2:]}], lr=0.25)
    before = [p.numpy().copy() for p in params]
    set_gradients(params, 0)
    optimizer.step()
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        lr = 0.5 if i < 2 else 0.25
        np.testing.assert_allclose(param.numpy(), old - lr * param.grad.numpy(), rtol=1e-15)


def test_parameters_without_gradient_rest_and_count_their_own_steps():
    params = tensors()
    optimizer = optim.Adam(params, lr=0.1)
    weights, states = [p.numpy().copy() for p in params], [{} for _ in params]
    steps = [0] * len(params)
    for step in range(6):
        set_gradients(params, step)
        for i, param in enumerate(params):
            if (step + i) % 3 == 0:
                param.grad = None
                continue
            steps[i] += 1
            weights[i] = adam_twin(weights[i], param.grad.numpy(), states[i], steps[i], 0.1)
        optimizer.step()
    for param, expected in zip(params, weights, strict=True):
        np.testing.assert_allclose(param.numpy(), expected, rtol=1e-12)


def test_dtypes_may_be_mixed():
    params = tensors(np.float32)[:2] + tensors(np.float64)[2:]
    optimizer = optim.Adam(params)
    for param, values in zip(params, draw(3, np.float64), strict=True):
        param.grad = br.Tensor(values.astype(param.dtype))
    optimizer.step()
    assert [p.dtype.name for p in params] == ["float32"] * 2 + ["float64"] * 2


def test_scale_multiplies_the_gradients_before_weight_decay():
    ours, expected = tensors(), tensors()
    scaled, plain = (
        optim.SGD(ours, 0.1, weight_decay=0.5),
        optim.SGD(expected, 0.1, weight_decay=0.5),
    )
    set_gradients(ours, 0)
    set_gradients(expected, 0)
    for param in expected:
        param.grad = br.Tensor(param.grad.data * 0.25)
    scaled.step(scale=0.25)
    plain.step()
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_step_raises_the_version_and_backward_notices():
    w = br.Tensor(np.ones(3), requires_grad=True)
    optimizer = optim.SGD([w], lr=0.1)
    loss = (w * w).sum()
    w.grad = br.Tensor(np.ones(3))
    before = w.version
    optimizer.step()
    assert w.version == before + 1
    with pytest.raises(RuntimeError):
        loss.backward()


def test_gradients_are_not_kept_after_a_step():
    params = tensors()
    optimizer = optim.Adam(params)
    for _ in range(3):  # from the second step on the optimiser knows its arrays
        for p in params:
            p.grad = br.Tensor(np.ones_like(p.data))
        held = [weakref.ref(p.grad.data) for p in params]
        optimizer.step()
        optimizer.zero_grad()
        assert all(gradient() is None for gradient in held)


def test_zero_grad():
    params = tensors()
    optimizer = optim.SGD(params)
    set_gradients(params, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = [p.numpy().copy() for p in params]
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(param.numpy(), old)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "twin", "options"), CASES, ids=IDS)
def test_a_restored_optimiser_goes_on_bit_for_bit(name, twin, options):
    straight, resumed = tensors(np.float32), tensors(np.float32)
    first = getattr(optim, name)(straight, **options)
    for step in range(3):
        set_gradients(straight, step, np.float32)
        first.step()
    for a, b in zip(resumed, straight, strict=True):
        a.data[...] = b.data
    second = getattr(optim, name)(resumed, lr=123.0)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        for params, optimizer in ((straight, first), (resumed, second)):
            set_gradients(params, step, np.float32)
            optimizer.step()
    for a, b in zip(straight, resumed, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


def test_a_state_that_does_not_fit_changes_nothing():
    params = tensors()
    optimizer = optim.Adam(params)
    set_gradients(params, 0)
    optimizer.step()
    good = optimizer.state_dict()
    kept = {i: s["exp_avg"].copy() for i, s in good["state"].items()}
    bad_shape = {**good, "state": {**good["state"], 1: {"step": 1, "exp_avg": np.zeros(7)}}}
    bad_groups = {**good, "param_groups": [{**good["param_groups"][0], "params": [0]}]}
    bad_place = {**good, "state": {**good["state"], 9: {"step": 1}}}
    bad_option = {**good, "param_groups": [{**good["param_groups"][0], "lr": -1.0}]}
    for bad in (bad_shape, bad_groups, bad_place, bad_option):
        with pytest.raises(ValueError, match=r"state_dict|lr must"):
            optimizer.load_state_dict(bad)
        assert optimizer.param_groups[0]["lr"] == 1e-3
        for i, state in optimizer.state_dict()["state"].items():
            np.testing.assert_array_equal(state["exp_avg"], kept[i])


def test_a_loaded_state_is_a_copy():
    params = tensors()
    first = optim.Adam(params)
    set_gradients(params, 0)
    first.step()
    saved = first.state_dict()
    kept = saved["state"][0]["exp_avg"].copy()
    second = optim.Adam(tensors())
    second.load_state_dict(saved)
    saved["state"][0]["exp_avg"][...] = 7
    np.testing.assert_array_equal(second.state_dict()["state"][0]["exp_avg"], kept)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": -1}),
        ("SGD", {"lr": float("nan")}),
        ("SGD", {"lr": float("inf")}),
        ("SGD", {"momentum": -0.1}),
        ("SGD", {"nesterov": True}),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        ("Adam", {"betas": (1.0, 0.9)}),
        ("Adam", {"betas": (0.9, -0.1)}),
        ("Adam", {"betas": (0.9,)}),
        ("Adam", {"eps": -1e-8}),
        ("AdamW", {"weight_decay": -1}),
        ("RMSprop", {"alpha": -1}),
        ("Adagrad", {"lr_decay": -1}),
        ("Adadelta", {"rho": 1.5}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        getattr(optim, name)(tensors(), **options)


def test_wrong_params():
    param = tensors()[0]
    with pytest.raises(ValueError, match="empty"):
        optim.SGD([])
    with pytest.raises(TypeError, match="list"):
        optim.SGD(param)
    with pytest.raises(TypeError, match="ndarray"):
        optim.SGD([np.zeros(3)])
    with pytest.raises(ValueError, match="twice"):
        optim.SGD([param, param])
    with pytest.raises(ValueError, match="twice"):
        optim.SGD([{"params": param}, {"params": [param]}])
    with pytest.raises(TypeError, match="momentun"):
        optim.SGD([{"params": [param], "momentun": 0.9}])


def test_repr_names_the_options():
    assert "lr=0.25" in repr(optim.SGD(tensors(), lr=0.25))
