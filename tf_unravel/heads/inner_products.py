"""Inner products of support and query features, and the base of the heads that read nothing else.

Prototypes, ridge, SVM and linear heads see features only through

    K = X X^T    (support with support)
    k = Q X^T    (query with support)
    n = ||q||^2  (squared norm of each query)

so that their cost after this file does not depend on the feature size D, and an evaluation over many tasks can look
the three up in one Gram matrix of the whole split instead of multiplying features task by task.

| symbol | name          | shape     |
|--------|---------------|-----------|
| X      | support       | [T, S, D] |
| Q      | query         | [T, Q, D] |
| K      | .support      | [T, S, S] |
| k      | .cross        | [T, Q, S] |
| n      | .query_norms  | [T, Q]    |
| D      | .dimension    | int       |
| Y      | targets       | [T, S, W] |
| H      | hessian       | [T, S, S] |

The small S x S systems are solved in float64 whatever the type of the features: a Gram matrix squares the condition
number, and at S <= 100 the difference in time is small.
"""

from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.head import Head, Reads, at_least_float32
from tf_unravel.adaptation.labels import Ways, checked_support


class Kernels(NamedTuple):
    """Inner products of a batch of tasks, see the module; `dimension` is a scalar tensor where it is not known."""

    support: tf.Tensor
    cross: tf.Tensor
    query_norms: tf.Tensor
    dimension: int | tf.Tensor


def kernels(support: tf.Tensor, query: tf.Tensor) -> Kernels:
    """K, k and n of support features [T, S, D] and query features [T, Q, D], in float32 or float64.

    Raises:
        ValueError: wrong ranks, or feature sizes that differ.

    Example:
        >>> k = kernels(tf.ones([8, 5, 64]), tf.ones([8, 75, 64]))
        >>> k.cross.shape
        TensorShape([8, 75, 5])
    """
    support, query = features_of(support, query)
    dimension = support.shape[2] if support.shape[2] is not None else tf.shape(support)[2]
    return Kernels(
        support=tf.matmul(support, support, transpose_b=True),  # [T, S, S]
        cross=tf.matmul(query, support, transpose_b=True),  # [T, Q, S]
        query_norms=tf.reduce_sum(tf.square(query), axis=-1),  # [T, Q]
        dimension=dimension,
    )


