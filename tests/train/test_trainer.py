"""The training loop: what is computed, measured and accepted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import brasa as br
from brasa import data, nn, optim
from small_training import model, noise, samples, trainer, weights


def linear(seed=0):
    br.manual_seed(seed)
    return nn.Linear(4, 3)


def cross_entropy(w, b, x, y):
    """Loss, outputs and gradients in float64."""
    scores = x @ w.T + b
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(y)), y]).mean()
    error = shares.copy()
    error[np.arange(len(y)), y] -= 1
    return loss, scores, error.T @ x / len(y), error.mean(0)


class Twin:
    """The same training in plain float64 NumPy: SGD over batches in order."""

    def __init__(self, net, lr):
        self.w, self.b = (p.numpy().astype(np.float64) for p in net.parameters())
        self.lr = lr

    def epoch(self, x, y, batch_size, *, l2=0.0, clip=None, accumulate=1):
        losses, correct, grads = [], 0, []
        starts = list(range(0, len(y), batch_size))
        for i in starts:
            part = slice(i, i + batch_size)
            loss, scores, dw, db = cross_entropy(self.w, self.b, x[part].astype(float), y[part])
            losses.append((loss + l2 / (2 * len(y)) * (self.w**2).sum()) * len(y[part]))
            correct += (scores.argmax(1) == y[part]).sum()
            grads.append((dw, db))
            if len(grads) == accumulate or i == starts[-1]:
                self.update(grads, l2 / len(y), clip)
                grads = []
        return sum(losses) / len(y), correct / len(y)

    def update(self, grads, decay, clip):
        dw = np.mean([g[0] for g in grads], axis=0) + decay * self.w
        db = np.mean([g[1] for g in grads], axis=0)
        norm = np.sqrt((dw**2).sum() + (db**2).sum())
        factor = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        self.w = self.w - self.lr * factor * dw
        self.b = self.b - self.lr * factor * db


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l2": 0.7},
        {"clip_norm": 0.2},
        {"accumulate": 3},
        {"l2": 0.7, "clip_norm": 0.3, "accumulate": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_training_follows_a_numpy_twin(options, precision):
    x, y = samples(50)
    net = linear()
    twin = Twin(net, lr=0.1)
    run = br.Trainer(
        net,
        optim.SGD(net.parameters(), lr=0.1),
        nn.CrossEntropyLoss(),
        precision=precision,
        progress=False,
        **options,
    )
    history = run.fit((x, y), epochs=4, batch_size=8, shuffle=False)
    names = {"clip_norm": "clip"}
    expected = [twin.epoch(x, y, 8, **{names.get(k, k): v for k, v in options.items()}) for _ in range(4)]
    bound = {"float32": 2e-5, "float64": 1e-11}[precision]
    np.testing.assert_allclose(history["loss"], [loss for loss, _ in expected], rtol=bound)
    assert history["accuracy"] == pytest.approx([accuracy for _, accuracy in expected])
    assert net.weight.dtype == precision
    np.testing.assert_allclose(net.weight.numpy(), twin.w, rtol=bound, atol=bound)
    np.testing.assert_allclose(net.bias.numpy(), twin.b, rtol=bound, atol=bound)


def test_it_learns():
    run = trainer()
    history = run.fit(samples(), validation=samples(seed=0), epochs=30, transform=noise)
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["val_accuracy"][-1] > 0.9
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history.epochs == run.epoch == 30


def test_evaluate_and_predict_use_evaluation_mode_and_restore_the_old_one():
    net = model()
    run = trainer(net)
    x, y = samples(20)
    first, second = run.predict(x, batch_size=7), run.predict(x, batch_size=20)
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-6)
    assert isinstance(first, np.ndarray)
    assert first.shape == (20, 3)
    measures = run.evaluate((x, y), batch_size=7)
    assert measures["accuracy"] == (first.argmax(1) == y).mean()
    w = [p.numpy().astype(float) for p in net.parameters()]
    loss = cross_entropy(w[2], w[3], np.maximum(x @ w[0].T + w[1], 0), y)[0]
    assert measures["loss"] == pytest.approx(loss, rel=1e-5)
    assert net.training
    net.eval()
    run.evaluate((x, y))
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


def test_fit_takes_every_form_of_data():
    x, y = samples(24)
    dataset = data.ArrayDataset(x, y)
    forms = {
        "arrays": (x, y),
        "dataset": dataset,
        "loader": data.DataLoader(dataset, 8),
        "list": [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)],
    }
    results, losses = set(), []
    for form in forms.values():
        net = linear()
        run = trainer(net)
        run.fit(form, epochs=2, batch_size=8, shuffle=False, validation=form)
        run.evaluate(form)
        results.add(weights(net))
        losses.append(run.history["val_loss"])
    assert len(results) == 1
    np.testing.assert_allclose(losses, [losses[0]] * len(losses), rtol=1e-6)
    net = linear()
    trainer(net).fit((batch for batch in forms["list"]), epochs=1)
    with pytest.raises(ValueError, match="only once"):
        trainer(net).fit((batch for batch in forms["list"]), epochs=2)


def test_inputs_are_converted_to_the_precision():
    x, y = samples(16)
    run = trainer(linear())
    run.fit((x.astype(np.float64), y.astype(np.int32)))
    assert run.predict(x.astype(np.float64)).dtype == np.float32
    assert run.predict(x.tolist()).shape == (16, 3)


def test_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, left, right):
            return self.a(left) + self.a(right)

    x, y = samples(16)
    run = trainer(Sum())
    run.fit([((x, -x), y)])
    assert run.epoch == 1


def test_order_depends_on_the_seed_alone():
    def result(seed):
        net = linear()
        trainer(net, seed=seed).fit(samples(), epochs=2, transform=noise)
        return weights(net)

    assert result(1) == result(1)
    assert result(1) != result(2)


def test_a_second_fit_goes_on():
    once, twice = linear(), linear()
    trainer(once).fit(samples(), epochs=4, transform=noise)
    run = trainer(twice)
    run.fit(samples(), epochs=1, transform=noise)
    run.fit(samples(), epochs=3, transform=noise)
    assert weights(once) == weights(twice)
    assert run.history.epochs == 4


def test_metrics_by_name_and_function():
    def largest(output, target):
        return output.max()

    run = trainer(linear(), metrics=["accuracy", largest])
    history = run.fit(samples())
    assert list(history) == ["loss", "accuracy", "largest"]
    assert list(trainer(linear(), metrics={"m": largest}).fit(samples())) == ["loss", "m"]
    assert list(trainer(linear(), metrics=[]).fit(samples())) == ["loss"]
    with pytest.raises(ValueError, match="acuracy"):
        trainer(linear(), metrics=["acuracy"])
    net = nn.Linear(4, 1)
    regression = br.Trainer(net, optim.SGD(net.parameters()), nn.MSELoss(), progress=False)
    assert list(regression.fit((samples()[0], samples()[0][:, :1]))) == ["loss"]


def test_schedules_are_stepped_at_their_time():
    net = linear()
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    run = br.Trainer(
        net,
        optimizer,
        nn.CrossEntropyLoss(),
        scheduler=optim.StepLR(optimizer, 1, gamma=0.5),
        callbacks=[br.callbacks.LearningRateLogger()],
        progress=False,
    )
    assert run.fit(samples(), epochs=3)["lr"] == [1.0, 0.5, 0.25]
    schedule = optim.OneCycleLR(optimizer, 1.0, epochs=2, steps_per_epoch=6, cycle_momentum=False)
    run = br.Trainer(net, optimizer, nn.CrossEntropyLoss(), scheduler=schedule, accumulate=2, progress=False)
    run.fit(samples(), epochs=2, batch_size=8)
    assert schedule.last_epoch == 12


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_sees_the_validation(mode):
    net = linear()
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    schedule = optim.ReduceLROnPlateau(optimizer, mode=mode, patience=0)
    optimizer.param_groups[0]["lr"] = 1e-3
    run = br.Trainer(net, optimizer, nn.CrossEntropyLoss(), scheduler=schedule, progress=False)
    run.fit(samples(), validation=samples(seed=5), epochs=1)
    name = {"min": "val_loss", "max": "val_accuracy"}[mode]
    assert schedule.best == run.history[name][0]


def test_a_loss_that_is_not_finite_is_told(caplog):
    net = linear()
    net.weight.data[...] = np.nan
    with caplog.at_level(logging.WARNING, logger="brasa"):
        history = trainer(net).fit(samples(), epochs=1)
    assert np.isnan(history["loss"][0])
    assert "epoch 1: the loss is nan" in caplog.text


def test_one_line_per_epoch_without_a_terminal(capsys):
    trainer(linear(), progress=True).fit(samples(), validation=samples(), epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss ")
    assert "  val_accuracy " in lines[1]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "net"}, TypeError),
        ({"optimizer": "sgd"}, TypeError),
        ({"loss": None}, TypeError),
        ({"callbacks": ["stop"]}, TypeError),
        ({"l2": -1}, ValueError),
        ({"l2": float("nan")}, ValueError),
        ({"clip_norm": 0}, ValueError),
        ({"accumulate": 0}, ValueError),
        ({"precision": "float16"}, ValueError),
        ({"device": "tpu"}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments(change, error):
    net = linear()
    arguments = {
        "model": net,
        "optimizer": optim.SGD(net.parameters()),
        "loss": nn.CrossEntropyLoss(),
        **change,
    }
    with pytest.raises(error, match=next(iter(change))):
        br.Trainer(**arguments)


@pytest.mark.parametrize("train", [5, None, np.zeros((3, 4))], ids=repr)
def test_what_is_no_data(train):
    with pytest.raises(TypeError, match="train must be"):
        trainer(linear()).fit(train)


def test_no_samples():
    with pytest.raises(ValueError, match="no samples"):
        trainer(linear()).fit([])
    with pytest.raises(ValueError, match="length"):
        trainer(linear(), l2=0.1).fit([samples(8)])


def test_nothing_optional_is_imported_before_it_is_used():
    code = """
import sys, brasa
brasa.Trainer, brasa.callbacks, brasa.optim.Adam, brasa.save
late = {"safetensors", "tqdm", "matplotlib", "argparse", "json", "PIL"} & set(sys.modules)
assert not late, late
"""
    environment = os.environ | {"PYTHONPATH": str(Path(br.__file__).parent.parent)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True)
