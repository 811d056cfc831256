import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from tests.heads.problems import inner_products, make_tasks, relative_error
from tf_unravel.heads import Ridge


def closed_form(tasks, l2):
    logits = []
    for x, labels, q in zip(tasks.support, tasks.labels, tasks.query, strict=True):
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ np.eye(tasks.ways)[labels])
        logits.append(q @ weights)
    return np.stack(logits)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("shots", "dimension"), [((1,) * 5, 40), ((5,) * 5, 40), ((9, 9), 6), ((1, 4, 2), 40), ((1,) * 20, 30)]
)
def test_against_numpy(shots, dimension, scale):
    tasks = make_tasks(shots, dimension, scale=scale)
    expected = closed_form(tasks, 50.0)
    assert relative_error(Ridge()(tasks.support, tasks.labels, tasks.query, tasks.ways), expected) < 1e-8
    single = [x.astype(np.float32) for x in (tasks.support, tasks.query)]
    assert relative_error(Ridge()(single[0], tasks.labels, single[1], tasks.ways), expected) < 1e-4
    # The kernel path always takes the dual: it agrees with the primal where S > D.
    assert relative_error(Ridge().logits(inner_products(tasks), tasks.labels, tasks.ways), expected) < 1e-4


def test_against_scikit_learn():
    tasks = make_tasks((3, 2, 4), dimension=20)
    logits = Ridge(l2=7.0)(tasks.support, tasks.labels, tasks.query, 3)
    for t in range(len(tasks.support)):
        reference = SklearnRidge(alpha=7.0, fit_intercept=False).fit(tasks.support[t], np.eye(3)[tasks.labels[t]])
        assert relative_error(logits[t], reference.predict(tasks.query[t])) < 1e-8


def test_primal_equals_dual():
    tasks = make_tasks((8, 5), dimension=12)  # S = 13 > D = 12: the call takes the primal
    primal = Ridge(l2=3.0)(tasks.support, tasks.labels, tasks.query, 2)
    assert relative_error(Ridge(l2=3.0).logits(inner_products(tasks), tasks.labels, 2), primal.numpy()) < 1e-10


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_l2_must_be_positive(l2):
    with pytest.raises(ValueError, match="positive, finite l2. Received: l2="):
        Ridge(l2=l2)
