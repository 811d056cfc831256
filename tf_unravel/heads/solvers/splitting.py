"""Douglas-Rachford splitting for the Crammer-Singer support vector machine, for many classes and many images.

The problem is that of `crammer_singer`, one task at a time, with K = X X^T never formed:

    minimise  f(A) = 1/2 tr(A^T (X X^T + l2 I) A) - tr(Y^T A)   subject to  A <= c Y,  A 1 = 0          (1)

A quadratic under the row sums, and bounds: each alone is easy. With Z = min(V, c Y) the two take turns, over-relaxed by
r in (0, 2):

    V <- V + r (P(2 Z - V) - Z),   P(U) = argmin over A 1 = 0 of  f(A) + rho / 2 ||A - U||^2            (2)
                                        = (X X^T + (l2 + rho) I)^-1 (Y + rho U), row means subtracted.

By the matrix inversion lemma the inverse is that of a D x D matrix, computed once for each rho,

    (X X^T + s I)^-1 R = (R - X M X^T R) / s,   M = (X^T X + s I)^-1,                                   (3)

so that a sweep costs two products of [S, D] with [D, W], whatever the state of the active set. Subtracting row means
acts on the ways and the inverse on the examples: the two commute.

l2 > 0 makes (1) the dual of a smooth problem: with W = X^T A, F = X W, a_i and f_i the rows of A and F,

    minimise over W  1/2 ||W||^2 + sum_i max over a in C_i of <a, y_i - f_i> - l2 / 2 ||a||^2,           (4)
    C_i = {a <= c y_i, <a, 1> = 0}.

The duality gap between (1) and (4) is what the rows could still gain. With G = F + l2 A - Y,

    gap(A) = sum_i  -<d_i, g_i> - l2 / 2 ||d_i||^2,   d_i = (projection of (y_i - f_i) / l2 onto C_i) - a_i.   (5)

It is smaller than (6) of `crammer_singer`, which leaves the last term out; that one shrinks with the square root of (5)
only, because hardly an example reaches c.

The best rho differs from problem to problem. It starts at RHO and changes where one of the two residuals of (2), both
relative, is far larger than the other (Boyd et al., "Distributed Optimization and Statistical Learning via the
Alternating Direction Method of Multipliers", 2011, section 3.4.1); P = P(2 Z - V), Z' the next Z:

    primal = ||P - Z'|| / max(||P||, ||Z'||),   dual = ||Z' - Z|| / ||V' - Z'||,   rho <- rho sqrt(primal / dual),   (6)
    V <- Z + (V - Z) rho_old / rho, which keeps the multipliers rho (V - Z).

Sweeps that are needed: 60 to 150 where the classes can be separated, as they can when D is large; some hundreds where
examples overlap, and a few thousand where besides l2 is far below the diagonal of K (1e-4 of it, D = 8).

Source of (1): Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", JMLR
2001; of (2): Eckstein and Bertsekas, "On the Douglas-Rachford Splitting Method and the Proximal Point Algorithm for
Maximal Monotone Operators", 1992. LIBLINEAR solves (1) without l2 by coordinate descent over single rows (Keerthi et
al., "A Sequential Dual Method for Large Scale Multi-Class Linear SVMs", KDD 2008; Fan et al., "LIBLINEAR", JMLR 2008).
That takes fewer multiplications, one small vector after the other; (2) is products of matrices alone.

| symbol | name             | shape  |
|--------|------------------|--------|
| X      | features         | [S, D] |
| Y      | targets          | [S, W] |
| A      | dual             | [S, W] |
| V      | iterate          | [S, W] |
| F, G   | scores, gradient | [S, W] |
| c      | bound            | scalar |
"""

from typing import NamedTuple

import tensorflow as tf

from tf_unravel.heads.inner_products import choose, regularized

