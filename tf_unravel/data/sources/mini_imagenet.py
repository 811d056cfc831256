"""mini-ImageNet: 100 classes of ImageNet (64 train, 16 val, 20 test) with 600 images each at 84x84.

There is no official file; four layouts are in circulation and all are read. They differ in how images were shrunk to
84x84, which moves accuracies a little (MAML's images: Lanczos).

Reference: Vinyals et al. 2016; the split is that of Ravi and Larochelle 2017 (splits/mini_imagenet_*.txt).
"""

from __future__ import annotations

import csv
import os
import pathlib

import numpy as np

from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sources import image_folder
from tf_unravel.data.sources.pickled_splits import class_dict_layout, existing, load_pickles, metaoptnet_layout
from tf_unravel.data.sources.split_lists import check_disjoint
from tf_unravel.data.storage import decoding, digests, duplicates
from tf_unravel.data.storage.image_files import ImageFiles, load_files

NORMALIZATION = (  # MetaOptNet's, 0-255
    (120.39586422, 115.59361427, 104.54012653),
    (70.68188272, 68.27635443, 72.54505529),
)
_METAOPTNET = {
    "train": ("miniImageNet_category_split_train_phase_train.pickle",),
    "val": ("miniImageNet_category_split_val.pickle",),
    "test": ("miniImageNet_category_split_test.pickle",),
}
_CACHE = {
    "train": ("mini-imagenet-cache-train.pkl",),
    "val": ("mini-imagenet-cache-val.pkl", "mini-imagenet-cache-validation.pkl"),
    "test": ("mini-imagenet-cache-test.pkl",),
}
_MOST_BYTES = 1 << 26  # of a table; the published ones have 2 MB
_CSV = {split: (f"{split}.csv",) for split in ("train", "val", "test")}
_ACCEPTED = (
    "miniImageNet_category_split_{train_phase_train,val,test}.pickle (MetaOptNet); "
    "mini-imagenet-cache-{train,val or validation,test}.pkl; "
    "{train,val,test}.csv beside images/*.jpg; "
    "folders {train,val,test}/<class>/<image>"
)


def load(
    split: str,
    root: str | os.PathLike[str] | None = None,
    image_size: int = 84,
    resize: str = "lanczos",
    on_corrupt: str = "error",
    bits: int | None = None,
    on_duplicates: str = "warn",
) -> ClassImages:
    """One split of mini-ImageNet, from whichever layout is found in `root`, in the order listed.

    Args:
        split: "train", "val" or "test".
        root: the folder with one of: `miniImageNet_category_split_*.pickle`, `mini-imagenet-cache-*.pkl`,
            `{train,val,test}.csv` with `images/`, or `{train,val,test}/<class>/<image>`.
        image_size: pixels of the square. Images in files are resized to it; pickles must have it.
        resize: filter for images in files, see `image_folder.load`.
        on_corrupt: for images in files, see `image_folder.load`.
        bits: for images in files, see `image_folder.load`.
        on_duplicates: see `image_folder.load`; of pickles, one split is looked at.

    Returns:
        RGB images as a memory map, with MetaOptNet's normalization.

    Raises:
        ValueError: nothing found (lists the layouts), or files that cannot be used (names the file).

    Example:
        >>> split = load("train", "data/mini-imagenet")  # doctest: +SKIP
    """
    if root is None:
        raise ValueError(f"mini_imagenet needs root (--data_root), a folder with one of: {_ACCEPTED}.")
    root = pathlib.Path(root).expanduser()
    how = decoding.Decoding((image_size, image_size), resize, bits=bits)
    for names, layout in ((_METAOPTNET, metaoptnet_layout), (_CACHE, class_dict_layout)):
        paths = existing(root, names)
        if split in paths:
            return load_pickles("mini_imagenet", split, paths, layout, image_size, NORMALIZATION, on_duplicates)
    files = _files(root, split)
    if files:
        duplicates.check_files("mini_imagenet", list(files.values()), on_duplicates)
        return load_files(files[split], how, 2, on_corrupt, NORMALIZATION)
    raise ValueError(
        f"mini_imagenet found no split {split!r}; the folder must have one of: {_ACCEPTED}. Received: {root}"
    )


def _files(root: pathlib.Path, split: str) -> dict[str, ImageFiles]:
    """The image files of every split, as tables or folders have them; none where there is no such layout."""
    tables = existing(root, _CSV)
    if split in tables and (root / "images").is_dir():
        return _listed(root, tables, split)
    folders = image_folder.split_folders(root) if root.is_dir() else {}
    if split not in folders:
        return {}
    files, _ = image_folder.files_of("mini_imagenet", root, split, 0, (0.64, 0.16, 0.2))
    image_folder.warn_of_passed_over(files[split])
    return files


def _listed(root: pathlib.Path, tables: dict[str, pathlib.Path], split: str) -> dict[str, ImageFiles]:
    """The images that <split>.csv, which is to be whole, and the other tables name, header `filename,label`."""
    rows = {part: _rows(path) for part, path in tables.items()}
    check_disjoint({part: (tables[part], sorted({label for _, label in found})) for part, found in rows.items()})
    missing = [file for file, _ in rows[split] if not (root / "images" / file).is_file()]
    if missing:
        raise ValueError(
            f"{tables[split]} names {root / 'images' / missing[0]}, which is not there ({len(missing)} of "
            f"{len(rows[split])} images missing); unpack all images."
        )
    files = {}
    for part, found in rows.items():
        number = {label: index for index, label in enumerate(sorted({label for _, label in found}))}
        paths = [os.path.join("images", file) for file, _ in found]
        ids = np.array([number[label] for _, label in found], np.int32)
        files[part] = ImageFiles(f"mini_imagenet/{part}", str(root), paths, ids, tuple(number))
    return files


def _rows(path: pathlib.Path) -> list[tuple[str, str]]:
    """(filename, label) of each line."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES >> 20} MiB, which no table of images has.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if file.read(1) == "<":
                raise ValueError(f"{path} starts with '<': an HTML page, not a table; download it again.")
            file.seek(0)
            reader = csv.DictReader(file)
            if not {"filename", "label"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{path} must begin with the line 'filename,label'. Received: {reader.fieldnames}.")
            rows = [(row["filename"], digests.composed(row["label"] or "")) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of text ({error}); download it again.") from error
    if not rows:
        raise ValueError(f"{path} lists no images; download it again.")
    bad = next((index for index, row in enumerate(rows, 2) if not all(row) or not _is_below(row[0])), None)
    if bad is not None:
        raise ValueError(f"{path}: line {bad} is not <filename>,<label>; download it again.")
    return rows


def _is_below(name: str) -> bool:
    """Whether a file's name stays in its folder: no absolute path, and none that climbs out."""
    first = os.path.normpath(name).split(os.sep, 1)[0]
    return not os.path.isabs(name) and first not in ("..", ".") and "\0" not in name
