"""Omniglot from archives made in the official format, and from the real small ones where they are."""

import hashlib
import io
import os
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tf_unravel.data.sources import omniglot
from tf_unravel.data.sources.split_lists import split_list
from tf_unravel.data.storage import digests

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def drawing(number: int) -> Image.Image:
    """105x105, 1 bit, black ink on white: a bar on the left whose height says which drawing it is."""
    image = np.full((105, 105), 255, np.uint8)
    image[105 - 15 * (number + 1) :, :15] = 0
    return Image.fromarray(image).convert("1")


def write(path: pathlib.Path, characters, monkeypatch, drawings: int = 2) -> None:
    files = []
    for number in range(drawings):
        file = io.BytesIO()
        drawing(number).save(file, "PNG")
        files.append(file.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for c, name in enumerate(characters):
            for number, digests in enumerate(files):
                archive.writestr(f"{path.stem}/{name}/{c:04}_{number + 1:02}.png", digests)
    monkeypatch.setitem(omniglot.MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())


def alphabets(count: int, characters: int, prefix: str) -> list[str]:
    return [f"{prefix}{a:02}/character{c + 1:02}" for a in range(count) for c in range(characters)]


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The two archives with all the characters of the published lists, in alphabets that they are not really in."""
    everything = sorted(name for split in SPLITS for name in split_list("omniglot_vinyals", split))
    write(tmp_path / "images_background.zip", everything[:964], monkeypatch, drawings=1)
    write(tmp_path / "images_evaluation.zip", everything[964:], monkeypatch, drawings=1)
    return tmp_path


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Ten alphabets of three characters, two of them in both archives."""
    write(tmp_path / "images_background_small1.zip", alphabets(6, 3, "A"), monkeypatch)
    write(tmp_path / "images_background_small2.zip", alphabets(4, 3, "B") + alphabets(2, 3, "A"), monkeypatch)
    return tmp_path


def load(root, split="train", **options):
    return data.load("omniglot", split=split, root=root, **options)


def test_published_lists():
    lists = [split_list("omniglot_vinyals", split) for split in SPLITS]
    assert [len(names) for names in lists] == [1028, 172, 423]
    assert len(set(sum(lists, ()))) == 1623


def test_vinyals(official):
    for split in SPLITS:
        found = load(official, split)  # the default with both official archives
        assert found.class_names == split_list("omniglot_vinyals", split)
        assert found.image_shape == (28, 28, 1)


def test_background(official):
    splits = {split: load(official, split, scheme="background") for split in SPLITS}
    assert splits["test"].num_classes == 659
    assert splits["train"].num_classes + splits["val"].num_classes == 964
    names = [{name.split("/")[0] for name in splits[split].class_names} for split in ("train", "val")]
    assert len(names[1]) == 5 and not names[0] & names[1]
    assert load(official, scheme="background", val_alphabets=0).num_classes == 964
    with pytest.raises(ValueError, match="'val' gets none"):
        load(official, "val", scheme="background", val_alphabets=0)
    with pytest.raises(ValueError, match="val_alphabets must be 0.."):
        load(official, scheme="background", val_alphabets=99)


def test_small_archives_are_split_by_alphabet(small):
    splits = {split: load(small, split) for split in SPLITS}
    assert [split.num_classes // 3 for split in splits.values()] == [6, 2, 2]
    names = sum((split.class_names for split in splits.values()), ())
    assert sorted(names) == sorted(alphabets(6, 3, "A") + alphabets(4, 3, "B"))  # what is in both counts once
    assert all((split.images_per_class == 2).all() for split in splits.values())
    assert load(small, seed=1).class_names != splits["train"].class_names
    (small / "images_background_small2.zip").unlink()
    assert load(small).num_classes == 12


def test_images(small):
    image = load(small, resize="box", image_size=7).images[0, ..., 0]
    np.testing.assert_array_equal(image, np.pad([[255]], ((6, 0), (0, 6))))  # ink is 255, at the bottom left
    second = load(small, resize="box", image_size=7, inverted=False).images[1, ..., 0]
    np.testing.assert_array_equal(second, 255 - np.pad([[255], [255]], ((5, 0), (0, 6))))
    assert load(small, image_size=105).image_shape == (105, 105, 1)


def test_rotations_are_classes(small):
    plain, turned = load(small, image_size=7, resize="box"), load(small, image_size=7, resize="box", rotations=True)
    assert turned.num_classes == 4 * plain.num_classes and len(turned) == 4 * len(plain)
    first = plain.class_names[0]
    assert turned.class_names[:4] == (first, *(f"{first}/rotated{angle:03}" for angle in (90, 180, 270)))
    for turn in range(4):
        found = turned.images[turned.class_ids == turn][..., 0]
        np.testing.assert_array_equal(found, [np.rot90(image[..., 0], turn) for image in plain.images[:2]])
    assert turned.images[2, 6, 6, 0] == 255  # 90 degrees anticlockwise: from the bottom left to the bottom right


def test_what_is_missing_is_named(tmp_path, small):
    with pytest.raises(ValueError, match="needs images_background.zip.*Found: .*small1.zip.*scheme='small'"):
        load(small, scheme="vinyals")
    with pytest.raises(ValueError, match="scheme must be one of vinyals, background, small.*'lake'"):
        load(small, scheme="lake")
    for path in small.glob("*.zip"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no archive; put there images_background.zip and images_evaluation.zip"):
        load(small)
    with pytest.raises(ValueError, match="needs root"):
        data.load("omniglot")


def test_archives_with_another_hash(small):
    path = small / "images_background_small1.zip"
    whole = path.read_bytes()
    for contents, message in [(whole[:-50], "is not the published file"), (b"<html>", "a web page")]:
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=f"small1.zip.*{message}.*download it again") as caught:
            load(small)
        assert "\n" not in str(caught.value)


def test_damaged_archives_with_the_right_hash(small, monkeypatch):
    path = small / "images_background_small1.zip"
    whole = path.read_bytes()
    for contents in (b"PK\x03\x04junk", whole.replace(b"IDAT", b"IXXX")):
        path.write_bytes(contents)
        monkeypatch.setitem(omniglot.MD5, path.name, hashlib.md5(contents).hexdigest())
        with pytest.raises(ValueError, match=r"small1.zip.* damaged .*download it again"):
            load(small)


@pytest.fixture
def unpacked(official, monkeypatch):
    """The same characters in the folders that the archives unpack to, without the archives."""
    folder = official / "unpacked"
    for name in omniglot.FOLDER_SHA256:
        with zipfile.ZipFile(official / f"{name}.zip") as archive:
            archive.extractall(folder)
        digest = digests.digest_of_files(folder, omniglot._files_of(folder / name))
        monkeypatch.setitem(omniglot.FOLDER_SHA256, name, digest)
    return folder


@pytest.mark.parametrize("options", [{}, {"scheme": "background"}, {"rotations": True, "image_size": 14}], ids=str)
def test_folders_are_the_archives_unpacked(official, unpacked, options):
    for split in SPLITS:
        zipped, folders = load(official, split, **options), load(unpacked, split, **options)
        assert folders.class_names == zipped.class_names
        np.testing.assert_array_equal(folders.images, zipped.images)
        assert folders.fingerprint == zipped.fingerprint


def test_an_archive_and_a_folder_together(official, unpacked):
    shutil.rmtree(unpacked / "images_background")
    shutil.copy(official / "images_background.zip", unpacked)
    assert load(unpacked).fingerprint == load(official).fingerprint


@pytest.mark.parametrize("change", ["missing", "changed", "added"])
def test_folders_with_other_drawings(unpacked, change):
    drawing = sorted((unpacked / "images_evaluation").glob("*/*/*.png"))[3]
    if change == "missing":
        drawing.unlink()
    elif change == "changed":
        drawing.write_bytes(drawing.read_bytes() + b"0")
    else:
        shutil.copy(drawing, drawing.with_name("9999_99.png"))
    with pytest.raises(ValueError, match="images_evaluation is not what images_evaluation.zip unpacks to.*Received: 6"):
        load(unpacked)


REAL = os.environ.get("TF_UNRAVEL_TEST_DATA", "")


@pytest.mark.skipif(not (pathlib.Path(REAL) / "images_background_small1.zip").is_file(), reason="TF_UNRAVEL_TEST_DATA")
def test_the_real_small_archives():
    splits = {split: load(REAL, split, scheme="small") for split in SPLITS}
    assert sum(split.num_classes for split in splits.values()) == 242  # 136 + 156, 50 of them in both
    for split in splits.values():
        assert (split.images_per_class == 20).all()
        assert 10 < split.images.mean() < 40  # white strokes on black


@pytest.mark.skipif(not (pathlib.Path(REAL) / "images_evaluation").is_dir(), reason="TF_UNRAVEL_TEST_DATA")
def test_the_real_folders():
    assert [load(REAL, split).num_classes for split in SPLITS] == [1028, 172, 423]
    splits = [load(REAL, split, scheme="background") for split in SPLITS]
    assert sum(split.num_classes for split in splits) == 1623 and splits[2].num_classes == 659
    assert all((split.images_per_class == 20).all() for split in splits)
