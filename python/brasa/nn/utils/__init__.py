"""Functions on parameters and gradients, under the names of ``torch.nn.utils``."""

from __future__ import annotations

from brasa.nn.utils import rnn
from brasa.nn.utils.clip import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_grad_norm_", "clip_grad_value_", "rnn"]
