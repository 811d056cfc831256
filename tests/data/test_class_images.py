"""ClassImages: what it accepts, what it counts, and its statistics against NumPy."""

import numpy as np
import pytest

from tf_unravel.data import class_images
from tf_unravel.data.class_images import ClassImages, channel_statistics, content_fingerprint, normalization_of

IDS = np.array([2, 0, 1, 0, 2, 2])


def pixels(count: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 4, 5, channels), dtype=np.uint8)


def made(images=None, ids=IDS, names=("a", "b", "c"), **more) -> ClassImages:
    return ClassImages(pixels() if images is None else images, ids, names, "pets/train", **more)


def test_index_lists_the_images_of_every_class():
    order, offsets = made().class_index
    assert order.tolist() == [1, 3, 2, 0, 4, 5]
    assert offsets.tolist() == [0, 2, 3, 6]
    assert order.dtype == offsets.dtype == np.int64
    assert made().images_per_class.tolist() == [2, 1, 3]


def test_index_keeps_the_order_within_a_class():
    ids = np.arange(3000) * 7 % 3
    order, offsets = made(pixels(3000), ids).class_index
    for c in range(3):
        np.testing.assert_array_equal(order[offsets[c] : offsets[c + 1]], np.flatnonzero(ids == c))


def test_properties():
    split = made()
    assert (len(split), split.num_classes, split.image_shape) == (6, 3, (4, 5, 3))
    assert split.class_ids.dtype == np.int32
    assert "pets/train" in repr(split)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": pixels().astype(np.float32)}, "uint8 NumPy array.*float32"),
        ({"images": pixels()[..., 0]}, "height, width, channels.*6, 4, 5"),
        ({"images": pixels()[:0], "ids": IDS[:0]}, "none of them 0"),
        ({"ids": IDS[:5]}, "6 images, 5 ids"),
        ({"ids": IDS.astype(float)}, "integers"),
        ({"ids": IDS + 1}, "0..2.*from 1 to 3"),
        ({"names": ("a", "b", "c", "d")}, "0..3.*every one must occur"),
        ({"names": ("a", "b", "a")}, "'a' twice"),
        ({"normalization": ((1.0,), (1.0,))}, "3 values each"),
        ({"normalization": ((1.0, 1, 1), (1.0, 0, 1))}, "std above 0"),
    ],
)
def test_refuses_what_does_not_fit_and_names_the_split(changes, message):
    with pytest.raises(ValueError, match=f"^pets/train: .*{message}") as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


def test_fingerprint_depends_on_pixels_ids_and_names():
    images = pixels()
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    prints = {
        made(images).fingerprint,
        made(changed).fingerprint,
        made(images, ids=IDS[::-1]).fingerprint,
        made(images, names=("a", "b", "d")).fingerprint,
    }
    assert len(prints) == 4
    assert made(images).fingerprint == content_fingerprint(images, IDS.astype(np.int64), ("a", "b", "c"))


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_equal_numpys_in_chunks(monkeypatch, channels):
    monkeypatch.setattr(class_images, "_CHUNK_BYTES", 4 * 5 * channels * 4)  # chunks of four images, the last shorter
    images = pixels(channels=channels)
    mean, std = channel_statistics(made(images))
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-12)


def test_normalization_is_the_published_one_or_the_measured_one():
    published = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert normalization_of(made(normalization=published)) == published
    assert normalization_of(made()) == channel_statistics(made())
    constant = made(np.full((6, 4, 5, 3), 9, np.uint8))
    assert normalization_of(constant) == ((9.0,) * 3, (1.0,) * 3)
