"""LDA projection: directions known in advance, plain LDA as the limit, noise that must stay noise; the figure."""

import warnings

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tf_unravel.analysis import choose_images, draw, lda_projection
from tf_unravel.analysis.plot_style import figure_png

CLASS_IDS = np.repeat([4, 1, 8], 100)


def separation(points, class_ids=CLASS_IDS):
    """Smallest distance of two class means, in within-class standard deviations."""
    means = np.stack([points[class_ids == c].mean(axis=0) for c in np.unique(class_ids)])
    spread = np.sqrt(np.mean([points[class_ids == c].var(axis=0).mean() for c in np.unique(class_ids)]))
    return min(np.linalg.norm(means[i] - means[j]) for i in range(3) for j in range(i)) / spread


def gaussian_classes(dimension, distance, seed=0):
    random = np.random.default_rng(seed)
    means = np.zeros((9, dimension))
    means[4, 0], means[1, 1], means[8, 2] = distance, distance, distance
    return means[CLASS_IDS] + random.standard_normal((300, dimension))


def test_points_have_unit_spread_within_classes():
    points = lda_projection(gaussian_classes(20, 5.0), CLASS_IDS)
    assert points.shape == (300, 2)
    within = np.mean([points[CLASS_IDS == c].var(axis=0) for c in (1, 4, 8)], axis=0)
    np.testing.assert_allclose(within, 1)


@pytest.mark.parametrize("folds", [1, 10])
def test_with_few_features_it_is_plain_lda(folds):
    random = np.random.default_rng(0)
    class_ids = random.permutation(np.repeat([0, 1, 2], 5000))
    mixing = np.array([[3.0, 1, 0, 0], [0, 0.2, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 2]])
    features = (random.standard_normal((3, 4))[class_ids] + random.standard_normal((15000, 4))) @ mixing
    found = lda_projection(features, class_ids, folds)
    plain = LinearDiscriminantAnalysis(n_components=2).fit(features, class_ids).transform(features)
    for component in range(2):
        assert abs(np.corrcoef(found[:, component], plain[:, component])[0, 1]) > 0.9995


def test_classes_far_apart_show_as_far_apart():
    """Means at the corners of a simplex, sqrt(2) * 5 apart, unit noise."""
    assert separation(lda_projection(gaussian_classes(20, 5.0), CLASS_IDS)) == pytest.approx(5 * 2**0.5, rel=0.1)
    assert separation(lda_projection(gaussian_classes(400, 15.0), CLASS_IDS)) == pytest.approx(15 * 2**0.5, rel=0.1)


@pytest.mark.parametrize("dimension", [100, 1000])
def test_noise_is_not_pulled_apart_however_many_features(dimension):
    noise = gaussian_classes(dimension, 0.0)
    assert separation(lda_projection(noise, CLASS_IDS)) < 0.5
    # images that choose their own directions: means of 100 images are sqrt(2 D / 100) apart in D dimensions
    own = lda_projection(noise, CLASS_IDS, folds=1)
    assert separation(own) == pytest.approx((2 * dimension / 100) ** 0.5, rel=0.25)


def test_shrinking_beats_plain_lda_where_images_are_few():
    """Seen on images that were held out: the directions of plain LDA are mostly noise with 250 features."""
    features = gaussian_classes(250, 3.0)
    kept = np.arange(300) % 10 != 0
    plain = LinearDiscriminantAnalysis(n_components=2).fit(features[kept], CLASS_IDS[kept]).transform(features[~kept])
    assert separation(lda_projection(features, CLASS_IDS)) > 1.5 * separation(plain, CLASS_IDS[~kept])


def test_turning_and_padding_the_features_changes_nothing():
    features = gaussian_classes(6, 3.0) * np.array([1, 2, 3, 4, 5, 6])
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((400, 6)))[0]  # [400, 6], orthonormal columns
    found, turned = lda_projection(features, CLASS_IDS), lda_projection(7 + features @ turn.T, CLASS_IDS)
    padded = lda_projection(np.concatenate([features, np.ones((300, 2)), np.zeros((300, 1))], axis=1), CLASS_IDS)
    for component in range(2):
        assert abs(np.corrcoef(found[:, component], turned[:, component])[0, 1]) > 1 - 1e-9
        assert abs(np.corrcoef(found[:, component], padded[:, component])[0, 1]) > 1 - 1e-9


