"""How tightly the classes of a feature space cluster: r_fc and r_hv as Tables 2 and 4 report them.

Two estimators, each the mean over random pairs of classes (a, b) with two samples each, x1, x2 of a and y1, y2 of b:

    r_fc = S_w / S_b,  the raw scatter ratio of the four features (2 classes, 2 samples: the factor C/N is 1)
         = (|x1 - x2|^2 + |y1 - y2|^2) / |(x1 + x2)/2 - (y1 + y2)/2|^2
    r_hv = ( |d1 - d2| / ((|d1| + |d2|) / 2) )^2,  d1 = x1 - y1,  d2 = x2 - y2

and one ratio over all features, by definition:

    variance_ratio = sum_ij |f_ij - m_i|^2 / sum_i |m_i - m|^2 * C / N

with m_i the mean of class i, m the mean of all N features, C classes. The paper prints r_hv without the square and with
a sum in the denominator, which is at most 1, but reports up to 1.94: the reported one is 4 times its square.

With w the variance within a class and b the squared distance of two class means, x = w / b, the ratios of expectations
are r_fc = 4x/(1+x) and r_hv = 4x/(1+2x), so that r_hv = 4 r_fc / (4 + r_fc): a check that any honest pair of
measurements passes roughly (the rows of Tables 2 and 4 within 6 %). It holds pair by pair too, up to the angle between
x1 - x2 and y1 - y2 and to unequal |d1| and |d2|; as the curve is concave, r_hv falls below its value at the mean r_fc
the more the pairs differ. As classes collapse onto each other r_fc tends to 4 and r_hv to 2; with perfectly tight
classes both are 0.

Degenerate pairs have no ratio: two class means that coincide (r_fc), or d1 = d2 = 0 (r_hv). They are left out of the
mean and counted; where no pair is left, and for variance_ratio where all class means coincide, the value is NaN.
(The authors add 1e-6 and 1e-4 to the denominators instead, which depends on the scale of the features.)

| symbol      | name                | shape           |
|-------------|---------------------|-----------------|
| f           | features            | [N, D]          |
| x1 x2 y1 y2 | indices             | [P, 4]          |
| w, b        | within, between     | [P] per pair    |
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_CHUNK_BYTES = 4 << 20  # stays in cache: four times faster than 64 MB


@dataclasses.dataclass(frozen=True)
class ClassSeparation:
    """The measurements of `class_separation`.

    Attributes:
        r_fc: mean scatter ratio of two classes with two samples each, as reported in Tables 2 and 4.
        r_fc_error: its standard error over the pairs drawn (images are fixed).
        r_hv: mean hyperplane variation of such pairs, squared form, as reported in Tables 2 and 4.
        r_hv_error: its standard error over the pairs drawn.
        variance_ratio: variance within classes over variance of the class means, all features.
        num_pairs: pairs drawn.
        num_skipped: pairs without a ratio, because class means or samples coincide.
        seed: of the pairs.
    """

    r_fc: float
    r_fc_error: float
    r_hv: float
    r_hv_error: float
    variance_ratio: float
    num_pairs: int
    num_skipped: int
    seed: int

    @property
    def expected_r_hv(self) -> float:
        """4 r_fc / (4 + r_fc): what r_fc leads one to expect of r_hv."""
        return 4 * self.r_fc / (4 + self.r_fc)

    def __str__(self) -> str:
        skipped = f", {self.num_skipped:,} without a ratio" if self.num_skipped else ""
        return (
            f"r_fc {self.r_fc:.3f} +- {self.r_fc_error:.3f}, r_hv {self.r_hv:.3f} +- {self.r_hv_error:.3f} "
            f"(expected from r_fc: {self.expected_r_hv:.3f}), variance ratio {self.variance_ratio:.3f} "
            f"(reported estimators, one standard error, {self.num_pairs:,} pairs{skipped})"
        )


def class_separation(
    features: np.ndarray, class_ids: np.ndarray, num_pairs: int = 10000, seed: int = 0
) -> ClassSeparation:
    """Returns r_fc and r_hv as reported in Tables 2 and 4, and the variance ratio.

    Sums are float64 and in chunks; the features are not copied.

    Args:
        features: [N, D].
        class_ids: int [N], at least two classes of at least two images.
        num_pairs: pairs of classes to average over.
        seed: the same seed draws the same images for every feature space.

    Returns:
        ClassSeparation.

    Raises:
        ValueError: shapes that do not fit, too few classes or images, features that are not finite.

    Example:
        >>> print(class_separation(tf_unravel.evaluation.extract_features(backbone, test.images), test.class_ids))

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, sections 4.2 to 4.6.
    """
    if num_pairs < 2:
        raise ValueError(f"A standard error needs at least 2 pairs. Received: num_pairs={num_pairs}.")
    features, class_ids, sizes = _checked(features, class_ids)
    fc, hv = _pair_ratios(features, _pairs(class_ids, sizes, num_pairs, seed))
    has_fc, has_hv = ~np.isnan(fc), ~np.isnan(hv)
    skipped = int(num_pairs - np.count_nonzero(has_fc & has_hv))
    ratio = variance_ratio(features, class_ids)
    return ClassSeparation(*_mean_and_error(fc[has_fc]), *_mean_and_error(hv[has_hv]), ratio, num_pairs, skipped, seed)


def pair_ratios(
    features: np.ndarray, class_ids: np.ndarray, num_pairs: int = 10000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scatter ratio and the hyperplane variation of every pair of classes that `class_separation` draws.

    Pair p is the same four images for every feature space, so that two extractors can be compared by the differences
    of their values, whose error is smaller than that of a difference of means.

    Args:
        features: [N, D].
        class_ids: int [N], at least two classes of at least two images.
        num_pairs: pairs of classes to draw.
        seed: the same seed draws the same images for every feature space.

    Returns:
        (r_fc, r_hv), each float64 [P]; NaN where a pair has no ratio.

    Raises:
        ValueError: shapes that do not fit, too few classes, images or pairs, features that are not finite.

    Example:
        >>> (a, _), (b, _) = (pair_ratios(features, test.class_ids) for features in (classical, clustered))
        >>> saved = np.nanmean(a - b)
    """
    if num_pairs < 1:
        raise ValueError(f"There must be at least 1 pair. Received: num_pairs={num_pairs}.")
    features, class_ids, sizes = _checked(features, class_ids)
    return _pair_ratios(features, _pairs(class_ids, sizes, num_pairs, seed))


