"""Single steps of the recurrent layers, and their gradients: sequences of one step, with the same bits."""

from __future__ import annotations

from typing import Any

from brasa._tape import differentiable
from brasa.ops import _check
from brasa.ops._recurrent import ALL, ARRAYS, LSTM_ARRAYS, forward, gru_name, make_layer, nonlinearity_name
from brasa.ops.rnn import gru_backward, lstm_backward, rnn_backward

__all__ = [
    "gru_cell",
    "gru_cell_backward",
    "lstm_cell",
    "lstm_cell_backward",
    "rnn_cell",
    "rnn_cell_backward",
]

CELL_ARRAYS = ("x", "h", *ARRAYS[2:])
LSTM_CELL_ARRAYS = ("x", "h", "c", *LSTM_ARRAYS[3:])


def _one_step(x: Any) -> Any:
    """(B, I) as a sequence of one step."""
    x = _check.device_floating("x", x)
    _check.rank("x", x, 2, shape="(B, I)")
    return x[None]


def _without_step(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    dx = gradients[0]
    return (dx if dx is None else dx[0], *gradients[1:])


def lstm_cell_backward(
    dh: Any,
    dc: Any,
    x: Any,
    h: Any,
    c: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL,
) -> tuple[Any, ...]:
    """The gradients of `lstm_cell`: dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh, dw_hr, dpeephole.

    `dh` and `dc` are those of the results; the rest is as for `lstm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> (h, c), saved = lstm_cell(x, None, None, w_ih, w_hh, save=True)
    >>> dx, *_ = lstm_cell_backward(np.ones_like(h), None, x, None, None, w_ih, w_hh, saved=saved)
    >>> dx.shape
    (2, 3)
    """
    gradients = lstm_backward(
        None, dh, dc, _one_step(x), h, c, w_ih, w_hh, b_ih, b_hh, w_hr=w_hr, peephole=peephole, clip=clip,
        saved=saved, mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _lstm_cell(
    x: Any,
    h: Any,
    c: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `lstm`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h, c : array or Tensor or None
        (B, P) and (B, H), the states before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, w_hr, peephole, clip
        As for `lstm`.
    save : bool
        Return ``((h, c), saved)``; `saved` goes to `lstm_cell_backward`. For arrays only.

    Returns
    -------
    h, c : array or Tensor
        The states after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> h, c = lstm_cell(x, None, None, w_ih, w_hh)
    >>> h.round(4), c.round(4)
    (array([[0.7038]], dtype=float32), array([[0.9479]], dtype=float32))
    """
    layer = make_layer(
        "lstm", _one_step(x), h, w_ih, w_hh, b_ih, b_hh, c0=c, w_hr=w_hr, peephole=peephole, clip=clip,
        names=("h", "c"),
    )  # fmt: skip
    _, h_n, c_n, saved = forward(layer, save)
    return ((h_n, c_n), saved) if save else (h_n, c_n)


lstm_cell = differentiable(_lstm_cell, lstm_cell_backward, arrays=LSTM_CELL_ARRAYS)


def gru_cell_backward(
    dh: Any,
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `gru_cell`: dx, dh, dw_ih, dw_hh, db_ih, db_hh.

    `dh` is that of the result; the rest is as for `gru_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> h, saved = gru_cell(x, None, w_ih, w_hh, save=True)
    >>> dx, *_ = gru_cell_backward(np.ones_like(h), x, None, w_ih, w_hh, saved=saved)
    >>> dx.shape
    (2, 3)
    """
    gradients = gru_backward(
        None, dh, _one_step(x), h, w_ih, w_hh, b_ih, b_hh, reset_after=reset_after, clip=clip, saved=saved,
        mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _gru_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `gru`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h : array or Tensor or None
        (B, H), the state before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, reset_after, clip
        As for `gru`.
    save : bool
        Return ``(h, saved)``; `saved` goes to `gru_cell_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        (B, H), the state after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `gru`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> gru_cell(x, None, w_ih, w_hh).round(4)
    array([[0.0472]], dtype=float32)
    """
    layer = make_layer(
        gru_name(reset_after), _one_step(x), h, w_ih, w_hh, b_ih, b_hh, clip=clip, names=("h", "c")
    )
    _, h_n, _, saved = forward(layer, save)
    return (h_n, saved) if save else h_n


gru_cell = differentiable(_gru_cell, gru_cell_backward, arrays=CELL_ARRAYS)


def rnn_cell_backward(
    dh: Any,
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `rnn_cell`: dx, dh, dw_ih, dw_hh, db_ih, db_hh.

    `dh` is that of the result; the rest is as for `rnn_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> h, saved = rnn_cell(x, None, w_ih, w_hh, nonlinearity="relu", save=True)
    >>> dx, *_ = rnn_cell_backward(np.ones_like(h), x, None, w_ih, w_hh, nonlinearity="relu", saved=saved)
    >>> dx
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    gradients = rnn_backward(
        None, dh, _one_step(x), h, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity, clip=clip, saved=saved,
        mask=mask,
    )  # fmt: skip
    return _without_step(gradients)


def _rnn_cell(
    x: Any,
    h: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One step of `rnn`.

    Parameters
    ----------
    x : array or Tensor
        (B, I).
    h : array or Tensor or None
        (B, H), the state before the step; zeros where None.
    w_ih, w_hh, b_ih, b_hh, nonlinearity, clip
        As for `rnn`.
    save : bool
        Return ``(h, saved)``; `saved` goes to `rnn_cell_backward`. For arrays only.

    Returns
    -------
    array or Tensor
        (B, H), the state after the step, with the bits of a sequence of one step.

    Raises
    ------
    ValueError, TypeError
        As for `rnn`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> rnn_cell(x, None, w_ih, w_hh, nonlinearity="relu")
    array([[3.]], dtype=float32)
    """
    layer = make_layer(
        nonlinearity_name(nonlinearity), _one_step(x), h, w_ih, w_hh, b_ih, b_hh, clip=clip, names=("h", "c")
    )
    _, h_n, _, saved = forward(layer, save)
    return (h_n, saved) if save else h_n


rnn_cell = differentiable(_rnn_cell, rnn_cell_backward, arrays=CELL_ARRAYS)
