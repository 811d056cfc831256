"""Theorem 1 tried: families of distributions over a grid of variance ratios, drawn beside the bound (see `theorem`).

How loose is it? One rare outlier on the way to the other class, just past the middle (`outlier`), is misclassified
with about the probability r: 1/32 of what the bound allows. No other family here comes close at small r, and none of
the discrete distributions that a numerical search went through was misclassified more often than r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import COLOURS, LINES, MARKERS, new_figure
from tf_unravel.reproduction.theory.theorem import (
    VACUOUS_FROM,
    Classes,
    Sampler,
    bound,
    distance_at,
    one_shot_accuracy,
    tighter_bound,
    variance_ratio_of,
)

RATIOS = tuple(float(ratio) for ratio in np.logspace(-4, 0, 13))


def gaussian(ratio: float, dimension: int, variance_y: float = 1.0) -> Classes:
    """Isotropic normal distributions of variances 1 and `variance_y`."""
    return _apart(_normal(np.ones(dimension)), ratio, variance_y)


def stretched(ratio: float, dimension: int) -> Classes:
    """Normal distributions of standard deviations 1, 1/2, 1/3, ..., the first along the line between the means."""
    return _apart(_normal(1 / np.arange(1, dimension + 1)), ratio)


def student(ratio: float, dimension: int, degrees: int = 3) -> Classes:
    """Student's t with heavy tails: normal points, each divided by the root of its own chi-squared variable."""
    normal = _normal(np.ones(dimension))

    def noise(random: np.random.Generator, count: int) -> np.ndarray:
        return normal(random, count) * np.sqrt((degrees - 2) / random.chisquare(degrees, (count, 1)))

    return _apart(noise, ratio)


def two_points(ratio: float, dimension: int) -> Classes:
    """Each class is two points, equally likely, on the line between the means."""

    def noise(random: np.random.Generator, count: int) -> np.ndarray:
        return _on_axis(2.0 * random.integers(2, size=count) - 1, dimension)

    return _apart(noise, ratio)


def outlier(ratio: float, dimension: int) -> Classes:
    """X is 0 and rarely 1, Y is a point c: with c just below 2 the outliers are mistaken whenever x is 0.

    The outliers have the probability p that gives the ratio, p ~ ratio where that is small; beyond p = 1/2 the
    ratio grows by bringing c closer.
    """
    far = distance_at(ratio, 0.25, 0.0)
    c = 2 - 1e-6
    if ratio < variance_ratio_of(0.25, 0.0, c - 0.5):
        # p (1 - p) (4 - 2 r) = r (c - p)^2, as a p^2 - b p + r c^2 = 0: the smaller root
        a, b = 4 - ratio, 4 - 2 * ratio + 2 * c * ratio
        p = 2 * ratio * c**2 / (b + math.sqrt(b**2 - 4 * a * ratio * c**2))
    else:
        p, c = 0.5, 0.5 + far

    def sample_x(random: np.random.Generator, count: int) -> np.ndarray:
        return _on_axis((random.random(count) < p).astype(np.float64), dimension)

    def sample_y(random: np.random.Generator, count: int) -> np.ndarray:
        return _on_axis(np.full(count, c), dimension)

    return Classes(sample_x, sample_y, p * (1 - p), 0.0, c - p)


def y_is_a_point(ratio: float, dimension: int) -> Classes:
    """X is normal, Y has no variance."""
    return gaussian(ratio, dimension, variance_y=0.0)


def y_is_wide(ratio: float, dimension: int) -> Classes:
    """Normal distributions, Var Y = 9 Var X."""
    return gaussian(ratio, dimension, variance_y=9.0)


FAMILIES: dict[str, Callable[[float, int], Classes]] = {
    "outlier": outlier,
    "Student t, 3 degrees": student,
    "two points": two_points,
    "stretched Gaussian": stretched,
    "Gaussian": gaussian,
    "Gaussian, Y a point": y_is_a_point,
    "Gaussian, Var Y = 9 Var X": y_is_wide,
}


class Record(NamedTuple):
    """What was seen of one family at one ratio.

    Attributes:
        family: its name.
        dimension: D.
        ratio: (Var X + Var Y) / Var U, of the distributions.
        accuracy: share of the test points that were called right.
        standard_error: of the accuracy.
        bound: `bound(ratio)`.
        draws: behind the accuracy.
    """

    family: str
    dimension: int
    ratio: float
    accuracy: float
    standard_error: float
    bound: float
    draws: int

    @property
    def holds(self) -> bool:
        """Whether the accuracy is not below the bound by more than four standard errors."""
        return self.accuracy + 4 * self.standard_error >= self.bound


