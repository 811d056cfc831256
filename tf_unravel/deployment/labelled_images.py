"""Images in a user's folders, as arrays of the size and the kind that an exported model was trained on."""

import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_unravel.data.sources import image_folder
from tf_unravel.data.storage import decoding, duplicates, formats
from tf_unravel.data.storage.digests import printable
from tf_unravel.data.storage.formats import Kind

_OTHER = f"it is not one of {formats.READ}"
LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow's greyscale
BITS = "export the model with load.bits = {bits}"
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
    """The images root/<class>/<file>; others below root are left out, with a warning.

    Args:
        root: the folder.
        card: of the model that they are for.
        on_corrupt: "error" raises for an image that cannot be read and names it, "skip" leaves it out with a warning.

    Returns:
        Labelled.

    Raises:
        ValueError: no such folder, fewer than two classes in it, a class without an image, one that cannot be read,
            names of classes that cannot be told apart.
    """
    folder = pathlib.Path(root)
    classes = list(image_folder.class_folders(folder)) if folder.is_dir() else []
    if len(classes) < 2:
        what = f"with {', '.join(map(printable, classes)) or 'none'}" if folder.is_dir() else "which is no folder"
        raise ValueError(f"A support set is a folder with a folder of images for each of two or more classes: "
                         f"{folder}/<class>/<file>. Received: {folder}, {what}.")
    if len(set(map(printable, classes))) < len(classes):
        raise ValueError(f"Classes need names that differ as text. Received: {folder}, "
                         f"{sorted(map(printable, classes))}.")
    files = image_folder.list_files(str(folder), folder, classes)
    paths = [os.path.join(folder, path) for path in files.paths]
    brightest: dict[str, int] = {}
    images, kept, skipped = read_images(paths, card, on_corrupt, brightest)
    decoding.warn_of_dim(str(folder), brightest.values(), decoding_of(card), BITS)
    labels = files.class_ids[kept]
    empty = sorted(set(range(len(classes))) - set(labels.tolist()))
    if empty:
        raise ValueError(f"Every class needs an image ({formats.READ}) that can be read; add one, or remove the "
                         f"folder. Received: none in {folder / classes[empty[0]]}.")
    duplicates.check_files(str(folder), [files], "warn", remember=False)
    skipped |= _left_out(folder, set(paths))
    return Labelled(images, labels, tuple(map(printable, classes)), [paths[row] for row in kept], skipped)


def _left_out(folder: pathlib.Path, read: set[str]) -> dict[str, str]:
    """{file: why it is left out} of a support folder's images that were not read; warns of those out of place."""
    found = Found.below(folder)
    elsewhere = sorted(map(printable, set(found.images) - read))
    if elsewhere:
        _log.warning("left out %d images that are not %s/<class>/<file>.", len(elsewhere), folder)
    return dict.fromkeys(elsewhere, f"it is not {folder}/<class>/<file>") | found.skipped


class Found(NamedTuple):
    """What is in a folder and the folders below it, hidden files and folders left out.

    Attributes:
        images: paths, sorted.
        skipped: {file: why it is left out} of images of formats that are not read.
    """

    images: list[str]
    skipped: dict[str, str]

    @classmethod
    def below(cls, root: str | os.PathLike) -> "Found":
        """Looks into a folder; files that are no images are warned of with their number."""
        files = [(os.path.join(root, path), kind) for path, kind in image_folder.walk(root)]
        others = [path for path, kind in files if kind is Kind.OTHER]
        if others:
            _log.warning("%s: %d files are not images and are ignored; the first: %s.", root, len(others),
                         printable(min(others)))
        skipped = sorted(printable(path) for path, kind in files if kind is Kind.OTHER_IMAGE)
        return cls(sorted(path for path, kind in files if kind is Kind.IMAGE), dict.fromkeys(skipped, _OTHER))


def images_below(root: str | os.PathLike) -> Found:
    """The images in a folder and the folders below it; or the one that root is.

    Raises:
        ValueError: there are none.
    """
    folder = pathlib.Path(root)
    found = Found([str(folder)], {}) if folder.is_file() else Found.below(folder)
    if not found.images:
        what = f"no file of {formats.READ}" if folder.exists() else "no such file or folder"
        raise ValueError(f"There are no images to classify. Received: {folder}, {what}.")
    return found


def decoding_of(card: Mapping[str, Any]) -> decoding.Decoding:
    """How images are decoded for a model, by its card; those of earlier versions say nothing of bits.

    Raises:
        LookupError: the card lacks something.
        ValueError: images cannot be decoded so.
    """
    size, how = card["input"], card["decoding"]
    return decoding.Decoding(
        (size["height"], size["width"]), how["resize"], how["crop"], tuple(how["background"]), how.get("bits")
    )


def read_images(
    paths: Sequence[str], card: Mapping[str, Any], on_corrupt: str = "error", brightest: dict[str, int] | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Image files as the images of a model.

    Args:
        paths: the files.
        card: of the model: their size, and how they become of that size.
        on_corrupt: "error" or "skip".
        brightest: takes {file: brightest value} of 16-bit images, for one warning of several calls; None warns here.

    Returns:
        (images uint8 [n, H, W, C], int [n] which of the paths they are, {file: why it was left out}).

    Raises:
        ValueError: an image cannot be read; a card that asks for no such images.
    """
    if on_corrupt not in ("error", "skip"):
        raise ValueError(f"on_corrupt is 'error' or 'skip'. Received: {on_corrupt!r}.")
    height, width, channels = (card["input"][name] for name in ("height", "width", "channels"))
    if channels not in (1, 3):
        raise ValueError(f"Images are RGB or grey; this model takes neither. Received: channels={channels}.")
    how = decoding_of(card)
    images = np.empty((len(paths), height, width, 3), np.uint8)
    failures, deep = decoding.decode_files(paths, images, how)
    if brightest is None:
        decoding.warn_of_dim(printable(os.path.dirname(paths[0])) if paths else "", deep.values(), how, BITS)
    else:
        brightest |= {paths[row]: value for row, value in deep.items()}
    for failure in failures:
        if on_corrupt == "error":
            raise ValueError(f"{printable(paths[failure.row])} cannot be used: {failure.reason}; replace or remove it, "
                             f"or leave such images out with --on_corrupt=skip.")
        _log.warning("left out %s: %s.", printable(paths[failure.row]), failure.reason)
    kept = np.setdiff1d(np.arange(len(paths)), [failure.row for failure in failures])
    images = images[kept] if failures else images
    if channels == 1:
        images = np.rint(images @ np.array(LUMA)).astype(np.uint8)[..., None]
    return images, kept, {printable(paths[failure.row]): failure.reason for failure in failures}
