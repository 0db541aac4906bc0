"""Attention by several heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa import ops
from brasa._backend import cast, is_narrow, namespace
from brasa._shape import thirds
from brasa.nn import functional as F
from brasa.nn import init
from brasa.nn._arguments import check_input, check_positive, new_parameter
from brasa.nn._state import as_array
from brasa.nn.linear import Linear
from brasa.nn.module import Module
from brasa.ops._check import wide
from brasa.tensor import Tensor, cat

__all__ = ["MultiheadAttention"]


# Masks ------------------------------------------------------------------------------------------------


def _mask_array(name: str, mask: Any, like: Any, *shapes: tuple[int, ...]) -> Any:
    """`mask`, True or -inf where there is no attention, of bool or what `like` is computed in, and of these shapes."""
    mask = as_array(mask)
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(mask.shape)}")
    if mask.dtype.kind not in "bf":
        raise TypeError(f"{name}: expected bool or floating numbers, got {mask.dtype}")
    return mask if mask.dtype.kind == "b" else mask.astype(wide(like.dtype), copy=False)


def _joined(first: Any, second: Any, like: Any) -> Any:
    """What two masks hide together, for `ops.attention`: True where there is attention, or numbers to add."""
    if first is None or second is None:
        mask = second if first is None else first
        return mask if mask is None or mask.dtype.kind == "f" else ~mask
    if first.dtype.kind == second.dtype.kind == "b":
        return ~(first | second)
    return _added(first, like) + _added(second, like)


def _added(mask: Any, like: Any) -> Any:
    """A mask as numbers to add; bool: True where there is no attention."""
    if mask.dtype.kind == "f":
        return mask
    xp = namespace(mask)
    dtype = wide(like.dtype)
    return xp.where(mask, xp.asarray(-np.inf, dtype), xp.asarray(0, dtype))


# Multi-head -------------------------------------------------------------------------------------------


class MultiheadAttention(Module):
    """Attention by ``H`` heads side by side (Vaswani et al., 2017).

    ``concat(head_1, ..., head_H) @ out_proj.weight.T + out_proj.bias`` with head_i = softmax(q_i k_i.T /
    sqrt(D)) v_i, where q_i, k_i and v_i are the i-th D = E / H features of the projected inputs.

    Parameters
    ----------
    embed_dim : int
        ``E``, the features of queries and results.
    num_heads : int
        ``H``, which divides E.
    dropout : float, default: 0.0
        Probability of dropping a weight, in training.
    bias : bool, default: True
        Whether the projections add biases.
    add_bias_kv : bool, default: False
        Whether a trained key and value stand behind those of every sample.
    add_zero_attn : bool, default: False
        Whether a key and a value of zeros do.
    kdim, vdim : int, optional
        Features of keys and values, E unless given.
    batch_first : bool, default: False
        Whether inputs are (N, L, E) and not (L, N, E).
    device, dtype
        As for ``Linear``.

    Attributes
    ----------
    in_proj_weight : Parameter or None
        (3 E, E), the projections of queries, keys and values; with `kdim` or `vdim` there are ``q_proj_weight``
        (E, E), ``k_proj_weight`` (E, kdim) and ``v_proj_weight`` (E, vdim) instead. Initially Xavier uniform.
    in_proj_bias : Parameter or None
        (3 E,), initially 0.
    out_proj : Linear
        Its bias is initially 0.
    bias_k, bias_v : Parameter or None
        (1, 1, E), initially Xavier normal.

    Notes
    -----
    Query (L, N, E), key (S, N, kdim), value (S, N, vdim), result (L, N, E), or without N; see `batch_first`.
    A query that may attend to nothing gets a result of ``out_proj.bias``; torch gives NaN with weights.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> x = np.zeros((2, 5, 8), np.float32)
    >>> y, weights = nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x)
    >>> y.shape, weights.shape
    ((2, 5, 8), (2, 5, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim = check_positive("embed_dim", embed_dim)
        self.num_heads = check_positive("num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: expected a multiple of num_heads {num_heads}, got {embed_dim}")
        self.head_dim = embed_dim // num_heads
        self.dropout = F.check_probability(dropout)
        self.kdim = embed_dim if kdim is None else check_positive("kdim", kdim)
        self.vdim = embed_dim if vdim is None else check_positive("vdim", vdim)
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn
        same = self.kdim == self.vdim == embed_dim
        self.in_proj_weight = new_parameter((3 * embed_dim, embed_dim), dtype) if same else None
        self.q_proj_weight = None if same else new_parameter((embed_dim, embed_dim), dtype)
        self.k_proj_weight = None if same else new_parameter((embed_dim, self.kdim), dtype)
        self.v_proj_weight = None if same else new_parameter((embed_dim, self.vdim), dtype)
        self.in_proj_bias = new_parameter((3 * embed_dim,), dtype) if bias else None
        self.bias_k = new_parameter((1, 1, embed_dim), dtype) if add_bias_kv else None
        self.bias_v = new_parameter((1, 1, embed_dim), dtype) if add_bias_kv else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype)
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def reset_parameters(self) -> None:
        """Draw the weights anew, but that of ``out_proj``; its bias is set to 0."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for vector in (self.bias_k, self.bias_v):
            if vector is not None:
                init.xavier_normal_(vector)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Attend.

        Parameters
        ----------
        query, key, value : array or Tensor
            See the class.
        key_padding_mask : array, optional
            (N, S), or (S,): True for keys to leave out, or numbers to add to their scores.
        need_weights : bool, default: True
            Whether weights are returned, which are then in memory; without them attention is fused.
        attn_mask : array, optional
            (L, S) or (N H, L, S): True where a query may not attend to a key, or numbers to add.
        average_attn_weights : bool, default: True
            Whether weights are averaged over the heads.
        is_causal : bool, default: False
            Whether query i attends to the keys up to i only; `attn_mask`, which in torch has to say so, is then
            not read.

        Returns
        -------
        result : Tensor
            The shape of `query`.
        weights : Tensor or None
            (N, L, S), or (N, H, L, S) when they are not averaged; without N as the inputs are.
        """
        self._check(query, key, value)
        batched = len(query.shape) == 3
        q, k, v = self._project(query, key, value)
        if self.bias_k is not None:
            k, v = self._append(k, self.bias_k, batched), self._append(v, self.bias_v, batched)
        if self.add_zero_attn:
            zero = Tensor(namespace(k.data).zeros((1, 1, self.embed_dim), k.dtype))
            k, v = self._append(k, zero, batched), self._append(v, zero, batched)
        q, k, v = (self._heads(x, batched) for x in (q, k, v))
        mask = self._mask(q, k, key_padding_mask, None if is_causal else attn_mask, batched)
        y, weights = (self._weighted if need_weights else self._fused)(q, k, v, mask, is_causal)
        y = self.out_proj(self._joined_heads(y, batched))
        if weights is None:
            return y, None
        weights = weights.mean(1) if average_attn_weights else weights
        return y, weights if batched else weights[0]

    def _check(self, query: Any, key: Any, value: Any) -> None:
        check_input("query", query, self.out_proj.weight)
        rank = query.ndim
        for name, x, features in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            check_input(name, x, self.out_proj.weight)
            if len(x.shape) != rank or rank not in (2, 3) or x.shape[-1] != features:
                shape = f"(..., {features}) of 2 or 3 dimensions, as many as query has,"
                raise ValueError(f"{name}: expected shape {shape} got {tuple(x.shape)}")
        batch = self._axis(0) if rank == 3 else None
        for name, x in (("key", key), ("value", value)):
            if batch is not None and x.shape[batch] != query.shape[batch]:
                raise ValueError(
                    f"{name}: expected {query.shape[batch]} samples as query has, got {tuple(x.shape)}"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value: expected {tuple(key.shape[:-1])} positions as key has, got {tuple(value.shape)}"
            )

    def _axis(self, of_batch_first: int) -> int:
        """Axis 0 or 1 of (N, L, E) in a batched input."""
        return of_batch_first if self.batch_first else 1 - of_batch_first

    def _project(self, query: Any, key: Any, value: Any) -> Any:
        """(..., E) each; one product where all three inputs are one, two where keys are the values."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            return thirds(F.linear(query, weight, bias), axis=-1)
        biases = (None,) * 3 if bias is None else thirds(bias, axis=0)
        if weight is not None:
            weights = thirds(weight, axis=0)
        else:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _append(self, x: Any, position: Any, batched: bool) -> Any:
        """`x` with one more position, the same for every sample."""
        if not batched:
            return cat([x, position.reshape(1, -1)], axis=0)
        axis = self._axis(1)
        shape = list(x.shape)
        shape[axis] = 1
        return cat([x, position.broadcast_to(tuple(shape))], axis=axis)

    def _heads(self, x: Any, batched: bool) -> Any:
        """(N, H, positions, D), a view."""
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        if not batched:
            return x.transpose(1, 0, 2).unsqueeze(0)
        return x.transpose(0, 2, 1, 3) if self.batch_first else x.transpose(1, 2, 0, 3)

    def _joined_heads(self, y: Any, batched: bool) -> Any:
        """(N, L, E), (L, N, E) or (L, E) from (N, H, L, D)."""
        y = y.transpose(0, 2, 1, 3) if self.batch_first or not batched else y.transpose(2, 0, 1, 3)
        y = y.reshape(*y.shape[:2], self.embed_dim)
        return y if batched else y[0]

    def _mask(self, q: Any, k: Any, padding: Any, mask: Any, batched: bool) -> Any:
        """Both masks as one for `ops.attention`, with positions that were appended visible."""
        (n, heads, length, _), positions = q.shape, k.shape[2]
        given = positions - (self.bias_k is not None) - self.add_zero_attn
        if padding is not None:
            padding = _mask_array("key_padding_mask", padding, q, (n, given) if batched else (given,))
            padding = self._widened(padding, positions).reshape(n, 1, 1, positions)
        if mask is not None:
            mask = _mask_array("attn_mask", mask, q, (length, given), (n * heads, length, given))
            mask = self._widened(mask, positions)
            mask = mask.reshape(n, heads, length, positions) if mask.ndim == 3 else mask
        return _joined(padding, mask, q)

    @staticmethod
    def _widened(mask: Any, positions: int) -> Any:
        more = positions - mask.shape[-1]
        if not more:
            return mask
        xp = namespace(mask)
        return xp.concatenate([mask, xp.zeros((*mask.shape[:-1], more), mask.dtype)], axis=-1)

    def _fused(self, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> tuple[Any, None]:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal), None

    def _weighted(self, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> tuple[Any, Any]:
        """The same with the weights in memory."""
        weights = ops.matmul(q * self.head_dim**-0.5, k, transpose_b=True)
        added = mask if mask is None or mask.dtype.kind == "f" else _added(~mask, q)
        if causal:
            later = _added(~namespace(q.data).tri(q.shape[2], k.shape[2], dtype=bool), q)
            added = later if added is None else added + later
        if added is None:
            weights = ops.softmax(weights)
        else:
            sees = (added > -np.inf).any(axis=-1, keepdims=True)  # a row that sees nothing would be NaN
            added = namespace(added).where(sees, added, added.dtype.type(0))
            if is_narrow(weights.dtype):
                added = cast(added, weights.dtype)
            weights = ops.softmax(weights + added) * sees.astype(added.dtype)
        weights = F.dropout(weights, self.dropout, self.training)
        return ops.matmul(weights, v), weights

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, bias={self.in_proj_bias is not None}, "
            f"batch_first={self.batch_first}"
        )
