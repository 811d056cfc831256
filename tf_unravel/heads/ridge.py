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

from tf_unravel.adaptation.calibration import Refit
from tf_unravel.adaptation.labels import Ways
from tf_unravel.heads.inner_products import InnerProductHead, gram, one_hot_targets, regularized


def dual_coefficients(kernel: tf.Tensor, targets: tf.Tensor, l2: float) -> tf.Tensor:
    """alpha = (K + l2 I)^-1 Y, float64 [T, S, W]; NaN for tasks whose K is not finite."""
    hessian, finite = regularized(kernel, l2)
    alpha = tf.linalg.solve(hessian, targets)
    return tf.where(finite[:, None, None], alpha, tf.constant(float("nan"), alpha.dtype))


def primal_weights(support: tf.Tensor, targets: tf.Tensor, l2: float) -> tf.Tensor:
    """W = (X^T X + l2 I)^-1 X^T Y, float64 [T, D, W]; NaN for tasks whose features are not finite."""
    support = tf.cast(support, tf.float64)
    hessian, finite = regularized(tf.matmul(support, support, transpose_a=True), l2)  # [T, D, D]
    weights = tf.linalg.solve(hessian, tf.matmul(support, targets, transpose_a=True))  # [T, D, W]
    return tf.where(finite[:, None, None], weights, tf.constant(float("nan"), weights.dtype))


def without(
    inverse: tf.Tensor, alpha: tf.Tensor, targets: tf.Tensor, left: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Leaves the images B out of a fit, in closed form: their logits without them, and the coefficients of the rest.

        z_B = Y_B - g,   alpha^-B = alpha - A_:B g,   g = (A_BB)^-1 alpha_B,   A = (X X^T + l2 I)^-1

    With B a single image i, g = alpha_i / A_ii is the leave-one-out residual; by the hat matrix A_ii = (1 - h_ii) / l2.

    Args:
        inverse: A, float64 [T, S, S].
        alpha: A Y, float64 [T, S, W].
        targets: Y, float64 [T, S, W].
        left: integers [L], B.

    Returns:
        (float64 [T, L, W], float64 [T, S, W], whose rows B are 0 up to rounding).
    """
    columns = tf.gather(inverse, left, axis=2)  # [T, S, L]
    residual = tf.linalg.solve(tf.gather(columns, left, axis=1), tf.gather(alpha, left, axis=1))  # [T, L, W]
    return tf.gather(targets, left, axis=1) - residual, alpha - tf.matmul(columns, residual)


@dataclass(frozen=True)
class Ridge(InnerProductHead):
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
    positive: ClassVar[tuple[str, ...]] = ("l2",)

    def coefficients(self, kernel: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        return dual_coefficients(kernel, targets, self.l2), None

    def weights(self, support: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        def primal() -> tf.Tensor:
            return tf.cast(primal_weights(support, targets, self.l2), support.dtype)

        def dual() -> tf.Tensor:
            return super(Ridge, self).weights(support, targets)[0]

        examples, dimension = support.shape[1], support.shape[2]
        if examples is not None and dimension is not None:
            return (primal() if examples > dimension else dual()), None
        return tf.cond(tf.shape(support)[1] > tf.shape(support)[2], primal, dual), None

    def refit(self, support: tf.Tensor, labels: tf.Tensor, ways: Ways) -> Refit:
        kernel = gram(support)
        targets = tf.tile(one_hot_targets(labels[None], ways), [tf.shape(support)[0], 1, 1])
        inverse = tf.linalg.inv(regularized(kernel, self.l2)[0])
        alpha = tf.matmul(inverse, targets)

        def refitted(left: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_left, coefficients = without(inverse, alpha, targets, left)
            fit = tf.matmul(tf.cast(kernel, tf.float64), coefficients)  # [T, S, W]
            return of_left, tf.gather(fit, kept, axis=1)

        return refitted
