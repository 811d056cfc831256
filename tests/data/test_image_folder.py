"""image_folder: layouts, every kind of image, bad files, the cache, and the random split of classes."""

import io
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tf_unravel.data.sources import image_folder
from tf_unravel.data.storage import decoding, image_files
from tf_unravel.data.storage.decoding import Decoding

RED = (200, 30, 10)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def decode(content: bytes, how: Decoding) -> np.ndarray:
    return decoding.decode(content, how)[0]


def pixels(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def plain_folder(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
    """<class>/<image>: two images of each class, 2c and 2c + 1 of `pixels`."""
    for c, name in enumerate(names):
        for i in range(2):
            write(folder / name / f"{i}.bmp", pixels(2 * c + i))
    return folder


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """train: cat, dog; val: fox; test: owl; three images of 8x8 each."""
    for c, name in enumerate(["train/cat", "train/dog", "val/fox", "test/owl"]):
        for i in range(3):
            write(tmp_path / "photos" / name / f"{i}.png", pixels(10 * c + i))
    return tmp_path / "photos"


def load(root, split="train", **options):
    return data.load("image_folder", split=split, root=root, **options)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_split_folders(root):
    split = load(root)
    assert split.class_names == ("cat", "dog")
    assert split.class_ids.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(split.images, [pixels(i) for i in (0, 1, 2, 10, 11, 12)])
    assert load(root, "val").class_names == ("fox",)
    assert isinstance(split.images, np.memmap)


def test_validation_is_val(root):
    (root / "val").rename(root / "validation")
    assert load(root, "val").class_names == ("fox",)


def test_plain_folders_are_split_by_the_seed(tmp_path):
    names = [f"c{i:02}" for i in range(25)]
    plain_folder(tmp_path / "plain", names)
    splits = {split: load(tmp_path / "plain", split).class_names for split in ("train", "val", "test")}
    assert [len(found) for found in splits.values()] == [16, 4, 5]
    assert sorted(sum(splits.values(), ())) == names
    assert load(tmp_path / "plain", "val").class_names == splits["val"]
    assert load(tmp_path / "plain", "val", seed=1).class_names != splits["val"]
    assert load(tmp_path / "plain", "test", fractions=(20, 2, 3)).num_classes == 3
    images = load(tmp_path / "plain", "val").images
    np.testing.assert_array_equal(images[1], pixels(2 * names.index(splits["val"][0]) + 1))


def test_the_random_split_is_the_same_everywhere():
    names = list("abcdefghij")
    assert image_folder.split_classes(names, "test", 0, (0.6, 0.2, 0.2)) == FROZEN_TEST_CLASSES
    assert image_folder.split_classes(names[::-1], "test", 0, (0.6, 0.2, 0.2)) == FROZEN_TEST_CLASSES


FROZEN_TEST_CLASSES = ["b", "e"]  # the last two by SHA-256 of "0:<name>"


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.5), "three numbers"),
        ((0.5, 0.6, 0.1), "must sum to 1, or be numbers of classes that sum to 3"),
        ((1, 1, 2), "sum to 3"),
        ((-1, 2, 0), "0 or more"),
        ("abc", "three numbers"),
        (None, "three numbers"),
        (5, "three numbers"),
        ((0.1, 0.45, 0.45), None),
        ((0.0, 0.0, 1.0), "gets none of 3"),
    ],
)
def test_fractions_that_do_not_fit(tmp_path, fractions, message):
    plain_folder(tmp_path / "plain", list("abc"))
    if message is None:
        assert load(tmp_path / "plain", fractions=fractions).num_classes == 1
    else:
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "plain", fractions=fractions)


def test_two_classes_cannot_be_split_in_three(tmp_path):
    for name in "ab":
        write(tmp_path / "plain" / name / "0.png", pixels(0))
    with pytest.raises(ValueError, match="plain: 2 classes are too few"):
        load(tmp_path / "plain")


