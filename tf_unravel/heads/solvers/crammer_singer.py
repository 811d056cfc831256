"""A batched solver for the dual of the Crammer-Singer support vector machine.

    minimise  f(A) = 1/2 tr(A^T H A) - tr(Y^T A)
    subject to  A <= c Y elementwise,  A 1 = 0                                                      (4)

with H = K + l2 I. Off-class entries are at most 0 and the own-class entry, minus their sum, at most c. H acts on every
column of A alike, so nothing larger than S x S is factorised. Optimality: with G = H A - Y there are nu and z with

    G + z + nu 1^T = 0,   z >= 0,   z (c Y - A) = 0.                                                (5)

The duality gap of a feasible A, which bounds f(A) - min f, is what its rows could still gain:

    gap(A) = sum_im (c Y - A)_im (max_m' G_im' - G_im).                                             (6)

Three stages, each working only on the tasks that the one before left above the tolerance:

1. *Warm start*: Douglas-Rachford splitting between (H, row sums) and (bounds), a fixed number of sweeps with one S x S
   inverse a task. Seldom exact, but it finds most of the active set.
2. *Active set*: solve (5) with the entries believed at their bound fixed, move entries whose sign is wrong between the
   sets, repeat (primal-dual active set, a semismooth Newton method). One to three steps from the warm start, then
   exact; it may cycle when H is badly conditioned.
3. *Interior point*: Mehrotra's predictor-corrector from a strictly feasible start. Slower, but its 8 to 25 iterations
   hardly depend on conditioning; ends with one active-set step.

Everything is computed for A / unit with unit = min(c, 1 / mean diag H), where H, A and the multipliers are of order 1
whatever the scale of the features; the bound becomes `bound` Y with bound = c / unit >= 1.

| symbol | name      | shape     |
|--------|-----------|-----------|
| H      | hessian   | [T, S, S] |
| Y      | targets   | [T, S, W] |
| A      | dual      | [T, S, W] |
| z      | z         | [T, S, W] |
| c      | bound     | [T, 1, 1] |
"""

from typing import NamedTuple

import tensorflow as tf

from tf_unravel.heads.inner_products import choose
from tf_unravel.heads.solvers import saddle

WARM_SWEEPS = 15
RELAXATION = 1.7
ACTIVE_SET_STEPS = 8


class Problem(NamedTuple):
    """One batch of problems (4) in units of order 1, all float64."""

    hessian: tf.Tensor
    targets: tf.Tensor
    bound: tf.Tensor


def normalized(hessian: tf.Tensor, targets: tf.Tensor, c: float) -> tuple[Problem, tf.Tensor]:
    """(Problem in units of `unit`, unit [T, 1, 1]): A / unit solves it with unit H and the bound c / unit."""
    scale = tf.reduce_mean(tf.linalg.diag_part(hessian), axis=-1)[:, None, None]  # [T, 1, 1]
    unit = tf.minimum(tf.constant(c, tf.float64), 1.0 / scale)
    return Problem(unit * hessian, targets, c / unit), unit


def feasible(problem: Problem, dual: tf.Tensor) -> tf.Tensor:
    """The feasible point with the off-class entries of `dual`, cut at 0 and shrunk where their sum passes the bound.

    Entries at their bound stay there exactly.
    """
    others = tf.minimum(dual, 0.0) * (1.0 - problem.targets)
    total = -tf.reduce_sum(others, axis=-1, keepdims=True)  # [T, S, 1]
    shrink = tf.minimum(tf.math.divide_no_nan(problem.bound, total), 1.0)
    shrink = tf.where(total > 0.0, shrink, tf.ones_like(shrink))
    return shrink * (others + total * problem.targets)


