"""The episodic learner: gradients through the head's solution, smoothing, one pass or two, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import pictures, small_network
from tf_unravel import backbones, data, evaluate, heads, learners
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.learners.episodic import smoothed_cross_entropy

HEADS = [heads.Prototypes(), heads.Ridge(l2=2.0), heads.SVM()]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(("head", "filters"), [*((head, 3) for head in HEADS), (heads.Ridge(l2=2.0), 8)],
                         ids=["prototypes", "ridge_primal", "svm", "ridge_dual"])
def test_gradient_of_a_whole_step_is_that_of_finite_differences(head, filters, passes):
    """From the loss through the head's solution and both feature sets to every weight of the network, in float64.

    Of 6 support images; with fewer features the ridge is solved in its primal form, with more in its dual.
    """
    keras.config.set_dtype_policy("float64")
    try:
        network = small_network(filters=filters)
        learner = learners.Episodic(network, head, scale=3.0, label_smoothing=0.1, passes=passes, bias=True)
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat(np.arange(3), 2), (2, 1))
    episode = Episode(tf.constant(pictures(rng, 2, 6), tf.float64), labels,
                      tf.constant(pictures(rng, 2, 6), tf.float64), labels)
    variables = learner.backbone.trainable_variables

    def loss():
        return learner.objective(episode, training=True)["loss"]

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [v.value for v in variables])
    support, query = learner.features(episode, training=True)
    np.testing.assert_allclose(value, smoothed_cross_entropy(labels, 3.0 * head(support, labels, query, 3), 0.1))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        directions = [rng.normal(size=v.shape) for v in variables]
        slope = sum(float(tf.reduce_sum(g * d)) for g, d in zip(gradients, directions, strict=True))
        h, start, there = 1e-6, [v.numpy() for v in variables], []
        for sign in (1, -1):
            for variable, w, d in zip(variables, start, directions, strict=True):
                variable.assign(w + sign * h * d)
            there.append(float(loss()))
        for variable, w in zip(variables, start, strict=True):
            variable.assign(w)
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(slope, (there[0] - there[1]) / (2 * h), rtol=1e-4)


def test_smoothing_is_metaoptnets():
    """1 - eps on the true class, eps / (W - 1) on the others: Keras's with s = eps W / (W - 1)."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 4, 5)).astype(np.float32), rng.integers(0, 5, size=(2, 4))
    expected = 0.0
    for row, label in zip(logits.reshape(-1, 5), labels.reshape(-1), strict=True):
        log_p = row - np.log(np.exp(row).sum())
        expected -= sum((0.9 if c == label else 0.1 / 4) * log_p[c] for c in range(5)) / 8
    np.testing.assert_allclose(smoothed_cross_entropy(labels, tf.constant(logits), 0.1), expected, rtol=1e-5)
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.125)
    np.testing.assert_allclose(keras_loss(np.eye(5)[labels], logits), expected, rtol=1e-5)


def batch(seed=0, tasks=2):
    return next(iter(data.episodes(make_split(), ways=3, shots=2, queries=3, tasks_per_batch=tasks, seed=seed)))


def test_two_passes_normalise_support_and_queries_apart():
    """With two passes a support feature does not change with the queries; with one it does."""
    episode, other = batch(), batch(seed=1)
    mixed = Episode(episode.support_images, episode.support_labels, other.query_images, other.query_labels)
    for passes, apart in ((1, False), (2, True)):
        learner = learners.Episodic(small_network(), heads.Ridge(), passes=passes)
        a, b = (learner.features(each, training=True)[0].numpy() for each in (episode, mixed))
        assert np.array_equal(a, b) == apart


def test_what_is_watched_is_normalised_by_the_running_statistics():
    episode, learner = batch(), learners.Episodic(small_network(), heads.Ridge(), label_smoothing=0.1)
    support, query = (
        tf.stack([learner.backbone(images, training=False) for images in each])
        for each in (episode.support_images, episode.query_images)
    )
    logits = heads.Ridge()(support, episode.support_labels, query, 3)
    expected = smoothed_cross_entropy(episode.query_labels, logits, 0.1)
    np.testing.assert_allclose(learner.test_step(episode)["loss"], expected, rtol=1e-4)


def test_the_scale_is_trained_or_not():
    for learn in (True, False):
        learner = learners.Episodic(small_network(), heads.Prototypes(normalize=True), scale=7.0, learn_scale=learn)
        learner.compile(optimizer=keras.optimizers.SGD(0.1))
        learner.train_step(batch())
        assert (float(learner.scale) != 7.0) == learn


def test_weight_decay_reaches_the_scale():
    learner = learners.Episodic(small_network(), heads.Prototypes(), weight_decay=0.5, scale=2.0)
    plain = learners.Episodic(small_network(), heads.Prototypes(), scale=2.0)
    for each in (learner, plain):
        each.compile(optimizer=keras.optimizers.SGD(0.1))
        each.train_step(batch())
    np.testing.assert_allclose(float(plain.scale) - float(learner.scale), 0.1 * 0.5 * 2.0, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_learns_saves_and_loads(head, tmp_path):
    split = make_split()
    learner = learners.Episodic(backbones.conv4((16, 16, 3), filters=4, seed=0), head, label_smoothing=0.1)
    learner.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    tasks = data.episodes(split, ways=4, shots=2, queries=3, tasks_per_batch=4)
    history = learner.fit(tasks, epochs=3, steps_per_epoch=10, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.7
    assert evaluate(learner.backbone, learner.own_head(), split, shots=2, num_tasks=50).mean > 0.6
    learner.save(tmp_path / "episodic.keras")
    loaded = keras.models.load_model(tmp_path / "episodic.keras")
    assert loaded.head == head and float(loaded.scale) == float(learner.scale)
    np.testing.assert_array_equal(loaded.logits(batch(), False), learner.logits(batch(), False))


def test_its_configuration_makes_the_same_learner():
    arguments = {"scale": 3.0, "learn_scale": False, "bias": True, "label_smoothing": 0.1, "passes": 2}
    learner = learners.Episodic(small_network(), heads.Ridge(l2=2.0), weight_decay=5e-4, **arguments)
    again = learners.Episodic.from_config(learner.get_config())
    assert again.head == heads.Ridge(l2=2.0) and float(again.scale) == 3.0 and again.bias is not None
    assert not again.scale.trainable
    assert (again.label_smoothing, again.passes, again.weight_decay) == (0.1, 2, 5e-4)


@pytest.mark.parametrize("bad", [
    {"passes": 3}, {"label_smoothing": 1.0}, {"scale": "ten"}, {"scale": float("nan")}, {"weight_decay": -0.1},
])  # fmt: skip
def test_bad_arguments_are_refused(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f"{name}.*Received: .*{value!r}"):
        learners.Episodic(small_network(), heads.Ridge(), **bad)


@pytest.mark.parametrize("head", ["prototypes", heads.FineTune(), heads.Ridge, None],
                         ids=["name", "on_images", "class", "none"])
def test_a_head_that_is_none_on_features_is_refused(head):
    with pytest.raises(ValueError, match=r"Episodic.head .* @Ridge\(\).*Received: ") as caught:
        learners.Episodic(small_network(), head)
    assert "\n" not in str(caught.value)


def test_batches_that_are_no_episodes_are_refused():
    learner = learners.Episodic(small_network(), heads.Ridge())
    with pytest.raises(ValueError, match=r"Episodic.*run.batches = @Episodes\(\).*Received: "):
        learner.check_batch(data.class_pairs(make_split(), 8).element_spec)
    learner.check_batch(data.episodes(make_split(), 3, tasks_per_batch=2).element_spec)
