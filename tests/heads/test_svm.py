import cvxpy as cp
import numpy as np
import pytest
import tensorflow as tf

from tests.heads.problems import Tasks, inner_products, make_tasks, relative_error
from tf_unravel.heads import SVM
from tf_unravel.heads.solvers import crammer_singer
from tf_unravel.heads.svm import solve


def objective(kernel, targets, dual, l2=1.0):
    return 0.5 * np.sum(dual * ((kernel + l2 * np.eye(len(kernel))) @ dual)) - np.sum(targets * dual)


def quadratic_programme(kernel, targets, c, l2):
    """MetaOptNet's problem as it is printed, by an interior point solver for general cone programmes."""
    matrix = kernel + l2 * np.eye(len(kernel))
    unit = min(c, 1 / np.diag(matrix).mean())  # general solvers need numbers near 1
    root = np.linalg.cholesky(unit * matrix).T
    dual = cp.Variable(targets.shape)
    value = 0.5 * cp.sum_squares(root @ dual) - cp.sum(cp.multiply(targets, dual))
    for bound in sorted({min(c / unit, 50.0), c / unit}):  # also for the bound: one that is not reached can be nearer
        problem = cp.Problem(cp.Minimize(value), [dual <= bound * targets, cp.sum(dual, axis=1) == 0])
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        if dual.value is not None and dual.value.max() < 0.5 * bound:
            break
    return unit * dual.value


def reference(tasks, c=0.1, l2=1.0, count=2):
    inner = inner_products(tasks)
    return np.stack([
        inner.cross[t].numpy()
        @ quadratic_programme(inner.support[t].numpy(), np.eye(tasks.ways)[tasks.labels[t]], c, l2)
        for t in range(count)
    ])


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize(
    ("shots", "dimension"),
    [((1,) * 5, 60), ((5,) * 5, 60), ((12, 12), 5), ((6,) * 5, 8), ((1, 4, 2), 60), ((2,) * 20, 60)],
    ids=["1-shot", "5-shot", "2 ways S>D", "5 ways S>D", "unequal", "20 ways"],
)
def test_against_a_quadratic_programme(shots, dimension, scale):
    tasks = make_tasks(shots, dimension, scale=scale, positive=True)
    expected = reference(tasks)
    logits = SVM()(tasks.support, tasks.labels, tasks.query, tasks.ways)
    assert relative_error(logits[:2], expected) < 1e-4
    single = [x.astype(np.float32) for x in (tasks.support, tasks.query)]
    assert relative_error(SVM()(single[0], tasks.labels, single[1], tasks.ways)[:2], expected) < 1e-4
    gap = SVM().duality_gap(inner_products(tasks), tasks.labels, tasks.ways)
    # Where K is huge the own-class bound c is 1e5 times the solution and float64 limits the gap that can be seen.
    assert gap.numpy().max() < (1e-8 if scale < 1e3 else 1e-6)


@pytest.mark.parametrize(("c", "l2"), [(10.0, 1.0), (1e-3, 1.0), (0.1, 25.0), (1.0, 0.01)])
def test_other_constants(c, l2):
    tasks = make_tasks((2, 3, 2), 30)
    head = SVM(c=c, l2=l2)
    assert relative_error(head(tasks.support, tasks.labels, tasks.query, 3)[:2], reference(tasks, c, l2)) < 1e-5


def test_two_orthogonal_examples_by_hand():
    # K = 4 I, H = 5 I: each row minimises 5 (a^2) - a over (a, -a), so a = 1/10 on its bound c = 0.1; with c = 1 too.
    support = tf.constant([[[2.0, 0.0], [0.0, 2.0]]], tf.float64)
    for c, a in ((1.0, 0.1), (0.1, 0.1), (0.04, 0.04)):
        logits = SVM(c=c)(support, [[0, 1]], tf.constant([[[1.0, 0.0]]], tf.float64), 2)
        np.testing.assert_allclose(logits, [[[2 * a, -2 * a]]], rtol=1e-9)


def test_the_gap_bounds_the_suboptimality():
    tasks = make_tasks((4, 4, 4), 20, tasks=4)
    kernel = inner_products(tasks).support
    targets = tf.one_hot(tasks.labels, 3, dtype=tf.float64)
    best, gap = solve(kernel, targets, tolerance=1e-12)
    problem, unit = crammer_singer.normalized(kernel + tf.eye(12, dtype=tf.float64), targets, 0.1)
    first = None
    for sweeps in (1, 3, 10, 30):
        rough = crammer_singer.feasible(problem, crammer_singer.warm_start(problem, sweeps))
        claimed = crammer_singer.relative_gap(problem, rough).numpy()
        first = claimed if first is None else first
        rough = (unit * rough).numpy()
        assert (rough <= 0.1 * targets.numpy() + 1e-12).all() and np.abs(rough.sum(-1)).max() < 1e-12
        for t in range(4):
            value = objective(kernel[t].numpy(), targets[t].numpy(), rough[t])
            least = objective(kernel[t].numpy(), targets[t].numpy(), best[t].numpy())
            assert 0 <= value - least <= claimed[t] * abs(value) + 1e-12
    assert (claimed < 1e-3 * first).all()  # and it is not a trivial bound


