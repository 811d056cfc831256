"""How often one example of each class is enough: Theorem 1, its bound, and what actually happens.

Two classes X and Y, one example of each, x ~ X and y ~ Y, and a test point z ~ X. The maximum-margin line between x
and y calls z right where

    z.(x - y) - |x|^2 / 2 + |y|^2 / 2 >= 0,  that is  |z - x| <= |z - y|

The theorem: if r = (Var X + Var Y) / Var U < eps, then z is called right with probability at least

    bound(eps) = 1 - 32 eps / (1 - eps)

with Var the expected squared distance to the mean (the trace of the covariance) and U the even mixture of X and Y. It
says something for eps < 1/33 only. As eps tends to 0 it tends to 1: classes that are points are never confused.

Is it right? Yes, with room to spare, though its proof (appendix B) uses another Var U than the one it defines. With
s = Var X + Var Y, d = |E X - E Y| and the proof's delta = d/4, the mixture has

    Var U = s/2 + d^2/4 = s/2 + 4 delta^2

(half of each class's variance, and two means at the distance d/2 from the middle). The proof writes s + 16 delta^2,
which is E|x - y|^2, more than twice as much. What the proof then needs is delta^2 >= s (1 - eps) / (16 eps). From the
true Var U, r < eps means 4 delta^2 > s/eps - s/2, so that

    delta^2 > s (2 - eps) / (8 eps) = s (4 - 2 eps) / (16 eps) > s (1 - eps) / (16 eps)

and the printed bound follows, for every eps < 1. Keeping the better delta^2, Chebyshev's (2 Var X + Var Y) / delta^2
<= 2 s / delta^2 gives

    tighter_bound(eps) = 1 - 16 eps / (2 - eps)

which says something up to eps < 2/17, and for small eps allows a quarter of the errors.

Three smaller things. The product of three Chebyshev bounds in (1) needs each factor in [0, 1] and x, y, z to be
independent ("sufficiently small eps"); the union bound gives its right-hand side without either. For eps > 1 the
printed expression exceeds 1, while r may be anything up to 2, where the means coincide: `bound` is -inf there. And
`r < eps` for every eps above r makes the bound at r itself hold too: it is drawn against r.

How loose is it? One rare outlier on the way to the other class, just past the middle (`outlier`), is misclassified
with about the probability r: 1/32 of what the bound allows. No other family here comes close at small r, and none of
the discrete distributions that a numerical search went through was misclassified more often than r.

Degenerate cases: two points that coincide have no ratio (NaN); with Var X = 0 no z is ever misclassified.

| symbol                 | name                     | shape   |
|------------------------|--------------------------|---------|
| x, y, z                | x, y, z                  | [n, D]  |
| Var X, Var Y           | variance_x, variance_y   | scalar  |
| d = 4 delta            | distance                 | scalar  |
| (Var X + Var Y)/Var U  | ratio                    | scalar  |
| eps                    | epsilon                  | scalar  |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tf_unravel.analysis.palette import COLOURS, LINES, MARKERS

Sampler = Callable[[np.random.Generator, int], np.ndarray]  # n -> float64 [n, D]

VACUOUS_FROM = 1 / 33
RATIOS = tuple(float(ratio) for ratio in np.logspace(-4, 0, 13))

_CHUNK_NUMBERS = 1 << 15  # stays in cache


def variance_ratio_of(variance_x: float, variance_y: float, distance: float) -> float:
    """Returns the ratio that the theorem bounds, `s / (s/2 + d^2/4)` with `s = Var X + Var Y`.

    Args:
        variance_x: Var X, the trace of its covariance.
        variance_y: Var Y.
        distance: d, between the two means.

    Returns:
        The ratio, 0 to 2; NaN where both classes are one and the same point.

    Raises:
        ValueError: something is negative.

    Example:
        >>> variance_ratio_of(1.0, 1.0, 6.0)  # 2 / (1 + 9)
        0.2

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Theorem 1.
    """
    if not min(variance_x, variance_y, distance) >= 0:
        received = f"Received: variance_x={variance_x}, variance_y={variance_y}, distance={distance}."
        raise ValueError(f"Variances and distances are not negative. {received}")
    total = variance_x + variance_y
    mixture = total / 2 + distance**2 / 4
    return total / mixture if mixture > 0 else math.nan


def distance_at(ratio: float, variance_x: float, variance_y: float) -> float:
    """Returns how far apart the means are at a ratio, `d = 2 sqrt(s (1/r - 1/2))`.

    Args:
        ratio: r, above 0 and at most 2.
        variance_x: Var X.
        variance_y: Var Y.

    Raises:
        ValueError: a ratio that no two classes have.
    """
    _check_ratio(ratio)
    return 2 * math.sqrt((variance_x + variance_y) * max(1 / ratio - 1 / 2, 0.0))


def bound(epsilon: float) -> float:
    """Returns the printed bound on the probability of a right answer, `1 - 32 eps / (1 - eps)`.

    Args:
        epsilon: the variance ratio, 0 or more.

    Returns:
        At most 1. It says nothing where it is 0 or less, from epsilon = 1/33 on; -inf from epsilon = 1 on.

    Raises:
        ValueError: epsilon is negative.

    Example:
        >>> bound(0.01)
        0.6767...

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Theorem 1 and appendix B.
    """
    _check_epsilon(epsilon)
    return 1 - 32 * epsilon / (1 - epsilon) if epsilon < 1 else -math.inf


def tighter_bound(epsilon: float) -> float:
    """Returns what the paper's proof gives with the true variance of the mixture, `1 - 16 eps / (2 - eps)`.

    Args:
        epsilon: the variance ratio, 0 or more.

    Returns:
        At most 1, and never below `bound`. It says nothing from epsilon = 2/17 on; -inf from epsilon = 2 on.

    Raises:
        ValueError: epsilon is negative.
    """
    _check_epsilon(epsilon)
    return 1 - 16 * epsilon / (2 - epsilon) if epsilon < 2 else -math.inf


def called_right(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Whether the classifier of the theorem gives z to the class of x.

    Args:
        x: [n, D], the example of class 1.
        y: [n, D], the example of class 2.
        z: [n, D], to be classified.

    Returns:
        bool [n]; a point as far from x as from y is given to class 1.
    """
    margin = np.einsum("nd,nd->n", z, x - y) - np.einsum("nd,nd->n", x, x) / 2 + np.einsum("nd,nd->n", y, y) / 2
    return margin >= 0


