"""Ridge regression onto one-hot labels, the head of R2-D2 as MetaOptNet and the paper use it.

    W = X^T (X X^T + l2 I)^-1 Y        dual, an S x S system
      = (X^T X + l2 I)^-1 X^T Y        primal, a D x D system; the same W
    logits = q W

| symbol | name         | shape     |
|--------|--------------|-----------|
| X      | support      | [T, S, D] |
| Y      | targets      | [T, S, W] |
| alpha  | coefficients | [T, S, W] |
| W      | weights      | [T, D, W] |
| l2     | l2           | scalar    |

Differs from Bertinetto et al. (2019): no column of ones and no factor 1 / sqrt(S) on X and Y, so that l2 = 50 is
MetaOptNet's. MetaOptNet's own "Ridge" head solves the same problem as a quadratic programme and returns twice these
logits; this is its "R2D2" head. l2 -> infinity tends to the classifier by class sums, Y^T X / l2.
"""

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tf_unravel.adaptation.protocol import Ways
from tf_unravel.heads.inner_products import (
    Kernels,
    checked,
    feature_weights,
    features_of,
    gram,
    one_hot_targets,
    regularized,
)


def dual_coefficients(kernel: tf.Tensor, targets: tf.Tensor, l2: float) -> tf.Tensor:
    """alpha = (K + l2 I)^-1 Y.

    Args:
        kernel: K, [T, S, S].
        targets: Y, float64 [T, S, W].
        l2: ridge.

    Returns:
        float64 [T, S, W]; NaN for tasks whose K is not finite.
    """
    hessian, finite = regularized(kernel, l2)
    alpha = tf.linalg.solve(hessian, targets)
    return tf.where(finite[:, None, None], alpha, tf.constant(float("nan"), alpha.dtype))


def primal_weights(support: tf.Tensor, targets: tf.Tensor, l2: float) -> tf.Tensor:
    """W = (X^T X + l2 I)^-1 X^T Y.

    Args:
        support: X, [T, S, D].
        targets: Y, float64 [T, S, W].
        l2: ridge.

    Returns:
        float64 [T, D, W]; NaN for tasks whose features are not finite.
    """
    support = tf.cast(support, tf.float64)
    hessian, finite = regularized(tf.matmul(support, support, transpose_a=True), l2)  # [T, D, D]
    weights = tf.linalg.solve(hessian, tf.matmul(support, targets, transpose_a=True))  # [T, D, W]
    return tf.where(finite[:, None, None], weights, tf.constant(float("nan"), weights.dtype))


@dataclass(frozen=True)
class Ridge:
    """Ridge regression in closed form, primal when a task has more examples than features, dual otherwise.

    logits = q X^T (X X^T + l2 I)^-1 Y.

    Args:
        l2: ridge, in units of a squared feature norm; positive. Default 50, MetaOptNet's. If rounding of the inner
            products is larger (features of norm above some 1e4 in float32), it takes the place of l2.

    Raises:
        ValueError: l2 not positive and finite.

    Example:
        >>> support = tf.constant([[[1.0, 0.0], [0.0, 1.0]]])
        >>> Ridge(l2=1.0)(support, tf.constant([[0, 1]]), tf.constant([[[4.0, 2.0]]]), ways=2).numpy().tolist()
        [[[2.0, 1.0]]]

    Reference: Bertinetto et al., "Meta-learning with differentiable closed-form solvers", ICLR 2019; Lee et al.,
    "Meta-Learning with Differentiable Convex Optimization", CVPR 2019.
    """

    l2: float = 50.0
    name: ClassVar[str] = "ridge"

    def __post_init__(self) -> None:
        if not 0.0 < self.l2 < float("inf"):
            raise ValueError(f"Ridge needs a positive, finite l2. Received: l2={self.l2}.")

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
        targets = one_hot_targets(support_labels, ways)

        def primal() -> tf.Tensor:
            return tf.cast(primal_weights(support, targets, self.l2), support.dtype)

        def dual() -> tf.Tensor:
            return feature_weights(support, dual_coefficients(gram(support), targets, self.l2))

        examples, dimension = support.shape[1], support.shape[2]
        if examples is not None and dimension is not None:
            weights = primal() if examples > dimension else dual()
        else:
            weights = tf.cond(tf.shape(support)[1] > tf.shape(support)[2], primal, dual)
        return checked(tf.matmul(query, weights))  # [T, Q, W]

    def logits(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits from inner products, always by the dual: see `__call__`.

        Args:
            inner: Kernels of T tasks.
            support_labels: integers [T, S].
            ways: W.

        Returns:
            [T, Q, W], in the type of the inner products.
        """
        alpha = dual_coefficients(inner.support, one_hot_targets(support_labels, ways), self.l2)
        return checked(tf.matmul(inner.cross, tf.cast(alpha, inner.cross.dtype)))
