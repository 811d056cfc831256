"""The base of heads whose problem is solved by iteration: which of two solvers a support set gets.

| support set  | solver                                                            | takes about                    |
|--------------|-------------------------------------------------------------------|--------------------------------|
| S W <= MANY  | `few`: all tasks at once, second order, differentiable            | 10 W inverses of S x S         |
| S W > MANY   | `many`: task by task, first order, without a derivative           | 100 products X^T V and X W     |

Both solve the same problem. `many` works on features; where inner products alone are known, or D > S, it is given a
Cholesky factor of K, whose rows have the same inner products and are no longer than S.

| symbol | name    | shape     |
|--------|---------|-----------|
| K      | kernel  | [T, S, S] |
| X      | support | [T, S, D] |
| Y      | targets | [T, S, W] |
| alpha  |         | [T, S, W] |
"""

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from tf_unravel.adaptation.labels import required
from tf_unravel.heads.inner_products import InnerProductHead, choose, feature_weights, gram, regularized

MANY = 10_000
"""Entries of Y [S, W] above which a task gets the solver for many classes and images; see docs/speed.md."""

Solution: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""alpha [T, S, W], b [T, W], and how far from optimal they are [T], in the head's own measure; all in float64."""


class IterativeHead(InnerProductHead):
    """A head with two solvers; a subclass is as one of `InnerProductHead` with `few` and `many` in the place of
    `coefficients`.
    """

    def few(self, kernel: tf.Tensor, targets: tf.Tensor) -> Solution:
        """The solution for K and Y, differentiable in K."""
        raise NotImplementedError

    def many(self, features: tf.Tensor, targets: tf.Tensor, ridge: float) -> Solution:
        """(X^T alpha [D, W], b [W], how far from optimal []), float64, for one task: X [S, D] and Y [S, W].

        `ridge` takes the place of `dual_ridge`.
        """
        raise NotImplementedError

    @property
    def dual_ridge(self) -> float:
        """What the problem adds to the diagonal of K."""
        return 0.0

    def coefficients(self, kernel: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        return self.solution(kernel, targets)[:2]

    def solution(self, kernel: tf.Tensor, targets: tf.Tensor) -> Solution:
        """The solution from K, by the solver for its size."""

        def many() -> Solution:
            hessian, finite = regularized(kernel, self.dual_ridge)
            # Half of the ridge stays in the root, where it keeps rounding from making K indefinite.
            rest = 0.5 * self.dual_ridge
            root = tf.linalg.cholesky(tf.linalg.set_diag(hessian, tf.linalg.diag_part(hessian) - rest))
            weights, offset, distance = self._one_by_one(root, targets, rest)
            alpha = tf.linalg.triangular_solve(root, weights, adjoint=True)
            return choose(finite, alpha), choose(finite, offset), choose(finite, distance)

        return _by_size(targets, lambda: self.few(kernel, _of_branch(targets)), many)

    def weights(self, support: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        def few() -> tuple[tf.Tensor, tf.Tensor]:
            alpha, offset, _ = self.few(gram(support), _of_branch(targets))
            return feature_weights(support, alpha), offset

        def by_features() -> tuple[tf.Tensor, tf.Tensor]:
            weights, offset, _ = self._one_by_one(support, targets, self.dual_ridge)
            return tf.cast(weights, support.dtype), offset

        def by_products() -> tuple[tf.Tensor, tf.Tensor]:
            alpha, offset, _ = self.solution(gram(_of_branch(support)), _of_branch(targets))
            return feature_weights(support, alpha), offset

        def many() -> tuple[tf.Tensor, tf.Tensor]:
            examples, dimension = support.shape[1], support.shape[2]
            if examples is not None and dimension is not None:
                return by_products() if dimension > examples else by_features()
            sizes = tf.shape(support)
            return tf.cond(sizes[2] > sizes[1], by_products, by_features)

        return _by_size(targets, few, many)

    def _one_by_one(self, features: tf.Tensor, targets: tf.Tensor, ridge: float) -> Solution:
        @tf.custom_gradient
        def solution(features: tf.Tensor, targets: tf.Tensor) -> tuple[Solution, Callable[..., tuple]]:
            signature = (tf.TensorSpec([None, None], tf.float64), tf.TensorSpec([None], tf.float64),
                         tf.TensorSpec([], tf.float64))
            solved = tf.map_fn(lambda task: self.many(task[0], task[1], ridge), (tf.stop_gradient(features), targets),
                               fn_output_signature=signature, parallel_iterations=1)
            return solved, lambda *_: (_no_gradient(features), None)

        return solution(_of_branch(features), _of_branch(targets))


def _by_size(targets: tf.Tensor, few: Callable, many: Callable) -> tuple[tf.Tensor, ...]:
    examples, ways = targets.shape[1], targets.shape[2]
    if examples is not None and ways is not None:
        return many() if examples * ways > MANY else few()
    sizes = tf.shape(targets, tf.int64)
    return tf.cond(sizes[1] * sizes[2] > MANY, many, few)


def _of_branch(value: tf.Tensor) -> tf.Tensor:
    """The same, as a tensor of the branch: TensorFlow loses others that a custom gradient inside a branch refers to."""
    return tf.identity(value)


def _no_gradient(features: tf.Tensor) -> tf.Tensor:
    """Raises ValueError; in a graph it is one that fails when it runs."""
    message = (f"Support sets of more than {MANY:,} images times classes have no gradient; train on smaller tasks, or "
               "stop the gradient of the support features.")
    if tf.executing_eagerly():
        raise ValueError(f"{message} Received: {features.shape[1]} images.")
    return required(tf.zeros_like(features), (tf.constant(False), message, ["images", tf.shape(features)[1]]))
