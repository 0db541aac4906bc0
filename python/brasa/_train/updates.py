"""From gradients to updates: accumulation, the L2 term, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from brasa._backend import namespace
from brasa._scaler import GradScaler
from brasa.nn import Module
from brasa.optim import Optimizer
from brasa.tensor import Tensor

__all__ = ["Updates"]


class Updates:
    """Update a model's parameters by the mean gradient of every `accumulate` batches.

    Parameters
    ----------
    model : Module
        Whose weights the L2 term is over.
    optimizer : Optimizer
        Does the updates.
    l2 : float
        The L2 term is ``l2 / (2 * samples) * sum(w ** 2)``, over weights of rank 2 and more.
    clip_norm : float or None
        Largest common norm of the gradients.
    accumulate : int
        Batches per update.
    scaler : GradScaler or None
        Scales the losses; updates in which gradients overflow are skipped.

    Attributes
    ----------
    pending : int
        Batches whose gradients wait for the update.
    samples : int or None
        Training samples.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        *,
        l2: float,
        clip_norm: float | None,
        accumulate: int,
        scaler: GradScaler | None,
    ) -> None:
        if not 0 <= l2 < float("inf"):
            raise ValueError(f"l2 must be a number of at least 0, got {l2!r}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {clip_norm!r}")
        if not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate must be an integer of at least 1, got {accumulate!r}")
        self.model, self.optimizer = model, optimizer
        self.l2, self.clip_norm, self.accumulate = l2, clip_norm, accumulate
        self.scaler = GradScaler(enabled=False) if scaler is None else scaler
        self.pending = 0
        self.samples: int | None = None

    def with_penalty(self, loss: Any) -> Any:
        """Add the L2 term to a loss, both without a gradient."""
        if not self.l2:
            return loss
        squares = sum(_sum_of_squares(p.data) for p in self._weights())
        return loss + squares * (self._penalty() / 2)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a batch."""
        self.scaler.scale(loss).backward()

    def add_batch(self) -> bool:
        """Count a batch whose backward is done; tell whether it completed an update."""
        self.pending += 1
        return self.pending == self.accumulate and self.flush()

    def flush(self) -> bool:
        """Update by the mean gradient of the pending batches; False if there are none, or it was skipped.

        In a captured step it is False: nobody knows yet.
        """
        if not self.pending:
            return False
        if self.l2:
            self._add_penalty_gradient()
        scale = 1.0 / self.pending
        if self.clip_norm is not None:
            scale = self._clipped(scale)
        updated = self.scaler.step(self.optimizer, scale=scale)
        self.scaler.update()
        self.discard()
        return bool(updated)

    def discard(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad()
        self.pending = 0

    def _penalty(self) -> float:
        if not self.samples:
            raise ValueError("l2 needs training data that has a length")
        return self.l2 / self.samples

    def _weights(self) -> Iterator[Tensor]:
        return (p for p in self.model.parameters() if p.requires_grad and p.data.ndim >= 2)

    def _add_penalty_gradient(self) -> None:
        """Add the L2 term's gradient, times the batches whose gradients were summed, and scaled as they."""
        factor = np.float64(self._penalty() * self.pending) * self.scaler.get_scale()
        for param in self._weights():
            if param.grad is not None:
                # Not in place: two parameters' gradients may be one array.
                param.grad = Tensor(param.grad.data + factor.astype(param.data.dtype) * param.data)

    def _clipped(self, scale: float) -> Any:
        """`scale`, less where the gradients' norm is too large: a float64 beside them, not waited for."""
        params = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad.data for p in params if p.grad is not None]
        if not gradients:
            return scale
        xp = namespace(gradients[0])
        squares = [_sum_of_squares(gradient) for gradient in gradients]
        norm = xp.sqrt(sum(squares[1:], squares[0])) * (scale / self.scaler.get_scale())
        return scale * xp.fmin(1.0, self.clip_norm / (norm + 1e-6))


def _sum_of_squares(array: Any) -> Any:
    xp = namespace(array)
    return xp.sum(xp.square(array), dtype="float64")
