"""Single steps of the recurrent layers, for loops in which a step's input depends on the one before."""

from __future__ import annotations

from math import sqrt
from typing import Any

from brasa import ops
from brasa.nn import init
from brasa.nn._arguments import check_array, check_input, check_nonlinearity, check_positive, new_parameter
from brasa.nn.module import Module

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _Cell(Module):
    """What the cells share. A subclass says how many gates it has."""

    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size = check_positive("input_size", input_size)
        self.hidden_size = check_positive("hidden_size", hidden_size)
        self.bias = bool(bias)
        rows = self._gates * hidden_size
        self.weight_ih = new_parameter((rows, input_size), dtype)
        self.weight_hh = new_parameter((rows, hidden_size), dtype)
        self.bias_ih = new_parameter((rows,), dtype) if bias else None
        self.bias_hh = new_parameter((rows,), dtype) if bias else None
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniform in +-1/sqrt(hidden_size)."""
        bound = 1.0 / sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _operands(self, x: Any, *state: Any) -> tuple[Any, ...]:
        """The arguments of the operator, with a batch dimension, from a step (B, I) or (I,)."""
        check_input("x", x, self.weight_ih)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected (B, I) or (I,) with I = {self.input_size}, got shape {x.shape}")
        wanted = (*x.shape[:-1], self.hidden_size)
        for part in state:
            if part is None:
                continue
            check_array("state", part)
            if part.shape != wanted:
                raise ValueError(f"state: expected shape {wanted}, got {part.shape}")
        rows = [a if a is None or x.ndim == 2 else a.reshape(1, -1) for a in (x, *state)]
        return (*rows, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def _result(self, new: Any, x: Any) -> Any:
        """The new state without the batch dimension where `x` has none."""
        return new.reshape(*x.shape[:-1], self.hidden_size)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_Cell):
    """A step of ``RNN``: ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``.

    Parameters
    ----------
    input_size, hidden_size : int
        ``I`` and ``H``: the features of a step, and of the state.
    bias : bool, default: True
        Whether ``b_ih`` and ``b_hh`` are there.
    nonlinearity : "tanh" or "relu", default: "tanh"
        The function around the sum.
    device, dtype
        As for ``Linear``.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : Parameter
        (H, I), (H, H), (H,), (H,), initially uniform in +-1/sqrt(H).

    Notes
    -----
    Called as ``cell(x, state=None)`` with x (B, I) and a state (B, H), or (I,) and (H,); returns the new state.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> cell, state = nn.RNNCell(4, 8), None
    >>> for x in np.zeros((5, 3, 4), np.float32):
    ...     state = cell(x, state)
    >>> state.shape
    (3, 8)
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = check_nonlinearity(nonlinearity)

    def forward(self, x: Any, state: Any = None) -> Any:
        """Return the state after the step ``x``."""
        return self._result(ops.rnn_cell(*self._operands(x, state), nonlinearity=self.nonlinearity), x)

    def extra_repr(self) -> str:
        given = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return super().extra_repr() + given


class LSTMCell(_Cell):
    """A step of ``LSTM``, with its gates i, f, g, o.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As for ``RNNCell``.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : Parameter
        (4 H, I), (4 H, H), (4 H,), (4 H,), initially uniform in +-1/sqrt(H).

    Notes
    -----
    Called as ``cell(x, state=None)`` with x (B, I) and a pair of states (B, H), or (I,) and (H,); returns the
    new pair (h, c).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> h, c = nn.LSTMCell(4, 8)(np.zeros((3, 4), np.float32))
    >>> h.shape, c.shape
    ((3, 8), (3, 8))
    """

    _gates = 4

    def forward(self, x: Any, state: Any = None) -> Any:
        """Return the states (h, c) after the step ``x``."""
        parts = (None, None) if state is None else state
        if not isinstance(parts, (tuple, list)):
            raise TypeError(f"state: expected a pair (h, c), got {type(parts).__name__}")
        if len(parts) != 2:
            raise ValueError(f"state: expected a pair (h, c), got {len(parts)} of them")
        new = ops.lstm_cell(*self._operands(x, *parts))
        return tuple(self._result(part, x) for part in new)


class GRUCell(_Cell):
    """A step of ``GRU``, with its gates r, z, n.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As for ``RNNCell``.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : Parameter
        (3 H, I), (3 H, H), (3 H,), (3 H,), initially uniform in +-1/sqrt(H).

    Notes
    -----
    Called as ``cell(x, state=None)`` with x (B, I) and a state (B, H), or (I,) and (H,); returns the new state.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> nn.GRUCell(4, 8)(np.zeros(4, np.float32)).shape
    (8,)
    """

    _gates = 3

    def forward(self, x: Any, state: Any = None) -> Any:
        """Return the state after the step ``x``."""
        return self._result(ops.gru_cell(*self._operands(x, state)), x)
