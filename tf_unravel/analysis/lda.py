"""A look at feature space: three classes projected onto their first two LDA components (Figure 2 of the paper).

Linear discriminant analysis finds the directions v that maximise

    v^T B v / v^T W v,   B, W: covariance of the class means, and within the classes

Three classes have two such directions. Two things keep them honest where there are more features than images:

- W is shrunk towards a multiple of the identity by the amount of Ledoit and Wolf, (1 - d) W + d tr(W)/D I, since 300
  images do not determine it. With many more images than features d tends to 0, which is plain LDA.
- Each point is projected onto directions found without it, in ten folds. Projected onto directions that they chose
  themselves, the three means of pure noise with 8192 features lie 13 standard deviations apart, and every extractor
  looks perfect. `folds=1` is the paper's projection of the images that also chose the directions.

Before that the features are turned, without loss, into the at most N - 1 coordinates which N centred images span, so
that no D x D matrix appears. Every panel is drawn to the same unit, the standard deviation within classes: compare how
far apart the clusters are relative to their size, as the paper does, not positions or orientation.

| symbol | name     | shape                           |
|--------|----------|---------------------------------|
| f      | features | [N, D]                          |
| W, B   |          | [R, R], R <= min(N - 1, D)      |
| v      | axes     | [R, 2], both v                  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
from matplotlib.figure import Figure
from sklearn.covariance import ledoit_wolf_shrinkage

from tf_unravel.analysis.plot_style import COLOURS, MARKERS, new_figure, plain


def choose_images(class_ids: np.ndarray, classes: int = 3, images: int = 100, seed: int = 0) -> np.ndarray:
    """Draws some classes, and some images of each.

    Args:
        class_ids: int [N].
        classes: how many classes.
        images: how many images of each, or all that a class has.
        seed: the same seed draws the same images for every extractor.

    Returns:
        int64 [n], indices into class_ids, class by class.

    Raises:
        ValueError: more classes are wanted than there are.
    """
    class_ids = np.asarray(class_ids)
    names = np.unique(class_ids)
    if classes > len(names):
        raise ValueError(f"There are not enough classes to draw. Received: classes={classes}, but {len(names)} exist.")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    chosen = random.permutation(names)[:classes]
    return np.concatenate([random.permutation(np.flatnonzero(class_ids == name))[:images] for name in chosen])


def lda_projection(features: np.ndarray, class_ids: np.ndarray, folds: int = 10) -> np.ndarray:
    """Projects features onto the first two LDA components of their classes.

    Args:
        features: [N, D].
        class_ids: int [N], at least three classes of at least three images.
        folds: each point is projected onto the directions that the other folds choose; 1: that all points choose.

    Returns:
        float64 [N, 2], in units of the standard deviation within classes along each component.

    Raises:
        ValueError: too few classes or images, shapes that do not fit, features not finite or all alike.

    Example:
        >>> chosen = choose_images(test.class_ids)
        >>> points = lda_projection(features[chosen], test.class_ids[chosen])

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Figure 2.
    """
    features, class_ids = np.asarray(features, np.float64), np.asarray(class_ids)
    if features.ndim != 2 or class_ids.shape != features.shape[:1]:
        raise ValueError(
            "Features must be [N, D] with class ids [N]. "
            f"Received: features {features.shape}, class_ids {class_ids.shape}."
        )
    names, class_ids, sizes = np.unique(class_ids, return_inverse=True, return_counts=True)
    if len(names) < 3 or features.shape[1] < 2 or min(sizes) < 3:
        raise ValueError(
            "Two LDA components need at least three classes of three images, and two features. "
            f"Received: {len(names)} classes of {min(sizes, default=0)} images, {features.shape[1]} features."
        )
    if not np.isfinite(features).all():
        raise ValueError("Features must be finite; the backbone has probably diverged. Received: NaN or infinity.")
    turned = _span(features - features.mean(axis=0))  # [N, R]
    if turned.shape[1] < 2:
        raise ValueError(f"Features on one line have no plane to draw. Received: rank {turned.shape[1]}.")
    axes = _axes(turned, class_ids)  # [R, 2]
    points = turned @ axes  # [N, 2]
    means = _means(points, class_ids)  # [C, 2]
    places = np.empty(len(class_ids), np.int64)
    places[np.argsort(class_ids, kind="stable")] = np.concatenate([np.arange(size) for size in sizes])
    for fold in range(folds) if folds > 1 else ():
        out = places % min(folds, sizes.min()) == fold  # about a tenth of every class
        if out.any():
            axes = _axes(turned[~out], class_ids[~out])
            turn, _ = scipy.linalg.orthogonal_procrustes(_means(turned[~out] @ axes, class_ids[~out]), means)
            points[out] = turned[out] @ axes @ turn  # else the folds would differ by signs
    within = points - _means(points, class_ids)[class_ids]
    return points / np.maximum(within.std(axis=0), np.finfo(np.float64).tiny)


def _axes(features: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """The two directions [R, 2] that maximise v^T B v / v^T W v, W shrunk; v^T W v = 1."""
    means = _means(features, class_ids)  # [C, R]
    residuals = features - means[class_ids]  # [N, R]
    within = residuals.T @ residuals / len(features)  # [R, R]
    shrinkage = ledoit_wolf_shrinkage(residuals, assume_centered=True)
    size = len(within)
    floor = 1e-9 * np.trace(features.T @ features) / len(features)  # classes that are points have no W
    target = max(np.trace(within), floor) / size
    within = (1 - shrinkage) * within + max(shrinkage, 1e-9) * target * np.eye(size)
    root = scipy.linalg.cholesky(within, lower=True)
    whitened = scipy.linalg.solve_triangular(root, (means - means.mean(axis=0)).T, lower=True)  # [R, C]
    directions = np.linalg.svd(whitened, full_matrices=False)[0][:, :2]  # eigenvectors of B, largest first
    return scipy.linalg.solve_triangular(root, directions, lower=True, trans=1)


def _means(values: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    return np.stack([values[class_ids == number].mean(axis=0) for number in range(class_ids.max() + 1)])


def _span(centred: np.ndarray) -> np.ndarray:
    """Turns centred features [N, D] into the coordinates [N, rank] of the space they span; distances stay."""
    if centred.shape[1] > centred.shape[0]:
        values, vectors = np.linalg.eigh(centred @ centred.T)  # [N], [N, N]: cheaper than an SVD with D columns
        kept = values > max(values[-1], np.finfo(np.float64).tiny) * 1e-12
        return vectors[:, kept] * np.sqrt(values[kept])
    values, vectors = np.linalg.eigh(centred.T @ centred)  # [D], [D, D]
    kept = values > max(values[-1], np.finfo(np.float64).tiny) * 1e-12
    return centred @ vectors[:, kept]


def draw(
    projections: Mapping[str, np.ndarray],
    class_ids: np.ndarray | Mapping[str, np.ndarray],
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws the projections of one extractor or several, side by side.

    The figure is bound to no window and to no pyplot state: save it with `figure.savefig(...)`.

    Args:
        projections: title -> points [N, 2] of `lda_projection`.
        class_ids: int [N], the same images for all; or title -> int [N].
        class_names: the name of class id i at place i, for the legend; "class i" by default.

    Returns:
        matplotlib Figure.

    Raises:
        ValueError: nothing to draw, or points that do not fit the class ids.

    Example:
        >>> draw({"classical": a, "with R_FC": b}, ids, test.class_names).savefig("lda.png", dpi=150)
    """
    if not projections:
        raise ValueError("There is nothing to draw. Received: no projections.")
    figure = new_figure(3.4 * len(projections), 3.7)
    panels = figure.subplots(1, len(projections), squeeze=False)[0]
    for panel, (title, points) in zip(panels, projections.items(), strict=True):
        ids = np.asarray(class_ids[title] if isinstance(class_ids, Mapping) else class_ids)
        if np.shape(points) != (len(ids), 2):
            raise ValueError(f"Points must be [N, 2] for {len(ids)} class ids. Received: {title}, {np.shape(points)}.")
        for number, class_id in enumerate(np.unique(ids)):
            panel.scatter(
                *points[ids == class_id].T,
                s=14,
                marker=MARKERS[number % len(MARKERS)],
                facecolors="none",
                edgecolors=COLOURS[number % len(COLOURS)],
                linewidths=0.9,
                label=plain(class_names[class_id]) if class_names is not None else f"class {class_id}",
            )
        panel.set(title=plain(title), xlabel="first LDA component", aspect="equal", adjustable="datalim")
        panel.tick_params(labelsize="small")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("second LDA component")
    handles, labels = panels[0].get_legend_handles_labels()
    one_row = sum(len(label) + 5 for label in labels) <= 34 * len(panels)  # about what a panel's width holds
    columns = len(labels) if one_row else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure
