"""Figures that runs draw, and how they become files."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from tf_unravel import analysis, data


def figure_png(figure: Figure) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def projection_figure(features: Mapping[str, np.ndarray], split: data.ClassImages, seed: int = 0) -> Figure | None:
    """Figure 2 of the paper: three classes with 100 images each, projected by LDA, the same ones for every extractor.

    Args:
        features: title -> features [N, D] of the split's images.
        split: the images.
        seed: of the choice of classes and images.

    Returns:
        The figure; None for a split of fewer than three classes.
    """
    if split.num_classes < 3:
        return None
    chosen = analysis.choose_images(split.class_ids, seed=seed)
    class_ids = split.class_ids[chosen]
    projections = {title: analysis.lda_projection(values[chosen], class_ids) for title, values in features.items()}
    return analysis.draw(projections, class_ids, split.class_names)
