"""Threads, forks and memory: what the process around the kernels may do."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import brasa as br
from brasa import _cpu, ops


def many_operators(x: np.ndarray) -> np.ndarray:
    """Several kernels on arrays large enough for threads."""
    y = ops.tanh(ops.matmul(x, x))
    return ops.softmax(ops.gelu(y), axis=-1)


def square(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n), dtype=np.float32)


def test_forked_children_compute(set_threads):
    """Threads do not survive a fork; brasa is serial in the child."""
    set_threads(2)
    x = square(300)
    expected = many_operators(x)
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(many_operators(x), expected) else 1)
        children.append(child)
    deadline = time.monotonic() + 10
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                pytest.fail("a forked child hangs")
            time.sleep(0.002)
    assert np.array_equal(many_operators(x), expected)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    code = f"""
import multiprocessing, numpy as np
from brasa import ops
def work(seed):
    x = np.random.default_rng(seed).standard_normal((200, 200), dtype=np.float32)
    return float(ops.matmul(x, x).sum())
if __name__ == "__main__":
    here = [work(i) for i in range(4)]
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(work, range(4)) == here
"""
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"brasa_{method}_{os.getpid()}.py")
    with open(path, "w") as file:
        file.write(code)
    try:
        subprocess.run([sys.executable, path], check=True, timeout=60)
    finally:
        os.unlink(path)


def test_python_threads_agree_with_serial_results(set_threads):
    set_threads(2)
    inputs = [square(40 + 17 * i, seed=i) for i in range(4)]
    expected = [many_operators(x) for x in inputs]
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, len(inputs), 60):
            if not np.array_equal(many_operators(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_long_kernel_holds_no_gil():
    x = square(1200)
    ops.matmul(x, x)
    stop, ticks = threading.Event(), []

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    watcher = threading.Thread(target=tick)
    watcher.start()
    start = time.perf_counter()
    for _ in range(10):
        ops.matmul(x, x)
    end = time.perf_counter()
    stop.set()
    watcher.join()
    during = [t for t in ticks if start < t < end]
    assert len(during) > 10 * (end - start)  # at 1 ms a tick: a hundredth of what an idle machine gives


def test_repeated_calls_leak_nothing():
    x, labels = square(64), np.zeros(64, np.int64)
    t = br.Tensor(x, requires_grad=True)

    def work() -> None:
        many_operators(x)
        ops.cross_entropy(ops.relu(t), labels).backward()
        t.grad = None

    for _ in range(200):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3000):
        work()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


def test_results_go_back_to_the_pool():
    br.empty_cache()
    idle = br.memory_stats()["in_use"]
    y = ops.relu(np.ones((1024, 1024), np.float32))
    assert br.memory_stats()["in_use"] >= idle + y.nbytes
    view = y[3:5]
    del y
    assert br.memory_stats()["in_use"] > idle, "a view keeps its memory"
    del view
    stats = br.memory_stats()
    assert stats["in_use"] == idle
    assert stats["cached"] > 0
    br.empty_cache()
    assert br.memory_stats()["cached"] == 0


def test_too_large_a_result_is_a_memory_error():
    code = """
import resource, numpy as np
from brasa import ops
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
x = np.broadcast_to(np.float32(1), (60_000, 60_000))
try:
    ops.relu(x)
except MemoryError:
    print("MemoryError")
print(ops.relu(np.float32([-1, 2])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["MemoryError", "[0. 2.]"]


@pytest.mark.parametrize(("variable", "expected"), [("BRASA_NUM_THREADS", 3), ("OMP_NUM_THREADS", 5)])
def test_threads_from_the_environment(variable, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("BRASA_NUM_THREADS", "OMP_NUM_THREADS")}
    code = "import brasa; print(brasa.get_num_threads())"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=environment | {variable: str(expected)}, capture_output=True, check=True)
    assert int(found.stdout) == expected


@pytest.mark.parametrize("name", _cpu.supported_isas())
def test_instruction_set_from_the_environment(name):
    code = "from brasa import _cpu; print(_cpu.isa())"
    environment = os.environ | {"BRASA_ISA": name}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_unknown_instruction_set_is_an_import_error():
    run = [sys.executable, "-c", "import brasa.ops"]
    environment = os.environ | {"BRASA_ISA": "avx1024"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: BRASA_ISA=avx1024: this CPU and build have scalar baseline" in done.stderr


def test_unknown_settings():
    with pytest.raises(ValueError, match="avx1024"):
        _cpu._set_isa("avx1024")
    for n in (0, -1, 2**31):
        with pytest.raises(ValueError, match="n: expected"):
            br.set_num_threads(n)
    for n in (1.5, "2", None, True):
        with pytest.raises(TypeError, match="n: expected"):
            br.set_num_threads(n)
