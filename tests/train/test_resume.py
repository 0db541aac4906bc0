"""A run that was stopped anywhere and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import brasa as br
from brasa import data, io, nn, optim
from small_training import model, noise, samples, weights

EPOCHS = 5


class StopAt(br.callbacks.Callback):
    """Save and give up after a number of batches, counted over the run."""

    def __init__(self, batches, path):
        self.left, self.path = batches, path

    def on_batch_end(self, trainer):
        self.left -= 1
        if self.left == 0:
            trainer.save(self.path)
            raise Stopped


class Stopped(Exception):
    pass


def make(kind="Adam", schedule="cycle", *, extra=(), **options):
    net = model(seed=3)
    optimizer = {
        "Adam": lambda p: optim.Adam(p, lr=0.01),
        "SGD": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.1),
        "RMSprop": lambda p: optim.RMSprop(p, centered=True, momentum=0.5),
        "Adagrad": lambda p: optim.Adagrad(p),
        "Adadelta": lambda p: optim.Adadelta(p),
    }[kind](net.parameters())
    scheduler = {
        "cycle": lambda: optim.OneCycleLR(
            optimizer, 0.02, total_steps=40, cycle_momentum=kind in ("Adam", "SGD")
        ),
        "plateau": lambda: optim.ReduceLROnPlateau(optimizer, patience=0),
        "none": lambda: None,
    }[schedule]()
    callbacks = [br.callbacks.EarlyStopping(patience=1), br.callbacks.LearningRateLogger(), *extra]
    return br.Trainer(
        net,
        optimizer,
        nn.CrossEntropyLoss(),
        scheduler=scheduler,
        callbacks=callbacks,
        progress=False,
        seed=4,
        **options,
    )


def fit(run, resume=None):
    run.fit(
        samples(44),
        validation=samples(20, seed=1),
        epochs=EPOCHS,
        batch_size=8,
        transform=noise,
        resume=resume,
    )
    return run


def outcome(run):
    """Everything that must not differ."""
    state = run.optimizer.state_dict()
    slots = {
        (i, k): v if isinstance(v, int) else v.tobytes()
        for i, s in state["state"].items()
        for k, v in s.items()
    }
    return (
        weights(run.model),
        slots,
        repr(state["param_groups"]),
        repr(run.history.state_dict()),
        repr(br.random.default_generator().state_dict()),
        repr([c.state_dict() for c in run.callbacks if type(c) is not StopAt]),
        (run.epoch, run.batch, run.stop),
    )


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 12, 23, 29])
def test_resumed_anywhere(tmp_path, stop_after):
    check(tmp_path, stop_after)


@pytest.mark.parametrize("kind", ["SGD", "RMSprop", "Adagrad", "Adadelta"])
def test_resumed_with_every_optimiser(tmp_path, kind):
    check(tmp_path, 8, kind)


def test_resumed_with_a_plateau(tmp_path):
    check(tmp_path, 13, "SGD", "plateau")


@pytest.mark.parametrize("stop_after", [7, 8, 9])
def test_resumed_while_gradients_are_accumulated(tmp_path, stop_after):
    check(tmp_path, stop_after, "Adam", "none", accumulate=3, clip_norm=0.5, l2=0.1)


def check(tmp_path, stop_after, kind="Adam", schedule="cycle", **options):
    expected = outcome(fit(make(kind, schedule, **options)))
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(Stopped):
        fit(make(kind, schedule, extra=[StopAt(stop_after, path)], **options))
    br.manual_seed(99)  # whatever the new process drew before must not matter
    resumed = make(kind, schedule, extra=[StopAt(-1, path)], **options)
    assert outcome(fit(resumed, resume=path)) == expected


def test_resumed_after_a_whole_epoch(tmp_path):
    path = tmp_path / "a"
    expected = outcome(fit(make(extra=[StopAt(-1, path)])))
    first = make(extra=[br.callbacks.Checkpoint(path)])
    first.fit(samples(44), validation=samples(20, seed=1), epochs=2, batch_size=8, transform=noise)
    resumed = fit(make(extra=[br.callbacks.Checkpoint(path)]), resume=path)
    assert outcome(resumed)[:5] == expected[:5]


def test_resumed_when_complete_does_nothing(tmp_path):
    run = fit(make())
    run.save(tmp_path / "a")
    expected = outcome(run)
    assert outcome(fit(make(), resume=tmp_path / "a")) == expected


def test_resumed_with_a_loader_and_with_batches(tmp_path):
    x, y = samples(40)

    def forms():
        yield lambda: data.DataLoader(data.ArrayDataset(x, y), 8, shuffle=True, seed=7)
        yield lambda: [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]

    for form in forms():
        path = tmp_path / "a"
        straight = make()
        straight.fit(form(), validation=samples(20), epochs=3)
        with pytest.raises(Stopped):
            make(extra=[StopAt(8, path)]).fit(form(), validation=samples(20), epochs=3)
        resumed = make(extra=[StopAt(-1, path)])
        resumed.fit(form(), validation=samples(20), epochs=3, resume=path)
        assert outcome(resumed) == outcome(straight)


def test_a_checkpoint_gives_its_weights_to_a_model(tmp_path):
    run = fit(make())
    run.about["model"] = {"name": "small"}
    run.save(tmp_path / "a")
    other = br.load(model(seed=9), tmp_path / "a")
    assert weights(other) == weights(run.model)
    metadata = io.load_metadata(tmp_path / "a")
    assert metadata["model"] == {"name": "small"}
    assert metadata["input_shape"] == [4]
    names = set(io.load_state(tmp_path / "a"))
    assert {"model.0.weight", "optimizer.0.exp_avg", "optimizer.3.exp_avg_sq"} <= names


def test_infinite_and_nan_measures_survive(tmp_path):
    run = make()
    run.history.append({"loss": float("nan"), "accuracy": float("inf")})
    run.save(tmp_path / "a")
    other = make()
    other.load(tmp_path / "a")
    assert np.isnan(other.history["loss"][0])
    assert other.history["accuracy"] == [float("inf")]
    assert other.callbacks[0].best == float("inf")


def test_what_does_not_fit_is_refused(tmp_path):
    run = make()
    run.save(tmp_path / "a")
    br.save(run.model, tmp_path / "weights")
    with pytest.raises(br.io.CheckpointError, match="no checkpoint"):
        make().load(tmp_path / "weights")
    with pytest.raises(ValueError, match="optimizer: the checkpoint has Adam"):
        make("SGD").load(tmp_path / "a")
    with pytest.raises(ValueError, match="scheduler: the checkpoint has OneCycleLR"):
        make(schedule="none").load(tmp_path / "a")
    with pytest.raises(ValueError, match="callbacks"):
        make(extra=[br.callbacks.CSVLogger(tmp_path / "c")]).load(tmp_path / "a")
    net = nn.Linear(4, 3)
    optimizer = optim.Adam(net.parameters())
    other = br.Trainer(net, optimizer, nn.CrossEntropyLoss(), callbacks=[], progress=False)
    with pytest.raises(ValueError, match="scheduler"):
        other.load(tmp_path / "a")
    fit(run).save(tmp_path / "a")
    second = make()
    second.seed = 5
    with pytest.raises(ValueError, match="seed"):
        fit(second, resume=tmp_path / "a")
    with pytest.raises(ValueError, match="another kind"):
        make().fit([samples(8)], resume=tmp_path / "a")
