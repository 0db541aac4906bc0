"""`GradScaler`: a factor on the loss that keeps small gradients from vanishing in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from brasa import _backend, _capture, _cpu
from brasa._scaler_capture import Check, OnDevice
from brasa.ops import _check
from brasa.optim import Optimizer
from brasa.tensor import Tensor

__all__ = ["GradScaler"]

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # factors that float32 holds, with their inverses


class GradScaler:
    """Scale a loss whose gradients pass through float16, and skip the updates in which they overflow.

    The loss is multiplied by a factor, so that gradients below 6e-8 do not become 0. Where a gradient of a
    parameter is infinite or NaN, the update is left out and the factor is halved; after `growth_interval`
    updates without that it is doubled. Weights, their gradients and the optimiser stay float32: `autocast`
    casts. bfloat16 needs none of this.

    A whole step, ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``, can be captured by
    `brasa.cuda.graph`: then the device decides whether to update, and the host asks it after every eighth
    replay, or earlier where the factor, `skipped` or the optimiser's state is read.

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
        factor = _positive("init_scale", init_scale)
        interval = _check.integer("growth_interval", growth_interval, minimum=1)
        # The kernel's ScaleState: the factor, the updates since it changed, and how it changes. A graph may be ahead.
        self._state = np.array([factor, 0, growth_factor, backoff_factor, interval], np.float64)
        self._ahead: OnDevice | None = None
        self._enabled = bool(enabled)
        self._checks: dict[int, Check] = {}
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """How many updates were left out so far."""
        self._catch_up()
        return self._skipped

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss, or each of a list or tuple of them, by the factor; 16 bits become float32 first."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(output) for output in outputs)
        if _backend.is_narrow(outputs.dtype):
            outputs = outputs.astype("float32")
        array = outputs.data if isinstance(outputs, Tensor) else outputs
        if _backend.device_of(array) == "cpu":
            return outputs * self._scale
        factor = self._factor()
        return outputs * (factor if type(factor) is float else factor.astype(array.dtype))

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimiser's gradients by the factor, in place, to clip or to look at them.

        `step` does not divide again.

        Raises
        ------
        RuntimeError
            The second time since `update`, or after `step`.
        TypeError
            For gradients of 16 bits: their parameters should be float32.
        """
        if not self._enabled:
            return
        check = self._check_of(optimizer)
        if check.unscaled or check.stepped:
            raise RuntimeError(
                f"unscale_() after {'unscale_' if check.unscaled else 'step'}() of the same optimizer; "
                "update() comes first"
            )
        _divide(optimizer, 1.0 / self._factor(), check)
        check.unscaled = True

    def step(self, optimizer: Optimizer, *, scale: Any = 1.0) -> bool | None:
        """Step the optimiser on the gradients divided by the factor, unless one is infinite or NaN.

        The device is waited for, once: a number tells whether to step. While a graph is captured nothing is
        waited for, and the optimiser's kernels look at that number.

        Parameters
        ----------
        optimizer : Optimizer
            Its gradients are those of a scaled loss, or were unscaled by `unscale_`.
        scale : float, default 1.0
            As of ``Optimizer.step``: multiplies the gradients as well.

        Returns
        -------
        bool or None
            Whether the parameters were updated. None while a graph is captured: every replay decides anew.

        Raises
        ------
        RuntimeError
            The second time since `update`.
        """
        if not self._enabled:
            optimizer.step(scale=scale)
            return True
        check = self._check_of(optimizer)
        if check.stepped:
            raise RuntimeError("step() a second time for the same optimizer; update() comes first")
        if not check.unscaled:
            _divide(optimizer, 1.0, check)
            scale = scale / self._factor()
        check.stepped = True
        recording = _capture.current()
        if recording is not None:
            recording.guard = check.guard
            optimizer.step(scale=scale)
            recording.guard = None
            return None
        if check.found():
            self._skipped += 1
            return False
        optimizer.step(scale=scale)
        return True

    def update(self, new_scale: float | None = None) -> None:
        """Let the factor shrink after an overflow, grow after many updates without, or be `new_scale`.

        Raises
        ------
        RuntimeError
            When no gradient was looked at since the last time; for a `new_scale` while a graph is captured.
        ValueError
            For a `new_scale` that is not positive, or that float32 does not hold.
        """
        if not self._enabled:
            return
        on_device = self._on_device()
        if on_device is None:
            self._catch_up()
        if new_scale is not None:
            if on_device is not None:
                raise RuntimeError(
                    "graph: update() takes no new_scale in a captured step; call it after the graph"
                )
            self._state[:1] = _positive("new_scale", new_scale)
            self._checks = {}
            return
        checks = self._checks if on_device is None else on_device.checks
        if not checks:
            raise RuntimeError("update() without a step() or unscale_() since the last one")
        if on_device is not None:
            on_device.update()
            return
        overflow = any(check.found() for check in checks.values())
        _cpu.update_scale(self._state, np.array([[overflow, 0]], np.int32))
        self._checks = {}

    def get_scale(self) -> Any:
        """The factor; 1 where scaling is off.

        While a graph is captured it is one float64 on the device, which every replay reads anew.
        """
        return self._factor() if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """The state, with PyTorch's names, and ``"skipped"``."""
        self._catch_up()
        factor, clean, growth, backoff, interval = self._state.tolist()
        return {
            "scale": factor,
            "growth_factor": growth,
            "backoff_factor": backoff,
            "growth_interval": int(interval),
            "_growth_tracker": int(clean),
            "skipped": self._skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of this class or of PyTorch's.

        Raises
        ------
        ValueError
            For a factor that is not positive.
        """
        factor = _positive("scale", state_dict["scale"])
        options = [state_dict[name] for name in ("growth_factor", "backoff_factor", "growth_interval")]
        self._catch_up()
        self._state[:] = factor, state_dict["_growth_tracker"], *options
        self._skipped = int(state_dict.get("skipped", 0))
        self._checks = {}

    def _check_of(self, optimizer: Optimizer) -> Check:
        on_device = self._on_device()
        if on_device is not None:
            return on_device.check_of(optimizer)
        return self._checks.setdefault(id(optimizer), Check())

    # --- the factor, here or on a device ----------------------------------------------------------

    @property
    def _scale(self) -> float:
        self._catch_up()
        return float(self._state[0])

    def _factor(self) -> Any:
        """The factor, in a captured step as a number on the device."""
        on_device = self._on_device()
        return self._scale if on_device is None else on_device.state[0]

    def _on_device(self) -> OnDevice | None:
        """What belongs to the graph that is captured now."""
        recording = _capture.current()
        if recording is None:
            return None
        known = recording.owners.get(id(self))
        if known is None:
            with recording.outside():
                self._catch_up()
            known = recording.owners[id(self)] = OnDevice(self, recording)
        return known

    def _catch_up(self) -> None:
        """Learn what the replays of a graph did; waits for the device where there were some."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.read()


def _positive(name: str, value: Any) -> float:
    """`value` as a factor."""
    factor = _check.number(name, value)
    if not _SMALLEST <= factor <= _LARGEST:
        raise ValueError(f"{name}: expected a positive number that float32 holds, got {value!r}")
    return factor


def _divide(optimizer: Optimizer, factor: Any, check: Check) -> None:
    """Multiply all gradients by `factor` in place, and let `check` know where one was infinite or NaN.

    One kernel for all gradients of a dtype and device. A factor of 1 only looks.
    """
    number, at = (factor, None) if type(factor) is float else (1.0, factor)
    gradients: dict[tuple[str, Any], dict[int, Any]] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is None:
                continue
            data = _own(param, changes=at is not None or number != 1)
            key = _backend.device_of(data), data.dtype
            gradients.setdefault(key, {})[id(data)] = data  # two parameters may have one array
    for arrays in gradients.values():
        several = list(arrays.values())
        backend = _backend.backend_of(several[0])
        if check.guard is None:
            check.flags.append(backend.namespace.zeros(1, "int32"))
        backend.kernels.unscale_gradients(several, number, at, check.flags[-1])


def _own(param: Tensor, changes: bool) -> Any:
    """The gradient's array, as the kernel takes it, which `changes` it."""
    assert param.grad is not None
    data = param.grad.data
    if data.dtype.char not in "fd":
        raise TypeError(
            f"a gradient is {data.dtype}: GradScaler needs float32 parameters, which autocast casts by itself"
        )
    if data.flags.c_contiguous and getattr(data.flags, "writeable", True):
        return data
    data = data.copy(order="C")
    if changes:
        param.grad = Tensor(data)
    return data
