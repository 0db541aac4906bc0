"""Greedy decoding and sampling by a step function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from brasa import random
from brasa._backend import as_array, beside, to_numpy
from brasa.autograd import no_grad
from brasa.ops import _check
from brasa.tensor import Tensor

Step = Callable[[Any, Any], tuple[Any, Any]]


class Decoded(NamedTuple):
    """Sequences of NumPy arrays, (B, L) and (B,), or from a beam (B, K, L) and (B, K), the best first."""

    tokens: (
        np.ndarray
    )  # without the first token; from the end on filled up with the end token (CTC: the blank)
    lengths: np.ndarray  # tokens before the end
    scores: np.ndarray  # log-probabilities, with the end token's; of a beam divided by the length penalty


def greedy(
    step: Step, start: Any, state: Any = None, *, end: int | None = None, max_length: int = 100
) -> Decoded:
    """Take the most probable token at every step.

    Parameters
    ----------
    step : callable
        See ``help(brasa.decode)``.
    start : array of int
        (B,), the token that each sequence begins after.
    state : optional
        What the first step gets.
    end : int, optional
        The token that ends a sequence. Without it all have `max_length` tokens.
    max_length : int, default 100
        Most tokens of a sequence, the end token included.

    Returns
    -------
    Decoded

    Raises
    ------
    ValueError
        If `step` returns log-probabilities of another shape than (B, V), or that are NaN or +inf, as those of a
        network are whose training diverged; if `max_length` is negative.

    Examples
    --------
    >>> table = np.log(np.float32([[0.1, 0.6, 0.3], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]))  # of what follows what
    >>> greedy(lambda tokens, state: (table[tokens], state), [0, 2], end=0).tokens.tolist()
    [[1, 2, 0], [0, 0, 0]]
    """

    def best(log_probs: np.ndarray) -> np.ndarray:
        return log_probs.argmax(1)

    return _run(step, start, state, end, max_length, best)


def sample(
    step: Step,
    start: Any,
    state: Any = None,
    *,
    end: int | None = None,
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: Any = None,
) -> Decoded:
    """Draw every token from the model's distribution.

    Parameters
    ----------
    step, start, state, end, max_length
        As for `greedy`.
    temperature : float, default 1.0
        Divides the log-probabilities: below 1 for likelier tokens, above 1 for more variety.
    top_k : int, optional
        Draw from the so many most probable tokens only.
    generator : Generator, optional
        Where random numbers come from; the default one, which `manual_seed` starts again, unless given.

    Returns
    -------
    Decoded
        Its scores are the model's log-probabilities, whatever they were drawn by.

    Raises
    ------
    ValueError
        If the temperature is not finite and above 0 (`greedy` is its limit) or `top_k` below 1, and as `greedy`.

    Examples
    --------
    >>> fair = np.log(np.full((1, 6), 1 / 6, np.float32))
    >>> dice = sample(lambda tokens, state: (fair[np.zeros_like(tokens)], state), [0], max_length=1000)
    >>> bool((np.bincount(dice.tokens[0]) > 100).all())
    True
    """
    if not 0 < _check.number("temperature", temperature) < np.inf:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    if top_k is not None:
        _check.integer("top_k", top_k, minimum=1)
    source = random.default_generator() if generator is None else generator

    def draw(log_probs: np.ndarray) -> np.ndarray:
        scaled = log_probs / temperature
        if top_k is not None and top_k < scaled.shape[1]:
            rank = np.argsort(np.argsort(-scaled, axis=1, kind="stable"), axis=1)
            scaled = np.where(rank < top_k, scaled, -np.inf)
        below = np.cumsum(np.exp(scaled - scaled.max(1, keepdims=True)), axis=1)
        u = source.uniform(0.0, 1.0, (len(below), 1), dtype=np.float64, purpose="sampling")
        return (below <= u * below[:, -1:]).sum(1)

    return _run(step, start, state, end, max_length, draw)


def _run(
    step: Step, start: Any, state: Any, end: int | None, max_length: int, choose: Callable[[np.ndarray], Any]
) -> Decoded:
    """A token for every sequence at every step, until all have ended."""
    first = first_tokens(start, end, max_length)
    tokens, rows = first, np.arange(len(first))
    chosen: list[np.ndarray] = []
    scores = np.zeros(len(first))
    done = np.zeros(len(first), bool)
    while len(chosen) < max_length and not done.all():
        log_probs, state = call_step(step, tokens, state, len(first))
        token = choose(log_probs).astype(np.int64)
        if end is not None:
            token[done] = end
        scores += np.where(done, 0.0, log_probs[rows, token])
        chosen.append(token)
        done |= token == end
        tokens = beside(token, first)
    result = np.stack(chosen, axis=1) if chosen else np.empty((len(first), 0), np.int64)
    lengths = (result != end).sum(1) if end is not None else np.full(len(first), result.shape[1])
    return Decoded(result, lengths, scores)


def first_tokens(start: Any, end: Any, max_length: Any) -> Any:
    """The first tokens, (B,) int64, on the device that they are on, after a look at when sequences end."""
    if end is not None:
        _check.integer("end", end)
    _check.integer("max_length", max_length, minimum=0)
    start = as_array(start.data if isinstance(start, Tensor) else start, "start")
    if start.ndim != 1 or start.dtype.kind not in "iu":
        raise ValueError(f"start: expected integers (B,), got shape {start.shape} of {start.dtype}")
    return start.astype(np.int64)


def call_step(step: Step, tokens: Any, state: Any, count: int) -> tuple[np.ndarray, Any]:
    """One step: log-probabilities (B, V) in float64, and the new state."""
    with no_grad():
        log_probs, state = step(tokens, state)
    values = to_numpy(log_probs.data if isinstance(log_probs, Tensor) else log_probs)
    if values.ndim != 2 or len(values) != count:
        raise ValueError(f"step: expected log-probabilities of shape ({count}, V), got {values.shape}")
    values = values.astype(np.float64)
    check_log_probs("step", values)
    return values, state


def check_log_probs(name: str, values: np.ndarray) -> None:
    """NaN would be taken for the most probable, or hide what is: it is refused."""
    wrong = np.argwhere(~(values < np.inf))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(f"{name}: expected log-probabilities, got {values[at]} at position {at}")
