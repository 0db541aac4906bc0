"""What a GPU makes of fixed inputs, PTX wrapper by PTX wrapper: recorded once, and held against the emulator.

    python tests/emulator/golden.py FOLDER FILE     # the module _cuda_selftest in FOLDER; tools/gpu_check.py golden

A file `golden/<compute capability>.npz` has the output of every case, and what its inputs were as a hash. Bits are
compared wherever PTX's manual defines them; a NaN is any NaN. Tensor cores add up in an order and with a rounding of
their own: for numbers that do not fit, `Case.rounding` bounds how far both may be apart, in units of the same product
of magnitudes.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulator.selftest import (
    DeviceArray,
    run_load_box,
    run_load_pixels,
    run_panel,
    run_store_pixels,
    run_wrapper,
)

FOLDER = Path(__file__).parent / "golden"
AMPERE, HOPPER = 80, 90
# Digits that the types' numbers have behind the point, and their least exponents.
FRACTION = {"tf32": 10, "bf16": 7, "f16": 10}
LEAST = {"tf32": -126, "bf16": -126, "f16": -14}
DEPTH = {"tf32": 8, "bf16": 16, "f16": 16}  # of one product


@dataclass
class Case:
    """One run of a wrapper; `magnitudes` are the inputs without their signs, for `rounding`."""

    name: str
    inputs: np.ndarray
    run: Callable[[ModuleType, np.ndarray], np.ndarray]
    capability: int = AMPERE
    rounding: float = 0.0
    least: float = 0.0  # what results may differ by beside it
    magnitudes: np.ndarray | None = None

    def digest(self) -> str:
        return hashlib.sha256(self.inputs.tobytes()).hexdigest()[:16]

    def difference(self, emulator: ModuleType, recorded: np.ndarray) -> str:
        """What the emulator makes otherwise than `recorded`, in words; empty where nothing is."""
        found = self.run(emulator, self.inputs)
        if found.shape != recorded.shape or found.dtype != recorded.dtype:
            return f"{found.dtype} {found.shape}, recorded {recorded.dtype} {recorded.shape}"
        bits = f"u{found.itemsize}"
        wrong = found.view(bits) != recorded.view(bits)
        if found.dtype.kind == "f":
            wrong &= ~(np.isnan(found) & np.isnan(recorded))
        if self.rounding or self.least:
            bound = np.full(found.shape, self.least)
            if self.magnitudes is not None:
                bound += self.rounding * np.abs(self.run(emulator, self.magnitudes).astype(np.float64))
            elif self.rounding:
                bound += self.rounding * np.abs(recorded)
            with np.errstate(invalid="ignore"):
                wrong &= ~(np.abs(found.astype(np.float64) - recorded) <= bound)
        if not wrong.any():
            return ""
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        return (
            f"{wrong.sum()} of {wrong.size} differ, the first at {first}: "
            f"emulator {_show(found[first])}, recorded {_show(recorded[first])}"
        )


def _show(x: np.generic) -> str:
    return f"{x!s} (0x{x.view(f'u{x.itemsize}'):x})"


# ---- numbers: from PCG64's raw words, which are the same in every version of NumPy


class Numbers:
    """Fixed numbers that look random."""

    def __init__(self, name: str) -> None:
        self.source = np.random.PCG64(zlib.crc32(name.encode()))

    def words(self, n: int) -> np.ndarray:
        return (self.source.random_raw(n) >> np.uint64(32)).astype(np.uint32)

    def integers(self, low: int, high: int, n: int) -> np.ndarray:
        """Whole numbers from low to high, both among them."""
        return low + (self.words(n) % np.uint32(high - low + 1)).astype(np.int64)

    def floats(self, kind: str, n: int, low: int = -3, high: int = 3) -> np.ndarray:
        """Numbers of that type with exponents from low to high."""
        fraction = 1 + self.integers(0, 2 ** FRACTION[kind] - 1, n) / 2.0 ** FRACTION[kind]
        sign = 1 - 2 * self.integers(0, 1, n)
        return sign * np.ldexp(fraction, self.integers(low, high, n))

    def subnormals(self, kind: str, n: int) -> np.ndarray:
        units = self.integers(1, 2 ** FRACTION[kind] - 1, n) * (1 - 2 * self.integers(0, 1, n))
        return np.ldexp(units.astype(np.float64), LEAST[kind] - FRACTION[kind])

    def to_be_rounded(self, n: int, low: int, high: int) -> np.ndarray:
        """Bits of float32 with exponents from low to high: ties, their neighbours, what is special."""
        exponent = self.integers(max(low + 127, 0), min(high + 127, 254), n).astype(np.uint32)
        tie = np.uint32(1) << self.integers(0, 22, n).astype(np.uint32)  # the last digit that is there
        fraction = (self.words(n) >> np.uint32(9)) & ~(tie - np.uint32(1)) | tie
        fraction += (self.integers(-1, 1, n) * (self.integers(0, 2, n) == 0)).astype(np.uint32)
        bits = (
            (self.words(n) & np.uint32(1 << 31)) | exponent << np.uint32(23) | fraction & np.uint32(0x7FFFFF)
        )
        special = np.array(
            [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x477FEFFF], np.uint32
        )
        bits[: special.size], bits[special.size : 2 * special.size] = special, special | np.uint32(1 << 31)
        return bits


def to_words(kind: str, x: np.ndarray) -> np.ndarray:
    """Words that hold x, which the type holds exactly: two of 16 bits in one, the first in the low half."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if kind == "tf32":
        return bits
    half = np.asarray(x, np.float16).view(np.uint16) if kind == "f16" else (bits >> 16).astype(np.uint16)
    return half.view(np.uint32)