def slacks(problem: Problem, dual: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Primal slack c Y - A, dual slack max_m G_im - G_im, both at least 0, and G = H A - Y, for a feasible A."""
    gradient = tf.matmul(problem.hessian, dual) - problem.targets
    room = tf.maximum(problem.bound * problem.targets - dual, 0.0)
    return room, tf.reduce_max(gradient, axis=-1, keepdims=True) - gradient, gradient


def relative_gap(problem: Problem, dual: tf.Tensor) -> tf.Tensor:
    """gap(A) / |f(A)|, [T], of a feasible A, equation (6); infinite for A = 0, which is never optimal."""
    room, dual_slack, gradient = slacks(problem, dual)
    gap = tf.reduce_sum(room * dual_slack, axis=[1, 2])
    value = 0.5 * tf.reduce_sum(dual * (gradient - problem.targets), axis=[1, 2])
    return tf.where(value < 0.0, gap / tf.where(value < 0.0, -value, 1.0), tf.constant(float("inf"), tf.float64))


def warm_start(problem: Problem, sweeps: int = WARM_SWEEPS) -> tf.Tensor:
    """Stage 1: Douglas-Rachford sweeps V <- V + relaxation (A - Z).

    Z = min(V, c Y);  A = (H + rho)^-1 (Y + rho (2 Z - V)), its row means subtracted. (Subtracting row means acts on
    the ways and the inverse on the examples: the two commute.) rho is half of what the average diagonal entry of H
    exceeds the average off-diagonal one by, the scale of the directions in which examples differ.

    Returns:
        Z of the last sweep, [T, S, W].
    """
    size = tf.cast(tf.shape(problem.hessian)[1], tf.float64)
    diagonal = tf.reduce_mean(tf.linalg.diag_part(problem.hessian), axis=-1)  # [T]
    rest = (tf.reduce_mean(problem.hessian, axis=[1, 2]) * size - diagonal) / tf.maximum(size - 1.0, 1.0)
    rho = tf.maximum(0.5 * (diagonal - rest), 1e-6 * diagonal)[:, None]  # [T, 1]
    shifted = tf.linalg.set_diag(problem.hessian, tf.linalg.diag_part(problem.hessian) + rho)
    inverse = tf.linalg.inv(shifted)
    ceiling = problem.bound * problem.targets
    step = RELAXATION * rho[..., None] * inverse
    start = RELAXATION * tf.matmul(inverse, problem.targets)
    start -= tf.reduce_mean(start, axis=-1, keepdims=True)

    def sweep(i: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        z = tf.minimum(v, ceiling)
        reflected = z + (z - v)
        reflected -= tf.reduce_mean(reflected, axis=-1, keepdims=True)
        return i + 1, v + (start + tf.matmul(step, reflected) - RELAXATION * z)

    _, v = tf.while_loop(lambda i, _: i < sweeps, sweep, (0, tf.zeros_like(problem.targets)))
    return tf.minimum(v, ceiling)


def active_set_step(problem: Problem, active: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Stage 2: the solution of (5) with the active entries at their bound and the others free, and the next guess.

    Args:
        problem: the problems.
        active: bool [T, S, W].

    Returns:
        (A [T, S, W], next active set: active entries whose multiplier is positive, free ones that passed the bound).
    """
    ceiling = problem.bound * problem.targets
    active &= ~tf.reduce_all(active, axis=-1, keepdims=True)  # a row with nothing free cannot sum to 0
    fixed = tf.where(active, ceiling, tf.zeros_like(ceiling))
    system = saddle.factorise(problem.hessian, tf.cast(~active, tf.float64))
    right = problem.targets - tf.matmul(problem.hessian, fixed)
    free, nu = saddle.solve(system, right, -tf.reduce_sum(fixed, axis=-1))
    dual = fixed + free
    multiplier = problem.targets - tf.matmul(problem.hessian, dual) - nu[..., None]
    return dual, tf.where(active, multiplier > 0.0, dual > ceiling)


class _Iterate(NamedTuple):
    """Strictly interior point: A, its slack s = c Y - A, the multipliers z and nu of (5)."""

    dual: tf.Tensor
    slack: tf.Tensor
    z: tf.Tensor
    nu: tf.Tensor


def interior_start(problem: Problem) -> _Iterate:
    """A = Y - 1/W, and multipliers that make (5) hold but for complementarity."""
    ways = tf.cast(tf.shape(problem.targets)[-1], tf.float64)
    dual = problem.targets - 1.0 / ways
    _, dual_slack, gradient = slacks(problem, dual)
    lift = tf.reduce_mean(dual_slack, axis=[1, 2], keepdims=True) + 1e-3  # [T, 1, 1]
    nu = -(tf.reduce_max(gradient, axis=-1) + lift[..., 0])  # [T, S]
    return _Iterate(dual, problem.bound * problem.targets - dual, dual_slack + lift, nu)


def _longest_step(value: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    """The largest t <= 1 with value + t change >= 0 for each task, [T, 1, 1]."""
    ratio = tf.where(change < 0.0, -value / tf.where(change < 0.0, change, -1.0), tf.ones_like(value))
    return tf.minimum(tf.reduce_min(ratio, axis=[1, 2], keepdims=True), 1.0)


def interior_step(problem: Problem, at: _Iterate) -> _Iterate:
    """Stage 3: one predictor-corrector iteration on s z = target, s = c Y - A.

    Newton's equations reduce to the saddle system with D = z / s:
    (H + z/s) dA + dnu = -(residual of (5)) - target / s + z.
    """
    system = saddle.factorise(problem.hessian, at.slack / (at.slack + at.z))
    residual = tf.matmul(problem.hessian, at.dual) - problem.targets + at.z + at.nu[..., None]
    row_sums = tf.reduce_sum(at.dual, axis=-1)
    mu = tf.reduce_mean(at.slack * at.z, axis=[1, 2], keepdims=True)  # [T, 1, 1]

    def newton(target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        change, dnu = saddle.solve(system, at.z - residual - target / at.slack, -row_sums)
        return change, (target + at.z * change) / at.slack - at.z, dnu

    change, dz, _ = newton(tf.zeros_like(at.z))
    after = (at.slack - _longest_step(at.slack, -change) * change) * (at.z + _longest_step(at.z, dz) * dz)
    centring = (tf.reduce_mean(after, axis=[1, 2], keepdims=True) / mu) ** 3
    change, dz, dnu = newton(centring * mu + change * dz)
    t = 0.99 * tf.minimum(_longest_step(at.slack, -change), _longest_step(at.z, dz))
    return _Iterate(at.dual + t * change, at.slack - t * change, at.z + t * dz, at.nu + t[..., 0] * dnu)


def _rows(problem: Problem, index: tf.Tensor) -> Problem:
    return Problem(*[tf.gather(value, index) for value in problem])


def _better(dual: tf.Tensor, gap: tf.Tensor, new: tf.Tensor, new_gap: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    better = new_gap < gap  # false for NaN
    return choose(better, new, dual), choose(better, new_gap, gap)


def _active_set_stage(
    problem: Problem, dual: tf.Tensor, active: tf.Tensor, tolerance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Active-set steps until every task is done or the steps are used up; finished tasks drop out of the batch."""

    def body(i: tf.Tensor, dual: tf.Tensor, gap: tf.Tensor, active: tf.Tensor) -> tuple[tf.Tensor, ...]:
        index = tf.where(gap > tolerance)[:, 0]
        part = _rows(problem, index)
        new, new_active = active_set_step(part, tf.gather(active, index))
        new = feasible(part, new)
        new, new_gap = _better(tf.gather(dual, index), tf.gather(gap, index), new, relative_gap(part, new))
        place = index[:, None]
        return (
            i + 1,
            tf.tensor_scatter_nd_update(dual, place, new),
            tf.tensor_scatter_nd_update(gap, place, new_gap),
            tf.tensor_scatter_nd_update(active, place, new_active),
        )

    def unfinished(i: tf.Tensor, dual: tf.Tensor, gap: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
        return (i < ACTIVE_SET_STEPS) & tf.reduce_any(gap > tolerance)

    return tf.while_loop(unfinished, body, (0, dual, relative_gap(problem, dual), active))[1:3]


def _interior_point_stage(
    problem: Problem, dual: tf.Tensor, gap: tf.Tensor, tolerance: tf.Tensor, max_iterations: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Interior point iterations on the tasks above their tolerance, then one active-set step."""
    index = tf.where(gap > tolerance)[:, 0]
    part, limit = _rows(problem, index), tf.gather(tolerance, index)

    def body(i: tf.Tensor, dual: tf.Tensor, gap: tf.Tensor, at: _Iterate) -> tuple[tf.Tensor | _Iterate, ...]:
        new = interior_step(part, at)
        # A finished or broken-down task keeps its last iterate: going on would end in 0 / 0.
        sound = (gap > limit) & tf.math.is_finite(tf.reduce_sum(new.dual + new.z, axis=[1, 2]))
        at = _Iterate(*[choose(sound, value, old) for value, old in zip(new, at, strict=True)])
        candidate = feasible(part, at.dual)
        return (i + 1, *_better(dual, gap, candidate, relative_gap(part, candidate)), at)

    def unfinished(i: tf.Tensor, dual: tf.Tensor, gap: tf.Tensor, at: _Iterate) -> tf.Tensor:
        return (i < max_iterations) & tf.reduce_any(gap > limit)

    start = (0, tf.gather(dual, index), tf.gather(gap, index), interior_start(part))
    _, new, new_gap, at = tf.while_loop(unfinished, body, start)
    polished = feasible(part, active_set_step(part, at.z > at.slack)[0])
    new, new_gap = _better(new, new_gap, polished, relative_gap(part, polished))
    place = index[:, None]
    return tf.tensor_scatter_nd_update(dual, place, new), tf.tensor_scatter_nd_update(gap, place, new_gap)


def minimise(problem: Problem, tolerance: float, max_iterations: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves (4) for every task.

    Args:
        problem: from `normalized`.
        tolerance: relative duality gap at which a task is finished.
        max_iterations: of the interior point method.

    Returns:
        (A [T, S, W] feasible, relative gap [T]).
    """
    # Rounding of float64 limits the gap that can be seen when the bound is far away.
    tolerance = tf.maximum(tf.constant(tolerance, tf.float64), 1e-14 * problem.bound[:, 0, 0])  # [T]
    dual = warm_start(problem)
    active = dual >= problem.bound * problem.targets
    dual, gap = _active_set_stage(problem, feasible(problem, dual), active, tolerance)
    return tf.cond(
        tf.reduce_any(gap > tolerance),
        lambda: _interior_point_stage(problem, dual, gap, tolerance, max_iterations),
        lambda: (dual, gap),
    )


def derivative(problem: Problem, dual: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """dL/dH from dL/dA at the solution, by the implicit function theorem on (5).

    With the active set fixed, H dA + dH A + dnu 1^T = 0 on the free entries, dA = 0 on the others, dA 1 = 0: hence
    dA = -N(dH A) with the symmetric operator N of the saddle system, and dL/dH = -N(dL/dA) A^T. An entry counts as
    active where its multiplier exceeds its slack; where both are zero the solution has a kink and this is one side.
    """
    room, dual_slack, _ = slacks(problem, dual)
    system = saddle.factorise(problem.hessian, tf.cast(room >= dual_slack, tf.float64))
    x, _ = saddle.solve(system, upstream)
    outer = tf.matmul(x, dual, transpose_b=True)  # [T, S, S]
    return -0.5 * (outer + tf.linalg.matrix_transpose(outer))
