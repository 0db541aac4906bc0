"""Beam search by a step function."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa._backend import beside
from brasa.decode._steps import Decoded, Step, call_step, first_tokens
from brasa.ops import _check
from brasa.tensor import Tensor


def beam_search(
    step: Step,
    start: Any,
    state: Any = None,
    *,
    end: int | None = None,
    max_length: int = 100,
    beams: int = 4,
    length_penalty: float = 0.0,
    batch_axis: int = 0,
) -> Decoded:
    """Keep the `beams` most probable beginnings at every step.

    `step` is called with (B,) tokens first and with (B K,) from then on; the rows of states are repeated and
    reordered accordingly.

    Parameters
    ----------
    step, start, state, end, max_length
        As for `greedy`.
    beams : int, default 4
        ``K``: 1 without a length penalty is `greedy`.
    length_penalty : float, default 0.0
        a: scores are divided by ((5 + n) / 6) ** a, n being the number of tokens with the end token (Wu et al.,
        2016). Above 0 longer sequences win more often.
    batch_axis : int, default 0
        The axis of the arrays of `state` that counts sequences: 0 for the state of a cell, (B, H), and 1 for
        that of a recurrent layer, (layers, B, H).

    Returns
    -------
    Decoded
        (B, K, L), best first. Where fewer than K sequences are possible, the rest have score -inf.

    Raises
    ------
    ValueError
        If `beams` is below 1 or `length_penalty` not finite, and as `greedy`.

    Examples
    --------
    >>> table = np.log(np.float32([[0.1, 0.5, 0.4], [0.3, 0.4, 0.3], [0.9, 0.05, 0.05]]))
    >>> found = beam_search(lambda tokens, state: (table[tokens], state), [0], end=0, beams=3)
    >>> found.tokens[0, :2, :2].tolist(), np.exp(found.scores[0, :2]).round(2).tolist()
    ([[2, 0], [1, 0]], [0.36, 0.15])
    """
    _check.integer("beams", beams, minimum=1)
    _check.integer("batch_axis", batch_axis, minimum=0)
    if not np.isfinite(_check.number("length_penalty", length_penalty)):
        raise ValueError(f"length_penalty: expected a finite number, got {length_penalty}")
    first = first_tokens(start, end, max_length)
    hypotheses = [_Beam(beams, max_length, length_penalty, end) for _ in range(len(first))]
    tokens, width = first, 1
    for _ in range(max_length):
        if all(beam.done for beam in hypotheses):
            break
        log_probs, state = call_step(step, tokens, state, len(first) * width)
        for beam, values in zip(hypotheses, log_probs.reshape(len(first), width, -1), strict=True):
            beam.advance(values)
        rows = np.concatenate([n * width + beam.sources for n, beam in enumerate(hypotheses)] or [first])
        state = _reordered(state, rows, batch_axis)
        tokens = beside(np.concatenate([b.tokens[:, -1] for b in hypotheses] or [first]), first)
        width = beams
    return collected([beam.results() for beam in hypotheses], beams, -1 if end is None else end)


class _Beam:
    """The hypotheses of one sample: those that go on, and those that have ended."""

    def __init__(self, beams: int, max_length: int, length_penalty: float, end: int | None) -> None:
        self.beams, self.max_length, self.length_penalty, self.end = beams, max_length, length_penalty, end
        self.tokens = np.empty((1, 0), np.int64)
        self.scores = np.zeros(1)
        self.sources = np.zeros(beams, np.int64)  # which of the hypotheses before each continues
        self.ended: list[tuple[float, np.ndarray]] = []
        self.done = False

    def penalised(self, score: float, length: int) -> float:
        return score / ((5.0 + length) / 6.0) ** self.length_penalty

    def advance(self, log_probs: np.ndarray) -> None:
        """Take the log-probabilities (K, V) of what may follow the hypotheses."""
        if self.done:  # the others go on: its rows are computed and count for nothing
            self.sources = np.zeros(self.beams, np.int64)
            self.tokens = np.repeat(self.tokens[:1], self.beams, axis=0)
            return
        words, scores = log_probs.shape[1], (self.scores[:, None] + log_probs).ravel()
        # Each hypothesis ends at most once, so that twice as many leave enough to go on.
        best = best_indices(scores, 2 * self.beams)
        length = self.tokens.shape[1] + 1
        for candidate in best[: self.beams]:
            if candidate % words == self.end:
                score = self.penalised(scores[candidate], length)
                self.ended.append((score, self.tokens[candidate // words]))
        best = best[best % words != self.end][: self.beams] if self.end is not None else best[: self.beams]
        missing = self.beams - len(best)
        self.sources = np.append(best // words, np.zeros(missing, np.int64))
        self.scores = np.append(scores[best], np.full(missing, -np.inf))
        last = np.append(best % words, np.zeros(missing, np.int64))
        self.tokens = np.append(self.tokens[self.sources], last[:, None], axis=1)
        self.ended = sorted(self.ended, key=lambda item: -item[0])[: self.beams]
        self.done = self._none_can_win(length)

    def _none_can_win(self, length: int) -> bool:
        """Whether no hypothesis can become better than the worst of `beams` that have ended."""
        most = max(
            self.penalised(self.scores[0], n) for n in (min(length + 1, self.max_length), self.max_length)
        )
        return most == -np.inf or (len(self.ended) == self.beams and most <= self.ended[-1][0])

    def results(self) -> list[tuple[float, np.ndarray]]:
        """(score, tokens) of the best, those that `max_length` cut off among them."""
        found = list(self.ended)
        if not self.done:
            length = self.tokens.shape[1]
            found += [
                (self.penalised(s, length), t)
                for s, t in zip(self.scores, self.tokens, strict=True)
                if s > -np.inf
            ]
        return sorted(found, key=lambda item: -item[0])[: self.beams]


def best_indices(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest scores that are not -inf, largest first, earlier ones before equals."""
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    return order[scores[order] > -np.inf]


def _reordered(state: Any, rows: np.ndarray, axis: int) -> Any:
    """The state with these rows along `axis` of all its arrays."""
    if isinstance(state, dict):
        return {key: _reordered(part, rows, axis) for key, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [_reordered(part, rows, axis) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if isinstance(state, Tensor):
        return Tensor(_reordered(state.data, rows, axis))
    if getattr(state, "ndim", 0) <= axis:
        return state
    return state[(slice(None),) * axis + (beside(rows, state),)]


def collected(samples: list[list[tuple[float, np.ndarray]]], beams: int, fill: int) -> Decoded:
    """The results of all samples in arrays (B, K, L)."""
    longest = max((len(tokens) for found in samples for _, tokens in found), default=0)
    tokens = np.full((len(samples), beams, longest), fill, np.int64)
    lengths = np.zeros((len(samples), beams), np.int64)
    scores = np.full((len(samples), beams), -np.inf)
    for n, found in enumerate(samples):
        for k, (score, sequence) in enumerate(found):
            tokens[n, k, : len(sequence)] = sequence
            lengths[n, k], scores[n, k] = len(sequence), score
    return Decoded(tokens, lengths, scores)
