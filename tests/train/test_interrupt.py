"""Ctrl-C during fit: a whole state, saved, and KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import brasa as br
from small_training import model, noise, samples, trainer, weights


class PressCtrlC(br.callbacks.Callback):
    """Send SIGINT to this process in the middle of an epoch."""

    def __init__(self, epoch, batch, times=1):
        self.moment, self.times = (epoch, batch), times
        self.seen_after = 0

    def on_batch_end(self, trainer):
        if (trainer.epoch, trainer.batch) == self.moment:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        elif (trainer.epoch, trainer.batch) > self.moment:
            self.seen_after += 1


def fit(run, **options):
    return run.fit(samples(40), epochs=4, batch_size=8, transform=noise, **options)


def test_the_state_is_whole_and_saved_and_resumes_exactly(tmp_path):
    path = tmp_path / "a"
    straight = trainer(callbacks=[PressCtrlC(99, 0), br.callbacks.Checkpoint(tmp_path / "b")])
    fit(straight)
    press = PressCtrlC(1, 3)
    run = trainer(callbacks=[press, br.callbacks.Checkpoint(path)])
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    assert (run.epoch, run.batch, press.seen_after) == (1, 3, 0)
    assert run.evaluate(samples())["loss"] < 10  # the model is usable
    resumed = trainer(callbacks=[PressCtrlC(99, 0), br.callbacks.Checkpoint(path)])
    fit(resumed, resume=path)
    assert weights(resumed.model) == weights(straight.model)
    assert resumed.history.state_dict() == straight.history.state_dict()


def test_the_old_handler_comes_back():
    calls = []
    old = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(trainer(callbacks=[PressCtrlC(0, 1)]))
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == [1]
        with pytest.raises(ZeroDivisionError):
            fit(trainer(), resume=None, validation=broken())
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == [1, 1]
    finally:
        signal.signal(signal.SIGINT, old)


def broken():
    return ((samples(8)[0], 1 // 0) for _ in range(3))


def test_a_second_one_is_obeyed_at_once(tmp_path):
    run = trainer(callbacks=[PressCtrlC(0, 2, times=2), br.callbacks.Checkpoint(tmp_path / "a")])
    with pytest.raises(KeyboardInterrupt):
        fit(run)
    assert not (tmp_path / "a").exists()


def test_an_ignored_signal_stays_ignored():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = trainer(callbacks=[PressCtrlC(0, 1)])
        assert fit(run).epochs == 4
    finally:
        signal.signal(signal.SIGINT, old)


def test_in_another_thread_nothing_is_installed():
    net = model()
    thread = threading.Thread(target=lambda: fit(trainer(net)))
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert signal.getsignal(signal.SIGINT) is before


def test_from_outside_within_a_second(tmp_path):
    """The real thing: a process that trains for ever, and a signal."""
    path = tmp_path / "a"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import brasa as br
from small_training import samples, trainer
run = trainer(callbacks=[br.callbacks.Checkpoint({str(path)!r}, every=10**9)])
class Ready(br.callbacks.Callback):
    def on_epoch_begin(self, trainer):
        if trainer.epoch == 2: print("ready", flush=True)
run.callbacks.append(Ready())
try:
    run.fit(samples(4000), epochs=10**6)
except KeyboardInterrupt:
    print("stopped", run.epoch, run.batch, flush=True)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(br.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        line = process.stdout.readline().split()
        seconds = time.monotonic() - start
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert line[0] == "stopped"
    assert seconds < 2  # a second is promised; a busy machine gets another
    assert process.returncode == 0
    assert br.io.load_metadata(path)["position"]["epoch"] == int(line[1])
