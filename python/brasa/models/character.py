"""Recurrent networks that read a text character by character and predict the next one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brasa import decode, nn, random
from brasa.autograd import no_grad
from brasa.ops import _check
from brasa.tensor import Tensor

__all__ = ["CharacterModel", "char_gru", "char_lstm", "char_rnn"]

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class CharacterModel(nn.Module):
    """Embedding, recurrent layers, and scores for the next character.

    The state is carried from call to call, without its gradient: the batches of `brasa.data.TextBatches` go on
    where the ones before ended. `reset` makes the next call begin a text, and so does every change between
    training and evaluation mode (``train()`` and ``eval()``), so that no epoch starts in the middle of another.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
        The recurrent layer.
    characters : int
        V: size of the alphabet.
    hidden : int
        Units of a recurrent layer.
    layers : int
        Recurrent layers.
    dropout : float
        Probability with which the outputs of recurrent layers are dropped in training.
    embedding : int
        Numbers that stand for a character.

    Notes
    -----
    Input: integers in [0, V), shape (T, B), T steps of B texts. Output: logits (T * B, V) in the order of
    ``x.ravel()``, for the character after each.

    Examples
    --------
    >>> from brasa import data, models
    >>> text = data.Text("abracadabra")
    >>> model = models.char_lstm(len(text.vocabulary), hidden=8)
    >>> x, y = next(iter(data.TextBatches(text, batch_size=2, steps=3)))
    >>> model(x).shape, y.shape
    ((6, 5), (6,))
    """

    def __init__(
        self,
        cell: str,
        characters: int,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.2,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"cell: need one of {', '.join(_CELLS)}, got {cell!r}")
        self.embedding = nn.Embedding(characters, embedding)
        self.recurrent = _CELLS[cell](embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(hidden, characters)
        self._carried: Any = None

    def forward(self, x: Any) -> Tensor:
        """Return the logits of the characters that follow `x`, and carry the state on."""
        y, state = self.recurrent(self.embedding(x), self._carried)
        self._carried = _detached(state)
        return self.decoder(self.dropout(y).reshape(-1, y.shape[-1]))

    def reset(self) -> None:
        """Begin a new text with the next call."""
        self._carried = None

    def train(self, mode: bool = True) -> CharacterModel:
        """Change to training or evaluation mode, and begin a new text."""
        self.reset()
        super().train(mode)
        return self

    def generate(
        self,
        prompt: ArrayLike,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> NDArray[np.int64]:
        """Draw characters, one after the other, that go on from a prompt.

        Parameters
        ----------
        prompt : array_like of int, shape (N,)
            The text so far; at least one character.
        length : int
            How many characters to draw.
        temperature : float
            Logits are divided by it: below 1 likely characters become likelier, above 1 less so.
        top_k : int, optional
            Draw among so many likeliest characters only; 1 always takes the likeliest.
        seed : int
            The same seed gives the same text.

        Returns
        -------
        ndarray of int64, shape (length,)
            The characters, without the prompt.

        Raises
        ------
        ValueError
            If the prompt is empty, a number is out of its range, or the network's logits are NaN.
        TypeError
            If a character is no integer, or a number of another kind than above.
        """
        ids = _check.indices("prompt", prompt, self.embedding.num_embeddings).astype(np.int64).ravel()
        _check.integer("length", length, minimum=0)
        if not ids.size:
            raise ValueError("prompt: need at least one character to go on from")
        was_training = self.training
        self.eval()
        try:
            return self._draw(
                ids, length, temperature=temperature, top_k=top_k, generator=random.Generator(seed)
            )
        finally:
            self.train(was_training)

    def _draw(self, ids: NDArray[np.int64], length: int, **options: Any) -> NDArray[np.int64]:
        with no_grad():
            if len(ids) > 1:
                self(self._beside(ids[:-1, None]))
        # The state needs no handing over: it is carried.
        return decode.sample(
            lambda last, _: (self(last[None]).log_softmax(-1), None),
            self._beside(ids[-1:]),
            max_length=length,
            **options,
        ).tokens[0]

    def _beside(self, ids: NDArray[np.int64]) -> Any:
        """The same numbers on the network's device."""
        return Tensor(ids).to(self.decoder.weight.device).data


def _detached(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def char_lstm(characters: int = 100, **options: Any) -> CharacterModel:
    """Return a character model with an LSTM: 1 layer of 256 units, 361,828 parameters for 100 characters.

    Parameters
    ----------
    characters : int, default: 100
        Size of the alphabet.
    **options
        As for `CharacterModel`.
    """
    return CharacterModel("lstm", characters, **options)


def char_gru(characters: int = 100, **options: Any) -> CharacterModel:
    """Return a character model with a GRU: 1 layer of 256 units, 279,396 parameters for 100 characters.

    Parameters
    ----------
    characters : int, default: 100
        Size of the alphabet.
    **options
        As for `CharacterModel`.
    """
    return CharacterModel("gru", characters, **options)


def char_rnn(characters: int = 100, dropout: float = 0.0, **options: Any) -> CharacterModel:
    """Return a character model with a simple RNN (tanh): 1 layer of 256 units, 114,532 parameters for 100 characters.

    Parameters
    ----------
    characters : int, default: 100
        Size of the alphabet.
    dropout : float, default: 0.0
        As for `CharacterModel`; this layer has no memory to spare for it.
    **options
        As for `CharacterModel`.
    """
    return CharacterModel("rnn", characters, dropout=dropout, **options)
