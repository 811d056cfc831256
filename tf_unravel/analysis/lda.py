"""A look at feature space: three classes projected onto their first two LDA components (Figure 2 of the paper).

Linear discriminant analysis finds the directions v that maximise

    v^T B v / v^T W v,   B, W: covariance of the class means, and within the classes

Three classes have two such directions. With D features and 300 images, D may exceed what 300 images determine: W is
then singular, and plain LDA pulls apart even pure noise (that is, every extractor would look perfect). So W is shrunk
towards a multiple of the identity by the amount of Ledoit and Wolf, as scikit-learn's "eigen" solver does it. Before
that the features are turned, without loss, into the at most N - 1 coordinates that N centred images span, so that no
D x D matrix appears. With many more images than features the shrinkage tends to 0, which is plain LDA.

Each panel is drawn to the same unit: the within-class standard deviation along its components, averaged over classes.
Compare how far apart the clusters are relative to their size, as the paper does, not positions or orientation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

# Okabe and Ito's palette: told apart by the colour-blind, and in grey by the markers
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "^", "s", "D", "v", "P")


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
        raise ValueError(f"More classes are wanted than there are. Received: classes={classes}, there are {len(names)}.")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    chosen = random.permutation(names)[:classes]
    return np.concatenate([random.permutation(np.flatnonzero(class_ids == name))[:images] for name in chosen])


def lda_projection(features: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Projects features onto the first two LDA components of their classes.

    Args:
        features: [N, D].
        class_ids: int [N], at least three classes.

    Returns:
        float64 [N, 2], centred, in units of the within-class standard deviation along each component.

    Raises:
        ValueError: fewer than three classes, shapes that do not fit, features not finite or all alike.

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
    names, class_ids = np.unique(class_ids, return_inverse=True)
    if len(names) < 3 or features.shape[1] < 2:
        raise ValueError(
            "Two LDA components need at least three classes and two features. "
            f"Received: {len(names)} classes, {features.shape[1]} features."
        )
    if not np.isfinite(features).all():
        raise ValueError("Features must be finite; the backbone has probably diverged. Received: NaN or infinity.")
    turned = _span(features - features.mean(axis=0))  # [N, rank]
    if turned.shape[1] < 2:
        raise ValueError(f"Features on one line have no plane to draw. Received: rank {turned.shape[1]}.")
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2)
    points = model.fit_transform(turned, class_ids)  # [N, 2]
    points = points - points.mean(axis=0)
    within = np.mean([points[class_ids == number].var(axis=0) for number in range(len(names))], axis=0)
    return points / np.sqrt(np.maximum(within, np.finfo(np.float64).tiny))


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
    figure = Figure(figsize=(3.4 * len(projections), 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(projections), squeeze=False)[0]
    for panel, (title, points) in zip(panels, projections.items(), strict=True):
        ids = np.asarray(class_ids[title] if isinstance(class_ids, Mapping) else class_ids)
        if np.shape(points) != (len(ids), 2):
            raise ValueError(f"Points must be [N, 2] for {len(ids)} class ids. Received: {title}, {np.shape(points)}.")
        for number, class_id in enumerate(np.unique(ids)):
            panel.scatter(
                *points[ids == class_id].T,
                s=14,
                marker=_MARKERS[number % len(_MARKERS)],
                facecolors="none",
                edgecolors=_COLOURS[number % len(_COLOURS)],
                linewidths=0.9,
                label=class_names[class_id] if class_names is not None else f"class {class_id}",
            )
        panel.set(title=title, xlabel="first LDA component", aspect="equal", adjustable="datalim")
        panel.tick_params(labelsize="small")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("second LDA component")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
