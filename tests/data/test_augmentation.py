"""MetaOptNet's augmentation against Pillow, pixel for pixel."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tf_unravel.data.sampling import augmentation
from tf_unravel.data.sampling.augmentation import Parameters, augment, draw

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def pictures(batch, height, width, channels, seed=0):
    """Smooth, dark, bright and noisy images: clipping at both ends, flat parts and grey pixels all occur."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, (batch, 1, 1, channels))
    ramp = np.linspace(-120, 120, width)[None, None, :, None] * generator.uniform(-1, 1, (batch, 1, 1, channels))
    noise = generator.integers(-60, 61, (batch, height, width, channels)) * generator.integers(0, 2, (batch, 1, 1, 1))
    return np.clip(base + ramp + noise, 0, 255).astype(np.uint8)


def with_pillow(image, top, left, flip, order, factors, padding):
    """The reference: pad, crop, enhance in the given order, mirror; one image at a time."""
    height, width, channels = image.shape
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    picture = ImageOps.expand(picture, padding, 0).crop((left, top, left + width, top + height))
    for operation in order:
        picture = ENHANCERS[operation](picture).enhance(float(factors[operation]))
    if flip:
        picture = ImageOps.mirror(picture)
    return np.asarray(picture).reshape(image.shape)


@pytest.mark.parametrize(
    "shape, padding, jitter", [((96, 32, 32, 3), 4, 0.4), ((40, 21, 13, 3), 8, 1.0), ((40, 28, 28, 1), 4, 0.4)]
)
def test_equals_pillow_in_every_pixel(shape, padding, jitter):
    images = pictures(*shape)
    parameters = draw(shape[0], seed=3, step=11, padding=padding, jitter=jitter)
    result = augmentation.apply(images, parameters, padding).numpy()
    for i, drawn in enumerate(zip(*[p.numpy() for p in parameters], strict=True)):
        np.testing.assert_array_equal(result[i], with_pillow(images[i], *drawn, padding), err_msg=f"image {i}: {drawn}")


def test_by_hand():
    # One row of two pixels. Contrast first: greys are (19595*200 + 38470*100 + 7471*50 + 32768) >> 16 = 124 and
    # (65536*10 + 32768) >> 16 = 10, mean 67. Factor 0.5: (67 + 200)/2 = 133.5 -> 133, 83.5 -> 83, 58.5 -> 58 and
    # 38.5 -> 38. Brightness 1.25: 166.25, 103.75, 72.5 and 47.5, truncated. Saturation 1 leaves them. Then mirrored.
    image = np.array([[[[200, 100, 50], [10, 10, 10]]]], np.uint8)
    parameters = Parameters(
        tf.constant([0]), tf.constant([0]), tf.constant([True]), tf.constant([[1, 0, 2]]), tf.constant([[1.25, 0.5, 1]])
    )
    expected = [[[[47, 47, 47], [166, 103, 72]]]]
    np.testing.assert_array_equal(augmentation.apply(image, parameters, padding=0), expected)


def test_crop_offsets_count_from_the_padded_corner():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    identity = tf.constant([[0, 1, 2]]), tf.constant([[1.0, 1.0, 1.0]])
    parameters = Parameters(tf.constant([0]), tf.constant([2]), tf.constant([False]), *identity)
    result = augmentation.apply(image, parameters, padding=1).numpy()[0, :, :, 0]
    np.testing.assert_array_equal(result, [[0, 0, 0], [2, 3, 0], [5, 6, 0]])


def test_draws_depend_on_seed_and_step_and_not_on_the_batch():
    first = [p.numpy() for p in draw(64, seed=5, step=9)]
    for again, expected in zip(draw(16, seed=5, step=tf.constant(9, tf.int64)), first, strict=True):
        np.testing.assert_array_equal(again, expected[:16])
    assert not np.array_equal(draw(64, seed=5, step=10).factors, first[4])
    assert not np.array_equal(draw(64, seed=6, step=9).factors, first[4])


def test_draws_are_uniform_and_independent():
    top, left, flip, order, factors = (p.numpy() for p in draw(60000, seed=0, step=0, padding=4, jitter=0.4))
    for offsets in (top, left):
        np.testing.assert_allclose(np.bincount(offsets, minlength=9) / 60000, 1 / 9, atol=0.006)
    np.testing.assert_allclose(flip.mean(), 0.5, atol=0.01)
    _, counts = np.unique(order @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6
    np.testing.assert_allclose(counts / 60000, 1 / 6, atol=0.008)
    np.testing.assert_allclose([factors.min(), factors.max()], [0.6, 1.4], atol=2.0**-14)
    np.testing.assert_allclose(factors.std(axis=0), 0.8 / np.sqrt(12), rtol=0.01)
    columns = np.column_stack([top, left, flip, order[:, 0], factors])
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.02
    np.testing.assert_array_equal(factors * 2**14 % 1, 0)


def test_any_number_of_readers_gives_the_same_batches():
    images = pictures(32, 16, 16, 3)
    steps = tf.data.Dataset.range(6)
    serial = list(steps.map(lambda step: augment(images, 1, step)).as_numpy_iterator())
    parallel = list(steps.map(lambda step: augment(images, 1, step), num_parallel_calls=4).as_numpy_iterator())
    np.testing.assert_array_equal(serial, parallel)
    np.testing.assert_array_equal(serial[3], augment(images, 1, 3))
    half = Parameters(*(p[16:] for p in draw(32, 1, 3)))
    np.testing.assert_array_equal(serial[3][16:], augmentation.apply(images[16:], half))


def test_compiled_equals_eager():
    images = tf.constant(pictures(32, 32, 32, 3))
    parameters = draw(32, 0, 4)
    compiled = tf.function(augmentation.apply, jit_compile=True)
    np.testing.assert_array_equal(compiled(images, parameters), augmentation.apply(images, parameters))


def test_everything_off_returns_the_images():
    images = pictures(8, 8, 8, 3)
    np.testing.assert_array_equal(augment(images, 0, 0, padding=0, jitter=0, flip=False), images)
    np.testing.assert_array_equal(augmentation.apply(images, draw(8, 0, 0, 0, 0.0, False), 0), images)


def test_unknown_batch_size():
    images = pictures(5, 8, 8, 3)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(4).enumerate().map(lambda step, x: augment(x, 0, step))
    assert [batch.shape for batch in dataset.as_numpy_iterator()] == [(4, 8, 8, 3), (1, 8, 8, 3)]


@pytest.mark.parametrize("shape, dtype", [((2, 4, 4, 3), "float32"), ((4, 4, 3), "uint8"), ((2, 4, 4, 4), "uint8")])
def test_refuses_what_it_cannot_read(shape, dtype):
    with pytest.raises(ValueError, match=f"Received: {dtype} of shape"):
        augment(np.zeros(shape, dtype), 0, 0)


@pytest.mark.parametrize("option", [{"padding": -1}, {"jitter": 1.5}, {"jitter": -0.1}])
def test_refuses_options_out_of_range(option):
    with pytest.raises(ValueError, match=f"Received: {next(iter(option))}="):
        draw(2, 0, 0, **option)
