"""The same image in two classes or two splits: a label is wrong, or what is tested on was learned from.

Images are compared by their bytes. Copies within one class are counted along: one may be support and query of a task.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tf_unravel.data.storage import digests
from tf_unravel.data.storage.image_files import ImageFiles

CHOICES = ("error", "warn", "ignore")
_NOTHING = (bytes(32), hashlib.sha256(b"").digest())  # of what cannot be read, and of empty files
_log = logging.getLogger(__name__)


class Duplicates(NamedTuple):
    """Images whose bytes came before.

    Attributes:
        across: how many are in another class or split than the first of the same bytes.
        within: how many are in the same class.
        first: the first pair of different classes, else of one class; None where nothing is double.
    """

    across: int
    within: int
    first: tuple[int, int] | None


def found_in(digests: Sequence[bytes], classes: Sequence[object]) -> Duplicates:
    """Counts images of the same digest; classes of different splits differ.

    Example:
        >>> found_in([b"x", b"y", b"x"], ["cat", "cat", "dog"])
        Duplicates(across=1, within=0, first=(0, 2))
    """
    seen: dict[bytes, int] = {}
    pairs: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for place, digest in enumerate(digests):
        before = seen.setdefault(digest, place)
        if before != place and digest not in _NOTHING:
            pairs[classes[before] == classes[place]].append((before, place))
    across, within = pairs
    return Duplicates(len(across), len(within), next(iter(across + within), None))


def check_files(name: str, parts: Sequence[ImageFiles], on_duplicates: str, remember: bool = True) -> None:
    """Looks for images that are double among the files of one split or several.

    Args:
        name: of the dataset, for the message.
        parts: the splits.
        on_duplicates: "error" refuses images that are in two classes or splits, "warn" warns of them with the first
            pair, "ignore" does not look. Copies within a class are warned of by both.
        remember: keep the files' hashes in the cache.

    Raises:
        ValueError: there are some, or another `on_duplicates`.
    """
    if not _is_asked(name, on_duplicates):
        return
    hashes = [bytes(row) for part in parts for row in digests.hashes_of_files(part.root, part.paths, remember)]
    classes = [(place, label) for place, part in enumerate(parts) for label in np.asarray(part.class_ids).tolist()]
    found = found_in(hashes, classes)
    if found.first is not None:
        paths = [os.path.join(part.root, path) for part in parts for path in part.paths]
        first, second = (paths[place] for place in found.first)
        same = os.path.realpath(os.path.dirname(first)) == os.path.realpath(os.path.dirname(second))
        linked = ", whose folders are one and the same" if found.across and same else ""
        _say(name, found, f"{digests.printable(first)} and {digests.printable(second)}{linked}", on_duplicates)


def check_images(name: str, arrays: Mapping[str, np.ndarray], class_names: Sequence[str], on_duplicates: str) -> None:
    """`check_files` for a split that comes as one array, by the `duplicates` that were `counted` in its cache entry."""
    across, within, first, second, first_class, second_class = arrays["duplicates"].tolist()
    if _is_asked(name, on_duplicates) and across + within:
        pair = (f"numbers {first} ({class_names[first_class]!r}) and {second} ({class_names[second_class]!r}) of "
                f"{len(arrays['images'])}")
        _say(name, Duplicates(across, within, (first, second)), pair, on_duplicates)


def counted(images: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """(across, within, first pair, its class ids) of an array's images as int64 [6], to be kept beside them."""
    each = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    found = found_in(each, class_ids.tolist())
    first, second = found.first or (0, 0)
    return np.array([found.across, found.within, first, second, class_ids[first], class_ids[second]], np.int64)


def _is_asked(name: str, on_duplicates: str) -> bool:
    if on_duplicates not in CHOICES:
        raise ValueError(f"{name}: on_duplicates must be one of {', '.join(CHOICES)}. Received: {on_duplicates!r}.")
    return on_duplicates != "ignore"


def _say(name: str, found: Duplicates, pair: str, on_duplicates: str) -> None:
    one = found.within == 1
    copies = f"{found.within} image{' is a copy within its' if one else 's are copies within their'} class"
    if not found.across:
        _log.warning("%s: %s, so that one may be support and query of a task; the first pair: %s.", name, copies, pair)
        return
    count = f"{found.across} image{' has' if found.across == 1 else 's have'}"
    more = f" (and {copies})" if found.within else ""
    text = f"{name}: {count} a byte-for-byte copy in another class or split{more}; the first pair: {pair}"
    if on_duplicates == "error":
        raise ValueError(f"{text}; remove one of each, or load them all the same with on_duplicates='warn'.")
    _log.warning("%s; load.on_duplicates = 'error' refuses such images, 'ignore' does not look for them.", text)
