"""The Transformer (Vaswani et al., 2017): stacks of its layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from brasa._backend import namespace
from brasa.nn import init
from brasa.nn._arguments import check_positive
from brasa.nn._state import as_array
from brasa.nn.container import ModuleList
from brasa.nn.module import Module
from brasa.nn.norm import LayerNorm
from brasa.nn.transformer_layers import Activation, TransformerDecoderLayer, TransformerEncoderLayer
from brasa.tensor import Tensor

__all__ = ["Transformer", "TransformerDecoder", "TransformerEncoder"]


def _is_causal(mask: Any, hint: bool | None) -> bool:
    """Whether `mask` hides exactly what follows a position, where the caller leaves that open."""
    if hint is not None or mask is None:
        return bool(hint)
    mask = as_array(mask)
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        return False
    xp = namespace(mask)
    later = ~xp.tri(*mask.shape, dtype=bool)
    expected = later if mask.dtype.kind == "b" else xp.where(later, -np.inf, 0.0)
    return bool((mask == expected).all())


class TransformerEncoder(Module):
    """A stack of encoder layers.

    Parameters
    ----------
    encoder_layer : Module
        A ``TransformerEncoderLayer``, or what is called like one; every layer starts as a copy of it.
    num_layers : int
        How many.
    norm : Module, optional
        Applied to the result.
    enable_nested_tensor, mask_check : bool
        Taken for the sake of torch's signature and ignored.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), num_layers=2)
    >>> encoder(np.zeros((5, 3, 8), np.float32)).shape
    (5, 3, 8)
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        count = check_positive("num_layers", num_layers)
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(count)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Any:
        """Encode ``src``. A causal mask is recognised where ``is_causal`` is None, and costs less."""
        is_causal = _is_causal(mask, is_causal)
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, is_causal)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Module):
    """A stack of decoder layers.

    Parameters
    ----------
    decoder_layer : Module
        A ``TransformerDecoderLayer``, or what is called like one; every layer starts as a copy of it.
    num_layers : int
        How many.
    norm : Module, optional
        Applied to the result.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), num_layers=2)
    >>> decoder(np.zeros((4, 3, 8), np.float32), np.zeros((5, 3, 8), np.float32)).shape
    (4, 3, 8)
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        count = check_positive("num_layers", num_layers)
        self.layers = ModuleList([copy.deepcopy(decoder_layer) for _ in range(count)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Any:
        """Decode ``tgt`` beside ``memory``. A causal ``tgt_mask`` is recognised, and costs less."""
        causal = _is_causal(tgt_mask, tgt_is_causal)
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        for layer in self.layers:
            tgt = layer(tgt, memory, *masks, causal, memory_is_causal)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """Encoder and decoder, of layers with a layer norm behind the last.

    Parameters
    ----------
    d_model : int, default: 512
        ``E``, features of inputs and output.
    nhead : int, default: 8
        Heads of every attention.
    num_encoder_layers, num_decoder_layers : int, default: 6
        How many layers.
    dim_feedforward, dropout, activation
        As for ``TransformerEncoderLayer``.
    custom_encoder, custom_decoder : Module, optional
        In place of the stacks.
    layer_norm_eps, batch_first, norm_first, bias
        As for ``TransformerEncoderLayer``.
    device, dtype
        As for ``Linear``.

    Notes
    -----
    Source (S, N, E), target and result (T, N, E); see `batch_first`. Matrices are initially Xavier uniform.
    Embeddings, positions and the last product are the caller's.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> model = nn.Transformer(8, 2, 1, 1, 16)
    >>> model(np.zeros((5, 3, 8), np.float32), np.zeros((4, 3, 8), np.float32), tgt_is_causal=True).shape
    (4, 3, 8)
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes: Any = d_model, nhead, dim_feedforward, dropout, activation
        sizes += layer_norm_eps, batch_first, norm_first, bias, None, dtype

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

        if custom_encoder is None:
            custom_encoder = TransformerEncoder(TransformerEncoderLayer(*sizes), num_encoder_layers, norm())
        if custom_decoder is None:
            custom_decoder = TransformerDecoder(TransformerDecoderLayer(*sizes), num_decoder_layers, norm())
        self.encoder, self.decoder = custom_encoder, custom_decoder
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def reset_parameters(self) -> None:
        """Draw all matrices anew."""
        for parameter in self.parameters():
            if len(parameter.shape) > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self,
        src: Any,
        tgt: Any,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Any:
        """Encode ``src``, and decode ``tgt`` beside the result; masks are those of ``MultiheadAttention``."""
        if len(src.shape) != len(tgt.shape) or src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            shapes = f"{tuple(src.shape)} and {tuple(tgt.shape)}"
            raise ValueError(
                f"src, tgt: expected {self.d_model} features and as many dimensions, got {shapes}"
            )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        padding = tgt_key_padding_mask, memory_key_padding_mask
        return self.decoder(tgt, memory, tgt_mask, memory_mask, *padding, tgt_is_causal, memory_is_causal)

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: str | None = None, dtype: Any = None) -> Any:
        """Return the causal mask (sz, sz): 0 up to the diagonal, -inf behind it.

        Examples
        --------
        >>> from brasa import nn
        >>> nn.Transformer.generate_square_subsequent_mask(2).numpy()
        array([[  0., -inf],
               [  0.,   0.]], dtype=float32)
        """
        later = ~np.tri(check_positive("sz", sz), dtype=bool)
        mask = Tensor(np.where(later, -np.inf, 0.0).astype(np.float32 if dtype is None else dtype))
        return mask if device is None else mask.to(device)
