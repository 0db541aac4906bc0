"""A GPU under the benchmark: what it gives at most, and turns timed by its own events.

Python needs longer to launch a small kernel than the GPU to run it. So a turn is queued behind a memset long enough
that every launch is waiting when the turn begins: what is timed are kernels. Where a user waits for Python too
(whole steps, what a call costs), nothing is put in front.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from brasa._bench.harness import Call, Timer
from brasa._bench.limits import Limits

with suppress(ImportError):  # a machine without it may still import every module, as doctests do
    import cupy

_MOST = 1 << 30  # bytes of a probe, many times the L2 cache
_TURN = 0.004  # seconds of timed work per turn
_MOST_CALLS = 100  # in a turn: more launches than about 1000 do not fit into the queue
_BLOCK = 2 << 30  # bytes of the memset in front
_SLACK = 1.5  # times what the launches take
_THREADS, _UNROLL = 256, 4
_CHAINS, _STEPS, _ROUNDS = 8, 16, 256  # of fused multiply-adds in a thread

_PROBES = r"""
extern "C" __global__ void multiply_add(float* out, float a, float b, int rounds) {
  float chain[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) chain[i] = threadIdx.x + i;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) chain[i] = fmaf(chain[i], a, b);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum += chain[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

#define FOR_EACH(k) for (int k = 0; k < UNROLL; ++k)
#define FIRST (blockIdx.x * (long long)(blockDim.x * UNROLL) + threadIdx.x)

extern "C" __global__ void copy(const float4* x, float4* y, long long n) {
  float4 v[UNROLL];
#pragma unroll
  FOR_EACH(k) if (FIRST + k * blockDim.x < n) v[k] = x[FIRST + k * blockDim.x];
#pragma unroll
  FOR_EACH(k) if (FIRST + k * blockDim.x < n) y[FIRST + k * blockDim.x] = v[k];
}

extern "C" __global__ void read(const float4* x, float4* y, long long n) {
  float4 sum = {0, 0, 0, 0};
#pragma unroll
  FOR_EACH(k) {
    if (FIRST + k * blockDim.x >= n) break;
    const float4 v = x[FIRST + k * blockDim.x];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  if (sum.x + sum.y + sum.z + sum.w == 0.5f) y[0] = sum;  // hardly ever, but the compiler cannot know
}
"""


def _seconds(call: Call, repeats: int = 1) -> float:
    """Seconds of the GPU per call."""
    before, after = cupy.cuda.Event(), cupy.cuda.Event()
    before.record()
    for _ in range(repeats):
        call()
    after.record()
    after.synchronize()
    return cupy.cuda.get_elapsed_time(before, after) / 1e3 / repeats


class Probes:
    """The rates of fused multiply-adds and of three kinds of traffic. The arrays are shared by all sizes."""

    def __init__(self) -> None:
        options = (f"-DCHAINS={_CHAINS}", f"-DSTEPS={_STEPS}", f"-DUNROLL={_UNROLL}")
        module = cupy.RawModule(code=_PROBES, options=options)
        self._fma, self._copy, self._read = map(module.get_function, ("multiply_add", "copy", "read"))
        self._x = cupy.ones(_MOST // 8, cupy.float32)
        self._y = cupy.empty_like(self._x)
        self._blocks = 16 * cupy.cuda.Device().attributes["MultiProcessorCount"]

    def peak(self) -> float:
        """Fused multiply-adds of float32, as two operations each, per second."""
        a, b = cupy.float32(0.999), cupy.float32(0.001)
        arguments = (self._y, a, b, cupy.int32(_ROUNDS))
        seconds = min(_seconds(lambda: self._fma((self._blocks,), (_THREADS,), arguments)) for _ in range(2))
        return 2.0 * self._blocks * _THREADS * _ROUNDS * _STEPS * _CHAINS / seconds

    def bandwidth(self, traffic: str, nbytes: int) -> float:
        """Bytes per second of a copy, of reading, or of a pass over an array in place, within `nbytes`."""
        kernel = self._read if traffic == "read" else self._copy
        count = nbytes // (16 if traffic == "read" else 32)  # of 16 bytes each
        source, target = self._x, self._x if traffic == "update" else self._y
        if traffic == "read":
            count = min(count, self._x.nbytes // 16)
        grid = (-(-count // (_THREADS * _UNROLL)),)

        def once() -> None:
            kernel(grid, (_THREADS,), (source, target, cupy.int64(count)))

        moved = 16.0 * count * (1 if traffic == "read" else 2)
        repeats = max(1, min(50, int(2e9 / moved)))
        once()
        return moved / min(_seconds(once, repeats) for _ in range(2))


def limits(tensor_cores: dict[str, float]) -> Limits:
    """The limits of the current GPU, given what `tensor_core_rates` found."""
    probes = Probes()
    rates = {name.removesuffix("_gflops"): 1e9 * rate for name, rate in tensor_cores.items()}
    return Limits(probes.peak, probes.bandwidth, _MOST, rates)


def timer(launches: bool) -> Timer:
    """Turns on the current GPU; with `launches` the time that Python needs to launch kernels counts too."""
    block = cupy.empty(_BLOCK, cupy.uint8)

    def wait() -> None:
        block.data.memset_async(0, block.nbytes)

    wait()
    of_wait = min(_seconds(wait) for _ in range(3))

    def plan(call: Call) -> tuple[int, int]:
        """The calls of a turn, and the memsets in front of it."""
        call()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        call()
        of_launch = time.perf_counter() - start
        cupy.cuda.Device().synchronize()
        calls = max(1, min(_MOST_CALLS, int(_TURN / _seconds(call, 2))))
        return calls, 0 if launches else math.ceil(_SLACK * calls * of_launch / of_wait)

    def turn(call: Call, calls: int, waits: int) -> float:
        call()
        for _ in range(waits):
            wait()
        return _seconds(call, calls)

    return Timer(plan, turn)


def timers() -> Callable[[bool], Timer]:
    """What `timer` gives, made once for each answer."""
    made = {launches: timer(launches) for launches in (False, True)}
    return made.__getitem__


def with_tf32(calls: dict[str, Call]) -> dict[str, Call]:
    """PyTorch's calls as those of one more peer, which computes products in TF32 (10 bits of fraction)."""
    import torch

    def switched(call: Call) -> Call:
        def run() -> Any:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            try:
                return call()
            finally:
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

        return run

    peers = {name: call for name, call in calls.items() if name.partition("/")[0] == "torch"}
    return calls | {name.replace("torch", "torch-tf32", 1): switched(call) for name, call in peers.items()}


def prepare_torch() -> None:
    """PyTorch in plain float32, with cuDNN's best algorithm for every shape."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def tensor_core_rates(n: int = 8192) -> dict[str, float]:
    """What cuBLAS reaches on n x n products of normal numbers in bfloat16 and TF32, GFLOP/s: for comparison."""
    import torch

    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        call = with_tf32({"torch": lambda a=a, b=b: a @ b})["torch-tf32"]  # type: ignore[misc]
        call()
        rates[f"{name}_gflops"] = 2e-9 * n**3 / min(_seconds(call, 5) for _ in range(3))
    return rates


def describe() -> dict[str, Any]:
    """The current GPU, as it describes itself."""
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": found["name"].decode(),
        "multiprocessors": found["multiProcessorCount"],
        "l2_bytes": found["l2CacheSize"],
        "memory_bytes": found["totalGlobalMem"],
        "driver": _driver(),
    }


def _driver() -> str:
    """The driver's version, which CUDA itself gives only as that of its interface."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