def test_all_splits_must_be_usable_before_one_is(tmp_path):
    """Removed once a part was learned from, the classes would split otherwise without the bad one."""
    plain_folder(tmp_path / "plain", [f"c{i}" for i in range(10)])
    of = {split: load(tmp_path / "plain", split).class_names for split in ("train", "val", "test")}
    bad = tmp_path / "plain" / of["test"][0] / "0.bmp"
    bad.write_bytes(b"torn")
    with pytest.raises(ValueError, match="image_folder/test: .*0.bmp cannot be used: .*load.on_corrupt = 'skip'"):
        load(tmp_path / "plain", "train")
    bad.unlink()
    torn = tmp_path / "plain" / of["train"][0] / "0.bmp"
    whole = torn.read_bytes()
    torn.write_bytes(b"torn")  # numbers are looked at before one image is decoded
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"image_folder/test: class '{of['test'][0]}' .* has 1 usable images"):
            load(tmp_path / "plain", split)
    torn.write_bytes(whole)
    assert load(tmp_path / "plain", "train", min_images=1).class_names == of["train"]
    (tmp_path / "plain" / "empty").mkdir()
    with pytest.raises(ValueError, match="class 'empty' .* has 0 usable images"):
        load(tmp_path / "plain", "train", min_images=1)


def test_pictures_that_will_not_be_seen_are_named(root, caplog):
    for name in ("dog/a.HEIC", "cat/2025/b.png", "loose.jpg", "cat/notes.txt", ".hidden.heic", "cat/.old/c.png"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_bytes(b"x")
    assert len(load(root)) == 6
    assert caplog.text.count("passed over") == 1 and "image_folder/train: passed over 3 images" in caplog.text
    assert "the first: cat/2025/b.png." in caplog.text


def test_a_class_called_train_is_a_class(tmp_path):
    plain_folder(tmp_path / "plain", ["bus", "car", "train"])
    found = {load(tmp_path / "plain", split).class_names[0] for split in ("train", "val", "test")}
    assert found == {"bus", "car", "train"}


def test_hidden_files_and_other_files_are_passed_over(root):
    (root / "train" / ".git").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"x")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "sub.png").mkdir()
    (root / "train" / "readme.png").write_bytes(b"x")
    assert len(load(root)) == 6


def test_links_are_followed(root, tmp_path):
    (root / "train" / "dog").rename(tmp_path / "elsewhere")
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "cat" / "3.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert load(root).images_per_class.tolist() == [4, 3]
    (tmp_path / "elsewhere" / "0.png").unlink()
    with pytest.raises(ValueError, match="3.png cannot be used: it cannot be read"):
        load(root)


# Kinds of images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_every_mode_becomes_rgb(mode):
    value = {"1": 1, "L": 90, "LA": (90, 255), "RGB": RED, "RGBA": (*RED, 255), "I;16": 90 * 257}.get(mode)
    image = Image.new("RGB", (4, 3), RED).quantize(4) if mode == "P" else Image.new(mode, (4, 3), value)
    expected = {"1": (255,) * 3, "P": RED, "RGB": RED, "RGBA": RED}.get(mode, (90,) * 3)
    decoded = decode(encoded(image, "PNG"), Decoding())
    assert decoded.shape == (3, 4, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.broadcast_to(expected, (3, 4, 3)))


MODES = {"JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB", "P", "1"), "WEBP": ("RGB", "RGBA")}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_other_formats(format, mode):
    image = Image.new("RGB", (16, 8), RED).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encoded(image, format, **options), Decoding())
    assert np.abs(decoded.astype(int) - expected).max() <= 3


def test_transparency_shows_the_background():
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (100, 100, 100, 128))
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), Decoding())[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), Decoding(background=(9, 8, 7)))[0, 0], (9, 8, 7))
    mixed = round(100 * 128 / 255 + 9 * 127 / 255)
    assert abs(int(decode(encoded(image, "PNG"), Decoding(background=(9, 9, 9)))[0, 1, 0]) - mixed) <= 1
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    decoded = decode(encoded(palette, "PNG", transparency=0), Decoding(background=(9, 8, 7)))
    np.testing.assert_array_equal(decoded[0], [(9, 8, 7), (40, 50, 60)])
    decoded = decode(encoded(Image.new("RGB", (1, 1), RED), "PNG", transparency=RED), Decoding(background=(9, 8, 7)))
    np.testing.assert_array_equal(decoded[0, 0], (9, 8, 7))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_honoured(format):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, 16:] = 250
    stored = Image.fromarray(np.rot90(upright))  # turned left, to be turned right when shown
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(stored, format, exif=exif), Decoding())
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


