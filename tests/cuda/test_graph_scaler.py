"""A whole step with a `GradScaler` as a graph: what overflows is left out, with the bits of the eager step."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import nn, ops, optim
from graph_training import OPTIMIZERS, batches, network

STEPS = 22  # of which a graph is captured at the second: the host looks twice at least
OVERFLOWS = {
    "none": (),
    "before the capture": (0,),
    "at the capture": (1,),
    "in a row": (0, 1, 2, 5, 6, 7),
    "across a look": (8, 9, 10, 11, 12, 18),
    "at the last": (4, 21),
}


def inputs(device, overflows):
    """Batches of which some make every gradient NaN."""
    for i, (x, y) in enumerate(batches(STEPS)):
        yield device.asarray(x * np.float32(np.inf) if i in overflows else x), device.asarray(y)


def scaler_of(**options):
    return br.GradScaler(**{"init_scale": 16.0, "growth_interval": 3, **options})


def whole_step(net, optimizer, scaler, *, between=lambda optimizer: None):
    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        between(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def everything(device, optimizers, scaler):
    """All that a step leaves, as NumPy arrays and numbers."""
    left = [scaler.state_dict(), scaler.get_scale(), scaler.skipped]
    for optimizer in optimizers:
        left += [device.asnumpy(p.data).copy() for g in optimizer.param_groups for p in g["params"]]
        for slots in optimizer.state_dict()["state"].values():
            left += [
                slots["step"],
                *(device.asnumpy(v).copy() for v in slots.values() if hasattr(v, "shape")),
            ]
    return left


def train(device, make, overflows, *, as_graph, schedule=None, after=None, between=None):
    """The losses, and what is left in the end."""
    net, scaler = network(device), scaler_of()
    optimizer = make(net.parameters())
    scheduler = schedule(optimizer) if schedule else None
    step = whole_step(net, optimizer, scaler, **({"between": between(scaler)} if between else {}))
    run, left = br.cuda.graph(step) if as_graph else step, []
    for i, (x, y) in enumerate(inputs(device, overflows)):
        left.append(run(x, y).numpy().copy())
        if scheduler:
            scheduler.step()
        if after:
            left.append(after(i, optimizer, scaler))
    assert not as_graph or run.is_captured
    assert scaler.skipped == len(overflows)
    return [*left, *everything(device, [optimizer], scaler)]


def same(*results):
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def both(*args, **options):
    same(*(train(*args, as_graph=g, **options) for g in (False, True)))


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS)
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_graph_leaves_out_what_the_step_leaves_out(device, name, overflows):
    """Adam's bias correction and the dampening of a first step count the updates that were made."""
    both(device, OPTIMIZERS[name], overflows)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(device, name):
    both(device, OPTIMIZERS[name], (0, 3, 4, 9, 13))


