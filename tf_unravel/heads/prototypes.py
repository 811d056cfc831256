"""Nearest class mean, the head of ProtoNet (Snell, Swersky, Zemel, 2017, equations 1 and 2).

    p_m = mean of the support features of class m
    logits_m = -||q - p_m||^2     (divided by D with normalize=True, as MetaOptNet does)

Read from inner products alone: with M the [S, W] matrix that averages each class,

    ||q - p_m||^2 = n - 2 (k M)_m + (M^T K M)_mm.

| symbol  | name          | shape     |
|---------|---------------|-----------|
| M       | weights       | [T, S, W] |
| K, k, n | Kernels       |           |
| p       | prototypes    | [T, W, D] |

Degenerate case: one shot per class is the nearest neighbour.
"""

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tf_unravel.adaptation.labels import Ways
from tf_unravel.heads.inner_products import (
    InnerProductHead,
    Kernels,
    as_features,
    checked,
    one_hot_targets,
    same_type,
)


def averaging_weights(targets: tf.Tensor) -> tf.Tensor:
    """M = Y diag(1 / shots), [T, S, W]: X^T M are the class means, shots may differ between classes."""
    return tf.math.divide_no_nan(targets, tf.reduce_sum(targets, axis=1, keepdims=True))


def squared_distances(inner: Kernels, weights: tf.Tensor) -> tf.Tensor:
    """||q - p||^2 = n - 2 k M + diag(M^T K M), [T, Q, W]; rounding can leave values of order eps * n below zero."""
    prototype_norms = tf.reduce_sum(weights * tf.matmul(inner.support, weights), axis=1)  # [T, W]
    cross = tf.matmul(inner.cross, weights)  # [T, Q, W]
    return (inner.query_norms[:, :, None] - 2.0 * cross) + prototype_norms[:, None, :]


@dataclass(frozen=True)
class Prototypes(InnerProductHead):
    """Nearest class mean by squared Euclidean distance.

    logits = -||q - p||^2, or -||q - p||^2 / D.

    Args:
        normalize: divide the distances by the number of features D (MetaOptNet's convention). The prediction is the
            same; it acts as a temperature in training. Default False.

    Example:
        >>> support = tf.constant([[[0.0, 0.0], [4.0, 0.0]]])
        >>> Prototypes()(support, tf.constant([[0, 1]]), tf.constant([[[1.0, 0.0]]]), ways=2).numpy().tolist()
        [[[-1.0, -9.0]]]

    Reference: Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """

    normalize: bool = False
    name: ClassVar[str] = "prototypes"
    translation_invariant: ClassVar[bool] = True

    def solve(self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways) -> tuple[tf.Tensor, ...]:
        """The mean of the support set [T, 1, D], and the prototypes relative to it [T, W, D]."""
        support = as_features("support", support)
        # Distances do not change under a shift, inner products do: a large common offset would cancel badly.
        centre = tf.stop_gradient(tf.reduce_mean(support, axis=1, keepdims=True))
        weights = averaging_weights(one_hot_targets(support_labels, ways, support.dtype))
        return centre, tf.matmul(weights, support - centre, transpose_a=True)

    def decide(self, solved: tuple[tf.Tensor, ...], query: tf.Tensor, ways: Ways) -> tf.Tensor:
        query, centre, prototypes = same_type(as_features("query", query), *solved)
        query -= centre
        prototype_norms = tf.reduce_sum(tf.square(prototypes), axis=-1)  # [T, W]
        cross = tf.matmul(query, prototypes, transpose_b=True)  # [T, Q, W]
        query_norms = tf.reduce_sum(tf.square(query), axis=-1)  # [T, Q]
        distances = (query_norms[:, :, None] - 2.0 * cross) + prototype_norms[:, None, :]
        return checked(self._scaled(distances, tf.shape(query)[2]))

    def logits(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        weights = averaging_weights(one_hot_targets(support_labels, ways, inner.support.dtype))
        return checked(self._scaled(squared_distances(inner, weights), inner.dimension))

    def _scaled(self, distances: tf.Tensor, dimension: int | tf.Tensor) -> tf.Tensor:
        if not self.normalize:
            return -distances
        return -distances / tf.cast(dimension, distances.dtype)
