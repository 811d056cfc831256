"""Figures that runs draw."""

import logging
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure

from tf_unravel import analysis, data

Projections: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""Title of an extractor -> the result of `projection`."""

_log = logging.getLogger(__name__)


def projection(features: np.ndarray, split: data.ClassImages, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """What Figure 2 of the paper shows of one extractor: three classes with 100 images each, projected by LDA.

    Args:
        features: features [N, D] of the split's images.
        split: the images.
        seed: of the choice of classes and images; the same one draws the same images for every extractor.

    Returns:
        (points [n, 2], class ids [n]); None, with a warning, where they cannot be had: fewer than three classes, a
        network that collapsed. A figure is no reason to end a training.
    """
    try:
        chosen = analysis.choose_images(split.class_ids, seed=seed)
        class_ids = split.class_ids[chosen]
        return analysis.lda_projection(features[chosen], class_ids), class_ids
    except ValueError as error:
        _log.warning("no LDA projection of %s: %s", split.name, error)
        return None


def projection_figure(projections: Projections, class_names: tuple[str, ...]) -> Figure:
    """Projections of several extractors side by side.

    Args:
        projections: title -> result of `projection`.
        class_names: of the split.
    """
    points = {title: values for title, (values, _) in projections.items()}
    return analysis.draw(points, {title: class_ids for title, (_, class_ids) in projections.items()}, class_names)
