"""The figures that the examples reach: quick versions of them always, as they are run by default in the full tier."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

full = pytest.mark.skipif(os.environ.get("BRASA_TEST_TIER", "quick") == "quick", reason="full tier")


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Return a function that runs an example; it checks the picture, and that the last line has the figures."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        result = importlib.import_module(name).main([str(a) for a in arguments])
        picture = (tmp_path / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        last = capsys.readouterr().out.splitlines()[-1]
        assert re.search(r"\d", last)
        return result

    yield run
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(path, monkeypatch, capsys):
    source = path.read_text()
    assert source.startswith('"""')
    assert not re.search(r"^\s*(from|import) brasa\._|brasa\.\w*\._", source, re.M)  # the public API alone
    if "def main(" in source:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        with pytest.raises(SystemExit) as exit_:
            importlib.import_module(path.stem).main(["--help"])
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert f"python examples/{path.name}" in out
        assert "--out" in out


# --- text -----------------------------------------------------------------------------------------


def test_small_networks_predict_text_better_than_short_markov_chains(example):
    """What a few seconds show. To beat the chain of the best order, the fourth (5.75 on this part of the text),
    takes the GRU 256 units and 8 epochs: that, on the whole text, is the full tier's.
    """
    found = example(
        "char_rnn",
        "--characters",
        120000,
        "--cells",
        "lstm",
        "gru",
        "--hidden",
        128,
        "--epochs",
        6,
        "--order",
        2,
    )
    assert found["lstm"] < found["Markov chain of order 1"] * 0.75
    assert found["gru"] < found["Markov chain of order 2"] * 0.95


@full
def test_gated_networks_predict_text_better_than_a_markov_chain(example):
    found = example("char_rnn")
    chain = min(value for name, value in found.items() if name.startswith("Markov"))
    assert found["lstm"] < 0.92 * chain
    assert found["gru"] < 0.92 * chain
    assert found["lstm"] < 0.95 * found["rnn"] < 0.95 * chain


@full
@pytest.mark.skipif(not Path("/usr/share/games/fortunes/brasil").is_file(), reason="needs fortunes-br")
def test_an_lstm_tells_jokes(example):
    found = example("char_rnn", "--text", "/usr/share/games/fortunes/brasil", "--cells", "lstm")
    assert found["lstm"] < 0.92 * min(v for k, v in found.items() if k.startswith("Markov"))


# --- verbs ----------------------------------------------------------------------------------------


def test_the_rules_conjugate(example):
    conjugate = importlib.import_module("portuguese_verbs").conjugate
    for verb, form, expected in (
        ("cantar", "I4", "cantávamos"), ("vender", "M4", "vendêssemos"), ("partir", "F6", "partirão"),
        ("ficar", "E1", "fiquei"), ("chegar", "S6", "cheguem"), ("começar", "S4", "comecemos"),
        ("conhecer", "P1", "conheço"), ("proteger", "S3", "proteja"), ("erguer", "P1", "ergo"),
        ("passear", "P1", "passeio"), ("passear", "P4", "passeamos"), ("odiar", "P6", "odeiam"),
        ("produzir", "P3", "produz"), ("seguir", "S4", "sigamos"), ("dormir", "P1", "durmo"),
        ("dormir", "P2", "dormes"), ("conseguir", "S1", "consiga"), ("descobrir", "P1", "descubro"),
    ):  # fmt: skip
        assert conjugate(verb, form) == expected


def test_debians_file_of_verbs(example, tmp_path):
    verbs = importlib.import_module("portuguese_verbs")
    lines = [
        "# comment", "paradigma:cantar:ar", "PI:canto:cantas:canta:cantamos:cantais:cantam", "ficar", "#", "",
        "paradigma:dar", "PI:dou:dás:dá:damos:dais:dão", "EI:dei:deste:deu:demos:destes:deram", "desdar", "",
        "paradigma:crer:er", "PI:creio:crês:crê:cremos:credes:crêem", "descrer", "ferir", "abundante:x:y",
    ]  # fmt: skip
    path = tmp_path / "verbos"
    path.write_text("\n".join(lines))
    found = verbs.from_debian(path)
    assert sorted(found) == ["cantar", "crer", "dar", "descrer", "desdar", "ferir", "ficar"]
    for verb, form, expected in (
        ("ficar", "E1", "fiquei"), ("dar", "P1", "dou"), ("desdar", "E3", "desdeu"), ("dar", "I1", "dava"),
        ("descrer", "P6", "descrêem"), ("descrer", "S1", "descra"), ("ferir", "P1", "firo"),
    ):  # fmt: skip
        assert found[verb][form] == expected
    with pytest.raises(SystemExit, match="brazilian-conjugate"):
        verbs.from_debian(tmp_path / "nothing")


def test_a_small_network_conjugates(example):
    found = example("verbs", "--forms", 8000, "--hidden", 96, "--epochs", 5, "--lr", 0.006, "--beams", 2)
    assert found["greedy"] > 0.85
    assert found["beam"] > 0.85


@full
def test_a_network_conjugates(example):
    found = example("verbs")
    assert found["greedy"] > 0.97
    assert found["beam"] > 0.97


# --- digits, sunspots, memory ---------------------------------------------------------------------


def test_a_small_lstm_reads_digits_row_by_row(example):
    assert example("row_digits", "--epochs", 6, "--hidden", 96) > 0.92


@full
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_digits_are_read_row_by_row(example, cell):
    assert example("row_digits", "--cell", cell) > 0.965


def test_sunspots_are_forecast(example):
    errors = example("forecast", "--networks", 3)
    assert errors["GRU"] < 0.6 * errors["naive"]
    assert errors["GRU"] < 0.6 * errors["seasonal naive"]


def test_no_networks_forecast_nothing(example, capsys):
    with pytest.raises(SystemExit):
        example("forecast", "--networks", 0)
    assert "--networks: expected at least 1, got 0" in capsys.readouterr().err


def test_gradients_vanish_in_a_simple_network_and_not_in_an_lstm(example):
    found = example("long_memory", "--problems")
    # The weights of the simple network are drawn from (-1/8, 1/8): a radius of 8 / 8 / sqrt(3) = 0.58 at most
    # remains of a gradient at each of 59 steps, 1e-14 of it in all; of a cell's gradient 0.98 ** 59 = 0.3.
    assert found["gradient, RNN"] < 1e-12
    assert found["gradient, LSTM"] > 0.1
    assert found["gradient, LSTM, gates half open"] < 1e-8


@full
def test_long_memory_is_learnt_by_the_lstm_alone(example):
    found = example("long_memory")
    assert found["adding, LSTM"] < 0.01
    assert found["adding, RNN"] > 0.1
    assert found["copying, LSTM"] < 0.02
    assert found["copying, RNN"] > 0.6


def test_problems_are_what_they_say(example):
    memory = importlib.import_module("long_memory")
    rng = np.random.default_rng(0)
    x, y = memory.adding(rng, 20, 50)
    assert (x[..., 1].sum(0) == 2).all()
    np.testing.assert_allclose(y[:, 0], [x[x[:, i, 1] == 1, i, 0].sum() for i in range(50)], rtol=1e-6)
    x, y = memory.copying(rng, 20, 50)
    assert (x.sum(-1) == 1).all()
    np.testing.assert_array_equal(x[: memory.SHOWN].argmax(-1), y)
    assert (x[memory.SHOWN : -memory.SHOWN].argmax(-1) == memory.BLANK).all()
    assert (x[-memory.SHOWN :].argmax(-1) == memory.GO).all()