SCHEDULES = {
    "one-cycle": lambda o: optim.OneCycleLR(o, max_lr=0.1, total_steps=STEPS),
    "step": lambda o: optim.StepLR(o, step_size=2, gamma=0.5),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_it_follows_the_schedule(device, schedule):
    """The learning rate and, with one-cycle, beta1 of every step, whichever number it has."""
    both(device, OPTIMIZERS["adam"], (0, 3, 4, 9, 13), schedule=schedule)


def test_groups_with_options_of_their_own(device):
    def make(params):
        params = list(params)
        return optim.Adam([{"params": params[:2], "lr": 0.1, "betas": (0.5, 0.9)}, {"params": params[2:]}])

    def change(i, optimizer, scaler):
        optimizer.param_groups[1]["lr"] *= 0.75

    both(device, make, (0, 3, 4, 9, 13), after=change)


LOOKS = {
    "factor": lambda i, optimizer, scaler: scaler.get_scale(),
    "skipped": lambda i, optimizer, scaler: scaler.skipped,
    "state": lambda i, optimizer, scaler: scaler.state_dict(),
    "steps": lambda i, optimizer, scaler: [s["step"] for s in optimizer.state_dict()["state"].values() if s["step"]],
    "sometimes": lambda i, optimizer, scaler: scaler.skipped if i % 5 == 3 else 0,
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_it_may_be_looked_at(device, look):
    both(device, OPTIMIZERS["adam"], (0, 1, 4, 9, 13), after=LOOKS[look])


def test_the_host_changes_the_factor_between_replays(device):
    def change(i, optimizer, scaler):
        if i in (3, 12):
            scaler.update(new_scale=float(i))
        if i == 15:
            scaler.load_state_dict(
                {**scaler.state_dict(), "scale": 2.0, "growth_factor": 3.0, "growth_interval": 2}
            )

    both(device, OPTIMIZERS["adam"], (0, 4, 9, 13), after=change)


def clip(scaler):
    def between(optimizer):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)

    return between


def test_gradients_are_divided_and_clipped_in_between(device):
    both(device, OPTIMIZERS["adam"], (0, 3, 4, 9, 13), between=clip)


def test_graphs_and_the_step_alternate(device):
    """Two shapes, each with a graph, and the step itself."""
    results = []
    for as_graph in (False, True):
        net, scaler = network(device), scaler_of()
        optimizer = optim.Adam(net.parameters(), lr=0.05)
        step = whole_step(net, optimizer, scaler)
        runs = [br.cuda.graph(step), br.cuda.graph(step), step] if as_graph else [step] * 3
        rows, which = (8, 5, 8), [0, 1, 0, 1, 0, 0, 1, 2, 0, 0, 1, 1, 2, 2, 0, 1, 1, 0, 2, 1, 0, 0]
        for i, (x, y) in zip(which, inputs(device, (2, 4, 5, 9, 10, 12, 16)), strict=True):
            runs[i](x[: rows[i]], y[: rows[i]])
        assert not as_graph or all(run.is_captured for run in runs[:2])
        results.append(everything(device, [optimizer], scaler))
    same(*results)


def test_the_same_optimizer_in_a_graph_without_the_scaler(device):
    results = []
    for as_graph in (False, True):
        net, scaler = network(device), scaler_of()
        optimizer = optim.Adam(net.parameters(), lr=0.05)
        steps = [whole_step(net, optimizer, s) for s in (scaler, br.GradScaler(enabled=False))]
        runs = [br.cuda.graph(step) for step in steps] if as_graph else steps
        for i, (x, y) in enumerate(inputs(device, (2, 4, 8, 16))):
            runs[i % 2](x, y)
        results.append(everything(device, [optimizer], scaler))
    same(*results)


def pairs(device, count=STEPS):
    """Gradients of two parameters, of which one, the other or both overflow at some steps."""
    values = np.random.default_rng(1).normal(size=(count, 2)).astype(np.float32)
    values[[0, 4, 9, 10], 0] = np.inf
    values[[2, 9, 14], 1] = np.nan
    return [device.asarray(v) for v in values]


@pytest.mark.parametrize("updates", ["one", "one each"])
@pytest.mark.parametrize("dtypes", [(np.float32, np.float32), (np.float32, np.float64)])
def test_several_optimizers_share_a_factor(device, updates, dtypes):
    """Each leaves out its own overflows; the factor shrinks for both."""
    results = []
    for as_graph in (False, True):
        p, q = (br.Tensor(device.asarray(np.ones(1, t)), requires_grad=True) for t in dtypes)
        first, second = optim.Adam([p], lr=0.1), optim.SGD([q], lr=0.1, momentum=0.9, dampening=0.5)
        scaler = scaler_of()

        def step(x, p=p, q=q, first=first, second=second, scaler=scaler):
            first.zero_grad()
            second.zero_grad()
            for loss in scaler.scale([(p * x[:1].astype(p.dtype)).sum(), (q * x[1:].astype(q.dtype)).sum()]):
                loss.backward()
            scaler.step(first)
            if updates == "one each":
                scaler.update()
            scaler.step(second)
            scaler.update()

        run, seen = br.cuda.graph(step) if as_graph else step, []
        for i, x in enumerate(pairs(device)):
            run(x)
            seen += [scaler.get_scale(), scaler.skipped] if i % 3 == 2 else []
        assert scaler.skipped == 7
        results.append([*seen, *everything(device, [first, second], scaler)])
    same(*results)


def test_parameters_of_two_dtypes_have_one_flag(device):
    results = []
    for as_graph in (False, True):
        p, q = (
            br.Tensor(device.asarray(np.ones(1, t)), requires_grad=True) for t in (np.float32, np.float64)
        )
        optimizer, scaler = optim.Adam([p, q], lr=0.1), scaler_of()

        def step(x, p=p, q=q, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            for loss in scaler.scale([(p * x[:1]).sum(), (q * x[1:].astype("float64")).sum()]):
                loss.backward()
            scaler.step(optimizer)
            scaler.update()

        run = br.cuda.graph(step) if as_graph else step
        for x in pairs(device):
            run(x)
        results.append(everything(device, [optimizer], scaler))
    same(*results)
    assert results[0][2] == 6


def test_the_host_looks_after_eight_replays(device, monkeypatch):
    from brasa import _scaler_capture

    looks = []
    read = _scaler_capture.OnDevice.read
    monkeypatch.setattr(_scaler_capture.OnDevice, "read", lambda self: (looks.append(len(steps)), read(self)))
    net, scaler, steps = network(device), scaler_of(), []
    run = br.cuda.graph(whole_step(net, optim.Adam(net.parameters()), scaler))
    for x, y in inputs(device, (3,)):
        run(x, y)
        steps.append(1)
    assert looks == [9, 17]
    assert scaler.skipped == 1


def test_a_captured_step_does_not_know_whether_it_steps(device):
    p, seen = br.Tensor(device.asarray(np.ones(2, np.float32)), requires_grad=True), []
    optimizer, scaler = optim.SGD([p], lr=0.25), scaler_of()

    @br.cuda.graph
    def step(x):
        optimizer.zero_grad()
        scaler.scale((p * x).sum()).backward()
        seen.append(scaler.step(optimizer))
        scaler.update()
        return scaler.get_scale()

    for value in (1, 1, np.inf, 1):
        found = step(device.asarray(np.full(2, value, np.float32)))
    assert seen == [True, None]
    assert float(device.asnumpy(found)) == 8 == scaler.get_scale()


def test_gradients_that_are_only_divided_skip_nothing(device):
    """They let the factor shrink."""
    p = br.Tensor(device.asarray(np.ones(2, np.float32)), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=0.25), scaler_of()

    @br.cuda.graph
    def step(x):
        optimizer.zero_grad()
        scaler.scale((p * x).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        return p.grad

    for value, factor in ((1, 16), (1, 16), (np.inf, 8), (3, 8)):
        found = step(device.asarray(np.full(2, value, np.float32)))
        assert (scaler.get_scale(), scaler.skipped) == (factor, 0)
        np.testing.assert_array_equal(found.numpy(), value)


@pytest.mark.parametrize("words", [13, 64])
def test_the_factor_lies_where_nothing_else_does(device, words):
    """What the step has forgotten before is as large as the scaler's numbers; CuPy's pool rounds to 512 bytes."""
    results = []
    for as_graph in (False, True):
        p = br.Tensor(device.asarray(np.ones(1, np.float32)), requires_grad=True)
        optimizer, scaler = optim.Adam([p], lr=0.1), scaler_of()

        def step(x, p=p, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            ops.relu(x)
            scaler.scale((p * x[:1].astype("float32")).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        run = br.cuda.graph(step) if as_graph else step
        for value in (3, 3, np.inf, 3, 3, 3):
            run(device.asarray(np.full(words, float(value))))
        results.append(everything(device, [optimizer], scaler))
    same(*results)


# ---- mistakes ------------------------------------------------------------------------------------------

INCOMPLETE = "was captured without update"
MISTAKES = {
    "no update": (lambda s, o, other: s.step(o), INCOMPLETE),
    "only unscale_": (lambda s, o, other: s.unscale_(o), INCOMPLETE),
    "only update": (lambda s, o, other: s.update(), r"update\(\) without a step"),
    "new_scale": (lambda s, o, other: (s.step(o), s.update(new_scale=2.0)), "takes no new_scale in a captured step"),
    "twice": (lambda s, o, other: (s.step(o), s.update(), s.step(o)), "one update of each of up to 8 optimizers"),
    "a second step": (lambda s, o, other: (s.step(o), s.step(o)), r"step\(\) a second time"),
    "nine": (lambda s, o, other: ([s.step(x) for x in (o, *other)], s.update()), "each of up to 8 optimizers"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_captured_is_said(device, name):
    mistake, message = MISTAKES[name]
    p = br.Tensor(device.asarray(np.ones(2, np.float32)), requires_grad=True)
    optimizer, scaler = optim.SGD([p], lr=0.25), scaler_of()
    other = [optim.SGD([p], lr=0.0) for _ in range(8)]
    calls = []

    @br.cuda.graph
    def step(x):
        optimizer.zero_grad()
        scaler.scale((p * x).sum()).backward()
        calls.append(1)
        if len(calls) == 2:
            mistake(scaler, optimizer, other)

    x = device.asarray(np.ones(2, np.float32))
    step(x)
    with pytest.raises(RuntimeError, match=message):
        step(x)
    scaler.step(optimizer)  # as if nothing had been captured
    scaler.update()
    np.testing.assert_array_equal(device.asnumpy(p.data), 0.75)


# ---- kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("overflow", "skipped", "lr"), [(0, 0, 1.0), (0, 1, 2.0), (0, 9, 4.0), (1, 1, 0.0)])
def test_a_guard_chooses_the_numbers_or_leaves_all_as_it_is(device, dtype, overflow, skipped, lr):
    """Three rows of numbers, of which the last stands for all beyond; 1000 elements and an unaligned few."""
    sizes = [1000, 3, 0]
    params, grads, buffers = (
        [device.asarray(np.full(n, value, dtype)) for n in sizes] for value in (8, 1, 2)
    )
    rows = device.asarray(np.array([[lr, 0.5, 0, 0, 1] for lr in (1.0, 2.0, 4.0)]).ravel())
    guard = device.asarray(np.array([overflow, skipped], np.int32))
    device.kernels.sgd_step(params, grads, buffers, 9.0, 0.5, 0.0, 0.0, 1.0, False, rows, None, guard)
    for p, v in zip(params, buffers, strict=True):
        np.testing.assert_array_equal(device.asnumpy(p), 8 - 2 * lr)
        np.testing.assert_array_equal(device.asnumpy(v), 2)


def test_gradients_are_divided_by_a_number_in_device_memory(device):
    g = [device.asarray(np.full(n, 3, np.float32)) for n in (1000, 3)]
    found = device.asarray(np.zeros(1, np.int32))
    device.kernels.unscale_gradients(g, 1.0, device.asarray(np.array(0.1)), found)
    for array in g:
        np.testing.assert_array_equal(device.asnumpy(array), np.float32(3) * np.float32(0.1))
    assert int(device.asnumpy(found)[0]) == 0


def test_numbers_in_device_memory_are_for_devices():
    from brasa import _cpu

    p, one = np.ones(2, np.float32), np.ones(1)
    for more in ((one, None, None), (None, one, None), (None, None, np.zeros(2, np.int32))):
        with pytest.raises(ValueError, match="numbers in device memory are for CUDA"):
            _cpu.sgd_step([p], [p], None, 1.0, 0.0, 0.0, 0.0, 1.0, False, *more)
    with pytest.raises(ValueError, match="numbers in device memory are for CUDA"):
        _cpu.unscale_gradients([p], 1.0, one, np.zeros(1, np.int32))
