"""`GradScaler`: the factor, what is skipped, unscaling, and states that go from and to PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import brasa as br
from brasa import Tensor, optim


def parameter(xp, *values):
    return Tensor(xp.asarray(np.array(values, np.float32)), requires_grad=True)


def backward(scaler, *parameters, factor=1.0):
    """Gradients 2 factor p of each parameter, times the scale."""
    loss = sum((p * p).sum() for p in parameters) * factor
    scaler.scale(loss).backward()


def test_a_step_is_that_without_scaling(xp):
    scaled, plain = parameter(xp, 1, -2, 3), parameter(xp, 1, -2, 3)
    scaler = br.GradScaler()
    for p, s in ((scaled, scaler), (plain, br.GradScaler(enabled=False))):
        optimizer = optim.SGD([p], lr=0.1, momentum=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            backward(s, p)
            assert s.step(optimizer)
            s.update()
    assert np.array_equal(xp.asnumpy(scaled.data), xp.asnumpy(plain.data))
    assert scaler.get_scale() == 65536
    assert scaler.skipped == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_overflow_skips_the_step_and_halves_the_factor(xp, bad):
    p, q = parameter(xp, 1, 2), parameter(xp, *range(100))
    optimizer, scaler = optim.Adam([p, q], lr=0.1), br.GradScaler(init_scale=8.0)
    backward(scaler, p, q)
    q.grad.data[77] = bad
    before = xp.asnumpy(p.data).copy(), xp.asnumpy(q.data).copy()
    assert not scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4
    assert scaler.skipped == 1
    assert np.array_equal(xp.asnumpy(p.data), before[0])
    assert np.array_equal(xp.asnumpy(q.data), before[1])
    assert optimizer.state_dict()["state"] == {}
    optimizer.zero_grad()
    backward(scaler, p, q)
    assert scaler.step(optimizer)
    assert optimizer.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("at", [0, 5, 16 * 1024 - 1, 16 * 1024, 40_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_element_is_looked_at(xp, at, dtype):
    sizes = [0, 1, 7, 16 * 1024 + 3, 24_000]
    gradients = [np.full(n, np.finfo(dtype).max, dtype) for n in sizes]
    parameters = [Tensor(xp.asarray(np.zeros(n, dtype)), requires_grad=True) for n in sizes]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = Tensor(xp.asarray(g))
    optimizer = optim.SGD(parameters, lr=0.0)
    scaler = br.GradScaler(growth_interval=1)
    assert scaler.step(optimizer)
    scaler.update()
    flat = np.concatenate(gradients)
    flat[at] = np.nan
    for p, g in zip(parameters, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
        p.grad = Tensor(xp.asarray(g))
    assert not scaler.step(optimizer)


def test_more_tensors_than_one_launch_takes(xp):
    parameters = [parameter(xp, i, 1) for i in range(130)]
    optimizer, scaler = optim.SGD(parameters, lr=0.1), br.GradScaler(init_scale=2.0)
    backward(scaler, *parameters)
    scaler.unscale_(optimizer)
    for i, p in enumerate(parameters):
        assert np.array_equal(xp.asnumpy(p.grad.data), [2 * i, 2])
    parameters[129].grad.data[1] = np.inf
    assert scaler.step(optimizer), "looked at before"
    scaler.update()
    assert not scaler.step(optimizer)


def test_the_factor_grows_after_clean_steps(xp):
    p = parameter(xp, 1)
    optimizer, scaler = optim.SGD([p], lr=0.0), br.GradScaler(init_scale=4.0, growth_interval=3)
    seen = []
    for i in range(8):
        p.grad = Tensor(xp.asarray(np.float32([np.inf if i == 4 else 1])))
        scaler.step(optimizer)
        scaler.update()
        seen.append(scaler.get_scale())
    assert seen == [4, 4, 8, 8, 4, 4, 4, 8]
    scaler.update(new_scale=3.0)
    assert scaler.get_scale() == 3


def test_unscaled_gradients_are_stepped_on_as_they_are(xp):
    p = parameter(xp, 1, -2)
    optimizer, scaler = optim.SGD([p], lr=0.5), br.GradScaler()
    backward(scaler, p)
    scaler.unscale_(optimizer)
    assert np.array_equal(xp.asnumpy(p.grad.data), [2, -4])
    scaler.step(optimizer, scale=0.5)
    assert np.array_equal(xp.asnumpy(p.data), [0.5, -1])


def test_one_array_of_two_parameters_is_divided_once(xp):
    p, q = parameter(xp, 1), parameter(xp, 1)
    p.grad = q.grad = Tensor(xp.asarray(np.float32([8])))
    optimizer, scaler = optim.SGD([p, q], lr=1.0), br.GradScaler(init_scale=2.0)
    scaler.unscale_(optimizer)
    assert float(p.grad.data[0]) == float(q.grad.data[0]) == 4


def test_gradients_in_any_layout(xp):
    p = Tensor(xp.asarray(np.ones((3, 4), np.float32)), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=1.0), br.GradScaler(init_scale=2.0)
    p.grad = Tensor(xp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3)).T)
    scaler.unscale_(optimizer)
    assert np.array_equal(xp.asnumpy(p.grad.data), np.arange(12).reshape(4, 3).T / 2)
    assert scaler.step(optimizer)


def test_several_optimizers_share_a_factor(xp):
    p, q = parameter(xp, 1), parameter(xp, 1)
    first, second, scaler = optim.SGD([p], lr=1.0), optim.SGD([q], lr=1.0), br.GradScaler(init_scale=4.0)
    p.grad, q.grad = (Tensor(xp.asarray(np.float32([v]))) for v in (4, np.inf))
    assert scaler.step(first)
    assert not scaler.step(second)
    scaler.update()
    assert scaler.get_scale() == 2
    assert float(p.data[0]) == 0
    assert float(q.data[0]) == 1


def test_order_of_calls():
    p = Tensor(np.ones(1, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=1.0), br.GradScaler()
    with pytest.raises(RuntimeError, match=r"update\(\) without a step"):
        scaler.update()
    backward(scaler, p)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) after unscale_\(\)"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) a second time"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) after"):
        scaler.unscale_(optimizer)
    scaler.update()


def test_lists_and_16_bits_are_scaled(xp):
    scaler = br.GradScaler()
    loss = Tensor(xp.asarray(np.float16(2.0).reshape(())))
    both = scaler.scale([loss, (loss,)])
    assert type(both) is list
    assert type(both[1]) is tuple
    assert both[0].dtype == np.float32
    assert float(xp.asnumpy(both[1][0].data)) == 131072


def test_16_bit_gradients_are_refused():
    p = Tensor(np.ones(2, np.float16), requires_grad=True)
    p.grad = Tensor(np.ones(2, np.float16))
    with pytest.raises(TypeError, match="a gradient is float16: GradScaler needs float32 parameters"):
        br.GradScaler().step(optim.SGD([p], lr=1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scale": 0.0}, "init_scale: expected a positive number that float32 holds, got 0.0"),
        ({"init_scale": math.inf}, "init_scale"),
        ({"init_scale": math.nan}, "init_scale"),
        ({"init_scale": 1e-300}, "init_scale"),
        ({"growth_factor": 1.0}, "growth_factor: expected a finite number above 1, got 1.0"),
        ({"growth_factor": math.inf}, "growth_factor"),
        ({"growth_factor": math.nan}, "growth_factor"),
        ({"backoff_factor": 1.0}, "backoff_factor: expected a number in"),
        ({"growth_interval": 0}, "growth_interval: expected at least 1, got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        br.GradScaler(**options)


def test_a_factor_that_is_none_is_refused_and_changes_nothing():
    p = Tensor(np.ones(1, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=0.0), br.GradScaler()
    backward(scaler, p)
    scaler.step(optimizer)
    for bad in (0, -1.0, math.nan, math.inf, 1e-300):
        with pytest.raises(ValueError, match="new_scale: expected a positive number that float32 holds"):
            scaler.update(new_scale=bad)
    with pytest.raises(ValueError, match="scale: expected"):
        scaler.load_state_dict({**scaler.state_dict(), "scale": 0.0})
    with pytest.raises(TypeError, match=r"growth_interval: expected an int, got 1\.5"):
        br.GradScaler(growth_interval=1.5)
    scaler.update()
    assert scaler.get_scale() == 65536


@pytest.mark.parametrize(("growth", "backoff", "factor"), [(2.0, 0.5, 2.0**125), (3.0, 1e-30, 1.7)])
def test_the_factor_moves_alike_everywhere(xp, isa, growth, backoff, factor):
    """By the guards of three optimisers, on every instruction set and device, within what float32 holds."""
    state, guards = (
        xp.asarray(np.array([factor, 0.0, growth, backoff, 3.0])),
        xp.asarray(np.zeros((3, 2), np.int32)),
    )
    clean, left_out = 0, np.zeros(3, int)
    for overflows in np.random.default_rng(0).random((60, 3)) < 0.1:
        guards[:, 0] = xp.asarray(overflows.astype(np.int32))
        xp.kernels.update_scale(state, guards)
        left_out += overflows
        clean = 0 if overflows.any() else clean + 1
        if overflows.any():
            factor = max(factor * backoff, 2.0**-126)
        elif clean == 3:
            factor, clean = min(factor * growth, 2.0**127), 0
        assert xp.asnumpy(state).tolist() == [factor, clean, growth, backoff, 3]
    assert xp.asnumpy(guards).tolist() == [[0, n] for n in left_out]


def test_overflow_after_overflow_leaves_a_factor_that_divides():
    p = Tensor(np.ones(1, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=0.0), br.GradScaler(backoff_factor=1e-30)
    p.grad = Tensor(np.float32([np.inf]))
    for _ in range(3):
        assert not scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**-126


def test_the_state_is_torchs():
    torch = pytest.importorskip("torch")
    theirs = torch.amp.GradScaler("cpu", init_scale=32.0, growth_interval=5)
    theirs._lazy_init_scale_growth_tracker("cpu")
    ours = br.GradScaler()
    ours.load_state_dict(theirs.state_dict())
    assert ours.get_scale() == 32
    state = ours.state_dict()
    assert {**theirs.state_dict(), "skipped": 0} == state
    theirs.load_state_dict({**state, "scale": 8.0})
    assert theirs.get_scale() == 8


def test_the_factor_moves_as_torchs(xp):
    torch = pytest.importorskip("torch")
    options = {"init_scale": 2.0, "growth_interval": 3}
    theirs, ours = torch.amp.GradScaler("cpu", **options), br.GradScaler(**options)
    w, p = torch.ones(1, requires_grad=True), parameter(xp, 1)
    their_step, our_step = torch.optim.SGD([w], lr=0.1), optim.SGD([p], lr=0.1)
    rng = np.random.default_rng(0)
    theirs.scale(w.sum()).backward()
    for _ in range(40):
        value = rng.choice(np.float32([1, 2, np.inf]), p=[0.6, 0.2, 0.2])
        w.grad = torch.tensor([float(value)])
        p.grad = Tensor(xp.asarray(np.array([value])))
        theirs.step(their_step)
        theirs.update()
        ours.step(our_step)
        ours.update()
        assert theirs.get_scale() == ours.get_scale()
        np.testing.assert_allclose(xp.asnumpy(p.data), w.detach().numpy(), rtol=1e-6)
