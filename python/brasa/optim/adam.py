"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from brasa import ops

from .optimizer import Batch, Optimizer, at_least, within

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    r"""Adam (Kingma and Ba, 2015).

    .. math::
        g &= \nabla + \lambda w \\
        m &= \beta_1 m + (1 - \beta_1) g, \qquad v = \beta_2 v + (1 - \beta_2) g^2 \\
        w &= w - \mathrm{lr} \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 1e-3
        Learning rate.
    betas : tuple of two floats, default (0.9, 0.999)
        :math:`\beta_1` and :math:`\beta_2`, the memory of both averages.
    eps : float, default 1e-8
        :math:`\epsilon`.
    weight_decay : float, default 0
        :math:`\lambda`, an L2 penalty.
    maximize : bool, default False
        Climb instead of descend.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> w = br.Tensor(np.full(2, 4.0, np.float32), requires_grad=True)
    >>> optimizer = br.optim.Adam([w], lr=0.5)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([3.5, 3.5], dtype=float32)
    """

    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        at_least(group, 0, "lr", "eps", "weight_decay")
        if len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        within("betas[0]", group["betas"][0])
        within("betas[1]", group["betas"][1])

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        ops.adam_step(
            batch.params,
            batch.grads,
            batch.slots["exp_avg"],
            batch.slots["exp_avg_sq"],
            step=batch.step,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self._decoupled,
            scale=-scale if group["maximize"] else scale,
        )


class AdamW(Adam):
    r"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    The weights shrink by :math:`\mathrm{lr} \cdot \lambda` in each step, apart from the gradient,
    which `Adam`'s averages see alone.

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 1e-3
        Learning rate.
    betas : tuple of two floats, default (0.9, 0.999)
        The memory of both averages.
    eps : float, default 1e-8
        Added to the root of the second average.
    weight_decay : float, default 0.01
        :math:`\lambda`.
    maximize : bool, default False
        Climb instead of descend.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> w = br.Tensor(np.full(2, 4.0, np.float32), requires_grad=True)
    >>> optimizer = br.optim.AdamW([w], lr=0.5, weight_decay=0.5)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([2.5, 2.5], dtype=float32)
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)
