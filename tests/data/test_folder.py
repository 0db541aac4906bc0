"""Images in a folder for each class."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from brasa import data

image_module = pytest.importorskip("PIL.Image")


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_module.fromarray(array).save(path)
    return path


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def scaled(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / np.float32(255)


def test_classes_are_the_folders_in_order(tmp_path):
    made = [picture(k, 4, 6, 3) for k in range(3)]
    save(tmp_path / "dog" / "b.png", made[2])
    save(tmp_path / "cat" / "2.png", made[1])
    save(tmp_path / "cat" / "1.PNG", made[0])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.md").write_text("beside the classes")
    ds = data.image_folder(tmp_path)
    assert ds.classes == ("cat", "dog")
    x, y = ds.arrays
    np.testing.assert_array_equal(x, scaled(np.stack(made).transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(y, [0, 0, 1])
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_images_may_lie_deeper(tmp_path):
    save(tmp_path / "a" / "x" / "y" / "1.png", picture(0, 3, 3))
    assert len(data.image_folder(tmp_path)) == 1


def test_grey_images_have_one_channel_unless_one_has_colour(tmp_path):
    grey = picture(0, 5, 5)
    save(tmp_path / "a" / "1.png", grey)
    x, _ = data.image_folder(tmp_path).arrays
    np.testing.assert_array_equal(x[0, 0], scaled(grey))
    assert x.shape == (1, 1, 5, 5)
    save(tmp_path / "a" / "2.png", picture(1, 5, 5, 3))
    x, _ = data.image_folder(tmp_path).arrays
    assert x.shape == (2, 3, 5, 5)
    np.testing.assert_array_equal(x[0], np.stack([scaled(grey)] * 3))


def test_16_bit_grey_is_scaled(tmp_path):
    wide = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    save(tmp_path / "a" / "1.png", wide)
    x, _ = data.image_folder(tmp_path).arrays
    np.testing.assert_array_equal(x[0, 0], scaled(wide >> 8))


def test_transparency_and_palettes_become_colour(tmp_path):
    save(tmp_path / "a" / "1.png", picture(0, 4, 4, 4))
    image_module.fromarray(picture(1, 4, 4)).convert("P").save(tmp_path / "a" / "2.gif")
    assert data.image_folder(tmp_path).arrays[0].shape == (2, 3, 4, 4)


def test_sizes_must_agree_or_be_given(tmp_path):
    save(tmp_path / "a" / "1.png", np.full((4, 6), 51, np.uint8))
    save(tmp_path / "a" / "2.png", np.full((8, 5), 51, np.uint8))
    with pytest.raises(ValueError, match=r"2.png: \(8, 5\) .*1.png has \(4, 6\)"):
        data.image_folder(tmp_path)
    for size, shape in ((7, (7, 7)), ((3, 9), (3, 9)), (np.int64(2), (2, 2))):
        x, _ = data.image_folder(tmp_path, size=size).arrays
        assert x.shape == (2, 1, *shape)
        np.testing.assert_array_equal(x, np.full(x.shape, 0.2, np.float32))


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), ((3, -1), ValueError), (2**40, ValueError), ("3", TypeError),
                        ((1, 2, 3), TypeError), (2.5, TypeError)]
)  # fmt: skip
def test_bad_sizes(tmp_path, size, error):
    save(tmp_path / "a" / "1.png", picture(0, 4, 4))
    with pytest.raises(error, match="size must be"):
        data.image_folder(tmp_path, size=size)


def test_a_photo_is_turned_upright(tmp_path):
    image = image_module.fromarray(picture(0, 4, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # the top is on the right
    path = tmp_path / "a" / "1.png"
    path.parent.mkdir()
    image.save(path, exif=exif)
    with pytest.raises(ValueError, match=r"1.png: .*\(1, 6, 4\).*expected \(1, 4, 6\)"):
        data.image_folder(tmp_path)
    x, _ = data.image_folder(tmp_path, size=(6, 4)).arrays
    np.testing.assert_array_equal(x[0, 0], scaled(np.rot90(np.asarray(image), -1)))


def test_what_is_too_large_to_keep_is_read_batch_by_batch(tmp_path, monkeypatch):
    for k in range(6):
        save(tmp_path / "ab"[k % 2] / f"{k}.png", picture(k, 5, 5, 3))
    kept = data.image_folder(tmp_path)
    monkeypatch.setattr("brasa.data._folder.MAX_BYTES", 100)
    lazy = data.image_folder(tmp_path)
    assert isinstance(kept, data.ArrayDataset)
    assert isinstance(lazy, data.ImageFolder)
    assert lazy.shape == (3, 5, 5)
    for index in (3, -1, slice(1, 5), [4, 0, 4], []):
        for ours, theirs in zip(lazy[index], kept[index], strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    for (x, y), (x2, y2) in zip(
        data.DataLoader(lazy, 4, shuffle=True), data.DataLoader(kept, 4, shuffle=True), strict=True
    ):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
    assert data.split(lazy, 0.5)[0].classes == ("a", "b")


def test_missing_folders_and_images_say_what_is_needed(tmp_path):
    for root in (None, tmp_path / "none"):
        with pytest.raises(data.DatasetNotFoundError, match="one subfolder of images for each"):
            data.image_folder(root)
    with pytest.raises(data.DatasetNotFoundError, match="there are no classes in"):
        data.image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DatasetNotFoundError, match=r"no images in .*empty"):
        data.image_folder(tmp_path)


def png_head(width: int, height: int) -> bytes:
    """Write a PNG that claims a size and has nothing in it."""
    head = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png_head(50, 50),
        png_head(30_000, 30_000),
        png_head(10_000, 7_000),
        png_head(2**31 - 1, 2**31 - 1),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n",
    ],
    ids=["empty", "text", "no pixels", "900 M pixels", "70 M pixels", "overflow", "PostScript"],
)
@pytest.mark.filterwarnings("ignore:.*decompression bomb")
def test_files_that_are_no_images_are_named(tmp_path, content):
    save(tmp_path / "a" / "1.png", picture(0, 4, 4))
    (tmp_path / "a" / "2.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"2.png: "):
        data.image_folder(tmp_path, size=4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp", "ppm"])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.7])
def test_truncated_images_are_named(tmp_path, suffix, fraction):
    path = save(tmp_path / "a" / f"1.{suffix}", picture(0, 40, 40, 3))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=f"1.{suffix}: "):
        data.image_folder(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a" / "1.png", picture(0, 4, 4))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pillow.*extra 'image'"):
        data.image_folder(tmp_path)
