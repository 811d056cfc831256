"""Splits that come as one pickle each: checked, copied once into the cache and read from there as a memory map.

The first use holds the pixels twice, later ones not at all.

Layouts: MetaOptNet's (`data`, `labels`, `catname2label`) and mini-imagenet-cache's (`image_data`, `class_dict`).
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_unravel.data.class_images import ClassImages, Normalization, content_fingerprint
from tf_unravel.data.sources.split_lists import check_disjoint, split_list
from tf_unravel.data.storage import cache, digests, duplicates
from tf_unravel.data.storage.pickles import read_pickle

_VERSION = 2
_log = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What a pickle says: the images, their class ids 0..C-1, the classes' names and whether those are real names."""

    images: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]
    named: bool


Layout = Callable[[Any, pathlib.Path], Contents]


def load_pickles(
    dataset: str,
    split: str,
    paths: Mapping[str, pathlib.Path],
    layout: Layout,
    image_size: int,
    normalization: Normalization | None,
    on_duplicates: str = "warn",
) -> ClassImages:
    """One split out of the pickles {split: file} that exist, its images a read-only memory map.

    Args:
        dataset: name of the dataset, and of its published class lists.
        split: "train", "val" or "test".
        paths: classes are checked to be disjoint between them.
        layout: reads the unpickled contents, such as `metaoptnet_layout`.
        image_size: height and width that the images must have.
        normalization: published (mean, std).
        on_duplicates: see `duplicates.check_files`; looked for within the split.

    Raises:
        ValueError: the file is damaged or laid out otherwise, or classes overlap.
    """
    path, name = paths[split], f"{dataset}/{split}"
    _check_splits(paths, layout, image_size)
    arrays = digests.cached_of_files(
        name, path.parent, [path.name],
        lambda digest: f"{dataset}/{_VERSION} {layout.__name__} {digest} {image_size}",
        lambda create: _fill(create, path, layout, image_size),
    )  # fmt: skip
    names = tuple(arrays["class_names"].tolist())
    duplicates.check_images(name, arrays, names, on_duplicates)
    published = split_list(dataset, split)
    if bool(arrays["named"]) and set(names) != set(published):
        _log.warning("%s: %s holds other classes than the published split (%d of %d agree).", name, path,
                     len(set(names) & set(published)), len(published))  # fmt: skip
    return ClassImages.of_arrays(arrays, names, name, normalization)


def _check_splits(paths: Mapping[str, pathlib.Path], layout: Layout, image_size: int) -> None:
    """No class may be in two splits, as far as the files give their classes names."""
    named = {}
    for split, path in paths.items():

        def fill(create: cache.Create, path: pathlib.Path = path) -> None:
            found = _read(path, layout, image_size)
            cache.store(create, names=found.class_names, named=found.named)

        def key(digest: str) -> str:
            return f"names/{_VERSION} {layout.__name__} {digest} {image_size}"

        found = digests.cached_of_files(split, path.parent, [path.name], key, fill)
        if bool(found["named"]):
            named[split] = (path, found["names"].tolist())
    check_disjoint(named)


def _read(path: pathlib.Path, layout: Layout, image_size: int) -> Contents:
    with open(path, "rb") as file:
        return _checked(layout(read_pickle(file, path), path), path, image_size)


def _checked(found: Contents, path: pathlib.Path, image_size: int) -> Contents:
    shape, dtype = found.images.shape, found.images.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (image_size, image_size, 3) or not shape[0]:
        raise ValueError(
            f"{path}: images must be uint8 [N, {image_size}, {image_size}, 3]; get the published file, or pass the "
            f"image_size that it has. Received: {dtype} {shape}."
        )
    if len(found.class_ids) != shape[0]:
        raise ValueError(f"{path}: {shape[0]} images but {len(found.class_ids)} labels; download it again.")
    return found


