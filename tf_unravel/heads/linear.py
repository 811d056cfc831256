"""Softmax regression on the support features, solved to convergence: the paper's "NN" head.

    minimise over W [D, ways] and b [ways]:   sum_i CE(y_i, x_i W + b) + l2 / 2 ||W||^2             (1)
    logits = q W + b

By the representer theorem W = X^T a / l2, and (1) with H = K / l2, F = H a + 1 b^T, P = softmax(F) becomes

    L(a, b) = sum_i CE(y_i, F_i) + 1/2 tr(a^T H a),    optimal where  a = Y - P  and  1^T a = 0     (2)

(the second from the unregularized bias). Newton's step linearises P around F. Up to a constant in each row it asks for

    a' / P + H a' + nu 1^T + 1 b'^T = (Y - P) / P + F,    rows and columns of a' sum to 0,          (3)

which is the saddle system of `saddle` with D_w = 1 / P_w, that is freedom P / (1 + P). Steps are damped by a line
search over t = 1, 1/4, 1/16, ...: F and the quadratic term are known along the whole line, so it needs no product of
matrices.

| symbol | name      | shape     |
|--------|-----------|-----------|
| H      | hessian   | [T, S, S] |
| Y      | targets   | [T, S, W] |
| a      | dual      | [T, S, W] |
| b      | bias      | [T, W]    |
| F      | scores    | [T, S, W] |

(1) is scikit-learn's LogisticRegression with C = 1 / l2, whose intercept is unregularized too. b is returned with mean
0; l2 -> infinity leaves the class frequencies. Gradients come from (2) at the solution.

This is for few-shot tasks; many classes and images are solved in W and b by `lbfgs` (see `iterative`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.labels import Ways
from tf_unravel.heads.inner_products import Kernels, choose, one_hot_targets, regularized
from tf_unravel.heads.iterative import IterativeHead, Solution
from tf_unravel.heads.solvers import lbfgs, saddle

LINE_SEARCH = 0.25 ** np.arange(6)
FIRST_ORDER = 100.0  # times the tolerance: the relative gradient norm that `lbfgs` stops at


class Fit(NamedTuple):
    """Solutions of (2): a [T, S, W], b [T, W], and the scores F [T, S, W]."""

    dual: tf.Tensor
    bias: tf.Tensor
    scores: tf.Tensor


def newton_system(hessian: tf.Tensor, scores: tf.Tensor, bias: bool) -> tuple[saddle.Saddle, tf.Tensor]:
    """The saddle system of (3), and P = softmax(F)."""
    # Probabilities that underflow would leave rows of the coupling matrix empty.
    probabilities = tf.maximum(tf.nn.softmax(scores, axis=-1), 1e-300)
    return saddle.factorise(hessian, probabilities / (1.0 + probabilities), balanced=bias), probabilities


def newton_point(hessian: tf.Tensor, targets: tf.Tensor, fit: Fit, bias: bool) -> Fit:
    """The minimiser of the quadratic model of (2) at `fit`: a', b' and F' of equation (3)."""
    system, probabilities = newton_system(hessian, fit.scores, bias)
    right = (targets - probabilities) / probabilities + fit.scores
    dual, nu = saddle.solve(system, right)
    scores = tf.matmul(hessian, dual)
    if bias:
        # Any column constant left over in (3) is b'; the mean over examples, weighted by P, is the most accurate.
        rest = right - dual / probabilities - scores - nu[..., None]  # [T, S, W]
        weight = probabilities / tf.reduce_sum(probabilities, axis=1, keepdims=True)
        offset = tf.reduce_sum(weight * rest, axis=1)  # [T, W]
        offset -= tf.reduce_mean(offset, axis=-1, keepdims=True)
    else:
        offset = tf.zeros_like(fit.bias)
    return Fit(dual, offset, scores + offset[:, None])


def objective(targets: tf.Tensor, scores: tf.Tensor, quadratic: tf.Tensor) -> tf.Tensor:
    """L of (2), [..., T], from Y and F [..., T, S, W] and the quadratic term tr(a^T H a) [..., T]."""
    # log-sum-exp minus the own score, from differences: it stays exact where the loss is nearly 0.
    margins = scores - tf.reduce_sum(targets * scores, axis=-1, keepdims=True)
    return tf.reduce_sum(tf.reduce_logsumexp(margins, axis=-1), axis=-1) + 0.5 * quadratic


