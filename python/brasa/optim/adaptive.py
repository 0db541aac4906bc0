"""RMSprop, Adagrad and Adadelta: steps divided by what the gradients were so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from brasa import ops

from .optimizer import Batch, Optimizer, at_least, namespace, within

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


class RMSprop(Optimizer):
    r"""RMSprop (Hinton, 2012), centred on request, with momentum on request.

    .. math::
        g &= \nabla + \lambda w, \qquad s = \alpha s + (1 - \alpha) g^2 \\
        u &= g / (\sqrt{s - \bar g^2} + \epsilon) \qquad (\bar g = 0 \text{ unless centered}) \\
        w &= w - \mathrm{lr} \cdot (v = \mu v + u \text{ if } \mu \text{ else } u)

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 0.01
        Learning rate.
    alpha : float, default 0.99
        Memory of the average of squares.
    eps : float, default 1e-8
        :math:`\epsilon`.
    weight_decay : float, default 0
        :math:`\lambda`, an L2 penalty.
    momentum : float, default 0
        :math:`\mu`.
    centered : bool, default False
        Whether to divide by the estimated variance in place of the second moment.
    maximize : bool, default False
        Climb instead of descend.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        at_least(group, 0, "lr", "eps", "weight_decay", "momentum")
        within("alpha", group["alpha"])

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["momentum"]:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return tuple(names)

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        ops.rmsprop_step(
            batch.params,
            batch.grads,
            batch.slots["square_avg"],
            batch.slots.get("momentum_buffer"),
            batch.slots.get("grad_avg"),
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            centered=group["centered"],
            scale=-scale if group["maximize"] else scale,
        )


class Adagrad(Optimizer):
    r"""Adagrad (Duchi, Hazan and Singer, 2011).

    .. math::
        g = \nabla + \lambda w, \qquad s = s + g^2, \qquad
        w = w - \frac{\mathrm{lr}}{1 + (t - 1) \eta} \cdot \frac{g}{\sqrt{s} + \epsilon}

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 0.01
        Learning rate.
    lr_decay : float, default 0
        :math:`\eta`.
    weight_decay : float, default 0
        :math:`\lambda`, an L2 penalty.
    initial_accumulator_value : float, default 0
        What :math:`s` starts from.
    eps : float, default 1e-10
        :math:`\epsilon`.
    maximize : bool, default False
        Climb instead of descend.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        at_least(group, 0, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def _new_slot(self, group: dict[str, Any], name: str, data: Any) -> Any:
        value = group["initial_accumulator_value"]
        return namespace(data).full_like(data, value, order="C")

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        ops.adagrad_step(
            batch.params,
            batch.grads,
            batch.slots["sum"],
            step=batch.step,
            lr=group["lr"],
            lr_decay=group["lr_decay"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            scale=-scale if group["maximize"] else scale,
        )


class Adadelta(Optimizer):
    r"""Adadelta (Zeiler, 2012).

    .. math::
        g &= \nabla + \lambda w, \qquad s = \rho s + (1 - \rho) g^2 \\
        d &= g \sqrt{u + \epsilon} / \sqrt{s + \epsilon}, \qquad u = \rho u + (1 - \rho) d^2 \\
        w &= w - \mathrm{lr} \cdot d

    Parameters
    ----------
    params : iterable of Tensor, or of mappings
        Parameters, or groups with options of their own.
    lr : float, default 1.0
        Learning rate.
    rho : float, default 0.9
        :math:`\rho`, the memory of both averages.
    eps : float, default 1e-6
        :math:`\epsilon`.
    weight_decay : float, default 0
        :math:`\lambda`, an L2 penalty.
    maximize : bool, default False
        Climb instead of descend.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        at_least(group, 0, "lr", "eps", "weight_decay")
        within("rho", group["rho"])

    def _slot_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _update(self, group: dict[str, Any], batch: Batch, scale: float) -> None:
        ops.adadelta_step(
            batch.params,
            batch.grads,
            batch.slots["square_avg"],
            batch.slots["acc_delta"],
            lr=group["lr"],
            rho=group["rho"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            scale=-scale if group["maximize"] else scale,
        )
