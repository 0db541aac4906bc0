"""A model, its loss and its metrics on a device: what is done with one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from brasa._backend import as_array, beside, to_device
from brasa.autograd import no_grad
from brasa.nn import Module
from brasa.tensor import Tensor

from .metrics import Metric, RunningMeans

__all__ = ["Engine"]


class Engine:
    """Run batches through a model.

    Parameters
    ----------
    model : Module
        Is moved to `device` and converted to `precision`.
    loss : callable
        ``loss(output, target)``.
    metrics : dict of str to Metric
        What is measured beside the loss.
    device : str or None
        None: where the model is.
    precision : str
        A floating dtype.
    """

    def __init__(
        self,
        model: Module,
        loss: Any,
        metrics: dict[str, Metric],
        *,
        device: str | None,
        precision: str,
    ) -> None:
        if precision not in ("float32", "float64"):
            raise ValueError(f"precision must be 'float32' or 'float64', got {precision!r}")
        self.model, self.loss, self.metrics = model, loss, metrics
        self._dtype = np.dtype(precision)
        if device is not None:
            to_device(np.empty(0), device)  # an error about the device names the argument
            model.to(device)
        params = list(model.parameters())
        if any(p.data.dtype.kind == "f" and p.data.dtype != self._dtype for p in params):
            model.to(self._dtype)
        # Batches go where the parameters are, which `Module.to` may change later.
        self._anchor = params[0] if params else Tensor(to_device(np.empty(0), device or "cpu"))

    @property
    def device(self) -> str:
        """Where the model is."""
        return self._anchor.device

    def new_means(self) -> RunningMeans:
        """Start measuring."""
        return RunningMeans(["loss", *self.metrics])

    def on_device(self, value: Any) -> Any:
        """The array that the model can take: on its device, and in its precision where floating."""
        array = beside(as_array(value), self._anchor.data)
        if array.dtype.kind == "f" and array.dtype != self._dtype:
            return array.astype(self._dtype)
        return array

    def forward(self, x: Any) -> Tensor:
        """Call the model; a tuple of arrays is its several arguments."""
        if isinstance(x, tuple | list):
            return self.model(*(self.on_device(part) for part in x))
        return self.model(self.on_device(x))

    def measure(self, means: RunningMeans, output: Tensor, target: Any, loss: Any) -> None:
        """Add a batch to the means."""
        samples = len(target)
        means.add("loss", loss, samples)
        for name, metric in self.metrics.items():
            means.add(name, metric(output.data, target), samples)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, and nothing recorded; afterwards as it was before."""
        was_training = self.model.training
        self.model.eval()
        try:
            with no_grad():
                yield
        finally:
            self.model.train(was_training)
