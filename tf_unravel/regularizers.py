"""Regularizers: feature clustering (R_FC), hyperplane variation (R_HV), filter-normalised distance of weights.

Sections 4.1, 4.4, 4.5 and Note 1 of the paper. Each works alone in any Keras model: no state, differentiable,
XLA-compilable, float32 inside (float64 stays), half precision is cast up.

| paper                        | here                     | shape  |
|------------------------------|--------------------------|--------|
| phi_ij = f(x_ij)             | features                 | [B, D] |
| i                            | class_ids                | [B]    |
| mu_i, mu                     | class means, batch mean  |        |
| C, N                         | classes, images per class|        |
| x1, x2; y1, y2               | two samples of a class   |        |
| d1, d2                       | f(x1)-f(y1), f(x2)-f(y2) |        |

Three quantities share the name R_FC in the paper, and are kept apart here:

- `scatter` = sum_ij ||phi_ij - mu_i||^2 / sum_i ||mu_i - mu||^2, the raw ratio;
- scatter * C / N_total, a ratio of variances (`analysis.class_separation(...).variance_ratio`);
- scatter * C / N, the formula as printed.

Table 8's coefficients "include the C/N factor": they multiply the raw scatter, and so does `coefficient` here.

All of it is read off one matrix of inner products of the centred features [B, B], so a regularizer costs one matrix
product each way. The price is a rounding error of about 1e-7 of the batch's total variance in float32; that counts
only for a scatter below 1e-5.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# A ratio r becomes r / (1 + _SAFETY r), at most 1/_SAFETY: where classes coincide it is large, never NaN.
_SAFETY = 1e-6


class _Batch(NamedTuple):
    """Inner products and class structure of a batch; every field is [B, B] or [B]."""

    gram: tf.Tensor  # inner products of the centred features
    same: tf.Tensor  # 1 where two samples share a class
    rank: tf.Tensor  # how many samples of its class stand before each sample
    count: tf.Tensor  # size of each sample's class


@tf.custom_gradient
def _centred_gram(features: tf.Tensor) -> tf.Tensor:
    """Z Z^T of the centred features Z = (X - mean) / max |X|.

    No ratio changes when all features are scaled, so the scale is a constant to the gradient, and squares of 1e-20 or
    1e20 need neither vanish nor overflow. The gradient P (U + U^T) Z / max |X|, with P taking the mean out, is one
    matrix product where autodiff would take two and four passes over the features.
    """
    largest = tf.maximum(tf.reduce_max(features), -tf.reduce_min(features))
    scale = tf.stop_gradient(tf.math.divide_no_nan(tf.ones_like(largest), largest))
    centred = (features - tf.reduce_mean(features, axis=0, keepdims=True)) * scale  # [B, D]

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        weights = upstream + tf.transpose(upstream)  # [B, B]
        weights -= tf.reduce_mean(weights, axis=0, keepdims=True)
        return tf.matmul(scale * weights, centred)

    return tf.matmul(centred, centred, transpose_b=True), gradient


def _batch(features: tf.Tensor, class_ids: tf.Tensor) -> _Batch:
    features, class_ids = tf.convert_to_tensor(features), tf.convert_to_tensor(class_ids)
    if features.shape.rank != 2 or class_ids.shape.rank != 1:
        raise ValueError(
            "features must be [B, D] and class_ids [B]. "
            f"Received: features of shape {features.shape}, class_ids of shape {class_ids.shape}."
        )
    if features.dtype != tf.float64:
        features = tf.cast(features, tf.float32)
    same = tf.cast(class_ids[:, None] == class_ids[None, :], features.dtype)  # [B, B]
    before = tf.linalg.band_part(same, -1, 0) - tf.linalg.band_part(same, 0, 0)  # [B, B] strictly lower triangle
    return _Batch(_centred_gram(features), same, tf.reduce_sum(before, axis=1), tf.reduce_sum(same, axis=1))


def _class_statistics(batch: _Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Scatter within each sample's class [B], and inner products of the classes' centred means [B, B]."""
    average = batch.same / batch.count[:, None]  # [B, B] row b averages over the class of b
    mean_gram = tf.matmul(average, tf.matmul(batch.gram, average, transpose_b=True))  # [B, B]
    squares = tf.linalg.matvec(batch.same, tf.linalg.diag_part(batch.gram))  # [B]
    within = squares - batch.count * tf.linalg.diag_part(mean_gram)  # [B]
    return tf.nn.relu(within), mean_gram


