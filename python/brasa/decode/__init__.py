"""Sequences from models: greedy and beam search, sampling, and the labels that CTC outputs spell.

`greedy`, `beam_search` and `sample` drive a step function ``step(tokens, state)``: it gets the last token of every
sequence, (B,) int64, and the state that it returned before, and returns log-probabilities (B, V) of the next token
(a Tensor or array) and the new state. A state is None, an array, a Tensor, or a tuple, list or dict of states. All
runs without recording gradients; scores are added up in float64 on the host.
"""

from __future__ import annotations

from brasa.decode._beam import beam_search
from brasa.decode._ctc import ctc_beam_search, ctc_greedy
from brasa.decode._steps import Decoded, greedy, sample

__all__ = ["Decoded", "beam_search", "ctc_beam_search", "ctc_greedy", "greedy", "sample"]