RHO = 3.0  # in units of the mean diagonal of X X^T + l2 I; 1 and 6 need about half as many sweeps again
UNBALANCED = 3.0  # rho changes by at least this factor: each change costs an inverse
MOST_CHANGE = 5.0
RELAXATION = 1.9
SWEEPS_PER_CHECK = 10
SINGLE_PRECISION_GAP = 1e-4  # rounding hides relative gaps near 1e-6 in float32
SINGLE_PRECISION_SWEEPS = 1000
MAX_SWEEPS = 5000
SETTLED = 4000  # sweeps after which rho stays: convergence is proved for a constant one


class Problem(NamedTuple):
    """One task in units of order 1; `bound` and `l2` are scalars of the features' type."""

    features: tf.Tensor
    targets: tf.Tensor
    bound: tf.Tensor
    l2: tf.Tensor


def normalized(
    features: tf.Tensor, targets: tf.Tensor, c: float, l2: float
) -> tuple[Problem, tf.Tensor, tf.Tensor]:
    """(Problem whose X X^T + l2 I has mean diagonal 1, unit, whether that is finite): A / unit solves it."""
    features = tf.cast(features, tf.float64)
    diagonal = tf.reduce_mean(tf.reduce_sum(tf.square(features), axis=1)) + l2
    finite = tf.math.is_finite(diagonal)
    unit = tf.where(finite, 1.0 / diagonal, tf.ones_like(diagonal))
    return Problem(tf.sqrt(unit) * features, targets, c / unit, l2 * unit), unit, finite


