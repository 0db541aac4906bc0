"""Files: exact round trips, hostile content, and saves that are cut short."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

import brasa
from brasa import io
from brasa._header import parse_header
from brasa.io import CheckpointError

PACKAGE = Path(brasa.__file__).parent


def small_state():
    rng = np.random.default_rng(0)
    return {
        "weight": rng.standard_normal((2, 3)).astype(np.float32),
        "bias": rng.standard_normal(3),
        "seen": np.int64(7),
    }


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.array([np.nan, -np.nan, -0.0, 1e-45, np.inf, 3.5], np.float32),
        np.frombuffer(b"\x01\x00\xa0\x7f\xff\xff\xff\xff", np.float32),  # NaN payloads
        np.array([5e-324, -0.0, np.nan]),
        np.array(2.5, np.float32),
        np.array(4),
        np.zeros((0, 3), np.float16),
        np.zeros((3, 0, 2)),
        np.array([[True, False]]),
        *(np.arange(6).astype(t) for t in "bBhHiIlLqQ"),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_round_trip_is_exact(tmp_path, array):
    io.save({"a": array}, tmp_path / "a.safetensors")
    found = io.load_state(tmp_path / "a.safetensors")
    same(found, {"a": array})
    assert found["a"].flags.writeable
    assert found["a"].flags.c_contiguous


dtypes = st.one_of(
    hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    st.just(np.dtype("?")),
)


@given(data=st.data(), names=st.lists(st.text("abc.0_\u00e9", min_size=1), unique=True, max_size=4))
def test_any_arrays_come_back(data, names):
    """Any dtype and byte order, any basic view: C order and native bytes, the same values."""
    state = {}
    for name in names:
        base = data.draw(
            hnp.arrays(data.draw(dtypes), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        )
        index = data.draw(hnp.basic_indices(base.shape, allow_newaxis=True)) if base.ndim else ()
        view = np.asarray(base[index])
        state[name] = view.transpose(data.draw(st.permutations(range(view.ndim))))
    with tempfile.TemporaryDirectory() as folder:
        io.save(state, f"{folder}/a")
        found = io.load_state(f"{folder}/a")
    same(
        found,
        {k: np.ascontiguousarray(v, v.dtype.newbyteorder("=")).reshape(v.shape) for k, v in state.items()},
    )


def test_strided_arrays_are_stored_in_c_order(tmp_path):
    nchw = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    channels_last = np.ascontiguousarray(nchw.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    state = {
        "channels_last": channels_last,
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "reversed": np.arange(6.0)[::-1],
        "stepped": np.arange(12)[::3],
        "broadcast": np.broadcast_to(np.float32(2), (3, 4)),
        "big_endian": np.arange(3, dtype=">f4"),
    }
    path = tmp_path / "a.safetensors"
    io.save(state, path)
    for found in (io.load_state(path), load_file(path)):
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert found[name].dtype == value.dtype.newbyteorder("=")


def test_metadata_comes_back(tmp_path):
    metadata = {
        "epoch": 3,
        "third": 1 / 3,
        "text": 'é"\\\n\u2028',
        "nested": {"a": [1, [2, None]]},
        "yes": True,
    }
    io.save(small_state(), tmp_path / "a", metadata)
    assert io.load_metadata(tmp_path / "a") == metadata
    io.save({}, tmp_path / "empty", metadata)
    assert io.load_state(tmp_path / "empty") == {}


def test_files_of_others_load_without_checksum(tmp_path):
    save_file(small_state() | {"seen": np.array(7)}, tmp_path / "a", metadata={"format": "pt"})
    same(io.load_state(tmp_path / "a"), small_state())
    assert io.load_metadata(tmp_path / "a") == {"format": "pt"}


def test_bfloat16_without_its_package_says_what_to_install(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\x40"
    (tmp_path / "a").write_bytes(content)
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"ml_dtypes is needed.*\[bf16\]"):
            io.load_state(tmp_path / "a")
    else:
        assert io.load_state(tmp_path / "a")["a"].astype(float).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("state", "metadata", "error"),
    [
        ({"a": np.array([object()])}, None, TypeError),
        ({"a": np.array(["text"])}, None, TypeError),
        ({"a": np.array([1 + 2j])}, None, TypeError),
        ({"": np.zeros(1)}, None, ValueError),
        ({"a\0b": np.zeros(1)}, None, ValueError),
        ({3: np.zeros(1)}, None, ValueError),
        ({}, {"brasa.sha256": "x"}, ValueError),
        ({}, {"a": float("nan")}, TypeError),
        ({}, {"a": {1, 2}}, TypeError),
        ({}, {"a": "x" * (1 << 20)}, ValueError),
        ({}, {"a": [[[[[[[[[1]]]]]]]]]}, ValueError),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_file_is_touched(tmp_path, state, metadata, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error):
        io.save(state, path, metadata)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


# --- damaged and hostile files --------------------------------------------------------------------


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "a"
    io.save(small_state(), path, {"epoch": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            io.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        io.read(path)


def test_every_changed_byte_is_an_error_or_means_the_same(tmp_path):
    path = tmp_path / "a"
    io.save(small_state(), path, {"epoch": 1, "name": "net"})
    content = path.read_bytes()
    expected = io.read(path)
    header_end = 8 + int.from_bytes(content[:8], "little")
    accepted = 0
    for position in range(len(content)):
        old = content[position]
        for new in {old ^ 1, old ^ 2, old ^ 0x20, old ^ 0x80, 0, 9, 32, 34, 0xFF} - {old}:
            path.write_bytes(content[:position] + bytes([new]) + content[position + 1 :])
            try:
                tensors, metadata, kind = io.read(path)
            except CheckpointError:
                continue
            accepted += 1
            assert 8 <= position < header_end  # only the spelling of the header can vary
            same(tensors, expected[0])
            assert (metadata, kind) == expected[1:]
    assert accepted < 100


def hostile(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "BF16", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(-1, 40), st.integers(-1, 40)) | json_values,
        "more": json_values,
    },
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries | json_values, max_size=3)


@given(
    table=headers | json_values,
    tail=st.binary(max_size=48),
    text=st.none() | st.binary(max_size=60),
)
def test_no_header_does_more_than_be_refused(table, tail, text):
    content = hostile(table if text is None else text, tail)
    try:
        header = parse_header(content, len(content))
    except CheckpointError:
        return
    covered = sorted((e.begin, e.end) for e in header.entries.values())
    assert sum(end - begin for begin, end in covered) == len(tail)


FOUR = b"\0" * 4
HOSTILE = {
    "empty": b"",
    "short": b"\0" * 7,
    "huge length": b"\xff" * 8,
    "length past the end": (100).to_bytes(8, "little") + b"{}",
    "17 MB header": ((17 << 20).to_bytes(8, "little")) + b"{}" + b" " * (17 << 20),
    "array": hostile(b"[]"),
    "not utf-8": hostile(b'{"\xff":1}'),
    "deep": hostile(b"[" * 100_000),
    "deep entry": hostile(b'{"a":' * 50_000),
    "unclosed text": hostile(b'"' + b'\\"' * 100_000),
    "nan": hostile(b'{"a":NaN}'),
    "long number": hostile(b'{"a":' + b"9" * 10_000 + b"}"),
    "twice": hostile(
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}',
        FOUR + FOUR,
    ),
    "unknown dtype": hostile({"a": entry("F31")}, FOUR),
    "dtype list": hostile({"a": entry(["F32"])}, FOUR),
    "extra key": hostile({"a": entry(hook="os.system")}, FOUR),
    "no entry": hostile({"a": 3}, FOUR),
    "negative": hostile({"a": entry(shape=(-1,), offsets=(0, -4))}, FOUR),
    "bool shape": hostile({"a": entry(shape=(True,))}, FOUR),
    "float shape": hostile({"a": entry(shape=(1.0,))}, FOUR),
    "overflow": hostile({"a": entry(shape=(2**62, 4), offsets=(0, 0))}),
    "overflow to zero": hostile({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}),
    "too large": hostile({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, FOUR),
    "rank": hostile({"a": entry(shape=(1,) * 65)}, FOUR),
    "gap": hostile({"a": entry(offsets=(4, 8))}, FOUR + FOUR),
    "overlap": hostile({"a": entry(), "b": entry(offsets=(0, 4))}, FOUR),
    "left over": hostile({"a": entry()}, FOUR + b"\0"),
    "empty name": hostile({"": entry()}, FOUR),
    "long name": hostile({"a" * 2000: entry()}, FOUR),
    "surrogate": hostile(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "metadata list": hostile({"__metadata__": []}),
    "metadata number": hostile({"__metadata__": {"a": 3}}),
    "metadata surrogate": hostile(b'{"__metadata__":{"a":"\\udc00"}}'),
    "2 MB metadata": hostile({"__metadata__": {"a": "x" * (2 << 20)}}),
    "format alone": hostile({"__metadata__": {"brasa.format": "1"}}),
    "newer": hostile({"__metadata__": {"brasa.format": "2", "brasa.sha256": ""}}),
    "odd version": hostile({"__metadata__": {"brasa.format": "\u00b2", "brasa.sha256": ""}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path, name):
    path = tmp_path / "a"
    path.write_bytes(HOSTILE[name])
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        io.load_state(path)
    assert time.monotonic() - start < 5


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.load_state(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        io.load_state(tmp_path)
    with pytest.raises(CheckpointError, match="regular"):
        io.load_state("/dev/zero")


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "marshal", "shelve", "joblib"}


def runs_foreign_code(node):
    """Whether a syntax node imports an unpickler, calls eval or exec, or lets NumPy unpickle."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in FORBIDDEN_MODULES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in FORBIDDEN_MODULES
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"eval", "exec", "__import__"}
    if isinstance(node, ast.keyword):
        return node.arg == "allow_pickle" and getattr(node.value, "value", None) is not False
    return False


