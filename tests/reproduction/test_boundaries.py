"""One-shot boundaries: bisectors by hand, a double loop over points, separable classes, the figure."""

import math

import numpy as np
import pytest

from tf_unravel.analysis import draw_boundaries, one_shot_boundaries
from tf_unravel.reproduction.theory.boundaries import bisectors, misclassified_by


def test_a_bisector_by_hand():
    """x = (3, 1), y = (1, 5): the middle is (2, 3), n = (2, -4), n.middle = -8."""
    normals, offsets = bisectors(np.array([[3.0, 1.0]]), np.array([[1.0, 5.0]]))
    np.testing.assert_array_equal(normals, [[2, -4]])
    np.testing.assert_array_equal(offsets, [-8])
    points = np.array([[3.0, 1], [1, 5], [2, 3], [0, 2.5], [0, 1.5]])  # n.p = 2, -18, -8, -10, -6
    assert misclassified_by(normals, offsets, points, np.array([0, 1, 0, 0, 0])) == [1 / 5]
    assert misclassified_by(normals, offsets, points, np.array([0, 1, 1, 0, 1])) == [3 / 5]


@pytest.mark.parametrize("ratio", [1.2, 0.4])
def test_misclassified_equals_a_double_loop(ratio):
    found = one_shot_boundaries(ratio, points=15, draws=40, seed=3)
    shares = []
    for i, j in found.pairs:
        x, y = found.points[i], found.points[j]
        assert (found.class_ids[i], found.class_ids[j]) == (0, 1)
        wrong = 0
        for point, class_id in zip(found.points, found.class_ids, strict=True):
            nearer_to = 0 if np.linalg.norm(point - x) <= np.linalg.norm(point - y) else 1
            wrong += nearer_to != class_id
        shares.append(wrong / 30)
    np.testing.assert_allclose(found.per_pair, shares)
    assert found.misclassified == pytest.approx(np.mean(shares))
    assert found.standard_error == pytest.approx(np.std(shares, ddof=1) / math.sqrt(40))
    x, y = found.points[:15], found.points[15:]

    def variance(points):
        return np.mean(np.sum((points - points.mean(axis=0)) ** 2, axis=1))

    assert found.ratio == pytest.approx((variance(x) + variance(y)) / variance(found.points))  # as many of each


@pytest.mark.parametrize("elongation, ratio", [(1.0, 0.66), (3.0, 1.42), (3.0, 0.1), (6.0, 1.8)])
def test_classes_are_separable_at_every_ratio_and_have_it(elongation, ratio):
    found = one_shot_boundaries(ratio, points=20_000, draws=2, elongation=elongation)
    assert found.points[:20_000, 0].max() < 0 < found.points[20_000:, 0].min()
    assert found.ratio == pytest.approx(ratio, rel=0.02)
    assert np.sum(found.points.var(axis=0)) == pytest.approx(1, rel=0.02)  # Var U
    height, width = np.ptp(found.points[:20_000, 1]), np.ptp(found.points[:20_000, 0])
    assert height / width == pytest.approx(elongation, rel=0.05)


def test_wide_classes_are_misclassified_and_tight_ones_are_not():
    shares = [one_shot_boundaries(ratio).misclassified for ratio in (1.2, 0.8, 0.4, 0.1)]
    assert shares[0] > 0.15 and shares == sorted(shares, reverse=True) and shares[-1] == 0


def test_the_seed_decides():
    a, b, c = (one_shot_boundaries(1.0, 20, 30, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.points, b.points)
    np.testing.assert_array_equal(a.pairs, b.pairs)
    assert not np.array_equal(a.points, c.points) and not np.array_equal(a.pairs, c.pairs)
    np.testing.assert_array_equal(a.pairs, one_shot_boundaries(0.3, 20, 30, seed=1).pairs)
    assert "30 pairs" in str(a)


def test_the_figure_says_ratio_and_share(tmp_path):
    high, low = one_shot_boundaries(1.2, 50, 100), one_shot_boundaries(0.3, 50, 100)
    figure = draw_boundaries(high, low, lines=7)
    assert len(figure.axes) == 2
    for panel, drawn in zip(figure.axes, (high, low), strict=True):
        title = panel.get_title()
        assert f"{drawn.ratio:.2f}" in title and f"{100 * drawn.misclassified:.1f} % ±" in title
        markers = [line for line in panel.lines if line.get_linestyle() == "None"]
        assert len({line.get_marker() for line in markers}) == 2
        np.testing.assert_array_equal(markers[0].get_xydata(), drawn.points[:50])
        lines = [line for line in panel.lines if type(line).__name__ == "AxLine"]
        assert len(lines) == 7
        for line, normal, offset in zip(lines, drawn.normals, drawn.offsets, strict=False):
            for point in (line.get_xy1(), line.get_xy2()):
                assert np.dot(point, normal) == pytest.approx(offset, abs=1e-9)
        typical = np.argmax([line.get_linewidth() for line in lines])
        filled = sum(len(line.get_xydata()) for line in markers[2:])
        assert filled == round(100 * drawn.per_pair[typical])
    figure.savefig(tmp_path / "figure1.png")
    assert (tmp_path / "figure1.png").stat().st_size > 5000


SMALL = one_shot_boundaries(0.5, 3, 4)
ERRORS = [
    (lambda: one_shot_boundaries(1.7), "ratio=1.7"),
    (lambda: one_shot_boundaries(0.7, elongation=1.0), "below the ratio 0.667"),
    (lambda: one_shot_boundaries(0.0), "ratio=0.0"),
    (lambda: one_shot_boundaries(0.5, points=1), "points=1"),
    (lambda: one_shot_boundaries(0.5, draws=1), "draws=1"),
    (lambda: draw_boundaries(SMALL, SMALL, lines=5), "lines=5"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError, match="Received") as error:
        call()
    assert message in str(error.value)
