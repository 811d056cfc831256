"""Smaller training sets: a number of images of every class, drawn at random."""

from __future__ import annotations

import numpy as np

from tf_unravel.data.class_images import ClassImages


def few_per_class(split: ClassImages, count: int, seed: int = 0) -> ClassImages:
    """`count` images of every class, in their order.

    The draw is nested: the images of a smaller count are among those of a larger one with the same seed. The order in
    which a class's images are taken depends on the seed and the class's id alone.

    Args:
        split: the split.
        count: images per class.
        seed: of the draw.

    Returns:
        A split of [num_classes * count] images, with the same classes and normalization.

    Raises:
        ValueError: a class has fewer images.

    Example:
        >>> pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
        >>> few_per_class(ClassImages(pixels, np.array([0, 0, 0, 1, 1, 1]), ("a", "b"), "toy"), 2).images_per_class
        array([2, 2])
    """
    fewest = int(split.images_per_class.min())
    if not 1 <= count <= fewest:
        smallest = split.class_names[int(split.images_per_class.argmin())]
        raise ValueError(
            f"{split.name}: images per class must be 1..{fewest}, as many as {smallest!r} has. Received: {count}."
        )
    order, offsets = split.class_index
    drawn = [
        order[first:last][np.random.default_rng((seed, class_id)).permutation(last - first)[:count]]
        for class_id, (first, last) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))
    ]
    chosen = np.sort(np.concatenate(drawn))
    return ClassImages(
        np.ascontiguousarray(split.images[chosen]), split.class_ids[chosen], split.class_names,
        f"{split.name} ({count} images per class)", normalization=split.normalization, random_split=split.random_split,
    )  # fmt: skip
