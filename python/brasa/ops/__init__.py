"""Operators: functions of arrays, and of Tensors where gradients are wanted.

One module per family of kernels. A function checks what its arguments mean, allocates the result and calls
the kernel of the device that the arrays are on; its backward stands beside it.
"""

from __future__ import annotations

from brasa.ops.activation import *
from brasa.ops.activation import __all__ as _activation
from brasa.ops.attention import *
from brasa.ops.attention import __all__ as _attention
from brasa.ops.conv import *
from brasa.ops.conv import __all__ as _conv
from brasa.ops.ctc import *
from brasa.ops.ctc import __all__ as _ctc
from brasa.ops.dropout import *
from brasa.ops.dropout import __all__ as _dropout
from brasa.ops.elementary import *
from brasa.ops.elementary import __all__ as _elementary
from brasa.ops.embedding import *
from brasa.ops.embedding import __all__ as _embedding
from brasa.ops.loss import *
from brasa.ops.loss import __all__ as _loss
from brasa.ops.matmul import *
from brasa.ops.matmul import __all__ as _matmul
from brasa.ops.norm import *
from brasa.ops.norm import __all__ as _norm
from brasa.ops.optim import *
from brasa.ops.optim import __all__ as _optim
from brasa.ops.pool import *
from brasa.ops.pool import __all__ as _pool
from brasa.ops.prepack import *
from brasa.ops.prepack import __all__ as _prepack
from brasa.ops.rnn import *
from brasa.ops.rnn import __all__ as _rnn
from brasa.ops.rnn_cell import *
from brasa.ops.rnn_cell import __all__ as _rnn_cell
from brasa.ops.shuffle import *
from brasa.ops.shuffle import __all__ as _shuffle
from brasa.ops.softmax import *
from brasa.ops.softmax import __all__ as _softmax

__all__ = [
    *_activation,
    *_attention,
    *_conv,
    *_ctc,
    *_dropout,
    *_elementary,
    *_embedding,
    *_loss,
    *_matmul,
    *_norm,
    *_optim,
    *_pool,
    *_prepack,
    *_rnn,
    *_rnn_cell,
    *_shuffle,
    *_softmax,
]
