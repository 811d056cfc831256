"""Why an extractor works: how tightly its classes cluster, how far its weights travel, and pictures of both."""

import importlib
from typing import Any

from tf_unravel.analysis.class_separation import ClassSeparation, class_separation, pair_ratios, variance_ratio
from tf_unravel.analysis.distance_travelled import distance_travelled, draw_distances
from tf_unravel.analysis.lda import choose_images, draw, lda_projection

_THEORY = {  # Theorem 1 and Figure 1 belong to the reproduction; their names stay
    "Boundaries": "boundaries",
    "draw_boundaries": "boundaries",
    "draw_theorem": "theorem_check",
    "one_shot_accuracy": "theorem",
    "one_shot_boundaries": "boundaries",
    "theorem": "",
    "theorem_check": "",
    "variance_ratio_of": "theorem",
}


def __getattr__(name: str) -> Any:
    """The names of `tf_unravel.reproduction.theory`, imported on first use."""
    if name not in _THEORY:
        raise AttributeError(f"module 'tf_unravel.analysis' has no attribute {name!r}")
    module = importlib.import_module(f"tf_unravel.reproduction.theory.{_THEORY[name] or name}")
    return getattr(module, name) if _THEORY[name] else module


__all__ = [
    "ClassSeparation",
    "choose_images",
    "class_separation",
    "distance_travelled",
    "draw",
    "draw_distances",
    "lda_projection",
    "pair_ratios",
    "variance_ratio",
    *_THEORY,
]
