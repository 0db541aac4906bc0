"""The command `python -m bench`: options, records, comparison, the page, fitting; and the harness below it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import __main__ as command
from bench import compare, page, record

from brasa._bench import harness, report
from brasa._bench.harness import Case, Result
from brasa._bench.limits import Limits

GIGA = 1e9


def limits():
    """A machine of 100 GFLOP/s and 10 GB/s."""
    return Limits(lambda: 100 * GIGA, lambda traffic, size: 10 * GIGA)


ROW = Result(
    family="matmul",
    name="8x8 @ 8x8",
    seconds=1e-6,
    best_seconds=0.9e-6,
    rate=1.0,
    unit="GFLOP/s",
    share=0.5,
    best_share=0.6,
    bound="fma",
    flops=1024.0,
    nbytes=768.0,
    ratios={"torch": (1.1, 1.2, 1.3)},
)


def write(folder, *rows, date="2026-01-02", **more):
    """A record as the command writes it."""
    found = {**report.as_record(list(rows), limits()), "date": f"{date}T00:00:00+00:00", **more}
    (folder / f"{date}.json").write_text(report.as_text(found))
    return folder / f"{date}.json"


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("matmull",), "matmull"),
        (("--against", "tensorflow"), "tensorflow"),
        (("--passes", "backward"), "backward"),
        (("--rounds", "0"), "at least 1"),
        (("--threads", "-1"), "at least 1"),
        (("--isa", "mmx"), "mmx"),
        (("--patience", "nan"), "at least 0"),
        (("--patience", "-1"), "at least 0"),
        (("--threads", "100000"), "the CPUs here"),
    ],
)
def test_mistakes_end_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--against", "jax"])
    assert "pip install jax" in capsys.readouterr().err


def test_no_case_of_that_name(capsys):
    assert command.main(["matmul", "--only", "no such"]) == 2
    assert "no such" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--json", "/nonexistent/run.json"),
        ("--json", "/proc"),
        ("--plot", "/proc/pictures"),
        ("--compare", "/nonexistent/run.json"),
    ],
)
def test_files_are_tried_before_anything_is_measured(arguments, capsys, monkeypatch):
    if arguments[0] == "--plot":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "run_all", lambda *_: pytest.fail("measured"))
    assert command.main(["calls", *arguments]) == 2
    assert arguments[1].removesuffix("/run.json") in capsys.readouterr().err


def test_list_measures_nothing(capsys):
    assert command.main(["dropout", "--list"]) == 0
    assert "dropout: dropout fwd 128x120" in capsys.readouterr().out


def test_record_takes_everything_unless_told():
    everything, some = command.parse(["--record"]), command.parse(["pool", "footprint", "--record"])
    assert everything.extras == ["footprint", "sweep", "isa"]
    assert "deepbench/conv" not in everything.family
    assert "pool" in everything.family
    assert "numpy" in everything.against
    assert (some.family, some.extras) == (["pool"], ["footprint"])
    whole = command.parse(["all", "--record"])
    assert whole.extras == ["footprint", "sweep", "isa"]
    assert {case.family for case in command.selected(whole)} >= {"deepbench rnn", "conv bwd-weight"}


def test_a_run_writes_whole_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "Limits", limits)
    path = tmp_path / "run.json"
    arguments = [
        "dropout",
        "--only",
        "fwd 128x120",
        "--rounds",
        "3",
        "--against",
        "numpy",
        "--json",
        str(path),
    ]
    assert command.main(arguments) == 0
    found = json.loads(path.read_text())
    (row,) = page.results_of(found)
    assert row.name == "dropout fwd 128x120"
    assert row.commit == report.commit()
    assert row.measured[:2] == "20"
    assert row.measured.endswith("+00:00")
    assert row.seconds >= row.best_seconds > 0
    assert row.ratios["numpy"][0] <= row.ratios["numpy"][1] <= row.ratios["numpy"][2]
    assert "geometric means" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    def stop(cases, machine, rounds, results, *rest):
        results.append(ROW)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "Limits", limits)
    monkeypatch.setattr(command, "run", stop)
    path = tmp_path / "run.json"
    assert command.main(["dropout", "--json", str(path)]) == 130
    assert page.results_of(json.loads(path.read_text())) == [replace(ROW, commit=report.commit())]
    assert "interrupted: 1 of 6" in capsys.readouterr().err


# --- harness --------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody sleeps or a call is made."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return 0.0

    def sleep(self, seconds):
        self.now += seconds

    def takes(self, *seconds):
        """A call that takes so long, the last time again and again."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch):
    result = Clock()
    monkeypatch.setattr(harness, "time", result)
    return result


