"""CIFAR-FS: the 100 classes of CIFAR-100 as 64 train, 16 val and 20 test classes, 600 images of 32x32 each.

Built from the official CIFAR-100 archive (its 500 training and 100 test images of each class together) and the class
lists of Bertinetto et al. 2019 (splits/cifar_fs_*.txt); or read from MetaOptNet's pickles or Bertinetto's folders. The
three differ in the order of the images only.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import tarfile
import tempfile
import zlib
from typing import BinaryIO

import numpy as np

from tf_unravel.data.class_images import ClassImages, content_fingerprint
from tf_unravel.data.sources import image_folder
from tf_unravel.data.sources.pickled_splits import Contents, existing, load_pickles, metaoptnet_layout
from tf_unravel.data.sources.split_lists import split_list
from tf_unravel.data.storage import cache, decoding, digests, duplicates
from tf_unravel.data.storage.image_files import load_files
from tf_unravel.data.storage.pickles import read_pickle

NORMALIZATION = (  # MetaOptNet's, 0-255
    (129.37731888, 124.10583864, 112.47758569),
    (68.20947949, 65.43124043, 70.45866994),
)
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
MEMBERS_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
_VERSION = 2
_MOST_BYTES = 1 << 28  # of a member; the larger one has 155 MB
_PICKLES = {split: (f"CIFAR_FS_{split}.pickle",) for split in ("train", "val", "test")}
_ACCEPTED = (
    f"{ARCHIVE} (or unpacked: cifar-100-python/train and test); CIFAR_FS_{{train,val,test}}.pickle (MetaOptNet); "
    f"folders cifar100/data/<class>/<image>.png"
)


def load(split: str, root: str | os.PathLike[str] | None = None, on_duplicates: str = "warn") -> ClassImages:
    """One split of CIFAR-FS.

    Args:
        split: "train", "val" or "test".
        root: a folder with `cifar-100-python.tar.gz` (or unpacked, `cifar-100-python/`), `CIFAR_FS_*.pickle` or
            `cifar100/data/<class>/*.png`, looked for in this order; None downloads the archive through Keras (161 MB,
            once, to ~/.keras/datasets).
        on_duplicates: see `image_folder.load`; of the archive and of pickles, one split is looked at.

    Returns:
        RGB images [N, 32, 32, 3] as a memory map, with MetaOptNet's normalization.

    Raises:
        ValueError: nothing found (lists the layouts), a failed download, or a file that is not the published one.

    Example:
        >>> split = load("val")  # doctest: +SKIP
    """
    if root is None:
        return _from_members(split, _downloaded(), on_duplicates)
    root = pathlib.Path(root).expanduser()
    if (root / ARCHIVE).is_file():
        return _from_members(split, root / ARCHIVE, on_duplicates)
    if all((root / "cifar-100-python" / member).is_file() for member in MEMBERS_MD5):
        return _from_members(split, root / "cifar-100-python", on_duplicates)
    paths = existing(root, _PICKLES)
    if split in paths:
        return load_pickles("cifar_fs", split, paths, cifar_labels_layout, 32, NORMALIZATION, on_duplicates)
    for folder in (root / "cifar100" / "data", root / "data"):
        if folder.is_dir():
            return _from_folders(split, folder, on_duplicates)
    raise ValueError(
        f"cifar_fs found no split {split!r}; the folder must have one of: {_ACCEPTED}; without root (--data_root) it "
        f"is downloaded. Received: {root}"
    )


def fine_names() -> tuple[str, ...]:
    """The 100 classes of CIFAR-100; a class's place in this list is its fine label."""
    return tuple(sorted(name for split in _PICKLES for name in split_list("cifar_fs", split)))


def _downloaded() -> pathlib.Path:
    import keras

    try:
        return pathlib.Path(keras.utils.get_file(ARCHIVE, URL, file_hash=ARCHIVE_SHA256, hash_algorithm="sha256"))
    except Exception as error:  # Keras raises bare Exceptions for what goes wrong on the way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cifar_fs: {URL} could not be downloaded ({reason}); get it by other means and pass its folder as root."
        ) from error


