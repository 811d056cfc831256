"""A user's own images: folders of images, one folder per class.

Either root/<split>/<class>/<image> with split train, val (or validation) and test, or root/<class>/<image>, whose
classes are then split at random by a seed. What is an image, a file's bytes say (see `formats`): JPEG, PNG,
BMP, WebP and PPM are read, whatever their suffix. Hidden files are passed over; images of other formats, in deeper
folders or in none, and files that are no images, are counted in a warning.

Class names count in Unicode's composed form (NFC), so that a folder copied from macOS to Linux gives the same split.

Where classes are split at random, all of them must be usable before one split is: a class that is found wanting later,
and removed, would change the draw, and classes that were learned from would come among those to test on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sources.split_lists import check_disjoint
from tf_unravel.data.storage import decoding, digests, duplicates, formats
from tf_unravel.data.storage.formats import Kind
from tf_unravel.data.storage.image_files import ImageFiles, check_class_sizes, load_files, size_of

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
    bits: int | None = None,
    on_duplicates: str = "warn",
    exclude: Sequence[str] = (),
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
        bits: how many bits of 16-bit PNG and PGM images hold their values, 8 to 16, such as 12 for many cameras and
            microscopes; the highest 8 of these are kept. None takes 16, and warns of classes that are then dark.
        on_duplicates: what to do about images that are in two classes or splits, byte for byte: "warn" with the number
            and the first pair, "error" refuses them, "ignore" does not look.
        exclude: classes to leave out before the others are split, if they are there.

    Returns:
        RGB images, decoded once and then read from the cache as a memory map.

    Raises:
        ValueError: files or options that cannot be used; the message names the file.

    Example:
        >>> split = load("train", "my_images", image_size=84, resize="lanczos")  # doctest: +SKIP
    """
    if root is None:
        raise ValueError(
            "image_folder needs root (--data_root): the folder that holds <split>/<class>/<image> or <class>/<image>."
        )
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"image_folder: no folder {root}; check the path.")
    how = decoding.Decoding(size_of(image_size), resize, crop, tuple(background), bits)
    files, drawn = files_of("image_folder", root, split, seed, fractions, exclude)
    warn_of_passed_over(files[split])
    duplicates.check_files("image_folder", list(files.values()), on_duplicates)
    used = files if drawn else {split: files[split]}
    for part in used.values():  # of all of them, before one is decoded
        check_class_sizes(part, part.class_ids, min_images)
    loaded = {part: load_files(found, how, min_images, on_corrupt) for part, found in used.items()}
    parts = {part: list(found.class_names) for part, found in used.items()}
    return dataclasses.replace(loaded[split], random_split=parts if drawn else None)


def files_of(
    name: str, root: pathlib.Path, split: str, seed: int, fractions: Sequence[float], exclude: Sequence[str] = ()
) -> tuple[dict[str, ImageFiles], bool]:
    """({split: its files}, whether the classes were split at random).

    Where root has a folder for each split, `split` comes first; otherwise, splits without classes are left out.
    """
    folders = split_folders(root)
    if any(map(_holds_classes, folders.values())):
        this_first = sorted(folders, key=lambda part: part != split)
        parts = {part: _without(class_folders(folders[part]), exclude) for part in this_first}
        check_disjoint({part: (folders[part], parts[part]) for part in folders})
        if split not in folders:
            raise ValueError(f"{root} has no folder {split!r}; its splits are: {', '.join(folders)}.")
        if not parts[split]:
            raise ValueError(f"{folders[split]} is empty: add one folder of images per class.")
        return {part: list_files(f"{name}/{part}", folders[part], parts[part]) for part in parts}, False
    classes = _without(class_folders(root), exclude)
    if not classes:
        raise ValueError(f"{root} holds no class folders; expected <split>/<class>/<image> or <class>/<image>.")
    sizes = split_sizes(len(classes), fractions, str(root))
    wanted = [part for part, size in zip(FOLDERS, sizes, strict=True) if size or part == split]
    parts = {part: split_classes(classes, part, seed, fractions, str(root)) for part in wanted}
    return {part: list_files(f"{name}/{part}", root, parts[part]) for part in parts}, True


def _without(classes: Iterable[str], exclude: Sequence[str]) -> list[str]:
    left_out = set(map(digests.composed, exclude))
    return [name for name in classes if name not in left_out]


