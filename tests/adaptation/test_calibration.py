"""Folds, the temperature and p_known against NumPy loops that fit without the images left out."""

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from tests.heads.problems import Tasks, make_tasks
from tf_unravel import heads
from tf_unravel.adaptation import calibration, open_set
from tf_unravel.heads import Prior
from tf_unravel.heads.ridge import without

KERNEL_HEADS = (heads.Prototypes(), heads.Ridge(l2=3.0), heads.SVM(), heads.Linear())


def problem(shots: tuple[int, ...] = (3, 1, 2, 7)) -> Tasks:
    """Two tasks with the same labels, classes of unequal size."""
    found = make_tasks(shots=shots, dimension=9, tasks=2)
    order = [np.argsort(labels, kind="stable") for labels in found.labels]
    mixed = np.random.default_rng(3).permutation(len(order[0]))
    support = np.stack([rows[place][mixed] for rows, place in zip(found.support, order, strict=True)])
    return found._replace(support=support, labels=np.stack([np.sort(row)[mixed] for row in found.labels]))


def ridge_by_features(x, y, query, l2):
    """Primal weights, D x D: another way than the head's."""
    return query @ np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ np.eye(y.max() + 1)[y])


def prototypes_by_loop(x, y, query):
    return -np.stack([((query - x[y == m].mean(axis=0)) ** 2).sum(axis=1) for m in range(y.max() + 1)], axis=1)


def margin_by_loop(logits, labels):
    return np.mean([row[y] - np.delete(row, y).mean() for row, y in zip(logits, labels, strict=True)])


def refitted(head, x, y, query):
    if isinstance(head, heads.Ridge):
        return ridge_by_features(x, y, query, head.l2)
    if isinstance(head, heads.Prototypes):
        return prototypes_by_loop(x, y, query)
    return head(x[None], y[None], query[None], int(y.max()) + 1)[0].numpy()


def test_each_fold_leaves_at_most_one_fifth_of_a_class_out_and_never_the_only_image():
    labels = np.array([2, 0, 2, 1, 2, 2, 0, 2, 2, 2])
    assert calibration.folds(labels, 3).numpy().tolist() == [0, 0, 1, -1, 2, 3, 1, 4, 0, 1]


@pytest.mark.parametrize("head", KERNEL_HEADS, ids=lambda head: head.name)
def test_left_out_logits_are_those_of_a_fit_without_the_images(head):
    tasks = problem()
    labels, fold = tasks.labels[0], calibration.folds(tasks.labels[0], tasks.ways).numpy()
    refit = head.refit(tf.constant(tasks.support), tf.constant(labels), tasks.ways)
    found = calibration.left_out_logits(refit, tf.constant(labels), tf.constant(fold), 2, tasks.ways).numpy()
    assert fold.max() == 4 and (found[:, fold < 0] == 0).all()
    for x, of_task in zip(tasks.support, found, strict=True):
        for number in range(5):
            kept, left = fold != number, fold == number
            expected = refitted(head, x[kept], labels[kept], x)
            unit = margin_by_loop(expected[kept], labels[kept])
            np.testing.assert_allclose(of_task[left], expected[left] / unit, rtol=1e-6, atol=1e-8)


def test_one_image_left_out_of_ridge_is_the_hat_matrix_identity():
    tasks, l2 = problem(), 3.0
    x, y = tasks.support[0], tasks.labels[0]
    targets = np.eye(tasks.ways)[y]
    hat = x @ np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T)
    inverse = np.linalg.inv(x @ x.T + l2 * np.eye(len(x)))
    for i in range(len(x)):
        found, _ = without(inverse[None], (inverse @ targets)[None], targets[None], tf.constant([i]))
        rest = np.arange(len(x)) != i
        loop = x[i] @ np.linalg.solve(x[rest].T @ x[rest] + l2 * np.eye(x.shape[1]), x[rest].T @ targets[rest])
        np.testing.assert_allclose(found[0, 0], loop, rtol=1e-9, atol=1e-12)
        by_hat = targets[i] - (targets[i] - hat[i] @ targets) / (1 - hat[i, i])
        np.testing.assert_allclose(found[0, 0], by_hat, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strength", [0.01, 3.0, 100.0])
def test_the_sharpness_minimises_the_penalised_likelihood(strength):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 12, 4)) * [[[0.1]], [[1.0]], [[30.0]]], rng.integers(4, size=12)
    logits[1, np.arange(12), labels] += 9.0  # a task without a mistake: the prior alone holds it
    counted, prior = np.arange(12) < 9, Prior(0.3, strength)
    found = calibration.sharpness(tf.constant(logits), labels, counted, prior).numpy()

    def objective(log_b, z):
        b = np.exp(log_b)
        rows = zip(z[counted], labels[counted], strict=True)
        likelihood = [np.log(np.exp(b * (row - row[y])).sum()) for row, y in rows]
        return sum(likelihood) + strength * (b * 0.3 - np.log(b * 0.3))

    for z, b in zip(logits, found, strict=True):
        best = scipy.optimize.minimize_scalar(objective, args=(z,), bounds=(-8, 8), method="bounded",
                                              options={"xatol": 1e-10})
        assert np.log(b) == pytest.approx(best.x, abs=1e-5)


