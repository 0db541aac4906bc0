"""What of the GPU's benchmark and check runs without a GPU: options, tables, JSON, the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import __main__ as command
from bench import gpu, gpu_page, page

from brasa._bench import report
from brasa._bench.harness import Result

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


# --- tools/gpu_check.py -------------------------------------------------------------------------------


def test_parts_run_in_their_order(gpu_check):
    assert gpu_check.parse([]).part == ["build", "golden", "tests", "sanitizer", "bench"]
    options = gpu_check.parse(["bench", "build", "--minutes", "4.5", "--tools", "racecheck"])
    assert (options.part, options.minutes, options.tools) == (["build", "bench"], 4.5, ("racecheck",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tets"], "tets"),
        (["--minutes", "0"], "more than 0"),
        (["--tools", "leakcheck"], "leakcheck"),
        (["--pytest", "-k 'conv"], "quotation"),
    ],
)
def test_mistakes_end_with_status_2(gpu_check, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_no_gpu_is_said(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "has_gpu", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_a_list_runs_nothing(gpu_check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "has_gpu", lambda: pytest.fail("asked for a GPU"))
    out = tmp_path / "out"
    arguments = [
        "tests",
        "golden",
        "--list",
        "--minutes",
        "3",
        "--pytest",
        "-k 'conv or pool'",
        "--out",
        str(out),
    ]
    assert gpu_check.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["golden", "tests"]
    assert "'cupy and (conv or pool)'" in lines[1]
    assert "within 3 minutes" in lines[2]
    assert not out.exists()


def test_a_selection_is_one_of_the_tests_on_the_gpu(gpu_check):
    options = gpu_check.parse(["--pytest", "-k 'conv and not few' --maxfail 1"])
    command = gpu_check.pytest_command("--collect-only", *options.pytest)
    assert command[command.index("-k") + 1] == "cupy and (conv and not few)"
    assert command[-3:] == ["--collect-only", "--maxfail", "1"]
    assert gpu_check.pytest_command()[-1] == "cupy"


CARD = "345, 3201, 80.5, 40\n1980, 3201, 600.0, 60\n1965, 3201, 500.0, [N/A]\n"


class Watcher:
    """In place of nvidia-smi."""

    def poll(self):
        return 0


@pytest.fixture
def with_gpu(gpu_check, monkeypatch):
    def watch(out):
        (out / "card.csv").write_text(CARD)
        return Watcher()

    monkeypatch.setattr(gpu_check, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu_check, "watch_card", watch)
    return gpu_check


def test_outcomes_are_written_and_told(with_gpu, monkeypatch, tmp_path, capsys):
    def broken(run):
        raise RuntimeError("no compiler")

    monkeypatch.setitem(with_gpu.PARTS, "build", broken)
    monkeypatch.setitem(with_gpu.PARTS, "tests", lambda run: (True, "3 run\nand more"))
    assert with_gpu.main(["build", "tests", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [(part["part"], part["passed"]) for part in record["parts"]] == [("build", False), ("tests", True)]
    assert record["parts"][0]["detail"] == "RuntimeError: no compiler"
    assert record["card"]["clocks.sm"] == [345, 1965, 1980]
    assert record["card"]["temperature.gpu"] == [40, 50, 60]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-2].split()[:2] == ["tests", "passed"]
    assert "tests: 3 run\nand more" in printed


def test_ctrl_c_keeps_what_is_done(with_gpu, monkeypatch, tmp_path):
    def stopped(run):
        raise KeyboardInterrupt

    monkeypatch.setitem(with_gpu.PARTS, "build", lambda run: (True, "built"))
    monkeypatch.setitem(with_gpu.PARTS, "tests", stopped)
    assert with_gpu.main(["build", "tests", "bench", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["detail"] for part in record["parts"]] == ["built", "interrupted"]


def test_a_command_ends_with_the_time(gpu_check, tmp_path):
    import time

    run = gpu_check.Run(tmp_path, tmp_path, time.monotonic() + 0.3)
    slow = "import time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('told')"
    assert run.command([sys.executable, "-uc", slow], "slow.log") == 124
    assert (tmp_path / "slow.log").read_text() in ("told\n", "")  # "" where the time was up before the try
    assert run.command([sys.executable, "-c", "raise SystemExit(3)"], "late.log") in (3, 124)


DEAF = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"


def test_what_does_not_listen_is_killed_with_what_it_started(gpu_check, tmp_path):
    import time

    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {DEAF!r}])"
    run, start = gpu_check.Run(tmp_path, tmp_path, time.monotonic() + 60), time.monotonic()
    assert run.command([sys.executable, "-c", child], "deaf.log", grace=0.1, limit=1) == 124
    assert time.monotonic() - start < 10


def test_the_sanitizer_begins_nothing_after_its_time(gpu_check, monkeypatch, tmp_path):
    import time

    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!{sys.executable}\n{DEAF}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: str(tool))
    monkeypatch.setattr(gpu_check.gpu_run, "QUICK", 0.1)
    monkeypatch.setattr(
        gpu_check, "sanitizer_jobs", lambda *_: [("memcheck", f"tests/{i}.py") for i in range(99)]
    )
    monkeypatch.setattr(gpu_check, "pytest_command", lambda *_: [sys.executable, "-c", "pass"])
    start = time.monotonic()
    passed, detail = gpu_check.sanitizer(gpu_check.Run(tmp_path, tmp_path, start + 2))
    assert time.monotonic() - start < 20
    assert not passed
    assert detail.splitlines()[0].startswith("0 of 99 runs clean, ")
    assert 0 < len(detail.splitlines()) - 1 <= 16


def test_golden_outputs_go_where_the_emulator_looks(gpu_check, monkeypatch, tmp_path):
    record = "import sys; open(sys.argv[2], 'w').close(); print('2 cases of capability 90')"
    (tmp_path / "tests" / "emulator").mkdir(parents=True)
    (tmp_path / "tests" / "emulator" / "golden.py").write_text(record)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "configure_command", lambda run: [sys.executable, "-c", "pass"])
    monkeypatch.setattr(gpu_check, "failure", lambda run, steps: "")
    passed, detail = gpu_check.golden(gpu_check.Run(tmp_path, tmp_path))
    assert passed
    assert detail == "2 cases of capability 90: tests/emulator/golden/90.npz, 0 KiB"
    assert (tmp_path / "tests" / "emulator" / "golden" / "90.npz").exists()


def test_reports_are_counted(gpu_check, tmp_path):
    report_file = tmp_path / "tests.xml"
    assert gpu_check.junit_counts(report_file)["tests"] == 0
    report_file.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert gpu_check.junit_counts(report_file) == {"tests": 9, "failures": 1, "errors": 2, "skipped": 3}


def test_jobs_and_summaries_of_the_sanitizer(gpu_check):
    collected = "\n".join(
        f"tests/{name}[cupy]"
        for name in ("ops/test_a.py::test_x", "ops/test_a.py::test_y", "benchmark/b.py::t")
    )
    jobs = gpu_check.sanitizer_jobs(collected)
    assert jobs[:2] == [("racecheck", f"tests/ops/test_a.py::test_{x}") for x in "xy"]
    assert jobs[2:] == [(tool, "tests/ops/test_a.py") for tool in ("memcheck", "synccheck", "initcheck")]
    text = "========= ERROR SUMMARY: 2 errors\n"
    assert gpu_check.sanitizer_summary(text) == "ERROR SUMMARY: 2 errors"
    assert gpu_check.sanitizer_summary("nothing") == "no summary"


# --- python -m bench --device cuda --------------------------------------------------------------------


def test_cases_of_a_gpu_have_their_own_names(capsys):
    assert command.main(["--device", "cuda", "--list", "--passes", "fwd,bwd-data,bwd-weight"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "numpy"], "cupy"),
        (["--record"], "--record"),
        (["--isa", "scalar"], "--isa"),
        (["sweep"], "sweep"),
        (["deepbench"], "deepbench"),
    ],
)
def test_what_a_gpu_has_not_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cuda", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# --- the page -----------------------------------------------------------------------------------------

ROW = Result(
    "pool fwd", "max", 1e-4, 1e-4, 2000.0, "GB/s", 0.5, 0.5, "copy", 0.0, 2e8, {"torch": (1.0, 2.0, 3.0)}
)


def run_of(*rows, name="NVIDIA H200"):
    gpu = {"name": name, "driver": "580.1", "bf16_gflops": 8e5, "tf32_gflops": 4e5}
    found = {
        "date": "2026-01-02T00:00:00+00:00",
        "versions": {"brasa": "0.1.0", "torch": "2.11"},
        "peak_gflops": 6e4,
        "copy_gbytes": 4100.0,
        "gpu": gpu,
        "results": [report.asdict(row) for row in rows],
    }
    return json.loads(json.dumps(found))


def test_more_runs_add_rows(tmp_path):
    from dataclasses import replace

    together = gpu_page.merged([run_of(ROW), run_of(replace(ROW, share=0.1), replace(ROW, name="avg"))])
    assert [(row["name"], row["share"]) for row in together["results"]] == [("max", 0.5), ("avg", 0.5)]
    assert gpu_page.save(together, tmp_path).name == "2026-01-02-nvidia-h200.json"
    assert page.results_of(json.loads((tmp_path / "2026-01-02-nvidia-h200.json").read_text()))[0] == ROW
    with pytest.raises(ValueError, match="different GPUs"):
        gpu_page.merged([run_of(ROW), run_of(ROW, name="NVIDIA H100")])


def test_rows_stand_in_the_order_of_the_benchmark():
    from dataclasses import replace

    everything = gpu_page.selected([], (), gpu_page.PASSES, device="cuda")
    chosen = [
        case for case in everything if case.family in ("conv fwd", "conv bf16 fwd", "matmul tf32", "infer")
    ]
    rows = [replace(ROW, family=case.family, name=case.name) for case in chosen]
    together = gpu_page.merged([run_of(*rows[::-2]), run_of(*rows)])
    found = list(dict.fromkeys(row["family"] for row in together["results"]))
    assert found == ["matmul tf32", "conv fwd", "conv bf16 fwd", "infer"]
    assert len(together["results"]) == len(rows)


def test_the_limit_of_tensor_cores():
    from brasa._bench.limits import Limits

    machine = Limits(lambda: 1e3, lambda traffic, size: 1e3, 1, {"bf16": 1e4})
    assert machine.bound(1e4, 100.0, "copy", 1.0, "bf16") == ("bf16", 1e4)
    assert machine.bound(1e2, 100.0, "copy", 1.0, "bf16") == ("copy", 100.0)
    assert machine.rate("bf16", 1.0) == 1e4
    assert machine.bound(1e4, 100.0, "copy", 1.0, "tf32") == ("copy", 100.0)  # not known: the traffic
    assert machine.bound(1e4, 0.0, "copy", 1.0, "tf32") == ("fma", 1e4)


def test_pytorch_compiled_is_a_peer_of_few_steps():
    peers = ["torch", "torch-compile", "cupy"]
    assert gpu._eager(peers, "resnet18") == ["torch", "torch-compile"]
    assert gpu._eager(peers, "mlp") == gpu._eager(["torch"], "resnet18") == ["torch"]


def test_the_page_is_filled():
    text = page.fill(gpu_page.PAGE.read_text(), run_of(ROW), gpu_page.TABLES)
    assert "| pool fwd | 1 | 50% | 2.00 (2.00) |  |  |" in text
    assert "| max | 100 us | 2000 GB/s | 50% | 2.00 |  |  |" in text
    assert "cuBLAS 800 TFLOP/s in bf16" in text


def test_the_recorded_page_is_that_of_its_record():
    path = sorted(gpu_page.FOLDER.glob("*.json"))[-1]
    text = gpu_page.PAGE.read_text()
    assert page.fill(text, json.loads(path.read_text()), gpu_page.TABLES) == text