def _from_members(split: str, source: pathlib.Path, on_duplicates: str) -> ClassImages:
    """From the archive, or from the folder it unpacks to, after checking the published hashes."""
    names = split_list("cifar_fs", split)
    members = [source / member for member in MEMBERS_MD5] if source.is_dir() else [source]
    name = f"cifar_fs/{split}"
    arrays = digests.cached_of_files(
        name, source.parent, [str(path.relative_to(source.parent)) for path in members],
        lambda digest: f"cifar_fs_archive/{_VERSION} {split} {digest}",
        lambda create: _fill(create, source, members, names),
    )  # fmt: skip
    duplicates.check_images(name, arrays, names, on_duplicates)
    return ClassImages.of_arrays(arrays, names, name, NORMALIZATION)


def _fill(create: cache.Create, source: pathlib.Path, members: list[pathlib.Path], names: tuple[str, ...]) -> None:
    if source.is_dir():
        for path in members:
            digests.check_hash(path, "md5", MEMBERS_MD5[path.name])
    else:
        digests.check_hash(source, "sha256", ARCHIVE_SHA256)
    number = {fine_names().index(name): index for index, name in enumerate(names)}
    pixels, ids = [], []
    for member in MEMBERS_MD5:
        with _opened(source, member) as file:
            rows, labels = _rows(file, f"{source}: {member}")
        chosen = np.isin(labels, list(number))
        pixels.append(rows[chosen])
        ids.append(np.array([number[label] for label in labels[chosen].tolist()], np.int32))
        del rows
    class_ids = np.concatenate(ids)
    images = create("images", (len(class_ids), 32, 32, 3), np.uint8)
    start = 0
    for rows in pixels:  # rows hold the channels one after the other
        images[start : start + len(rows)] = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, H, W, C]
        start += len(rows)
    cache.store(create, class_ids=class_ids, duplicates=duplicates.counted(images, class_ids),
                fingerprint=content_fingerprint(images, class_ids, names))  # fmt: skip


def _opened(source: pathlib.Path, member: str) -> BinaryIO:
    """A file of the folder, or of the archive, unpacked to a temporary one."""
    if source.is_dir():
        return open(source / member, "rb")
    file = tempfile.TemporaryFile()
    try:
        with tarfile.open(source, "r:gz") as archive:
            found = archive.getmember(f"cifar-100-python/{member}")
            packed = archive.extractfile(found) if found.isreg() and found.size <= _MOST_BYTES else None
            if packed is None:
                raise ValueError(f"{member} is no file of at most {_MOST_BYTES >> 20} MiB")
            shutil.copyfileobj(packed, file)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, KeyError) as error:
        file.close()
        raise ValueError(f"{source} is damaged or truncated ({error}); download it again.") from error
    file.seek(0)
    return file


def _rows(file: BinaryIO, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, 3072], fine labels [N]) of one member."""
    contents = read_pickle(file, where)
    data = contents.get("data") if isinstance(contents, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"{where}: 'data' must be uint8 [N, 3072]; download the archive again.")
    labels = np.array(contents.get("fine_labels", ()), np.int64)
    if labels.shape != data.shape[:1]:
        raise ValueError(f"{where}: {data.shape[0]} images but {len(labels)} fine labels; download the archive again.")
    return data, labels


def cifar_labels_layout(contents: object, path: pathlib.Path) -> Contents:
    """`metaoptnet_layout`; labels that are CIFAR-100's fine labels of the split in the file's name get their names."""
    found = metaoptnet_layout(contents, path)
    split = next(split for split, names in _PICKLES.items() if path.name in names)
    for other in _PICKLES:
        published = {f"label {fine_names().index(name)}": name for name in split_list("cifar_fs", other)}
        if not found.named and set(found.class_names) == set(published):
            if other != split:
                raise ValueError(f"{path} holds the labels of split {other!r}; give the file its own name again.")
            return found._replace(class_names=tuple(published[name] for name in found.class_names), named=True)
    return found


def _from_folders(split: str, folder: pathlib.Path, on_duplicates: str) -> ClassImages:
    names = split_list("cifar_fs", split)
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no folder for class {missing[0]!r} ({len(missing)} missing); unpack all of it.")
    there = {part: [name for name in split_list("cifar_fs", part) if (folder / name).is_dir()] for part in _PICKLES}
    files = {part: image_folder.list_files(f"cifar_fs/{part}", folder, there[part]) for part in _PICKLES}
    image_folder.warn_of_passed_over(files[split])
    duplicates.check_files("cifar_fs", list(files.values()), on_duplicates)
    return load_files(files[split], decoding.Decoding((32, 32)), normalization=NORMALIZATION)
