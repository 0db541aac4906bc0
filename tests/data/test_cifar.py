"""CIFAR-10: the binary version, the PNG form, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from brasa import data

BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def batches(n: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n, np.uint8))
        for name in BATCHES
    }


def write_binary(root: Path) -> None:
    for name, (images, labels) in batches().items():
        records = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], axis=1)
        (root / f"{name}.bin").write_bytes(records.tobytes())


def write_png(root: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, (images, given) in batches().items():
        rows = images.reshape(len(images), 3, 1024).transpose(0, 2, 1)
        image_module.fromarray(np.ascontiguousarray(rows)).save(root / f"{name}.png")
        labels["test" if name == "test_batch" else "train"] += given.tolist()
    for part, values in labels.items():
        (root / f"{part}_lables.json").write_text(json.dumps(values))


WRITERS = pytest.mark.parametrize("write", [write_binary, write_png])


@WRITERS
def test_both_forms_give_the_same_set(tmp_path, write):
    write(tmp_path)
    train, test = data.cifar10(tmp_path)
    made = batches()
    x = np.concatenate([made[name][0] for name in BATCHES[:5]])
    y = np.concatenate([made[name][1] for name in BATCHES[:5]])
    np.testing.assert_array_equal(train.arrays[0], x.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(train.targets, y)
    np.testing.assert_array_equal(test.targets, made["test_batch"][1])
    assert test.arrays[0].shape == (3, 3, 32, 32)
    assert train.classes[0] == "airplane"
    assert len(train.classes) == 10


def test_the_folder_above_the_binary_version(tmp_path):
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    write_binary(inner)
    assert len(data.cifar10(tmp_path)[0]) == 15


@WRITERS
@pytest.mark.parametrize("name", BATCHES[1:])
def test_a_missing_file_says_how_to_get_the_set(tmp_path, write, name):
    write(tmp_path)
    next(tmp_path.glob(f"{name}.*")).unlink()
    with pytest.raises(data.DatasetNotFoundError, match=f"{name}.*cs.toronto.edu") as caught:
        data.cifar10(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", [None, "no/such/folder", "."])
def test_a_missing_set_says_how_to_get_it(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DatasetNotFoundError, match=r"CIFAR-10.*data_batch_\{1..5\}.bin"):
        data.cifar10(root)


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-py"])
def test_the_pickled_version_is_refused_unread(tmp_path, inner):
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / inner / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match=r"pickled version.*refused.*binary version"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 3 * 3073 - 1])
def test_truncated_records(tmp_path, length):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes().ljust(length, b"\0")[:length])
    with pytest.raises(ValueError, match=f"data_batch_3.bin: {length} bytes"):
        data.cifar10(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    write_binary(tmp_path)
    with (tmp_path / "test_batch.bin").open("r+b") as sparse:
        sparse.truncate(3073 * 2**24)
    with pytest.raises(ValueError, match=r"test_batch.bin: .* 1 to 10000 images"):
        data.cifar10(tmp_path)


def test_labels_out_of_range(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"data_batch_1.bin: label 10"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[" * 200_000, "not a JSON file"),
        (b"{}", "expected a list"),
        (b'["3"]', "expected a list"),
        (b"[true]", "expected a list"),
        (b"[1e400]", "expected a list"),
        (b"[-1]", "expected a list"),
        (b"[11]", "label 11"),
        (b"[1, 2]", "2 labels for 15 images"),
        (b" " * 2**21, "more than a list of labels needs"),
    ],
)
def test_bad_label_files(tmp_path, content, message):
    write_png(tmp_path)
    (tmp_path / "train_lables.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"train_lables.json: .*{message}"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("size", [(1024, 10001), (1023, 3), (3, 1024)])
def test_pictures_of_another_shape(tmp_path, size):
    write_png(tmp_path)
    image_module = pytest.importorskip("PIL.Image")
    image_module.new("RGB", size).save(tmp_path / "data_batch_2.png")
    with pytest.raises(ValueError, match=f"data_batch_2.png: {size[0]} x {size[1]}"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60, 200, -1, -30])
def test_truncated_pictures(tmp_path, keep):
    write_png(tmp_path)
    path = tmp_path / "data_batch_2.png"
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    try:
        data.cifar10(tmp_path)
    except ValueError as error:
        assert "data_batch_2.png" in str(error)
    else:
        assert keep == -1
