"""The 2x2 max-pool: forward against a loop, both derivatives against TensorFlow's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.backbones.references import max_pool
from tf_unravel.backbones import MaxPool


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_forward(padding, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    layer = MaxPool(padding)
    expected = max_pool(np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=-9), padding == "same")
    expected = expected[:, : -(-size[0] // 2), : -(-size[1] // 2)] if padding == "same" else max_pool(x)
    np.testing.assert_array_equal(layer(x), expected)
    assert layer.compute_output_shape(x.shape) == expected.shape


def derivatives(pool, x, dtype, loop):
    """The gradient of a curved function of the pooled values, and that of its product with a fixed direction."""
    rng = np.random.default_rng(1)
    direction = tf.constant(rng.normal(size=x.shape), dtype)

    def compute(inputs):
        with tf.GradientTape() as outer:
            outer.watch(inputs)
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                loss = tf.reduce_sum(tf.exp(pool(inputs)))
            first = inner.gradient(loss, inputs)
            product = tf.reduce_sum(first * direction)
        return first, outer.gradient(product, inputs)

    x = tf.constant(x, dtype)
    if loop:
        return [value[0] for value in tf.function(lambda t: tf.map_fn(compute, t, (dtype, dtype)))(x[tf.newaxis])]
    return compute(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loop", [False, True])
def test_derivatives(dtype, loop):
    x = np.random.default_rng(2).normal(size=(3, 7, 6, 5))
    for ours, theirs in zip(
        derivatives(MaxPool(), x, dtype, loop),
        derivatives(lambda v: tf.nn.max_pool2d(v, 2, 2, "VALID"), x, dtype, False),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert np.count_nonzero(ours) == 3 * 3 * 3 * 5


def test_of_equal_elements_both_derivatives_choose_the_same():
    first, second = derivatives(MaxPool(), np.zeros((1, 2, 2, 1)), "float32", False)
    assert np.count_nonzero(first) == 1
    np.testing.assert_array_equal(np.not_equal(first, 0), np.not_equal(second, 0))


def test_config_round_trip():
    layer = MaxPool("same", name="pool")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config() and again.padding == "same"
