"""Mixed precision of `Trainer`: losses near those of float32, overflows skipped, runs resumed bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import nn, optim
from small_training import samples, weights

pytest.importorskip("ml_dtypes")


def on(device, net):
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = device.asarray(tensor.data)
    return net


def mlp(device):
    br.manual_seed(0)
    return on(device, nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)))


def lenet(device):
    br.manual_seed(0)
    return on(
        device,
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3),
        ),
    )  # fmt: skip


class Sequences(nn.Module):
    """Two layers of `kind`, and what the last step says."""

    def __init__(self, kind):
        super().__init__()
        self.cells, self.out = kind(4, 16, num_layers=2, batch_first=True, dropout=0.1), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.cells(x)[0][:, -1])


def recurrent(kind):
    def make(device):
        br.manual_seed(0)
        return on(device, Sequences(kind))

    return make


def walks(n=48):
    """Sequences of six noisy steps in one of three directions."""
    x, y = samples(n)
    noise = np.random.default_rng(1).standard_normal((n, 6, 4)).astype(np.float32)
    return x[:, None] + 0.3 * noise, y


def images(n=48):
    """Bright squares in one of three corners."""
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    x = 0.3 * rng.standard_normal((n, 1, 8, 8)).astype(np.float32)
    for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 0)]):
        x[y == i, :, row : row + 4, column : column + 4] += 1
    return x, y


def trainer(net, precision="float32", **options):
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    return br.Trainer(net, optimizer, nn.CrossEntropyLoss(), precision=precision, progress=False, **options)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("make", "data"),
    [(mlp, samples), (lenet, images), (recurrent(nn.LSTM), walks), (recurrent(nn.GRU), walks)],
    ids=["mlp", "lenet", "lstm", "gru"],
)
def test_it_learns_as_in_float32(device, make, data, precision):
    """Within 10 % of the loss of float32 and 0.01: five layers are rounded to 2^-9 of their terms, 2^-12 in fp16."""
    losses = {}
    for name in ("float32", precision):
        run = trainer(make(device), name)
        history = run.fit(data(48), epochs=6, batch_size=12)
        losses[name] = np.array(history["loss"])
        assert all(p.data.dtype == np.float32 for p in run.model.parameters())
        assert run.predict(data(6)[0]).dtype == np.float32
        assert run.evaluate(data(12))["accuracy"] > 0.6
    assert losses[precision][-1] < 0.8 * losses[precision][0]
    assert np.all(np.abs(losses[precision] - losses["float32"]) <= 0.1 * losses["float32"] + 0.01)


def test_products_are_made_in_16_bits(device):
    seen = set()

    class Watcher:
        def around(self, op, phase, call, *args):
            result = call(*args)
            if op.name == "matmul" and phase == "forward":
                seen.add(str((result[0] if isinstance(result, tuple) else result).dtype))
            return result

    from brasa import _tape

    run = trainer(mlp(device), "bf16")
    with _tape.watch(Watcher()):
        run.fit(samples(12), epochs=1, batch_size=12)
        run.evaluate(samples(12))
    assert seen == {"bfloat16"}


class Overflow(br.callbacks.Callback):
    """Make the factor of the loss too large before some batches."""

    def __init__(self, *batches):
        self.batches, self.count = set(batches), 0

    def on_batch_end(self, trainer):
        self.count += 1
        if self.count in self.batches:
            trainer.scaler.update(new_scale=2.0**120)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_overflows_are_skipped_and_counted(device):
    run = trainer(mlp(device), "fp16", callbacks=[Overflow(2)])
    history = run.fit(samples(48), epochs=3, batch_size=12)
    assert history["skipped"][0] > 0
    assert history["skipped"] == sorted(history["skipped"])
    assert run.scaler.skipped == history["skipped"][-1]
    assert np.isfinite(history["loss"]).all()
    assert "skipped" not in trainer(mlp(device), "bf16").fit(samples(12), epochs=1)


class Stop(br.callbacks.Callback):
    def __init__(self, batches, path):
        self.left, self.path = batches, path

    def on_batch_end(self, trainer):
        self.left -= 1
        if self.left == 0:
            trainer.save(self.path)
            raise RuntimeError("stopped")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8])
def test_a_resumed_run_is_the_run_that_was_not_stopped(device, tmp_path, precision, stop):
    path = tmp_path / "run.safetensors"
    options = {"accumulate": 2, "l2": 0.1, "clip_norm": 1.0, "seed": 4}
    extra = (lambda: [Overflow(2, 5)]) if precision == "fp16" else list

    def make(*more):
        run = trainer(lenet(device), precision, callbacks=[*extra(), *more], **options)
        if run.scaler is not None:
            run.scaler.load_state_dict({**run.scaler.state_dict(), "growth_interval": 3})
        return run

    whole = make(Stop(0, path))
    whole.fit(images(), epochs=3, batch_size=12)
    with pytest.raises(RuntimeError, match="stopped"):
        make(Stop(stop, path)).fit(images(), epochs=3, batch_size=12)
    resumed = make(Stop(0, path))
    resumed.fit(images(), epochs=3, batch_size=12, resume=path)
    assert weights(resumed.model) == weights(whole.model)
    assert dict(resumed.history) == dict(whole.history)
    if precision == "fp16":
        assert resumed.scaler.state_dict() == whole.scaler.state_dict()
        assert whole.scaler.skipped > 0


def test_checkpoints_of_another_precision_are_refused(device, tmp_path):
    run = trainer(mlp(device), "fp16")
    run.fit(samples(12), epochs=1)
    run.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="precision: the checkpoint was written in fp16"):
        trainer(mlp(device)).load(tmp_path / "a.safetensors")
    trainer(mlp(device)).save(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="precision: the checkpoint was not written in fp16"):
        run.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_the_cpu_it_is_refused(precision):
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=f"precision '{precision}' is for CUDA, and the model is on the CPU"):
        trainer(net, precision)
    with pytest.raises(
        ValueError, match="precision must be one of 'float32', 'float64', 'bf16', 'fp16', got 'half'"
    ):
        trainer(net, "half")
