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
from collections.abc import Callable

import numpy as np

Sampler = Callable[[np.random.Generator, int], np.ndarray]  # n -> float64 [n, D]

VACUOUS_FROM = 1 / 33

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
        >>> accuracy, error = one_shot_accuracy(theorem_check.gaussian(0.1, 64))

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


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 2:
        raise ValueError(f"A variance ratio is above 0 and at most 2. Received: ratio={ratio}.")


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"epsilon is 0 or more. Received: epsilon={epsilon}.")
