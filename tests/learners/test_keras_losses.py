"""Weights of examples, regularizers and added losses: what Keras's own training makes of them is the reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import pictures
from tf_unravel import data, evaluate, heads, learners
from tf_unravel.data.sampling.tasks import Episode

RNG = np.random.default_rng(0)
IMAGES, IDS = RNG.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8), np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
WEIGHTS = RNG.uniform(0, 3, 10).astype(np.float32)


@keras.saving.register_keras_serializable(package="tests")
class AddsLoss(keras.layers.Layer):
    """Passes its inputs on and adds their mean square to the loss."""

    def call(self, inputs):
        self.add_loss(0.3 * tf.reduce_mean(tf.square(inputs)))
        return inputs


def network(*behind, **convolution) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(4, 3, **convolution),
        keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), *behind,
    ])  # fmt: skip


NETWORKS = {
    "plain": network,
    "kernel": lambda: network(kernel_regularizer=keras.regularizers.L2(0.5)),
    "bias": lambda: network(bias_regularizer=keras.regularizers.L1(0.7), bias_initializer="ones"),
    "activity": lambda: network(activity_regularizer=keras.regularizers.L2(0.01)),
    "add_loss": lambda: network(AddsLoss()),
    "nested": lambda: network(keras.Sequential([keras.layers.Dense(4, kernel_regularizer="l2"), AddsLoss()])),
}
WEIGHTED = {
    "none": {},
    "zeros": {"sample_weight": np.zeros(10)},
    "sample_weight": {"sample_weight": WEIGHTS},
    "column": {"sample_weight": WEIGHTS[:, None]},
    "class_weight": {"class_weight": {0: 0.2, 1: 3.0, 3: 0.0}},
}
CASES = [*((name, "none") for name in NETWORKS), *(("plain", name) for name in WEIGHTED), ("nested", "sample_weight")]


def trained(model, given) -> dict[str, float]:
    history = model.fit(IMAGES, IDS, batch_size=5, epochs=2, shuffle=False, verbose=0, **given).history
    return {name: values[-1] for name, values in history.items()}


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_classical_trains_as_keras_does(name, weighted):
    """The same network and classifier as one Keras model, whose loss is Keras's cross-entropy; batches of 5.

    SGD with momentum, so that wrong gradients of one step do not go unnoticed in the next.
    """
    learner = learners.Classical(NETWORKS[name](), 4)
    classifier = keras.layers.Dense(4)
    model = keras.Sequential([NETWORKS[name](), classifier])
    model.build((None, 8, 8, 3))
    model.set_weights(learner.get_weights())
    given = WEIGHTED[weighted]
    for each, loss in ((learner, None), (model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))):
        each.compile(
            optimizer=keras.optimizers.SGD(0.5, momentum=0.9), loss=loss, metrics=["accuracy"],
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")], run_eagerly=True,
        )  # fmt: skip
    if weighted == "column":
        model.fit(IMAGES, IDS, batch_size=5, epochs=2, shuffle=False, verbose=0, sample_weight=WEIGHTS)
        trained(learner, given)
    else:
        expected, got = trained(model, given), trained(learner, given)
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for wanted, variable in zip(model.trainable_variables, learner.trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6)
    values = learner.evaluate(IMAGES, IDS, batch_size=10, verbose=0, return_dict=True)
    expected = model.evaluate(IMAGES, IDS, batch_size=10, verbose=0, return_dict=True)
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_weights_of_the_wrong_shape_are_one_line():
    learner = learners.Classical(network(), 4)
    learner.compile(optimizer="sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=r"one number per image, \[B\]. Received: shape \(.*, 2\)"):
        learner.fit(IMAGES, IDS, sample_weight=np.ones((10, 2)), verbose=0)


def test_the_regularizer_and_the_accuracy_do_not_see_weights():
    learner = learners.Classical(network(), 4, lambda features, ids: tf.reduce_sum(features))
    learner.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    plain, none = (
        learner.evaluate(IMAGES, IDS, batch_size=10, sample_weight=given, verbose=0, return_dict=True)
        for given in (None, np.zeros(10))
    )
    assert none["cross_entropy"] == 0 and none["loss"] == none["regularizer"] == plain["regularizer"] > 0
    assert none["accuracy"] == plain["accuracy"]


def an_episode() -> Episode:
    rng, labels = np.random.default_rng(1), tf.constant([[0, 0, 1, 1]] * 2)
    support, query = (tf.constant(pictures(rng, 2, 4)[:, :, :8, :8]) for _ in range(2))
    return Episode(support, labels, query, labels)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", ["kernel", "activity", "add_loss"])
def test_episodic_adds_the_losses_of_its_backbone(name, passes):
    """Against the gradient of the bare loss plus that of the penalty, each on a tape of its own."""
    given, plain, episode = NETWORKS[name](), NETWORKS["plain"](), an_episode()
    learner = learners.Episodic(given, heads.Ridge(), passes=passes)
    bare = learners.Episodic(plain, heads.Ridge(), passes=passes)
    groups = [episode.support_images, episode.query_images] if passes == 2 else [tf.concat(episode[::2], axis=1)]

    def penalty():
        kernel = 0.5 * tf.reduce_sum(tf.square(plain.layers[1].kernel))
        if name == "kernel":
            return kernel
        maps = [plain.layers[1](plain.layers[0](tf.reshape(group, [-1, 8, 8, 3]))) for group in groups]
        if name == "activity":
            sums = [0.01 * tf.reduce_sum(tf.square(each)) for each in maps]
            return tf.add_n([each / len(of) for each, of in zip(sums, maps, strict=True)])  # Keras divides, too
        return tf.add_n([0.3 * tf.reduce_mean(tf.square(plain(tf.reshape(group, [-1, 8, 8, 3])))) for group in groups])

    with tf.GradientTape() as tape:
        values = learner.objective(episode, training=True)
    with tf.GradientTape() as reference:
        expected = bare.objective(episode, training=True)["loss"] + penalty()
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    for got, wanted in zip(tape.gradient(values["loss"], given.trainable_variables),
                           reference.gradient(expected, plain.trainable_variables), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learner", [learners.MAML, learners.Reptile])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "plain"])
def test_inner_loops_refuse_losses_of_the_backbone(learner, name):
    with pytest.raises(ValueError, match=rf"{learner.__name__}'s inner loop .* without regularizers and add_loss.*\.$"):
        learner(NETWORKS[name](), ways=3)


def test_a_layer_of_ones_own_without_a_loss_is_adapted():
    class Doubles(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    assert learners.MAML(network(Doubles()), ways=3)


@pytest.mark.parametrize("learner", ["classical", "episodic", "maml", "reptile"])
def test_float64_is_float64_to_the_loss(learner):
    """Weights, features, classifier and loss; the finite differences of the learners' tests rest on it."""
    keras.config.set_dtype_policy("float64")
    try:
        backbone = network()
    finally:
        keras.config.set_dtype_policy("float32")
    split = make_split(4, 6, size=8)
    made, batches = {
        "classical": lambda: (learners.Classical(backbone, 4, lambda features, _: tf.reduce_mean(features)),
                              data.class_pairs(split, 8)),
        "episodic": lambda: (learners.Episodic(backbone, heads.Ridge()),
                             data.episodes(split, 3, 1, 2, tasks_per_batch=2)),
        "maml": lambda: (learners.MAML(backbone, 3, 2, learn_rates=True),
                         data.episodes(split, 3, 1, 2, tasks_per_batch=2)),
        "reptile": lambda: (learners.Reptile(backbone, 3, 2, 3, None, 0.1, sum_over_batch=True, transductive=True),
                            data.inner_batches(split, 3, 3, 2, 3, 2)),
    }[learner]()  # fmt: skip
    made.compile(optimizer="sgd")
    before = [weight.numpy() for weight in backbone.trainable_variables]
    made.fit(batches.take(1), verbose=0)
    assert all(weight.dtype == np.float64 for weight in before)
    assert any(np.abs(a - b.numpy()).max() > 0 for a, b in zip(before, backbone.trainable_variables, strict=True))
    if hasattr(made, "classifier"):
        assert made.classifier.kernel.dtype == "float64"
    if learner in ("maml", "reptile"):
        accuracy = evaluate(backbone, made.own_head(), split, ways=3, shots=1, queries=1, num_tasks=2)
        assert 0 <= accuracy.mean <= 1


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_weights_in_half_precision_are_refused(policy):
    keras.config.set_dtype_policy(policy)
    try:
        backbone = network()
    finally:
        keras.config.set_dtype_policy("float32")
    for learner in (lambda: learners.Classical(backbone, 4), lambda: learners.Episodic(backbone, heads.Ridge()),
                    lambda: learners.MAML(backbone, 3), lambda: learners.Reptile(backbone, 3)):
        with pytest.raises(ValueError, match=rf"'mixed_float16'.*Received: weights in {policy}\.$"):
            learner()


def test_float16_scales_the_loss_whatever_the_global_policy_is_by_then():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        backbone = network()
    finally:
        keras.config.set_dtype_policy("float32")
    learner = learners.Classical(backbone, 4)
    learner.compile(optimizer="sgd")
    assert isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)
    with pytest.raises(ValueError, match="Received: layer 'half' computes in float16, the model in float32"):
        learners.Classical(network(keras.layers.Dense(4, dtype="mixed_float16", name="half")), 4)
