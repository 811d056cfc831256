"""Why an extractor works: how tightly its classes cluster, and pictures of its feature space."""

from tf_unravel.analysis.class_separation import ClassSeparation, class_separation, pair_ratios, variance_ratio
from tf_unravel.analysis.lda import choose_images, draw, lda_projection

__all__ = [
    "ClassSeparation",
    "choose_images",
    "class_separation",
    "draw",
    "lda_projection",
    "pair_ratios",
    "variance_ratio",
]
