"""The embedded dataset: the same everywhere, whole or absent, hard for raw pixels."""

import hashlib
import unicodedata

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from tf_unravel.data.sources import glyphs

PER_CLASS = 30


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory):
    """A cache folder of this file's own."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("TF_UNRAVEL_CACHE", str(root))
        yield root


@pytest.fixture(scope="module")
def splits(cache_root):
    """All three splits with few images."""
    return {split: glyphs.load(split, images_per_class=PER_CLASS) for split in ("train", "val", "test")}


@pytest.fixture
def few_classes(monkeypatch, tmp_path):
    """Splits of very few classes in an empty cache, for tests that draw more than once."""
    monkeypatch.setattr(glyphs, "SPLIT_SIZES", {"train": 5, "val": 2, "test": 2})
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path))
    return tmp_path


def drawn_with(threads, per_class=3, size=24):
    arrays = {}

    def create(name, shape, dtype):
        return arrays.setdefault(name, np.zeros(shape, dtype))

    glyphs._fill(create, per_class, size, threads)
    return arrays


def test_shapes_and_classes(splits):
    for split, classes in {"train": 64, "val": 16, "test": 20}.items():
        assert splits[split].images.shape == (classes * PER_CLASS, 32, 32, 3)
        assert splits[split].images.dtype == np.uint8
        assert not splits[split].images.flags.writeable
        np.testing.assert_array_equal(splits[split].class_ids, np.arange(classes).repeat(PER_CLASS))
        assert splits[split].name == f"glyphs/{split}"
    names = [name for split in splits.values() for name in split.class_names]
    assert len(names) == len(set(names)) == 100
    assert set(names) == {unicodedata.name(character).lower() for character in glyphs.CHARACTERS}


def test_which_class_is_in_which_split_never_changes():
    together = " ".join(glyphs.split_characters(split) for split in ("train", "val", "test"))
    assert hashlib.sha256(together.encode()).hexdigest()[:16] == "110fda8cee151592"


def test_every_font_has_every_character():
    for name in glyphs.FONTS:
        characters = FT2Font(glyphs._font_folder() / name).get_charmap()
        assert not [c for c in glyphs.CHARACTERS if ord(c) not in characters], name


def test_any_number_of_threads_draws_the_same(few_classes):
    serial, parallel = drawn_with(threads=1), drawn_with(threads=5)
    assert serial.keys() == parallel.keys() == {f"{s}{e}" for s in glyphs.SPLIT_SIZES for e in ("", "_fingerprint")}
    for name, array in serial.items():
        np.testing.assert_array_equal(array, parallel[name])


def test_an_image_depends_on_its_character_and_position_alone(splits):
    class_id, character = 7, glyphs.split_characters("val")[7]
    images = np.zeros((53, 32, 32, 3), np.uint8)  # more images than the split has, and in more than one chunk
    glyphs.draw_class(character, images)
    expected = splits["val"].images[splits["val"].class_ids == class_id]
    np.testing.assert_array_equal(images[:PER_CLASS], expected)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_what_numpy_draws_is_pinned():
    """Everything but Pillow's glyphs, to the byte. When this fails on purpose, raise glyphs.VERSION."""
    count, size = 40, 32
    bits = glyphs._stream("A", "draws", count * 128).view("<u2").reshape(count, 64)
    grids = glyphs._stream("A", "texture", count * 2 * 96).reshape(count, 2, 96)
    noise = glyphs._stream("A", "noise", count * 6 * size * size).reshape(count, 2, 3, size * size)
    full = [Image.new("L", (8 * size, 8 * size), 120)] * 16
    images = glyphs._images(full, glyphs._Draws(bits), grids, noise, size)
    assert images.min() >= 0 and images.max() <= 255
    digest = hashlib.sha256(images.astype("<i2").tobytes()).hexdigest()[:16]
    assert (glyphs.VERSION, digest) == (1, "73e86cf7bd5b42c7")


def test_fingerprint_is_of_the_contents_and_stable(splits, cache_root):
    again = glyphs.load("test", images_per_class=PER_CLASS)
    assert again.fingerprint == splits["test"].fingerprint
    assert again.fingerprint == glyphs.content_fingerprint(again.images, again.class_ids, again.class_names)
    assert len({split.fingerprint for split in splits.values()}) == 3
    assert len([path for path in cache_root.iterdir() if path.is_dir()]) == 1


def test_drawn_once(splits, monkeypatch):
    monkeypatch.setattr(glyphs, "draw_class", lambda *_: pytest.fail("drawn again"))
    glyphs.load("val", images_per_class=PER_CLASS)


def test_interrupted_drawing_leaves_nothing(few_classes, monkeypatch):
    drawn = []

    def interrupted(character, images):
        drawn.append(character)
        images[...] = 1
        if len(drawn) >= 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "draw_class", interrupted)
        with pytest.raises(KeyboardInterrupt):
            glyphs.load("train", images_per_class=3, image_size=24)
    assert not [path for path in few_classes.iterdir() if path.is_dir()]
    split = glyphs.load("train", images_per_class=3, image_size=24)
    np.testing.assert_array_equal(split.images, drawn_with(threads=1)["train"])


def test_nearest_prototype_on_raw_pixels_is_hard_but_not_hopeless(splits):
    images = splits["test"].images.reshape(20, PER_CLASS, -1).astype(np.float32) / 255
    generator = np.random.default_rng(0)
    accuracies = []
    for _ in range(300):
        classes = generator.choice(20, 5, replace=False)
        chosen = np.stack([generator.choice(PER_CLASS, 16, replace=False) for _ in classes])
        task = images[classes[:, None], chosen]  # [5, 16, pixels]
        support, query = task[:, 0], task[:, 1:].reshape(75, -1)
        distances = (support**2).sum(axis=1) - 2 * query @ support.T
        accuracies.append((distances.argmin(axis=1) == np.arange(5).repeat(15)).mean())
    assert 0.22 < np.mean(accuracies) < 0.35


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "dev"}, "split must be one of train, val, test. Received: 'dev'"),
        ({"split": "val", "images_per_class": 0}, "images_per_class must be 1 or more. Received: 0"),
        ({"split": "val", "image_size": 8}, "image_size must lie in 16..256 pixels. Received: 8"),
    ],
)
def test_refuses_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        glyphs.load(**arguments)


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "_font_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="DejaVuSans.ttf is missing"):
        glyphs.load("val")