def test_classes_that_are_points_can_be_drawn():
    points = lda_projection(np.eye(5)[np.repeat([0, 1, 2], 20)], np.repeat([0, 1, 2], 20))
    assert np.isfinite(points).all() and len(np.unique(points.round(6), axis=0)) >= 3


def test_chosen_images_are_of_three_classes_and_the_seed_decides():
    class_ids = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 150))
    chosen = choose_images(class_ids, seed=3)
    assert len(np.unique(chosen)) == 300
    assert (np.unique(class_ids[chosen], return_counts=True)[1] == 100).all()
    np.testing.assert_array_equal(chosen, choose_images(class_ids, seed=3))
    assert set(class_ids[chosen]) != set(class_ids[choose_images(class_ids, seed=4)])
    assert len(choose_images(np.repeat([0, 1, 2], 20))) == 60
    assert len({tuple(sorted(set(class_ids[choose_images(class_ids, seed=s)]))) for s in range(40)}) > 20


def test_the_figure_tells_classes_apart_by_colour_and_marker(tmp_path):
    points = lda_projection(gaussian_classes(20, 5.0), CLASS_IDS)
    figure = draw({"classical": points, "with R_FC": 2 * points}, CLASS_IDS, [f"name {i}" for i in range(9)])
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["classical", "with R_FC"]
    for panel in panels:
        assert len(panel.collections) == 3
        assert len({tuple(drawn.get_edgecolor()[0]) for drawn in panel.collections}) == 3
        assert len({drawn.get_paths()[0].vertices.tobytes() for drawn in panel.collections}) == 3
    np.testing.assert_array_equal(panels[1].collections[0].get_offsets(), 2 * points[CLASS_IDS == 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["name 1", "name 4", "name 8"]
    for suffix in ("png", "svg"):
        figure.savefig(tmp_path / f"lda.{suffix}")
        assert (tmp_path / f"lda.{suffix}").stat().st_size > 5000


def test_each_extractor_may_bring_its_own_images():
    points = lda_projection(gaussian_classes(20, 5.0), CLASS_IDS)
    figure = draw({"a": points, "b": points[:200]}, {"a": CLASS_IDS, "b": CLASS_IDS[:200]})
    assert [len(panel.collections) for panel in figure.axes] == [3, 2]


def test_names_of_any_kind_are_drawn_as_they_are_without_a_warning():
    names = ("動物 $a$", "$b$ _c_", "ü")
    class_ids = np.repeat([0, 1, 2], 100)
    figure = draw({"$run$ 実行": lda_projection(gaussian_classes(20, 5.0), class_ids)}, class_ids, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure_png(figure).startswith(b"\x89PNG")
    drawn = [text._preprocess_math(text.get_text()) for text in (figure.axes[0].title, *figure.legends[0].get_texts())]
    assert drawn == [(name, False) for name in ("$run$ 実行", *names)]


NINE = np.repeat([0, 1, 2], 3)
ERRORS = [
    (lambda: lda_projection(np.ones((6, 4)), np.repeat([0, 1], 3)), "2 classes"),
    (lambda: lda_projection(np.ones((6, 4)), np.arange(5)), "class_ids (5,)"),
    (lambda: lda_projection(np.ones((9, 4)), NINE), "rank 0"),
    (lambda: lda_projection(np.arange(9.0)[:, None] * np.ones(4), NINE), "rank 1"),
    (lambda: lda_projection(np.arange(9.0)[:, None] * np.linspace(0, 1, 40), NINE), "Received: rank 1"),
    (lambda: lda_projection(np.ones((6, 4)), np.repeat([0, 1, 2], 2)), "3 classes of 2 images"),
    (lambda: lda_projection(np.full((9, 4), np.inf), NINE), "NaN or infinity"),
    (lambda: choose_images(np.repeat([0, 1], 3)), "classes=3, but 2 exist"),
    (lambda: draw({}, CLASS_IDS), "no projections"),
    (lambda: draw({"a": np.zeros((5, 2))}, CLASS_IDS), "a, (5, 2)"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
