"""The same image in two classes, two splits or twice in one class: counted against sets of bytes, said once."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tf_unravel.data.storage import duplicates
from tf_unravel.deployment.labelled_images import read_labelled


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["folders", "random", "csv", "mini folders"])
def dataset(request, tmp_path):
    """(root, load(split, **options), the folder of class c, the name of the dataset): six classes of three images."""
    root, layout = tmp_path / "images", request.param
    classes = [f"class{c}" for c in range(6)]
    of_class = {c: data.SPLITS[c // 2] for c in range(6)}
    where = {c: root / ("images" if layout == "csv" else "" if layout == "random" else of_class[c]) / name
             for c, name in enumerate(classes)}  # fmt: skip
    for c, folder in where.items():
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(10 * c + i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.bmp")  # of one size: only the bytes differ

    def load(split="train", **options):
        if layout == "csv":
            for part in data.SPLITS:
                files = [(path.relative_to(root / "images"), path.parent.name) for c, folder in where.items()
                         if of_class[c] == part for path in sorted(folder.iterdir())]  # fmt: skip
                (root / f"{part}.csv").write_text("\n".join(["filename,label", *(f"{a},{b}" for a, b in files)]))
        name = "image_folder" if layout in ("folders", "random") else "mini_imagenet"
        return data.load(name, split, root, image_size=8, **options)

    return load, where


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (0, 5), (3, 4)])
def test_a_copy_in_another_class_or_split_is_said_with_the_pair(dataset, caplog, first, second):
    """Also where the split that is loaded has neither of the two."""
    load, where = dataset
    load()
    assert not caplog.text
    for i in range(2):
        shutil.copy(where[first] / f"{i}.bmp", where[second] / f"copy{i}.bmp")
    before = load(on_duplicates="ignore")
    assert not caplog.text
    for _ in range(2):
        caplog.clear()
        assert load().fingerprint == before.fingerprint
        assert caplog.text.count("WARNING") == 1
        assert "2 images have a byte-for-byte copy in another class or split; the first pair: " in caplog.text
        pair = {str(where[first] / "0.bmp"), str(where[second] / "copy0.bmp")}
        said = caplog.text.partition("the first pair: ")[2].partition(";")[0].split(" and ")
        assert set(said) == pair
    with pytest.raises(ValueError, match="2 images have a .*; remove one of each, or load .*warn'") as caught:
        load("train", on_duplicates="error")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="on_duplicates must be one of error, warn, ignore. Received: 'no'"):
        load(on_duplicates="no")


def test_copies_within_a_class_are_counted_and_no_error(dataset, caplog):
    load, where = dataset
    shutil.copy(where[0] / "0.bmp", where[0] / "copy.bmp")
    assert load(on_duplicates="error").num_classes
    assert caplog.text.count("WARNING") == 1 and "1 image is a copy within its class" in caplog.text
    shutil.copy(where[1] / "0.bmp", where[2] / "copy.bmp")
    caplog.clear()
    load()
    assert "1 image has a byte-for-byte copy in another class or split (and 1 image is a copy within" in caplog.text


def test_a_class_folder_linked_under_a_second_name(tmp_path, caplog):
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(2):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 10 * c + i, np.uint8)).save(path)
    (tmp_path / "images" / "dog").symlink_to(tmp_path / "images" / "ant")
    data.load("image_folder", "train", tmp_path / "images", fractions=(4, 0, 0))
    assert "2 images have a byte-for-byte copy" in caplog.text and "whose folders are one and the same" in caplog.text
    assert "images/ant/0.png" in caplog.text and "images/dog/0.png" in caplog.text
    caplog.clear()
    card = {"input": {"height": 8, "width": 8, "channels": 3},
            "decoding": {"resize": "bilinear", "crop": False, "background": [255, 255, 255]}}
    read_labelled(tmp_path / "images", card)
    assert caplog.text.count("2 images have a byte-for-byte copy") == 1


def test_damaged_and_empty_files_are_no_copies_of_each_other(tmp_path, caplog):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng([i, *name.encode()]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
        (tmp_path / "images" / name / "empty.png").write_bytes(b"")
        (tmp_path / "images" / name / "gone.png").symlink_to(tmp_path / "nowhere")
    data.load("image_folder", "train", tmp_path / "images", fractions=(3, 0, 0), on_corrupt="skip")
    assert "copy" not in caplog.text


def test_counts_equal_those_of_sets():
    rng = np.random.default_rng(0)
    for _ in range(50):
        images = rng.integers(0, 2, (12, 3, 1, 1), dtype=np.uint8)
        labels = rng.integers(0, 3, 12)
        across = within = 0
        for i in range(12):
            earlier = [j for j in range(i) if (images[j] == images[i]).all()]
            across += bool(earlier) and labels[earlier[0]] != labels[i]
            within += bool(earlier) and labels[earlier[0]] == labels[i]
        found = duplicates.counted(images, labels)
        assert found[:2].tolist() == [across, within]
        if across + within:
            assert (images[found[2]] == images[found[3]]).all() and found[2] < found[3]
            assert (labels[found[2]] != labels[found[3]]) == (across > 0)
            assert labels[found[2:4]].tolist() == found[4:].tolist()


@pytest.mark.parametrize("layout", ["metaoptnet", "class_dict"])
def test_pickles_are_looked_at_split_by_split(tmp_path, caplog, layout):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    images[4] = images[1]
    if layout == "metaoptnet":
        name = "miniImageNet_category_split_val.pickle"
        contents = {"data": images, "labels": [0, 0, 0, 1, 1, 1], "catname2label": {"n1": 0, "n2": 1}}
    else:
        name = "mini-imagenet-cache-val.pkl"
        contents = {"image_data": images, "class_dict": {"n1": [0, 1, 2], "n2": [3, 4, 5]}}
    pathlib.Path(tmp_path / name).write_bytes(pickle.dumps(contents))
    for _ in range(2):
        caplog.clear()
        data.load("mini_imagenet", "val", tmp_path, image_size=8)
        assert caplog.text.count("byte-for-byte copy") == 1
        assert "mini_imagenet/val: 1 image has" in caplog.text and "numbers 1 ('n1') and 4 ('n2') of 6" in caplog.text
    with pytest.raises(ValueError, match="1 image has a byte-for-byte copy"):
        data.load("mini_imagenet", "val", tmp_path, image_size=8, on_duplicates="error")
