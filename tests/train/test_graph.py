"""Trainer(graph=True): the run of a trainer without graphs, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import nn, optim
from brasa.cuda import Graph
from small_training import samples


def model_on(device):
    br.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = device.asarray(tensor.data)
    return net


def trainer_on(device, *, graph, schedule=None, **options):
    net = model_on(device)
    optimizer = optim.Adam(net.parameters(), lr=0.02)
    run = br.Trainer(
        net,
        optimizer,
        nn.CrossEntropyLoss(),
        scheduler=schedule(optimizer) if schedule else None,
        graph=graph,
        progress=False,
        **options,
    )
    if run.scaler is not None:  # so that it overflows every few updates
        run.scaler.load_state_dict({**run.scaler.state_dict(), "growth_interval": 2, "scale": 2.0**18})
    return run


def equal(a, b, device):
    assert a.history.epochs == b.history.epochs
    for name in a.history:
        assert a.history[name] == b.history[name], name
    for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    if a.scaler is not None:
        assert a.scaler.state_dict() == b.scaler.state_dict()
        assert len(set(a.history["skipped"])) > 2


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that trainers make, in order."""
    made = []

    class Kept(Graph):
        def __init__(self, function):
            super().__init__(function)
            made.append(self)

    monkeypatch.setattr("brasa._train.graphs.Graph", Kept)
    return made


CYCLE = {"schedule": lambda o: optim.OneCycleLR(o, max_lr=0.05, total_steps=24)}
OPTIONS = {
    "mixed precision": {"precision": "bf16"},
    "float16": {"precision": "fp16"},
    "float16, penalty and clipping": {"precision": "fp16", "l2": 0.1, "clip_norm": 0.5},
    "float16, one-cycle": {"precision": "fp16", **CYCLE},
    "plain": {},
    "penalty and clipping": {"l2": 0.1, "clip_norm": 0.5},
    "one-cycle": CYCLE,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_same_history_and_weights(device, name, graphs):
    """40 samples in batches of 16: the last one is smaller, and has a graph of its own."""
    runs = []
    for graph in (False, True):
        run = trainer_on(device, graph=graph, **OPTIONS[name])
        run.fit(samples(40), validation=samples(20), epochs=4, batch_size=16)
        runs.append(run)
    equal(*runs, device)
    assert [graph.is_captured for graph in graphs] == [True, True]


def test_many_shapes_are_not_all_captured(device, graphs):
    x, y = samples(60)
    batches = [(x[:n], y[:n]) for n in range(3, 16)] * 3
    runs = [trainer_on(device, graph=graph) for graph in (False, True)]
    for run in runs:
        br.manual_seed(2)
        run.fit(batches, epochs=1)
    equal(*runs, device)
    assert [graph.is_captured for graph in graphs] == 8 * [True]


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_is_resumed_exactly(device, tmp_path, precision):
    def fit(epochs, **options):
        run = trainer_on(device, graph=True, precision=precision)
        run.fit(samples(40), epochs=epochs, batch_size=16, **options)
        return run

    whole = fit(4)
    fit(2).save(tmp_path / "a")
    resumed = fit(4, resume=tmp_path / "a")
    equal(whole, resumed, device)
    steps = [run.optimizer.state_dict()["state"][0]["step"] for run in (whole, resumed)]
    skipped = whole.scaler.skipped if whole.scaler is not None else 0
    assert steps == [12 - skipped] * 2


def test_what_has_no_graph_is_a_value_error(device):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the model is on the cpu; pass device='cuda'"):
        br.Trainer(net, optim.SGD(net.parameters()), nn.MSELoss(), graph=True)
    with pytest.raises(ValueError, match="updates after every batch, got accumulate=2"):
        trainer_on(device, graph=True, accumulate=2)
