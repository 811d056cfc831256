"""CIFAR-FS from an archive of CIFAR-100's format, from MetaOptNet's pickles and from folders."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tests.data.test_pickles import python2_pickle
from tf_unravel.data.sources import cifar_fs
from tf_unravel.data.sources.split_lists import split_list

PER_CLASS = {"train": 3, "test": 2}
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def pixels(member: str) -> np.ndarray:
    """[N, 32, 32, 3]: red holds the fine label, green the number of the image; the classes come in a mixed order."""
    count = 100 * PER_CLASS[member]
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[..., 0] = fine_labels(member)[:, None, None]
    images[..., 1] = (np.arange(count) % 251)[:, None, None]
    images[:, :3, 20:, 2] = 7  # so that height and width cannot be taken for each other
    return images


def fine_labels(member: str) -> np.ndarray:
    return (np.arange(100 * PER_CLASS[member]) * 37) % 100


def member_bytes(member: str) -> bytes:
    rows = np.ascontiguousarray(pixels(member).transpose(0, 3, 1, 2).reshape(-1, 3072))  # a channel after the other
    return pickle.dumps({b"data": rows, b"fine_labels": fine_labels(member).tolist(), b"coarse_labels": [0]}, 2)


def archive_bytes(members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member in members:
            data_ = member_bytes(member)
            info = tarfile.TarInfo(f"cifar-100-python/{member}")
            info.size = len(data_)
            archive.addfile(info, io.BytesIO(data_))
    return file.getvalue()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(archive_bytes(["train", "test"]))
    monkeypatch.setattr(cifar_fs, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def load(root, split="train"):
    return data.load("cifar_fs", split=split, root=root)


def check(split, name):
    """Every image stands in the class that its red channel says, upright and in colour."""
    names = split_list("cifar_fs", name)
    assert split.class_names == names
    assert (split.images_per_class == sum(PER_CLASS.values())).all()
    fine = np.array([cifar_fs.fine_names().index(names[i]) for i in split.class_ids])
    np.testing.assert_array_equal(split.images[:, 5, 5, 0], fine)
    assert (split.images[:, 0, 31, 2] == 7).all() and (split.images[:, 31, 0, 2] == 0).all()
    assert split.normalization == cifar_fs.NORMALIZATION


def test_published_lists():
    assert [len(split_list("cifar_fs", split)) for split in SPLITS] == [64, 16, 20]
    names = cifar_fs.fine_names()
    assert len(set(names)) == 100
    assert (names[0], names[4], names[99]) == ("apple", "beaver", "worm")  # CIFAR-100's fine labels


@pytest.mark.parametrize("split", SPLITS)
def test_from_the_archive(archive, split):
    check(load(archive.parent, split), split)


def test_downloaded_through_keras(archive, monkeypatch):
    import keras

    asked = {}

    def get_file(name, origin, **options):
        asked.update(options, origin=origin)
        return str(archive)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    check(data.load("cifar_fs", split="val"), "val")
    assert asked == {"origin": cifar_fs.URL, "file_hash": cifar_fs.ARCHIVE_SHA256, "hash_algorithm": "sha256"}

    def fails(*_, **__):
        raise Exception("URL fetch failure\non it: 503")

    monkeypatch.setattr(keras.utils, "get_file", fails)
    with pytest.raises(ValueError, match=r"https://.* could not be downloaded \(URL fetch failure\)"):
        data.load("cifar_fs", split="val")


def test_from_the_unpacked_archive(tmp_path, monkeypatch):
    (tmp_path / "cifar-100-python").mkdir()
    hashes = {}
    for member in PER_CLASS:
        (tmp_path / "cifar-100-python" / member).write_bytes(member_bytes(member))
        hashes[member] = hashlib.md5(member_bytes(member)).hexdigest()
    monkeypatch.setattr(cifar_fs, "MEMBERS_MD5", hashes)
    check(load(tmp_path, "test"), "test")
    monkeypatch.setattr(cifar_fs, "MEMBERS_MD5", {**hashes, "train": "0" * 32})
    (tmp_path / "cifar-100-python" / "test").touch()
    (tmp_path / "cifar-100-python" / "train").write_bytes(member_bytes("train") + b" ")
    with pytest.raises(ValueError, match="cifar-100-python/train is not the published file"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (lambda good: good[:-100], "is not the published file .truncated or changed.; download it again"),
        (lambda good: b"<html>404</html>", "starts with '<': a web page, not the archive; download it again"),
    ],
)
def test_an_archive_with_another_hash(archive, contents, message):
    archive.write_bytes(contents(archive.read_bytes()))
    with pytest.raises(ValueError, match=f"cifar-100-python.tar.gz {message}") as caught:
        load(archive.parent)
    assert "\n" not in str(caught.value)
    assert not list((archive.parent / "cache").glob("cifar_fs*"))


# With names: the bytes differ from second to second, and processes that share the tests out must agree on them.
@pytest.mark.parametrize("contents", [
    pytest.param(archive_bytes(["train"]), id="half of it"),
    pytest.param(archive_bytes(["train", "test"])[:-500], id="truncated"), pytest.param(b"junk", id="junk"),
])
def test_a_damaged_archive_with_the_right_hash(archive, monkeypatch, contents):
    archive.write_bytes(contents)
    monkeypatch.setattr(cifar_fs, "ARCHIVE_SHA256", hashlib.sha256(contents).hexdigest())
    with pytest.raises(ValueError, match="tar.gz.* damaged or truncated.*download it again"):
        load(archive.parent)


def metaoptnet(split, protocol=2, labels=None):
    """CIFAR_FS_<split>.pickle: the labels are CIFAR-100's own, with gaps."""
    images, fine = np.concatenate([pixels(m) for m in PER_CLASS]), np.concatenate([fine_labels(m) for m in PER_CLASS])
    wanted = [cifar_fs.fine_names().index(name) for name in split_list("cifar_fs", split)]
    chosen = np.isin(fine, wanted)
    labels = fine[chosen].tolist() if labels is None else labels(fine[chosen])
    if protocol == "python2":
        return python2_pickle(images[chosen], labels=labels)
    return pickle.dumps({b"data": images[chosen], b"labels": labels}, protocol)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("protocol", ["python2", 3])
