"""Theorem 1: closed forms, exact sums over discrete classes, the constants of the proof, the figure."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from tf_unravel.analysis import draw_theorem, one_shot_accuracy, variance_ratio_of
from tf_unravel.reproduction.theory import theorem, theorem_check
from tf_unravel.reproduction.theory.theorem import Classes, bound, called_right, distance_at, tighter_bound
from tf_unravel.reproduction.theory.theorem_check import FAMILIES


def misclassified_normals(variance_x, variance_y, distance):
    """P(|z - x| > |z - y|) in one dimension by integration.

    (z - y)^2 - (z - x)^2 = (x - y) (2z - x - y) = a b, with a and b jointly normal.
    """
    mean_a, var_a = -distance, variance_x + variance_y
    mean_b, var_b, cov = -distance, 5 * variance_x + variance_y, variance_y - variance_x

    def integrand(a):
        mean = mean_b + cov / var_a * (a - mean_a)
        positive = stats.norm.sf(0, mean, math.sqrt(var_b - cov**2 / var_a))
        return stats.norm.pdf(a, mean_a, math.sqrt(var_a)) * (positive if a < 0 else 1 - positive)

    width = 10 * math.sqrt(var_a)
    return sum(integrate.quad(integrand, *ends)[0] for ends in ((mean_a - width, 0), (0, mean_a + width)))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("variance_y", [0.3, 1.0, 9.0])
def test_normal_classes_in_one_dimension_by_integration(ratio, variance_y):
    classes = theorem_check.gaussian(ratio, 1, variance_y)
    accuracy, error = one_shot_accuracy(classes, 200_000, seed=1)
    expected = misclassified_normals(1.0, variance_y, distance_at(ratio, 1.0, variance_y))
    assert 1 - accuracy == pytest.approx(expected, abs=4 * error)
    assert error == pytest.approx(math.sqrt(expected * (1 - expected) / 200_000), rel=0.1)


def discrete(points, weights):
    def sample(random, count):
        return points[random.choice(len(points), size=count, p=weights)]

    return sample


def exact(x_points, x_weights, y_points, y_weights):
    """(misclassified, ratio) of discrete classes by summing over all (x, y, z), U built as a mixture."""
    wrong = 0.0
    for (x, p), (y, q), (z, r) in itertools.product(
        list(zip(x_points, x_weights, strict=True)),
        list(zip(y_points, y_weights, strict=True)),
        list(zip(x_points, x_weights, strict=True)),
    ):
        wrong += p * q * r * (np.sum((z - x) ** 2) > np.sum((z - y) ** 2) + 1e-12)

    def variance(points, weights):
        mean = weights @ points
        return sum(w * np.sum((point - mean) ** 2) for point, w in zip(points, weights, strict=True))

    mixture = variance(np.concatenate([x_points, y_points]), np.concatenate([x_weights, y_weights]) / 2)
    return wrong, (variance(x_points, x_weights) + variance(y_points, y_weights)) / mixture


def random_discrete(random):
    dimension, of_x, of_y = random.integers(1, 4), random.integers(1, 5), random.integers(1, 4)
    spread = 10 ** random.uniform(-3, 0.5)
    x, y = (spread * random.standard_normal((n, dimension)) * random.exponential(size=(n, 1)) for n in (of_x, of_y))
    y[:, 0] += 1
    x_weights, y_weights = (random.dirichlet(np.full(n, 0.3)) + 1e-3 for n in (of_x, of_y))
    return x, x_weights / x_weights.sum(), y, y_weights / y_weights.sum()


def test_discrete_classes_by_summing_over_all_draws():
    random = np.random.default_rng(0)
    for _ in range(5):
        x, p, y, q = random_discrete(random)
        wrong, _ = exact(x, p, y, q)
        accuracy, _ = one_shot_accuracy(Classes(discrete(x, p), discrete(y, q), 1.0, 1.0, 1.0), 50_000, seed=2)
        assert 1 - accuracy == pytest.approx(wrong, abs=4 * math.sqrt(wrong * (1 - wrong) / 50_000) + 1e-12)


def test_no_discrete_classes_break_either_bound():
    """Exact probabilities; enough of them at ratios where the bounds say something."""
    random, telling = np.random.default_rng(1), 0
    for _ in range(400):
        wrong, ratio = exact(*random_discrete(random))
        assert 1 - wrong >= tighter_bound(ratio) >= bound(ratio)
        telling += bound(ratio) > 0
    assert telling > 100


def test_the_ratio_is_that_of_a_mixture():
    """By the definition of U, against s / (s/2 + d^2/4); the paper's s + d^2 would give another."""
    random = np.random.default_rng(0)
    for _ in range(20):
        x, p, y, q = random_discrete(random)
        variances = [w @ np.sum((points - w @ points) ** 2, axis=1) for points, w in ((x, p), (y, q))]
        distance = np.linalg.norm(p @ x - q @ y)
        expected = exact(x, p, y, q)[1]
        assert variance_ratio_of(*variances, distance) == pytest.approx(expected, rel=1e-9)
        assert sum(variances) / (sum(variances) + distance**2) < 0.51 * expected or not sum(variances)
    assert variance_ratio_of(1.0, 1.0, 6.0) == pytest.approx(2 / (1 + 9))
    assert variance_ratio_of(3.0, 1.0, 0.0) == 2
    assert variance_ratio_of(0.0, 0.0, 1.0) == 0
    assert math.isnan(variance_ratio_of(0.0, 0.0, 0.0))


