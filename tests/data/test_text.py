"""Texts, alphabets, and batches for truncated backpropagation through time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brasa import data
from brasa.data import Text, TextBatches, Vocabulary


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file and gives its path."""

    def write(content: str | bytes):
        path = tmp_path / "text.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# --- alphabet -------------------------------------------------------------------------------------


@given(text=st.text(min_size=1))
def test_encoding_and_back(text):
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == text
    assert len(vocabulary) == len(set(text)) == len(set(ids))
    assert Vocabulary(vocabulary.characters) == vocabulary
    assert vocabulary != Vocabulary(text + "\ue000") or "\ue000" in text


def test_characters_and_numbers_that_are_not_there():
    vocabulary = Vocabulary("açaí")
    for text, message in (
        ("caça", "character 'c' at position 0 is none of the 3"),
        ("açã", "'ã' at position 2"),
        ("a\U0001f525", "position 1"),
        ("\udce9", "position 0"),  # a byte of a command line that is not UTF-8
    ):
        with pytest.raises(ValueError, match=message):
            vocabulary.encode(text)
    for ids in ([3], [-1], [0, 10**12]):
        with pytest.raises(ValueError, match=r"ids must lie in 0\.\.2"):
            vocabulary.decode(ids)
    assert vocabulary.decode([]) == ""
    assert vocabulary.encode("").shape == (0,)
    with pytest.raises(ValueError, match="position 0"):
        Vocabulary("").encode("a")


def test_a_text_with_another_alphabet():
    assert Text("ba", Vocabulary("abc")).ids.tolist() == [1, 0]
    with pytest.raises(ValueError, match="'d' at position 1"):
        Text("ad", Vocabulary("abc"))


# --- batches --------------------------------------------------------------------------------------


@given(length=st.integers(2, 60), streams=st.integers(1, 9), steps=st.integers(1, 20), seed=st.integers(0, 9))
def test_batches_are_streams_that_go_on(length, streams, steps, seed):
    text = Text("".join(map(chr, np.random.default_rng(seed).integers(97, 107, length))))
    if length - 1 < streams:
        with pytest.raises(ValueError, match=f"{length} characters is too short for {streams} streams"):
            TextBatches(text, streams, steps)
        return
    batches = TextBatches(text, streams, steps)
    for _ in range(2):  # they can be gone through again
        parts = list(batches)
        assert len(parts) == len(batches)
        assert all(len(x) == steps for x, _ in parts[:-1])
        x = np.concatenate([x for x, _ in parts])
        y = np.concatenate([y.reshape(-1, streams) for _, y in parts])
        each = (length - 1) // streams
        assert x.shape == y.shape == (each, streams)
        for i in range(streams):
            np.testing.assert_array_equal(x[:, i], text.ids[i * each : (i + 1) * each])
            np.testing.assert_array_equal(y[:, i], text.ids[i * each + 1 : (i + 1) * each + 1])


def test_batches_are_what_layers_and_losses_take():
    x, y = next(iter(TextBatches(Text("abracadabra"), batch_size=2, steps=3)))
    assert (x.dtype, y.dtype) == (np.int64, np.int64)
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    assert y.shape == (6,)
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="at least 1"):
            TextBatches(Text("abracadabra"), batch_size=wrong)
        with pytest.raises(ValueError, match="at least 1"):
            TextBatches(Text("abracadabra"), steps=wrong)


# --- files ----------------------------------------------------------------------------------------


def test_the_bundled_novel():
    train, test = data.text()
    assert train.vocabulary is test.vocabulary
    assert train.content.startswith("CAPÍTULO PRIMEIRO\nDO TÍTULO\nUma noite destas")
    assert test.content.endswith("Vamos à História dos Subúrbios.\nFIM\n")
    assert len(train) + len(test) == 371_696
    assert not any(ord(c) in range(0x80, 0xA0) for c in train.vocabulary.characters)


def test_a_file_is_divided_where_asked(file):
    train, test = data.text(file("0123456789" * 2), held_out=0.25)
    assert (train.content, test.content) == ("012345678901234", "56789")
    assert len(test.vocabulary) == 10


def test_encodings_line_ends_and_marks(file):
    train, test = data.text(file(b"\xef\xbb\xbfol\xc3\xa1,\r\nmundo\r\n"), held_out=0.5)
    assert train.content + test.content == "olá,\nmundo\n"
    train, test = data.text(file("olá, mundo".encode("latin-1")), encoding="latin-1", held_out=0.5)
    assert train.content + test.content == "olá, mundo"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "the text is empty"),
        (b" \n\n\t", {}, "the text is empty"),
        (b"abc", {}, "too short to be divided"),
        ("olá, mundo".encode("latin-1"), {}, r"not text in utf-8 at byte 2; encoding="),
        (b"\x00\xd8\x00\x00", {"encoding": "utf-16-le"}, "not text in utf-16-le"),
        (b"abcdefgh", {"encoding": "klingon"}, "encoding: there is none called 'klingon'"),
        (b"abcdefgh", {"held_out": 0.0}, "held_out must lie between 0 and 1"),
        (b"abcdefgh", {"held_out": float("nan")}, "held_out must lie between 0 and 1"),
    ],
)
def test_what_is_no_text(file, content, options, message):
    with pytest.raises(ValueError, match=message):
        data.text(file(content), **options)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(data.DatasetNotFoundError, match=r"no file .*nothing"):
        data.text(tmp_path / "nothing")
    with pytest.raises(data.DatasetNotFoundError, match="no file"):
        data.text(tmp_path)
    with pytest.raises(data.DatasetNotFoundError, match=r"package fortunes-br of Debian.*'text'"):
        data.fortunes_br(tmp_path / "nothing")


def test_a_file_that_is_too_large(file, monkeypatch):
    monkeypatch.setattr("brasa.data._text._MAX_BYTES", 7)
    with pytest.raises(ValueError, match="8 bytes, more than the 7"):
        data.text(file("abcdefgh"))


def test_every_tenth_fortune_is_held_out(file):
    train, test = data.fortunes_br(file("".join(f"frase {i}\n\n100 % boa\n%\n" for i in range(25))))
    assert test.content == "frase 9\n\n100 % boa\n%\nfrase 19\n\n100 % boa\n%\n"
    assert train.content.count("\n%\n") == 23
    assert "frase 9\n" not in train.content
    with pytest.raises(ValueError, match="too short to be divided"):
        data.fortunes_br(file("uma\n%\noutra\n%\n"))
