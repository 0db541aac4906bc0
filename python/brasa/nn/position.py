"""Encodings of positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from brasa.nn._arguments import check_positive
from brasa.nn.dropout import Dropout
from brasa.nn.module import Module
from brasa.tensor import Tensor

__all__ = ["PositionalEncoding"]


class PositionalEncoding(Module):
    """Add sines and cosines of the position, and drop elements of the sum in training.

    ``pe[t, 2 i] = sin(t / 10000 ** (2 i / E))`` and ``pe[t, 2 i + 1]`` the cosine of the same.

    Parameters
    ----------
    d_model : int
        ``E``, the features of the input.
    dropout : float, default: 0.1
        Probability of dropping an element of the sum, in training.
    max_len : int, default: 5000
        The most positions of an input.
    batch_first : bool, default: False
        Whether inputs are (N, L, E) and not (L, N, E).
    device, dtype
        As for ``Linear``.

    Notes
    -----
    Input and output (L, N, E), (N, L, E) or (L, E). The table is a buffer that state dicts leave out.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.PositionalEncoding(4, dropout=0.0)(np.zeros((2, 4), np.float32)).numpy().round(3)
    array([[0.   , 1.   , 0.   , 1.   ],
           [0.841, 0.54 , 0.01 , 1.   ]], dtype=float32)
    """

    pe: Tensor

    def __init__(
        self,
        d_model: int,
        dropout: float = 0.1,
        max_len: int = 5000,
        batch_first: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.d_model = check_positive("d_model", d_model)
        self.batch_first = batch_first
        self.dropout = Dropout(dropout)
        rates = 10000.0 ** (-np.arange(0, d_model, 2) / d_model)
        angles = np.arange(check_positive("max_len", max_len))[:, None] * rates
        table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(max_len, -1)[:, :d_model]
        self.register_buffer("pe", table.astype(np.float32 if dtype is None else dtype), persistent=False)
        if device is not None:
            self.to(device)

    def forward(self, x: Any) -> Any:
        """Add the encoding of each position to ``x``."""
        rank = len(x.shape)
        if rank not in (2, 3) or x.shape[-1] != self.d_model:
            raise ValueError(
                f"x: expected 2 or 3 dimensions, the last {self.d_model}, got shape {tuple(x.shape)}"
            )
        length = x.shape[1 if rank == 3 and self.batch_first else 0]
        if length > len(self.pe):
            raise ValueError(
                f"x: expected at most max_len {len(self.pe)} positions, got shape {tuple(x.shape)}"
            )
        table = self.pe[:length]
        return self.dropout(x + (table.unsqueeze(1) if rank == 3 and not self.batch_first else table))

    def extra_repr(self) -> str:
        return f"{self.d_model}, max_len={len(self.pe)}, batch_first={self.batch_first}"
