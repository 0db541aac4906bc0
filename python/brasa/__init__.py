"""brasa: deep learning on hand-written CPU and CUDA kernels, under a thin Python layer."""

from __future__ import annotations

__version__ = "0.1.0"