def test_no_code_is_ever_loaded():
    probe = ast.parse("import pickle\neval(x)\nnp.load(f, allow_pickle=True)")
    assert sum(map(runs_foreign_code, ast.walk(probe))) == 3
    # The tape compiles wrappers with an operator's own signature, from its own source alone.
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "_signature.py"]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not runs_foreign_code(node), f"{path}:{getattr(node, 'lineno', '?')}"


# --- writes ---------------------------------------------------------------------------------------


def test_mode_is_kept_and_a_new_file_follows_the_umask(tmp_path):
    path = tmp_path / "a"
    old = os.umask(0o027)
    try:
        io.save(small_state(), path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    io.save(small_state(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_symbolic_link_stays_a_link(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(folder / "real")
    for _ in range(2):  # to a missing target, then to an existing one
        io.save(small_state(), link)
        assert link.is_symlink()
        same(io.load_state(folder / "real"), small_state())
    assert os.listdir(folder) == ["real"]


def test_devices_and_folders_are_not_replaced(tmp_path):
    with pytest.raises(OSError, match="regular"):
        io.save(small_state(), "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        io.save(small_state(), tmp_path)
    with pytest.raises(FileNotFoundError):
        io.save(small_state(), tmp_path / "no" / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    path = tmp_path / "a"
    io.save(small_state(), path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            io.save({}, path)
    finally:
        tmp_path.chmod(0o700)
    same(io.load_state(path), small_state())


def run_python(code, *args):
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], env=environment, stdout=subprocess.PIPE
    )


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    io.save(small_state(), path)
    code = """
import resource, sys, numpy as np
from brasa import io
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    io.save({"a": np.zeros(100_000)}, sys.argv[1])
except OSError as error:
    print("refused", error.errno)
"""
    output, _ = run_python(code, path).communicate(timeout=60)
    assert output.startswith(b"refused")
    same(io.load_state(path), small_state())
    assert os.listdir(tmp_path) == ["a"]


def test_killed_during_save(tmp_path):
    """Whenever the process dies, the file loads and is one of the versions that were written."""
    path = tmp_path / "a"
    code = """
import sys, numpy as np
from brasa import io
print("ready", flush=True)
version = int(sys.argv[2])
while True:
    version += 1
    io.save({"a": np.full(200_000, version, np.int64)}, sys.argv[1], {"version": version})
"""
    rng = np.random.default_rng(1)
    newest = 0
    for _ in range(12):
        process = run_python(code, path, newest)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.02 + 0.08 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            version = io.load_metadata(path)["version"]
            assert version >= newest
            assert (io.load_state(path)["a"] == version).all()
            newest = version
    assert newest > 0


def test_two_writers(tmp_path):
    """Of two processes that save to one file, one wins and no mixture is left."""
    path = tmp_path / "a"
    code = """
import sys, numpy as np
from brasa import io
for i in range(20):
    io.save({"a": np.full(50_000, int(sys.argv[2]))}, sys.argv[1])
"""
    writers = [run_python(code, path, i) for i in (1, 2)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert len(set(io.load_state(path)["a"].tolist())) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_saving_while_another_thread_writes_the_weights(tmp_path):
    """The checksum is of what was stored, so that the file is whole even if the weights moved."""
    import threading

    weights = np.zeros(500_000)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            np.add(weights, 1, out=weights)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(10):
            io.save({"a": weights}, tmp_path / "a")
            io.load_state(tmp_path / "a")
    finally:
        stop.set()
        thread.join()
