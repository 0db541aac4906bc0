"""Sequences of different lengths in one array, under the names of ``torch.nn.utils.rnn``.

There is no packed form: recurrent layers take a padded array and ``lengths``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brasa._backend import as_array, beside, namespace, to_numpy
from brasa.ops import _check
from brasa.tensor import Tensor, cat, stack

__all__ = ["pad_sequence", "sequence_mask", "unpad_sequence"]


_MOST = 2**31 - 1


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _lengths(lengths: Any, most: int = _MOST) -> Any:
    """Integers, int32 or int64."""
    return _check.indices("lengths", _array(lengths), most + 1)


def pad_sequence(
    sequences: Sequence[Any],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Any:
    """Stack sequences (T_i, ...), filled up to the longest.

    Parameters
    ----------
    sequences : sequence of arrays or Tensors
        One or more, equal in dtype and in all extents but the first.
    batch_first : bool, default: False
        Whether the result is (B, T, ...) and not (T, B, ...).
    padding_value : float, default: 0.0
        What they are filled up with.
    padding_side : "right" or "left", default: "right"
        Where.

    Returns
    -------
    array or Tensor
        A Tensor where one of the sequences is.

    Raises
    ------
    ValueError
        If there is none, or their shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa.nn.utils.rnn import pad_sequence
    >>> pad_sequence([np.array([1, 2]), np.array([3])], batch_first=True)
    array([[1, 2],
           [3, 0]])
    """
    if len(sequences) == 0:
        raise ValueError("sequences: at least one is needed")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side: expected 'right' or 'left', got {padding_side!r}")
    sequences = [s if isinstance(s, Tensor) else as_array(s, "sequences") for s in sequences]
    longest = max(len(s) for s in sequences)
    rows = []
    for sequence in sequences:
        like = _array(sequence)
        shape = (longest - len(like), *like.shape[1:])
        filling = namespace(like).full(shape, padding_value, like.dtype)
        parts = [sequence, filling] if padding_side == "right" else [filling, sequence]
        rows.append(cat(parts) if len(filling) else sequence)
    return stack(rows, axis=0 if batch_first else 1)


def unpad_sequence(padded: Any, lengths: Any, batch_first: bool = False) -> list[Any]:
    """Cut the sequences out of a padded array again: the other way round of ``pad_sequence``.

    Parameters
    ----------
    padded : array or Tensor
        (T, B, ...), or (B, T, ...) with ``batch_first``.
    lengths : array or sequence of int
        (B,), in [0, T]: the steps of each sequence.
    batch_first : bool, default: False
        Which of the first two dimensions is the batch.

    Returns
    -------
    list of array or Tensor
        (T_i, ...) each.

    Raises
    ------
    ValueError
        If there is not one length for each sequence, or one is out of range.
    TypeError
        If they are no integers.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa.nn.utils.rnn import unpad_sequence
    >>> [part.tolist() for part in unpad_sequence(np.array([[1, 2], [3, 0]]), [2, 1], batch_first=True)]
    [[1, 2], [3]]
    """
    longest, batch = padded.shape[batch_first], padded.shape[not batch_first]
    steps = to_numpy(_lengths(lengths))
    if steps.shape != (batch,):
        raise ValueError(f"lengths: expected one for each of {batch} sequences, got shape {steps.shape}")
    _check.up_to("lengths", steps, longest, f"the steps of padded, of shape {padded.shape}")
    if batch_first:
        return [padded[i, :n] for i, n in enumerate(steps.tolist())]
    return [padded[:n, i] for i, n in enumerate(steps.tolist())]


def sequence_mask(lengths: Any, steps: int | None = None) -> Any:
    """Which steps belong to a sequence: ``mask[b, t] = t < lengths[b]``, for losses over padded arrays.

    Parameters
    ----------
    lengths : array or sequence of int
        (B,), in [0, T].
    steps : int, optional
        ``T``; the largest length unless given.

    Returns
    -------
    array of bool
        (B, T), beside ``lengths``.

    Raises
    ------
    ValueError
        If a length is out of range; of an array on CUDA with ``BRASA_CHECK=1`` only, which waits for the device.
    TypeError
        If they are no integers.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa.nn.utils.rnn import sequence_mask
    >>> sequence_mask([2, 0, 1]).astype(int)
    array([[1, 1],
           [0, 0],
           [1, 0]])
    """
    if steps is not None:
        _check.integer("steps", steps, minimum=0)
    lengths = _lengths(lengths, _MOST if steps is None else steps)
    if lengths.ndim != 1:
        raise ValueError(f"lengths: expected shape (B,), got {lengths.shape}")
    if steps is None:
        steps = int(to_numpy(lengths).max(initial=0))
    if type(lengths) is np.ndarray:
        _check.up_to("lengths", lengths, steps, "the steps of the mask")
    return beside(np.arange(steps), lengths) < lengths[:, None]
