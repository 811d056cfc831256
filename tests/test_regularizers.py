"""Regularizers against double loops, hand-derived values and the degenerate cases."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel import regularizers

IDS = np.array([4, 4, 1, 1, 9, 9, 2, 2], np.int32)


def features(seed: int = 0, ids: np.ndarray = IDS, dimension: int = 5, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = {i: rng.normal(size=dimension) for i in np.unique(ids)}
    return np.stack([centres[i] + spread * rng.normal(size=dimension) for i in ids])


def loop_scatter(x: np.ndarray, ids: np.ndarray) -> float:
    mu, within, between = x.mean(0), 0.0, 0.0
    for i in np.unique(ids):
        mine = x[ids == i]
        between += ((mine.mean(0) - mu) ** 2).sum()
        for row in mine:
            within += ((row - mine.mean(0)) ** 2).sum()
    return within / between


def loop_hyperplane(x: np.ndarray, ids: np.ndarray) -> float:
    values = []
    for a, b in itertools.combinations(np.unique(ids), 2):
        of_pair = []
        for (x1, x2), (y1, y2) in itertools.product(disjoint_pairs(x[ids == a]), disjoint_pairs(x[ids == b])):
            d1, d2 = x1 - y1, x2 - y2
            of_pair.append(np.linalg.norm(d1 - d2) / (np.linalg.norm(d1) + np.linalg.norm(d2)))
        values.append(np.mean(of_pair))
    return float(np.mean(values))


def disjoint_pairs(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + 2] for i in range(0, len(rows) - 1, 2)]


def test_scatter_by_hand():
    # class 0: {0, 2}, mean 1, scatter 2; class 1: {5, 9}, mean 7, scatter 8; mu = 4; between = 9 + 9.
    value = regularizers.scatter(np.array([[0.0], [2.0], [5.0], [9.0]]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(value, 10.0 / 18.0, rtol=2e-6)


def test_scatter_of_unequal_classes_by_hand():
    # class 0: {0, 2, 4}, mean 2, scatter 8; class 1: {10}; mu = 4; between = 4 + 36.
    value = regularizers.scatter(np.array([[0.0], [10.0], [2.0], [4.0]]), np.array([0, 1, 0, 0]))
    np.testing.assert_allclose(value, 8.0 / 40.0, rtol=2e-6)


@pytest.mark.parametrize("ids", [IDS, np.array([0, 1, 0, 2, 1, 0, 2, 2]), np.arange(8) // 4], ids=str)
def test_scatter_is_the_double_loop(ids):
    x = features(1, ids) + 100.0
    np.testing.assert_allclose(regularizers.scatter(x, ids), loop_scatter(x, ids), rtol=1e-5)


@pytest.mark.parametrize("ids", [IDS, np.array([0, 1, 0, 2, 1, 0, 2, 2])], ids=str)
def test_pairs_is_the_mean_of_the_two_class_ratios(ids):
    x = features(2, ids)
    expected = np.mean([loop_scatter(x[(ids == a) | (ids == b)], ids[(ids == a) | (ids == b)])
                        for a, b in itertools.combinations(np.unique(ids), 2)])
    np.testing.assert_allclose(regularizers.feature_clustering(x, ids, 0.05, pairs=True), 0.05 * expected, rtol=1e-5)


def test_two_forms_agree_on_two_classes():
    ids = np.array([3, 3, 8, 8])
    x = features(3, ids)
    np.testing.assert_allclose(regularizers.feature_clustering(x, ids, 0.1, pairs=True),
                               regularizers.feature_clustering(x, ids, 0.1), rtol=1e-5)


def test_hyperplane_variation_by_hand():
    # x1 = (0,0), x2 = (0,1), y1 = (3,0), y2 = (0,-4): d1 = (-3,0), d2 = (0,5), |d1 - d2| = sqrt(34), / (3 + 5).
    x = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -4.0]])
    ids = np.array([0, 1, 0, 1])
    np.testing.assert_allclose(regularizers.hyperplane_variation(x, ids, 1.0), np.sqrt(34) / 8, rtol=1e-9)
    np.testing.assert_allclose(regularizers.hyperplane_variation(x, ids, 1.0, squared=True), 4 * 34 / 64, rtol=1e-9)


FOUR_EACH = np.array([3, 3, 0, 0, 7, 7, 0, 0, 3, 3, 7, 7])
UNEVEN = np.array([0, 1, 0, 1, 1, 0, 2, 0, 1, 2, 1, 4, 2, 1])  # 4, 6, 3 and 1


@pytest.mark.parametrize(
    "ids", [IDS, np.array([0, 1, 0, 2, 1, 0, 2, 2]), np.array([5, 1, 0, 0, 1, 0]), FOUR_EACH, UNEVEN], ids=str
)
def test_hyperplane_variation_is_the_double_loop(ids):
    x = features(4, ids)
    classes_of_two = np.isin(ids, [i for i in np.unique(ids) if (ids == i).sum() > 1])
    expected = loop_hyperplane(x[classes_of_two], ids[classes_of_two])
    np.testing.assert_allclose(regularizers.hyperplane_variation(x, ids, 0.5), 0.5 * expected, rtol=1e-5)


def test_hyperplane_variation_reads_every_image_of_a_class_with_an_even_number():
    x = tf.constant(features(4, FOUR_EACH))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = regularizers.hyperplane_variation(x, FOUR_EACH, 1.0)
    assert (np.abs(tape.gradient(loss, x).numpy()).max(axis=1) > 1e-4).all()


CASES = {
    "scatter": regularizers.scatter,
    "batch": regularizers.FeatureClustering(0.3),
    "pairs": regularizers.FeatureClustering(0.3, pairs=True),
    "printed": regularizers.HyperplaneVariation(0.3),
    "squared": regularizers.HyperplaneVariation(0.3, squared=True),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_finite_difference(case):
    x = features(5)

    def value(flat):
        return float(CASES[case](tf.constant(flat.reshape(x.shape)), IDS))

    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = CASES[case](variable, IDS)
    gradient = tape.gradient(loss, variable).numpy().ravel()
    steps = 1e-6 * np.eye(x.size)
    numeric = np.array([(value(x.ravel() + s) - value(x.ravel() - s)) / 2e-6 for s in steps])
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_second_derivative_is_the_finite_difference_of_the_first(case):
    x, direction = features(5), features(6)

    def gradient(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = CASES[case](values, IDS)
        return tape.gradient(loss, values)

    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        along = tf.reduce_sum(gradient(variable) * direction)
    numeric = (gradient(tf.constant(x + 1e-6 * direction)) - gradient(tf.constant(x - 1e-6 * direction))) / 2e-6
    np.testing.assert_allclose(tape.gradient(along, variable), numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", ["identical", "classes coincide", "constant feature", "one class", "tight classes"])
def test_degenerate_features_stay_finite(case, dtype, bad):
    x = features(6)
    if bad == "identical":
        x[:] = 3.0
    if bad == "classes coincide":
        x[0::2], x[1::2] = -1.0, 1.0
    if bad == "constant feature":
        x[:, 1] = 7.0
    if bad == "tight classes":
        x[1::2] = x[0::2]
    ids = np.zeros_like(IDS) if bad == "one class" else IDS
    variable = tf.constant(x, dtype)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = CASES[case](variable, ids)
    assert np.isfinite(loss) and loss >= 0
    assert np.isfinite(tape.gradient(loss, variable)).all()


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e20])
@pytest.mark.parametrize("case", ["scatter", "pairs", "printed", "squared"])
def test_scale_of_features_does_not_matter(case, scale):
    x = features(7).astype(np.float32)
    np.testing.assert_allclose(CASES[case](x * np.float32(scale), IDS), CASES[case](x, IDS), rtol=1e-4)


def test_xla_compiles_them_and_gives_the_same():
    x = features(8)
    for case in CASES.values():
        np.testing.assert_allclose(tf.function(case, jit_compile=True)(x, IDS), case(x, IDS), rtol=1e-5)


def test_filter_normalized_distance_by_hand():
    reference = [tf.constant([[3.0, 0.0], [4.0, 1.0]]), tf.constant([1.0, 1.0])]
    weights = [tf.constant([[3.0, 2.0], [9.0, 1.0]]), tf.constant([50.0, 1.0])]
    # column 0 moved by 5 with norm 5, column 1 by 2 with norm 1; the vector does not count.
    np.testing.assert_allclose(regularizers.filter_normalized_distance(weights, reference), np.sqrt(1 + 4), rtol=1e-6)


def test_filter_normalized_distance_ignores_scaling_of_a_filter():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(3, 3, 2, 4))
    scale = np.array([1.0, 10.0, 0.1, 7.0])
    np.testing.assert_allclose(regularizers.filter_normalized_distance([a * scale], [b * scale]),
                               regularizers.filter_normalized_distance([a], [b]), rtol=1e-9)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"Received: features of shape \(4,\)"):
        regularizers.scatter(np.zeros(4), np.zeros(4, int))
    with pytest.raises(ValueError, match="Received: 1 and 2 tensors"):
        regularizers.filter_normalized_distance([np.zeros((2, 2))], [np.zeros((2, 2))] * 2)
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(2, 3\)"):
        regularizers.filter_normalized_distance([np.zeros((2, 2))], [np.zeros((2, 3))])


def test_usable_in_anybodys_keras_model():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return regularizers.feature_clustering(y_pred, y, 0.1)

    model = Mine()
    model.compile("sgd")
    history = model.fit(features(9).astype("float32"), IDS, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
