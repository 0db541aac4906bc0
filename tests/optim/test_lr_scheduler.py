"""Schedules: by hand, and against torch where it is there."""

from __future__ import annotations

import math

import numpy as np
import pytest

import brasa as br
from brasa import optim

STEPS = 24
CASES = [
    ("StepLR", {"step_size": 5, "gamma": 0.3}),
    ("MultiStepLR", {"milestones": [3, 8, 8, 15], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 9}),
    ("CosineAnnealingLR", {"T_max": 10}),
    ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.01}),
    ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": STEPS}),
    ("OneCycleLR", {"max_lr": 0.3, "epochs": 6, "steps_per_epoch": 4, "anneal_strategy": "linear"}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": STEPS, "three_phase": True}),
    ("OneCycleLR", {"max_lr": [0.3, 0.1], "total_steps": STEPS, "pct_start": 0.5, "div_factor": 5}),
]


def groups(make):
    return [{"params": [make()], "lr": 0.2}, {"params": [make()]}]


def optimizer(name="SGD", **options):
    params = groups(lambda: br.Tensor(np.zeros(2), requires_grad=True))
    return getattr(optim, name)(params, lr=0.1, **options)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.torch
def test_same_as_torch(name, options, kind):
    torch = pytest.importorskip("torch")
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    own = optimizer(kind, **momentum)
    params = groups(lambda: torch.zeros(2, requires_grad=True))
    peer = getattr(torch.optim, kind)(params, lr=0.1, **momentum)
    schedule = getattr(optim, name)(own, **options)
    theirs = getattr(torch.optim.lr_scheduler, name)(peer, **options)
    for _ in range(STEPS - 1):
        for a, b in zip(own.param_groups, peer.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"], rel=1e-12, abs=1e-15)
            key = "momentum" if kind == "SGD" else "betas"
            assert a[key] == pytest.approx(b[key], rel=1e-12)
        peer.step()
        schedule.step()
        theirs.step()


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_restored_schedule_goes_on_where_it_was(name, options):
    first, second = optimizer("Adam"), optimizer("Adam")
    one = getattr(optim, name)(first, **options)
    for _ in range(7):
        one.step()
    other = getattr(optim, name)(second, **options)
    other.load_state_dict(one.state_dict())
    for _ in range(10):
        for a, b in zip(first.param_groups, second.param_groups, strict=True):
            assert (a["lr"], a["betas"]) == (b["lr"], b["betas"])
        one.step()
        other.step()


def test_one_cycle_by_hand():
    own = optimizer("SGD", momentum=0.9)
    schedule = optim.OneCycleLR(own, 1.0, total_steps=10, pct_start=0.5, anneal_strategy="linear")
    rates, momenta = [], []
    for _ in range(10):
        rates.append(own.param_groups[0]["lr"])
        momenta.append(own.param_groups[0]["momentum"])
        schedule.step()
    np.testing.assert_allclose(rates[:5], np.linspace(0.04, 1.0, 5))
    np.testing.assert_allclose(rates[4:], np.linspace(1.0, 4e-6, 6))
    np.testing.assert_allclose(momenta[:5], np.linspace(0.95, 0.85, 5))
    np.testing.assert_allclose(momenta[4:], np.linspace(0.85, 0.95, 6))
    with pytest.raises(ValueError, match="over"):
        schedule.step()


def test_plateau_by_hand():
    own = optimizer()
    schedule = optim.ReduceLROnPlateau(own, factor=0.5, patience=1, threshold=0.1, cooldown=1)
    rates = []
    for value in [1.0, 0.95, 0.8, 0.79, 0.78, 0.77, 0.76, 0.75, 0.74]:
        schedule.step(value)
        rates.append(own.param_groups[1]["lr"])
    assert rates == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.torch
def test_plateau_same_as_torch(mode, threshold_mode):
    torch = pytest.importorskip("torch")
    own = optimizer()
    peer = torch.optim.SGD(groups(lambda: torch.zeros(2, requires_grad=True)), lr=0.1)
    options = {
        "mode": mode,
        "threshold_mode": threshold_mode,
        "patience": 2,
        "factor": 0.3,
        "cooldown": 2,
        "threshold": 0.05,
        "min_lr": 1e-3,
    }
    schedule = optim.ReduceLROnPlateau(own, **options)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(peer, **options)
    for value in np.random.default_rng(0).standard_normal(60):
        schedule.step(value)
        theirs.step(value)
        assert schedule.get_last_lr() == pytest.approx(theirs.get_last_lr())


def test_plateau_state_survives():
    first, second = optimizer(), optimizer()
    one = optim.ReduceLROnPlateau(first, patience=2)
    other = optim.ReduceLROnPlateau(second, patience=2)
    assert one.state_dict()["best"] == math.inf
    for _ in range(2):
        one.step(1.0)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        one.step(1.0)
        other.step(1.0)
        assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"]


def test_steps_are_counted_in_epochs_or_batches():
    own = optimizer("Adam")
    assert optim.StepLR(own, 3).interval == "epoch"
    assert optim.OneCycleLR(own, 0.1, total_steps=3).interval == "batch"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StepLR", {"step_size": 0}),
        ("StepLR", {"step_size": 2.5}),
        ("LinearLR", {"start_factor": 0}),
        ("CosineAnnealingLR", {"T_max": -1}),
        ("LambdaLR", {"lr_lambda": [abs]}),
        ("OneCycleLR", {"max_lr": 0.1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 3}),
        ("OneCycleLR", {"max_lr": [0.1], "total_steps": 3, "cycle_momentum": False}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 3, "pct_start": 2}),
        ("ReduceLROnPlateau", {"factor": 1.0}),
        ("ReduceLROnPlateau", {"mode": "least"}),
    ],
)
def test_wrong_options(name, options):
    with pytest.raises(ValueError, match=r"must|needs|functions|values"):
        getattr(optim, name)(optimizer(), **options)


def test_a_schedule_needs_an_optimizer():
    with pytest.raises(TypeError, match="optimizer"):
        optim.StepLR(0.1, 3)
