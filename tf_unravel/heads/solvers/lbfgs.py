"""Preconditioned L-BFGS for softmax regression in its weights, for many classes and many images.

    minimise over W [D, ways] and b [ways]:   sum_i CE(y_i, x_i W + b) + l2 / 2 ||W||^2                 (1)

With b as the weights of a feature that is always 1 and not penalised, R = diag(l2, ..., l2, 0), F = X W and
P = softmax(F), the gradient is

    G = X^T (P - Y) + R W.                                                                              (2)

L-BFGS keeps the last m pairs s = change of W, y = change of G. With S and Y' of rows s and y, its direction is -H G,

    H G = gamma M G + S^T u - gamma (Y' M)^T p,                                                         (3)
    p = U^-1 S G,   u = U^-T ((E + gamma Y' M Y'^T) p - gamma Y' M G),

U the upper triangle of S Y'^T and E its diagonal: the two-loop recursion as a few products of matrices. H starts not
from a multiple of the identity but from gamma M, gamma = <s, y> / <y, M y> of the newest pair, with

    M = (v X^T X + R)^-1,                                                                               (4)

the inverse Hessian of (1) if every probability had the variance v: one inverse of D x D, and two to three times fewer
iterations. Each iteration costs two products of [S, D] with [D, W]: along the line W + t d the scores are F + t X d, so
that the line search needs none. It looks at slopes only, which rounding spoils later than values: t = 1, and by the
secant rule less where the slope has turned by more than half.

Source: Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989; (3) is equation 3.2 of
Byrd, Nocedal and Schnabel, "Representations of Quasi-Newton Matrices and Their Use in Limited Memory Methods", 1994.

| symbol | name                | shape             |
|--------|---------------------|-------------------|
| X      | features            | [S, D (+ 1)]      |
| Y      | targets             | [S, W]            |
| W      | weights             | [D (+ 1), W]      |
| F      | scores              | [S, W]            |
| G      | gradient            | [D (+ 1), W]      |
| R      | penalty             | [D (+ 1), 1]      |
| S, Y'  | steps, turns        | [m, (D (+ 1)) W]  |
| Y' M   | prepared            | [m, (D (+ 1)) W]  |
"""

from typing import NamedTuple

import tensorflow as tf

from tf_unravel.heads.inner_products import choose, regularized

PAIRS = 10
VARIANCE = 0.1
SLOPE = 0.5
SINGLE_PRECISION_NORM = 1e-4  # rounding of float32 limits the relative gradient norm to some 1e-6
SINGLE_PRECISION_ITERATIONS = 500
MAX_ITERATIONS = 2000


class Problem(NamedTuple):
    """One task; features with a column of ones where there is a bias."""

    features: tf.Tensor
    targets: tf.Tensor
    penalty: tf.Tensor


class Point(NamedTuple):
    """W, F and G."""

    weights: tf.Tensor
    scores: tf.Tensor
    gradient: tf.Tensor


class Pairs(NamedTuple):
    """S, Y' and Y' M, oldest first; zeros where there is none yet."""

    steps: tf.Tensor
    turns: tf.Tensor
    prepared: tf.Tensor


def inner(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """<left, right> of two matrices."""
    return tf.reduce_sum(left * right)


def residual(problem: Problem, scores: tf.Tensor) -> tf.Tensor:
    """P - Y."""
    return tf.nn.softmax(scores, axis=-1) - problem.targets


def gradient_at(problem: Problem, weights: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
    """G of equation (2), from P - Y."""
    return tf.matmul(problem.features, rest, transpose_a=True) + problem.penalty * weights


def preconditioner(problem: Problem) -> tf.Tensor:
    """M of equation (4), [D, D]."""
    features = tf.cast(problem.features, tf.float64)
    gram = VARIANCE * tf.matmul(features, features, transpose_a=True)
    gram = tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) + tf.cast(problem.penalty[:, 0], tf.float64))
    return tf.cast(tf.linalg.inv(regularized(gram[None], 0.0)[0])[0], problem.features.dtype)


def direction(gradient: tf.Tensor, pairs: Pairs, matrix: tf.Tensor) -> tf.Tensor:
    """-H G, equation (3)."""
    flat = tf.reshape(gradient, [-1, 1])
    products = tf.matmul(pairs.steps, pairs.turns, transpose_b=True)  # S Y'^T, [m, m]
    bends = tf.matmul(pairs.prepared, pairs.turns, transpose_b=True)  # Y' M Y'^T, [m, m]
    diagonal = tf.linalg.diag_part(products)
    known = diagonal > 0.0
    gamma = tf.where(known[-1], diagonal[-1] / tf.where(known[-1], bends[-1, -1], 1.0), 1.0)
    upper = tf.linalg.set_diag(products, tf.where(known, diagonal, tf.ones_like(diagonal)))
    p = tf.linalg.triangular_solve(upper, tf.matmul(pairs.steps, flat), lower=False)  # [m, 1]
    right = diagonal[:, None] * p + gamma * (tf.matmul(bends, p) - tf.matmul(pairs.prepared, flat))
    u = tf.linalg.triangular_solve(upper, right, lower=False, adjoint=True)  # [m, 1]
    rest = tf.matmul(pairs.steps, u, transpose_a=True) - gamma * tf.matmul(pairs.prepared, p, transpose_a=True)
    return -(gamma * tf.matmul(matrix, gradient) + tf.reshape(rest, tf.shape(gradient)))


