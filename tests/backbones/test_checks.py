"""Backbones that a learner cannot train, and the image format."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel import backbones, heads, learners

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
NETWORKS = {
    "conv4": lambda: backbones.conv4((16, 16, 3), filters=3, seed=0),
    "conv4 by strides": lambda: backbones.conv4((16, 16, 3), filters=3, downsampling="stride", seed=0),
    "r2d2": lambda: backbones.r2d2((16, 16, 3), filters=(2, 2, 2, 2), seed=0),
    "resnet12": lambda: backbones.resnet12((16, 16, 3), filters=(2, 2, 2, 2), seed=0),
    "resnet12, flat": lambda: backbones.resnet12((16, 16, 3), filters=(2, 2, 2, 2), average_pool=False, seed=0),
    "wrap": lambda: backbones.wrap(keras.Sequential([
        keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 3, data_format="channels_last",
                                                      kernel_initializer=keras.initializers.RandomNormal(seed=0))])),
}  # fmt: skip


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("name", NETWORKS)
def test_images_are_channels_last_whatever_keras_is_set_to(name, channels_first):
    there = NETWORKS[name]()
    keras.config.set_image_data_format("channels_last")
    here = NETWORKS[name]()
    np.testing.assert_array_equal(there(IMAGES), here(IMAGES))
    copy = type(there).from_config(there.get_config())
    assert copy.output_shape == here.output_shape


def test_a_network_that_turns_the_images_around_itself_is_accepted():
    """channels_first computes on GPUs alone; that it can be trained there is what is accepted."""
    network = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Permute((3, 1, 2)),
                                keras.layers.GlobalAveragePooling2D(data_format="channels_first")])
    logits = learners.Classical(network, 4)(IMAGES)
    np.testing.assert_allclose(network(IMAGES), IMAGES.mean((1, 2)), rtol=1e-5)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize(("backbone", "message"), [
    (lambda images: images, r"must be a keras\.Model, such as backbones.conv4\(\). Received: '<lambda>'"),
    (keras.layers.Flatten(), r"must be a keras\.Model"),
    (keras.Model(a := keras.Input((4, 4, 3)), {"features": keras.layers.Flatten()(a)}),
     r"one tensor of features \[B, D\].*\{'features'"),
    (keras.Sequential([keras.Input((None, None, 3)), keras.layers.Flatten()]), r"output shape \(None, None\)"),
])  # fmt: skip
def test_what_is_no_backbone_is_one_line(backbone, message):
    for build in (lambda: learners.Classical(backbone, 4), lambda: learners.Episodic(backbone, heads.Ridge()),
                  lambda: learners.MAML(backbone, 3), lambda: learners.Reptile(backbone, 3)):
        with pytest.raises(ValueError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_frozen_backbone_in_half_precision_can_be_used():
    """Weights that are not trained lose no updates."""
    network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    frozen = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, dtype="bfloat16")])
    frozen.trainable = False
    assert learners.Classical(frozen, 4)(tf.zeros([1, 4, 4, 3])).dtype == tf.float32
    assert learners.Classical(network, 4).feature_size == 2
