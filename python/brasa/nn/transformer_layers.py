"""The layers of the Transformer (Vaswani et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brasa import ops
from brasa.nn import functional as F
from brasa.nn.attention import MultiheadAttention
from brasa.nn.dropout import Dropout
from brasa.nn.linear import Linear
from brasa.nn.module import Module
from brasa.nn.norm import LayerNorm

__all__ = ["TransformerDecoderLayer", "TransformerEncoderLayer"]

Activation = str | Callable[[Any], Any]


def _activation(activation: Activation) -> Activation:
    """A callable, or a name that ``Linear`` fuses."""
    if callable(activation):
        fused: dict[Any, str] = {F.relu: "relu", F.gelu: "gelu", ops.gelu: "gelu"}
        return fused.get(activation, activation)
    if activation not in ops.ACTIVATIONS:
        raise ValueError(
            f"activation: expected a callable or one of {', '.join(ops.ACTIVATIONS)}, got {activation!r}"
        )
    return activation


class _Layer(Module):
    """What the layers share: a residual with its norm around each attention and around the two products behind them.

    A subclass names its attentions.
    """

    _attentions: tuple[str, ...]
    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.activation = _activation(activation)
        for name in self._attentions:
            attention = MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
            )
            setattr(self, name, attention)
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype)
        parts = range(1, len(self._attentions) + 2)
        for i in parts:
            setattr(self, f"norm{i}", LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype))
        for i in parts:
            setattr(self, f"dropout{i}", Dropout(dropout))
        if device is not None:
            self.to(device)

    def _around(self, x: Any, norm: LayerNorm, block: Callable[[Any], Any]) -> Any:
        """``x + block(x)``, normalised before or after."""
        return x + block(norm(x)) if self.norm_first else norm(x + block(x))

    def _feed_forward(self, x: Any, last: Dropout) -> Any:
        if isinstance(self.activation, str):
            hidden = self.linear1.fused(x, self.activation)
        else:
            hidden = self.activation(self.linear1(x))
        return last(self.linear2(self.dropout(hidden)))


class TransformerEncoderLayer(_Layer):
    """Self-attention and two fully connected layers, each with a residual and a layer norm.

    Parameters
    ----------
    d_model : int
        ``E``, features of input and output.
    nhead : int
        Heads of the attention.
    dim_feedforward : int, default: 2048
        Features between the two fully connected layers.
    dropout : float, default: 0.1
        Of attention's weights and of what each part adds, in training.
    activation : str or callable, default: "relu"
        One of ``ops.ACTIVATIONS``, which is fused, or a function of a Tensor.
    layer_norm_eps : float, default: 1e-5
        Added to the variance.
    batch_first : bool, default: False
        Whether inputs are (N, L, E) and not (L, N, E).
    norm_first : bool, default: False
        Whether the norms stand before attention and the fully connected layers, not after the sums.
    bias : bool, default: True
        Whether products and norms add biases.
    device, dtype
        As for ``Linear``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.TransformerEncoderLayer(8, 2, 16)(np.zeros((5, 3, 8), np.float32)).shape
    (5, 3, 8)
    """

    _attentions = ("self_attn",)
    self_attn: MultiheadAttention

    def forward(
        self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
    ) -> Any:
        """Encode ``src``; masks are those of ``MultiheadAttention``."""

        def attend(x: Any) -> Any:
            y, _ = self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal)
            return self.dropout1(y)

        x = self._around(src, self.norm1, attend)
        return self._around(x, self.norm2, lambda x: self._feed_forward(x, self.dropout2))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to an encoder's results, and two fully connected layers.

    Parameters
    ----------
    d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias
        As for ``TransformerEncoderLayer``.
    device, dtype
        As for ``Linear``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> target, memory = np.zeros((4, 3, 8), np.float32), np.zeros((5, 3, 8), np.float32)
    >>> nn.TransformerDecoderLayer(8, 2, 16)(target, memory).shape
    (4, 3, 8)
    """

    _attentions = ("self_attn", "multihead_attn")
    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    norm3: LayerNorm
    dropout3: Dropout

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Any:
        """Decode ``tgt`` beside ``memory``; masks are those of ``MultiheadAttention``."""

        def attend(x: Any) -> Any:
            y, _ = self.self_attn(x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal)
            return self.dropout1(y)

        def look(x: Any) -> Any:
            masks = memory_key_padding_mask, False, memory_mask
            y, _ = self.multihead_attn(x, memory, memory, *masks, is_causal=memory_is_causal)
            return self.dropout2(y)

        x = self._around(tgt, self.norm1, attend)
        x = self._around(x, self.norm2, look)
        return self._around(x, self.norm3, lambda x: self._feed_forward(x, self.dropout3))
