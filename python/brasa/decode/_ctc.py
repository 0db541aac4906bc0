"""The labels that the outputs of a model trained by `ops.ctc_loss` spell."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa._backend import as_array, to_numpy
from brasa.decode._beam import best_indices, collected
from brasa.decode._steps import Decoded, check_log_probs
from brasa.ops import _check
from brasa.tensor import Tensor


def ctc_greedy(log_probs: Any, lengths: Any = None, *, blank: int = 0) -> Decoded:
    """Take the most probable class at every step; runs of one class count once, blanks for nothing.

    That is the most probable alignment, which need not spell the most probable labels.

    Parameters
    ----------
    log_probs : array or Tensor
        (T, N, C), or (T, C) for one sample: log-probabilities of classes.
    lengths : array or sequence of int, optional
        (N,): the steps of each sample; all T unless given.
    blank : int, default 0
        The class that stands for no label.

    Returns
    -------
    Decoded
        (N, L), filled up with the blank; the scores are the alignments' log-probabilities.

    Raises
    ------
    ValueError
        For another number of dimensions, lengths out of range, or log-probabilities of NaN or +inf among the
        steps that count.

    Examples
    --------
    >>> log_probs = np.log(np.float32([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]))
    >>> ctc_greedy(log_probs).tokens.tolist()
    [[1, 1]]
    """
    found = []
    for rows in _samples(log_probs, lengths, blank):
        path = rows.argmax(1)
        starts = path != np.append(-1, path[:-1])
        found.append([(float(rows.max(1).sum()), path[starts & (path != blank)])])
    tokens, counts, scores = collected(found, 1, blank)
    return Decoded(tokens[:, 0], counts[:, 0], scores[:, 0])


def ctc_beam_search(log_probs: Any, lengths: Any = None, *, beams: int = 10, blank: int = 0) -> Decoded:
    """Keep the `beams` most probable beginnings of a labelling at every step, over all their alignments.

    Parameters
    ----------
    log_probs, lengths, blank
        As for `ctc_greedy`.
    beams : int, default 10
        ``K``.

    Returns
    -------
    Decoded
        (N, K, L), best first, filled up with the blank. The scores are log-probabilities of the labels, of
        which each lacks the alignments whose beginnings were dropped; where fewer than K labellings are
        possible, the rest have -inf.

    Raises
    ------
    ValueError
        As `ctc_greedy`, and if `beams` is below 1.

    Notes
    -----
    The prefix search of Graves (2012), "Supervised sequence labelling with recurrent neural networks", 7.5.

    Examples
    --------
    >>> log_probs = np.log(np.float32([[0.6, 0.4], [0.6, 0.4]]))  # best alignment: blanks, 0.36
    >>> found = ctc_beam_search(log_probs, beams=2)
    >>> found.tokens[0].tolist(), np.exp(found.scores[0]).round(2).tolist()
    ([[1], [0]], [0.64, 0.36])
    """
    _check.integer("beams", beams, minimum=1)
    return collected(
        [_prefix_search(rows, beams, blank) for rows in _samples(log_probs, lengths, blank)], beams, blank
    )


def _samples(log_probs: Any, lengths: Any, blank: int) -> list[np.ndarray]:
    """The steps of each sample, (T_n, C) in float64."""
    values = to_numpy(as_array(log_probs.data if isinstance(log_probs, Tensor) else log_probs, "log_probs"))
    if values.ndim not in (2, 3):
        raise ValueError(f"log_probs: expected shape (T, N, C) or (T, C), got {values.shape}")
    if values.ndim == 2:
        values = values[:, None]
    steps, count, classes = values.shape
    if not 0 <= _check.integer("blank", blank) < classes:
        raise ValueError(f"blank: expected a class of {classes}, got {blank}")
    if lengths is None:
        lengths = np.full(count, steps)
    lengths = lengths.data if isinstance(lengths, Tensor) else lengths
    lengths = to_numpy(_check.indices("lengths", lengths, steps + 1)).reshape(-1)
    if lengths.shape != (count,) or ((lengths < 0) | (lengths > steps)).any():
        raise ValueError(f"lengths: expected {count} in [0, {steps}], got {lengths.tolist()}")
    samples = [values[:n, i].astype(np.float64) for i, n in enumerate(lengths.tolist())]
    for i, rows in enumerate(samples):
        check_log_probs(f"log_probs: sample {i}", rows)
    return samples


def _prefix_search(rows: np.ndarray, beams: int, blank: int) -> list[tuple[float, Any]]:
    """(score, labels) of one sample.

    The alignments of a prefix are added up in two parts: those that end in a blank, which the last label may
    follow again, and those that end in the last label, which that label would only lengthen.
    """
    prefixes: list[tuple[int, ...]] = [()]
    with_blank, with_label = np.zeros(1), np.full(1, -np.inf)
    for row in rows:
        total = np.logaddexp(with_blank, with_label)
        grown = total[:, None] + row
        grown[:, blank] = -np.inf
        kept_label = np.full(len(prefixes), -np.inf)
        place = {prefix: i for i, prefix in enumerate(prefixes)}
        for i, prefix in enumerate(prefixes):
            if prefix:
                grown[i, prefix[-1]] = with_blank[i] + row[prefix[-1]]
                kept_label[i] = with_label[i] + row[prefix[-1]]
        for i, prefix in enumerate(prefixes):
            parent = place.get(prefix[:-1]) if prefix else None
            if parent is not None:  # growing gives a prefix that is there already
                kept_label[i] = np.logaddexp(kept_label[i], grown[parent, prefix[-1]])
                grown[parent, prefix[-1]] = -np.inf
        kept_blank = total + row[blank]
        scores = np.concatenate([np.logaddexp(kept_blank, kept_label), grown.ravel()])
        best = best_indices(scores, beams)
        kept, new = best[best < len(prefixes)], best[best >= len(prefixes)] - len(prefixes)
        with_blank = np.append(kept_blank[kept], np.full(len(new), -np.inf))
        with_label = np.append(kept_label[kept], grown.ravel()[new])
        prefixes = [prefixes[i] for i in kept] + [
            (*prefixes[i // len(row)], i % len(row)) for i in new.tolist()
        ]
    scores = np.logaddexp(with_blank, with_label)
    return [(float(scores[i]), prefixes[i]) for i in best_indices(scores, beams)]