def test_from_metaoptnets_pickles(tmp_path, split, protocol):
    for name in SPLITS:
        (tmp_path / f"CIFAR_FS_{name}.pickle").write_bytes(metaoptnet(name, protocol))
    check(load(tmp_path, split), split)


def test_pickles_with_labels_counted_anew(tmp_path):
    def counted(labels):
        return np.unique(labels, return_inverse=True)[1].tolist()

    for name in SPLITS:
        (tmp_path / f"CIFAR_FS_{name}.pickle").write_bytes(metaoptnet(name, labels=counted))
    split = load(tmp_path, "val")
    assert split.class_names[:2] == ("label 0", "label 1") and split.num_classes == 16


def test_a_split_saved_under_anothers_name(tmp_path):
    (tmp_path / "CIFAR_FS_train.pickle").write_bytes(metaoptnet("train"))
    (tmp_path / "CIFAR_FS_val.pickle").write_bytes(metaoptnet("train"))
    with pytest.raises(ValueError, match="CIFAR_FS_val.pickle .*labels of split 'train'"):
        load(tmp_path, "val")


@pytest.mark.parametrize("below", ["cifar100/data", "data"])
def test_from_folders(tmp_path, below):
    for member in PER_CLASS:
        for i, (image, label) in enumerate(zip(pixels(member), fine_labels(member), strict=True)):
            folder = tmp_path / below / cifar_fs.fine_names()[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{member}{i}.png")
    check(load(tmp_path, "val"), "val")
    (tmp_path / below / "shark").rename(tmp_path / below / "sharks")
    with pytest.raises(ValueError, match="has no folder for class 'shark'"):
        load(tmp_path, "val")


def test_nothing_found_lists_the_layouts(tmp_path):
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    for part in (str(tmp_path), "cifar-100-python.tar.gz", "CIFAR_FS_", "cifar100/data/<class>", "it is downloaded"):
        assert part in str(caught.value)