# ---- cases


def wrapped(
    name: str, wrapper: str, inputs: np.ndarray, words: int, dtype: str = "u4", **options: object
) -> Case:
    """A case of wrappers.cu, whose results are `dtype`."""

    def run(module: ModuleType, x: np.ndarray) -> np.ndarray:
        return run_wrapper(module, wrapper, x, words).view(dtype)

    return Case(name, inputs, run, **options)  # type: ignore[arg-type]


def conversions() -> Iterator[Case]:
    n = 2048
    for kind, (low, high) in {"f16": (-27, 17), "bf16": (-140, 128)}.items():
        bits = Numbers(kind).to_be_rounded(n, low, high)
        numbers = bits[~np.isnan(bits.view(np.float32))]  # what of a NaN is kept is not defined
        for name in (f"narrow {kind}", f"narrow pair {kind}"):
            yield wrapped(name, name, numbers, numbers.size)
        yield wrapped(
            f"widen {kind}", f"widen {kind}", np.arange(0, 1 << 16, 13, dtype=np.uint32), 5042, "f4"
        )
    bits = Numbers("to tf32").to_be_rounded(n, -140, 128)
    yield wrapped("to tf32", "to tf32", bits, n, "f4")
    x = np.append(Numbers("exp2").integers(-(2**20), 2**20, n - 3) / 2.0**13, [-math.inf, math.inf, math.nan])
    # Each side within 2^-22 of the power; next to the least normal number one may be 0.
    yield wrapped(
        "exp2", "exp2", x.astype(np.float32).view(np.uint32), n, "f4", rounding=2**-21, least=2**-126
    )


def _product(
    name: str, wrapper: str, kind: str, x: np.ndarray, words: int, terms: int, capability: int
) -> Case:
    """A product in numbers that are rounded. A tensor core cuts terms off at 2^-23 of the greatest or finer, the
    emulator rounds each sum to 2^-24: together at most 1.5 x 2^-23 of the magnitudes' sum for each addition."""
    unsigned = x & np.uint32(0x7FFFFFFF if kind == "tf32" else 0x7FFF7FFF)
    rounding = 1.5 * (terms + 2) * 2.0**-23
    return wrapped(
        name, wrapper, x, words, "f4", capability=capability, rounding=rounding, magnitudes=unsigned
    )


def warp_products() -> Iterator[Case]:
    """Registers: four of A, two of B, four of float32 to which is added."""
    for kind in FRACTION:
        per, wrapper = (1 if kind == "tf32" else 2), f"mma {kind}"
        left, right = 4 * 32 * per, 2 * 32 * per

        def build(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str = kind) -> np.ndarray:
            added = np.ascontiguousarray(c, np.float32).view(np.uint32)
            return np.concatenate([to_words(kind, a), to_words(kind, b), added])

        def rounded(name: str, x: np.ndarray, kind: str = kind, wrapper: str = wrapper) -> Case:
            case = _product(f"{wrapper} {name}", wrapper, kind, x, 128, DEPTH[kind] + 1, AMPERE)
            case.magnitudes[6 * 32 :] = x[6 * 32 :] & np.uint32(0x7FFFFFFF)
            return case

        source = Numbers(wrapper)
        whole = [source.integers(-8, 8, n).astype(float) for n in (left, right, 128)]
        yield wrapped(f"{wrapper} integers", wrapper, build(*whole), 128, "f4")
        special = whole[0].copy()
        special[:3] = math.inf, -math.inf, math.nan
        yield wrapped(f"{wrapper} infinities", wrapper, build(special, *whole[1:]), 128, "f4")
        numbers = [source.floats(kind, n) for n in (left, right)]
        added = source.to_be_rounded(128, -3, 3)[-128:].view(np.float32).copy()
        added[~np.isfinite(added)] = 1
        added[np.abs(added) > 100] = 1
        yield rounded("numbers", build(*numbers, added))
        # The second half of the depth takes the first one away, and leaves what was added before.
        a = source.floats(kind, left, 4, 7).reshape(2, -1)
        b = source.floats(kind, right, 4, 7).reshape(2, -1)
        yield rounded("sums that cancel", build(np.append(a[0], -a[0]), np.append(b[0], b[0]), added))
        small = source.subnormals(kind, left)
        large = source.floats(kind, right, 12, 14)
        yield rounded("subnormal operands", build(small, large, np.zeros(128)))