def test_resizing_is_pillows_by_the_named_filter(root):
    source = Image.fromarray(pixels(0))
    seen = []
    for name, resampling in decoding.FILTERS.items():
        expected = np.asarray(source.resize((5, 3), resampling))
        np.testing.assert_array_equal(load(root, image_size=(3, 5), resize=name).images[0], expected)
        seen.append(expected.tobytes())
    assert len(set(seen)) == 5
    assert load(root, image_size=4).image_shape == (4, 4, 3)


def test_crop_keeps_the_shape_of_things():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    data_ = encoded(Image.fromarray(wide), "PNG")
    assert decode(data_, Decoding((4, 4), crop=True)).min() == 200
    assert decode(data_, Decoding((4, 4), crop=False)).min() == 0


# What is wrong with the files


def test_sizes_that_differ_name_two_files(root):
    write(root / "train" / "dog" / "1.png", pixels(0, size=9))
    with pytest.raises(ValueError, match=r"dog/1.png has 9x9 pixels, .*cat/0.png has 8x8; pass image_size") as caught:
        load(root)
    assert "\n" not in str(caught.value)
    assert len(load(root, image_size=8)) == 6


BAD = {
    "truncated": (lambda: encoded(Image.fromarray(pixels(0, 64)), "JPEG")[:900], "damaged"),
    "empty": (lambda: b"", "the file is empty"),
    "html": (lambda: b"<html>quota exceeded</html>", "starts with '<': a web page"),
    "text": (lambda: b"not an image", "it is no image, not one of JPEG, PNG, BMP, WebP and PPM"),
    "gif": (lambda: encoded(Image.new("L", (8, 8)), "GIF"), "it is a GIF image, which is not one of JPEG, PNG"),
    "crc": (lambda: encoded(Image.fromarray(pixels(0)), "PNG")[:60] + b"\0" * 100, "damaged"),
}


@pytest.mark.parametrize(("kind", "processes"), [*((kind, False) for kind in BAD), ("truncated", True)])
def test_a_bad_image_is_named_or_skipped(root, caplog, monkeypatch, kind, processes):
    if processes:
        monkeypatch.setattr(decoding, "_PROCESSES_FROM", 1)
        monkeypatch.setattr(decoding, "_FILES_PER_TASK", 2)
        monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    make, message = BAD[kind]
    (root / "train" / "cat" / "0.png").write_bytes(make())
    with pytest.raises(ValueError, match=f"image_folder/train: .*cat/0.png cannot be used: .*{message}") as caught:
        load(root)
    assert "\n" not in str(caught.value) and "on_corrupt='skip'" in str(caught.value)
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            split = load(root, on_corrupt="skip")
        assert "left out 1 of 6" in caplog.text
        np.testing.assert_array_equal(split.images, [pixels(i) for i in (1, 2, 10, 11, 12)])
        assert split.class_ids.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="'cat' .*has 2 usable images, fewer than min_images=3"):
        load(root, on_corrupt="skip", min_images=3)


def test_all_images_bad(root):
    for i in range(3):
        (root / "val" / "fox" / f"{i}.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="fox/0.png"):
        load(root, "val")
    with pytest.raises(ValueError, match="'fox' .*has 0 usable images"):
        load(root, "val", on_corrupt="skip")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ValueError, match="cat/0.png cannot be used: it has 8x8 pixels, more than the limit of 40"):
        load(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # beyond twice the limit Pillow raises by itself
    with pytest.raises(ValueError, match="cat/0.png cannot be used: it has more pixels than the limit of 20"):
        load(root)


def test_too_few_images(root):
    for i in (1, 2):
        (root / "train" / "dog" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="'dog' .*has 1 usable images, fewer than min_images=2; add images"):
        load(root)
    assert load(root, min_images=1).images_per_class.tolist() == [3, 1]
    (root / "train" / "dog" / "0.png").unlink()
    with pytest.raises(ValueError, match="'dog' .*has 0 usable images"):
        load(root, min_images=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()], "train is empty: add"),
        (lambda root: shutil.rmtree(root / "train"), "has no folder 'train'; its splits are: val, test"),
        (lambda root: shutil.copytree(root / "val" / "fox", root / "train" / "fox"), "class 'fox' is in both"),
        (lambda root: shutil.rmtree(root), "no folder .*photos; check the path"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], "photos holds no class folders; expected"),
    ],
)
def test_layouts_that_cannot_be_used(root, change, message):
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "area"}, "resize must be one of nearest, box.*'area'"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"background": (0, 0, 300)}, "background"),
        ({"on_corrupt": "ignore"}, "'error' or 'skip'"),
        ({"size": 3}, "no option 'size'; its options are: root, image_size, resize"),
    ],
)
def test_options_that_cannot_be_used(root, options, message):
    with pytest.raises(ValueError, match=message):
        load(root, **options)


