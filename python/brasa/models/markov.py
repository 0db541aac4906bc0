"""Markov chain over symbols: the model of text that recurrent networks are measured against."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MarkovChain"]


class MarkovChain:
    r"""Predict the next symbol from the `order` symbols before it, by counting.

    With :math:`n(h, c)` the number of times that symbol `c` followed the context `h`, and :math:`t(h)` the number
    of different symbols that did,

    .. math:: p(c \mid h) = \frac{n(h, c) + t(h)\, p(c \mid h')}{\sum_c n(h, c) + t(h)}

    where :math:`h'` is `h` without its oldest symbol, and below the empty context every symbol is equally likely.
    A context that often went on in new ways is trusted less than the shorter one (smoothing of Witten and Bell,
    "The zero-frequency problem", IEEE Transactions on Information Theory 37, 1991, method C).

    Parameters
    ----------
    order : int
        Symbols that a prediction looks back at; 0 predicts by frequency alone.
    symbols : int
        Number of different symbols.

    Raises
    ------
    ValueError
        If a number is too small.

    Examples
    --------
    >>> from brasa import data, models
    >>> text = data.Text("abababab")
    >>> chain = models.MarkovChain(order=1, symbols=2).fit(text.ids)
    >>> chain.probabilities([0]).round(3)
    array([0.1, 0.9])
    >>> text.vocabulary.decode(chain.sample(6, prompt=[0], seed=1))
    'bbabab'
    """

    def __init__(self, order: int, symbols: int) -> None:
        if order < 0 or symbols < 1:
            raise ValueError(f"order must be at least 0 and symbols at least 1, got {order} and {symbols}")
        self.order, self.symbols = order, symbols
        # Contexts are strings whose characters stand for the symbols: slices that are cheap to take and to look up.
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def fit(self, ids: ArrayLike) -> MarkovChain:
        """Count what follows what; a second text adds to the first.

        Parameters
        ----------
        ids : array_like of int, shape (N,)
            The symbols' numbers, from 0 to ``symbols - 1``.

        Returns
        -------
        MarkovChain
            The chain itself.
        """
        text = self._as_string(ids)
        for i, symbol in enumerate(text):
            for start in range(max(i - self.order, 0), i + 1):
                self._counts[text[start:i]][symbol] += 1
        return self

    def probabilities(self, context: ArrayLike = ()) -> NDArray[np.float64]:
        """Return the probability of each symbol after `context`, of which the last `order` symbols count.

        Parameters
        ----------
        context : array_like of int
            The symbols before.

        Returns
        -------
        ndarray of float64, shape (symbols,)
        """
        text = self._as_string(context)
        result = np.full(self.symbols, 1 / self.symbols)
        for followers in self._contexts(text, len(text)):
            result *= len(followers)
            for symbol, count in followers.items():
                result[ord(symbol)] += count
            result /= followers.total() + len(followers)
        return result

    def perplexity(self, ids: ArrayLike) -> float:
        """Return ``exp`` of the mean negative log-likelihood of a text's symbols.

        Raises
        ------
        ValueError
            If the text is empty.
        """
        text = self._as_string(ids)
        if not text:
            raise ValueError("ids: a text without symbols has no perplexity")
        total = 0.0
        for i, symbol in enumerate(text):
            p = 1 / self.symbols
            for followers in self._contexts(text, i):
                p = (followers[symbol] + len(followers) * p) / (followers.total() + len(followers))
            total -= math.log(p)
        return math.exp(total / len(text))

    def sample(self, length: int, prompt: ArrayLike = (), seed: int = 0) -> NDArray[np.int64]:
        """Draw `length` symbols, one after the other, that go on from `prompt`."""
        rng = np.random.default_rng(seed)
        text = list(np.asarray(prompt, np.int64))
        for _ in range(length):
            text.append(rng.choice(self.symbols, p=self.probabilities(text[len(text) - self.order :])))
        return np.array(text[len(text) - length :], np.int64)

    def _contexts(self, text: str, end: int) -> Sequence[Counter[str]]:
        """What was counted after the contexts that end before `end`, from the empty one to the longest known."""
        known = []
        for start in range(end, max(end - self.order, 0) - 1, -1):
            followers = self._counts.get(text[start:end])
            if followers is None:  # then no longer one is known either
                break
            known.append(followers)
        return known

    def _as_string(self, ids: ArrayLike) -> str:
        numbers = np.asarray(ids)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < self.symbols):
            raise ValueError(f"ids must lie in 0..{self.symbols - 1}, got {numbers.min()}..{numbers.max()}")
        return "".join(map(chr, numbers.tolist()))
