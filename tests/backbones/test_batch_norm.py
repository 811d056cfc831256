"""The fused batch normalisation against Keras's, hand-made numbers, float64 and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel.backbones import FusedBatchNormalization

GAMMA = np.float32([0.5, -1.2, 2.0, 0.0])
BETA = np.float32([0.1, 0.0, -0.3, 1.0])


def build(cls=FusedBatchNormalization, dtype="float32", **options):
    layer = cls(momentum=0.9, epsilon=0.01, dtype=dtype, **options)
    layer.build((None, 3, 2, 4))
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    return layer


def data(seed=0, batch=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 3, 2, 4)) * [1, 2, 0.5, 3] + [0, 1, 5, -2], rng.normal(size=(batch, 3, 2, 4))


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_first_gradients_are_those_of_keras(training):
    x, weight = (value.astype("float32") for value in data())
    results = []
    for cls in (FusedBatchNormalization, keras.layers.BatchNormalization):
        layer = build(cls)
        layer.moving_mean.assign([0.5, -1.0, 2.0, 0.0])
        layer.moving_variance.assign([1.0, 0.3, 2.0, 4.0])
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = layer(inputs, training=training)
            loss = tf.reduce_sum(tf.sin(y) * weight)
        results.append([y, *tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])])
    for ours, kerass in zip(*results, strict=True):
        np.testing.assert_allclose(ours, kerass, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moving_statistics_follow_pytorch(dtype):
    layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)
    layer(np.array([1, 2, 3, 6], dtype).reshape(1, 2, 2, 1), training=True)  # mean 3, unbiased variance 14 / 3
    np.testing.assert_allclose(layer.moving_mean, [0.3], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [0.9 + 0.1 * 14 / 3], rtol=1e-6)


def test_frozen_layer_uses_the_moving_statistics_and_leaves_them():
    layer = build()
    layer.trainable = False
    x = data()[0].astype("float32")
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))


def second_gradients(layer, x, weight, directions):
    """y, the first gradients, and the gradients of their inner product with `directions`."""
    inputs, weight = tf.convert_to_tensor(x), tf.convert_to_tensor(weight)
    with tf.GradientTape() as outer:
        outer.watch([inputs, weight])
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.sin(y) * weight)
        first = inner.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])
        pairs = zip(first, directions, strict=True)
        product = sum(tf.cast(tf.reduce_sum(grad * value), layer.gamma.dtype) for grad, value in pairs)
    return [y, *first, *outer.gradient(product, [inputs, weight, layer.gamma.value, layer.beta.value])]


@pytest.mark.parametrize("decorate", [lambda f: f, tf.function])
def test_second_gradients_agree_with_float64(decorate):
    x, weight = data(1)
    rng = np.random.default_rng(2)
    directions = [rng.normal(size=shape) for shape in (x.shape, (4,), (4,))]
    results = []
    for dtype in ("float32", "float64"):
        layer = build(dtype=dtype)
        arrays = [value.astype(dtype) for value in (x, weight, *directions)]
        compute = decorate(lambda layer=layer, a=arrays: second_gradients(layer, a[0], a[1], a[2:]))
        results.append([value.numpy() for value in compute()])
    for fused, composed in zip(*results, strict=True):
        np.testing.assert_allclose(fused, composed, rtol=1e-4, atol=2e-5 * np.abs(composed).max())


def test_float64_second_gradient_agrees_with_finite_differences():
    # n = 6 values a channel: leaving out the mean's part of the variance, as tf.nn.moments does, is an error of 10 %
    layer = build(dtype="float64")
    x, weight = data(3, batch=1)
    direction = np.random.default_rng(4).normal(size=x.shape)
    zero = [np.zeros(4), np.zeros(4)]

    def gradient(at):
        return second_gradients(layer, at, weight, [direction, *zero])[1].numpy()

    by_x = second_gradients(layer, x, weight, [direction, *zero])[4].numpy()
    step = 1e-6
    estimate = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(by_x, estimate, rtol=1e-6, atol=1e-7)


def test_second_gradient_inside_a_loop_over_tasks():
    layer = build()
    x, weight = (value.astype("float32") for value in data(5))
    directions = [x[::-1], np.ones(4, "float32"), np.ones(4, "float32")]

    @tf.function
    def over_tasks(tasks):
        return tf.map_fn(lambda task: second_gradients(layer, task, weight, directions)[4], tasks)

    direct = second_gradients(layer, x, weight, directions)[4]
    np.testing.assert_allclose(over_tasks(tf.stack([x, 2 * x]))[0], direct, rtol=1e-5, atol=1e-5)


def test_third_derivative_is_refused():
    layer, x = build(), tf.constant(data()[0].astype("float32"))
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                y = tf.reduce_sum(layer(x, training=True) ** 3)
            grad = tf.reduce_sum(first.gradient(y, x) ** 2)
        grad = tf.reduce_sum(second.gradient(grad, x) ** 2)
    with pytest.raises(NotImplementedError, match="differentiable twice"):
        third.gradient(grad, x)


class TestInputBias:
    BIAS = np.float32([3.0, -1.0, 0.5, 2.0])

    def make(self, dtype="float32"):
        layer = build(dtype=dtype, input_bias=True)
        layer.bias.assign(self.BIAS)
        return layer

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_no_effect_and_no_gradient_while_training(self, dtype):
        layer, x = self.make(dtype), data()[0].astype(dtype)
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        np.testing.assert_array_equal(tape.gradient(loss, layer.bias.value), np.zeros(4))
        np.testing.assert_allclose(y, build(dtype=dtype)(x, training=True), atol=1e-6)
        np.testing.assert_allclose(layer.moving_mean, 0.1 * (x.mean((0, 1, 2)) + self.BIAS), rtol=1e-5)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_counts_with_moving_statistics(self, dtype):
        layer, x = self.make(dtype), data()[0].astype(dtype)
        layer.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
        layer.moving_variance.assign([4.0, 1.0, 0.25, 1.0])
        with tf.GradientTape() as tape:
            y = layer(x, training=False)
        factor = GAMMA / np.sqrt(np.float64([4.0, 1.0, 0.25, 1.0]) + 0.01)
        np.testing.assert_allclose(y, factor * (x + self.BIAS - [1, 2, 3, 4]) + BETA, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tape.gradient(y, layer.bias.value), 5 * 6 * factor, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    x, weight = (value.astype("float32") for value in data(6))
    x, weight = (tf.cast(tf.cast(value, dtype), tf.float32).numpy() for value in (x, weight))  # round once, for both
    half = build(dtype=f"mixed_{dtype}")
    zero = [tf.zeros(4), tf.zeros(4)]
    cast_x, cast_weight = tf.cast(x, dtype), tf.cast(weight, dtype)
    results = second_gradients(half, cast_x, cast_weight, [cast_weight[::-1], *zero])
    reference = second_gradients(build(), x, weight, [weight[::-1], *zero])
    assert results[0].dtype == dtype and results[2].dtype == tf.float32
    tolerance = 0.01 if dtype == "float16" else 0.06
    for value, exact in zip(results, reference, strict=True):
        np.testing.assert_allclose(tf.cast(value, tf.float32), exact, atol=tolerance * np.abs(exact).max())


def test_config_round_trip():
    layer = FusedBatchNormalization(input_bias=True, input_bias_initializer="ones", epsilon=1e-4, name="norm")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config() and again.input_bias and again.epsilon == 1e-4
