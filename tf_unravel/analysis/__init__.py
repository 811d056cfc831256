"""Why an extractor works: how tightly its classes cluster, and pictures of its feature space."""

from tf_unravel.analysis import theorem
from tf_unravel.analysis.boundaries import Boundaries, draw_boundaries, one_shot_boundaries
from tf_unravel.analysis.class_separation import ClassSeparation, class_separation, pair_ratios, variance_ratio
from tf_unravel.analysis.lda import choose_images, draw, lda_projection
from tf_unravel.analysis.theorem import draw_theorem, one_shot_accuracy, variance_ratio_of

__all__ = [
    "Boundaries",
    "ClassSeparation",
    "choose_images",
    "class_separation",
    "draw",
    "draw_boundaries",
    "draw_theorem",
    "lda_projection",
    "one_shot_accuracy",
    "one_shot_boundaries",
    "pair_ratios",
    "theorem",
    "variance_ratio",
    "variance_ratio_of",
]
