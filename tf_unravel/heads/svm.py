"""Multi-class support vector machine of Crammer and Singer, the head of MetaOptNet.

    A = argmin 1/2 tr(A^T (K + l2 I) A) - tr(Y^T A)   subject to  A <= c Y,  A 1 = 0
    logits = k A,   that is  logits[q, m] = sum_i A_im <x_i, q>

| symbol  | name        | shape     |
|---------|-------------|-----------|
| K, k    | Kernels     |           |
| Y       | targets     | [T, S, W] |
| A       | dual        | [T, S, W] |
| c       | c           | scalar    |
| l2      | l2          | scalar    |

The l2 = 1 beside K is MetaOptNet's: a ridge that belongs to the problem, not a numerical epsilon. MetaOptNet stops its
interior point solver after 3 iterations in its test script; here every task is solved to a relative duality gap of
`tolerance`. Gradients come from the optimality conditions at the solution, not from unrolled iterations, as in
MetaOptNet. Degenerate case: as c or K tends to 0 every entry of the own class reaches c.

The solvers are `crammer_singer` for few-shot tasks and `splitting` for many classes and images (see `iterative`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tf_unravel.adaptation.labels import Ways
from tf_unravel.heads.inner_products import Kernels, choose, one_hot_targets, regularized
from tf_unravel.heads.iterative import IterativeHead, Solution
from tf_unravel.heads.solvers import crammer_singer, splitting


def solve(
    kernel: tf.Tensor, targets: tf.Tensor, c: float = 0.1, l2: float = 1.0, tolerance: float = 1e-8,
    max_iterations: int = 50,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The dual solution, differentiable in the kernel, and how far it is from optimal.

    Args:
        kernel: K, [T, S, S].
        targets: one-hot Y, float64 [T, S, W].
        c, l2, tolerance, max_iterations: see `SVM`.

    Returns:
        (A float64 [T, S, W], gap float64 [T]): f(A) - min f <= gap |f(A)|. Both NaN for tasks whose K is not finite.
    """
    hessian, finite = regularized(kernel, l2)

    @tf.custom_gradient
    def solution(hessian: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., tf.Tensor]]:
        problem, unit = crammer_singer.normalized(hessian, targets, c)
        scaled, gap = crammer_singer.minimise(problem, tolerance, max_iterations)

        def gradient(upstream: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            # A = unit A', H' = unit H: dL/dH = unit dL/dH' and dL/dA' = unit dL/dA.
            return unit * crammer_singer.derivative(problem, scaled, unit * upstream)

        return (unit * scaled, gap), gradient

    dual, gap = solution(hessian)
    return choose(finite, dual), choose(finite, tf.stop_gradient(gap))


@dataclass(frozen=True)
class SVM(IterativeHead):
    """Crammer-Singer support vector machine, solved to convergence.

    logits[q, m] = sum_i A_im <x_i, q>, A from the dual quadratic programme.

    Args:
        c: bound of the dual entries. Default 0.1, MetaOptNet's.
        l2: ridge beside K, in units of a squared feature norm; positive. Default 1, MetaOptNet's.
        tolerance: relative duality gap at which a task is finished. Default 1e-8; the logits are then right to some
            1e-6 and mostly to 1e-12, since the last step solves for the exact solution on its active set.
        max_iterations: of the interior point method that takes the few tasks the faster stages leave. Default 50.

    Raises:
        ValueError: c, l2, tolerance or max_iterations not positive and finite.

    Example:
        >>> support = tf.constant([[[2.0, 0.0], [0.0, 2.0]]])
        >>> logits = SVM()(support, tf.constant([[0, 1]]), tf.constant([[[1.0, 0.0]]]), ways=2)
        >>> bool(logits[0, 0, 0] > logits[0, 0, 1])
        True

    Reference: Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019;
    Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", JMLR 2001.
    """

    c: float = 0.1
    l2: float = 1.0
    tolerance: float = 1e-8
    max_iterations: int = 50
    name: ClassVar[str] = "svm"
    positive: ClassVar[tuple[str, ...]] = ("c", "l2", "tolerance", "max_iterations")

    @property
    def dual_ridge(self) -> float:
        return self.l2

    def few(self, kernel: tf.Tensor, targets: tf.Tensor) -> Solution:
        dual, gap = solve(kernel, targets, self.c, self.l2, self.tolerance, self.max_iterations)
        return dual, tf.zeros_like(dual[:, 0]), gap

    def many(self, features: tf.Tensor, targets: tf.Tensor, ridge: float) -> Solution:
        dual, gap = splitting.solve(features, targets, self.c, ridge, self.tolerance)
        weights = tf.matmul(tf.cast(features, tf.float64), dual, transpose_a=True)
        return weights, tf.zeros_like(dual[0]), gap

    def duality_gap(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Relative duality gap that the solver reaches on each task: (6) of `crammer_singer`, (5) of `splitting`.

        Returns:
            float64 [T].
        """
        return self.solution(inner.support, one_hot_targets(support_labels, ways))[2]