def test_with_one_image_per_class_the_prior_decides():
    tasks = make_tasks(shots=(1, 1, 1), tasks=1)
    for head in KERNEL_HEADS:
        classifier = head.calibrated_features(tf.constant(tasks.support), tasks.labels, 3, Prior(temperature=0.25))
        unit = margin_by_loop(refitted(head, tasks.support[0], tasks.labels[0], tasks.support[0]), tasks.labels[0])
        probabilities, logits, p_known = classifier.answer(classifier.kept, tf.constant(tasks.query))
        np.testing.assert_allclose(probabilities, tf.nn.softmax(logits / (0.25 * unit)), rtol=1e-5)
        assert (p_known.numpy() == 1).all()  # nothing is known of known images


@pytest.mark.parametrize("head", KERNEL_HEADS, ids=lambda head: head.name)
def test_the_scale_of_the_features_does_not_matter_to_prototypes_nor_the_likeliest_class_to_any(head):
    tasks = problem((4, 4, 4))

    def said(scale):
        classifier = head.calibrated_features(tf.constant(scale * tasks.support), tasks.labels, tasks.ways)
        return classifier.answer(classifier.kept, tf.constant(scale * tasks.query))

    one, ten = said(1.0), said(10.0)
    assert (one.probabilities.numpy().argmax(-1) == one.logits.numpy().argmax(-1)).all()
    np.testing.assert_allclose(one.p_known, ten.p_known)
    if isinstance(head, heads.Prototypes):
        np.testing.assert_allclose(one.probabilities, ten.probabilities, rtol=1e-6)


def test_p_known_counts_the_support_images_that_look_as_strange():
    tasks = problem()
    labels, support, query = tasks.labels[0], tasks.support, tasks.query
    means = open_set.class_means(tf.constant(support), tf.constant(labels), tasks.ways)
    known = open_set.left_out_similarities(tf.constant(support), tf.constant(labels), means, tasks.ways).numpy()
    quantiles = (0.1, 0.4, 0.9)

    def similarity(point, x, y):
        centres = [x[y == m].mean(axis=0) for m in np.unique(y)]
        return max(point @ c / np.linalg.norm(point) / np.linalg.norm(c) for c in centres)

    for task, (x, of_task) in enumerate(zip(support, known, strict=True)):
        scores = []
        for i in range(len(labels)):
            if (labels == labels[i]).sum() == 1:
                assert np.isinf(of_task[i])
                continue
            rest = np.arange(len(labels)) != i
            scores.append(similarity(x[i], x[rest], labels[rest]))
            assert of_task[i] == pytest.approx(scores[-1], rel=1e-9)
        found = open_set.similarities(tf.constant(query), means)
        p_known = open_set.p_known(found, tf.constant(known), quantiles)[task].numpy()
        for point, p in zip(query[task], p_known, strict=True):
            s = similarity(point, x, labels)
            p_0 = (1 + sum(value <= s for value in quantiles)) / 4
            assert p == pytest.approx((p_0 + sum(score <= s for score in scores)) / (1 + len(scores)))


def test_tasks_of_different_labels_are_not_calibrated_together():
    tasks = make_tasks(shots=(2, 2, 2), tasks=2)
    with pytest.raises(ValueError, match="must have the same support labels in the same order. Received: "):
        heads.Ridge().calibrated_features(tf.constant(tasks.support), tasks.labels, 3)
    with pytest.raises(ValueError, match="Prior needs a positive, finite temperature. Received: temperature=0.0"):
        Prior(temperature=0.0)


def test_a_head_of_the_users_own_and_one_that_adapts():
    """From images; a head on features is refitted, one that adapts keeps its softmax, and p_known is the same."""
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(6)])
    images = np.random.default_rng(0).integers(0, 255, (12, 4, 4, 1)).astype(np.uint8)
    labels = np.repeat(np.arange(3), 3)[None]

    def nearest(support, support_labels, query, ways):
        return heads.Prototypes()(support, support_labels, query, ways)

    def said(head):
        return heads.as_head("head", head).calibrated(backbone, images[None, :9], labels, 3)(images[None, 9:])

    own, prototypes, tuned = said(nearest), said(heads.Prototypes()), said(heads.FineTune(steps=1, learning_rate=0.0))
    for found, expected in zip(own, prototypes, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(tuned.probabilities, tf.nn.softmax(tuned.logits))
    np.testing.assert_allclose(tuned.p_known, prototypes.p_known)
