"""The command line: what it says, what it writes, and how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import brasa as br
from brasa import cli, data, io

Image = pytest.importorskip("PIL.Image")

PACKAGE = Path(br.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """The exit status and what was written to stdout and stderr."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def start(*arguments, cwd, **options):
    """The command as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), **options}
    command = [sys.executable, "-W", "error", "-m", "brasa", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def write_images(root, classes=("cat", "dog"), count=10, size=(28, 28)):
    """A folder per class; the classes differ in brightness."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 60, size, dtype=np.uint8) + np.uint8(150 * label)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


SMALL = ("--data", "digits", "--batch-size", "256")


# --- train ----------------------------------------------------------------------------------------


def test_train_writes_its_folder_and_ends_with_the_accuracy(folder, capsys):
    status, out, err = run(capsys, "train", "mlp", *SMALL, "--epochs", 2)
    assert status == 0
    last = out.splitlines()[-1]
    match = re.fullmatch(r"test accuracy (0\.\d{4}|1\.0000) \((\d+) of (\d+)\)", last)
    assert match
    where = folder / "runs" / "mlp-digits-1"
    files = ["best.safetensors", "checkpoint.safetensors", "history.csv", "run.json"]
    if plots():
        files += ["confusion.png", "history.png"]
    assert sorted(os.listdir(where)) == sorted(files)
    assert len(err.splitlines()) == 2  # a line per epoch: this is no terminal
    summary = json.loads((where / "run.json").read_text())
    correct, total = int(match[2]), int(match[3])
    assert summary["test"] == {"accuracy": correct / total, "correct": correct, "total": total}
    assert np.trace(summary["confusion"]) == correct
    assert float(match[1]) == pytest.approx(correct / total, abs=5e-5)
    assert len((where / "history.csv").read_text().splitlines()) == 3
    assert check_weights(where / "checkpoint.safetensors", summary) == correct


def check_weights(path, summary):
    """Count the right answers of a checkpoint on the test set, by the public functions alone."""
    model = br.load(br.models.get("mlp", **summary["model"]["arguments"]), path).eval()
    x, y = data.digits()[1].arrays
    return int((model(x).numpy().argmax(1) == y).sum())


def plots():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_second_run_gets_its_own_folder(folder, capsys):
    for _ in range(2):
        assert run(capsys, "train", "mlp", *SMALL, "--epochs", 1)[0] == 0
    assert sorted(os.listdir("runs")) == ["mlp-digits-1", "mlp-digits-2"]
    one, two = (io.load_state(f"runs/mlp-digits-{i}/checkpoint.safetensors") for i in (1, 2))
    assert all(one[k].tobytes() == two[k].tobytes() for k in one)  # the same seed


def test_without_matplotlib_the_pictures_are_named_and_left_out(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = run(capsys, "train", "mlp", *SMALL, "--epochs", 1, "--out", "here")
    assert status == 0
    before_last = out.splitlines()[-2]
    assert before_last.startswith("left out history.png and confusion.png: matplotlib is needed")
    assert "[plot]" in before_last
    assert sorted(os.listdir("here")) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "history.csv",
        "run.json",
    ]


def test_a_folder_of_images(folder, capsys):
    write_images(folder / "animals")
    status, out, _ = run(capsys, "train", "lenet", "--data", "animals", "--epochs", 2)
    assert status == 0
    assert out.splitlines()[-1].endswith("of 4)")
    checkpoint = folder / "runs" / "lenet-animals-1" / "checkpoint.safetensors"
    assert io.load_metadata(checkpoint)["classes"] == ["cat", "dog"]
    image = folder / "animals" / "dog" / "3.png"
    status, out, _ = run(capsys, "predict", checkpoint, image, image)
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"{re.escape(str(image))}: (cat|dog) [\d.]+%  (cat|dog) [\d.]+%", lines[0])


