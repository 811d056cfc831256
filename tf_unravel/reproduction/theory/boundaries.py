"""Separable is not enough: boundaries learned from one example of each class (Figure 1 of the paper).

Two classes of points in the plane, filling two ellipses that a straight line separates without one mistake. A pair
of examples, x of the one class and y of the other, has a maximum-margin boundary, their perpendicular bisector:

    { p : n.p = b },   n = x - y,   b = (|x|^2 - |y|^2) / 2;   a point is given to the class of x where n.p >= b

    misclassified = mean over random pairs of the share of all points on the wrong side

At a high variance ratio r = (Var X + Var Y) / Var U (see `theorem`) the classes are wide beside their distance, and
boundaries point everywhere; at a low one each of them is good. Var U, the variance of all points, is 1 in both
pictures, so that they share their axes: Var X + Var Y = r, and the means are 2 sqrt(1 - r/2) apart.

What differs from the paper: its figure is a sketch of two panels without numbers; here the ratio is set, and the
misclassified fraction is measured. The ellipses stand upright between classes side by side, `elongation` times as
high as wide: round ones would be separable up to r = 2/3 only. In general it is r < 2 (1 + k^2) / (5 + k^2) with
k = elongation. Degenerate case: r -> 0 are two points, and no boundary misclassifies.

| symbol | name           | shape                     |
|--------|----------------|---------------------------|
| p      | points         | [2 N, 2], N of each class |
| x, y   | pairs          | [P, 2] indices            |
| n, b   | normals, offsets | [P, 2], [P]             |
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import COLOURS, MARKERS, new_figure
from tf_unravel.reproduction.theory.theorem import distance_at, variance_ratio_of


@dataclasses.dataclass(frozen=True, eq=False)
class Boundaries:
    """Two classes of points and the boundaries of random pairs of them.

    Attributes:
        points: float64 [2 N, 2].
        class_ids: int64 [2 N], 0 or 1.
        pairs: int64 [P, 2], the indices of an example of class 0 and one of class 1.
        normals: float64 [P, 2], n of each boundary.
        offsets: float64 [P], b of each boundary.
        per_pair: float64 [P], the share of all points that a boundary misclassifies.
        misclassified: its mean.
        standard_error: of that mean over the pairs (the points are fixed).
        ratio: variance ratio of the theorem, measured on the points.
    """

    points: np.ndarray
    class_ids: np.ndarray
    pairs: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray
    per_pair: np.ndarray
    misclassified: float
    standard_error: float
    ratio: float

    def __str__(self) -> str:
        return (
            f"misclassified {100 * self.misclassified:.2f} % +- {100 * self.standard_error:.2f} (one standard error, "
            f"{len(self.pairs):,} pairs) at the variance ratio {self.ratio:.3f}"
        )


def bisectors(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maximum-margin boundaries `n.p = b` of pairs of points.

    Args:
        x: [P, D].
        y: [P, D].

    Returns:
        (n [P, D], b [P]); points with n.p >= b are nearer to x, or as near.
    """
    return x - y, (np.einsum("pd,pd->p", x, x) - np.einsum("pd,pd->p", y, y)) / 2


def misclassified_by(
    normals: np.ndarray, offsets: np.ndarray, points: np.ndarray, class_ids: np.ndarray
) -> np.ndarray:
    """Returns the share of points [P] on the wrong side of each boundary.

    Args:
        normals: n [P, D], from class 1 to class 0.
        offsets: b [P].
        points: [N, D].
        class_ids: int [N], 0 or 1.
    """
    given = np.where(points @ normals.T >= offsets, 0, 1)  # [N, P]
    return (given != class_ids[:, None]).mean(axis=0)


