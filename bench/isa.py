"""The kernels of the CPU's lesser instruction sets, each against its own peak.

An AVX-512 machine measures them too: as on a CPU that has no more, up to the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from bench.families import layers
from brasa import _cpu
from brasa._bench import cases, report
from brasa._bench.harness import Case, measure
from brasa._bench.limits import Limits

_CONVOLUTIONS = (("resnet50", 2), ("resnet50", 3), ("vgg16", 5))  # 3x3 and 1x1 on 56x56 pixels, 3x3 on 28x28


def chosen() -> Iterator[Case]:
    """Two products, three convolutions, an LSTM."""
    for n in (512, 1024):
        yield cases.matmul(n, n, n, ())
    for network, i in _CONVOLUTIONS:
        layer = layers(f"{network}_conv")[i]
        label = (
            f"{network} {i + 1} {layer['C']}->{layer['O']} {layer['kernel']}x{layer['kernel']} {layer['H']}"
        )
        yield cases.conv2d(layer, (), label=label)
    yield cases.recurrent("lstm", 50, 32, 128, 256, ())


def run(tell: Callable[[str], None], rounds: int = 5) -> dict[str, dict[str, Any]]:
    """Measure on every instruction set below the one in use; the scalar one is only there to compare with."""
    before = _cpu.isa()
    names = [name for name in _cpu.supported_isas() if name != "scalar"]
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in names[: names.index(before)] if before in names else []:
            _cpu._set_isa(name)
            found[name] = _measured(tell, rounds)
    finally:
        _cpu._set_isa(before)
    return found


def _measured(tell: Callable[[str], None], rounds: int) -> dict[str, Any]:
    machine = Limits()
    tell(report.machine_line(machine))
    results = []
    for case in chosen():
        results.append(measure(case, machine, rounds, patience=1.0))
        tell(report.line(results[-1]))
    return {
        "peak_gflops": round(machine.peak / 1e9, 1),
        "results": [report.rounded({**asdict(result), "commit": report.commit()}) for result in results],
    }
