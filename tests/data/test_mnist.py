"""The samples that ship, and the published IDX files: right, damaged and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import brasa.data
from brasa import data

FILES = Path(brasa.data.__file__).parent / "files"

# Changing a bundled file changes what every recorded accuracy was measured on.
SHA256 = {
    "mnist_5k.npz": "f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810",
    "digits.npz": "6f801551877abf69fbf3711373bb642a18dc933430a3385cd6febc235225ea6f",
}
NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def idx(array: np.ndarray) -> bytes:
    """Write an array of bytes in the IDX format."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for part, n in (("train", 12), ("t10k", 5)):
        made[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        made[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, n, np.uint8)
    return made


def write(root: Path, *, packed: bool = False) -> dict[str, np.ndarray]:
    made = arrays()
    for name, array in made.items():
        content = idx(array)
        if packed:
            (root / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (root / name).write_bytes(content)
    return made


@pytest.mark.parametrize("name", sorted(SHA256))
def test_bundled_files_are_the_ones_that_were_measured(name):
    assert hashlib.sha256((FILES / name).read_bytes()).hexdigest() == SHA256[name]
    licence = (FILES / f"LICENSE-{name.split('_')[0].split('.')[0]}.md").read_text("utf-8")
    assert "creativecommons.org/licenses/by" in licence


def test_the_bundled_mnist():
    train, test = data.mnist()
    assert train.classes == test.classes == tuple("0123456789")
    x, y = train.arrays
    assert (x.shape, x.dtype, y.shape, y.dtype) == (
        (4000, 1, 28, 28),
        np.float32,
        (4000,),
        np.int64,
    )
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(np.bincount(y), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test.targets), [100] * 10)
    # Every fifth image of each digit, of a file that is sorted by digit.
    with np.load(FILES / "mnist_5k.npz") as archive:
        images = archive["x"]
    expected = np.concatenate([images[500 * k + 4 : 500 * (k + 1) : 5] for k in range(10)])
    np.testing.assert_array_equal(np.rint(test.arrays[0] * 255).astype(np.uint8)[:, 0], expected)


def test_no_image_is_in_both_parts():
    train, test = data.mnist()
    known = {image.tobytes() for image in train.arrays[0]}
    assert sum(image.tobytes() in known for image in test.arrays[0]) == 0


def test_the_bundled_digits():
    train, test = data.digits()
    assert train.classes == tuple("0123456789")
    x = np.concatenate([train.arrays[0], test.arrays[0]])
    y = np.concatenate([train.targets, test.targets])
    assert (x.shape, x.dtype) == ((1797, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(np.unique(x), np.arange(17) / 16)
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(y), counts)
    np.testing.assert_array_equal(np.bincount(test.targets), [count // 5 for count in counts])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("load", [data.mnist, data.fashion_mnist])
def test_published_files(tmp_path, load, packed):
    made = write(tmp_path, packed=packed)
    for part, ds in zip(("train", "t10k"), load(str(tmp_path)), strict=True):
        x, y = ds.arrays
        images = made[f"{part}-images-idx3-ubyte"]
        np.testing.assert_array_equal(x[:, 0], images.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(y, made[f"{part}-labels-idx1-ubyte"])
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert len(ds.classes) == 10
    assert load(tmp_path)[0].classes[9] == ("9" if load is data.mnist else "Ankle boot")


def test_plain_and_packed_files_may_be_mixed(tmp_path):
    write(tmp_path, packed=True)
    packed = tmp_path / f"{NAMES[0]}.gz"
    (tmp_path / NAMES[0]).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(data.mnist(tmp_path)[0]) == 12


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_says_how_to_get_the_set(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(data.DatasetNotFoundError) as caught:
        data.fashion_mnist(tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for part in ("Fashion-MNIST", name, f"{name}.gz", str(tmp_path), "zalandoresearch"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("root", [None, "no/such/folder"])
def test_a_missing_folder_says_how_to_get_the_set(root):
    with pytest.raises(data.DatasetNotFoundError, match=r"Fashion-MNIST.*published at"):
        data.fashion_mnist(root)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(data.DatasetNotFoundError, match="MNIST: there is no folder"):
        data.mnist(tmp_path / "x")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 15, 16, 17, 16 + 12 * 784 - 1])
def test_truncated_images(tmp_path, packed, length):
    write(tmp_path, packed=packed)
    content = idx(arrays()[NAMES[0]])[:length]
    path = tmp_path / (NAMES[0] + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=f"{NAMES[0]}.*truncated"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 10, 30, 0.5, 0.9, -8, -1])
def test_truncated_gzip_files(tmp_path, keep):
    write(tmp_path, packed=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=f"{NAMES[0]}.gz: .*(truncated|not a whole gzip file)"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("content", [b"not gzip at all", b"\x1f\x8b\x08\x00" + bytes(200)])
def test_files_that_are_not_gzip(tmp_path, content):
    write(tmp_path, packed=True)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole gzip file"):
        data.mnist(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x89PNG" + struct.pack(">3I", 12, 28, 28), "starts with 89 50 4e 47"),
        (b"\0\0\x0d\x03" + struct.pack(">3I", 12, 28, 28), "starts with 00 00 0d 03"),
        (b"\0\0\x08\x01" + struct.pack(">3I", 12, 28, 28), "expected 00 00 08 03"),
        (
            b"\0\0\x08\x03" + struct.pack(">3I", 12, 32, 28),
            "shape 12 x 32 x 28, expected N x 28 x 28",
        ),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28), "more than the"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 10**6, 28, 28), "truncated"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 11, 28, 28), "goes on after"),
    ],
)
def test_wrong_heads(tmp_path, head, message, packed):
    write(tmp_path, packed=packed)
    content = head + arrays()[NAMES[0]].tobytes()
    path = tmp_path / (NAMES[0] + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            data.mnist(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_a_small_gzip_file_that_unpacks_to_more_than_it_declares(tmp_path):
    write(tmp_path, packed=True)
    bomb = idx(np.zeros((1, 28, 28))) + bytes(64 << 20)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(gzip.compress(bomb, 9))
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="goes on after"):
            data.mnist(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_labels_must_fit_the_images_and_the_classes(tmp_path):
    write(tmp_path)
    labels = arrays()[NAMES[1]]
    (tmp_path / NAMES[1]).write_bytes(idx(labels[:-1]))
    with pytest.raises(ValueError, match="11 labels for the 12 images"):
        data.mnist(tmp_path)
    labels[3] = 10
    (tmp_path / NAMES[1]).write_bytes(idx(labels))
    with pytest.raises(ValueError, match="label 10, expected 0 to 9"):
        data.mnist(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path)
    (tmp_path / NAMES[0]).unlink()
    os.mkfifo(tmp_path / NAMES[0])
    with pytest.raises(data.DatasetNotFoundError):
        data.mnist(tmp_path)
