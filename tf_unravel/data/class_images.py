"""Images sorted into classes: the one type that every data source returns and every sampler reads.

A `ClassImages` is one split ("train", "val" or "test") of a dataset. Its pixels stay uint8 and may be a read-only
`np.memmap`, so that a split costs its uint8 size at most, however it is read.

Names: N images, C classes, [H, W, channels] one image.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tf_unravel.data.storage.digests import composed

_CHUNK_BYTES = 2 * 2**20

Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean per channel, standard deviation per channel), in units of 0..255."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClassImages:
    """One split of a dataset: images, the class id of each, and the classes' names.

    Args:
        images: uint8 [N, H, W, channels], 0-255; may be a read-only `np.memmap`.
        class_ids: integers [N] (stored as int32); every id from 0 to num_classes - 1 occurs.
        class_names: one name per class id; kept in Unicode's composed form (NFC).
        name: what messages and tables call it, such as "glyphs/train".
        fingerprint: hex digest of the contents, recorded by each run; "" computes it.
        normalization: (mean, std) per channel in 0-255 units where the dataset has published ones.
        random_split: split -> its classes, where a folder's classes were split at random by a seed; else None.

    Raises:
        ValueError: the arrays disagree with each other or with the description above.

    Example:
        >>> pixels = np.zeros((4, 8, 8, 3), np.uint8)
        >>> ClassImages(pixels, np.array([0, 1, 0, 1]), ("cat", "dog"), "pets/train").num_classes
        2
    """

    images: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]
    name: str = "images"
    fingerprint: str = ""
    normalization: Normalization | None = None
    random_split: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        object.__setattr__(self, "class_names", tuple(composed(str(name)) for name in self.class_names))
        object.__setattr__(self, "class_ids", _checked_ids(self))
        if self.normalization is not None:
            object.__setattr__(self, "normalization", _checked_normalization(self, self.normalization))
        if not self.fingerprint:
            digest = content_fingerprint(self.images, self.class_ids, self.class_names)
            object.__setattr__(self, "fingerprint", digest)

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        class_names: tuple[str, ...],
        name: str,
        normalization: Normalization | None = None,
    ) -> ClassImages:
        """The split that a cache entry holds: its `images`, of which the first are used, `class_ids`, `fingerprint`."""
        class_ids = np.array(arrays["class_ids"])
        images, fingerprint = arrays["images"][: len(class_ids)], str(arrays["fingerprint"])
        return cls(images, class_ids, class_names, name, fingerprint, normalization)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"ClassImages({self.name!r}: {len(self)} images {height}x{width}x{channels}, {self.num_classes} classes, "
            f"fingerprint {self.fingerprint[:12]})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @functools.cached_property
    def class_index(self) -> tuple[np.ndarray, np.ndarray]:
        """(order int64 [N], offsets int64 [C + 1]): images of class c are order[offsets[c]:offsets[c + 1]]."""
        order = np.argsort(self.class_ids, kind="stable").astype(np.int64)
        counts = np.bincount(self.class_ids, minlength=self.num_classes)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return order, offsets

    @property
    def images_per_class(self) -> np.ndarray:
        """int64 [C]: how many images each class has."""
        return np.diff(self.class_index[1])


def _check_images(images: np.ndarray, name: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ValueError(
            f"{name}: images must be a uint8 NumPy array (0-255; scaling happens inside the model). "
            f"Received: {getattr(images, 'dtype', type(images).__name__)}{_range_of(images)}."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name}: images must be [N, height, width, channels], none of them 0. Received: {images.shape}."
        )


def _range_of(images: object) -> str:
    """The range of floats, which says whether they are to be multiplied by 255."""
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f" or not images.size:
        return ""
    low, high = float(images.min()), float(images.max())
    advice = "; multiply by 255, round and convert" if 0 <= low and high <= 1 else ""
    return f" from {low:g} to {high:g}{advice}"


def _checked_ids(split: ClassImages) -> np.ndarray:
    """class_ids as int32 [N] after checking them against the images and the names."""
    ids, name, num_classes = np.asarray(split.class_ids), split.name, len(split.class_names)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name}: class_ids must be integers [N]. Received: {ids.dtype} {ids.shape}.")
    if len(ids) != len(split.images):
        raise ValueError(f"{name}: every image needs a class id. Received: {len(split.images)} images, {len(ids)} ids.")
    if len(set(split.class_names)) != num_classes:
        repeated = next(each for each in split.class_names if split.class_names.count(each) > 1)
        raise ValueError(f"{name}: class names must differ. Received: {repeated!r} twice.")
    found = np.unique(ids)
    if not np.array_equal(found, np.arange(num_classes)):
        raise ValueError(
            f"{name}: class ids must be 0..{num_classes - 1}, one per class name, and every one must occur. "
            f"Received: {len(found)} different ids from {found[0]} to {found[-1]}."
        )
    return ids.astype(np.int32, copy=False)


def _checked_normalization(split: ClassImages, normalization: Normalization) -> Normalization:
    mean, std = (tuple(float(value) for value in values) for values in normalization)
    channels = split.images.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"{split.name}: normalization must be (mean, std) of {channels} values each, std above 0. "
            f"Received: {split.normalization}."
        )
    return mean, std


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Views of `images` of about `_CHUNK_BYTES` each: all that is in memory when `images` is a memmap."""
    rows = max(1, _CHUNK_BYTES // max(1, images[0].nbytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def content_fingerprint(images: np.ndarray, class_ids: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Hex SHA-256 of the pixels, uint8 [N, H, W, channels], the class ids [N] and the names, in bounded memory."""
    digest = hashlib.sha256(repr((images.shape, tuple(class_names))).encode("utf-8"))
    digest.update(np.ascontiguousarray(class_ids, dtype="<i4").data)
    for chunk in _chunks(images):
        digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def channel_statistics(split: ClassImages) -> Normalization:
    """Mean and standard deviation of every channel over all pixels of a split, in 0-255 units.

    Computed exactly from counts of the 256 values, a chunk at a time: memory stays bounded.

    Args:
        split: the split to measure; use the training split.

    Returns:
        (mean, std), one float per channel each; std is the population's (divided by the number of pixels).

    Example:
        >>> split = ClassImages(np.full((1, 2, 2, 1), 7, np.uint8), np.zeros(1, int), ("a",), "constant")
        >>> channel_statistics(split)
        ((7.0,), (0.0,))
    """
    channels = split.images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for chunk in _chunks(split.images):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256, dtype=np.float64)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = np.array([row @ (values - m) ** 2 for row, m in zip(counts, mean, strict=True)]) / total
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def normalization_of(split: ClassImages) -> Normalization:
    """The (mean, std) per channel to normalise with: the dataset's published ones, else measured on this split.

    A channel that is constant gets a standard deviation of 1, so that dividing by it is safe.

    Args:
        split: the training split.

    Returns:
        (mean, std), one float per channel each, in 0-255 units.
    """
    if split.normalization is not None:
        return split.normalization
    mean, std = channel_statistics(split)
    return mean, tuple(value if value > 0 else 1.0 for value in std)
