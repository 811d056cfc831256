"""The regularizer's share of the gradient, against NumPy gradients and finite differences."""

import keras
import numpy as np
import pytest

from tests.conftest import make_split
from tests.learners.problems import small_network
from tests.learners.test_classical import IDS, cross_entropy_gradients, images, learner_of
from tf_unravel import learners, regularizers
from tf_unravel.learners.gradient_share import gradient_norms, regularizer_gradient_share


def scatter(features: np.ndarray) -> float:
    means = np.stack([features[IDS == c].mean(0) for c in range(3)])
    within = sum(((features[i] - means[IDS[i]]) ** 2).sum() for i in range(len(IDS)))
    return within / ((means - features.mean(0)) ** 2).sum()


def scatter_gradient(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """By central differences, in float64."""
    gradient = np.zeros_like(matrix)
    for index in np.ndindex(*matrix.shape):
        step = np.zeros_like(matrix)
        step[index] = 1e-6
        gradient[index] = (scatter(x @ (matrix + step)) - scatter(x @ (matrix - step))) / 2e-6
    return gradient


@pytest.mark.parametrize("coefficient", [0.05, 2.0])
def test_share_by_hand(coefficient):
    learner = learner_of(regularizers.FeatureClustering(coefficient), weight_decay=0.5)
    matrix, kernel, bias = (w.numpy().astype(np.float64) for w in learner.trainable_variables)
    of_loss = of_penalty = 0.0
    found = []
    for seed in range(3):
        x = images(seed).reshape(6, 4).astype(np.float64)
        of_loss += (cross_entropy_gradients(x, matrix, kernel, bias)[0] ** 2).sum()
        of_penalty += coefficient**2 * (scatter_gradient(x, matrix) ** 2).sum()
        found.append(gradient_norms(learner, (images(seed), IDS)))
    assert regularizer_gradient_share(found) == pytest.approx((of_penalty / of_loss) ** 0.5, rel=1e-4)


def test_nothing_pulls_without_a_regularizer():
    norms = gradient_norms(learner_of(), (images(), IDS))
    assert regularizer_gradient_share([norms]) == 0.0
    assert float(norms["cross_entropy_gradient"]) > 0


def test_only_the_regularizer_pulls():
    norms = {"cross_entropy_gradient": 0.0, "regularizer_gradient": 1.0}
    assert regularizer_gradient_share([norms]) == float("inf")


def test_a_look_leaves_no_trace():
    split = make_split()
    learner = learners.Classical(small_network(), 6, regularizers.FeatureClustering(0.1))
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    before = [variable.numpy() for variable in learner.variables]
    gradient_norms(learner, (split.images[::10], split.class_ids[::10]))
    for old, variable in zip(before, learner.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
