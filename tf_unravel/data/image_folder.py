"""A user's own photographs: folders of images, one folder per class.

Either root/<split>/<class>/<image> with split train, val (or validation) and test, or root/<class>/<image>, whose
classes are then dealt to the three splits by a seed. Hidden files and files that are no images are passed over;
pictures that are (of kinds that are not read, in deeper folders, in none) are named in a warning.

Where classes are dealt, all of them must be usable before one split is: a class that is found wanting later, and
removed, would deal them anew, and classes that were learned from would come among those to test on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from tf_unravel.data import content, decoding
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.image_files import ImageFiles, check_counts, load_files, size_of
from tf_unravel.data.split_lists import check_disjoint

_log = logging.getLogger(__name__)

FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def load(
    split: str,
    root: str | os.PathLike[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    resize: str = "bilinear",
    crop: bool = False,
    background: Sequence[int] = (255, 255, 255),
    seed: int = 0,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    min_images: int = 2,
    on_corrupt: str = "error",
) -> ClassImages:
    """One split of a folder of images.

    Args:
        split: "train", "val" or "test".
        root: the folder.
        image_size: pixels of the square, or (height, width), that images are resized to; None takes the images' own
            size, which then must be the same for all.
        resize: filter: "bilinear", "bicubic", "lanczos", "nearest" or "box" (the first three average when shrinking).
        crop: cut out the centre of the wanted shape before resizing; False stretches the whole image.
        background: (red, green, blue), 0-255, that transparent pixels are composited on.
        seed: decides, for root/<class>/<image>, which class goes to which split.
        fractions: of the classes for train, val and test, for root/<class>/<image>; or three numbers of classes.
        min_images: the least number of usable images a class must have.
        on_corrupt: "error" raises for a damaged image and names it, "skip" leaves it out and warns with the count.

    Returns:
        RGB images, decoded once and then read from the cache as a memory map.

    Raises:
        ValueError: files or options that cannot be used; the message names the file.

    Example:
        >>> split = load("train", "photographs", image_size=84, resize="lanczos")  # doctest: +SKIP
    """
    if root is None:
        raise ValueError(
            "image_folder needs root (--data_root): the folder that holds <split>/<class>/<image> or <class>/<image>."
        )
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"image_folder: no folder {root}; check the path.")
    how = decoding.Decoding(size_of(image_size), resize, crop, tuple(background))
    base, parts = parts_of(root, split, seed, fractions)
    _warn_of_passed_over(f"image_folder/{split}", base, parts[split])
    files = {part: list_files(f"image_folder/{part}", base, classes) for part, classes in parts.items()}
    for part in files.values():  # of all of them, before one is decoded
        check_counts(part, part.class_ids, min_images)
    loaded = {part: load_files(found, how, min_images, on_corrupt) for part, found in files.items()}
    return dataclasses.replace(loaded[split], dealt=parts if base == root else None)


def parts_of(
    root: pathlib.Path, split: str, seed: int, fractions: Sequence[float]
) -> tuple[pathlib.Path, dict[str, list[str]]]:
    """(folder that holds class folders, split -> names of its classes): the split's, or all that are dealt."""
    if has_split_folders(root):
        folders = split_folders(root)
        check_disjoint({name: (folder, subfolders(folder)) for name, folder in folders.items()})
        if split not in folders:
            raise ValueError(f"{root} has no folder {split!r}; its splits are: {', '.join(folders)}.")
        classes = subfolders(folders[split])
        if not classes:
            raise ValueError(f"{folders[split]} is empty: add one folder of images per class.")
        return folders[split], {split: classes}
    classes = subfolders(root)
    if not classes:
        raise ValueError(f"{root} holds no class folders; expected <split>/<class>/<image> or <class>/<image>.")
    sizes = split_sizes(len(classes), fractions, str(root))
    wanted = [part for part, size in zip(FOLDERS, sizes, strict=True) if size or part == split]
    return root, {part: split_classes(classes, part, seed, fractions, str(root)) for part in wanted}


