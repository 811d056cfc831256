"""Pictures in a user's folders, as arrays of the size and the kind that an exported model was trained on."""

import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_unravel.data import decoding, image_folder
from tf_unravel.data.content import printable

_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's greyscale
_log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """A support set.

    Attributes:
        images: uint8 [S, H, W, C].
        labels: int32 [S], 0..W-1.
        class_names: one a label, sorted.
        files: their paths.
        skipped: files that were left out, and why.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    files: list[str]
    skipped: dict[str, str]


def read_labelled(root: str | os.PathLike, card: Mapping[str, Any], on_corrupt: str = "error") -> Labelled:
    """The pictures root/<class>/<picture>; others below root are left out, with a warning.

    Args:
        root: the folder.
        card: of the model that they are for.
        on_corrupt: "error" raises for a picture that cannot be read and names it, "skip" leaves it out with a warning.

    Returns:
        Labelled.

    Raises:
        ValueError: no such folder, fewer than two classes in it, a class without a picture, one that cannot be read,
            names of classes that cannot be told apart.
    """
    folder = pathlib.Path(root)
    classes = image_folder.subfolders(folder) if folder.is_dir() else []
    if len(classes) < 2:
        what = f"a folder with {len(classes)} folders" if folder.is_dir() else "no folder"
        raise ValueError(f"A support set is a folder with one folder of pictures for each of two classes or more: "
                         f"{folder}/<class>/<picture>. Received: {folder}, {what}.")
    if len(set(map(printable, classes))) < len(classes):
        raise ValueError(f"Classes need names that differ as text. Received: {folder}, "
                         f"{sorted(map(printable, classes))}.")
    files = image_folder.list_files(str(folder), folder, classes)
    paths = [os.path.join(folder, path) for path in files.paths]
    images, kept, skipped = read_pictures(paths, card, on_corrupt)
    labels = files.class_ids[kept]
    empty = sorted(set(range(len(classes))) - set(labels.tolist()))
    if empty:
        raise ValueError(f"Every class needs a picture (JPEG, PNG, BMP or WebP) that can be read. "
                         f"Received: none in {folder / classes[empty[0]]}.")
    elsewhere = sorted(map(printable, set(_below(folder, image_folder.is_image)) - set(paths)))
    if elsewhere:
        _log.warning("left out %d pictures that are not %s/<class>/<picture>.", len(elsewhere), folder)
    skipped |= dict.fromkeys(elsewhere, f"it is not {folder}/<class>/<picture>") | others_below(folder)
    return Labelled(images, labels, tuple(map(printable, classes)), [paths[row] for row in kept], skipped)


def pictures_below(root: str | os.PathLike) -> list[str]:
    """The pictures in a folder and the folders below it, sorted, hidden ones left out; or the one that root is.

    Raises:
        ValueError: there are none.
    """
    folder = pathlib.Path(root)
    found = [str(folder)] if folder.is_file() else _below(folder, image_folder.is_image)
    if not found:
        what = "no JPEG, PNG, BMP or WebP file" if folder.exists() else "no such file or folder"
        raise ValueError(f"There are no pictures to classify. Received: {folder}, {what}.")
    return sorted(found)


def others_below(root: str | os.PathLike) -> dict[str, str]:
    """{file: why it is left out} of pictures of kinds that are not read."""
    found = sorted(map(printable, _below(pathlib.Path(root), image_folder.is_other_picture)))
    return dict.fromkeys(found, "it is no JPEG, PNG, BMP or WebP")


def _below(folder: pathlib.Path, wanted: Callable[[str], bool]) -> list[str]:
    """Paths of files in a folder and the folders below it, by their names; links to folders are not followed."""
    found: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if wanted(name)]
    return found


def read_pictures(
    paths: Sequence[str], card: Mapping[str, Any], on_corrupt: str = "error"
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Picture files as the images of a model.

    Args:
        paths: the files.
        card: of the model: their size, and how they become of that size.
        on_corrupt: "error" or "skip".

    Returns:
        (images uint8 [n, H, W, C], int [n] which of the paths they are, {file: why it was left out}).

    Raises:
        ValueError: a picture cannot be read; a card that asks for no such pictures.
    """
    if on_corrupt not in ("error", "skip"):
        raise ValueError(f"on_corrupt is 'error' or 'skip'. Received: {on_corrupt!r}.")
    height, width, channels = (card["input"][name] for name in ("height", "width", "channels"))
    if channels not in (1, 3):
        raise ValueError(f"Pictures are RGB or grey; this model takes neither. Received: channels={channels}.")
    how = card["decoding"]
    how = decoding.Decoding((height, width), how["resize"], how["crop"], tuple(how["background"]))
    images = np.empty((len(paths), height, width, 3), np.uint8)
    failures = decoding.decode_files(paths, images, how)
    for failure in failures:
        if on_corrupt == "error":
            raise ValueError(f"{printable(paths[failure.row])} cannot be used: {failure.reason}; replace or remove it, "
                             f"or leave such pictures out with --on_corrupt=skip.")
        _log.warning("left out %s: %s.", printable(paths[failure.row]), failure.reason)
    kept = np.setdiff1d(np.arange(len(paths)), [failure.row for failure in failures])
    images = images[kept] if failures else images
    if channels == 1:
        images = np.rint(images @ np.array(_LUMA)).astype(np.uint8)[..., None]
    return images, kept, {printable(paths[failure.row]): failure.reason for failure in failures}
