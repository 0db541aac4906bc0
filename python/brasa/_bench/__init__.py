"""Benchmarks: cases, the interleaving harness and reports.

``brasa bench`` runs a handful of cases per family against NumPy. The repository's ``python -m bench`` runs
the shapes of real networks against PyTorch as well, on the same harness.
"""

from __future__ import annotations

from brasa._bench.command import main

__all__ = ["main"]
