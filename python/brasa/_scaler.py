"""`GradScaler`: a factor on the loss that keeps small gradients from vanishing in float16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brasa import _backend, _capture
from brasa.ops import _check
from brasa.optim import Optimizer
from brasa.tensor import Tensor

__all__ = ["GradScaler"]

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # factors that float32 holds, with their inverses


@dataclass(slots=True)
class _Check:
    """What is known of an optimiser's gradients since the last `update`."""

    flags: list[Any] = field(default_factory=list)  # one number per device: not 0 after infinity or NaN
    unscaled: bool = False
    stepped: bool = False

    def found(self) -> bool:
        """Whether a gradient is infinite or NaN; waits for the device."""
        return any(bool(flag[0]) for flag in self.flags)


class GradScaler:
    """Scale a loss whose gradients pass through float16, and skip the updates in which they overflow.

    The loss is multiplied by a factor, so that gradients below 6e-8 do not become 0. Where a gradient of a
    parameter is infinite or NaN, the update is left out and the factor is halved; after `growth_interval`
    updates without that it is doubled. Weights, their gradients and the optimiser stay float32: `autocast`
    casts. bfloat16 needs none of this.

    Parameters
    ----------
    init_scale : float, default 65536
        The first factor. Powers of two cost no digits.
    growth_factor, backoff_factor : float, default 2 and 0.5
        What the factor is multiplied with, to grow and after an overflow.
    growth_interval : int, default 2000
        How many updates in a row without an overflow make it grow.
    enabled : bool, default True
        False: `scale` returns its argument, and `step` only steps.

    Attributes
    ----------
    skipped : int
        How many updates were left out so far.

    Raises
    ------
    ValueError
        For factors that do not grow and shrink or that float32 does not hold, or an interval below 1.
    TypeError
        For an interval that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> import brasa as br
    >>> model, x = br.nn.Linear(2, 1), np.ones((4, 2), np.float32)
    >>> optimizer, scaler = br.optim.SGD(model.parameters(), lr=0.1), br.GradScaler()
    >>> with br.autocast("float16"):
    ...     loss = model(x).mean()
    >>> scaler.scale(loss).backward()
    >>> scaler.step(optimizer)
    True
    >>> scaler.update()
    >>> scaler.get_scale()
    65536.0
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not 1 < growth_factor < float("inf"):
            raise ValueError(f"growth_factor: expected a finite number above 1, got {growth_factor!r}")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor: expected a number in (0, 1), got {backoff_factor!r}")
        self._scale = _positive("init_scale", init_scale)
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval = _check.integer("growth_interval", growth_interval, minimum=1)
        self._enabled = bool(enabled)
        self._clean = 0  # updates without an overflow since the factor changed
        self._checks: dict[int, _Check] = {}
        self.skipped = 0

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss, or each of a list or tuple of them, by the factor; 16 bits become float32 first."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(output) for output in outputs)
        if _backend.is_narrow(outputs.dtype):
            outputs = outputs.astype("float32")
        return outputs * self._factor(outputs)

    def _factor(self, outputs: Any) -> Any:
        """The factor, while a graph is captured as a number on the device, which a replay writes anew."""
        recording = _capture.current()
        array = outputs.data if isinstance(outputs, Tensor) else outputs
        if recording is None or _backend.device_of(array) == "cpu":
            return self._scale
        place = recording.reserve([self._scale], "float64")
        recording.renew(lambda: [self._scale])
        return place.astype(array.dtype).reshape(())

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimiser's gradients by the factor, in place, to clip or to look at them.

        `step` does not divide again.

        Raises
        ------
        RuntimeError
            The second time since `update`, after `step`, or while a graph is captured.
        TypeError
            For gradients of 16 bits: their parameters should be float32.
        """
        if not self._enabled:
            return
        _refuse_capture("unscale_")
        check = self._check_of(optimizer)
        if check.unscaled or check.stepped:
            raise RuntimeError(
                f"unscale_() after {'unscale_' if check.unscaled else 'step'}() of the same optimizer; "
                "update() comes first"
            )
        check.flags = _divide(optimizer, 1.0 / self._scale)
        check.unscaled = True

    def step(self, optimizer: Optimizer, *, scale: float = 1.0) -> bool:
        """Step the optimiser on the gradients divided by the factor, unless one is infinite or NaN.

        The device is waited for, once: a number tells whether to step.

        Parameters
        ----------
        optimizer : Optimizer
            Its gradients are those of a scaled loss, or were unscaled by `unscale_`.
        scale : float, default 1.0
            As of ``Optimizer.step``: multiplies the gradients as well.

        Returns
        -------
        bool
            Whether the parameters were updated.

        Raises
        ------
        RuntimeError
            The second time since `update`, or while a graph is captured: it is called after the graph.
        """
        if not self._enabled:
            optimizer.step(scale=scale)
            return True
        _refuse_capture("step")
        check = self._check_of(optimizer)
        if check.stepped:
            raise RuntimeError("step() a second time for the same optimizer; update() comes first")
        if not check.unscaled:
            check.flags = _divide(optimizer, 1.0)
            scale /= self._scale
        check.stepped = True
        if check.found():
            self.skipped += 1
            return False
        optimizer.step(scale=scale)
        return True

    def update(self, new_scale: float | None = None) -> None:
        """Let the factor shrink after an overflow, grow after many updates without, or be `new_scale`.

        Raises
        ------
        RuntimeError
            When no gradient was looked at since the last time, or while a graph is captured.
        ValueError
            For a `new_scale` that is not positive, or that float32 does not hold.
        """
        if not self._enabled:
            return
        _refuse_capture("update")
        if new_scale is not None:
            self._scale = _positive("new_scale", new_scale)
            self._checks = {}
            return
        checks, self._checks = list(self._checks.values()), {}
        if not checks:
            raise RuntimeError("update() without a step() or unscale_() since the last one")
        if any(check.found() for check in checks):
            self._scale = max(self._scale * self._backoff_factor, _SMALLEST)
            self._clean = 0
            return
        self._clean += 1
        if self._clean == self._growth_interval:
            self._scale = min(self._scale * self._growth_factor, _LARGEST)
            self._clean = 0

    def get_scale(self) -> float:
        """The factor; 1 where scaling is off."""
        return self._scale if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """The state, with PyTorch's names, and ``"skipped"``."""
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._clean,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of this class or of PyTorch's.

        Raises
        ------
        ValueError
            For a factor that is not positive.
        """
        self._scale = _positive("scale", state_dict["scale"])
        self._growth_factor = float(state_dict["growth_factor"])
        self._backoff_factor = float(state_dict["backoff_factor"])
        self._growth_interval = int(state_dict["growth_interval"])
        self._clean = int(state_dict["_growth_tracker"])
        self.skipped = int(state_dict.get("skipped", 0))
        self._checks = {}

    def _check_of(self, optimizer: Optimizer) -> _Check:
        return self._checks.setdefault(id(optimizer), _Check())


def _positive(name: str, value: Any) -> float:
    """`value` as a factor."""
    factor = _check.number(name, value)
    if not _SMALLEST <= factor <= _LARGEST:
        raise ValueError(f"{name}: expected a positive number that float32 holds, got {value!r}")
    return factor


def _refuse_capture(method: str) -> None:
    """A replay calls nothing here, and what `step` does depends on a number that the host reads."""
    if _capture.current() is not None:
        raise RuntimeError(
            f"graph: GradScaler.{method}() cannot be captured, because the host reads whether a gradient "
            "overflowed; capture scale() and backward(), and call unscale_(), step() and update() after the graph"
        )


def _divide(optimizer: Optimizer, factor: float) -> list[Any]:
    """Multiply all gradients by `factor` in place; flags that say whether one was infinite or NaN.

    One kernel for all gradients of a dtype and device. A factor of 1 only looks.
    """
    gradients: dict[tuple[str, Any], dict[int, Any]] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None:
                continue
            data = _own(param, factor)
            key = _backend.device_of(data), data.dtype
            gradients.setdefault(key, {})[id(data)] = data  # two parameters may have one array
    flags = []
    for arrays in gradients.values():
        several = list(arrays.values())
        backend = _backend.backend_of(several[0])
        flag = backend.namespace.zeros(1, "int32")
        backend.kernels.unscale_gradients(several, factor, flag)
        flags.append(flag)
    return flags


def _own(param: Tensor, factor: float) -> Any:
    """The gradient's array, as the kernel takes it."""
    assert param.grad is not None
    data = param.grad.data
    if data.dtype.char not in "fd":
        raise TypeError(
            f"a gradient is {data.dtype}: GradScaler needs float32 parameters, which autocast casts by itself"
        )
    if data.flags.c_contiguous and getattr(data.flags, "writeable", True):
        return data
    data = data.copy(order="C")
    if factor != 1:
        param.grad = Tensor(data)
    return data