def warp_copies() -> Iterator[Case]:
    for name in ("ldmatrix", "ldmatrix trans", "cp.async 4", "cp.async 8", "cp.async 16"):
        yield wrapped(name, name, Numbers(name).words(128), 128)
    yield wrapped("stmatrix", "stmatrix", Numbers("stmatrix").words(128), 128, capability=HOPPER)
    yield wrapped("named barrier", "named barrier", Numbers("named").words(32), 96)
    yield wrapped("grid barrier", "grid barrier", Numbers("grid").words(256), 512)
    small = Numbers("cluster").integers(0, 2**20, 1024).astype(np.uint32)
    yield wrapped("cluster", "cluster", small, 1024, capability=HOPPER)


def group_products() -> Iterator[Case]:
    """wgmma: images of shared memory, two products deep; `r` has registers of the left operand in front."""
    for kind in FRACTION:
        per = 1 if kind == "tf32" else 2
        along = [(f"{n} kk", n) for n in (32, 64, 128, 192, 256)] + [("64 rk", 64), ("128 rk", 128)]
        across = [(f"{n} {way}", n) for n in (64, 128) for way in ("mk", "kn", "mn", "rn")]
        for way, n in along + (across if per == 2 else []):
            wrapper = f"wgmma {kind} {way}"
            left = {"k": 64 * 32, "m": 32 * 32, "r": 8 * 128}[way[-2]]
            right = 32 * n if way[-1] == "k" else 32 * 32 * n // 64
            source, items = Numbers(wrapper), (left + right) * per
            whole = to_words(kind, source.integers(-1, 1, items).astype(float))
            yield wrapped(f"{wrapper} integers", wrapper, whole, 64 * n, "f4", capability=HOPPER)
            if way in ("64 kk", "64 rk"):
                x = to_words(kind, source.floats(kind, items))
                yield _product(f"{wrapper} numbers", wrapper, kind, x, 64 * n, 2 * DEPTH[kind] + 1, HOPPER)
    yield wrapped("setmaxnreg", "setmaxnreg", Numbers("setmaxnreg").words(384), 384, capability=HOPPER)


def copy_engine() -> Iterator[Case]:
    """Boxes of four dimensions, boxes of three both ways, pixels of images both ways, loads for several blocks."""

    def numbers(name: str, *shape: int) -> np.ndarray:
        return Numbers(name).integers(1, 999, math.prod(shape)).astype(np.uint16).reshape(shape)

    def add(name: str, x: np.ndarray, run: Callable[[ModuleType, np.ndarray], np.ndarray]) -> Case:
        return Case(name, x, run, HOPPER)

    box = numbers("box", 3, 2, 30, 72)
    for at in ((0, 0, 0, 0), (64, 0, 1, 2), (0, 24, 1, 1), (0, 30, 0, 1), (0, 0, 2, 0), (-8, -3, 0, 2)):
        yield add(f"load box {at}", box, lambda m, x, at=at: run_load_box(m, x, at))
    images = numbers("images", 2, 6, 7, 72)
    for walk, at in (
        (((-1, -1), (7, 6), (1, 1)), (0, -1, -1, 0, 0, 0)),
        (((-1, -1), (7, 6), (1, 1)), (64, 4, 2, 1, 2, 1)),
        (((-2, -1), (4, 4), (2, 2)), (0, 0, 1, 0, 3, 2)),
        (((0, 0), (5, 4), (1, 1)), (0, 3, 3, 1, 2, 2)),
    ):
        run = lambda m, x, walk=walk, at=at: run_load_pixels(m, x, walk, at)  # noqa: E731
        yield add(f"load pixels {walk} {at}", images, run)
    pixels, shape = numbers("pixels", 24, 64), (2, 6, 7, 72)
    for walk, at in (
        (((-1, -1), (7, 6), (1, 1)), (0, -1, -1, 0, 0, 0)),
        (((0, 0), (4, 3), (2, 2)), (64, 4, 2, 1, 0, 0)),
    ):
        run = lambda m, x, walk=walk, at=at: run_store_pixels(m, x, shape, walk, at)  # noqa: E731
        yield add(f"store pixels {walk} {at}", pixels, run)
    whole = Numbers("panel").integers(-4, 4, 64 * 64).astype(np.float32).reshape(64, 64)
    yield add("store box", whole, lambda m, x: run_panel(m, "copy", x))
    yield add("square", whole, lambda m, x: run_panel(m, "square", x))
    yield add("multicast", numbers("multicast", 192, 64), _multicast)


