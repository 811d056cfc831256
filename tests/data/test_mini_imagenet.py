"""mini-ImageNet in each of its four layouts, its bad files, and the memory that loading it takes."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tests.data.test_pickles import python2_pickle
from tf_unravel.data.sources import mini_imagenet
from tf_unravel.data.sources.split_lists import split_list

FILES = {
    "train": "miniImageNet_category_split_train_phase_train.pickle",
    "val": "miniImageNet_category_split_val.pickle",
    "test": "miniImageNet_category_split_test.pickle",
}
WNIDS = {split: split_list("mini_imagenet", split)[:3] for split in FILES}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def pixels(count: int = 7, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def load(root, split="train", **options):
    return data.load("mini_imagenet", split=split, root=root, **{"image_size": 16, **options})


def metaoptnet(split="train", labels=(3, 1, 1, 9, 3, 9, 1), **changes):
    wnids = dict(zip(WNIDS[split], (1, 3, 9), strict=True))
    return {"data": pixels(), "labels": list(labels), "catname2label": wnids, **changes}


def save(path, contents, protocol=2):
    path.write_bytes(contents if isinstance(contents, bytes) else pickle.dumps(contents, protocol))


def test_published_lists():
    lists = {split: split_list("mini_imagenet", split) for split in FILES}
    assert [len(names) for names in lists.values()] == [64, 16, 20]
    assert len(set(sum(lists.values(), ()))) == 100


@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("protocol", [2, 4])
def test_metaoptnet_pickles(tmp_path, keys, protocol):
    contents = {keys(name): value for name, value in metaoptnet().items()}
    contents[keys("catname2label")] = {keys(name): label for name, label in contents[keys("catname2label")].items()}
    save(tmp_path / FILES["train"], contents, protocol)
    split = load(tmp_path)
    np.testing.assert_array_equal(split.images, pixels())
    assert split.class_ids.tolist() == [1, 0, 0, 2, 1, 2, 0]
    assert split.class_names == WNIDS["train"]
    assert split.normalization == mini_imagenet.NORMALIZATION
    assert load(tmp_path).fingerprint == split.fingerprint


def test_a_pickle_of_python_2_and_labels_without_names(tmp_path):
    save(tmp_path / FILES["val"], python2_pickle(pixels(), labels=(70, 64, 64, 79, 70, 79, 64)))
    split = load(tmp_path, "val")
    np.testing.assert_array_equal(split.images, pixels())
    assert split.class_ids.tolist() == [1, 0, 0, 2, 1, 2, 0]
    assert split.class_names == ("label 64", "label 70", "label 79")


@pytest.mark.parametrize("val", ["val", "validation"])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_cache_pickles(tmp_path, keys, val):
    names = WNIDS["val"]
    contents = {
        keys("image_data"): pixels(),
        keys("class_dict"): {keys(names[1]): [0, 4], keys(names[2]): np.array([3, 5]), keys(names[0]): [1, 2, 6]},
    }
    save(tmp_path / f"mini-imagenet-cache-{val}.pkl", contents)
    split = load(tmp_path, "val")
    np.testing.assert_array_equal(split.images, pixels())
    assert split.class_ids.tolist() == [1, 0, 0, 2, 1, 2, 0]
    assert split.class_names == names


def write_csv(root, split="train", rows=((0, "n2"), (1, "n1"), (2, "n1"), (3, "n2")), size=16):
    (root / "images").mkdir(exist_ok=True)
    for i, name in rows:
        Image.fromarray(pixels(size=size)[i]).resize((size, size)).save(root / "images" / f"{name}{i:08}.png")
    lines = [f"{name}{i:08}.png,{name}" for i, name in rows]
    (root / f"{split}.csv").write_text("\n".join(["filename,label", *lines]) + "\n")


def test_csv_and_images(tmp_path):
    write_csv(tmp_path)
    split = load(tmp_path)
    np.testing.assert_array_equal(split.images, pixels()[:4])
    assert (split.class_ids.tolist(), split.class_names) == ([1, 0, 0, 1], ("n1", "n2"))
    assert load(tmp_path, image_size=8, resize="nearest").image_shape == (8, 8, 3)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([*lines[:3], lines[3].replace(",n1", ",n2"), lines[4][:-1] + "1"]))
    assert load(tmp_path).class_ids.tolist() == [1, 0, 1, 0]  # the same files, sorted into classes otherwise


def test_class_folders(tmp_path):
    for split, names in WNIDS.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(pixels(seed=i)[i]).save(tmp_path / split / name / f"{i}.png")
    split = load(tmp_path, "test")
    assert split.class_names == tuple(sorted(WNIDS["test"]))
    np.testing.assert_array_equal(split.images[1], pixels(seed=1)[1])
    assert split.normalization == mini_imagenet.NORMALIZATION


def test_nothing_found_lists_the_layouts(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError) as caught:
            load(root)
        for part in (str(root), *("phase_train", "mini-imagenet-cache-", "train", ".csv", "images/", "<class>")):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needs root.*mini-imagenet-cache-"):
        data.load("mini_imagenet")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (metaoptnet(data=pixels(size=8)), r"uint8 \[N, 16, 16, 3\].*Received: uint8 \(7, 8, 8, 3\)"),
        (metaoptnet(data=pixels().astype(np.float32)), "Received: float32"),
        (metaoptnet(data=[1, 2]), "'data' must be one NumPy array. Received: list"),
        (metaoptnet(labels=(1, 2)), "7 images but 2 labels"),
        (metaoptnet(labels=(1.5,) * 7), "whole numbers"),
        ({"image_data": pixels()}, "has no 'data'.*Received: 'image_data'"),
        ([1], "has no 'data'.*Received: list"),
        (b"<!DOCTYPE html>", "HTML page, not a pickle; download it again"),
        (pickle.dumps(metaoptnet(data=pixels(100)), 4)[:70000], "truncated"),
    ],
)
def test_bad_pickles(tmp_path, contents, message):
    save(tmp_path / FILES["train"], contents)
    with pytest.raises(ValueError, match=f"phase_train.pickle.*{message}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("mini_imagenet*"))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": [0, 1, 2], "b": [3, 4, 5, 7]}, "class 'b' has indices beyond the 7 images"),
        ({"a": [0, 1, 2], "b": [2, 3, 4, 5, 6]}, "class 'b' is listed twice"),
        ({"a": [0, 1, 2], "b": [3, 4, 4, 5, 6]}, "class 'b' is listed twice"),
        ({"a": [0, 1, 2], "b": [3, 4]}, "2 images belong to no class"),
        ([1], "'class_dict' must map"),
    ],
)
def test_bad_class_dicts(tmp_path, classes, message):
    save(tmp_path / "mini-imagenet-cache-train.pkl", {"image_data": pixels(), "class_dict": classes})
    with pytest.raises(ValueError, match=f"cache-train.pkl.*{message}"):
        load(tmp_path)


def test_overlapping_classes(tmp_path):
    save(tmp_path / FILES["train"], metaoptnet())
    overlapping = {**dict(zip(WNIDS["val"], (1, 3, 8), strict=True)), WNIDS["train"][0]: 9}
    save(tmp_path / FILES["val"], metaoptnet("val", catname2label=overlapping))
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"class '{WNIDS['train'][0]}' is in both .*phase_train.* and .*split_val"):
            load(tmp_path, split)
    save(tmp_path / FILES["val"], metaoptnet("val"))
    assert load(tmp_path).num_classes == load(tmp_path, "val").num_classes == 3


def test_bad_tables(tmp_path):
    write_csv(tmp_path)
    write_csv(tmp_path, "val", ((4, "n2"), (5, "n2")))
    with pytest.raises(ValueError, match="class 'n2' is in both .*train.csv and .*val.csv"):
        load(tmp_path)
    (tmp_path / "val.csv").unlink()
    next((tmp_path / "images").glob("n1*")).unlink()
    with pytest.raises(ValueError, match=r"train.csv names .*n1.*\.png, which is not there \(1 of 4 images missing\)"):
        load(tmp_path)
    for text, message in [
        ("<html>", "HTML page"),
        ("a,b\n1,2\n", "must begin with the line 'filename,label'"),
        ("filename,label\n", "lists no images"),
        ("filename,label\nx.jpg\n", "line 2 is not <filename>,<label>"),
        ("", "must begin with"),
    ]:
        (tmp_path / "train.csv").write_text(text)
        with pytest.raises(ValueError, match=f"train.csv.*{message}"):
            load(tmp_path)


MEASURE = """
    import sys
    import numpy as np
    import tf_unravel.data as data
    def peak():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
    before = peak()
    split = data.load("mini_imagenet", split="train", root=sys.argv[1])
    if sys.argv[2:]:
        print((peak() - before) / split.images.nbytes)
        sys.exit()
    rng = np.random.default_rng(0)
    for _ in range(len(split) // 64):
        split.images[rng.integers(0, len(split), 128)].sum()
    data.channel_statistics(split)
    print((peak() - before) / split.images.nbytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("layout", ["metaoptnet", "cache"])
def test_converting_holds_the_pixels_twice_and_reading_once(tmp_path, layout):
    count = 6400  # a sixth of the true file: 135 MB
    images = pixels(64, 84)[np.arange(count) % 64]
    labels = (np.arange(count) // 100).tolist()
    if layout == "metaoptnet":
        save(tmp_path / FILES["train"], python2_pickle(images, labels=labels))
    else:
        classes = {f"n{c:08}": list(range(100 * c, 100 * c + 100)) for c in range(64)}
        save(tmp_path / "mini-imagenet-cache-train.pkl", {"image_data": images, "class_dict": classes}, 4)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    for converting, most in ((["converting"], 2.4), ([], 1.3)):
        command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path), *converting]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        assert 0.5 < float(done.stdout) < most
