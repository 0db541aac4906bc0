"""Fixtures of the emulator's own tests."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest

PLAIN, RACE = "_emu_selftest", "_emu_selftest_race"


@pytest.fixture(params=[PLAIN, RACE])
def emulator(request: pytest.FixtureRequest, built_modules: None) -> ModuleType:
    """Either test module, in its initial state."""
    return load(request.param)


@pytest.fixture
def plain(built_modules: None) -> ModuleType:
    """The module without race check."""
    return load(PLAIN)


@pytest.fixture
def race(built_modules: None) -> ModuleType:
    """The module with race check."""
    return load(RACE)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


def load(name: str) -> ModuleType:
    module = importlib.import_module(name)
    module.set_option("order", "forward")
    module.set_option("async", "lazy")
    module.set_option("seed", 1)
    module.set_option("race", "on" if name == RACE else "off")
    return module
