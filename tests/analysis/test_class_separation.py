"""Class separation: hand-derived pairs, double loops, theory for Gaussian classes, degenerate classes."""

import math
import sys

import numpy as np
import pytest

from tf_unravel.analysis import pair_ratios, variance_ratio
from tf_unravel.analysis.class_separation import _pair_distances, _pairs
from tf_unravel.analysis.class_separation import class_separation as measure


def two_classes(x1, x2, y1, y2):
    return np.array([x1, x2, y1, y2], np.float32), np.array([7, 7, 3, 3])


def test_one_pair_by_hand():
    """With two images of two classes every pair drawn is the same one, up to the order of its samples."""
    features, class_ids = two_classes([0, 0], [2, 0], [1, 3], [1, 5])
    # class means (1, 0) and (1, 4), mean of all (1, 2): S_w = 1 + 1 + 1 + 1, S_b = 4 + 4
    found = measure(features, class_ids, num_pairs=400, seed=0)
    assert found.r_fc == pytest.approx(4 / 8) and found.r_fc_error == pytest.approx(0)
    # x1 with y1: d1 = (-1, -3), d2 = (1, -5): |d1 - d2|^2 = 8; x1 with y2: d1 = (-1, -5), d2 = (1, -3): the same
    expected = 8 / ((math.sqrt(10) + math.sqrt(26)) / 2) ** 2
    assert found.r_hv == pytest.approx(expected) and found.r_hv_error == pytest.approx(0)
    # within: 4 / 4 images, between: 8 / 2 classes
    assert found.variance_ratio == pytest.approx((4 / 4) / (8 / 2))
    assert found.num_skipped == 0 and found.num_pairs == 400
    assert found.expected_r_hv == pytest.approx(4 * 0.5 / 4.5)


def test_estimators_equal_double_loops():
    random = np.random.default_rng(0)
    class_ids = random.permutation(np.repeat([0, 1, 2, 3], [5, 9, 3, 4]))
    features = (random.standard_normal((4, 6))[class_ids] + random.standard_normal((21, 6))).astype(np.float32)
    found = measure(features, class_ids, num_pairs=300, seed=5)
    exact = features.astype(np.float64)
    fc, hv = [], []
    for indices in _pairs(class_ids, np.bincount(class_ids), 300, 5):
        x1, x2, y1, y2 = exact[indices]
        mean_x, mean_y = (x1 + x2) / 2, (y1 + y2) / 2
        mean = (x1 + x2 + y1 + y2) / 4
        within = sum(np.sum((x - mean_x) ** 2) for x in (x1, x2)) + sum(np.sum((y - mean_y) ** 2) for y in (y1, y2))
        between = np.sum((mean_x - mean) ** 2) + np.sum((mean_y - mean) ** 2)
        fc.append(within / between)
        d1, d2 = x1 - y1, x2 - y2
        norms = np.linalg.norm(d1) + np.linalg.norm(d2)
        hv.append(4 * (np.linalg.norm(d1 - d2) / norms) ** 2)  # four times the square of the printed one
    assert found.r_fc == pytest.approx(np.mean(fc), rel=1e-9)
    assert found.r_hv == pytest.approx(np.mean(hv), rel=1e-9)
    assert found.r_fc_error == pytest.approx(np.std(fc, ddof=1) / math.sqrt(300), rel=1e-9)
    assert found.r_hv_error == pytest.approx(np.std(hv, ddof=1) / math.sqrt(300), rel=1e-9)
    ratios = pair_ratios(features, class_ids, 300, 5)
    np.testing.assert_allclose(ratios, (fc, hv), rtol=1e-9)  # pair by pair
    assert (found.r_fc, found.r_hv) == (ratios[0].mean(), ratios[1].mean())
    within, means = 0.0, []
    for class_id in range(4):
        of_class = exact[class_ids == class_id]
        means.append(of_class.mean(axis=0))
        within += sum(np.sum((row - means[-1]) ** 2) for row in of_class)
    between = sum(np.sum((row - exact.mean(axis=0)) ** 2) for row in means)
    assert found.variance_ratio == pytest.approx(within / between * 4 / 21, rel=1e-9)
    assert variance_ratio(features, class_ids) == found.variance_ratio


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    class_ids = np.repeat(np.arange(6), 20)
    features = random.standard_normal((120, 10)).astype(np.float32)
    whole = measure(features, class_ids, 1000, 1)
    monkeypatch.setattr(sys.modules[measure.__module__], "_CHUNK_BYTES", 8 * 10 * 7)
    parts = measure(features, class_ids, 1000, 1)
    assert parts.r_fc == pytest.approx(whole.r_fc, rel=1e-12) and parts.r_hv == pytest.approx(whole.r_hv, rel=1e-12)
    assert parts.variance_ratio == pytest.approx(whole.variance_ratio, rel=1e-12)


