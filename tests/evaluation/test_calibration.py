"""Expected calibration error and AUROC against loops, and what a fitted temperature and prior reach."""

import numpy as np
import pytest
import sklearn.metrics

from tests.conftest import make_split
from tf_unravel import evaluation, heads
from tf_unravel.evaluation.calibration import auroc

SPLIT = make_split()


def test_the_error_is_the_mean_gap_over_bins():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4) / 2, size=500)
    labels = rng.integers(4, size=500)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for number in range(15):
        inside = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = evaluation.reliability(probabilities, labels)
    assert found.error == pytest.approx(expected) and expected > 0.1
    assert (found.confidence, found.accuracy) == pytest.approx((confidence.mean(), right.mean()))
    certain = evaluation.reliability(np.eye(2), np.array([0, 0]))  # a probability of 1 is in the last bin
    none = (0,) * 14
    assert certain == evaluation.Reliability(0.5, 1.0, 0.5, (*none, 2), (*none, 1.0), (*none, 0.5))


def test_bins_hold_what_a_loop_over_queries_puts_there():
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet(np.ones(5), size=400), rng.integers(5, size=400)
    counts, confidences, accuracies = np.zeros(10, int), np.zeros(10), np.zeros(10)
    for row, label in zip(probabilities, labels, strict=True):
        for number in range(10):
            if number / 10 <= row.max() < (number + 1) / 10:
                counts[number] += 1
                confidences[number] += row.max()
                accuracies[number] += row.argmax() == label
    for number in range(10):
        if counts[number]:
            confidences[number] /= counts[number]
            accuracies[number] /= counts[number]
    found = evaluation.reliability(probabilities, labels, bins=10)
    assert list(found.counts) == counts.tolist() and not counts.all() and counts.sum() == 400
    np.testing.assert_allclose(found.confidences, confidences)
    np.testing.assert_allclose(found.accuracies, accuracies)


def test_auroc_counts_ties_half():
    rng = np.random.default_rng(0)
    known, others = rng.integers(0, 5, (3, 20)).astype(float), rng.integers(-2, 4, (3, 30)).astype(float)
    expected = [sklearn.metrics.roc_auc_score(np.repeat([1, 0], (20, 30)), np.concatenate(pair))
                for pair in zip(known, others, strict=True)]
    np.testing.assert_allclose(auroc(known, others), expected)


def test_a_temperature_that_is_fitted_makes_probabilities_mean_what_they_say():
    """Gaussian classes: the errors are small after it, and large before, whatever the scale of the features."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(SPLIT.num_classes, 12))
    features = means[SPLIT.class_ids] + 1.5 * rng.normal(size=(len(SPLIT.class_ids), 12))
    for scale in (0.1, 10.0):
        found = evaluation.evaluate_calibration(
            scale * features, {"prototypes": heads.Prototypes()}, SPLIT, 3, [5], 8, 100)["prototypes"][5]
        assert found.after.error < 0.06 < 0.1 < found.before.error
        assert found.after.accuracy == found.before.accuracy
    told = evaluation.evaluate_unknown(features, SPLIT, 2, [1, 8], 8, 100, rate=0.1)
    assert 0.5 < told[1].auroc < told[8].auroc < 1 and told[1].false_alarms == 0  # nothing is left out of one image
    assert 0 < told[8].false_alarms < 0.15 and told[8].detected > told[8].false_alarms


def test_a_prior_of_other_classes_is_in_units_of_the_margin_and_has_one_shot_similarities():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(SPLIT.num_classes, 12))[SPLIT.class_ids] + rng.normal(size=(len(SPLIT.class_ids), 12))
    found = [evaluation.fitted_prior(scale * features, heads.Prototypes(), SPLIT, num_tasks=40) for scale in (1, 9)]
    assert found[0].temperature == pytest.approx(found[1].temperature, rel=1e-3) and found[0].temperature != 0.1
    np.testing.assert_allclose(found[0].similarities, found[1].similarities, atol=1e-5)
    assert list(found[0].similarities) == sorted(found[0].similarities) and len(found[0].similarities) == 100
    assert evaluation.fitted_prior(features, heads.FineTune(), SPLIT, num_tasks=40).temperature == 0.1
    told = evaluation.evaluate_unknown(features, SPLIT, 2, [1], 8, 100, rate=0.2, prior=found[0])[1]
    assert 0 < told.false_alarms < told.detected
