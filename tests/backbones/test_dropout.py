"""Dropout and DropBlock against MetaOptNet's figures and a NumPy loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel.backbones import DropBlock, Dropout
from tf_unravel.backbones.dropout import grow, keep_rate, seed_rate


@pytest.mark.parametrize(
    ("feature", "block", "expected"), [(10, 5, 0.0111111), (5, 5, 0.1), (4, 2, 0.0444444), (2, 2, 0.1)]
)
def test_seed_rate_at_the_end_of_the_ramp(feature, block, expected):
    assert seed_rate(0.9, block, feature, feature) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("forwards", "expected"), [(0, 1.0), (1, 1 - 2.5e-6), (20000, 0.95), (40000, 0.9), (10**6, 0.9)]
)
def test_keep_rate(forwards, expected):
    assert float(keep_rate(tf.constant(forwards), 0.1, 40000)) == pytest.approx(expected, abs=1e-7)


def test_blocks_grow_down_and_right_of_their_seeds():
    seeds = np.random.default_rng(0).random((2, 4, 3, 3)) < 0.2
    block = 3
    expected = np.zeros((2, 6, 5, 3))
    for b, i, j, c in np.argwhere(seeds):
        expected[b, i : i + block, j : j + block, c] = 1.0
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(grow(tf.cast(seeds, tf.float32), block), expected)


def test_what_is_kept_is_scaled_by_the_share_over_the_whole_batch():
    layer = DropBlock(2, rate=0.3, ramp=1, seed=3)
    y = layer(tf.ones([3, 4, 4, 5]), training=True).numpy()
    kept = y > 0
    assert 0.3 < kept.mean() < 1.0
    np.testing.assert_allclose(y[kept], y.size / kept.sum(), rtol=1e-6)
    assert len({image.mean() for image in y}) > 1  # images and channels have masks of their own
    assert len({channel.tobytes() for channel in np.moveaxis(y[0], -1, 0)}) > 1


def test_share_dropped_at_each_place():
    layer = DropBlock(2, rate=0.1, seed=0)
    layer.build((None, 4, 4, 64))
    layer.state.assign([0, 50000])
    dropped = (layer(tf.ones([512, 4, 4, 64]), training=True).numpy() == 0.0).mean((0, 3))
    covering = np.float64([1, 2, 2, 1])  # seeds on a 3-grid whose 2-block covers a row
    expected = 1 - (1 - 0.0444444) ** np.outer(covering, covering)
    np.testing.assert_allclose(dropped, expected, atol=0.005)


def test_block_of_the_maps_size_drops_whole_channels():
    layer = DropBlock(2, rate=0.5, ramp=1, seed=1)
    y = layer(tf.ones([8, 2, 2, 16]), training=True).numpy().reshape(8, 4, 16)
    assert (y == y[:, :1]).all() and 0 < (y == 0).mean() < 1


def test_dropout_drops_its_share_and_scales_the_rest():
    y = Dropout(0.25, seed=0)(tf.ones([100, 20, 20, 3]), training=True).numpy()
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(y[y > 0], 1 / 0.75, rtol=1e-6)


both = pytest.mark.parametrize("make", [Dropout, lambda rate, seed: DropBlock(2, rate, seed, ramp=3)])


@both
def test_counts_training_forwards_only(make):
    layer, x = make(0.1, 0), tf.ones([2, 4, 4, 3])
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    assert int(layer.forwards) == 0
    layer(x, training=True)
    layer(x, training=True)
    assert int(layer.forwards) == 2


@both
def test_rate_zero_is_the_identity(make):
    x = tf.ones([2, 4, 4, 3])
    np.testing.assert_array_equal(make(0.0, 0)(x, training=True), x)


@both
def test_the_count_restores_the_masks(make):
    x = tf.ones([4, 6, 6, 8])
    layer, other = make(0.4, 5), make(0.4, 99)
    masks = [layer(x, training=True).numpy() for _ in range(4)]
    assert len({mask.tobytes() for mask in masks}) == 4
    other.build(x.shape)
    other.set_weights([np.int32([5, 2])])
    for mask in masks[2:]:
        np.testing.assert_array_equal(other(x, training=True), mask)
    assert (make(0.4, 6)(x, training=True).numpy() != masks[0]).any()


@pytest.mark.parametrize("options", [{"rate": 1.0}, {"rate": -0.1}, {"block_size": 0}, {"ramp": 0}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="Received"):
        DropBlock(**{"block_size": 2, **options})


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=f"Received: rate={rate}"):
        Dropout(rate)


def test_block_larger_than_the_map():
    with pytest.raises(ValueError, match="3 x 3 feature map"):
        DropBlock(4).build((None, 3, 3, 8))


def test_config_round_trip():
    layer = DropBlock(3, rate=0.2, ramp=7, seed=11, name="drop")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
