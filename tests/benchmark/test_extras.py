"""What `python -m bench` measures beside its cases: sweeps, lesser instruction sets, the footprint."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import footprint, isa, sweep

from brasa._bench.harness import Case
from brasa._bench.limits import Limits


def limits():
    """A machine of 100 GFLOP/s and 10 GB/s."""
    return Limits(lambda: 1e11, lambda traffic, size: 1e10)


def test_fit_finds_the_exponents_and_where_they_change():
    sizes = np.array([2.0**i for i in range(12)])
    times = np.where(sizes < 40, 5.0 * sizes**0.5, 0.1 * sizes**2.5)
    noisy = times * np.exp(np.random.default_rng(0).normal(0, 0.02, 12))
    first, second = sweep.fit(sizes, noisy)
    assert (first.last, second.first) == (32, 64)
    assert first.exponent == pytest.approx(0.5, abs=0.05)
    assert second.exponent == pytest.approx(2.5, abs=0.05)


def test_fit_sees_a_step_without_another_slope():
    sizes = np.array([2.0**i for i in range(10)])
    pieces = sweep.fit(sizes, np.where(sizes < 20, 1.0, 3.0) * sizes)
    assert [piece.exponent for piece in pieces] == [1.0, 1.0]


@pytest.mark.parametrize("sizes", [[1, 2], [1, 2, 2], [3, 2, 1]])
def test_fit_refuses(sizes):
    with pytest.raises(ValueError, match="sizes"):
        sweep.fit(sizes, [1.0] * len(sizes))


def test_a_sweep_by_name(monkeypatch):
    few = {name: (axis, make, sizes[:3]) for name, (axis, make, sizes) in sweep.SWEEPS.items()}
    monkeypatch.setattr(sweep, "SWEEPS", few)
    lines = []
    found = sweep.run(limits(), lines.append, 1, "bwd")
    assert list(found) == ["conv bwd-weight"]
    assert len(found["conv bwd-weight"]["seconds"]) == 3
    assert len(lines) == 1


def test_lesser_instruction_sets(monkeypatch):
    before, seen = isa._cpu.isa(), []
    names = [name for name in isa._cpu.supported_isas() if name != "scalar"]
    case = Case("family", "name", lambda: {"brasa": lambda: seen.append(isa._cpu.isa())}, 1e6)
    monkeypatch.setattr(isa, "chosen", lambda: iter([case]))
    monkeypatch.setattr(isa, "Limits", limits)
    found = isa.run(lambda _: None, 1)
    assert list(found) == list(dict.fromkeys(seen)) == names[: names.index(before)]
    assert isa._cpu.isa() == before
    assert all(part["results"][0]["name"] == "name" for part in found.values())


def test_footprint_of_a_small_step():
    found = footprint.peak_memory("lenet", 1, ("brasa",))
    assert 1e5 < found["brasa"]["growth"] < found["brasa"]["total"] < 1e9
    sizes = footprint.installed_bytes()
    assert 0 < sizes["brasa, packed"] < sizes["brasa"]