def variance_ratio(features: np.ndarray, class_ids: np.ndarray) -> float:
    """Returns the variance within classes over the variance of the class means, from all features.

    `sum_ij |f_ij - m_i|^2 / sum_i |m_i - m|^2 * C / N`, with N the number of all features.

    Args:
        features: [N, D].
        class_ids: int [N], 0..C-1.

    Returns:
        The ratio; NaN if all class means coincide.
    """
    sizes = np.bincount(class_ids)
    classes = np.split(np.argsort(class_ids, kind="stable"), np.cumsum(sizes)[:-1])
    means = np.empty((len(classes), features.shape[1]), np.float64)  # [C, D]
    within = 0.0
    for mean, members in zip(means, classes, strict=True):
        blocks = [members[rows] for rows in _chunks(len(members), features.shape[1])]
        mean[:] = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(members)
        within += sum(_squared(features[block] - mean).sum() for block in blocks)
    between = float(_squared(means - sizes @ means / len(features)).sum())
    return float(within) / between * len(classes) / len(features) if between > 0 else math.nan


def _checked(features: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the features, the class ids as 0..C-1 and the sizes of the classes [C], or says what is wrong."""
    features, class_ids = np.asarray(features), np.asarray(class_ids)
    if features.ndim != 2 or class_ids.shape != features.shape[:1]:
        raise ValueError(
            "Features must be [N, D] with class ids [N]. "
            f"Received: features {features.shape}, class_ids {class_ids.shape}."
        )
    names, class_ids, sizes = np.unique(class_ids, return_inverse=True, return_counts=True)
    if len(names) < 2 or sizes.min() < 2:
        raise ValueError(
            "Class separation needs at least two classes with two images each. "
            f"Received: {len(names)} classes, the smallest with {sizes.min() if len(sizes) else 0} images."
        )
    if not all(np.isfinite(features[rows]).all() for rows in _chunks(*features.shape)):
        raise ValueError("Features must be finite; the backbone has probably diverged. Received: NaN or infinity.")
    return features, class_ids, sizes


def _pair_ratios(features: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns r_fc [P] and r_hv [P] of pairs [P, 4]; NaN where the denominator is 0."""
    within, between, d1, d2, change = _pair_distances(features, indices)
    fc, hv = np.full((2, len(indices)), math.nan)
    np.divide(within, between, out=fc, where=between > 0)
    np.divide(change, ((np.sqrt(d1) + np.sqrt(d2)) / 2) ** 2, out=hv, where=d1 + d2 > 0)
    return fc, hv


def _pairs(class_ids: np.ndarray, sizes: np.ndarray, num_pairs: int, seed: int) -> np.ndarray:
    """Draws two different classes and two different images of each; returns indices [P, 4] of x1, x2, y1, y2."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    order, starts = np.argsort(class_ids, kind="stable"), np.cumsum(sizes) - sizes
    first = random.integers(len(sizes), size=num_pairs)
    second = random.integers(len(sizes) - 1, size=num_pairs)
    classes = np.stack([first, second + (second >= first)], axis=1)  # [P, 2]
    one = random.integers(sizes[classes])  # [P, 2]
    other = random.integers(sizes[classes] - 1)
    images = np.stack([one, other + (other >= one)], axis=2)  # [P, 2, 2]
    return order[starts[classes][:, :, None] + images].reshape(num_pairs, 4)  # [P, 4]


def _pair_distances(features: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns [5, P]: S_w * 2, |mx - my|^2, |d1|^2, |d2|^2 and |d1 - d2|^2 of each pair."""
    distances = np.empty((5, len(indices)), np.float64)
    for rows in _chunks(len(indices), 4 * features.shape[1]):
        x1, x2, y1, y2 = np.moveaxis(features[indices[rows]].astype(np.float64, copy=False), 1, 0)  # each [p, D]
        d1, d2 = x1 - y1, x2 - y2
        distances[0, rows] = _squared(x1 - x2) + _squared(y1 - y2)
        distances[1, rows] = _squared(d1 + d2) / 4
        distances[2, rows], distances[3, rows], distances[4, rows] = _squared(d1), _squared(d2), _squared(d1 - d2)
    return distances


def _squared(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("pd,pd->p", vectors, vectors)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def _chunks(count: int, numbers_per_row: int) -> list[slice]:
    rows = max(1, _CHUNK_BYTES // (8 * numbers_per_row))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