def test_each_stage_alone_reaches_the_same_point(monkeypatch):
    tasks = make_tasks((3,) * 5, 30, positive=True)
    kernel, targets = inner_products(tasks).support, tf.one_hot(tasks.labels, 5, dtype=tf.float64)
    expected, _ = solve(kernel, targets)
    monkeypatch.setattr(crammer_singer, "ACTIVE_SET_STEPS", 0)
    interior, gap = solve(kernel, targets)
    assert gap.numpy().max() < 1e-8
    np.testing.assert_allclose(interior, expected, atol=1e-7 * np.abs(expected).max())
    _, unfinished = solve(kernel, targets, max_iterations=1)
    assert unfinished.numpy().max() > 1e-6  # the gap tells when it was stopped too early


def test_active_set_steps_alone_are_enough_for_ordinary_tasks(monkeypatch):
    monkeypatch.setattr(crammer_singer.warm_start, "__defaults__", (2,))  # sweeps: a rough start
    monkeypatch.setattr(crammer_singer, "_interior_point_stage", lambda problem, dual, gap, *_: (dual, gap))
    for shots in ((1,) * 5, (4, 4, 4, 4), (1, 4, 2)):
        tasks = make_tasks(shots, 60, tasks=8, positive=True)
        gap = SVM().duality_gap(inner_products(tasks), tasks.labels, tasks.ways)
        assert gap.numpy().max() < 1e-8


def test_badly_conditioned_tasks_go_to_the_interior_point_method():
    # 75 examples in 10 dimensions, large: active-set steps cycle here.
    tasks = make_tasks((15,) * 5, 10, tasks=2, scale=30.0)
    gap = SVM(max_iterations=60).duality_gap(inner_products(tasks), tasks.labels, 5)
    assert gap.numpy().max() < 1e-7


def test_a_hard_task_does_not_spoil_its_batch():
    easy = make_tasks((3, 3), 30, tasks=2)
    hard = np.concatenate([easy.support[:1], 1e3 * np.ones_like(easy.support[:1]), easy.support[1:]])
    labels = np.stack([easy.labels[0], easy.labels[0], easy.labels[1]])
    query = np.concatenate([easy.query[:1], easy.query[:1], easy.query[1:]])
    together = SVM()(hard, labels, query, 2)
    alone = SVM()(easy.support, easy.labels, easy.query, 2)
    np.testing.assert_allclose(together.numpy()[[0, 2]], alone, rtol=1e-12)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("shots", [(1,) * 5, (3, 2, 4)])
def test_gradient_in_the_kernel_entry_by_entry(shots):
    tasks = make_tasks(shots, 30, tasks=1, positive=True)
    kernel, targets = inner_products(tasks).support, tf.one_hot(tasks.labels, len(shots), dtype=tf.float64)
    weights = np.random.default_rng(3).normal(size=targets.shape)

    def loss(kernel):
        return tf.reduce_sum(weights * solve(kernel, targets, tolerance=1e-13)[0])

    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = loss(kernel)
    gradient = tape.gradient(value, kernel)[0].numpy()
    size = len(gradient)
    for i in range(size):
        for j in range(i + 1):
            bump = np.zeros((1, size, size))
            bump[0, i, j] += 1e-4
            bump[0, j, i] += 1e-4
            numeric = float(loss(kernel + bump) - loss(kernel - bump)) / 2e-4
            assert abs(numeric - gradient[i, j] - gradient[j, i]) < 1e-6 * np.abs(gradient).max() + 1e-10


def test_every_constant_must_be_positive():
    for name in ("c", "l2", "tolerance", "max_iterations"):
        with pytest.raises(ValueError, match=f"positive, finite {name}. Received: {name}=0"):
            SVM(**{name: 0})


def test_active_sets_of_the_tasks_are_mixed():
    # Guards the tests above: with nothing at its bound they would check ridge regression.
    tasks = Tasks(*make_tasks((3, 2, 4), 30, tasks=1, positive=True))
    dual, _ = solve(inner_products(tasks).support, tf.one_hot(tasks.labels, 3, dtype=tf.float64))
    at_bound = np.isclose(dual, 0.1 * np.eye(3)[tasks.labels], atol=1e-9)
    assert 0 < at_bound.sum() < at_bound.size


def test_a_row_believed_wholly_at_its_bounds_is_freed():
    # Such a row cannot sum to zero; its system would be singular, and TensorFlow would raise for the whole batch.
    tasks = make_tasks((2, 2, 2), 30, tasks=1, scale=1e-3)
    targets = tf.one_hot(tasks.labels, 3, dtype=tf.float64)
    problem, _ = crammer_singer.normalized(inner_products(tasks).support + tf.eye(6, dtype=tf.float64), targets, 10.0)
    dual, _ = crammer_singer.active_set_step(problem, tf.ones_like(targets, tf.bool))
    np.testing.assert_allclose(tf.reduce_sum(dual, -1), np.zeros([1, 6]), atol=1e-12)
    assert np.isfinite(dual).all()