def test_ctrl_c_then_resume_is_the_uninterrupted_run(folder):
    arguments = ("train", "mlp", *SMALL, "--batch-size", 16, "--epochs", 12)
    straight = start(*arguments, "--out", "straight", cwd=folder)
    expected = straight.communicate(timeout=300)[0].splitlines()[-1]
    assert straight.returncode == 0

    stopped = start(*arguments, "--out", "stopped", cwd=folder)
    for _ in range(2):
        assert stopped.stderr.readline().startswith("epoch")
    time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    hint = out.splitlines()[-1]
    assert hint.startswith("to go on: brasa train --resume")

    resumed = start(*hint.split()[4:], cwd=folder)
    assert resumed.communicate(timeout=300)[0].splitlines()[-1] == expected
    assert resumed.returncode == 0
    for name in ("checkpoint", "best"):
        one, two = (io.load_state(folder / d / f"{name}.safetensors") for d in ("straight", "stopped"))
        assert one.keys() == two.keys()
        assert all(one[k].tobytes() == two[k].tobytes() for k in one)
    assert (folder / "straight/history.csv").read_text() == (folder / "stopped/history.csv").read_text()


# --- predict --------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(folder, capsys):
    assert run(capsys, "train", "mlp", *SMALL, "--epochs", 1, "--out", "run")[0] == 0
    return folder / "run" / "checkpoint.safetensors"


def test_predict_scales_greys_and_inverts(folder, capsys, checkpoint):
    x, _ = data.digits()[1][:1]
    dark = Image.fromarray((x[0, 0] * 255).astype(np.uint8))
    dark.save("plain.png")
    dark.convert("RGB").resize((80, 80), Image.Resampling.NEAREST).save("large.png")
    Image.fromarray(255 - np.asarray(dark)).save("light.png")
    status, out, err = run(capsys, "predict", checkpoint, "plain.png", "large.png", "--top", 10)
    assert (status, err) == (0, "")
    shares = [float(s) for s in re.findall(r" ([\d.]+)%", out.splitlines()[0])]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.6)
    plain = out.splitlines()[0].split(": ")[1]
    _, inverted, _ = run(capsys, "predict", checkpoint, "light.png", "--invert", "--top", 10)
    assert inverted.split(": ")[1].strip() == plain


def test_a_bad_image_stops_before_the_first_line(folder, capsys, checkpoint):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("good.png")
    (folder / "bad.png").write_bytes(b"no image")
    status, out, err = run(capsys, "predict", checkpoint, "good.png", "bad.png")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "bad.png" in err


# --- text -----------------------------------------------------------------------------------------


@pytest.fixture
def sayings(folder):
    """A short text that a network learns at once."""
    (folder / "sayings.txt").write_text("água mole em pedra dura\ntanto bate até que fura\n" * 40)
    return folder / "sayings.txt"


@pytest.fixture
def writer(folder, capsys, sayings):
    arguments = ("train", "char-rnn", "--root", sayings, "--epochs", 12, "--batch-size", 2, "--out", "text")
    status, out, err = run(capsys, *arguments)
    assert status == 0
    last = re.fullmatch(
        r"test perplexity (\d+\.\d{3}) \((\d+\.\d{3}) bits per character\)", out.splitlines()[-1]
    )
    assert float(last[1]) < 1.5
    assert math.log2(float(last[1])) == pytest.approx(float(last[2]), abs=2e-3)
    assert "perplexity" in err
    assert json.loads((folder / "text/run.json").read_text())["test"]["characters"] == 192
    return folder / "text" / "best.safetensors"