@pytest.mark.parametrize("ratio", [1e-4, 0.03, 0.7, 1.9, 2.0])
def test_the_distance_at_a_ratio_gives_that_ratio(ratio):
    assert variance_ratio_of(2.0, 0.7, distance_at(ratio, 2.0, 0.7)) == pytest.approx(ratio)


def test_bounds_by_hand():
    assert bound(0) == 1 and tighter_bound(0) == 1
    assert bound(0.01) == pytest.approx(1 - 0.32 / 0.99)
    assert bound(1 / 33) == pytest.approx(0, abs=1e-12)  # 32/33 / (32/33)
    assert tighter_bound(0.01) == pytest.approx(1 - 0.16 / 1.99)
    assert tighter_bound(2 / 17) == pytest.approx(0, abs=1e-12)  # 32/17 / (32/17)
    assert bound(1) == bound(1.5) == -math.inf and tighter_bound(2) == -math.inf
    grid = np.linspace(0, 1.99, 200)
    assert all(tighter_bound(ratio) >= bound(ratio) for ratio in grid)


def test_the_constants_of_the_proof():
    """2 s / delta^2 at delta = d/4: the tighter bound exactly, and less than the printed one."""
    for ratio in (0.001, 0.02, 0.1):
        delta = distance_at(ratio, 1.0, 2.0) / 4
        assert 1 - 2 * 3.0 / delta**2 == pytest.approx(tighter_bound(ratio))
        assert delta**2 > 3.0 * (1 - ratio) / (16 * ratio)


def test_the_classifier_is_the_nearer_example():
    random = np.random.default_rng(0)
    x, y, z = random.standard_normal((3, 500, 4))
    nearer = [np.linalg.norm(c - a) <= np.linalg.norm(c - b) for a, b, c in zip(x, y, z, strict=True)]
    np.testing.assert_array_equal(called_right(x, y, z), nearer)
    assert 100 < sum(nearer) < 400
    assert called_right(np.array([[1.0]]), np.array([[-1.0]]), np.array([[0.0]]))[0]  # as near to both: class 1


@pytest.mark.parametrize("dimension", [1, 2, 64])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_has_the_moments_and_the_ratio_it_says(name, dimension):
    for ratio in (0.05, 0.7):
        classes = FAMILIES[name](ratio, dimension)
        assert classes.ratio == pytest.approx(ratio, rel=1e-6)
        random = np.random.default_rng(0)
        points = [sample(random, 40_000) for sample in (classes.sample_x, classes.sample_y)]
        assert points[0].shape == points[1].shape == (40_000, dimension)
        tolerance = 0.35 if name.startswith("Student") else 0.06  # the variance of a variance there is infinite
        for seen, variance in zip(points, (classes.variance_x, classes.variance_y), strict=True):
            assert seen.var(axis=0).sum() == pytest.approx(variance, rel=tolerance, abs=1e-12)
        gap = points[1].mean(axis=0) - points[0].mean(axis=0)
        scale = math.sqrt((classes.variance_x + classes.variance_y) / 40_000)
        np.testing.assert_allclose(gap, [classes.distance] + [0] * (dimension - 1), atol=6 * scale)