def _multicast(module: ModuleType, x: np.ndarray) -> np.ndarray:
    source, sums = DeviceArray(module, x), DeviceArray(module, np.zeros((2, 3), np.float32))
    module.multicast(source.address, sums.address, 0)
    return sums.get()


def collectives() -> Iterator[Case]:
    def shuffles(module: ModuleType, x: np.ndarray) -> np.ndarray:
        y = DeviceArray(module, np.zeros(6 * 32, np.int32))
        module.shuffles(y.address)
        return y.get()

    def sums(module: ModuleType, x: np.ndarray) -> np.ndarray:
        reduce = getattr(module, f"row_statistics_{x.dtype.name}")
        source, y = DeviceArray(module, x), DeviceArray(module, np.zeros((2, len(x)), x.dtype))
        reduce(source.address, y.address, y.address + len(x) * x.itemsize, *x.shape, 96)
        return y.get()

    def odd(module: ModuleType, x: np.ndarray) -> np.ndarray:
        source, y = DeviceArray(module, x), DeviceArray(module, np.zeros(17, np.int32))
        module.histogram(source.address, y.address, y.address + 64, x.size)
        return y.get()

    def atomics(module: ModuleType, x: np.ndarray) -> np.ndarray:
        y = DeviceArray(module, x)
        module.atomics(y.address, 100)
        return np.delete(y.get(), 4)  # who comes first is not defined

    yield Case("shuffles", np.zeros(0), shuffles)
    for dtype in (np.float32, np.float64):
        x = Numbers("sums").floats("bf16", 3 * 700, -20, 20).astype(dtype).reshape(3, 700)
        yield Case(f"sums of a block, {x.dtype.name}", x, sums)
    yield Case("votes", Numbers("votes").integers(0, 15, 1000).astype(np.int32), odd)
    yield Case("atomics", np.zeros(8, np.int32), atomics)


def cases(capability: int = HOPPER) -> list[Case]:
    """The cases that a GPU of that capability runs; Hopper's own instructions are last, and are its alone."""
    parts = (conversions, warp_products, warp_copies, collectives, copy_engine, group_products)
    everything = [case for part in parts for case in part()]
    return [case for case in everything if case.capability in (AMPERE, capability)]


# ---- files


def _small(array: np.ndarray) -> np.ndarray:
    """float32 that are small whole numbers, none of them -0, as int16, which no case has; others as they are."""
    if array.dtype != np.float32 or not (np.abs(array) < 2**15).all():
        return array
    whole = array.astype(np.int16)
    return whole if whole.astype(np.float32).tobytes() == array.tobytes() else array


def save(path: Path, about: dict[str, object], outputs: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, about=np.array(json.dumps(about)), **{k: _small(v) for k, v in outputs.items()})


def load(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What save() wrote: (about, outputs)."""
    with np.load(path, allow_pickle=False) as file:
        outputs = {name: file[name] for name in file.files}
    for name, array in outputs.items():
        outputs[name] = array.astype(np.float32) if array.dtype == np.int16 else array
    return json.loads(str(outputs.pop("about"))), outputs


def record(module: ModuleType, path: Path, capability: int, **about: object) -> int:
    """Run every case and write what comes out, also where one fails; returns how many were run."""
    outputs: dict[str, np.ndarray] = {}
    digests: dict[str, str] = {}
    try:
        for case in cases(capability):
            print(case.name, flush=True)  # the last one, where a kernel hangs
            outputs[case.name] = case.run(module, case.inputs)
            digests[case.name] = case.digest()
    finally:
        save(path, {"capability": capability, "inputs": digests, **about}, outputs)
    return len(outputs)


def compare(emulator: ModuleType, path: Path, case: Case) -> str:
    """How the emulator differs from the recorded file, in words; empty where it does not."""
    about, outputs = load(path)
    if about["inputs"][case.name] != case.digest():
        return "recorded from other inputs: record it anew, or give the case a new name"
    return case.difference(emulator, outputs[case.name])


def main(folder: str, file: str) -> int:
    """Record what this machine's GPU does."""
    sys.path.insert(0, folder)
    import _cuda_selftest

    capability, about = _cuda_selftest.device()
    print(f"{record(_cuda_selftest, Path(file), capability, device=about)} cases of capability {capability}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
