"""The same training on every kind of array there is."""

from __future__ import annotations

import numpy as np

import brasa as br
from brasa import nn, optim
from small_training import samples, trainer


def trained(xp, path, *, name="AdamW"):
    """Two epochs, a checkpoint, and two more in a trainer that was made from it."""

    def make():
        br.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        for param in net.parameters():
            param.data = xp.asarray(param.data)
        optimizer = getattr(optim, name)(net.parameters(), lr=0.02)
        return br.Trainer(
            net,
            optimizer,
            nn.CrossEntropyLoss(),
            l2=0.1,
            clip_norm=1.0,
            accumulate=2,
            progress=False,
        )

    first = make()
    first.fit(samples(40), epochs=2, batch_size=8)
    first.save(path)
    run = make()
    run.fit(samples(40), validation=samples(20), epochs=4, batch_size=8, resume=path)
    return run


def test_training_gives_the_same_on_every_kind_of_array(xp, tmp_path):
    class Plain:
        asarray = staticmethod(np.asarray)

    expected = trained(Plain, tmp_path / "a")
    found = trained(xp, tmp_path / "b")
    kind = type(xp.asarray(np.zeros(1, np.float32)))
    assert all(type(p.data) is kind for p in found.model.parameters())
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        np.testing.assert_allclose(xp.asnumpy(a.data), b.numpy(), rtol=1e-4, atol=1e-5)
    for name in expected.history:
        np.testing.assert_allclose(found.history[name], expected.history[name], rtol=1e-4)
    x = samples(12)[0]
    scores = found.predict(x, batch_size=5)
    assert type(scores) is np.ndarray
    np.testing.assert_allclose(scores, expected.predict(x), rtol=1e-3, atol=1e-4)


def test_weights_from_a_device_are_stored_as_from_the_host(xp, tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    br.save(
        {"plain": xp.asarray(values), "turned": xp.asarray(values).transpose(0, 3, 1, 2)},
        tmp_path / "a",
    )
    found = br.load_state(tmp_path / "a")
    np.testing.assert_array_equal(found["plain"], values)
    np.testing.assert_array_equal(found["turned"], values.transpose(0, 3, 1, 2))


def test_a_state_follows_its_parameter(xp):
    """An optimiser made on the host goes on where its parameters were moved to."""
    net = trainer().model
    optimizer = optim.Adam(net.parameters())
    for param in net.parameters():
        param.grad = br.Tensor(np.ones_like(param.data))
    optimizer.step()
    for param in net.parameters():
        param.data = xp.asarray(param.data)
        param.grad = br.Tensor(xp.asarray(np.ones(param.shape, np.float32)))
    optimizer.step()
    kind = type(xp.asarray(np.zeros(1, np.float32)))
    for state in optimizer.state_dict()["state"].values():
        assert state["step"] == 2
        assert type(state["exp_avg"]) is kind
        np.testing.assert_allclose(xp.asnumpy(state["exp_avg"]), 0.19, rtol=1e-6)