@dataclasses.dataclass(frozen=True)
class Classes:
    """Two distributions and what is known of them.

    Attributes:
        sample_x: (random generator, n) -> n points of X, float64 [n, D].
        sample_y: the same for Y.
        variance_x: Var X.
        variance_y: Var Y.
        distance: between their means.
    """

    sample_x: Sampler
    sample_y: Sampler
    variance_x: float
    variance_y: float
    distance: float

    @property
    def ratio(self) -> float:
        """The variance ratio of the theorem."""
        return variance_ratio_of(self.variance_x, self.variance_y, self.distance)


def one_shot_accuracy(classes: Classes, draws: int = 100_000, seed: int = 0) -> tuple[float, float]:
    """Returns how often a test point of X is called right, over random examples x and y and test points z.

    Args:
        classes: the two distributions.
        draws: of (x, y, z).
        seed: the same seed draws the same points.

    Returns:
        (accuracy, its standard error). Where every draw is right, or none, the standard error is 0 and the truth is
        known to about 3 / draws.

    Raises:
        ValueError: fewer than two draws.

    Example:
        >>> accuracy, error = one_shot_accuracy(FAMILIES["Gaussian"](0.1, 64))

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, Theorem 1.
    """
    if draws < 2:
        raise ValueError(f"A standard error needs at least 2 draws. Received: draws={draws}.")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    right, done = 0, 0
    together = max(1, _CHUNK_NUMBERS // classes.sample_x(random, 1).shape[1])
    while done < draws:
        count = min(together, draws - done)
        x, z = np.split(classes.sample_x(random, 2 * count), 2)  # each [n, D]
        right += int(np.count_nonzero(called_right(x, classes.sample_y(random, count), z)))
        done += count
    accuracy = right / draws
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / (draws - 1))


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
    _check_ratio(ratio)
    c = 2 - 1e-6
    if ratio < variance_ratio_of(0.25, 0.0, c - 0.5):
        # p (1 - p) (4 - 2 r) = r (c - p)^2, as a p^2 - b p + r c^2 = 0: the smaller root
        a, b = 4 - ratio, 4 - 2 * ratio + 2 * c * ratio
        p = 2 * ratio * c**2 / (b + math.sqrt(b**2 - 4 * a * ratio * c**2))
    else:
        p, c = 0.5, 0.5 + distance_at(ratio, 0.25, 0.0)

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


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 2:
        raise ValueError(f"A variance ratio is above 0 and at most 2. Received: ratio={ratio}.")


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"epsilon is 0 or more. Received: epsilon={epsilon}.")


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
    figure = Figure(figsize=(3.6 * len(dimensions) + 0.4, 4.7), layout="constrained")
    FigureCanvasAgg(figure)
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
