"""Why an extractor works: how tightly its classes cluster, how far its weights travel, and pictures of both."""

from tf_unravel.analysis import theorem, theorem_check
from tf_unravel.analysis.boundaries import Boundaries, draw_boundaries, one_shot_boundaries
from tf_unravel.analysis.class_separation import ClassSeparation, class_separation, pair_ratios, variance_ratio
from tf_unravel.analysis.distance_travelled import distance_travelled, draw_distances
from tf_unravel.analysis.lda import choose_images, draw, lda_projection
from tf_unravel.analysis.theorem import one_shot_accuracy, variance_ratio_of
from tf_unravel.analysis.theorem_check import draw_theorem

__all__ = [
    "Boundaries",
    "ClassSeparation",
    "choose_images",
    "class_separation",
    "distance_travelled",
    "draw",
    "draw_boundaries",
    "draw_distances",
    "draw_theorem",
    "lda_projection",
    "one_shot_accuracy",
    "one_shot_boundaries",
    "pair_ratios",
    "theorem",
    "theorem_check",
    "variance_ratio",
    "variance_ratio_of",
]
