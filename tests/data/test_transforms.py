"""Random transforms: against plain loops, exact cases, and determinism."""

from __future__ import annotations

import numpy as np
import pytest

from brasa.data import Compose, Normalize, RandomAffine, RandomCrop, RandomHorizontalFlip, Transform

RANDOM = [RandomAffine(20, 0.2, (0.7, 1.4)), RandomHorizontalFlip(), RandomCrop(3)]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(*shape: int, dtype=np.float32) -> np.ndarray:
    return generator(1).random(shape).astype(dtype)


def bilinear(image: np.ndarray, row: float, column: float) -> float:
    """Read one fractional place of an image that is 0 outside, in float64."""
    h, w = image.shape
    top, left = int(np.floor(row)), int(np.floor(column))
    value = 0.0
    for i, wi in ((top, 1 - (row - top)), (top + 1, row - top)):
        for j, wj in ((left, 1 - (column - left)), (left + 1, column - left)):
            if 0 <= i < h and 0 <= j < w:
                value += wi * wj * float(image[i, j])
    return value


def affine_by_loops(x: np.ndarray, transform: RandomAffine, rng: np.random.Generator):
    """Compute RandomAffine pixel by pixel, from its definition and its order of draws."""
    n, c, h, w = x.shape
    degrees = rng.uniform(-transform.degrees, transform.degrees, n)
    factor = rng.uniform(*transform.scale, n)
    down = rng.uniform(-transform.translate, transform.translate, n) * h
    right = rng.uniform(-transform.translate, transform.translate, n) * w
    y = np.zeros(x.shape)
    for k in range(n):
        t = np.deg2rad(degrees[k])
        forward = factor[k] * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        backward = np.linalg.inv(forward)
        for i in range(h):
            for j in range(w):
                place = [j - (w - 1) / 2 - right[k], i - (h - 1) / 2 - down[k]]
                column, row = backward @ place + [(w - 1) / 2, (h - 1) / 2]
                for channel in range(c):
                    y[k, channel, i, j] = bilinear(x[k, channel], row, column)
    return y


@pytest.mark.parametrize("shape", [(3, 1, 9, 9), (2, 3, 8, 13), (2, 2, 1, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_affine_is_its_definition(shape, dtype):
    transform = RandomAffine(40, 0.4, (0.5, 2.0))
    x = images(*shape, dtype=dtype)
    y = transform.apply(x, generator())
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    # Places are float32: 1e-6 of a coordinate below 30, times the largest slope (1 a pixel).
    np.testing.assert_allclose(y, affine_by_loops(x, transform, generator()), atol=3e-5)


def test_affine_of_nothing_changes_nothing():
    x = images(5, 2, 7, 6)
    np.testing.assert_array_equal(RandomAffine(0, 0, (1, 1)).apply(x, generator()), x)


def test_affine_does_not_depend_on_how_the_batch_is_cut(monkeypatch):
    x = images(9, 2, 10, 10)
    whole = RandomAffine().apply(x, generator())
    monkeypatch.setattr("brasa.data.transforms._BLOCK", 500)
    np.testing.assert_array_equal(RandomAffine().apply(x, generator()), whole)


def test_affine_far_outside_is_zero():
    y = RandomAffine(0, 50, (1, 1)).apply(np.ones((20, 1, 4, 4), np.float32), generator(3))
    assert np.isfinite(y).all()
    assert (y.reshape(20, -1).max(1) == 0).sum() >= 18


def test_a_larger_scale_enlarges():
    x = np.zeros((1, 1, 21, 21), np.float32)
    x[:, :, 8:13, 8:13] = 1
    area = [RandomAffine(0, 0, (s, s)).apply(x, generator()).sum() / 25 for s in (0.5, 2)]
    # At one half, 3 x 3 places of the output fall on the square's 5 x 5 pixels.
    np.testing.assert_allclose(area, [9 / 25, 4], rtol=1e-4)


def test_flip_mirrors_some_and_keeps_the_others():
    x = images(400, 2, 3, 4)
    y = RandomHorizontalFlip(0.25).apply(x, generator())
    flipped = (y == x[..., ::-1]).all((1, 2, 3))
    kept = (y == x).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert 60 <= flipped.sum() <= 140  # binomial(400, 0.25): mean 100, deviation 8.7
    np.testing.assert_array_equal(RandomHorizontalFlip(1).apply(x, generator()), x[..., ::-1])
    np.testing.assert_array_equal(RandomHorizontalFlip(0).apply(x, generator()), x)


def test_crop_shifts_by_whole_pixels_and_reaches_every_place():
    x = images(300, 2, 4, 5) + 1
    y = RandomCrop(1).apply(x, generator())
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = set()
    for k in range(300):
        fits = [
            (i, j) for i in range(3) for j in range(3) if (padded[k, :, i : i + 4, j : j + 5] == y[k]).all()
        ]
        assert len(fits) == 1
        places.update(fits)
    assert len(places) == 9


def test_normalize_is_per_channel():
    x = images(4, 3, 2, 2)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    y = Normalize(mean, std).apply(x)
    assert y.dtype == np.float32
    for c in range(3):
        np.testing.assert_allclose(y[:, c], (x[:, c] - mean[c]) / std[c], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(Normalize(0.5, 2).apply(x), (x - 0.5) / 2, rtol=1e-6)


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_random_transforms_follow_the_generator_and_leave_their_input(transform):
    x = images(16, 3, 12, 12)
    before = x.copy()
    first, same, other = (transform.apply(x, generator(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert not np.shares_memory(first, x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("transform", [*RANDOM, Normalize(0, 1)], ids=repr)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 1, 1, 1)])
def test_edge_shapes(transform, shape):
    assert transform.apply(np.ones(shape, np.float32), generator()).shape == shape


@pytest.mark.parametrize("transform", [*RANDOM, Normalize(0, 1)], ids=repr)
def test_targets_pass_through_and_bad_images_are_named(transform):
    y = object()
    assert transform(images(2, 1, 4, 4), y, generator())[1] is y
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), got \(4, 4\)"):
        transform.apply(images(4, 4), generator())
    with pytest.raises(TypeError, match="floating, got uint8"):
        transform.apply(np.ones((1, 1, 4, 4), np.uint8), generator())


def test_compose_applies_in_order_with_one_generator():
    x = images(8, 1, 6, 6)
    rng = generator()
    expected = RandomCrop(2).apply(RandomAffine().apply(x, rng), rng)
    y, _ = Compose(RandomAffine(), RandomCrop(2))(x, None, generator())
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(TypeError, match="callable, got int"):
        Compose(3)


def test_a_transform_without_apply_says_so():
    class Empty(Transform):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define apply"):
        Empty()(images(1, 1, 2, 2), None, generator())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomAffine(degrees=-1), ValueError, "degrees"),
        (lambda: RandomAffine(translate=float("nan")), ValueError, "translate"),
        (lambda: RandomAffine(scale=(0, 1)), ValueError, "scale"),
        (lambda: RandomAffine(scale=(1.2, 0.8)), ValueError, "scale"),
        (lambda: RandomHorizontalFlip(1.5), ValueError, "p must lie"),
        (lambda: RandomCrop(-1), ValueError, "padding"),
        (lambda: RandomCrop(1.5), TypeError, "padding"),
        (lambda: Normalize(0, 0), ValueError, "std"),
        (lambda: Normalize(0, (1, float("nan"))), ValueError, "std"),
        (lambda: Normalize((1, 2), 1).apply(images(1, 3, 2, 2)), ValueError, "2 values"),
    ],
)
def test_bad_amounts_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
