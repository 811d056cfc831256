"""The solvers for many classes and images, at sizes that are small but forced to take them."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from tests.heads.problems import inner_products, make_tasks, relative_error
from tests.heads.test_linear import centred
from tf_unravel.heads import SVM, Linear, iterative, linear
from tf_unravel.heads.solvers import lbfgs, splitting

HEADS = [SVM(tolerance=1e-11), Linear(tolerance=1e-11), Linear(bias=False, tolerance=1e-11)]
SHAPES = {"S<D": ((2, 1, 3), 30), "S>D": ((6, 7, 5, 9), 8)}
each_head = pytest.mark.parametrize("head", HEADS, ids=str)
each_shape = pytest.mark.parametrize(("shots", "dimension"), SHAPES.values(), ids=SHAPES)


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(iterative, "MANY", 0)


def call(head, tasks, dtype=np.float64):
    return head(tasks.support.astype(dtype), tasks.labels, tasks.query.astype(dtype), tasks.ways)


@each_head
@each_shape
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_both_solvers_give_the_same_logits(head, shots, dimension, scale, monkeypatch):
    tasks = make_tasks(shots, dimension, tasks=2, scale=scale, positive=True)
    expected = call(head, tasks).numpy()
    monkeypatch.setattr(iterative, "MANY", 0)
    assert relative_error(call(head, tasks, np.float32), expected) < 1e-4
    by_products = head.logits(inner_products(tasks), tasks.labels, tasks.ways)
    assert relative_error(by_products, expected) < 1e-4


@each_head
def test_the_size_decides(head, monkeypatch):
    tasks = make_tasks((2, 2, 2), 10, tasks=1)
    taken = []
    monkeypatch.setattr(type(head), "many", lambda *_: taken.append(1) or pytest.fail("few classes"))
    monkeypatch.setattr(iterative, "MANY", 18)  # 6 images of 3 classes
    call(head, tasks)
    monkeypatch.undo()
    monkeypatch.setattr(type(head), "few", lambda *_: pytest.fail("many classes"))
    monkeypatch.setattr(iterative, "MANY", 17)
    call(head, tasks)
    assert not taken


@each_head
def test_sizes_known_only_when_the_graph_runs(head, monkeypatch):
    monkeypatch.setattr(iterative, "MANY", 20)
    spec = [tf.TensorSpec([None, None, 8], tf.float64), tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None, 8], tf.float64), tf.TensorSpec([], tf.int32)]

    @tf.function(input_signature=spec)
    def graph(support, labels, query, ways):
        with tf.GradientTape() as tape:
            tape.watch(support)
            logits = head(support, labels, query, ways)
        return logits, tape.gradient(logits, support)

    few, large = make_tasks((3, 3), 8), make_tasks((6, 7), 8, tasks=2)
    logits, gradient = graph(few.support, few.labels, few.query, 2)
    assert np.isfinite(gradient).all() and relative_error(logits, call(head, few).numpy()) < 1e-6
    with pytest.raises(tf.errors.InvalidArgumentError, match="have no gradient; train on smaller tasks"):
        graph(large.support, large.labels, large.query, 2)


@each_head
def test_no_gradient_is_one_clear_error(head, many):
    tasks = make_tasks((2, 3), 8, tasks=1)
    support, query = tf.constant(tasks.support), tf.constant(tasks.query)
    for watched in (support, query):
        with tf.GradientTape() as tape:
            tape.watch(watched)
            logits = head(support, tasks.labels, query, 2)
        if watched is query:
            assert np.isfinite(tape.gradient(logits, query)).all()
            continue
        with pytest.raises(ValueError, match="images times classes have no gradient.*Received: 5 images"):
            tape.gradient(logits, support)


@each_head
def test_a_task_that_is_not_finite_is_marked_alone(head, many):
    tasks = make_tasks((2, 2), 8, tasks=3)
    clean = call(head, tasks).numpy()
    tasks.support[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="The logits are not finite"):
        call(head, tasks)
    with pytest.raises(ValueError, match="The logits are not finite"):
        head.logits(inner_products(tasks), tasks.labels, 2)
    logits = tf.function(lambda s, q: head(s, tasks.labels, q, 2))(tasks.support, tasks.query).numpy()
    np.testing.assert_allclose(logits[[0, 2]], clean[[0, 2]], rtol=1e-6)
    assert not np.isfinite(logits[1]).all()


@each_head
@pytest.mark.parametrize("support", ["zeros", "all equal", "huge"])
def test_degenerate_features_stay_finite(head, support, many):
    tasks = make_tasks((3, 2, 4), 6, tasks=1)
    changed = {"zeros": np.zeros_like(tasks.support), "all equal": np.full_like(tasks.support, 3.0),
               "huge": tasks.support * 1e12}[support]
    assert np.isfinite(call(head, tasks._replace(support=changed), np.float32)).all()


class TestSplitting:
    def problem(self, shots=(4, 5, 6), dimension=5, c=0.1):
        tasks = make_tasks(shots, dimension, tasks=1, positive=True)
        targets = tf.one_hot(tasks.labels[0], len(shots), dtype=tf.float64)
        return splitting.Problem(*(tf.constant(x, tf.float64) for x in (tasks.support[0], targets, c, 1.0)))

    def test_projection_by_sorting(self):
        problem = self.problem()
        point = tf.constant(np.random.default_rng(0).normal(size=problem.targets.shape))
        nearest = splitting.project(problem, point).numpy()
        for row, target, got in zip(point.numpy(), problem.targets.numpy(), nearest, strict=True):
            ceiling = 0.1 * target
            values = np.sort(row - ceiling)
            nus = (0.1 + np.cumsum(values)) / np.arange(1, 4)
            nu = nus[(values < nus).sum() - 1]
            np.testing.assert_allclose(got, np.minimum(ceiling, row - nu), atol=1e-12)
            assert abs(got.sum()) < 1e-12

    def test_the_gap_is_that_between_primal_and_dual(self):
        problem = self.problem()
        features, targets = problem.features.numpy(), problem.targets.numpy()
        rough = splitting.project(problem, tf.constant(np.random.default_rng(1).normal(size=targets.shape))).numpy()
        weights = features.T @ rough
        margins = targets - features @ weights
        best = splitting.project(problem, tf.constant(margins)).numpy()
        primal = 0.5 * np.sum(weights**2) + np.sum(best * margins) - 0.5 * np.sum(best**2)
        dual = 0.5 * np.sum(weights**2) + 0.5 * np.sum(rough**2) - np.sum(targets * rough)
        found = splitting.relative_gap(problem, tf.constant(rough))
        if dual < 0:
            np.testing.assert_allclose(found, (primal + dual) / -dual, rtol=1e-9)
        else:
            assert np.isinf(found)
        solved, gap = splitting.solve(problem.features, problem.targets, 0.1, 1.0, 1e-10)
        least = 0.5 * np.sum((features.T @ solved) ** 2) + 0.5 * np.sum(solved**2) - np.sum(targets * solved)
        assert gap < 1e-10 and least <= dual and (solved <= 0.1 * targets + 1e-12).numpy().all()

    def test_the_tolerance_is_reached_and_reported(self, many):
        tasks = make_tasks((4, 5, 6), 5, tasks=2)
        gaps = [SVM(tolerance=t).duality_gap(inner_products(tasks), tasks.labels, 3).numpy() for t in (1e-2, 1e-9)]
        assert (gaps[0] < 1e-2).all() and (gaps[1] < 1e-9).all() and (gaps[0] > gaps[1]).all()

    def test_entries_at_the_bound(self):
        # Guards the tests above, where hardly an example reaches c.
        problem = self.problem(c=1e-3)
        dual, gap = splitting.solve(problem.features, problem.targets, 1e-3, 1.0, 1e-9)
        assert gap < 1e-9 and np.isclose(dual.numpy().max(axis=1), 1e-3).any()


class TestLBFGS:
    @pytest.mark.parametrize("bias", [True, False])
    def test_against_scikit_learn(self, bias, many):
        tasks = make_tasks((6, 9, 5), 4, tasks=1, positive=True)
        model = LogisticRegression(C=2.0, fit_intercept=bias, tol=1e-12, max_iter=500, solver="newton-cholesky")
        expected = centred(model.fit(tasks.support[0], tasks.labels[0]).decision_function(tasks.query[0]))
        assert relative_error(centred(call(Linear(l2=0.5, bias=bias, tolerance=1e-9), tasks))[0], expected) < 1e-5

    def test_the_direction_is_that_of_the_two_loop_recursion(self):
        rng = np.random.default_rng(0)
        half = rng.normal(size=(4, 4))
        hessian, matrix = half @ half.T + np.eye(4), np.diag([1.0, 2.0, 0.5, 1.5])
        pairs = [(s, hessian @ s) for s in rng.normal(size=(3, 4, 2))]
        gradient = rng.normal(size=(4, 2))
        q, amounts = gradient.copy(), []
        for s, y in reversed(pairs):
            amounts.append(np.sum(s * q) / np.sum(s * y))
            q -= amounts[-1] * y
        s, y = pairs[-1]
        q = np.sum(s * y) / np.sum(y * (matrix @ y)) * (matrix @ q)
        for (s, y), a in zip(pairs, reversed(amounts), strict=True):
            q += (a - np.sum(y * q) / np.sum(s * y)) * s
        kept = lbfgs.Pairs(*[tf.zeros([lbfgs.PAIRS, 8], tf.float64)] * 3)
        points = np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((4, 2))
        for s, y in pairs:
            kept = lbfgs.remembered(kept, lbfgs.Point(*map(tf.constant, points)),
                                    lbfgs.Point(*map(tf.constant, (s, points[1], y))), tf.constant(matrix))
        np.testing.assert_allclose(lbfgs.direction(tf.constant(gradient), kept, tf.constant(matrix)), -q, rtol=1e-9)

    def test_the_tolerance_is_reached_and_reported(self, many):
        tasks = make_tasks((4, 5, 6), 5, tasks=2)
        norms = [Linear(tolerance=t / linear.FIRST_ORDER).gradient_norm(inner_products(tasks), tasks.labels, 3).numpy()
                 for t in (1e-2, 1e-9)]
        assert (norms[0] < 1e-2).all() and (norms[1] < 1e-9).all() and (norms[0] > norms[1]).all()

    @pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
    def test_what_the_default_tolerance_leaves(self, scale, monkeypatch):
        """What `Linear` says of it: probabilities within 0.01."""
        tasks = make_tasks((5,) * 20, 64, tasks=1, scale=scale, positive=True)
        exact = tf.nn.softmax(call(Linear(tolerance=1e-11), tasks)).numpy()
        monkeypatch.setattr(iterative, "MANY", 0)
        found = tf.nn.softmax(call(Linear(), tasks)).numpy()
        np.testing.assert_allclose(found, exact, atol=0.01)
        np.testing.assert_array_equal(found.argmax(-1), exact.argmax(-1))
