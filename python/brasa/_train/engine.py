"""A model, its loss and its metrics on a device: what is done with one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from brasa._autocast import autocast
from brasa._backend import as_array, backend_of, beside, cast, is_narrow, to_device
from brasa.autograd import no_grad
from brasa.nn import Module
from brasa.tensor import Tensor

from .metrics import Metric, RunningMeans, total
from .transfer import copied_ahead

__all__ = ["PRECISIONS", "Engine"]

# What the model is converted to, and what its products are made in where that differs.
PRECISIONS = {
    "float32": ("float32", None),
    "float64": ("float64", None),
    "bf16": ("float32", "bfloat16"),
    "fp16": ("float32", "float16"),
}


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
        One of `PRECISIONS`.
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
        if precision not in PRECISIONS:
            known = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"precision must be one of {known}, got {precision!r}")
        self.model, self.loss, self.metrics = model, loss, metrics
        weights, self._narrow = PRECISIONS[precision]
        self._dtype = np.dtype(weights)
        if device is not None:
            to_device(np.empty(0), device)  # an error about the device names the argument
            model.to(device)
        params = list(model.parameters())
        if any(p.data.dtype.kind == "f" and p.data.dtype != self._dtype for p in params):
            model.to(self._dtype)
        # Batches go where the parameters are, which `Module.to` may change later.
        self._anchor = params[0] if params else Tensor(to_device(np.empty(0), device or "cpu"))
        if self._narrow and backend_of(self._anchor.data).name == "cpu":
            raise ValueError(
                f"precision {precision!r} is for CUDA, and the model is on the CPU: pass device='cuda', or "
                "precision='float32'"
            )

    @property
    def device(self) -> str:
        """Where the model is."""
        return self._anchor.device

    def new_means(self) -> RunningMeans:
        """Start measuring."""
        return RunningMeans(["loss", *self.metrics])

    def converted(self, value: Any) -> Any:
        """The array of `value`, in the model's precision where floating."""
        array = as_array(value)
        if array.dtype.kind == "f" and array.dtype != self._dtype:
            return array.astype(self._dtype)
        return array

    def on_device(self, value: Any) -> Any:
        """The array that the model can take: on its device, and in its precision where floating."""
        return beside(self.converted(value), self._anchor.data)

    def batches(
        self, batches: Iterable[tuple[Any, Any]], position: Callable[[], Any] = lambda: None
    ) -> Iterator[tuple[Any, Any, Any]]:
        """(x, y, position()) of every batch; on a GPU they are copied there ahead of their use."""
        if self.device != "cpu":
            yield from copied_ahead(batches, self.converted, self._anchor.data, position)
            return
        for x, y in batches:
            yield x, y, position()

    def inputs(self, x: Any) -> tuple[Any, ...]:
        """The arguments of the model, on its device; a tuple of arrays is several."""
        return tuple(
            [self.on_device(part) for part in x] if isinstance(x, tuple | list) else [self.on_device(x)]
        )

    def call(self, *inputs: Any) -> Tensor:
        """Call the model with arrays on its device."""
        with self._precision():
            return self.model(*inputs)

    def forward(self, x: Any) -> Tensor:
        """Call the model with `inputs`."""
        return self.call(*self.inputs(x))

    def loss_of(self, output: Tensor, target: Any) -> Tensor:
        """The loss of a batch."""
        with self._precision():
            return self.loss(output, target)

    def values(self, output: Tensor) -> Any:
        """The array of an output, of 16 bits as float32."""
        return cast(output.data, "float32") if is_narrow(output.dtype) else output.data

    def totals(self, output: Tensor, target: Any, loss: Any) -> dict[str, tuple[Any, int]]:
        """What a batch adds to the means."""
        samples, values = len(target), self.values(output)
        measured = {name: metric(values, target) for name, metric in self.metrics.items()}
        return {name: total(value, samples) for name, value in {"loss": loss, **measured}.items()}

    def _precision(self) -> AbstractContextManager[None]:
        return autocast(self._narrow) if self._narrow else nullcontext()

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
