"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from brasa import ops

from .optimizer import Batch, Optimizer, at_least

__all__ = ["SGD"]


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum.

    .. math::
        g &= \nabla + \lambda w \\
        v &= \mu v + (1 - \tau) g \qquad (v = g \text{ at the first step}) \\
        w &= w - \mathrm{lr} \cdot (g + \mu v \text{ if nesterov else } v)

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 1e-3
        Learning rate.
    momentum : float, default 0
        :math:`\mu`.
    dampening : float, default 0
        :math:`\tau`.
    weight_decay : float, default 0
        :math:`\lambda`, an L2 penalty.
    nesterov : bool, default False
        Nesterov's momentum; needs a momentum and no dampening.
    maximize : bool, default False
        Climb instead of descend.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> w = br.Tensor(np.full(2, 4.0, np.float32), requires_grad=True)
    >>> optimizer = br.optim.SGD([w], lr=0.25)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([2., 2.], dtype=float32)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        at_least(group, 0, "lr", "momentum", "weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        ops.sgd_step(
            batch.params,
            batch.grads,
            batch.slots.get("momentum_buffer"),
            lr=group["lr"],
            momentum=group["momentum"],
            # The buffer starts as the first gradient, which dampening must not shrink.
            dampening=group["dampening"] if batch.step > 1 else 0,
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            scale=-scale if group["maximize"] else scale,
        )
