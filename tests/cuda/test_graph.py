"""CUDA graphs, captured and repeated on the emulated device (and on a GPU where there is one)."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import numpy as np
import pytest

import brasa as br
from brasa import _backend, nn, ops, optim
from graph_training import OPTIMIZERS, STEPS, batches, network

RNG = np.random.default_rng(0)


def step_of(net, optimizer):
    """One training step, which returns its loss."""

    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def train(device, make, *, as_graph, norm=False, schedule=None, steps=STEPS, after=None):
    """The losses, parameters and states after some steps."""
    net = network(device, norm=norm)
    optimizer = make(net.parameters())
    scheduler = schedule(optimizer) if schedule else None
    step = step_of(net, optimizer)
    run = br.cuda.graph(step) if as_graph else step
    losses = []
    for i, (x, y) in enumerate(batches(steps)):
        losses.append(run(device.asarray(x), device.asarray(y)).numpy().copy())
        if scheduler:
            scheduler.step()
        if after:
            after(i, optimizer)
    if as_graph:
        assert run.is_captured
    arrays = [device.asnumpy(t.data).copy() for t in (*net.parameters(), *net.buffers())]
    for slots in optimizer.state_dict()["state"].values():
        arrays += [device.asnumpy(v).copy() for v in slots.values() if hasattr(v, "shape")]
        losses.append(np.asarray(slots["step"]))
    return [*losses, *arrays, np.asarray(br.default_generator().next(4))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured_steps_have_the_bits_of_eager_ones(device, name):
    """Dropout's masks, counted steps and all: nothing tells a graph from the function."""
    expected = train(device, OPTIMIZERS[name], as_graph=False)
    found = train(device, OPTIMIZERS[name], as_graph=True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


SCHEDULES = {
    "one-cycle": lambda o: optim.OneCycleLR(o, max_lr=0.1, total_steps=STEPS),
    "step": lambda o: optim.StepLR(o, step_size=2, gamma=0.5),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_captured_step_follows_the_schedule(device, name, schedule):
    """The learning rate and, with one-cycle, the momentum of every step."""
    results = [
        train(device, OPTIMIZERS[name], as_graph=g, schedule=SCHEDULES[schedule], norm=True)
        for g in (False, True)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_groups_and_their_options(device):
    def make(params):
        params = list(params)
        return optim.Adam([{"params": params[:2], "lr": 0.1}, {"params": params[2:]}], lr=0.01)

    def change(i, optimizer):
        optimizer.param_groups[1]["lr"] *= 0.5

    results = [train(device, make, as_graph=g, after=change) for g in (False, True)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_eager_and_captured_steps_alternate(device):
    """Steps outside the graph go on where it stands, and the other way round."""
    results = []
    for use_graph in (False, True):
        net, optimizer = network(device), None
        optimizer = optim.Adam(net.parameters(), lr=0.1)
        step = step_of(net, optimizer)
        captured = br.cuda.graph(step) if use_graph else step
        for i, (x, y) in enumerate(batches(8)):
            (step if i % 3 == 2 else captured)(device.asarray(x), device.asarray(y))
        results.append([device.asnumpy(p.data).copy() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_are_counted_on_the_host_at_every_replay(device):
    layer = nn.BatchNorm1d(3)
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        tensor.data = device.asarray(tensor.data)
    x = device.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    step = br.cuda.graph(layer)
    for count in range(1, 5):
        step(x)
        assert layer.num_batches_tracked.item() == count
    assert step.is_captured
    layer.momentum = None
    step = br.cuda.graph(layer)
    step(x)
    with pytest.raises(RuntimeError, match="momentum=None"):
        step(x)


def test_inference(device):
    net = network(device, norm=True).eval()

    @br.cuda.graph
    def infer(x):
        with br.no_grad():
            return net(x), {"probabilities": nn.functional.softmax(net(x))}

    for x, _ in batches(4):
        with br.no_grad():
            expected = net(device.asarray(x)).numpy()
        scores, more = infer(x if infer.is_captured else device.asarray(x))  # later ones from the host
        np.testing.assert_array_equal(scores.numpy(), expected)
        np.testing.assert_allclose(more["probabilities"].numpy().sum(axis=1), 1, rtol=1e-6)


def test_results_are_overwritten_by_the_next_call(device):
    double = br.cuda.graph(lambda x: ops.matmul(x, x))
    eye = np.eye(3, dtype=np.float32)
    kept = [double(device.asarray(eye * i)) for i in (1, 2, 3, 4)]
    assert kept[1] is kept[2] is kept[3]
    np.testing.assert_array_equal(device.asnumpy(kept[0]), eye)
    np.testing.assert_array_equal(device.asnumpy(kept[3]), 16 * eye)


def test_channels_last_inputs_and_a_convolution(device):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    for p in conv.parameters():
        p.data = device.asarray(p.data)
    images = [RNG.normal(size=(2, 5, 6, 3)).astype(np.float32).transpose(0, 3, 1, 2) for _ in range(4)]
    step = br.cuda.graph(lambda x: conv(x).sum())
    for x in images:
        expected = conv(device.asarray(x)).sum().numpy()
        np.testing.assert_array_equal(step(device.asarray(x)).numpy(), expected)


def test_attention_draws_new_weights_at_every_replay(device):
    q = device.asarray(RNG.normal(size=(1, 5, 4)).astype(np.float32))

    def run(q):
        return nn.functional.scaled_dot_product_attention(q, q, q, None, 0.5)

    results = []
    for function in (run, br.cuda.graph(run)):
        br.manual_seed(9)
        results.append([device.asnumpy(function(q)).copy() for _ in range(4)])
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0][2], results[0][3])


def test_numbers_lie_where_nothing_else_does(device):
    """What the step has forgotten before it asks for a place is as large as a block of numbers."""
    results = []
    for as_graph in (False, True):
        x = device.asarray(np.full(448, 2.0))
        params = [br.Tensor(device.asarray(np.ones(1, np.float32)), requires_grad=True) for _ in range(100)]
        optimizer = optim.SGD([{"params": [p]} for p in params], lr=0.5)

        def step(x, params=params, optimizer=optimizer):
            ops.relu(x)
            for p in params:
                p.grad = br.Tensor(ops.relu(x[:1].astype("float32")))
            optimizer.step()

        run = br.cuda.graph(step) if as_graph else step
        for _ in range(4):
            run(x)
        results.append([device.asnumpy(p.data).copy() for p in params])
    np.testing.assert_array_equal(*results)


# ---- mixed precision -----------------------------------------------------------------------------------


def linear(device):
    br.manual_seed(1)
    net = nn.Linear(4, 3)
    for p in net.parameters():
        p.data = device.asarray(p.data)
    return net


def test_weights_are_cast_anew_within_an_outer_autocast(device):
    """The block has casts of its own, from before the capture: a replay that used them would see old weights."""
    results = []
    for as_graph in (False, True):
        net = linear(device)
        optimizer = optim.SGD(net.parameters(), lr=0.5)
        step = step_of(net, optimizer)
        run = br.cuda.graph(step) if as_graph else step
        moved = [(device.asarray(x), device.asarray(y)) for x, y in batches()]
        losses = []
        with br.autocast("float16"):
            for x, y in moved:
                net(x)  # leaves a cast of the weights as they are now
                losses.append(run(x, y).numpy().copy())
        results.append([*losses, *(device.asnumpy(p.data).copy() for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_graph_outlives_the_autocast_it_was_captured_in(device):
    net, x = linear(device), device.asarray(batches()[0][0])
    with br.autocast("float16"), br.no_grad():
        net(x)
        run = captured(device, net, x)
        expected = run(x).numpy().copy()
    gc.collect()
    kept = [device.asarray(np.full((3, 4), np.nan, np.float16)) for _ in range(8)]
    assert expected.dtype == np.float16
    np.testing.assert_array_equal(run(x).numpy(), expected)
    del kept


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_scaled_loss_follows_the_factor(device, dtype):
    """The factor grows, and shrinks where a gradient overflows."""
    results = []
    for as_graph in (False, True):
        w = br.Tensor(device.asarray(np.ones(2, dtype)), requires_grad=True)
        optimizer, scaler = optim.SGD([w], lr=0.0625), br.GradScaler(init_scale=8.0, growth_interval=2)

        def backward(x, w=w, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            loss = (w * x).sum()
            scaled, _ = scaler.scale([loss, loss])
            scaled.backward()
            return scaled

        run, seen = br.cuda.graph(backward) if as_graph else backward, []
        for value in (1, 2, 1, np.inf, 3, 1, 2, 1):
            scaled = run(device.asarray(np.array([value, 1], dtype)))
            stepped = scaler.step(optimizer)
            scaler.update()
            seen += [stepped, scaler.get_scale(), scaled.numpy().copy(), device.asnumpy(w.data).copy()]
        results.append(seen)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(set(results[0][1::4])) > 2


# ---- mistakes ------------------------------------------------------------------------------------------


def captured(device, function, *inputs):
    run = br.cuda.graph(function)
    for _ in range(2):
        run(*inputs)
    return run


@pytest.mark.parametrize(
    "reading",
    [
        lambda t: t.item(),
        lambda t: float(t),
        lambda t: bool(t > 0),
        lambda t: t.numpy(),
        lambda t: bool(t.data.reshape(1)[0]),
    ],
    ids=["item", "float", "bool", "numpy", "element"],
)
def test_a_step_that_reads_a_value_is_refused(device, reading):
    x = device.asarray(np.ones(3, np.float32))

    def step(x):
        total = br.Tensor(x).sum()
        reading(total)
        return total

    with pytest.raises(RuntimeError, match="cannot be captured, because it waits for the device"):
        captured(device, step, x)
    ok = captured(device, lambda x: ops.relu(x), x)  # the stream is as it was
    np.testing.assert_array_equal(device.asnumpy(ok(x)), 1)


def test_a_step_that_copies_from_the_host_is_refused(device):
    x = device.asarray(np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match="cannot copy from the host, and a NumPy array of shape"):
        captured(device, lambda x: ops.relu(_backend.beside(np.ones(3, np.float32), x)), x)


def test_an_error_of_the_step_passes(device):
    calls = []

    def step(x):
        calls.append(1)
        if len(calls) in (1, 3):
            raise KeyError("mine")
        return ops.relu(x)

    run = br.cuda.graph(step)
    x = device.asarray(np.ones(3, np.float32))
    for fails in (True, False, True):  # before the capture, and in it
        with pytest.raises(KeyError, match="mine") if fails else nullcontext():
            run(x)
    assert not run.is_captured
    np.testing.assert_array_equal(device.asnumpy(run(x)), 1)
    assert run.is_captured


@pytest.mark.parametrize(("shape", "dtype"), [((4,), np.float32), ((3, 1), np.float32), ((3,), np.float64)])
def test_another_shape_or_dtype_is_a_value_error(device, shape, dtype):
    run = captured(device, ops.relu, device.asarray(np.ones(3, np.float32)))
    with pytest.raises(ValueError, match=r"input 0 was captured with shape \(3,\) and float32, got"):
        run(device.asarray(np.ones(shape, dtype)))


def test_other_mistakes(device):
    x = device.asarray(np.ones(3, np.float32))
    run = br.cuda.graph(lambda x, flag: ops.relu(x) if flag else x)
    run(x, True)
    with pytest.raises(ValueError, match="input 1 was True when captured, got False"):
        run(x, False)
    with pytest.raises(ValueError, match="captured with 2 inputs, got 1"):
        run(x)
    with pytest.raises(TypeError, match="requires a gradient"):
        br.cuda.graph(lambda t: t * 2)(br.Tensor(x, requires_grad=True))
    with pytest.raises(TypeError, match="needs an input on a GPU"):
        br.cuda.graph(ops.relu)(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="expected a callable"):
        br.cuda.graph(3)
    with pytest.raises(ValueError, match="warmup"):
        br.cuda.graph(ops.relu, warmup=0)


@pytest.mark.parametrize("change", ["data", "state", "momentum"])
def test_a_graph_of_replaced_arrays_is_stale(device, change):
    net = network(device)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    step = step_of(net, optimizer)
    (x, y), *_ = batches()
    run = captured(device, step, device.asarray(x), device.asarray(y))
    if change == "data":
        net[0].weight.data = device.asarray(device.asnumpy(net[0].weight.data))
    elif change == "state":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        optimizer.param_groups[0]["momentum"] = 0
    with pytest.raises(br.cuda.StaleCapture, match="capture the step anew"):
        run(device.asarray(x), device.asarray(y))
