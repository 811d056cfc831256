"""None of these: whether an image is of any class of the support set.

    s(q) = max_m cos(q, p_m),   p_m the mean of the support features of class m                              (1)
    s_i  = the same of support image i, its own class's mean taken without it:  (n p_y - x_i) / (n - 1)      (2)
    p_known = (p_0 + |{i: s_i <= s(q)}|) / (1 + N)                                                           (3)

N support images have others of their class beside them and so an s_i. p_known is the share of known images that look as
strange as q or stranger: answering "unknown" where it is at most a rate raises false alarms at about that rate. p_0 is
the same share among images of other classes that the network has met (`Prior.similarities`), and 1 where there are
none: then (3) is the p-value of conformal prediction, whose false alarms are at most the rate if known images look like
the support set. No answer is "unknown" there at a rate below 1 / (1 + N). p_0 takes the part of the uniform number of
a smoothed p-value.

The similarity (1) is the best of what was measured (docs/guides/how_sure.md): better than the largest probability of
Hendrycks and Gimpel, the largest logit, the energy, and Euclidean distances. It does not depend on the head.

| symbol | name         | shape     |
|--------|--------------|-----------|
| x, q   | support, query | [T, S, D], [T, Q, D] |
| p      | means        | [T, W, D] |
| s_i    | known        | [T, S]    |

Reference: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", ICLR 2017; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005.
"""

import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.calibration import ranks
from tf_unravel.adaptation.labels import Ways


def class_means(support: tf.Tensor, labels: tf.Tensor, ways: Ways) -> tf.Tensor:
    """p [T, W, D] of support features [T, S, D] with labels [S]."""
    of_class = tf.one_hot(labels, ways, dtype=support.dtype)  # [S, W]
    return tf.einsum("sw,tsd->twd", of_class / tf.reduce_sum(of_class, axis=0), support)


def similarities(query: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    """s [T, Q] of equation (1)."""
    return tf.reduce_max(_cosines(query, means), axis=-1)


def left_out_similarities(support: tf.Tensor, labels: tf.Tensor, means: tf.Tensor, ways: Ways) -> tf.Tensor:
    """s_i [T, S] of equation (2); infinity for the only image of a class."""
    _, count = ranks(labels, ways)
    n = tf.cast(count, support.dtype)[:, None]  # [S, 1]
    without = tf.math.divide_no_nan(n * tf.gather(means, labels, axis=1) - support, n - 1.0)  # [T, S, D]
    own = tf.reduce_sum(_unit(support) * _unit(without), axis=-1)  # [T, S]
    mine = tf.one_hot(labels, ways, dtype=tf.bool, on_value=True, off_value=False)  # [S, W]
    found = tf.reduce_max(tf.where(mine, own[..., None], _cosines(support, means)), axis=-1)
    return tf.where(count > 1, found, tf.constant(float("inf"), found.dtype))


def _cosines(points: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    return tf.matmul(_unit(points), _unit(means), transpose_b=True)  # [T, Q, W]


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(vectors, tf.norm(vectors, axis=-1, keepdims=True))


def p_known(found: tf.Tensor, known: tf.Tensor, quantiles: tuple[float, ...]) -> tf.Tensor:
    """p_known [T, Q] of equation (3).

    Args:
        found: s of the queries, [T, Q].
        known: s_i, [T, S]; those that are infinite do not count.
        quantiles: see `Prior.similarities`.
    """
    below = _counts(known, found)
    total = tf.reduce_sum(tf.cast(tf.math.is_finite(known), found.dtype), axis=-1, keepdims=True)  # [T, 1]
    others = tf.constant(quantiles, found.dtype)[None]  # [1, quantiles]
    p_0 = (1.0 + _counts(others, found)) / (1.0 + len(quantiles))
    return (p_0 + below) / (1.0 + total)


def lowest(compared: int, quantiles: int) -> float:
    """The smallest p_known that there can be: no rate of false alarms below it ever answers "unknown".

    Args:
        compared: N, support images in classes of two or more.
        quantiles: how many `Prior.similarities` has.
    """
    return 1.0 / (1.0 + quantiles) / (1.0 + compared)


def is_unknown(p_known: np.ndarray, rate: float) -> np.ndarray:
    """Whether to answer "unknown" at a rate of false alarms; p_known is float32, and may be the rate itself."""
    return p_known <= rate * (1 + 1e-6)


def check_rate(rate: float) -> None:
    """Raises ValueError for a rate of false alarms outside 0..1."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"The rate of false alarms lies between 0 and 1, such as 0.05. Received: {rate}.")


def _counts(values: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """How many values [T, N] are at most each limit [T, Q]: [T, Q]."""
    return tf.reduce_sum(tf.cast(values[:, None] <= limits[..., None], limits.dtype), axis=-1)