def line_search(problem: Problem, at: Point, change: tf.Tensor) -> Point:
    """The point W + t d."""
    scores_change = tf.matmul(problem.features, change)
    bend = inner(problem.penalty * change, change)
    slope = inner(at.gradient, change)

    def tried(t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rest = residual(problem, at.scores + t * scores_change)
        return rest, inner(rest, scores_change) + inner(problem.penalty * at.weights, change) + t * bend

    def shorter(t: tf.Tensor, _: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, ...]:
        t *= tf.clip_by_value(slope / (slope - found), 0.1, 0.9)
        return t, *tried(t)

    one = tf.ones_like(slope)
    t, rest, _ = tf.while_loop(
        lambda t, rest, found: found > SLOPE * tf.abs(slope), shorter, (one, *tried(one)), maximum_iterations=20
    )
    weights = at.weights + t * change
    return Point(weights, at.scores + t * scores_change, gradient_at(problem, weights, rest))


def remembered(pairs: Pairs, old: Point, new: Point, matrix: tf.Tensor) -> Pairs:
    """The pairs with the newest one in the place of the oldest; as they are where rounding bends it the wrong way."""
    step, turn = new.weights - old.weights, new.gradient - old.gradient
    values = (step, turn, tf.matmul(matrix, turn))
    sound = inner(step, turn) > 0.0
    return Pairs(*[
        tf.cond(sound, lambda k=kept, v=value: tf.concat([k[1:], tf.reshape(v, [1, -1])], axis=0), lambda k=kept: k)
        for kept, value in zip(pairs, values, strict=True)
    ])


@tf.function(reduce_retracing=True)
def minimise(
    problem: Problem, weights: tf.Tensor, tolerance: tf.Tensor, most: tf.Tensor
) -> tuple[Point, tf.Tensor]:
    """L-BFGS from `weights`, until the gradient norm relative to that at zero is at most the tolerance, at most `most`
    iterations.

    Returns:
        (Point, relative gradient norm).
    """
    matrix = preconditioner(problem)
    at_zero = gradient_at(problem, tf.zeros_like(weights), residual(problem, tf.zeros_like(problem.targets)))
    scores = tf.matmul(problem.features, weights)
    start = Point(weights, scores, gradient_at(problem, weights, residual(problem, scores)))

    def relative(gradient: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.norm(gradient), tf.norm(at_zero))

    def body(i: tf.Tensor, at: Point, pairs: Pairs) -> tuple[tf.Tensor, Point, Pairs]:
        new = line_search(problem, at, direction(at.gradient, pairs, matrix))
        return i + 1, new, remembered(pairs, at, new, matrix)

    pairs = Pairs(*[tf.zeros([PAIRS, tf.size(weights)], weights.dtype)] * 3)
    _, at, _ = tf.while_loop(
        lambda i, at, _: (i < most) & (relative(at.gradient) > tolerance), body, (0, start, pairs)
    )
    return at, relative(at.gradient)


def solve(
    features: tf.Tensor, targets: tf.Tensor, l2: float, bias: bool, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Solves (1): in float32, and on in float64 where the tolerance is below what that reaches.

    Args:
        features: X, [S, D], without a column of ones.
        targets: one-hot Y, float64 [S, W].
        l2, bias: see `Linear`.
        tolerance: of the gradient norm relative to that at zero.

    Returns:
        (W float64 [D, W], b float64 [W], relative gradient norm), NaN for features that are not finite.
    """
    features = tf.cast(features, tf.float64)
    square = tf.reduce_mean(tf.reduce_sum(tf.square(features), axis=1))
    scale = tf.math.rsqrt(tf.where(square > 0.0, square, tf.ones_like(square)))
    penalty = tf.fill([tf.shape(features)[1], 1], l2 * scale**2)
    features *= scale
    if bias:
        features = tf.pad(features, [[0, 0], [0, 1]], constant_values=1.0)
        penalty = tf.pad(penalty, [[0, 1], [0, 0]])
    problem = Problem(features, targets, penalty)
    single = Problem(*[tf.cast(value, tf.float32) for value in problem])
    zero = tf.zeros_like(gradient_at(single, 0.0, single.targets))
    single_goal = max(SINGLE_PRECISION_NORM, tolerance)
    rough, norm = minimise(single, zero, tf.constant(single_goal, tf.float32), tf.constant(SINGLE_PRECISION_ITERATIONS))

    def refined() -> tuple[tf.Tensor, tf.Tensor]:
        # A task that float32 cannot hold begins again.
        start = tf.where(tf.reduce_all(tf.math.is_finite(rough.weights)), rough.weights, zero)
        at, norm = minimise(
            problem, tf.cast(start, tf.float64), tf.constant(tolerance, tf.float64), tf.constant(MAX_ITERATIONS)
        )
        return at.weights, norm

    def done() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(rough.weights, tf.float64), tf.cast(norm, tf.float64)

    weights, norm = tf.cond(norm <= tolerance, done, refined)
    weights = choose(tf.math.is_finite(square)[None], weights[None])[0]
    if not bias:
        return scale * weights, tf.zeros_like(targets[0]), norm
    return scale * weights[:-1], weights[-1], norm