def _ratio(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(numerator, denominator + _SAFETY * numerator)


def _squared_distances(gram: tf.Tensor) -> tf.Tensor:
    """||x_a - x_b||^2 [B, B] from inner products."""
    squares = tf.linalg.diag_part(gram)
    return tf.nn.relu(squares[:, None] + squares[None, :] - 2.0 * gram)


def _square_root(squares: tf.Tensor) -> tf.Tensor:
    """sqrt with gradient 0 at 0, where the true one is infinite; NaN stays NaN, for the loss to show it."""
    other = tf.logical_not(squares <= 0.0)
    return tf.where(other, tf.sqrt(tf.where(other, squares, 1.0)), 0.0)


def _mean_over_class_pairs(values: tf.Tensor, weights: tf.Tensor, same: tf.Tensor) -> tf.Tensor:
    """Mean of values [B, B] over unordered pairs of classes.

    Args:
        values: [B, B], symmetric.
        weights: float [B], 0 for samples that stand for nothing; those of one class sum to 1 (or all are 0), so that
            every pair of classes counts once.
        same: [B, B], 1 where two samples share a class.
    """
    pairs = weights[:, None] * weights[None, :] * (1.0 - same)
    return tf.math.divide_no_nan(tf.reduce_sum(pairs * values), tf.reduce_sum(pairs))


def scatter(features: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
    """Raw scatter ratio of a batch, sum_ij ||phi_ij - mu_i||^2 / sum_i ||mu_i - mu||^2.

    Args:
        features: float [B, D].
        class_ids: int [B], any integers; equal ones are one class.

    Returns:
        Scalar >= 0; 0 when every class is one point, at most 1e6 where all class means coincide, 0 when all
        features do.

    Raises:
        ValueError: features are not [B, D] or class_ids not [B].

    Example:
        >>> float(scatter(tf.constant([[0.0], [2.0], [5.0], [9.0]]), tf.constant([0, 0, 1, 1])))  # (2 + 8) / 18
        0.5555...

    Reference: section 4.1, without the factor C/N.
    """
    batch = _batch(features, class_ids)
    # sum_i n_i ||mu_i||^2 and sum_i ||mu_i||^2 of the centred means, as sums of inner products within classes.
    in_class = tf.reduce_sum(batch.gram * batch.same, axis=1) / batch.count  # [B]
    within = tf.nn.relu(tf.linalg.trace(batch.gram) - tf.reduce_sum(in_class))
    return _ratio(within, tf.nn.relu(tf.reduce_sum(in_class / batch.count)))


def _pair_scatter(features: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
    """Mean of the scatter ratios of all pairs of classes of the batch."""
    batch = _batch(features, class_ids)
    within, mean_gram = _class_statistics(batch)
    n_a, n_b = batch.count[:, None], batch.count[None, :]
    # sum_i ||mu_i - mu||^2 of two classes, mu weighted by their sizes: half the squared distance if they are equal.
    between = _squared_distances(mean_gram) * (n_a**2 + n_b**2) / (n_a + n_b) ** 2
    first = tf.cast(batch.rank == 0, within.dtype)  # a class stands at its first sample
    return _mean_over_class_pairs(_ratio(within[:, None] + within[None, :], between), first, batch.same)


def feature_clustering(
    features: tf.Tensor, class_ids: tf.Tensor, coefficient: float, pairs: bool = False
) -> tf.Tensor:
    """R_FC: coefficient * scatter, over the batch or as the mean over pairs of classes.

    Args:
        features: float [B, D].
        class_ids: int [B].
        coefficient: multiplies the raw scatter; the paper's 0.02, 0.05 and 0.1 (Table 8) are meant so.
        pairs: False for one ratio over all classes of the batch (the printed formula); True for the mean of the
            two-class ratios (the authors' code, and what Tables 2 and 4 measure).

    Returns:
        Scalar to add to the loss.

    Raises:
        ValueError: features are not [B, D] or class_ids not [B].

    Example:
        >>> loss += feature_clustering(features, class_ids, coefficient=0.05)

    Reference: section 4.4.
    """
    return coefficient * (_pair_scatter if pairs else scatter)(features, class_ids)


def _partner(batch: _Batch) -> tf.Tensor:
    """Index of the second sample of the couple that each sample belongs to [B]; 0 where it has none.

    The samples of a class form couples in their order: the first two, the next two, and so on.
    """
    second = 2.0 * tf.floor(batch.rank / 2.0) + 1.0
    return tf.argmax(batch.same * tf.cast(batch.rank[None, :] == second[:, None], batch.same.dtype), axis=1)


def _couple_weights(batch: _Batch) -> tf.Tensor:
    """1 / (couples of its class) at the first sample of each couple, 0 elsewhere [B]."""
    couples = tf.floor(batch.count / 2.0)
    first = tf.equal(tf.math.floormod(batch.rank, 2.0), 0.0) & (batch.rank + 1.0 < batch.count)
    return tf.where(first, tf.math.divide_no_nan(tf.ones_like(couples), couples), 0.0)


def hyperplane_variation(
    features: tf.Tensor, class_ids: tf.Tensor, coefficient: float, squared: bool = False
) -> tf.Tensor:
    """R_HV: coefficient * mean over pairs of classes of ||d1 - d2|| / (||d1|| + ||d2||).

    Over all pairs of classes in the batch. The samples of a class are taken two by two in their order: with 2K of
    them (batch 256 with 64 classes has four each) the value of a pair of classes is the mean over its K x K pairs of
    couples, and every pair of classes counts the same. The last one of an odd number is left out, and so is a class
    of one sample.

    Args:
        features: float [B, D].
        class_ids: int [B].
        coefficient: multiplies the mean.
        squared: True for (||d1 - d2|| / ((||d1|| + ||d2||) / 2))^2, four times the square of the printed formula:
            the authors' code, and what Tables 2 and 4 report.

    Returns:
        Scalar to add to the loss; the mean is in [0, 1] (squared: [0, 4]). A pair whose four points make d1 and d2
        vanish counts 0.

    Raises:
        ValueError: features are not [B, D] or class_ids not [B].

    Example:
        >>> loss += hyperplane_variation(features, class_ids, coefficient=0.05)

    Reference: section 4.5.
    """
    batch = _batch(features, class_ids)
    partner = _partner(batch)
    cross = tf.gather(batch.gram, partner, axis=1)  # [B, B] <first_a, second_b>
    seconds = tf.gather(cross, partner, axis=0)  # [B, B] <second_a, second_b>
    # d1 - d2 = (x1 - x2) - (y1 - y2), so its norm is a distance between within-class differences.
    differences = batch.gram - cross - tf.transpose(cross) + seconds  # [B, B] <x1 - x2, y1 - y2>
    numerator = _square_root(_squared_distances(differences))
    denominator = _square_root(_squared_distances(batch.gram)) + _square_root(_squared_distances(seconds))
    # The triangle inequality bounds the ratio by 1; rounding may not.
    variation = tf.minimum(tf.math.divide_no_nan(numerator, denominator), 1.0)  # [B, B]
    if squared:
        variation = 4.0 * variation**2
    return coefficient * _mean_over_class_pairs(variation, _couple_weights(batch), batch.same)


def filter_normalized_distance(weights: Sequence[tf.Tensor], reference: Sequence[tf.Tensor]) -> tf.Tensor:
    """d(theta, reference) = sqrt(sum over filters of ||theta_f - reference_f||^2 / ||reference_f||^2).

    A filter is what makes one output channel: kernel[..., k] of a convolution, a column of a dense kernel. Vectors
    (biases, BatchNorm) are left out, as in Li et al.; so is a filter whose reference is zero.

    Args:
        weights: list of tensors, the weights theta.
        reference: list of tensors of the same shapes: the weights the distance is measured from. Scaling a filter
            in both changes nothing.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: the lists differ in length or a shape differs.

    Reference: Note 1 of the paper; Li et al., "Visualizing the loss landscape of neural nets", 2018, section 4.
    """
    if len(weights) != len(reference):
        raise ValueError(f"weights and reference must pair up. Received: {len(weights)} and {len(reference)} tensors.")
    total = tf.constant(0.0)
    for weight, origin in zip(weights, reference, strict=True):
        weight, origin = tf.convert_to_tensor(weight), tf.convert_to_tensor(origin)
        if not weight.shape.is_compatible_with(origin.shape):
            raise ValueError(f"A weight and its reference differ. Received: shapes {weight.shape} and {origin.shape}.")
        if weight.shape.rank < 2:
            continue
        axes = list(range(weight.shape.rank - 1))
        moved = tf.reduce_sum(tf.math.squared_difference(weight, origin), axis=axes)  # [filters]
        size = tf.reduce_sum(tf.square(origin), axis=axes)  # [filters]
        share = tf.reduce_sum(tf.math.divide_no_nan(moved, size))
        total = tf.cast(total, share.dtype) + share
    return _square_root(total)


class _Saveable:
    """What Keras asks of an object that a model holds: its arguments as a configuration, and back."""

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Saveable":
        return cls(**config)


@keras.saving.register_keras_serializable(package="tf_unravel")
class FeatureClustering(_Saveable):
    """`feature_clustering` with its coefficient, as an object that a learner holds and a saved model restores.

    Args:
        coefficient: as in `feature_clustering`.
        pairs: as in `feature_clustering`.
    """

    def __init__(self, coefficient: float, pairs: bool = False):
        self.coefficient, self.pairs = coefficient, pairs

    def __call__(self, features: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        return feature_clustering(features, class_ids, self.coefficient, self.pairs)


@keras.saving.register_keras_serializable(package="tf_unravel")
class HyperplaneVariation(_Saveable):
    """`hyperplane_variation` with its coefficient, as an object that a learner holds and a saved model restores.

    Args:
        coefficient: as in `hyperplane_variation`.
        squared: as in `hyperplane_variation`.
    """

    def __init__(self, coefficient: float, squared: bool = False):
        self.coefficient, self.squared = coefficient, squared

    def __call__(self, features: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        return hyperplane_variation(features, class_ids, self.coefficient, self.squared)