def test_names_that_cannot_be_used(root):
    with pytest.raises(ValueError, match="unknown dataset; choose one of glyphs.*'imagenet'"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="train, val, test.*'dev'"):
        data.load("image_folder", split="dev", root=root)
    with pytest.raises(ValueError, match="needs root"):
        data.load("image_folder")


# The cache


def test_decoding_happens_once_and_follows_the_contents(root, monkeypatch, tmp_path):
    calls = []
    original = decoding.decode_files
    monkeypatch.setattr(image_files.decoding, "decode_files", lambda *given: calls.append(1) or original(*given))
    first = load(root)
    assert load(root).fingerprint == first.fingerprint and len(calls) == 1
    os.utime(root / "train" / "cat" / "0.png", (1, 1))  # touched
    shutil.copytree(root, tmp_path / "copy")
    assert load(root).fingerprint == load(tmp_path / "copy").fingerprint == first.fingerprint and len(calls) == 1
    times = os.stat(root / "train" / "cat" / "0.png")
    write(root / "train" / "cat" / "0.png", pixels(99))  # changed, with the times put back
    os.utime(root / "train" / "cat" / "0.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = load(root)
    np.testing.assert_array_equal(changed.images[0], pixels(99))
    assert changed.fingerprint != first.fingerprint and len(calls) == 2
    load(root, resize="box")
    assert len(calls) == 3


def test_regrouping_the_same_files_is_another_entry(root):
    before = load(root)
    (root / "train" / "dog").rename(root / "train" / "ant")
    after = load(root)
    assert after.class_names == ("ant", "cat")
    np.testing.assert_array_equal(after.images[:3], before.images[3:])


def test_nothing_half_read_is_kept(root, monkeypatch):
    def interrupted(paths, out, how):
        out[0] = 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_files.decoding, "decode_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    np.testing.assert_array_equal(load(root).images[0], pixels(0))


def test_processes_and_threads_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    names = [f"é {i} 图.jpg" for i in range(300)]
    for i, name in enumerate(names):
        write(tmp_path / "many" / name, pixels(i))
    paths = [str(tmp_path / "many" / name) for name in names]
    in_threads = np.zeros((300, 8, 8, 3), np.uint8)
    assert decoding.decode_files(paths, in_threads, Decoding()) == ([], {})
    monkeypatch.setattr(decoding, "_PROCESSES_FROM", 1)
    shared = np.lib.format.open_memmap(tmp_path / "shared.npy", "w+", np.uint8, (300, 8, 8, 3))
    monkeypatch.setattr(decoding, "_decode_rows", None)  # this process must not decode
    assert decoding.decode_files(paths, shared, Decoding()) == ([], {})
    np.testing.assert_array_equal(shared, in_threads)


def test_a_process_that_dies_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    monkeypatch.setattr(decoding, "_PROCESSES_FROM", 1)
    monkeypatch.setattr(decoding, "_WORKER", "")  # ends at once
    shared = np.lib.format.open_memmap(tmp_path / "shared.npy", "w+", np.uint8, (3, 8, 8, 3))
    with pytest.raises(ValueError, match="a decoding process ended early"):
        decoding.decode_files(["a", "b", "c"], shared, Decoding())


def test_classes_can_be_excluded(tmp_path):
    """Before the others are split: whoever tests on the rest sees none of them in any split."""
    for name in "abcdef":
        for i in range(2):
            write(tmp_path / name / f"{i}.png", pixels(10 * ord(name) + i))
    left = data.load("image_folder", "test", tmp_path, fractions=(0, 0, 1), exclude=("b", "e", "x"))
    assert left.class_names == ("a", "c", "d", "f")