def one_shot_boundaries(
    ratio: float, points: int = 200, draws: int = 2000, elongation: float = 3.0, seed: int = 0
) -> Boundaries:
    """Draws two separable classes at a variance ratio, and the boundaries of random one-shot pairs.

    Args:
        ratio: (Var X + Var Y) / Var U of the two ellipses; the points' own differs from it by chance.
        points: of each class.
        draws: pairs; the two examples themselves count among the points.
        elongation: height over width of an ellipse.
        seed: the same seed draws the same points, scaled, and the same pairs at every ratio.

    Returns:
        Boundaries.

    Raises:
        ValueError: a ratio at which the ellipses would overlap, fewer than two points or draws.

    Example:
        >>> print(one_shot_boundaries(1.2), one_shot_boundaries(0.15), sep="\\n")

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Figure 1.
    """
    highest = 2 * (1 + elongation**2) / (5 + elongation**2)
    if not 0 < ratio < highest:
        raise ValueError(
            f"Ellipses {elongation:g} times as high as wide are separable below the ratio {highest:.3f}. "
            f"Received: ratio={ratio}."
        )
    if points < 2 or draws < 2:
        raise ValueError(f"There must be two points and two draws at least. Received: points={points}, draws={draws}.")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    radius, angle = np.sqrt(random.random((2, points, 1))), 2 * math.pi * random.random((2, points, 1))
    discs = radius * np.concatenate([np.cos(angle), np.sin(angle)], axis=2)  # [2, N, 2], uniform; variance 1/4 each way
    width = math.sqrt(2 * ratio / (1 + elongation**2))  # half of it: (1 + k^2) width^2 / 4 is r/2
    middle = np.array([[-0.5, 0.0], [0.5, 0.0]]) * distance_at(ratio, ratio / 2, ratio / 2)
    classes = discs * (width * np.array([1.0, elongation])) + middle[:, None]  # [2, N, 2]
    pairs = random.integers(points, size=(draws, 2)) + np.array([0, points])
    where, class_ids = classes.reshape(2 * points, 2), np.repeat([0, 1], points)
    normals, offsets = bisectors(where[pairs[:, 0]], where[pairs[:, 1]])
    per_pair = misclassified_by(normals, offsets, where, class_ids)
    means = classes.mean(axis=1)  # [2, 2]
    first, second = ((classes - means[:, None]) ** 2).sum(axis=2).mean(axis=1)  # the variances of both
    return Boundaries(
        where, class_ids, pairs, normals, offsets, per_pair, float(per_pair.mean()),
        float(per_pair.std(ddof=1) / math.sqrt(draws)),
        variance_ratio_of(float(first), float(second), float(np.linalg.norm(means[0] - means[1]))),
    )


def draw_boundaries(high: Boundaries, low: Boundaries, lines: int = 12) -> Figure:
    """Draws two classes at a high and at a low variance ratio, with the boundaries of their first pairs.

    One pair is marked, with the points that it misclassifies: that of the first pairs whose misclassified fraction
    is closest to the mean. The dashed line in the middle separates the classes without a mistake.

    Args:
        high: of `one_shot_boundaries`, for the left panel.
        low: for the right panel.
        lines: boundaries to draw in each.

    Returns:
        matplotlib Figure, bound to no window: save it with `figure.savefig(...)`.

    Raises:
        ValueError: fewer than one line, or more than there are.

    Example:
        >>> draw_boundaries(one_shot_boundaries(1.2), one_shot_boundaries(0.15)).savefig("figure1.png", dpi=150)
    """
    if not 1 <= lines <= min(len(high.pairs), len(low.pairs)):
        raise ValueError(f"There must be a boundary for every line. Received: lines={lines}.")
    figure = new_figure(7.8, 4.7)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    reach = 1.08 * np.abs(np.concatenate([high.points, low.points])).max(axis=0)
    for panel, title, drawn in zip(panels, ("a) high", "b) low"), (high, low), strict=True):
        _draw_panel(panel, drawn, lines)
        panel.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), aspect="equal", xticks=[], yticks=[])
        panel.set_title(
            f"{title} variance ratio: {drawn.ratio:.2f}\n"
            f"misclassified: {100 * drawn.misclassified:.1f} % ± {100 * drawn.standard_error:.1f}",
            fontsize="medium",
        )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _draw_panel(panel: Axes, drawn: Boundaries, lines: int) -> None:
    typical = int(np.argmin(np.abs(drawn.per_pair[:lines] - drawn.misclassified)))
    for class_id in (0, 1):
        panel.plot(*drawn.points[drawn.class_ids == class_id].T, linestyle="none", marker=MARKERS[class_id],
                   markersize=3.5, markerfacecolor="none", markeredgecolor=COLOURS[class_id], markeredgewidth=0.8,
                   label=f"class {class_id + 1}", zorder=2)
    panel.axvline(0, color="black", linestyle=(0, (5, 3)), linewidth=1.4, label="a line that separates them", zorder=4)
    for number in range(lines):
        along = np.array([-drawn.normals[number, 1], drawn.normals[number, 0]])
        start = drawn.normals[number] * drawn.offsets[number] / (drawn.normals[number] @ drawn.normals[number])
        first, thick = number == 0, number == typical
        panel.axline(start, start + along, color="black" if thick else "#555555", linewidth=2.2 if thick else 0.7,
                     alpha=1.0 if thick else 0.6, zorder=5 if thick else 3,
                     label="one-shot boundaries" if first and not thick else None)
    wrong = np.where(drawn.points @ drawn.normals[typical] >= drawn.offsets[typical], 0, 1) != drawn.class_ids
    for class_id in (0, 1):
        panel.plot(*drawn.points[wrong & (drawn.class_ids == class_id)].T, linestyle="none",
                   marker=MARKERS[class_id], markersize=4.5, color=COLOURS[class_id], zorder=2,
                   label=None if class_id else "filled: misclassified by the thick one")
    panel.plot(*drawn.points[drawn.pairs[typical]].T, linestyle=":", linewidth=1.2, color="black", marker="*",
               markersize=15, markerfacecolor="#F0E442", markeredgecolor="black", zorder=6,
               label="a typical pair; its boundary is thick")