def features_of(support: tf.Tensor, query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Support and query features as tensors of one type, float32 or float64.

    Raises:
        ValueError: ranks other than 3, or sizes T or D that are known and differ.
    """
    support, query = same_type(as_features("support", support), as_features("query", query))
    if support.shape.rank == query.shape.rank == 3:
        for axis, what in ((0, "numbers of tasks"), (2, "feature sizes")):
            a, b = support.shape[axis], query.shape[axis]
            if a is not None and b is not None and a != b:
                raise ValueError(
                    f"support and query must have equal {what}. "
                    f"Received: support {tuple(support.shape)}, query {tuple(query.shape)}."
                )
    return support, query


def as_features(name: str, features: tf.Tensor) -> tf.Tensor:
    """Features as a tensor, float32 or float64; `name` is what they are of.

    Raises:
        ValueError: a rank other than 3.
    """
    features = at_least_float32(features)
    if features.shape.rank not in (3, None):
        raise ValueError(
            f"{name} features must be [tasks, examples, features]; add a leading axis for a single task. "
            f"Received: shape {tuple(features.shape)}."
        )
    return features


def same_type(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The tensors in float64 if one of them is."""
    if tf.float64 in {tensor.dtype for tensor in tensors}:
        return tuple(tf.cast(tensor, tf.float64) for tensor in tensors)
    return tensors


def gram(support: tf.Tensor) -> tf.Tensor:
    """K = X X^T, in float64 where rounding it to float32 would lose the answer.

    With more examples than features (S > D) K is singular, and the ridge term of a head may be far below the float32
    rounding of K's large entries. D is small then and float64 costs little. S <= D, known statically, keeps the type.
    """
    support = _exact(support)
    return tf.matmul(support, support, transpose_b=True)  # [T, S, S]


def feature_weights(support: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """W = X^T alpha, [T, D, W], so that logits are q W: fewer products than (q X^T) alpha.

    In the type of `support`, summed in float64 where `gram` is.
    """
    exact = _exact(support)
    return tf.cast(tf.matmul(exact, tf.cast(alpha, exact.dtype), transpose_a=True), support.dtype)  # [T, D, W]


def _exact(support: tf.Tensor) -> tf.Tensor:
    examples, dimension = support.shape[1], support.shape[2]
    single = examples is not None and dimension is not None and examples <= dimension
    return support if single else tf.cast(support, tf.float64)


def one_hot_targets(support_labels: tf.Tensor, ways: Ways, dtype: tf.DType = tf.float64) -> tf.Tensor:
    """Y, [T, S, W], of labels [T, S]; raises what `labels.checked_support` does."""
    return tf.one_hot(checked_support(support_labels, ways), ways, dtype=dtype)


def regularized(kernel: tf.Tensor, l2: float | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """H = K + l2 I in float64, with l2 raised to the rounding error of K where that is larger.

    A Gram matrix of huge or repeated features has eigenvalues that rounding may have pushed below -l2. Raising l2 to
    2 sqrt(S) eps mean(diag K), a bound on what rounding can do, keeps H positive definite and moves the solution by
    less than rounding has already moved it.

    Args:
        kernel: K, in the type its entries were computed in.
        l2: at least 0.

    Returns:
        (H, the identity for tasks with a non-finite entry; whether K is finite, bool [T]).
    """
    size = tf.shape(kernel)[1]
    eps = np.finfo(kernel.dtype.as_numpy_dtype).eps
    finite = tf.reduce_all(tf.math.is_finite(kernel), axis=[1, 2])  # [T]
    eye = tf.eye(size, dtype=tf.float64)
    matrix = tf.where(finite[:, None, None], tf.cast(kernel, tf.float64), eye)
    diagonal = tf.linalg.diag_part(matrix)  # [T, S]
    rounding = 2.0 * eps * tf.sqrt(tf.cast(size, tf.float64)) * tf.reduce_mean(tf.abs(diagonal), axis=-1)  # [T]
    ridge = tf.stop_gradient(tf.maximum(tf.cast(l2, tf.float64), rounding))
    return tf.linalg.set_diag(matrix, diagonal + ridge[:, None]), finite


def choose(tasks: tf.Tensor, value: tf.Tensor, other: tf.Tensor | float = float("nan")) -> tf.Tensor:
    """`value` [T, ...] for the tasks that are true in bool [T], `other`, NaN by default, for the rest."""
    condition = tf.reshape(tasks, [-1] + [1] * (value.shape.rank - 1))
    return tf.where(condition, value, tf.cast(other, value.dtype))


def checked(logits: tf.Tensor) -> tf.Tensor:
    """The same logits; raises ValueError if they are not finite, in an eager call."""
    if tf.executing_eagerly() and not bool(tf.reduce_all(tf.math.is_finite(logits))):
        raise ValueError(
            "The logits are not finite: the features hold NaN or infinity, or their inner products overflow "
            f"{logits.dtype.name}; check the backbone, or scale the features down. "
            "Received: features whose inner products or logits are not finite."
        )
    return logits


class InnerProductHead(Head):
    """The base of heads whose logits are q X^T alpha + b, with alpha and b from K alone.

    A subclass is a frozen dataclass with a `name`, `coefficients`, and in `positive` the names of the settings that
    must be positive and finite.
    """

    reads: ClassVar[Reads] = Reads.INNER_PRODUCTS
    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{type(self).__name__} needs a positive, finite {name}. Received: {name}={value}.")

    def coefficients(self, kernel: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """(alpha float64 [T, S, W], b float64 [T, W] or None for 0), from K and Y in float64."""
        raise NotImplementedError

    def weights(self, support: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """(X^T alpha [T, D, W], b), from X and Y."""
        alpha, offset = self.coefficients(gram(support), targets)
        return feature_weights(support, alpha), offset

    def solve(self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways) -> tuple[tf.Tensor, ...]:
        """X^T alpha [T, D, W], and b [T, W] where the head has one."""
        support = as_features("support", support)
        weights, offset = self.weights(support, one_hot_targets(support_labels, ways))
        return (weights,) if offset is None else (weights, tf.cast(offset, weights.dtype))

    def decide(self, solved: tuple[tf.Tensor, ...], query: tf.Tensor, ways: Ways) -> tf.Tensor:
        """q W + b, [T, Q, W]."""
        query, weights, *offset = same_type(as_features("query", query), *solved)
        return checked(_shifted(tf.matmul(query, weights), offset[0] if offset else None))

    def __call__(self, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits of the query features.

        Args:
            support: [T, S, D] features.
            support_labels: integers [T, S] in 0..ways-1.
            query: [T, Q, D] features.
            ways: W.

        Returns:
            [T, Q, W], float32 or float64.

        Raises:
            ValueError: wrong ranks or sizes, labels outside 0..ways-1 or a class without example (in a graph an
                InvalidArgumentError, when it runs), logits that are not finite (eager calls).
        """
        support, query = features_of(support, query)
        return self.decide(self.solve(support, support_labels, ways), query, ways)

    def logits(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """The same from inner products, in their type.

        Give a translation-invariant head those of features shifted by some fixed point, such as the mean of the
        split, where these have a large common offset.
        """
        alpha, offset = self.coefficients(inner.support, one_hot_targets(support_labels, ways))
        return checked(_shifted(tf.matmul(inner.cross, tf.cast(alpha, inner.cross.dtype)), offset))


def _shifted(logits: tf.Tensor, offset: tf.Tensor | None) -> tf.Tensor:
    return logits if offset is None else logits + tf.cast(offset, logits.dtype)[:, None]
