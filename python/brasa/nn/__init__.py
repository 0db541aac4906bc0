"""Layers, losses and containers, with the names, arguments and layouts of ``torch.nn``."""

from __future__ import annotations

from brasa.nn import functional, init, utils
from brasa.nn.activation import (
    CELU,
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from brasa.nn.additive_attention import AdditiveAttention
from brasa.nn.attention import MultiheadAttention
from brasa.nn.container import ModuleDict, ModuleList, ParameterList, Sequential
from brasa.nn.conv import Conv2d
from brasa.nn.dropout import Dropout
from brasa.nn.embedding import Embedding
from brasa.nn.flatten import Flatten, Unflatten
from brasa.nn.linear import Identity, Linear
from brasa.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    CTCLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from brasa.nn.module import Module, Parameter
from brasa.nn.norm import BatchNorm1d, BatchNorm2d, LayerNorm
from brasa.nn.pool import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    MaxPool2d,
)
from brasa.nn.position import PositionalEncoding
from brasa.nn.rnn import GRU, LSTM, RNN
from brasa.nn.rnn_cell import GRUCell, LSTMCell, RNNCell
from brasa.nn.shuffle import PixelShuffle, PixelUnshuffle
from brasa.nn.softmax import LogSoftmax, Softmax
from brasa.nn.transformer import Transformer, TransformerDecoder, TransformerEncoder
from brasa.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AdditiveAttention",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "CTCLoss",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRUCell",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "HuberLoss",
    "Identity",
    "L1Loss",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Mish",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "NLLLoss",
    "Parameter",
    "ParameterList",
    "PixelShuffle",
    "PixelUnshuffle",
    "PositionalEncoding",
    "RNNCell",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "Unflatten",
    "functional",
    "init",
    "utils",
]
