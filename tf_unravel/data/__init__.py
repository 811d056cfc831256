"""Data: sources of class images, episodes, class-balanced batches, augmentation.

`load` is the one way in; each source stands in its own module with a function load(split, root, **options).
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tf_unravel.data.class_images import ClassImages, channel_statistics, normalization_of
from tf_unravel.data.storage import cache
from tf_unravel.data.subsets import few_per_class

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and the reference
    from tf_unravel.data.sampling.augmentation import augment
    from tf_unravel.data.sampling.meta_batches import episodes_of_varied_shots, inner_batches
    from tf_unravel.data.sampling.tasks import Episode, TaskSampler, class_pairs, episodes, steps_per_epoch

SPLITS = ("train", "val", "test")
_MODULES = {  # imported on first use: they need TensorFlow, reading data does not
    "Episode": "tasks",
    "TaskSampler": "tasks",
    "class_pairs": "tasks",
    "episodes": "tasks",
    "episodes_of_varied_shots": "meta_batches",
    "inner_batches": "meta_batches",
    "steps_per_epoch": "tasks",
    "augment": "augmentation",
}


def __getattr__(name: str) -> Any:
    """The samplers and the augmentation, imported when they are first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tf_unravel.data.sampling.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tf_unravel.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def _source(module: str) -> Callable[..., ClassImages]:
    """The `load` of data/sources/<module>.py, imported when it is first called: reading one source needs no other."""

    def load_split(split: str, root: str | os.PathLike[str] | None, **options: Any) -> ClassImages:
        function = importlib.import_module(f"tf_unravel.data.sources.{module}").load
        known = [name for name in inspect.signature(function).parameters if name not in ("split", "root")]
        unknown = sorted(set(options) - set(known))
        if unknown and "options" not in known:
            raise ValueError(f"{module} has no option {unknown[0]!r}; its options are: {', '.join(['root', *known])}.")
        return function(split, root, **options)

    return load_split


SOURCES: dict[str, Callable[..., ClassImages]] = {
    name: _source(name) for name in ("glyphs", "cifar_fs", "mini_imagenet", "omniglot", "image_folder")
}


def load(
    name: str,
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    train_images_per_class: int | None = None,
    **options: Any,
) -> ClassImages:
    """One split of a dataset.

    Args:
        name: "glyphs" (nothing to download), "cifar_fs", "mini_imagenet", "omniglot" or "image_folder".
        split: "train", "val" or "test"; their classes are disjoint.
        root: the folder with the dataset's files; not needed for glyphs, and for cifar_fs only when the archive
            should not be downloaded.
        train_images_per_class: keep this many images of every training class, drawn at random (`few_per_class`); the
            other splits stay whole. None for all.
        **options: the source's own, see the `load` of its module. Image files are JPEG, PNG, BMP, WebP or PPM under any
            suffix; `bits` says how many bits of 16-bit ones hold values, `on_corrupt` and `on_duplicates` what to do
            about damaged images and about images that are in two classes or splits.

    Returns:
        The split's images, class ids and class names.

    Raises:
        ValueError: an unknown name, split or option, or files that cannot be used (the message names the file).

    Example:
        >>> split = load("image_folder", split="train", root="my_images", image_size=32)
    """
    if name not in SOURCES:
        raise ValueError(f"unknown dataset; choose one of {', '.join(SOURCES)}. Received: {name!r}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}. Received: {split!r}.")
    images = SOURCES[name](split, root, **options)
    if split != "train" or train_images_per_class is None:
        return images
    return few_per_class(images, train_images_per_class)


__all__ = [
    "SOURCES",
    "SPLITS",
    "ClassImages",
    "Episode",
    "TaskSampler",
    "augment",
    "cache",
    "channel_statistics",
    "class_pairs",
    "episodes",
    "episodes_of_varied_shots",
    "few_per_class",
    "inner_batches",
    "load",
    "normalization_of",
    "steps_per_epoch",
]