def test_generate_goes_on_from_the_prompt(folder, capsys, writer):
    arguments = ("generate", writer, "--prompt", "água mole", "--length", 39)
    status, out, err = run(capsys, *arguments, "--top-k", 1)
    assert (status, err) == (0, "")
    assert out == "água mole em pedra dura\ntanto bate até que fura\n\n"
    texts = [run(capsys, *arguments, "--temperature", 5, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("água mole") and len(text) == 49 for text in texts)
    # Without a prompt it begins a line.
    assert run(capsys, "generate", writer, "--length", 4, "--top-k", 1)[1] in ("água\n", "tant\n")


def test_generate_where_the_terminal_knows_no_accents(folder, writer):
    process = start("generate", writer, "--prompt", "á", "--length", 1, cwd=folder, PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err, out[0]) == (0, "", "?")


def test_generate_and_predict_tell_their_networks_apart(folder, capsys, writer, checkpoint):
    assert "brasa generate uses it" in run(capsys, "predict", writer, "x.png")[2]
    assert "brasa predict uses it" in run(capsys, "generate", checkpoint)[2]
    status, _, err = run(capsys, "generate", writer, "--prompt", "água fria")
    assert status == 2
    assert "--prompt: character 'i' at position" in err


def test_text_is_resumed_from_a_whole_epoch(folder, sayings):
    arguments = ("train", "char_gru", "--root", sayings, "--batch-size", 2, "--epochs", 8)
    straight = start(*arguments, "--out", "straight", cwd=folder)
    expected = straight.communicate(timeout=300)[0].splitlines()[-1]
    assert straight.returncode == 0
    stopped = start(*arguments, "--out", "stopped", cwd=folder)
    for _ in range(2):
        assert stopped.stderr.readline().startswith("epoch")
    stopped.send_signal(signal.SIGINT)
    out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    resumed = start(*out.splitlines()[-1].split()[4:], cwd=folder)
    assert resumed.communicate(timeout=300)[0].splitlines()[-1] == expected
    one, two = (io.load_state(folder / d / "checkpoint.safetensors") for d in ("straight", "stopped"))
    assert all(one[k].tobytes() == two[k].tobytes() for k in one)


# --- the rest -------------------------------------------------------------------------------------


def test_summary_info_version_help(capsys):
    status, out, _ = run(capsys, "summary", "lenet")
    assert status == 0
    assert "61,706" in out
    assert "279,396" in run(capsys, "summary", "char-gru")[1]
    assert "(N, 10)" in run(capsys, "summary", "mlp", "--input", "1,8,8")[1]
    status, out, _ = run(capsys, "info")
    assert status == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert facts["instruction sets"].split()[0] in br.supported_isas()
    assert br.__version__ in facts["brasa"]
    assert run(capsys, "--version")[1] == f"brasa {br.__version__}\n"
    for arguments in ((), ("--help",), ("train", "--help"), ("predict", "-h"), ("generate", "-h")):
        status, out, err = run(capsys, *arguments)
        assert (status, err) == (0, "")
        assert "usage: brasa" in out


def test_bench_hands_over(capsys, monkeypatch):
    import types

    seen = []
    module = types.ModuleType("brasa._bench")
    module.main = lambda argv: seen.append(argv) or 0
    monkeypatch.setitem(sys.modules, "brasa._bench", module)
    monkeypatch.setattr(br, "_bench", module, raising=False)
    assert run(capsys, "bench", "matmul", "--json", "x")[0] == 0
    assert seen == [["matmul", "--json", "x"]]


MISTAKES = {
    "unknown command": (("trian",), "did you mean 'train'?"),
    "unknown model": (("train", "lenett"), "did you mean 'lenet'?"),
    "unknown set": (("train", "--data", "fashion-mnst"), "did you mean 'fashion-mnist'?"),
    "unknown option": (("train", "--epohcs", "3"), "did you mean '--epochs'?"),
    "abbreviated option": (("train", "--epoch", "3"), "did you mean '--epochs'?"),
    "set without files": (("train", "--data", "fashion-mnist"), "ubyte"),
    "missing root": (("train", "--data", "cifar10", "--root", "nowhere"), "nowhere"),
    "file as root": (("train", "--root", "file"), "file"),
    "epochs 0": (("train", "--epochs", "0"), "--epochs: need an integer of at least 1"),
    "epochs word": (("train", "--epochs", "three"), "--epochs"),
    "epochs digit of another script": (("train", "--epochs", "\u0663"), "--epochs"),
    "epochs missing": (("train", "--epochs"), "--epochs"),
    "batch huge": (("train", "--batch-size", "9" * 30), "--batch-size"),
    "lr nan": (("train", "--lr", "nan"), "--lr"),
    "lr 0": (("train", "--lr", "0"), "--lr"),
    "seed negative": (("train", "--seed", "-1"), "--seed"),
    "too many names": (("train", "lenet", "mlp"), "'mlp'"),
    "unknown device": (("train", "mlp", *SMALL, "--device", "tpu"), "device"),
    "16 bits on the CPU": (("train", "mlp", *SMALL, "--precision", "bf16"), "'bf16' is for CUDA"),
    "unknown precision": (("train", "mlp", *SMALL, "--precision", "half"), "'half'"),
    "no such GPU": (("train", "mlp", *SMALL, "--device", "cuda:99"), "cuda:99"),
    "out is a file": (("train", "mlp", *SMALL, "--out", "file"), "is a file"),
    "images too small": (
        ("train", "lenet", *SMALL),
        "cannot be trained on images of shape (1, 8, 8)",
    ),
    "empty folder": (("train", "--data", "empty"), "empty"),
    "text for images": (("train", "char_lstm", "--data", "mnist"), "char_lstm is for text"),
    "images for text": (("train", "--data", "text"), "lenet is for images"),
    "hyphens": (("train", "char-lsmt"), "did you mean 'char_lstm'?"),
    "no such text": (("train", "char_lstm", "--root", "nowhere"), "nowhere"),
    "no such fortunes": (("train", "char_lstm", "--data", "fortunes-br", "--root", "nowhere"), "GPL"),
    "text too short": (
        ("train", "char_lstm", "--root", "file", "--batch-size", "99"),
        "--batch-size: a text",
    ),
    "generate from nothing": (("generate", "nothing"), "nothing: No such file"),
    "generate from weights": (("generate", "weights"), "no checkpoint of brasa train"),
    "generate without": (("generate",), "CHECKPOINT"),
    "temperature 0": (("generate", "weights", "--temperature", "0"), "need a number above 0"),
    "top-k 0": (("generate", "weights", "--top-k", "0"), "need an integer of at least 1"),
    "resume nothing": (("train", "--resume", "nothing"), "nothing: No such file"),
    "resume no checkpoint": (("train", "--resume", "file"), "file"),
    "resume weights": (("train", "--resume", "weights"), "no checkpoint of brasa train"),
    "predict nothing": (("predict", "nothing", "file"), "nothing: No such file"),
    "predict from no checkpoint": (("predict", "file", "file"), "file"),
    "predict from weights": (("predict", "weights", "file"), "no checkpoint"),
    "predict without image": (("predict", "weights"), "IMAGE"),
    "summary of nothing": (("summary",), "MODEL"),
    "summary unknown": (("summary", "resnet19"), "did you mean 'resnet1"),
    "summary bad shape": (("summary", "lenet", "--input", "1,28,x"), "--input"),
    "summary wrong shape": (("summary", "lenet", "--input", "1,5,5"), "lenet on images"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(folder, capsys, name):
    (folder / "file").write_text("no checkpoint, no image\n")
    (folder / "empty").mkdir()
    io.save({"weight": np.zeros(3)}, folder / "weights")
    before = sorted(os.listdir())
    arguments, expected = MISTAKES[name]
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("brasa: error: ")
    assert len(err.splitlines()) == 1
    assert expected in err
    assert sorted(os.listdir()) == before  # nothing is left behind


def test_resuming_with_other_settings_is_refused(folder, capsys, checkpoint):
    status, _, err = run(capsys, "train", "--resume", checkpoint, "--epochs", 9)
    assert status == 2
    assert "the run has epochs 1, not 9" in err
    status, _, err = run(capsys, "train", "mlp", *SMALL, "--out", "run")
    assert status == 2
    assert "holds a run already" in err
    assert run(capsys, "train", "--resume", checkpoint)[0] == 0


def test_a_file_that_vanishes_under_way_is_one_line(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("brasa._files.write_bytes", full)
    status, _, err = run(capsys, "train", "mlp", *SMALL, "--epochs", 1)
    assert (status, err.splitlines()[-1]) == (2, "brasa: error: runs/x: No space left on device")


def test_a_closed_pipe_is_no_error(folder):
    process = start("summary", "resnet152", cwd=folder)
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (0, "")


def test_a_bug_keeps_its_traceback(capsys, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("brasa.cli.info.run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])
