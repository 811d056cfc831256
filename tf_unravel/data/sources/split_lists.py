"""Which classes belong to which split: the published lists (splits/*.txt), and that no class stands in two splits."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence


@functools.cache
def split_list(dataset: str, split: str) -> tuple[str, ...]:
    """The published classes of a split, sorted.

    Datasets are "cifar_fs" (64/16/20 names), "mini_imagenet" (Ravi's 64/16/20 WordNet ids) and "omniglot_vinyals"
    (1028/172/423 names Alphabet/characterNN).
    """
    file = importlib.resources.files("tf_unravel.data.sources") / "splits" / f"{dataset}_{split}.txt"
    return tuple(file.read_text(encoding="utf-8").split())


def check_disjoint(classes: Mapping[str, tuple[object, Sequence[str]]]) -> None:
    """Raises ValueError when a class stands in two splits; classes is {split: (file or folder, class names)}."""
    seen: dict[str, object] = {}
    for where, names in classes.values():
        for name in names:
            if name in seen:
                raise ValueError(
                    f"class {name!r} is in both {seen[name]} and {where}: the classes of train, val and test must be "
                    f"disjoint; remove it from one."
                )
        seen.update(dict.fromkeys(names, where))
