"""Preconditioned L-BFGS for softmax regression in its weights, for many classes and many images.

    minimise over W [D, ways] and b [ways]:   sum_i CE(y_i, x_i W + b) + l2 / 2 ||W||^2                 (1)

With b as the weights of a feature that is always 1 and not penalised, R = diag(l2, ..., l2, 0), F = X W and
P = softmax(F), the gradient is

    G = X^T (P - Y) + R W.                                                                              (2)

L-BFGS keeps the last m pairs s = change of W, y = change of G, and gets its direction -H G from the two-loop recursion

    q <- G;   for the pairs, newest first:  a = <s, q> / <s, y>,  q <- q - a y
    q <- gamma M q;   for the pairs, oldest first:  q <- q + s (a - <y, q> / <s, y>)                    (3)

whose start is not a multiple of the identity here but of

    M = (p X^T X + R)^-1,                                                                               (4)

the inverse Hessian of (1) if every probability had the variance p: one Cholesky factor of D x D, and two to three times
fewer iterations. gamma = <s, y> / <y, M y> of the newest pair. Each iteration costs two products of [S, D] with [D, W]:
along the line W + t d the scores are F + t X d, so that the line search needs none. It looks at slopes only, which
rounding spoils later than values: t = 1, and by the secant rule less where the slope has turned by more than half.

Source: Nocedal, "Updating Quasi-Newton Matrices with Limited Storage", 1980; Liu and Nocedal, 1989, for gamma.

| symbol | name                | shape             |
|--------|---------------------|-------------------|
| X      | features            | [S, D (+ 1)]      |
| Y      | targets             | [S, W]            |
| W      | weights             | [D (+ 1), W]      |
| F      | scores              | [S, W]            |
| G      | gradient            | [D (+ 1), W]      |
| R      | penalty             | [D (+ 1), 1]      |
| s, y   | pairs.steps, .turns | [m, D (+ 1), W]   |
| <s, y> | pairs.products      | [m]               |
"""

from typing import NamedTuple

import tensorflow as tf

from tf_unravel.heads.inner_products import regularized

PAIRS = 10
VARIANCE = 0.1
SLOPE = 0.5
SINGLE_PRECISION_NORM = 1e-4  # rounding of float32 limits the relative gradient norm to some 1e-6
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
    """The last changes, oldest first; a pair whose product is infinite counts for nothing."""

    steps: tf.Tensor
    turns: tf.Tensor
    products: tf.Tensor


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
    """-H G by the two-loop recursion (3)."""
    q, amounts = gradient, []
    for i in reversed(range(PAIRS)):
        amounts.append(inner(pairs.steps[i], q) / pairs.products[i])
        q -= amounts[-1] * pairs.turns[i]
    newest = pairs.turns[-1]
    known = tf.math.is_finite(pairs.products[-1])
    curvature = tf.where(known, inner(newest, tf.matmul(matrix, newest)), tf.ones_like(pairs.products[-1]))
    q = tf.where(known, pairs.products[-1] / curvature, tf.ones_like(curvature)) * tf.matmul(matrix, q)
    for i, amount in zip(range(PAIRS), reversed(amounts), strict=True):
        q += (amount - inner(pairs.turns[i], q) / pairs.products[i]) * pairs.steps[i]
    return -q


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


def remembered(pairs: Pairs, old: Point, new: Point) -> Pairs:
    """The pairs with the newest one in the place of the oldest."""
    step, turn = new.weights - old.weights, new.gradient - old.gradient
    product = inner(step, turn)
    product = tf.where(product > 0.0, product, tf.constant(float("inf"), product.dtype))
    return Pairs(*[tf.concat([kept[1:], value[None]], axis=0)
                   for kept, value in zip(pairs, (step, turn, product), strict=True)])


def minimise(problem: Problem, weights: tf.Tensor, tolerance: tf.Tensor) -> tuple[Point, tf.Tensor]:
    """L-BFGS from `weights`, until the gradient norm relative to that at zero is at most the tolerance.

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
        return i + 1, new, remembered(pairs, at, new)

    none = tf.ensure_shape(tf.zeros(tf.concat([[PAIRS], tf.shape(weights)], axis=0), weights.dtype),
                           [PAIRS, *weights.shape])
    pairs = Pairs(none, none, tf.fill([PAIRS], tf.constant(float("inf"), weights.dtype)))
    _, at, _ = tf.while_loop(
        lambda i, at, _: (i < MAX_ITERATIONS) & (relative(at.gradient) > tolerance), body, (0, start, pairs)
    )
    return at, relative(at.gradient)


def solve(
    features: tf.Tensor, targets: tf.Tensor, l2: float, bias: bool, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Solves (1): in float32 as far as that goes, then in float64 if the tolerance asks for it.

    Args:
        features: X, [S, D], without a column of ones.
        targets: one-hot Y, float64 [S, W].
        l2, bias: see `Linear`.
        tolerance: of the gradient norm relative to that at zero.

    Returns:
        (W float64 [D, W], b float64 [W], relative gradient norm), NaN for features that are not finite.
    """
    features = tf.cast(features, tf.float64)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.reduce_sum(tf.square(features), axis=1)))
    penalty = tf.fill([tf.shape(features)[1], 1], l2 * scale**2)
    features *= scale
    if bias:
        features = tf.pad(features, [[0, 0], [0, 1]], constant_values=1.0)
        penalty = tf.pad(penalty, [[0, 1], [0, 0]])
    problem = Problem(features, targets, penalty)
    single = Problem(*[tf.cast(value, tf.float32) for value in problem])
    zero = tf.zeros_like(gradient_at(single, 0.0, single.targets))
    at, _ = minimise(single, zero, tf.constant(max(SINGLE_PRECISION_NORM, tolerance), tf.float32))
    # A task that float32 cannot hold begins again.
    start = tf.where(tf.reduce_all(tf.math.is_finite(at.weights)), at.weights, zero)
    at, norm = minimise(problem, tf.cast(start, tf.float64), tf.constant(tolerance, tf.float64))
    if not bias:
        return scale * at.weights, tf.zeros_like(targets[0]), norm
    return scale * at.weights[:-1], at.weights[-1], norm
