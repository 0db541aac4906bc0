"""Batches copied ahead of their use: in order, once, and never read before they have arrived."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import nn, optim
from brasa._train.transfer import copied_ahead
from small_training import samples


def batches(count, rng, sizes=(8, 8, 5)):
    return [
        (
            rng.normal(size=(sizes[i % len(sizes)], 3)).astype(np.float32),
            rng.integers(0, 9, sizes[i % len(sizes)]),
        )
        for i in range(count)
    ]


def test_batches_arrive_in_order(device):
    made = batches(7, np.random.default_rng(0))
    taken = []

    def source():
        for batch in made:
            taken.append(len(taken))
            yield batch

    like = device.asarray(np.zeros(1, np.float32))
    positions = []
    for i, (x, y, position) in enumerate(copied_ahead(source(), lambda a: a, like, lambda: len(taken))):
        positions.append(position)
        assert type(x) is type(like) is type(y)
        assert len(taken) == min(i + 2, 7)  # one ahead
        np.testing.assert_array_equal(device.asnumpy(x), made[i][0])
        np.testing.assert_array_equal(device.asnumpy(y), made[i][1])
    assert positions == list(range(1, 8))


def test_several_inputs_and_what_is_there_already(device):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = device.asarray(x + 1)
    (((a, b), y, _),) = copied_ahead([((x, there), np.array([1, 2]))], lambda v: v, there, lambda: None)
    assert b is there
    np.testing.assert_array_equal(device.asnumpy(a), x)
    np.testing.assert_array_equal(device.asnumpy(y), [1, 2])


def test_no_batches(device):
    like = device.asarray(np.zeros(1, np.float32))
    assert list(copied_ahead([], lambda a: a, like, lambda: None)) == []


def run(device):
    br.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for p in net.parameters():
        p.data = device.asarray(p.data)
    trainer = br.Trainer(net, optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss(), progress=False)
    trainer.fit(samples(40), validation=samples(20), epochs=3, batch_size=16)
    return trainer.history


def test_training_waits_for_its_batches(device, monkeypatch):
    """Copies that nobody waits for are not made on the emulated device: the run then trains on what was there."""
    if device.name != "emulated":
        pytest.skip("a GPU may be early")
    import emulated_cuda

    whole = run(device)
    assert all(np.isfinite(whole["loss"]))
    monkeypatch.setattr(emulated_cuda.Stream, "wait_event", lambda self, event: None)
    monkeypatch.setattr(emulated_cuda.Event, "synchronize", lambda self: None)
    assert run(device)["loss"] != whole["loss"]


def test_a_copy_waits_for_what_computes_on_its_memory(device, monkeypatch):
    """The copy of batch k + 2 comes after an event recorded behind the step of batch k."""
    if device.name != "emulated":
        pytest.skip("looks into the emulated device")
    import emulated_cuda

    log = []
    wait, record = emulated_cuda.Stream.wait_event, emulated_cuda.Stream.record
    monkeypatch.setattr(
        emulated_cuda.Stream, "wait_event", lambda s, e: (log.append(("wait", s.ptr, e)), wait(s, e))[1]
    )

    def recorded(stream, event=None):
        event = record(stream, event)
        log.append(("record", stream.ptr, event))
        return event

    monkeypatch.setattr(emulated_cuda.Stream, "record", recorded)
    like = device.asarray(np.zeros(1, np.float32))
    made = batches(6, np.random.default_rng(1), sizes=(4,))
    for i, _ in enumerate(copied_ahead(made, lambda a: a, like, lambda: None)):
        log.append(("step", 0, i))
    copies = [k for k, (what, ptr, _) in enumerate(log) if what == "record" and ptr]
    for k, copy in enumerate(copies[2:], 2):
        step = log.index(("step", 0, k - 2))
        waits = [e for what, ptr, e in log[step:copy] if what == "wait" and ptr]
        assert any(("record", 0, e) in log[step:copy] for e in waits), k