def _holds_classes(folder: pathlib.Path) -> bool:
    """Whether a folder "train" is a split: it may be a class, of images of railways, as well."""
    with os.scandir(folder) as entries:
        return bool(subfolders(folder)) or all(formats.kind_of(entry.path) is not Kind.IMAGE for entry in entries)


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{split: its folder} for those that exist."""
    there = {split: [root / name for name in names if (root / name).is_dir()] for split, names in FOLDERS.items()}
    return {split: folders[0] for split, folders in there.items() if folders}


def subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out; links are followed."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not formats.is_hidden(entry.name))


def class_folders(folder: pathlib.Path) -> dict[str, str]:
    """{name of a class, composed: name of its folder} for the folders in a folder, sorted by class.

    Raises:
        ValueError: two of them have names that differ only in how Unicode composes them.
    """
    found: dict[str, str] = {}
    for name in subfolders(folder):
        other = found.setdefault(digests.composed(name), name)
        if other != name:
            raise ValueError(
                f"{folder} has two folders for one class: {other!a} and {name!a} are the same text, which Unicode "
                f"composes in two ways; move the images of one into the other."
            )
    return dict(sorted(found.items()))


def split_classes(
    classes: Sequence[str], split: str, seed: int, fractions: Sequence[float], where: str = "image_folder"
) -> list[str]:
    """The classes of one split, drawn at random by a seed, sorted; the same for every version of Python and NumPy.

    Classes are put in the order of SHA-256("<seed>:<name>"), names in NFC; the first go to train, the next to val, the
    rest to test.

    Args:
        classes: all class names.
        split: "train", "val" or "test".
        seed: any integer.
        fractions: see `split_sizes`.
        where: for messages.

    Raises:
        ValueError: fractions that do not fit, or too few classes.

    Example:
        >>> len(split_classes([str(i) for i in range(100)], "val", 0, (0.64, 0.16, 0.2)))
        16
    """
    sizes = split_sizes(len(classes), fractions, where)
    shuffled = sorted(classes, key=lambda name: digests.digest_of_text(f"{seed}:{digests.composed(name)}"))
    place = list(FOLDERS).index(split)
    start = sum(sizes[:place])
    chosen = sorted(shuffled[start : start + sizes[place]])
    if not chosen:
        raise ValueError(f"{where}: split {split!r} gets none of {len(classes)} classes. Received: {tuple(fractions)}.")
    return chosen


def split_sizes(num_classes: int, fractions: Sequence[float], where: str) -> tuple[int, ...]:
    """Numbers of classes of train, val and test.

    Fractions are three that sum to 1 (val and test are rounded, train takes the rest; a fraction above 0 gets one class
    at least), or three numbers that sum to the number of classes.
    """
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
    """The image files of class folders, sorted, and what else is in them; `classes` are keys of `class_folders`."""
    folders = class_folders(base)
    paths: list[str] = []
    ids: list[int] = []
    other_images: list[str] = []
    others: list[str] = []
    for class_id, class_name in enumerate(classes):
        folder = folders.get(class_name, class_name)
        for path, kind in walk(base, folder):
            if kind is Kind.IMAGE and os.path.dirname(path) == folder:
                paths.append(path)
                ids.append(class_id)
            elif kind is not Kind.HIDDEN:
                (others if kind is Kind.OTHER else other_images).append(path)
    return ImageFiles(name, str(base), paths, np.array(ids, np.int32), tuple(classes), other_images, others)


def walk(base: str | os.PathLike[str], folder: str = "") -> list[tuple[str, Kind]]:
    """(path below base, what it is) of the files in base/folder and the folders below it.

    Sorted within each folder by their composed names; hidden folders are left out and links to folders not followed.
    """
    found: list[tuple[str, Kind]] = []
    for parent, folders, names in os.walk(os.path.join(base, folder)):
        folders[:] = sorted(name for name in folders if not formats.is_hidden(name))
        inside = os.path.relpath(parent, base)
        for name in sorted(names, key=lambda name: (digests.composed(name), name)):
            found.append((os.path.normpath(os.path.join(inside, name)), formats.kind_of(os.path.join(parent, name))))
    return found


def warn_of_passed_over(files: ImageFiles) -> None:
    """Says which files of a split will not be seen: images first, then what are no images."""
    with os.scandir(files.root) as entries:
        loose = [entry.name for entry in entries
                 if not entry.is_dir() and formats.kind_of(entry.path) in (Kind.IMAGE, Kind.OTHER_IMAGE)]  # fmt: skip
    if found := [*loose, *files.other_images]:
        _log.warning("%s: passed over %d images, of kinds that are not read (%s are) or not at <class>/<image>; the "
                     "first: %s.", files.name, len(found), formats.READ, digests.printable(min(found)))  # fmt: skip
    if files.others:
        _log.warning("%s: %d files in class folders are not images and are ignored; the first: %s.",
                     files.name, len(files.others), digests.printable(min(files.others)))  # fmt: skip
