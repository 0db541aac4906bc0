"""Training steps as CUDA graphs, one for each shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brasa.cuda import Graph

__all__ = ["CapturedSteps", "require_capturable"]

_MOST = 8  # shapes: each graph keeps the memory of its step


def require_capturable(device: str, accumulate: int) -> None:
    """Raise ValueError where the steps of a trainer have no graph."""
    if not device.startswith("cuda"):
        raise ValueError(
            f"graph=True captures a CUDA graph, and the model is on the {device}; pass device='cuda'"
        )
    if accumulate > 1:
        raise ValueError(f"graph=True updates after every batch, got accumulate={accumulate}")


class CapturedSteps:
    """Calls a step by the graph for the shapes of its arrays.

    The first step of a shape runs as it is, the second is captured. Shapes beyond the eighth are not: where
    every batch has a shape of its own, graphs gain nothing.

    Parameters
    ----------
    step : callable
        ``step(*arrays)``, of device arrays.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step = step
        self._graphs: dict[Any, Graph] = {}

    def __call__(self, *arrays: Any) -> Any:
        key = tuple((a.shape, a.dtype, a.strides) for a in arrays)
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) == _MOST:
                return self._step(*arrays)
            graph = self._graphs[key] = Graph(self._step)
        return graph(*arrays)
