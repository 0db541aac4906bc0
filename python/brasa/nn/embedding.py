"""Look-up tables."""

from __future__ import annotations

from typing import Any

from brasa import ops
from brasa.nn import init
from brasa.nn._arguments import check_positive, new_parameter
from brasa.nn.module import Module, Parameter

__all__ = ["Embedding"]


class Embedding(Module):
    """Rows of a trainable table, picked by index: ``y[...] = weight[indices[...]]``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        ``V`` and ``D``: rows of the table and their length.
    padding_idx : int, optional
        A row that starts as zeros and gets no gradient; negative counts from the end.
    device, dtype
        As for ``Linear``.

    Attributes
    ----------
    weight : Parameter
        (V, D), initially standard normal.

    Notes
    -----
    Input: integers in [0, V) of any shape (...), output (..., D).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.Embedding(100, 8)(np.array([[1, 5, 99]])).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = check_positive("num_embeddings", num_embeddings)
        self.embedding_dim = check_positive("embedding_dim", embedding_dim)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"padding_idx: expected an index into {num_embeddings} rows, got {padding_idx}"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.weight = new_parameter((num_embeddings, embedding_dim), dtype)
        self.reset_parameters()
        if device is not None:
            self.to(device)

    @classmethod
    def from_pretrained(
        cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None
    ) -> Embedding:
        """Make an embedding of given rows (V, D), which it shares and, unless ``freeze``, trains."""
        weight = Parameter(embeddings, requires_grad=not freeze)
        if len(weight.shape) != 2:
            raise ValueError(f"embeddings: expected shape (V, D), got {weight.shape}")
        layer = cls(1, weight.shape[1], dtype=weight.dtype)
        layer.num_embeddings = weight.shape[0]
        layer.padding_idx = None if padding_idx is None else range(weight.shape[0])[padding_idx]
        layer.weight = weight
        return layer

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            init.zeros_(self.weight.detach()[self.padding_idx])

    def forward(self, indices: Any) -> Any:
        """Return the rows at ``indices`` (...)."""
        return ops.embedding(indices, self.weight, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"