def test_pairs_are_different_classes_and_images_and_uniform():
    sizes = np.array([2, 3, 4])
    class_ids = np.repeat([0, 1, 2], sizes)
    pairs = _pairs(class_ids, sizes, 24000, seed=0)
    classes = class_ids[pairs]
    assert (classes[:, 0] == classes[:, 1]).all() and (classes[:, 2] == classes[:, 3]).all()
    assert (classes[:, 0] != classes[:, 2]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all() and (pairs[:, 2] != pairs[:, 3]).all()
    counts = np.unique(classes[:, ::2], axis=0, return_counts=True)[1]
    assert len(counts) == 6 and np.sum((counts - 4000) ** 2 / 4000) < 30  # 5 degrees of freedom: one in 10^5
    of_last = pairs[classes[:, 0] == 2, :2]
    counts = np.unique(of_last, axis=0, return_counts=True)[1]
    assert len(counts) == 12 and np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 45  # 11 degrees


@pytest.mark.parametrize("x", [0.2, 1.0, 10.0])
def test_gaussian_classes_follow_theory(x):
    """Ratios of expectations: 4x/(1+x) and 4x/(1+2x); many dimensions make ratios and expectations commute."""
    random = np.random.default_rng(3)
    dimension, classes = 3000, 30
    class_ids = np.repeat(np.arange(classes), 20)
    # b = |m_i - m_j|^2 has the expectation 2 D s^2, w = D: x = 1 / (2 s^2)
    means = random.standard_normal((classes, dimension)) / math.sqrt(2 * x)
    features = (5 + means[class_ids] + random.standard_normal((len(class_ids), dimension))).astype(np.float32)
    found = measure(features, class_ids, num_pairs=2000, seed=0)
    assert found.r_fc == pytest.approx(4 * x / (1 + x), rel=0.02)
    assert found.r_hv == pytest.approx(4 * x / (1 + 2 * x), rel=0.02)
    assert found.r_hv == pytest.approx(found.expected_r_hv, rel=0.01)


def test_where_pairs_differ_the_relation_holds_pair_by_pair_alone():
    """Classes of very different spread: at the mean r_fc the concave curve is far above r_hv, averaged it is not."""
    random = np.random.default_rng(5)
    spreads = np.exp(1.5 * random.standard_normal(40))
    class_ids = np.repeat(np.arange(40), 20)
    means = random.standard_normal((40, 2000))
    features = means[class_ids] + spreads[class_ids, None] * random.standard_normal((800, 2000))
    r_fc, r_hv = pair_ratios(features, class_ids, 4000, 0)
    assert r_hv.mean() < 0.9 * (4 * r_fc.mean() / (4 + r_fc.mean()))
    assert r_hv.mean() == pytest.approx(np.mean(4 * r_fc / (4 + r_fc)), rel=0.02)


def test_published_rows_pass_the_relation():
    """FACTS of the paper: 2.92 leads one to expect 1.69, 3.3487 to expect 1.82."""
    row = measure(*two_classes([0, 0], [2, 0], [1, 3], [1, 5]), num_pairs=2)
    for r_fc, r_hv in ((2.92, 1.69), (3.3487, 1.82)):
        assert type(row)(r_fc, 0, 0, 0, 0, 2, 0, 0).expected_r_hv == pytest.approx(r_hv, abs=0.005)


def test_values_do_not_depend_on_scale_or_offset():
    random = np.random.default_rng(0)
    class_ids = np.repeat(np.arange(5), 10)
    features = random.standard_normal((50, 8))
    plain = measure(features, class_ids, 500)
    for changed in (features * 1e-9, features * 1e9, features + 10):
        found = measure(changed, class_ids, 500)
        assert found.r_fc == pytest.approx(plain.r_fc, rel=1e-6) and found.r_hv == pytest.approx(plain.r_hv, rel=1e-6)


def test_pairs_without_a_ratio_are_left_out_and_counted():
    # classes 0 and 1 are one point: no ratio at all; with class 2 both ratios are 0 over something
    features = np.array([[1.0, 1], [1, 1], [1, 1], [1, 1], [4, 5], [4, 5]])
    found = measure(features, np.array([0, 0, 1, 1, 2, 2]), num_pairs=3000, seed=0)
    assert found.r_fc == 0 and found.r_hv == 0
    assert found.num_skipped == pytest.approx(1000, abs=130)
    assert "without a ratio" in str(found)
    fc, hv = pair_ratios(features, np.array([0, 0, 1, 1, 2, 2]), num_pairs=3000, seed=0)
    np.testing.assert_array_equal(np.isnan(fc), np.isnan(hv))
    assert np.count_nonzero(np.isnan(fc)) == found.num_skipped and np.nanmax(fc) == np.nanmax(hv) == 0


def test_means_that_coincide_skip_r_fc_only():
    found = measure(*two_classes([1, 0], [-1, 0], [0, 1], [0, -1]), num_pairs=10)
    assert math.isnan(found.r_fc) and math.isnan(found.variance_ratio)
    assert found.r_hv == pytest.approx(4)  # d1 = -d2
    assert found.num_skipped == 10
    fc, hv = pair_ratios(*two_classes([1, 0], [-1, 0], [0, 1], [0, -1]), num_pairs=10)
    assert np.isnan(fc).all() and hv == pytest.approx(4)


def test_constant_features_have_no_ratio():
    found = measure(np.ones((8, 3), np.float32), np.repeat([0, 1], 4), num_pairs=10)
    assert math.isnan(found.r_fc) and math.isnan(found.r_hv) and math.isnan(found.variance_ratio)


def test_the_seed_decides_the_pairs():
    random = np.random.default_rng(0)
    features, class_ids = random.standard_normal((60, 4)), np.repeat(np.arange(6), 10)
    assert measure(features, class_ids, 50, 1) == measure(features, class_ids, 50, 1)
    assert measure(features, class_ids, 50, 1).r_fc != measure(features, class_ids, 50, 2).r_fc


def test_pair_distances_in_float32_do_not_lose_close_points():
    features = np.float32(1000) + np.float32([[0, 0], [0.25, 0], [0, 0.5], [0.25, 0.5]])
    distances = _pair_distances(features, np.array([[0, 1, 2, 3]]))[:, 0]
    np.testing.assert_allclose(distances, [0.125, 0.25, 0.25, 0.25, 0], atol=1e-12)


ERRORS = [
    (np.ones((4, 2)), np.array([0, 0, 1]), {}, "class_ids (3,)"),
    (np.ones(4), np.array([0, 0, 1, 1]), {}, "features (4,)"),
    (np.ones((4, 2)), np.zeros(4, int), {}, "1 classes"),
    (np.ones((3, 2)), np.array([0, 0, 1]), {}, "the smallest with 1 images"),
    (np.full((4, 2), np.nan), np.array([0, 0, 1, 1]), {}, "NaN or infinity"),
    (np.ones((4, 2)), np.array([0, 0, 1, 1]), {"num_pairs": 1}, "num_pairs=1"),
]


@pytest.mark.parametrize("features, class_ids, options, message", ERRORS, ids=[message for *_, message in ERRORS])
def test_errors_show_what_was_received(features, class_ids, options, message):
    with pytest.raises(ValueError) as error:
        measure(features, class_ids, **options)
    assert message in str(error.value)


def test_pairs_are_the_same_for_two_extractors():
    """What differs between two feature spaces differs pair by pair: one class moved changes only the pairs with it."""
    random = np.random.default_rng(0)
    class_ids = np.repeat(np.arange(4), 6)
    features = random.standard_normal((24, 5))
    moved = features + 100 * (class_ids == 2)[:, None]
    (a, _), (b, _) = (pair_ratios(values, class_ids, 400, 1) for values in (features, moved))
    with_it = (class_ids[_pairs(class_ids, np.full(4, 6), 400, 1)] == 2).any(axis=1)
    np.testing.assert_array_equal(a != b, with_it)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="num_pairs=0"):
        pair_ratios(np.ones((4, 2)), np.array([0, 0, 1, 1]), num_pairs=0)
