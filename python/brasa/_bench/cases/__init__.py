"""Builders of cases: the operator, the work it must do, and the same by NumPy, PyTorch and JAX.

A builder computes the name and the work from shapes; arrays and the peers' calls come when the case is measured.
`against` names the peers. PyTorch is measured at its best: on as many threads, in both of its memory formats, with
its fused optimisers. JAX's functions are compiled; it uses all cores.
"""

from __future__ import annotations

from brasa._bench.cases.activation import activation
from brasa._bench.cases.attention import attention
from brasa._bench.cases.conv import conv1d, conv2d, conv_transpose2d
from brasa._bench.cases.dropout import dropout
from brasa._bench.cases.embedding import embedding
from brasa._bench.cases.loss import ctc, loss
from brasa._bench.cases.matmul import batched_matmul, matmul, native_matmul, packed_matmul
from brasa._bench.cases.norm import batch_norm, layer_norm, softmax
from brasa._bench.cases.optim import model_sizes, optimizer_step
from brasa._bench.cases.pool import pool
from brasa._bench.cases.rnn import recurrent
from brasa._bench.cases.shuffle import pixel_shuffle
from brasa._bench.cases.step import inference, training_step

__all__ = [
    "activation",
    "attention",
    "batch_norm",
    "batched_matmul",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "ctc",
    "dropout",
    "embedding",
    "inference",
    "layer_norm",
    "loss",
    "matmul",
    "model_sizes",
    "native_matmul",
    "optimizer_step",
    "packed_matmul",
    "pixel_shuffle",
    "pool",
    "recurrent",
    "softmax",
    "training_step",
]
