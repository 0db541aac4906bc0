"""brasa: deep learning on hand-written CPU and CUDA kernels, under a thin Python layer.

>>> import brasa as br
>>> from brasa import nn
>>> layer = nn.Linear(3, 2)
>>> layer([[1.0, 2.0, 3.0]]).shape
(1, 2)

What an attribute needs is imported when it is first asked for, so that ``import brasa`` costs little more
than NumPy.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_MODULES = ("autograd", "cuda", "data", "decode", "io", "models", "nn", "ops", "optim", "random", "testing")

_HOMES = {
    "_autocast": ("autocast",),
    "_config": (
        "empty_cache", "get_num_threads", "matmul_precision", "memory_stats", "set_matmul_precision",
        "set_num_threads", "show_config", "supported_isas",
    ),
    "_scaler": ("GradScaler",),
    "_profiler": ("detect_anomaly", "profile"),
    "_train": ("History", "Trainer", "callbacks", "metrics"),
    "autograd": ("enable_grad", "grad", "is_grad_enabled", "no_grad"),
    "nn._inference": ("inference",),
    "io": ("CheckpointError", "load", "load_metadata", "load_state", "save"),
    "random": ("Generator", "default_generator", "manual_seed"),
    "tensor": ("Tensor", "cat", "maximum", "minimum", "split", "stack", "where"),
}  # fmt: skip
_home_of = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(["__version__", *_MODULES, *_home_of])


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"brasa.{name}")
    if name not in _home_of:
        raise AttributeError(f"module 'brasa' has no attribute {name!r}")
    value = getattr(import_module(f"brasa.{_home_of[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
