"""Attention by a small network, as recurrent encoders and decoders use it."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._backend import namespace
from brasa.nn._arguments import check_input, check_positive
from brasa.nn._state import as_array
from brasa.nn.linear import Linear
from brasa.nn.module import Module
from brasa.tensor import where

__all__ = ["AdditiveAttention"]


class AdditiveAttention(Module):
    """Attention whose scores a small network gives (Bahdanau, Cho and Bengio, 2015).

    ``score(q, k) = v . tanh(W q + U k)``, ``weights = softmax(scores)`` over the keys, ``context = weights @
    values``: what an encoder and decoder of recurrent layers are joined by. The weights, row by row, are the
    alignment that is plotted.

    Parameters
    ----------
    query_dim, key_dim : int
        ``Q`` and ``K``: features of queries (decoder states) and keys (encoder states).
    hidden_dim : int
        ``A``, the width of the network.
    device, dtype
        As for ``Linear``.

    Attributes
    ----------
    query_proj, key_proj, score : Linear
        W (A, Q), U (A, K) and v (1, A), without biases.

    Notes
    -----
    Query (N, Q), key (N, S, K), value (N, S, V), context (N, V), weights (N, S); or L queries of each sample:
    query (N, L, Q), context (N, L, V), weights (N, L, S).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> states = np.zeros((2, 4, 6), np.float32)
    >>> context, weights = nn.AdditiveAttention(5, 6, 8)(np.zeros((2, 5), np.float32), states, lengths=[4, 2])
    >>> context.shape
    (2, 6)
    >>> weights.numpy()
    array([[0.25, 0.25, 0.25, 0.25],
           [0.5 , 0.5 , 0.  , 0.  ]], dtype=float32)
    """

    def __init__(
        self, query_dim: int, key_dim: int, hidden_dim: int, device: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.query_dim = check_positive("query_dim", query_dim)
        self.key_dim = check_positive("key_dim", key_dim)
        self.hidden_dim = check_positive("hidden_dim", hidden_dim)
        self.query_proj = Linear(query_dim, hidden_dim, bias=False, dtype=dtype)
        self.key_proj = Linear(key_dim, hidden_dim, bias=False, dtype=dtype)
        self.score = Linear(hidden_dim, 1, bias=False, dtype=dtype)
        if device is not None:
            self.to(device)

    def forward(
        self, query: Any, key: Any, value: Any = None, lengths: Any = None, projected: Any = None
    ) -> tuple[Any, Any]:
        """Attend.

        Parameters
        ----------
        query, key : array or Tensor
            See the class.
        value : array or Tensor, optional
            The keys unless given.
        lengths : array of int, optional
            (N,), in [1, S]: only so many first keys of a sample count.
        projected : Tensor, optional
            ``key_proj(key)``, for decoders that attend to the same keys step by step.

        Returns
        -------
        context, weights : Tensor
            See the class.
        """
        self._check(query, key, value)
        value = key if value is None else value
        keys = self.key_proj(key) if projected is None else projected
        queries = self.query_proj(query)
        hidden = ops.tanh(queries.unsqueeze(-2) + (keys if len(query.shape) == 2 else keys.unsqueeze(1)))
        scores = self.score(hidden).squeeze(-1)
        if lengths is not None:
            scores = where(self._beyond(lengths, key, len(query.shape)), -np.inf, scores)
        weights = ops.softmax(scores)
        rows = weights.unsqueeze(1) if len(query.shape) == 2 else weights
        context = ops.matmul(rows, value)
        return (context.squeeze(1) if len(query.shape) == 2 else context), weights

    def _check(self, query: Any, key: Any, value: Any) -> None:
        for name, x in (("query", query), ("key", key), ("value", key if value is None else value)):
            check_input(name, x, self.score.weight)
        if len(query.shape) not in (2, 3) or query.shape[-1] != self.query_dim:
            q = self.query_dim
            raise ValueError(f"query: expected shape (N, {q}) or (N, L, {q}), got {tuple(query.shape)}")
        if len(key.shape) != 3 or key.shape[-1] != self.key_dim or key.shape[0] != query.shape[0]:
            wanted = f"({query.shape[0]}, S, {self.key_dim})"
            raise ValueError(f"key: expected shape {wanted}, got {tuple(key.shape)}")
        if value is not None and (len(value.shape) != 3 or value.shape[:2] != key.shape[:2]):
            wanted = f"({key.shape[0]}, {key.shape[1]}, V)"
            raise ValueError(f"value: expected shape {wanted}, got {tuple(value.shape)}")

    @staticmethod
    def _beyond(lengths: Any, key: Any, rank: int) -> Any:
        """True for the keys that do not count, (N, S) or (N, 1, S)."""
        given, (n, positions, _) = np.asarray(as_array(lengths)), key.shape
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise ValueError(f"lengths: expected {n} integers, got {given.dtype} of shape {given.shape}")
        wrong = np.flatnonzero((given < 1) | (given > positions))
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(f"lengths: expected values in [1, {positions}], got {given[i]} at position {i}")
        mask = np.arange(positions) >= given[:, None]
        mask = mask if rank == 2 else mask[:, None]
        return namespace(as_array(key)).asarray(mask)

    def extra_repr(self) -> str:
        return f"{self.query_dim}, {self.key_dim}, {self.hidden_dim}"