def test_measure_knows_ratios_and_shares(clock):
    calls = {
        "brasa": clock.takes(0.002),
        "slow": clock.takes(0.006),
        "peer/bad": clock.takes(0.02),
        "peer/good": clock.takes(0.004),
    }
    result = harness.measure(Case("family", "name", lambda: calls, flops=1e8), limits(), rounds=3)
    assert result.seconds == pytest.approx(0.002)
    assert result.share == pytest.approx(0.5)  # 1e8 operations of 1e11 per second in 2 ms
    assert result.ratios == {"slow": pytest.approx((3, 3, 3)), "peer": pytest.approx((2, 2, 2))}
    assert result.bound == "fma"


def test_a_turn_that_stalled_is_repeated(clock):
    slow = clock.takes(*[0.04] * 3, 4.0, 0.04)  # two calls to know, one good turn, one stalled
    result = harness.measure(Case("f", "n", lambda: {"brasa": slow}, 1e9), limits(), rounds=2)
    assert result.seconds == pytest.approx(0.04)


def test_patience_leaves_three_rounds(clock):
    call, turns = clock.takes(0.04), []

    def counted():
        turns.append(call())

    harness.measure(Case("f", "n", lambda: {"brasa": counted}, 1e6), limits(), 50, 0.01)
    assert len(turns) == 5  # two to know how many make a turn, three rounds


def test_roofline_says_what_binds():
    machine = limits()
    assert machine.bound(100.0, 1.0, "copy", 1.0) == ("fma", 100.0)
    assert machine.bound(1.0, 100.0, "read", 100.0) == ("read", 100.0)
    assert machine.bound(0.0, 8.0, "update", 8.0) == ("update", 8.0)


def test_probes_of_the_machine_are_positive():
    machine = Limits()
    for bound in ("fma", "copy", "read", "update"):
        assert machine.rate(bound, 1 << 18) > 1e6


# --- comparison -----------------------------------------------------------------------------------


def compared(path, *results):
    """The words and the number of rows that lost."""
    return compare.comparison(results, compare.recorded(str(path)), report.setting())


def test_compare_names_rows_that_lost(tmp_path):
    write(tmp_path, replace(ROW, best_share=0.3), date="2026-01-01")
    write(tmp_path, ROW, replace(ROW, name="kept"))
    slower = replace(ROW, best_share=0.5)
    text, lost = compared(tmp_path, slower, replace(ROW, name="kept", best_share=0.58))
    assert lost == 1
    assert "1 of 2" in text
    assert "8x8 @ 8x8: 60% of the limit, now 50%" in text
    assert "kept:" not in text
    assert "setting" not in text
    assert "0 of 1" in compared(tmp_path / "2026-01-01.json", slower)[0]


def test_compare_warns_of_another_setting(tmp_path):
    path = write(tmp_path, ROW, cpu="Z80", threads=77)
    text, _ = compared(path, ROW)
    assert "'Z80' there" in text
    assert "threads 77 there" in text
    assert "isa" not in text


@pytest.mark.parametrize(("share", "status"), [(0.3, 1), (0.6, 0)])
def test_rows_that_lost_are_status_1(share, status, tmp_path, capsys, monkeypatch):
    def measured(cases, machine, rounds, results, *rest):
        results.append(replace(ROW, best_share=share))

    monkeypatch.setattr(command, "Limits", limits)
    monkeypatch.setattr(command, "run", measured)
    assert command.main(["calls", "--compare", str(write(tmp_path, ROW))]) == status
    assert f"{status} of 1" in capsys.readouterr().out


def test_compare_wants_a_record_of_this_format(tmp_path):
    with pytest.raises(ValueError, match="no recorded run"):
        compared(tmp_path, ROW)
    write(tmp_path, ROW, format=1)
    with pytest.raises(ValueError, match="format"):
        compared(tmp_path / "2026-01-02.json", ROW)


# --- records and the page -------------------------------------------------------------------------