def test_outliers_are_misclassified_about_as_often_as_the_ratio_says():
    """p (1 - p): z an outlier and x not; no matter which beyond p = 1/2 until the ratio is above 4/3."""
    for ratio in (0.01, 0.1):
        a, b, c = 4 - ratio, 4 + 2 * ratio, 4 * ratio  # a p^2 - b p + c = 0, at c -> 2
        p = (b - math.sqrt(b**2 - 4 * a * c)) / (2 * a)
        accuracy, error = one_shot_accuracy(FAMILIES["outlier"](ratio, 2), 200_000)
        assert 1 - accuracy == pytest.approx(p * (1 - p), abs=4 * error)
        assert 1 - accuracy == pytest.approx(ratio, rel=0.12)
    for ratio, expected in ((0.5, 0.25), (1.2, 0.25), (1.6, 0.5)):
        accuracy, error = one_shot_accuracy(FAMILIES["outlier"](ratio, 1), 50_000)
        assert 1 - accuracy == pytest.approx(expected, abs=4 * error)


def test_a_class_that_is_a_point_is_never_misclassified():
    gaussian = theorem_check.gaussian(1.9, 3)
    point = Classes(lambda random, count: np.zeros((count, 3)), gaussian.sample_y, 0.0, 1.0, gaussian.distance)
    assert one_shot_accuracy(point, 5000) == (1.0, 0.0)


def test_the_seed_decides_and_chunks_only_reorder(monkeypatch):
    classes = FAMILIES["Gaussian"](0.8, 2)
    assert one_shot_accuracy(classes, 3000, 1) == one_shot_accuracy(classes, 3000, 1)
    assert one_shot_accuracy(classes, 3000, 1) != one_shot_accuracy(classes, 3000, 2)
    whole, error = one_shot_accuracy(classes, 30_000, 1)
    monkeypatch.setattr(theorem, "_CHUNK_NUMBERS", 2 * 7)
    assert one_shot_accuracy(classes, 30_000, 1)[0] == pytest.approx(whole, abs=6 * error)


@pytest.fixture(scope="module")
def records():
    return theorem_check.check(ratios=(1e-3, 0.01, 0.1, 1.0), dimensions=(1, 64), draws=4000)


def test_records_of_every_family_hold(records):
    assert [(r.family, r.dimension) for r in records[::4]] == list(itertools.product(FAMILIES, (1, 64)))
    assert [r.ratio for r in records[:4]] == pytest.approx([1e-3, 0.01, 0.1, 1.0])
    for record in records:
        assert record.holds and record.bound == bound(record.ratio) and record.draws == 4000
        again = one_shot_accuracy(FAMILIES[record.family](record.ratio, record.dimension), 4000)
        assert (record.accuracy, record.standard_error) == pytest.approx(again, abs=1e-3)
    assert any(record.bound > 0 and record.accuracy < 1 for record in records)
    assert not records[0]._replace(accuracy=0.5, standard_error=0.01).holds


def test_the_figure_shows_curves_bounds_and_the_vacuous_region(records, tmp_path):
    figure = draw_theorem(records)
    assert [panel.get_title() for panel in figure.axes] == ["1 dimension", "64 dimensions"]
    panel = figure.axes[0]
    assert panel.get_xscale() == panel.get_yscale() == "log"
    printed, tighter = panel.lines[:2]
    for line, factor in ((printed, lambda r: 32 * r / (1 - r)), (tighter, lambda r: 16 * r / (2 - r))):
        np.testing.assert_allclose(line.get_ydata(), factor(line.get_xdata()))
        assert line.get_ydata().max() <= 1
    shaded = panel.patches[0].get_extents().transformed(panel.transData.inverted())
    assert shaded.x0 == pytest.approx(1 / 33)
    assert "vacuous" in panel.texts[0].get_text()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[2:] == list(FAMILIES)
    curves = panel.containers
    assert len({curve[0].get_color() for curve in curves}) == len({curve[0].get_marker() for curve in curves}) == 7
    seen = [r for r in records if r.family == "outlier" and r.dimension == 1 and r.accuracy < 1]
    np.testing.assert_allclose(curves[0][0].get_xydata(), [(r.ratio, 1 - r.accuracy) for r in seen])
    figure.savefig(tmp_path / "theorem.png")
    assert (tmp_path / "theorem.png").stat().st_size > 5000


ERRORS = [
    (lambda: variance_ratio_of(-1.0, 1.0, 1.0), "variance_x=-1.0"),
    (lambda: bound(-0.1), "epsilon=-0.1"),
    (lambda: tighter_bound(math.nan), "epsilon=nan"),
    (lambda: distance_at(0.0, 1.0, 1.0), "ratio=0.0"),
    (lambda: FAMILIES["outlier"](2.5, 1), "ratio=2.5"),
    (lambda: one_shot_accuracy(FAMILIES["Gaussian"](0.1, 1), draws=1), "draws=1"),
    (lambda: draw_theorem([]), "no records"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError, match="Received") as error:
        call()
    assert message in str(error.value)
