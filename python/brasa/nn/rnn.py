"""Recurrent layers over sequences: simple ones, LSTM and GRU. Their single steps are in `rnn_cell`."""

from __future__ import annotations

from math import sqrt
from typing import Any

from brasa import ops
from brasa.nn import functional as F
from brasa.nn import init
from brasa.nn._arguments import check_input, check_nonlinearity, check_positive, new_parameter
from brasa.nn.module import Module
from brasa.ops._check import integer
from brasa.tensor import cat

__all__ = ["GRU", "LSTM", "RNN"]


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class _Recurrent(Module):
    """What the layers share: the parameters of every layer and direction, and the walk through them.

    A subclass says how many gates it has and names its states, and runs one direction of one layer.
    """

    returns_state = True
    _gates: int
    _states: tuple[str, ...] = ("h",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: str | None,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.input_size = check_positive("input_size", input_size)
        self.hidden_size = check_positive("hidden_size", hidden_size)
        self.num_layers = check_positive("num_layers", num_layers)
        if integer("proj_size", proj_size, minimum=0) >= hidden_size:
            raise ValueError(f"proj_size: expected at least 0 and less than hidden_size, got {proj_size}")
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = F.check_probability(dropout)
        self.bidirectional = bool(bidirectional)
        self.proj_size = proj_size
        suffixes = ("", "_reverse") if bidirectional else ("",)
        self._names = [[self._add_parameters(k, end, dtype) for end in suffixes] for k in range(num_layers)]
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def _add_parameters(self, layer: int, suffix: str, dtype: Any) -> list[str]:
        """Make those of one direction of a layer; returns the names of all, there or not."""
        rows, state = self._gates * self.hidden_size, self.proj_size or self.hidden_size
        inputs = state * (1 + self.bidirectional) if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs), "weight_hh": (rows, state)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (state, self.hidden_size)
        for name, shape in shapes.items():
            setattr(self, f"{name}_l{layer}{suffix}", new_parameter(shape, dtype))
        return [f"{name}_l{layer}{suffix}" for name in _PARAMETERS]

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew, uniform in +-1/sqrt(hidden_size)."""
        bound = 1.0 / sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _direction(self, x: Any, state: Any, parameters: list[Any], options: dict[str, Any]) -> Any:
        """(y, h_n) or (y, h_n, c_n) of one direction of a layer; its parameters, None where there is none."""
        raise NotImplementedError

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        """Run the layer over the sequences ``x``.

        Parameters
        ----------
        x : Tensor
            (T, B, I), (B, T, I) with ``batch_first``, or (T, I): one sequence.
        state : Tensor or pair of Tensors, optional
            What a call returned beside ``y``; zeros unless given.
        lengths : array or sequence of int, optional
            (B,), in any order: the steps of each sequence that count. Beyond them ``y`` is 0, whatever ``x`` is,
            NaN included; the state is the one after the last that does.
        """
        check_input("x", x, vars(self)["weight_ih_l0"])
        alone = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(f"x: expected {order} or (T, I) with I = {self.input_size}, got shape {x.shape}")
        if alone and lengths is not None:
            raise ValueError("lengths: expected None for one sequence without a batch dimension")
        given = self._given(state, () if alone else (x.shape[not self.batch_first],))
        if alone:
            x = x.reshape(x.shape[0], 1, x.shape[1])
        options = {"lengths": lengths, "batch_first": self.batch_first and not alone}
        y, last = self._run_layers(x, given, options)
        columns = [self.proj_size or self.hidden_size, self.hidden_size]
        batch = () if alone else last[0][0].shape[:1]
        new = tuple(
            (parts[0] if len(parts) == 1 else cat(parts)).reshape(len(parts), *batch, n)
            for parts, n in zip(zip(*last, strict=True), columns, strict=False)
        )
        return y.reshape(y.shape[0], y.shape[2]) if alone else y, new if len(new) > 1 else new[0]

    def _run_layers(self, x: Any, given: list[Any], options: dict[str, Any]) -> tuple[Any, list[Any]]:
        """The results of the last layer, and the last states of every layer and direction."""
        last: list[Any] = []
        own = vars(self)
        for layer, directions in enumerate(self._names):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            results: list[Any] = []
            for reverse, names in enumerate(directions):
                at = len(last) + reverse
                states = [part if part is None else part[at] for part in given]
                parameters = [own.get(name) for name in names]
                results.append(self._direction(x, states, parameters, options | {"reverse": reverse}))
            x = cat([result[0] for result in results], axis=-1) if self.bidirectional else results[0][0]
            last += [result[1:] for result in results]
        return x, last

    def _given(self, state: Any, batch: tuple[int, ...]) -> list[Any]:
        """The states (layers and directions, B, columns), checked; None where they are to be zero."""
        if state is None:
            return [None] * len(self._states)
        pair = len(self._states) > 1
        if isinstance(state, (tuple, list)) is not pair:
            wanted = "a pair (h, c)" if pair else "one array or Tensor"
            raise TypeError(f"state: expected {wanted}, got {type(state).__name__}")
        parts = list(state) if pair else [state]
        if len(parts) != len(self._states):
            raise ValueError(f"state: expected a pair (h, c), got {len(parts)} of them")
        count = self.num_layers * (1 + self.bidirectional)
        columns = [self.proj_size or self.hidden_size, self.hidden_size]
        for name, part, n in zip(self._states, parts, columns, strict=False):
            if not hasattr(part, "shape"):
                both = "arrays h and c, or None for both" if pair else "an array or Tensor"
                raise TypeError(f"state: expected {both}, got {type(part).__name__} as {name}")
            if part.shape != (count, *batch, n):
                raise ValueError(f"state: expected {name} of shape {(count, *batch, n)}, got {part.shape}")
        return [part if batch else part.reshape(count, 1, -1) for part in parts]

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0, "num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False,
            "dropout": 0.0, "bidirectional": False,
        }  # fmt: skip
        given = {k: getattr(self, k, v) for k, v in defaults.items()}
        parts += [f"{k}={v!r}" for k, v in given.items() if v != defaults[k]]
        return ", ".join(parts)


class RNN(_Recurrent):
    """Simple recurrent layers: ``h_t = tanh(W_ih x_t + b_ih + W_hh h_t-1 + b_hh)``.

    Parameters
    ----------
    input_size, hidden_size : int
        ``I`` and ``H``: the features of a step, and of the state.
    num_layers : int, default: 1
        ``L``: how many layers run over the results of one another.
    nonlinearity : "tanh" or "relu", default: "tanh"
        The function around the sum.
    bias : bool, default: True
        Whether ``b_ih`` and ``b_hh`` are there.
    batch_first : bool, default: False
        Input and output are (B, T, ...) and not (T, B, ...). The state is (..., B, H) either way.
    dropout : float, default: 0.0
        Probability of dropping a result of every layer but the last, in training only.
    bidirectional : bool, default: False
        Whether every layer runs over the steps in both directions, D = 2; their results stand side by side.
    device, dtype
        As for ``Linear``.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 : Parameter
        (H, I), (H, H), (H,), (H,), initially uniform in +-1/sqrt(H). Those of layer k end in ``_lk`` and have
        D H inputs; those of the other direction end in ``_reverse``.

    Notes
    -----
    Called as ``layer(x, state=None, lengths=None)`` with x (T, B, I), returns y (T, B, D H) and the state
    (L D, B, H) after the last step. One sequence (T, I) gives (T, D H) and (L D, H).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> y, state = nn.RNN(4, 8, num_layers=2)(np.zeros((5, 3, 4), np.float32))
    >>> y.shape, state.shape
    ((5, 3, 8), (2, 3, 8))
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.nonlinearity = check_nonlinearity(nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def _direction(self, x: Any, state: Any, parameters: list[Any], options: dict[str, Any]) -> Any:
        return ops.rnn(x, *state, *parameters[:4], nonlinearity=self.nonlinearity, **options)


class LSTM(_Recurrent):
    """Layers of long short-term memory (Hochreiter and Schmidhuber, 1997).

    With gates i, f, o = sigmoid and g = tanh of ``W_ih x_t + b_ih + W_hh h_t-1 + b_hh``, cut into i, f, g, o:
    ``c_t = f c_t-1 + i g`` and ``h_t = o tanh(c_t)``, or with ``proj_size`` ``h_t = W_hr (o tanh(c_t))``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for ``RNN``.
    proj_size : int, default: 0
        ``P``: columns of the projected state; 0 for H columns and no projection.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 : Parameter
        (4 H, I), (4 H, P or H), (4 H,), (4 H,), named and drawn as those of ``RNN``.
    weight_hr_l0 : Parameter
        (P, H), with ``proj_size`` only.

    Notes
    -----
    Called as ``layer(x, state=None, lengths=None)``, returns y (T, B, D H) and the pair of states h (L D, B, H)
    and c (L D, B, H); where there is a projection, y and h have P in place of H.

    To learn from a long sequence in pieces, hand on the state without its history:
    ``state = tuple(s.detach() for s in state)``.

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> y, (h, c) = nn.LSTM(4, 8, bidirectional=True, proj_size=6)(np.zeros((5, 3, 4), np.float32))
    >>> y.shape, h.shape, c.shape
    ((5, 3, 12), (2, 3, 6), (2, 3, 8))
    """

    _gates = 4
    _states = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype,
        )  # fmt: skip

    def _direction(self, x: Any, state: Any, parameters: list[Any], options: dict[str, Any]) -> Any:
        return ops.lstm(x, *state, *parameters[:4], w_hr=parameters[4], **options)


class GRU(_Recurrent):
    """Layers of gated recurrent units (Cho et al., 2014), in the form of PyTorch and cuDNN.

    With r, z = sigmoid of ``W_ih x_t + b_ih + W_hh h_t-1 + b_hh`` and n = tanh of
    ``W_in x_t + b_in + r (W_hn h_t-1 + b_hn)``: ``h_t = (1 - z) n + z h_t-1``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for ``RNN``.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 : Parameter
        (3 H, I), (3 H, H), (3 H,), (3 H,), cut into r, z, n; named and drawn as those of ``RNN``.

    Notes
    -----
    Called as ``layer(x, state=None, lengths=None)``, returns y (T, B, D H) and the state (L D, B, H).

    Examples
    --------
    >>> import numpy as np
    >>> from brasa import nn
    >>> layer = nn.GRU(4, 8, batch_first=True)
    >>> y, state = layer(np.zeros((3, 5, 4), np.float32), lengths=np.array([5, 2, 4]))
    >>> y.shape, state.shape
    ((3, 5, 8), (1, 3, 8))
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def _direction(self, x: Any, state: Any, parameters: list[Any], options: dict[str, Any]) -> Any:
        return ops.gru(x, *state, *parameters[:4], **options)