def test_a_record_keeps_rows_of_other_families(tmp_path):
    first = {**report.as_record([ROW, replace(ROW, name="other")], limits()), "sweep": {"a": 1}}
    path = record.save(first, tmp_path)
    record.save(report.as_record([replace(ROW, share=0.9), replace(ROW, family="pool")], limits()), tmp_path)
    found = json.loads(path.read_text())
    rows = page.results_of(found)
    assert [(r.family, r.name, r.share) for r in rows] == [
        ("matmul", "8x8 @ 8x8", 0.9),
        ("matmul", "other", 0.5),
        ("pool", "8x8 @ 8x8", 0.5),
    ]
    assert found["sweep"] == {"a": 1}


def test_a_record_carries_over_what_it_has_not_from_the_days_before(tmp_path):
    write(tmp_path, ROW, sweep={"a": 1, "b": 1}, isas={"avx2": {}})
    new = {**report.as_record([replace(ROW, name="new")], limits()), "sweep": {"b": 2}}
    found = json.loads(record.save(new, tmp_path).read_text())
    assert [row["name"] for row in found["results"]] == ["8x8 @ 8x8", "new"]
    assert (found["sweep"], found["isas"]) == ({"a": 1, "b": 2}, {"avx2": {}})


@pytest.mark.parametrize(("key", "value"), [("cpu", "Z80"), ("threads", 77), ("isa", "mmx")])
def test_a_record_has_rows_of_one_setting(key, value, tmp_path, capsys, monkeypatch):
    write(tmp_path, ROW, **{key: value})
    with pytest.raises(ValueError, match=f"{key} {value!r} there"):
        record.save(report.as_record([ROW], limits()), tmp_path)
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record.newest, "__defaults__", (tmp_path,))
    assert command.main(["calls", "--record"]) == 2  # and before it measures
    assert repr(value) in capsys.readouterr().err


FOOTPRINT = {
    "import_seconds": {"brasa": 0.01, "torch": 1.0},
    "installed_bytes": {"brasa, packed": 4e6, "brasa": 8e6, "torch": 7e8},
    "peak_memory_bytes": {
        "mlp, batch 128": {"brasa": {"growth": 1e7, "total": 5e7}, "torch": {"growth": 2e7, "total": 3e8}}
    },
}


def test_publish_draws_and_fills_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    swept = {
        "matmul": {
            "axis": "n",
            "sizes": [1, 2, 4],
            "seconds": [1e-6, 2e-6, 4e-6],
            "rates": [1.0, 1.0, 1.0],
            "unit": "GFLOP/s",
            "pieces": [{"first": 1, "last": 4, "exponent": 1.0, "scale": 1e-6}],
        }
    }
    train = replace(ROW, family="train", name="mlp training step", ratios={"torch": (0.7, 0.8, 0.9)})
    conv = replace(ROW, family="conv fwd", share=0.5, ratios={"torch": (1.0, 1.0, 1.0)})
    more = {"footprint": FOOTPRINT, "sweep": swept}
    isas = {"avx2": {"peak_gflops": 50.0, "results": [report.asdict(replace(ROW, rate=40.0, share=0.8))]}}
    times = [
        replace(row, measured=f"2026-01-0{i}T10:20:30+00:00") for i, row in enumerate((ROW, train, conv))
    ]
    write(tmp_path, *times, isas=isas, **more)
    text = (page.PAGE).read_text()
    target = tmp_path / "speed.md"
    target.write_text(text)
    files = record.publish(tmp_path, target)
    assert {path.name for path in files} >= {
        "roofline.png",
        "shares.png",
        "ratios-torch.png",
        "sweep.png",
        "speed.md",
    }
    assert all(path.stat().st_size > 500 for path in files)
    filled = target.read_text()
    assert "| matmul | 1 | 50% | 1.20 (1.20) |" in filled
    assert "| mlp training step | train | 1 us | 0.80 (0.70 to 0.90) | 50% |" in filled
    assert "| mlp, batch 128 | 10 / 48 | 19 / 286 | 2.00 | 6.00 |" in filled
    assert "1 to 4: size^1.00" in filled
    assert "3 rows, measured in parts between 2026-01-00 10:20 and 2026-01-02 10:20 UTC" in filled
    assert "would be 1.90 forward and - forward" in filled  # a row of half its limit, at 95 % of it
    assert "avx2: peak 50 GFLOP/s |" in filled
    assert "| 8x8 @ 8x8 | 40, 80% |" in filled
    target.write_text(filled)
    record.publish(tmp_path, target)
    assert target.read_text() == filled


def test_the_page_needs_its_markers():
    with pytest.raises(ValueError, match="begin:machine"):
        page.fill("nothing", report.as_record([ROW], limits()))