def check(
    ratios: Sequence[float] = RATIOS,
    dimensions: Sequence[int] = (1, 2, 64),
    families: Mapping[str, Callable[[float, int], Classes]] | None = None,
    draws: int = 100_000,
    seed: int = 0,
) -> list[Record]:
    """Measures the one-shot accuracy of several families of distributions over a grid of ratios.

    Args:
        ratios: above 0 and at most 2; the bound says something below 1/33.
        dimensions: D.
        families: name -> function (ratio, dimension) -> Classes; None for `FAMILIES`. In one dimension the stretched
            Gaussian is the Gaussian.
        draws: of (x, y, z), for each record.
        seed: the same seed draws the same noise at every ratio, so that curves are smooth.

    Returns:
        A record for each family, dimension and ratio, in this order.

    Raises:
        ValueError: a ratio that no two classes have, fewer than two draws.

    Example:
        >>> all(record.holds for record in check())
        True

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Theorem 1.
    """
    records = []
    for name, family in (FAMILIES if families is None else families).items():
        for dimension in dimensions:
            for ratio in ratios:
                classes = family(ratio, dimension)
                accuracy, error = one_shot_accuracy(classes, draws, seed)
                records.append(Record(name, dimension, classes.ratio, accuracy, error, bound(classes.ratio), draws))
    return records


def _apart(noise: Sampler, ratio: float, variance_y: float = 1.0) -> Classes:
    """X is noise of variance 1 about 0, Y noise of variance `variance_y` at the distance that gives the ratio."""
    distance = distance_at(ratio, 1.0, variance_y)

    def sample_y(random: np.random.Generator, count: int) -> np.ndarray:
        points = math.sqrt(variance_y) * noise(random, count)  # [n, D]
        points[:, 0] += distance
        return points

    return Classes(noise, sample_y, 1.0, variance_y, distance)


def _normal(deviations: np.ndarray) -> Sampler:
    """Normal noise with standard deviations in these proportions [D] and the variance 1 in all."""
    deviations = deviations / np.linalg.norm(deviations)
    return lambda random, count: random.standard_normal((count, len(deviations))) * deviations


def _on_axis(values: np.ndarray, dimension: int) -> np.ndarray:
    points = np.zeros((len(values), dimension))  # [n, D]
    points[:, 0] = values
    return points


def draw_theorem(records: Sequence[Record]) -> Figure:
    """Draws the misclassified fraction against the variance ratio, beside what the theorem allows.

    A panel for each dimension. Both axes are logarithmic: a curve ends where not one draw was misclassified. Bars are
    two standard errors to each side.

    Args:
        records: of `check`.

    Returns:
        matplotlib Figure, bound to no window: save it with `figure.savefig(...)`.

    Raises:
        ValueError: nothing to draw.

    Example:
        >>> draw_theorem(check()).savefig("theorem.png", dpi=150)
    """
    if not records:
        raise ValueError("There is nothing to draw. Received: no records.")
    dimensions = list(dict.fromkeys(record.dimension for record in records))
    families = list(dict.fromkeys(record.family for record in records))
    low, high = min(r.ratio for r in records) / 1.3, max(r.ratio for r in records) * 1.3
    floor = 0.03 / max(r.draws for r in records)
    grid = np.geomspace(low, min(high, 0.999), 400)
    figure = new_figure(3.6 * len(dimensions) + 0.4, 4.7)
    panels = figure.subplots(1, len(dimensions), squeeze=False, sharex=True, sharey=True)[0]
    for panel, dimension in zip(panels, dimensions, strict=True):
        if high > VACUOUS_FROM:
            panel.axvspan(VACUOUS_FROM, high, facecolor="#EDEDED", edgecolor="none", zorder=0)
            says = "vacuous from 1/33 on:\nthe theorem allows\nany number of errors"
            panel.text(math.sqrt(VACUOUS_FROM * high), floor * 1.4, says, ha="center", va="bottom",
                       fontsize="x-small", color="#444444")
        for of, style, label in ((bound, "-", "theorem 1:  32 r / (1 - r)"),
                                 (tighter_bound, (0, (4, 2)), "same proof, true Var U:  16 r / (2 - r)")):
            allowed = np.array([1 - of(ratio) for ratio in grid])
            panel.plot(grid[allowed <= 1], allowed[allowed <= 1], color="black", linestyle=style, linewidth=1.8,
                       label=label, zorder=3)
        for number, family in enumerate(families):
            seen = [r for r in records if (r.dimension, r.family) == (dimension, family) and r.accuracy < 1]
            panel.errorbar(
                [r.ratio for r in seen],
                [1 - r.accuracy for r in seen],
                [[min(2 * r.standard_error, (1 - r.accuracy) * 0.9) for r in seen],
                 [2 * r.standard_error for r in seen]],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=LINES[number % len(LINES)],
                markersize=4.5,
                markerfacecolor="white",
                linewidth=1.2,
                elinewidth=0.7,
                label=family,
                zorder=4,
            )
        panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, 1.6),
                  title=f"{dimension} dimension{'s' if dimension > 1 else ''}", xlabel="variance ratio r")
        panel.tick_params(labelsize="small")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("misclassified fraction")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(panels)), frameon=False,
                  fontsize="small")
    return figure
