"""Text, character by character: the alphabet, the texts that can be read, and batches for recurrent networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._source import BUNDLED, DatasetNotFoundError, PathLike

# What a text takes in memory is several times its file: ids of four bytes for each character.
_MAX_BYTES = 1 << 28

_FORTUNES = "/usr/share/games/fortunes/brasil"
_GET_FORTUNES = (
    "the package fortunes-br of Debian and Ubuntu puts it there; it is under the GPL and so does not come with this"
    " package (the set 'text' is a novel that does)"
)
_MARK = "%\n"  # ends a line of its own: fortune's sign between two texts


class Vocabulary:
    """The characters of a text, numbered in the order of their code points.

    Parameters
    ----------
    text : str
        Any text; each character that occurs in it gets a number.

    Attributes
    ----------
    characters : str
        The characters: number `i` is ``characters[i]``.

    Examples
    --------
    >>> from brasa.data import Vocabulary
    >>> vocabulary = Vocabulary("banana")
    >>> len(vocabulary), vocabulary.characters, vocabulary.encode("nab").tolist()
    (3, 'abn', [2, 0, 1])
    >>> vocabulary.decode([1, 0, 2])
    'ban'
    """

    def __init__(self, text: str) -> None:
        self.characters = "".join(sorted(set(text)))
        self._codes = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} characters)"

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the numbers of a text's characters.

        Raises
        ------
        ValueError
            If a character has no number; the message names it and its position.
        """
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = ids < len(self)
        known[known] = self._codes[ids[known]] == codes[known]
        if not known.all():
            first = int(np.argmin(known))
            raise ValueError(
                f"character {text[first]!r} at position {first} is none of the {len(self)} in the vocabulary"
            )
        return ids.astype(np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of some characters' numbers.

        Raises
        ------
        ValueError
            If a number has no character.
        """
        numbers = np.asarray(ids).ravel()
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise ValueError(f"ids must lie in 0..{len(self) - 1}, got {numbers.min()}..{numbers.max()}")
        return "".join(self.characters[i] for i in numbers)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Text:
    """A text as the numbers of its characters.

    Parameters
    ----------
    text : str
        The text.
    vocabulary : Vocabulary, optional
        The alphabet; that of the text itself when None.

    Attributes
    ----------
    ids : ndarray of int32, shape (N,)
        The characters' numbers.
    vocabulary : Vocabulary
        The alphabet.

    Raises
    ------
    ValueError
        If a character is not in the vocabulary.

    Examples
    --------
    >>> from brasa.data import Text
    >>> text = Text("tico-tico")
    >>> len(text), len(text.vocabulary), text.content
    (9, 5, 'tico-tico')
    """

    def __init__(self, text: str, vocabulary: Vocabulary | None = None) -> None:
        self.vocabulary = Vocabulary(text) if vocabulary is None else vocabulary
        self.ids = self.vocabulary.encode(text).astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content(self) -> str:
        """The text as a string."""
        return self.vocabulary.decode(self.ids)

    def __repr__(self) -> str:
        return f"Text({len(self)} characters of {len(self.vocabulary)} kinds)"


class TextBatches:
    """Batches for a recurrent network that reads a text from its beginning to its end.

    The text is cut into `batch_size` streams of the same length, which are read side by side, `steps`
    characters at a time: sample `b` of a batch goes on where sample `b` of the batch before ended, so that the
    network's state can be carried over (backpropagation through time, truncated at `steps`). Fewer than
    `batch_size` characters at the very end are left out.

    Parameters
    ----------
    text : Text
        What is read.
    batch_size : int
        Number of streams, B.
    steps : int
        Characters in a batch from each stream, T; the last batch may have fewer.

    Yields
    ------
    x : ndarray of int64, shape (T, B)
        Characters.
    y : ndarray of int64, shape (T * B,)
        The character after each, in the order of ``x.ravel()``.

    Raises
    ------
    ValueError
        If a number is below 1, or the text is too short for so many streams.

    Examples
    --------
    >>> from brasa.data import Text, TextBatches
    >>> text = Text("abcdefgh.")
    >>> for x, y in TextBatches(text, batch_size=2, steps=3):
    ...     print([text.vocabulary.decode(stream) for stream in x.T], text.vocabulary.decode(y))
    ['abc', 'efg'] bfcgdh
    ['d', 'h'] e.
    """

    def __init__(self, text: Text, batch_size: int = 32, steps: int = 64) -> None:
        for value, name in ((batch_size, "batch_size"), (steps, "steps")):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self._length = (len(text) - 1) // batch_size
        if self._length < 1:
            raise ValueError(f"a text of {len(text)} characters is too short for {batch_size} streams")
        self.text, self.batch_size, self.steps = text, batch_size, steps

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._length // self.steps)

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        used = self._length * self.batch_size
        x, y = (self.text.ids[i : i + used].reshape(self.batch_size, -1).T for i in (0, 1))
        for start in range(0, self._length, self.steps):
            part = slice(start, start + self.steps)
            yield x[part].astype(np.int64, order="C"), y[part].astype(np.int64, order="C").ravel()


def text(
    path: PathLike | None = None, *, held_out: float = 0.1, encoding: str = "utf-8"
) -> tuple[Text, Text]:
    """Read a text to learn to write like it.

    Parameters
    ----------
    path : path, optional
        A file of plain text. None is the novel that comes with the package: "Dom Casmurro" by Machado de Assis
        (1899), in Portuguese, 372,000 characters.
    held_out : float
        Share of the text, its end, that is the test part.
    encoding : str
        How the file is encoded; older texts are often in ``"latin-1"``.

    Returns
    -------
    train, test : Text
        With one vocabulary: that of the whole text.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    ValueError
        If the file is empty, too short to be divided, or no text in that encoding.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.text()
    >>> len(train), len(test), len(train.vocabulary)
    (334526, 37170, 100)
    >>> print(train.content[28:68])
    Uma noite destas, vindo da cidade para o
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
    name, content = ("Dom Casmurro", _bundled()) if path is None else _read(path, "text", "", encoding)
    first = round(len(content) * (1 - held_out))
    return _divided(content[:first], content[first:], name)


def fortunes_br(path: PathLike = _FORTUNES) -> tuple[Text, Text]:
    """Jokes, sayings and football stories in Brazilian Portuguese, by many authors: 252,000 characters.

    Every tenth of them is in the test part. Each ends with a line ``%``, as in the file.

    Parameters
    ----------
    path : path
        The file ``brasil`` of the package fortunes-br (or any other of fortune's files).

    Returns
    -------
    train, test : Text
        With one vocabulary: that of the whole file.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file; the message says where to get it.
    ValueError
        If the file is empty, has fewer than ten texts, or is no text in UTF-8.

    Examples
    --------
    >>> from brasa import data
    >>> train, test = data.fortunes_br()  # doctest: +SKIP
    """
    name, content = _read(path, "fortunes-br", _GET_FORTUNES, "utf-8")
    fortunes = [one.strip("\n") + "\n" + _MARK for one in f"\n{content}".split("\n" + _MARK) if one.strip()]
    test = fortunes[9::10]
    return _divided("".join(f for i, f in enumerate(fortunes) if i % 10 != 9), "".join(test), name)


def _divided(train: str, test: str, name: str) -> tuple[Text, Text]:
    if min(len(train), len(test)) < 2:
        raise ValueError(f"{name}: too short to be divided into a part to train on and one to test on")
    vocabulary = Vocabulary(train + test)
    return Text(train, vocabulary), Text(test, vocabulary)


def _bundled() -> str:
    import bz2

    return bz2.decompress((BUNDLED / "dom_casmurro.txt.bz2").read_bytes()).decode()


def _read(path: PathLike, name: str, how: str, encoding: str) -> tuple[str, str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DatasetNotFoundError(f"{name}: there is no file {file}" + (f": {how}" if how else ""))
    if (size := file.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{file}: {size} bytes, more than the {_MAX_BYTES} that are read")
    try:
        content = file.read_text("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise ValueError(f"encoding: there is none called {encoding!r}") from None
    except UnicodeError as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"{file}: not text in {encoding}{where}; encoding= names another") from None
    if not content.strip():
        raise ValueError(f"{file}: the text is empty")
    return str(file), content
