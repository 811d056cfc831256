"""Small networks and losses whose derivatives can be written down, for the learners with an inner loop."""

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones


def no_backbone(size: int) -> keras.Model:
    """images [B, size, 1, 1] -> the same numbers [B, size]; the classifier is all there is to learn."""
    inputs = keras.Input((size, 1, 1))
    return keras.Model(inputs, keras.layers.Reshape((size,))(inputs))


def half_squared_error(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """1 / (2 B) sum of squares: a quadratic function of a linear layer's weights."""
    return tf.reduce_mean(tf.reduce_sum(tf.square(outputs - targets), axis=-1)) / 2


def small_network(seed: int = 0, **options) -> keras.Model:
    """conv4 on 16x16, of 3 filters."""
    return backbones.conv4((16, 16, 3), **({"filters": 3, "use_bias": True, "seed": seed} | options))


def pictures(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Images [*shape, 16, 16, 3] of noise."""
    return rng.integers(0, 256, size=(*shape, 16, 16, 3)).astype(np.float32)