def _fill(create: cache.Create, path: pathlib.Path, layout: Layout, image_size: int) -> None:
    found = _read(path, layout, image_size)
    images = create("images", found.images.shape, np.uint8)
    images[...] = found.images
    fingerprint = content_fingerprint(images, found.class_ids, found.class_names)
    cache.store(create, class_ids=found.class_ids.astype(np.int32), class_names=found.class_names, named=found.named,
                fingerprint=fingerprint, duplicates=duplicates.counted(images, found.class_ids))  # fmt: skip


def metaoptnet_layout(contents: Any, path: pathlib.Path) -> Contents:
    """`data` uint8 [N, H, W, 3], `labels` N integers of any range, `catname2label` {class name: label} if there.

    Class ids are in the order of the labels; classes without a name are called "label 7".
    """
    images, labels = _entry(contents, "data", path), _labels(_entry(contents, "labels", path), path)
    names = contents.get("catname2label") or {}
    try:
        by_label = {int(label): _text(name) for name, label in names.items()} if isinstance(names, dict) else {}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: 'catname2label' must map class names to whole numbers ({error}).") from error
    found, class_ids = np.unique(labels, return_inverse=True)
    named = all(int(label) in by_label for label in found)
    class_names = tuple(by_label[int(label)] if named else f"label {label}" for label in found)
    return Contents(_array(images, "data", path), class_ids, class_names, named)


def class_dict_layout(contents: Any, path: pathlib.Path) -> Contents:
    """`image_data` uint8 [N, H, W, 3], `class_dict` {class name: indices of its images}; classes sorted by name."""
    images = _array(_entry(contents, "image_data", path), "image_data", path)
    classes = _entry(contents, "class_dict", path)
    if not isinstance(classes, dict) or not classes:
        raise ValueError(f"{path}: 'class_dict' must map class names to indices; download it again.")
    class_ids = np.full(images.shape[0], -1, np.int64)
    names = tuple(sorted(_text(name) for name in classes))
    for name, indices in classes.items():
        indices = _labels(indices, path)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(class_ids)):
            raise ValueError(f"{path}: class {_text(name)!r} has indices beyond the {len(class_ids)} images.")
        if np.any(class_ids[indices] >= 0) or len(np.unique(indices)) < len(indices):
            raise ValueError(f"{path}: an image of class {_text(name)!r} is listed twice; download it again.")
        class_ids[indices] = names.index(_text(name))
    if np.any(class_ids < 0):
        raise ValueError(f"{path}: {np.sum(class_ids < 0)} images belong to no class; download it again.")
    return Contents(images, class_ids, names, True)


def _entry(contents: Any, name: str, path: pathlib.Path) -> Any:
    if not isinstance(contents, dict) or name not in contents:
        keys = ", ".join(map(repr, contents)) if isinstance(contents, dict) else type(contents).__name__
        raise ValueError(f"{path} has no {name!r}: it is another layout than its name says. Received: {keys}.")
    return contents[name]


def _array(value: Any, name: str, path: pathlib.Path) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{path}: {name!r} must be one NumPy array. Received: {type(value).__name__}.")
    if not value.shape or 0 in value.shape:
        raise ValueError(f"{path}: {name!r} holds no images. Received: {value.dtype} {value.shape}.")
    return value


def _labels(values: Any, path: pathlib.Path) -> np.ndarray:
    try:
        labels = np.array(values if isinstance(values, np.ndarray) else list(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: labels must be whole numbers ({error}).") from error
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be whole numbers [N]. Received: {labels.dtype} {labels.shape}.")
    return labels.astype(np.int64)


def _text(name: Any) -> str:
    return digests.composed(name.decode("latin1") if isinstance(name, bytes) else str(name))


def existing(root: str | os.PathLike[str], names: Mapping[str, Sequence[str]]) -> dict[str, pathlib.Path]:
    """{split: the first of its file names that exists in root}, for splits that have one."""
    there = {split: [path for name in candidates if (path := pathlib.Path(root) / name).is_file()]
             for split, candidates in names.items()}  # fmt: skip
    return {split: paths[0] for split, paths in there.items() if paths}
