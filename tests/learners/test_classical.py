"""The classical learner: its update by hand, its degenerate cases, and that it is a Keras citizen."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import small_network
from tf_unravel import backbones, data, learners, regularizers

IDS = np.array([0, 0, 2, 2, 1, 1], np.int32)


def linear_backbone() -> keras.Model:
    """images [B, 1, 1, 4] -> features [B, 3], a matrix product, so that gradients can be written down."""
    inputs = keras.Input((1, 1, 4))
    outputs = keras.layers.Dense(3, use_bias=False, name="matrix")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, outputs)


def learner_of(regularizer=None, weight_decay=0.0, **sgd) -> learners.Classical:
    keras.utils.set_random_seed(0)
    learner = learners.Classical(linear_backbone(), 3, regularizer, weight_decay)
    learner.compile(optimizer=learners.sgd(10, **({"rates": (0.1,)} | sgd)))
    return learner


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 1, 1, 4)).astype(np.float32)


def cross_entropy_gradients(x, matrix, kernel, bias):
    """Gradients of the mean cross-entropy of softmax(x matrix kernel + bias), in float64."""
    features = x @ matrix
    logits = features @ kernel + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(3)[IDS]) / len(x)
    return [x.T @ error @ kernel.T, features.T @ error, error.sum(0)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_update_is_sgd_with_coupled_weight_decay(nesterov):
    """PyTorch's recursion: v = mu v + (g + wd w); w -= lr (g + wd w + mu v), or lr v without Nesterov."""
    learner = learner_of(weight_decay=0.03, nesterov=nesterov)
    weights = [w.numpy().astype(np.float64) for w in learner.trainable_variables]
    velocity = [np.zeros_like(w) for w in weights]
    for step in range(4):
        x = images(step)
        learner.train_step((x, IDS))
        gradients = cross_entropy_gradients(x.reshape(6, 4).astype(np.float64), *weights)
        for i, gradient in enumerate(gradients):
            gradient = gradient + 0.03 * weights[i]
            velocity[i] = 0.9 * velocity[i] + gradient
            weights[i] = weights[i] - 0.1 * (gradient + 0.9 * velocity[i] if nesterov else velocity[i])
    for expected, got in zip(weights, learner.trainable_variables, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_regularizer_adds_its_gradient_to_the_backbone_only():
    plain, regularized = learner_of(momentum=0.0), learner_of(regularizers.FeatureClustering(0.5), momentum=0.0)
    matrix = tf.constant(plain.backbone.trainable_variables[0].numpy())
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        penalty = regularizers.feature_clustering(tf.reshape(images(), [6, 4]) @ matrix, IDS, 0.5)
    expected = tape.gradient(penalty, matrix)
    logs = [learner.train_step((images(), IDS)) for learner in (plain, regularized)]
    moved = plain.trainable_variables[0].numpy() - regularized.trainable_variables[0].numpy()
    np.testing.assert_allclose(moved, 0.1 * expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(plain.classifier.kernel.numpy(), regularized.classifier.kernel.numpy())
    np.testing.assert_allclose(logs[1]["regularizer"], penalty, rtol=1e-5)
    np.testing.assert_allclose(logs[1]["loss"], logs[1]["cross_entropy"] + logs[1]["regularizer"], rtol=1e-6)
    np.testing.assert_allclose(logs[1]["cross_entropy"], logs[0]["loss"], rtol=1e-6)


def test_coefficient_zero_is_no_regularizer():
    plain, zero = learner_of(), learner_of(regularizers.HyperplaneVariation(0.0))
    for step in range(3):
        plain.train_step((images(step), IDS))
        zero.train_step((images(step), IDS))
    for a, b in zip(plain.trainable_variables, zero.trainable_variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_metrics_are_means_over_the_steps():
    learner = learner_of(rates=(1e-30,))
    losses = [float(learner.objective((images(step), IDS), training=True)["cross_entropy"]) for step in range(2)]
    for step in range(2):
        logs = learner.train_step((images(step), IDS))
    np.testing.assert_allclose(logs["cross_entropy"], np.mean(losses), rtol=1e-6)
    logits = [learner(images(step)).numpy().argmax(1) == IDS for step in range(2)]
    np.testing.assert_allclose(logs["accuracy"], np.mean(logits), rtol=1e-6)


def test_rates_change_after_the_epochs_named():
    optimizer = learners.sgd(steps_per_epoch=10, rates=(0.01, 0.1, 0.001), epochs=(1, 3))
    rate = optimizer._learning_rate
    got = [round(float(rate(step)), 6) for step in (0, 9, 10, 29, 30, 100)]
    assert got == [0.01, 0.01, 0.1, 0.1, 0.001, 0.001]


@pytest.mark.parametrize("bad", [{"rates": (0.1, 0.2)}, {"rates": (0.1, 0.2, 0.3), "epochs": (5, 2)}])
def test_rates_and_epochs_that_do_not_pair_up_are_refused(bad):
    with pytest.raises(ValueError, match="rates must have one value more than epochs"):
        learners.sgd(10, **bad)


@pytest.mark.parametrize("optimizer", [learners.sgd, learners.adam])
@pytest.mark.parametrize("rates", [0.0, (0.1, -0.01), (float("nan"),), "fast", ("0.1",), None])
def test_rates_that_are_no_positive_numbers_are_refused(optimizer, rates):
    with pytest.raises(ValueError, match="rates must be positive numbers.*Received: rates="):
        optimizer(10, rates=rates, epochs=(1,) if rates == (0.1, -0.01) else ())


@pytest.mark.parametrize("decay", [-1e-4, float("inf"), "5e-4"])
def test_a_weight_decay_is_finite_and_not_negative(decay):
    with pytest.raises(ValueError, match=f"Classical.weight_decay.*Received: weight_decay={decay!r}"):
        learners.Classical(small_network(), 6, weight_decay=decay)


def test_batches_of_tasks_are_refused():
    learner, split = learners.Classical(small_network(), 6), make_split()
    for batches in (data.episodes(split, 3, tasks_per_batch=2), data.inner_batches(split, 3, 4, 3, 4, 2)):
        with pytest.raises(ValueError, match=r"run.batches = @ClassPairs\(\).*Received: "):
            learner.check_batch(batches.element_spec)
    learner.check_batch(data.class_pairs(split, 8).element_spec)


def test_fit_callbacks_save_and_load(tmp_path):
    split = make_split()
    learner = learners.Classical(
        backbones.conv4((16, 16, 3), filters=4), 6, regularizers.HyperplaneVariation(0.2, squared=True), 5e-4
    )
    learner.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    history = learner.fit(data.class_pairs(split, batch_size=12), epochs=4, steps_per_epoch=15, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    watched = learner.evaluate(data.class_pairs(split, batch_size=12, num_steps=5), verbose=0, return_dict=True)
    assert 0 < watched["loss"] and watched["accuracy"] > 0.5
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.weight_decay == 5e-4 and loaded.regularizer.coefficient == 0.2 and loaded.regularizer.squared
    np.testing.assert_array_equal(loaded(split.images[:5]).numpy(), learner(split.images[:5]).numpy())
    np.testing.assert_array_equal(loaded.backbone(split.images[:5]).numpy(), learner.backbone(split.images[:5]).numpy())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_the_loss_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        learner = learners.Classical(backbones.conv4((16, 16, 3), filters=4), 6, regularizers.FeatureClustering(0.1))
        learner.compile(optimizer=keras.optimizers.SGD(0.01))
        split = make_split()
        batch = next(iter(data.class_pairs(split, batch_size=12)))
        losses = [float(learner.train_step(batch)["loss"]) for _ in range(10)]
    finally:
        keras.config.set_dtype_policy("float32")
    assert learner(split.images[:2]).dtype == tf.float32
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes=1"):
        learners.Classical(linear_backbone(), 1)


@pytest.mark.skipif("MultiOptimizer" not in dir(keras.optimizers), reason="a newer Keras")
def test_rates_for_layers_by_what_keras_has():
    learner = learners.Classical(linear_backbone(), 3)
    rates = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1))
    rates["matrix.*"] = keras.optimizers.SGD(0.0)
    learner.compile(optimizer=keras.optimizers.MultiOptimizer(rates))
    matrix, kernel = (variable.numpy() for variable in learner.trainable_variables[:2])
    learner.fit(images(), IDS, epochs=1, verbose=0)
    np.testing.assert_array_equal(learner.trainable_variables[0], matrix)
    assert (learner.trainable_variables[1].numpy() != kernel).any()