def threshold(values: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """nu [S, 1] with sum_m max(0, nu - values_m) = total > 0 in every row of values [S, W].

    From above: entries that are not below nu leave the sum, until none does (Michelot, 1986).
    """

    def lower(nu: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        below = tf.cast(values < nu, values.dtype)
        count, sums = (tf.reduce_sum(x, axis=1, keepdims=True) for x in (below, below * values))
        new = tf.where(count > 0.0, (total + sums) / tf.maximum(count, 1.0), nu)
        return new, tf.reduce_any(new < nu)

    start = tf.reduce_mean(values, axis=1, keepdims=True) + total / tf.cast(tf.shape(values)[1], values.dtype)
    return tf.while_loop(lambda _, lowered: lowered, lower, (start, True), maximum_iterations=50)[0]


def project(problem: Problem, point: tf.Tensor) -> tf.Tensor:
    """The nearest matrix to `point` with A <= c Y and A 1 = 0: min(c Y, point - nu)."""
    ceiling = problem.bound * problem.targets
    return tf.minimum(ceiling, point - threshold(point - ceiling, problem.bound))


def relative_gap(problem: Problem, dual: tf.Tensor) -> tf.Tensor:
    """gap(A) / |f(A)| of a feasible A, equation (5); infinite where f(A) is not below 0, as it is at the optimum."""
    scores = tf.matmul(problem.features, tf.matmul(problem.features, dual, transpose_a=True))
    gradient = scores + problem.l2 * dual - problem.targets
    gain = project(problem, (problem.targets - scores) / problem.l2) - dual
    gap = -tf.reduce_sum(gain * (gradient + 0.5 * problem.l2 * gain))
    value = 0.5 * tf.reduce_sum(dual * (gradient - problem.targets))
    return tf.where(value >= 0.0, tf.constant(float("inf"), value.dtype), tf.abs(gap) / tf.abs(value))


class State(NamedTuple):
    """V, rho, and X M of equation (3) for that rho."""

    iterate: tf.Tensor
    rho: tf.Tensor
    back: tf.Tensor


def state(problem: Problem, iterate: tf.Tensor, rho: tf.Tensor) -> State:
    """The state for an iterate and a rho; inverts a D x D matrix in float64."""
    features = problem.features
    hessian, _ = regularized(tf.matmul(features, features, transpose_a=True)[None], problem.l2 + rho)
    return State(iterate, rho, tf.matmul(features, tf.cast(tf.linalg.inv(hessian)[0], features.dtype)))


def projections(problem: Problem, at: State) -> tuple[tf.Tensor, tf.Tensor]:
    """Z and P(2 Z - V) of equation (2)."""
    z = tf.minimum(at.iterate, problem.bound * problem.targets)
    right = problem.targets + at.rho * (z + (z - at.iterate))
    right -= tf.reduce_mean(right, axis=1, keepdims=True)
    away = tf.matmul(at.back, tf.matmul(problem.features, right, transpose_a=True))
    return z, (right - away) / (problem.l2 + at.rho)


def swept(problem: Problem, at: State) -> State:
    """One sweep of equation (2)."""
    z, p = projections(problem, at)
    return at._replace(iterate=at.iterate + RELAXATION * (p - z))


def balanced(problem: Problem, at: State) -> State:
    """One more sweep, and after it the rho of equation (6)."""
    z, p = projections(problem, at)
    iterate = at.iterate + RELAXATION * (p - z)
    new = tf.minimum(iterate, problem.bound * problem.targets)
    primal = tf.norm(p - new) * tf.norm(iterate - new)
    dual = tf.norm(new - z) * tf.maximum(tf.norm(p), tf.norm(new))
    change = tf.clip_by_value(tf.sqrt(primal / dual), 1.0 / MOST_CHANGE, MOST_CHANGE)
    # 0 / 0, and rho changes no more, where Z and P have met.
    change = tf.where(tf.math.is_nan(change), tf.ones_like(change), change)
    return tf.cond(
        (change > UNBALANCED) | (change < 1.0 / UNBALANCED),
        lambda: state(problem, new + (iterate - new) / change, at.rho * change),
        lambda: at._replace(iterate=iterate),
    )


@tf.function(reduce_retracing=True)
def sweeps(
    problem: Problem, iterate: tf.Tensor, rho: tf.Tensor, tolerance: tf.Tensor, most: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Equation (2) from `iterate` until the relative gap is below the tolerance, at most `most` times.

    Returns:
        (V, rho, A feasible, relative gap).
    """

    def checked(i: tf.Tensor, at: State, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        _, at = tf.while_loop(lambda j, _: j < SWEEPS_PER_CHECK - 1, lambda j, at: (j + 1, swept(problem, at)), (0, at))
        at = tf.cond(i < SETTLED, lambda: balanced(problem, at), lambda: swept(problem, at))
        dual = project(problem, tf.minimum(at.iterate, problem.bound * problem.targets))
        return i + SWEEPS_PER_CHECK, at, dual, relative_gap(problem, dual)

    start = (0, state(problem, iterate, rho), iterate, tf.constant(float("inf"), iterate.dtype))
    _, at, dual, gap = tf.while_loop(
        lambda i, at, dual, gap: (i < most) & (gap > tolerance), checked, start
    )
    return at.iterate, at.rho, dual, gap


def solve(
    features: tf.Tensor, targets: tf.Tensor, c: float, l2: float, tolerance: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves (1): in float32 as far as that goes, then in float64.

    Args:
        features: X, [S, D].
        targets: one-hot Y, float64 [S, W].
        c, l2, tolerance: see `SVM`; the tolerance is of the relative gap (5).

    Returns:
        (A float64 [S, W] feasible, relative gap float64), NaN for features that are not finite.
    """
    problem, unit, finite = normalized(features, targets, c, l2)
    single = Problem(*[tf.cast(value, tf.float32) for value in problem])
    start, rho = tf.zeros_like(single.targets), tf.constant(RHO, tf.float32)
    goal = tf.constant(max(SINGLE_PRECISION_GAP, tolerance), tf.float32)
    iterate, found, _, _ = sweeps(single, start, rho, goal, tf.constant(SINGLE_PRECISION_SWEEPS))
    # A task that float32 cannot hold begins again.
    held = tf.reduce_all(tf.math.is_finite(iterate)) & tf.math.is_finite(found)
    iterate, found = tf.where(held, iterate, start), tf.where(held, found, rho)
    start, rho = tf.cast(iterate, tf.float64), tf.cast(found, tf.float64)
    _, _, dual, gap = sweeps(problem, start, rho, tf.constant(tolerance, tf.float64), tf.constant(MAX_SWEEPS))
    return choose(finite[None], unit * dual[None])[0], gap
