"""Callbacks, history, pictures and metrics."""

from __future__ import annotations

import csv
import os
import sys

import numpy as np
import pytest

import brasa as br
from brasa import nn, optim
from small_training import samples, trainer, weights

Callback, Checkpoint = br.callbacks.Callback, br.callbacks.Checkpoint
CSVLogger, EarlyStopping = br.callbacks.CSVLogger, br.callbacks.EarlyStopping


class Feed(Callback):
    """Replace a measure by given values."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def on_epoch_end(self, trainer, measures):
        measures[self.name] = self.values[trainer.epoch]


def run_with(values, *callbacks, name="val_loss", epochs=None):
    run = trainer(callbacks=[Feed(name, values), *callbacks])
    run.fit(samples(12), epochs=epochs or len(values))
    return run


def test_early_stopping_waits_for_its_patience():
    values = [1.0, 0.5, 0.6, 0.7, 0.4, 0.5, 0.5, 0.5, 0.1]
    assert run_with(values, EarlyStopping(patience=2)).epoch == 8
    assert run_with(values, EarlyStopping(patience=0)).epoch == 3
    assert run_with(values, EarlyStopping(patience=3)).epoch == 9
    assert run_with(values, EarlyStopping(patience=1, min_delta=0.45)).epoch == 4
    rising = [0.1, 0.5, 0.4, 0.3, 0.2]
    assert run_with(rising, EarlyStopping("val_accuracy", 1), name="val_accuracy").epoch == 4
    assert run_with(rising, EarlyStopping("score", 1, mode="max"), name="score").epoch == 4
    assert run_with([1.0, float("nan"), float("nan")], EarlyStopping(patience=1)).epoch == 3


def test_a_new_fit_after_stopping_goes_on():
    stopping = EarlyStopping(patience=0)
    run = run_with([1.0, 2.0, 0.5, 0.4], stopping)
    assert (run.epoch, stopping.best) == (2, 1.0)
    run.fit(samples(12), epochs=2)
    assert run.epoch == 4


def test_the_best_checkpoint_is_kept(tmp_path):
    seen = {}

    class Remember(Callback):
        def after_epoch(self, trainer):
            seen[trainer.epoch] = weights(trainer.model)

    path = tmp_path / "best"
    best = Checkpoint(path, monitor="val_accuracy")
    run = run_with([0.3, 0.9, 0.5, 0.8], Remember(), best, name="val_accuracy")
    restored = br.load(trainer().model, path)
    assert weights(restored) == seen[2]
    assert seen[2] != weights(run.model)


def test_checkpoints_every_few_epochs(tmp_path):
    class Note(Callback):
        def after_epoch(self, trainer):
            stamps.append((tmp_path / "a").stat().st_mtime_ns if (tmp_path / "a").exists() else 0)

    stamps = []
    run_with([1.0] * 5, Checkpoint(tmp_path / "a", every=2), Note())
    assert stamps[0] == 0
    assert 0 < stamps[1] == stamps[2] < stamps[3] == stamps[4]


def test_csv_is_whole_after_every_epoch(tmp_path):
    run = run_with([1.0, 0.5], CSVLogger(tmp_path / "h.csv"))
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in run.history:
        assert [float(row[name]) for row in rows] == run.history[name]


def test_hooks_come_in_order():
    calls = []

    class Note(Callback):
        def __getattribute__(self, name):
            if name.startswith(("on_", "after_")):
                calls.append(name)
            return super().__getattribute__(name)

    trainer(callbacks=[Note()]).fit(samples(16), epochs=2, batch_size=8)
    epoch = ["on_epoch_begin", "on_batch_end", "on_batch_end", "on_epoch_end", "after_epoch"]
    assert calls == ["on_fit_begin", *epoch, *epoch, "on_fit_end"]


def test_wrong_options(tmp_path):
    for make in (
        lambda: EarlyStopping(patience=-1),
        lambda: EarlyStopping(min_delta=-1),
        lambda: EarlyStopping(mode="least"),
        lambda: Checkpoint(tmp_path, every=0),
        lambda: run_with([1.0], EarlyStopping("val_acuracy")),
    ):
        with pytest.raises(ValueError, match=r"must be|monitor"):
            make()


# --- history --------------------------------------------------------------------------------------


def test_history_fills_what_was_not_measured():
    history = br.History()
    history.append({"loss": 1.0})
    history.append({"loss": 0.5, "lr": 0.1})
    assert np.isnan(history["lr"][0])
    assert history.last() == {"loss": 0.5, "lr": 0.1}
    assert history.epochs == 2
    assert set(history) == {"loss", "lr"}
    with pytest.raises(KeyError, match="'acc' was not measured; there is loss, lr"):
        history["acc"]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    history = br.History({"loss": [1, 0.5], "val_loss": [1.1, 0.7], "accuracy": [0.1, float("nan")]})
    figure = history.plot(tmp_path / "h.png")
    assert [a.get_title() for a in figure.axes] == ["loss", "accuracy"]
    assert [len(a.lines) for a in figure.axes] == [2, 1]
    assert (tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"
    history.plot(tmp_path / "h.svg")
    with pytest.raises(ValueError, match="ending"):
        history.plot(tmp_path / "h.txt")
    with pytest.raises(ValueError, match="empty"):
        br.History().plot()
    assert sorted(os.listdir(tmp_path)) == ["h.png", "h.svg"]


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib is needed to draw pictures.*\[plot\]"):
        br.History({"loss": [1.0]}).plot()


# --- metrics --------------------------------------------------------------------------------------


def test_accuracy_by_hand():
    output = np.array([[0.1, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert br.metrics.accuracy(output, np.array([1, 1, 2])).tolist() == [True, False, True]
    shares = np.array([[0, 1, 0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    assert br.metrics.accuracy(output, shares).tolist() == [True, False, True]
    logits = np.array([[-1.0], [2.0]])
    assert br.metrics.binary_accuracy(logits, np.array([[0.0], [0.0]])).tolist() == [
        [True],
        [False],
    ]


def test_confusion_matrix_by_loops():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    expected = np.zeros((5, 5), int)
    for t, g in zip(truth, guess, strict=True):
        expected[t, g] += 1
    np.testing.assert_array_equal(br.metrics.confusion_matrix(truth, guess, 5), expected)
    scores = np.eye(4)[guess]
    np.testing.assert_array_equal(br.metrics.confusion_matrix(truth, scores), expected[:4, :4])
    assert br.metrics.confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    for wrong in ([0, 1], [[0], [1], [2]]):
        with pytest.raises(ValueError, match="shape"):
            br.metrics.confusion_matrix(wrong, [0, 1, 2])
    with pytest.raises(ValueError, match="classes from -1"):
        br.metrics.confusion_matrix([-1, 0], [0, 1])


def test_accuracy_counts_exactly():
    """Means over uneven batches are the exact share of all samples, not a mean of means."""
    net = nn.Linear(4, 3)
    run = br.Trainer(net, optim.SGD(net.parameters()), nn.CrossEntropyLoss(), progress=False)
    x, y = samples(97)
    right = (run.predict(x).argmax(1) == y).sum()
    assert run.evaluate((x, y), batch_size=10)["accuracy"] == right / 97
