"""Recurrent layers over whole sequences, and their gradients.

Layouts, the order of the gates (LSTM i, f, g, o; GRU r, z, n) and names are PyTorch's. In shapes T is the number
of steps, B the batch, I the inputs, H the hidden units and P the columns of the state: H, or the rows of `w_hr`.
Arrays are float32 or float64, or on CUDA float16 or bfloat16, all of one dtype; beside 16 bits biases and peepholes may
be float32. Arrays of 16 bits are multiplied on tensor cores; arithmetic, and what a step hands to the next beside the
state it multiplies, is float32.
"""

from __future__ import annotations

from typing import Any

from brasa._tape import differentiable
from brasa.ops._recurrent import (
    ALL,
    ARRAYS,
    LSTM_ARRAYS,
    asked,
    backward,
    forward,
    gru_name,
    make_layer,
    nonlinearity_name,
)

__all__ = ["gru", "gru_backward", "lstm", "lstm_backward", "rnn", "rnn_backward"]


# LSTM -------------------------------------------------------------------------------------------------


def lstm_backward(
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL,
) -> tuple[Any, ...]:
    """The gradients of `lstm`.

    Parameters
    ----------
    dy, dh_n, dc_n : array or None
        The gradients of the three results; None where one is unused.
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, peephole, lengths, reverse, batch_first, clip
        As for `lstm`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr, dpeephole : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`, and when `saved` is not what the forward returned.

    Notes
    -----
    Beyond `lengths` the gradient of `x` is 0, and what `x` is there counts for no gradient, NaN included. Where
    `clip` limits a gate its derivative is 0.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> (y, h_n, c_n), saved = lstm(x, None, None, w_ih, w_hh, save=True)
    >>> dx, _, _, dw_ih, *_ = lstm_backward(np.ones_like(y), None, None, x, None, None, w_ih, w_hh, saved=saved)
    >>> dx.shape, dw_ih.shape
    ((2, 1, 3), (4, 3))
    """
    layer = make_layer(
        "lstm", x, h0, w_ih, w_hh, b_ih, b_hh, c0=c0, w_hr=w_hr, peephole=peephole, lengths=lengths,
        reverse=reverse, batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = backward(layer, (dy, dh_n, dc_n), saved, asked(LSTM_ARRAYS, mask))
    return tuple(found.get(name) for name in LSTM_ARRAYS)


def _lstm(
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    w_hr: Any = None,
    peephole: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a long short-term memory layer over a batch of sequences.

    At every step, with the state (h, c) of the step before, ``a = x w_ih.T + b_ih + h w_hh.T + b_hh`` and, cut
    into four, ``i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)``; then ``c = f c + i g`` and
    ``h = o tanh(c)``, or ``h = (o tanh(c)) w_hr.T``.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32, float64, or on CUDA float16 or bfloat16.
    h0, c0 : array or Tensor or None
        (B, P) and (B, H), the states before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (4 H, I) and (4 H, P), gates in the order i, f, g, o.
    b_ih, b_hh : array or Tensor, optional
        (4 H,).
    w_hr : array or Tensor, optional
        (P, H), the projection of the state (torch's ``proj_size``).
    peephole : array or Tensor, optional
        (3, H): ``a_i`` and ``a_f`` also get ``peephole[0] c`` and ``peephole[1] c`` of the step before, ``a_o``
        gets ``peephole[2] c`` of this one.
    lengths : array or sequence of int, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` and `c_n` are the states after the last that does (`h0` and `c0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    clip : float, optional
        Limit `a` to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `lstm_backward`. For arrays only.

    Returns
    -------
    y, h_n, c_n : array or Tensor
        (T, B, P) or (B, T, P), the states of all steps; (B, P) and (B, H), the last ones.

    Raises
    ------
    ValueError
        For shapes that do not fit, lengths out of range, or a `clip` not above 0. On CUDA the results of a
        sample whose length is out of range are NaN instead, unless ``BRASA_CHECK=1`` is set.
    TypeError
        For another dtype or a mix of them.

    Notes
    -----
    On the CPU a sequence in pieces, each given the states after the one before, has the bits of the whole; a
    sample alone those of the sample in a batch. Of 16 bits the cell is carried in float32 and rounded where it is
    returned. Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> y, h_n, c_n = lstm(x, None, None, w_ih, w_hh)
    >>> y[:, 0, 0].round(4), h_n.round(4)
    (array([0.7038, 0.9332], dtype=float32), array([[0.9332]], dtype=float32))
    """
    layer = make_layer(
        "lstm", x, h0, w_ih, w_hh, b_ih, b_hh, c0=c0, w_hr=w_hr, peephole=peephole, lengths=lengths,
        reverse=reverse, batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, c_n, saved = forward(layer, save)
    return ((y, h_n, c_n), saved) if save else (y, h_n, c_n)


lstm = differentiable(_lstm, lstm_backward, arrays=LSTM_ARRAYS)


# GRU --------------------------------------------------------------------------------------------------


def gru_backward(
    dy: Any,
    dh_n: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `gru`.

    Parameters
    ----------
    dy, dh_n : array or None
        The gradients of the two results; None where one is unused.
    x, h0, w_ih, w_hh, b_ih, b_hh, lengths, reverse, batch_first, reset_after, clip
        As for `gru`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `gru`, and when `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> (y, h_n), saved = gru(x, None, w_ih, w_hh, save=True)
    >>> dx, _, dw_ih, *_ = gru_backward(np.ones_like(y), None, x, None, w_ih, w_hh, saved=saved)
    >>> dx.shape, dw_ih.shape
    ((2, 1, 3), (3, 3))
    """
    layer = make_layer(
        gru_name(reset_after), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = backward(layer, (dy, dh_n, None), saved, asked(ARRAYS, mask))
    return tuple(found.get(name) for name in ARRAYS)


def _gru(
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a layer of gated recurrent units over a batch of sequences.

    At every step, with the state h of the step before, ``a = x w_ih.T + b_ih`` and ``s = h w_hh.T + b_hh``, each
    cut into three; then ``r, z = sigmoid(a_r + s_r), sigmoid(a_z + s_z)``, ``n = tanh(a_n + r s_n)`` and
    ``h = (1 - z) n + z h``.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32, float64, or on CUDA float16 or bfloat16.
    h0 : array or Tensor or None
        (B, H), the state before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (3 H, I) and (3 H, H), gates in the order r, z, n.
    b_ih, b_hh : array or Tensor, optional
        (3 H,).
    lengths : array or sequence of int, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` is the state after the last that does (`h0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    reset_after : bool
        True is torch's form, above. False applies r before the product:
        ``n = tanh(a_n + (r h) w_hn.T + b_hn)``, as in the original paper and ONNX's ``linear_before_reset=0``.
    clip : float, optional
        Limit what the sigmoids and tanh are applied to to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `gru_backward`. For arrays only.

    Returns
    -------
    y, h_n : array or Tensor
        (T, B, H) or (B, T, H), the states of all steps; (B, H), the last ones.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`.

    Notes
    -----
    On the CPU a sequence in pieces has the bits of the whole, a sample alone those of the sample in a batch. Of 16
    bits the state is carried in float32 and rounded where it is returned or multiplied. Cho et al. 2014.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((3, 3), np.float32), np.ones((3, 1), np.float32)
    >>> y, h_n = gru(x, None, w_ih, w_hh)
    >>> y[:, 0, 0].round(4), h_n.round(4)
    (array([0.0472, 0.0902], dtype=float32), array([[0.0902]], dtype=float32))
    """
    layer = make_layer(
        gru_name(reset_after), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, _, saved = forward(layer, save)
    return ((y, h_n), saved) if save else (y, h_n)


gru = differentiable(_gru, gru_backward, arrays=ARRAYS)


# Simple -----------------------------------------------------------------------------------------------


def rnn_backward(
    dy: Any,
    dh_n: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    saved: Any,
    mask: tuple[bool, ...] = ALL[:6],
) -> tuple[Any, ...]:
    """The gradients of `rnn`.

    Parameters
    ----------
    dy, dh_n : array or None
        The gradients of the two results; None where one is unused.
    x, h0, w_ih, w_hh, b_ih, b_hh, nonlinearity, lengths, reverse, batch_first, clip
        As for `rnn`.
    saved : tuple
        What ``save=True`` returned. It holds the result `y` itself.
    mask : tuple of bool
        Which gradients are wanted.

    Returns
    -------
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh : array or None
        None where `mask` is False or the argument was None.

    Raises
    ------
    ValueError, TypeError
        As for `rnn`, and when `saved` is not what the forward returned.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> (y, h_n), saved = rnn(x, None, w_ih, w_hh, nonlinearity="relu", save=True)
    >>> dx, *_ = rnn_backward(np.ones_like(y), None, x, None, w_ih, w_hh, nonlinearity="relu", saved=saved)
    >>> dx[:, 0]
    array([[2., 2., 2.],
           [1., 1., 1.]], dtype=float32)
    """
    layer = make_layer(
        nonlinearity_name(nonlinearity), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    found = backward(layer, (dy, dh_n, None), saved, asked(ARRAYS, mask))
    return tuple(found.get(name) for name in ARRAYS)


def _rnn(
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    clip: float | None = None,
    save: bool = False,
) -> Any:
    """One direction of a simple recurrent layer over a batch of sequences.

    At every step ``h = f(x w_ih.T + b_ih + h w_hh.T + b_hh)`` of the state h of the step before.

    Parameters
    ----------
    x : array or Tensor
        (T, B, I), or (B, T, I) with `batch_first`. float32, float64, or on CUDA float16 or bfloat16.
    h0 : array or Tensor or None
        (B, H), the state before the first step; zeros where None.
    w_ih, w_hh : array or Tensor
        (H, I) and (H, H).
    b_ih, b_hh : array or Tensor, optional
        (H,).
    nonlinearity : str
        f: "tanh" or "relu".
    lengths : array or sequence of int, optional
        (B,), integers in [0, T] in any order: the steps of each sample that count. Beyond them `y` is 0, and
        `h_n` is the state after the last that does (`h0` for a length of 0).
    reverse : bool
        Walk from each sample's last step to its first; `y` stays at its place in time.
    batch_first : bool
        `x` and `y` have the batch first.
    clip : float, optional
        Limit what f is applied to to [-clip, clip].
    save : bool
        Return ``(results, saved)``; `saved` goes to `rnn_backward`. For arrays only.

    Returns
    -------
    y, h_n : array or Tensor
        (T, B, H) or (B, T, H), the states of all steps; (B, H), the last ones.

    Raises
    ------
    ValueError, TypeError
        As for `lstm`; another `nonlinearity`.

    Notes
    -----
    On the CPU a sequence in pieces has the bits of the whole, a sample alone those of the sample in a batch.
    Elman 1990.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((2, 1, 3), np.float32), np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)
    >>> y, h_n = rnn(x, None, w_ih, w_hh, nonlinearity="relu")
    >>> y[:, 0, 0], h_n
    (array([3., 6.], dtype=float32), array([[6.]], dtype=float32))
    """
    layer = make_layer(
        nonlinearity_name(nonlinearity), x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse,
        batch_first=batch_first, clip=clip,
    )  # fmt: skip
    y, h_n, _, saved = forward(layer, save)
    return ((y, h_n), saved) if save else (y, h_n)


rnn = differentiable(_rnn, rnn_backward, arrays=ARRAYS)
