"""From a list of image files and their classes to a `ClassImages`: decoded once, then read from the cache.

The cache entry is keyed by the names and bytes of the files and by how they are decoded (`digests.digest_of_files`), so
that a changed, added or removed image makes a new entry and a copied or touched folder does not.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence

import numpy as np
import PIL

from tf_unravel.data.class_images import ClassImages, Normalization, content_fingerprint
from tf_unravel.data.storage import cache, decoding, digests

_VERSION = 3  # raise it when decoding changes
_NAMED = 3  # of the images that cannot be used, in a message
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The files of one split.

    Args:
        name: for messages, such as "image_folder/train".
        root: folder that the paths are relative to.
        paths: relative path of each image.
        class_ids: integers [N], 0..C-1.
        class_names: one per class.
        other_images: paths of images that are not read: of other formats, or in deeper folders.
        others: paths of files beside the images that are not images; hidden ones are not counted.
    """

    name: str
    root: str
    paths: Sequence[str]
    class_ids: np.ndarray
    class_names: tuple[str, ...]
    other_images: Sequence[str] = ()
    others: Sequence[str] = ()


def size_of(image_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """image_size as (height, width); one number means a square."""
    if image_size is None:
        return None
    return (int(image_size),) * 2 if isinstance(image_size, (int, np.integer)) else tuple(int(s) for s in image_size)


def load_files(
    files: ImageFiles,
    how: decoding.Decoding,
    min_images: int = 2,
    on_corrupt: str = "error",
    normalization: Normalization | None = None,
) -> ClassImages:
    """Decodes files, or reads what was decoded before; the images are a read-only memory map.

    Args:
        files: which images, and their classes.
        how: size, filter, background and bits; without bits, classes of suspiciously dark 16-bit images are warned of.
        min_images: the least number of usable images a class must have.
        on_corrupt: "error" raises for a damaged image, "skip" leaves it out and warns with the count.
        normalization: published (mean, std), if any.

    Raises:
        ValueError: a damaged image, images of different sizes without `how.size`, or a class with too few images.
    """
    if on_corrupt not in ("error", "skip"):
        raise ValueError(f"on_corrupt must be 'error' or 'skip'. Received: {on_corrupt!r}.")
    check_class_sizes(files, files.class_ids, min_images)
    # The same files may be grouped in another way
    grouping = digests.digest_of_text(repr((files.class_names, np.asarray(files.class_ids).tolist())))
    arrays = digests.cached_of_files(
        files.name, files.root, files.paths,
        lambda digest: f"image_files/{_VERSION} {digest} {how} {on_corrupt} {PIL.__version__} {grouping}",
        lambda create: _fill(create, files, how, on_corrupt),
    )  # fmt: skip
    class_ids, left_out = np.array(arrays["class_ids"]), arrays["left_out"].tolist()
    if left_out:
        named = "; ".join([*left_out[:_NAMED], *(["..."] if len(left_out) > _NAMED else [])])
        _log.warning("%s: left out %d of %d images: %s.", files.name, len(left_out), len(files.paths), named)
    check_class_sizes(files, class_ids, min_images)
    brightest = np.array(arrays["brightest"])  # -1 for images of 8 bits
    most = np.full(len(files.class_names), -1, np.int32)
    np.maximum.at(most, class_ids, brightest)
    dim = brightest[(brightest >= 0) & (most[class_ids] < decoding.DIM)]  # once, of all classes that are all dark
    decoding.warn_of_dim(files.name, dim.tolist(), how, "load.bits = {bits}")
    return ClassImages.of_arrays(arrays, files.class_names, files.name, normalization)


def check_class_sizes(files: ImageFiles, class_ids: np.ndarray, min_images: int) -> None:
    """Raises ValueError when there is no class, or one of which `class_ids` [n] holds fewer than `min_images`."""
    if not files.class_names:
        raise ValueError(f"{files.name}: no classes found in {files.root}; add folders of images.")
    counts = np.bincount(class_ids, minlength=len(files.class_names))
    few = np.flatnonzero(counts < max(1, min_images))
    if len(few):
        first, more = few[0], f" ({len(few)} such classes)" if len(few) > 1 else ""
        raise ValueError(
            f"{files.name}: class {files.class_names[first]!r} in {files.root} has {counts[first]} usable images, "
            f"fewer than min_images={min_images}{more}; add images, remove the class, or lower min_images."
        )


def _fill(create: cache.Create, files: ImageFiles, how: decoding.Decoding, on_corrupt: str) -> None:
    paths = [os.path.join(files.root, path) for path in files.paths]
    size = how.size or _first_size(paths, how)
    images = create("images", (len(paths), *size, 3), np.uint8)
    failures, deep = decoding.decode_files(paths, images, how)
    bad = {failure.row for failure in failures}
    for failure in failures:
        path = paths[failure.row]
        if failure.size is not None:
            sized = next(path for row, path in enumerate(paths) if row not in bad)
            raise ValueError(
                f"{files.name}: images differ in size: {path} has {_by(failure.size)} pixels, {sized} has {_by(size)}; "
                f"pass image_size to resize them."
            )
        if on_corrupt == "error":
            others = f" (and {len(failures) - 1} more images)" if len(failures) > 1 else ""
            raise ValueError(
                f"{files.name}: {path} cannot be used: {failure.reason}{others}; replace or remove it, or leave such "
                f"images out with on_corrupt='skip' (--gin_bindings=\"load.on_corrupt = 'skip'\")."
            )
    reasons = [f"{digests.printable(files.paths[failure.row])} ({failure.reason})" for failure in failures]
    kept = np.setdiff1d(np.arange(len(paths)), list(bad))
    if failures:
        for start in range(0, len(kept), 1024):  # in place: kept[i] >= i, and the right side is copied first
            images[start : start + 1024][: len(kept) - start] = images[kept[start : start + 1024]]
    class_ids = np.asarray(files.class_ids, np.int32)[kept]
    brightest = np.array([deep.get(row, -1) for row in kept.tolist()], np.int32)
    fingerprint = content_fingerprint(images[: len(kept)], class_ids, files.class_names) if len(kept) else ""
    cache.store(create, left_out=np.array(reasons, np.str_), class_ids=class_ids, brightest=brightest,
                fingerprint=fingerprint)  # fmt: skip


def _by(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _first_size(paths: Sequence[str], how: decoding.Decoding) -> tuple[int, ...]:
    """(height, width) of the first image that can be read: what the others are held against."""
    for path in paths:
        try:
            return decoding.decode(decoding.read_image_file(path), how)[0].shape[:2]
        except (OSError, decoding.UnusableImage):
            continue
    return (1, 1)  # none: each of them is reported by what follows