def line_search(hessian: tf.Tensor, targets: tf.Tensor, fit: Fit, goal: Fit) -> tuple[Fit, tf.Tensor]:
    """The best of the points fit + t (goal - fit), t = 1, 1/4, ..., 4^-5, and whether it is better than `fit`, [T]."""
    change = Fit(*[new - old for new, old in zip(goal, fit, strict=True)])

    def trace(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(left * tf.matmul(hessian, right), axis=[1, 2])  # [T]

    t = tf.constant(np.append(LINE_SEARCH, 0.0))[:, None]  # [L, 1], the last for where we are
    quadratic = trace(fit.dual, fit.dual) + 2.0 * t * trace(fit.dual, change.dual)
    quadratic += t**2 * trace(change.dual, change.dual)  # [L, T]
    values = objective(targets, fit.scores + t[..., None, None] * change.scores, quadratic)  # [L, T]
    values = tf.where(tf.math.is_nan(values), tf.constant(float("inf"), tf.float64), values)
    best = tf.gather(t[:, 0], tf.argmin(values[:-1], axis=0))  # [T]
    new = Fit(
        fit.dual + best[:, None, None] * change.dual,
        fit.bias + best[:, None] * change.bias,
        fit.scores + best[:, None, None] * change.scores,
    )
    return new, tf.reduce_min(values[:-1], axis=0) < values[-1]


def minimise(
    hessian: tf.Tensor, targets: tf.Tensor, bias: bool, tolerance: float, max_iterations: int
) -> tuple[Fit, tf.Tensor]:
    """Newton's method from zero, until a full step moves the scores by less than the tolerance.

    Returns:
        (Fit, iterations each task took [T]).
    """
    zero = Fit(tf.zeros_like(targets), tf.zeros_like(targets[:, 0]), tf.zeros_like(targets))
    tasks = tf.shape(targets)[0]

    def body(i: tf.Tensor, taken: tf.Tensor, done: tf.Tensor, fit: Fit) -> tuple[tf.Tensor | Fit, ...]:
        index = tf.where(~done)[:, 0]
        part = Fit(*[tf.gather(value, index) for value in fit])
        part_hessian, part_targets = tf.gather(hessian, index), tf.gather(targets, index)
        goal = newton_point(part_hessian, part_targets, part, bias)
        new, improved = line_search(part_hessian, part_targets, part, goal)
        moved = tf.reduce_max(tf.abs(goal.scores - part.scores), axis=[1, 2])
        small = moved <= tolerance * (1.0 + tf.reduce_max(tf.abs(goal.scores), axis=[1, 2]))
        # So close to the optimum rounding decides the line search: the full step is right. And where no step improves
        # although the full one is not small, rounding has stopped all progress.
        new = Fit(*[choose(small, value, other) for value, other in zip(goal, new, strict=True)])
        place = index[:, None]
        fit = Fit(*[tf.tensor_scatter_nd_update(old, place, value) for old, value in zip(fit, new, strict=True)])
        return i + 1, taken + tf.cast(~done, tf.int32), tf.tensor_scatter_nd_update(done, place, small | ~improved), fit

    start = (0, tf.zeros([tasks], tf.int32), tf.zeros([tasks], tf.bool), zero)
    _, taken, _, fit = tf.while_loop(
        lambda i, taken, done, fit: (i < max_iterations) & ~tf.reduce_all(done), body, start
    )
    return fit, taken


def gradient_norm(hessian: tf.Tensor, targets: tf.Tensor, fit: Fit, l2: float, bias: bool) -> tf.Tensor:
    """Norm of the gradient of (1) with respect to (W, b), relative to its norm at zero.

    dL/dW = X^T r and dL/db = 1^T r with r = P - Y + a, hence ||dL/dW||^2 = l2 tr(r^T H r).
    """

    def norm(residual: tf.Tensor) -> tf.Tensor:
        squared = l2 * tf.reduce_sum(residual * tf.matmul(hessian, residual), axis=[1, 2])
        if bias:
            squared += tf.reduce_sum(tf.square(tf.reduce_sum(residual, axis=1)), axis=-1)
        return tf.sqrt(tf.maximum(squared, 0.0))

    at_zero = 1.0 / tf.cast(tf.shape(targets)[-1], tf.float64) - targets
    return tf.math.divide_no_nan(norm(tf.nn.softmax(fit.scores, axis=-1) - targets + fit.dual), norm(at_zero))


def derivative(hessian: tf.Tensor, fit: Fit, d_dual: tf.Tensor, d_bias: tf.Tensor, bias: bool) -> tf.Tensor:
    """dL/dH from dL/da and dL/db at the solution.

    Differentiating (2): da / P + H da + dnu 1^T + 1 db^T = -dH a, rows and columns of da summing to 0. The matrix is
    symmetric, so with x the solution for the right-hand side dL/da and column sums dL/db, dL/dH = -x a^T.
    """
    system, _ = newton_system(hessian, fit.scores, bias)
    d_bias -= tf.reduce_mean(d_bias, axis=-1, keepdims=True)
    x, _ = saddle.solve(system, d_dual, column_sums=d_bias if bias else None)
    outer = tf.matmul(x, fit.dual, transpose_b=True)  # [T, S, S]
    return -0.5 * (outer + tf.linalg.matrix_transpose(outer))


def solve(
    kernel: tf.Tensor, targets: tf.Tensor, l2: float = 1.0, bias: bool = True, tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Softmax regression in dual form, differentiable in the kernel.

    Args:
        kernel: K, [T, S, S].
        targets: one-hot Y, float64 [T, S, W].
        l2, bias, tolerance, max_iterations: see `Linear`.

    Returns:
        (alpha = a / l2 float64 [T, S, W], b float64 [T, W], relative gradient norm [T]); W = X^T alpha. NaN for tasks
        whose K is not finite.
    """
    matrix, finite = regularized(kernel, 0.0)
    matrix /= l2

    @tf.custom_gradient
    def solution(hessian: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., tf.Tensor]]:
        fit, _ = minimise(hessian, targets, bias, tolerance, max_iterations)
        norm = gradient_norm(hessian, targets, fit, l2, bias)

        def gradient(d_dual: tf.Tensor, d_bias: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            return derivative(hessian, fit, d_dual, d_bias, bias)

        return (fit.dual, fit.bias, norm), gradient

    dual, offset, norm = solution(matrix)
    return choose(finite, dual / l2), choose(finite, offset), choose(finite, tf.stop_gradient(norm))


@dataclass(frozen=True)
class Linear(IterativeHead):
    """Softmax regression with an L2 penalty, trained to convergence on the support examples.

    minimise sum_i CE(y_i, x_i W + b) + l2 / 2 ||W||^2;  logits = q W + b.

    Args:
        l2: weight of 1/2 ||W||^2 against the summed loss; positive. Default 1, scikit-learn's C = 1 / l2 = 1.
        bias: fit b, unregularized as in scikit-learn. Default True. Its mean over the classes is 0.
        tolerance: of the last Newton step, relative to the largest score. Default 1e-6: the error left is about its
            square. With many classes and images (see `iterative`) the gradient norm falls to 100 times it, relative
            to that at zero: to 1e-4, where logits are right to some per cent and probabilities within 0.01.
        max_iterations: of Newton's method. Default 100; some ten are usual.

    Raises:
        ValueError: l2, tolerance or max_iterations not positive and finite.

    Example:
        >>> support = tf.constant([[[2.0, 0.0], [0.0, 2.0]]])
        >>> logits = Linear()(support, tf.constant([[0, 1]]), tf.constant([[[1.0, 0.0]]]), ways=2)
        >>> bool(logits[0, 0, 0] > logits[0, 0, 1])
        True

    Reference: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 3.5 has the same
    elimination of the softmax Hessian; Goldblum et al., ICML 2020, table 1 (the "NN" head).
    """

    l2: float = 1.0
    bias: bool = True
    tolerance: float = 1e-6
    max_iterations: int = 100
    name: ClassVar[str] = "linear"
    positive: ClassVar[tuple[str, ...]] = ("l2", "tolerance", "max_iterations")

    def few(self, kernel: tf.Tensor, targets: tf.Tensor) -> Solution:
        return solve(kernel, targets, self.l2, self.bias, self.tolerance, self.max_iterations)

    def many(self, features: tf.Tensor, targets: tf.Tensor, ridge: float) -> Solution:
        return lbfgs.solve(features, targets, self.l2, self.bias, FIRST_ORDER * self.tolerance)

    def gradient_norm(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Norm of the gradient in (W, b) at the solution, relative to its norm at W = 0, b = 0; float64 [T]."""
        return self.solution(inner.support, one_hot_targets(support_labels, ways))[2]