def has_split_folders(root: pathlib.Path) -> bool:
    """Whether root is divided into splits: a folder "train" may be a class of railway photographs as well."""
    folders = split_folders(root).values()
    return any(subfolders(folder) or not any(is_image(name) for name in os.listdir(folder)) for folder in folders)


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{split: its folder} for those that exist."""
    found = ((split, root / name) for split, names in FOLDERS.items() for name in names)
    existing: dict[str, pathlib.Path] = {}
    for split, folder in found:
        if folder.is_dir():
            existing.setdefault(split, folder)
    return existing


def subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out; links are followed."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def split_classes(
    classes: Sequence[str], split: str, seed: int, fractions: Sequence[float], where: str = "image_folder"
) -> list[str]:
    """The classes of one split when a seed deals them out; the same for every version of Python and NumPy.

    Classes are put in the order of SHA-256("<seed>:<name>"); the first go to train, the next to val, the rest to test.

    Args:
        classes: all class names.
        split: "train", "val" or "test".
        seed: any integer.
        fractions: three fractions that sum to 1 (val and test are rounded, train takes the rest; a fraction above 0
            gets one class at least), or three numbers that sum to the number of classes.
        where: for messages.

    Returns:
        The split's classes, sorted.

    Raises:
        ValueError: fractions that do not fit, or too few classes.

    Example:
        >>> len(split_classes([str(i) for i in range(100)], "val", 0, (0.64, 0.16, 0.2)))
        16
    """
    sizes = split_sizes(len(classes), fractions, where)
    shuffled = sorted(classes, key=lambda name: content.digest_of_text(f"{seed}:{name}"))
    place = list(FOLDERS).index(split)
    start = sum(sizes[:place])
    chosen = sorted(shuffled[start : start + sizes[place]])
    if not chosen:
        raise ValueError(f"{where}: split {split!r} gets none of {len(classes)} classes. Received: {tuple(fractions)}.")
    return chosen


def split_sizes(num_classes: int, fractions: Sequence[float], where: str) -> tuple[int, ...]:
    """Numbers of classes of train, val and test."""
    numbers = isinstance(fractions, Sequence) and all(isinstance(part, (int, float)) for part in fractions)
    if not numbers or len(fractions) != 3 or not min(fractions) >= 0:
        raise ValueError(f"{where}: fractions must be three numbers, 0 or more. Received: {fractions!r}.")
    if abs(sum(fractions) - 1) < 1e-6:
        val, test = (max(1, round(part * num_classes)) if part > 0 else 0 for part in fractions[1:])
        sizes: tuple[int, ...] = (num_classes - val - test, val, test)
    elif sum(fractions) == num_classes and all(float(part).is_integer() for part in fractions):
        sizes = tuple(int(part) for part in fractions)
    else:
        raise ValueError(
            f"{where}: fractions must sum to 1, or be numbers of classes that sum to {num_classes}. "
            f"Received: {tuple(fractions)}."
        )
    if sizes[0] < 0 or (sizes[0] == 0 and fractions[0] > 0):
        raise ValueError(f"{where}: {num_classes} classes are too few for fractions {tuple(fractions)}; add classes.")
    return sizes


def list_files(name: str, base: pathlib.Path, classes: Sequence[str]) -> ImageFiles:
    """The image files of class folders, sorted; hidden files and other kinds of files are passed over."""
    paths: list[str] = []
    ids: list[int] = []
    for class_id, class_name in enumerate(classes):
        with os.scandir(base / class_name) as entries:
            names = sorted(e.name for e in entries if is_image(e.name) and not e.is_dir())
        paths.extend(os.path.join(class_name, file) for file in names)
        ids.extend([class_id] * len(names))
    return ImageFiles(name, str(base), paths, np.array(ids, np.int32), tuple(classes))


def _warn_of_passed_over(name: str, base: pathlib.Path, classes: Sequence[str]) -> None:
    """Says which pictures of a split will not be seen."""
    loose = [file for file in os.listdir(base) if is_image(file) or is_other_picture(file)]
    found = [file for file in loose if not (base / file).is_dir()]
    for class_name in classes:
        for parent, folders, names in os.walk(base / class_name):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            deeper = pathlib.Path(parent) != base / class_name
            found += [os.path.relpath(os.path.join(parent, file), base) for file in names
                      if is_other_picture(file) or deeper and is_image(file)]
    if found:
        _log.warning("%s: passed over %d pictures, of kinds that are not read (JPEG, PNG, BMP and WebP are) or not at "
                     "<class>/<image>; the first: %s.", name, len(found), content.printable(min(found)))


def is_other_picture(name: str) -> bool:
    """Whether a file is a picture of a kind that is not read, by its name."""
    return not name.startswith(".") and name.lower().endswith(decoding.OTHER_PICTURES)


def is_image(name: str) -> bool:
    """Whether a file is one to decode, by its name; hidden ones are none."""
    return not name.startswith(".") and name.lower().endswith(decoding.EXTENSIONS)
