"""MetaOptNet's training augmentation, on whole uint8 batches and as a function of (seed, step) alone.

Every image goes through, in this order (MetaOptNet ``data/*.py``, training split only):

1. a random crop of the image's own size out of the image with ``padding`` black pixels on each side,
2. colour jitter: brightness, contrast and saturation in an order drawn per image, each with its own factor,
3. a horizontal flip with probability one half.

All three colour operations are one formula (PIL's ``ImageEnhance``), ``x' = clip(trunc(t + f * (x - t)), 0, 255)``,
where f is the factor and the target t is

| operation  | target                                                                         |
|------------|--------------------------------------------------------------------------------|
| brightness | black, t = 0                                                                   |
| contrast   | the image's mean grey level, rounded to an integer                             |
| saturation | the grey level of the same pixel, (19595 R + 38470 G + 7471 B + 2^15) >> 16    |

so that three passes with a target chosen per image do what PIL does image by image. tf.image and Keras blend contrast
with the mean of each channel instead, which is another augmentation.

Factors are drawn on a grid of 2^-14. Then every product and every sum here and in PIL is a multiple of 2^-14 below 2^9
and so exact in float32: the result equals PIL's pixel for pixel, and no compiler's fused multiply-add or reordering
changes it. For the same reason the formula may be computed as ``f * x + (1 - f) * t``.

Degenerate cases: ``padding=0, jitter=0, flip=False`` returns the images as they are. In one-channel images saturation
changes nothing, as in PIL's mode "L".
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_FACTOR_GRID = 2.0**14
_STREAM = 0x6175676D  # "augm": keeps these draws apart from others made with the same (seed, step)

Whole: TypeAlias = int | tf.Tensor
"""An integer, or a scalar tensor of one."""

Images: TypeAlias = np.ndarray | tf.Tensor
"""uint8 [B, H, W, C]."""


class Parameters(NamedTuple):
    """What is drawn for each image of a batch of B.

    Attributes:
        top: int32 [B], first row of the crop in the padded image, 0..2*padding.
        left: int32 [B], first column of the crop in the padded image, 0..2*padding.
        flip: bool [B], whether the image is mirrored left to right.
        order: int32 [B, 3], what is applied first, second and third (0 brightness, 1 contrast, 2 saturation).
        factors: float32 [B, 3], the factors of brightness, contrast and saturation, on a grid of 2^-14.
    """

    top: tf.Tensor
    left: tf.Tensor
    flip: tf.Tensor
    order: tf.Tensor
    factors: tf.Tensor


def draw(
    batch_size: Whole, seed: Whole, step: Whole, padding: int = 4, jitter: float = 0.4, flip: bool = True
) -> Parameters:
    """Draws the parameters of one batch of B images from (seed, step) alone; arguments and errors as for `augment`.

    Image i gets the same parameters whatever the batch size is, so a replica may draw for the whole batch and slice.
    """
    if padding < 0:
        raise ValueError(f"padding must be 0 or more pixels. Received: padding={padding}.")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must lie in [0, 1]. Received: jitter={jitter}.")
    stream = tf.stack([tf.bitwise.bitwise_xor(tf.cast(seed, tf.int64), _STREAM), tf.cast(step, tf.int64)])
    uniform = tf.random.stateless_uniform([batch_size, 8], stream, alg="philox")
    factors = tf.round((1 + jitter * (2 * uniform[:, :3] - 1)) * _FACTOR_GRID) / _FACTOR_GRID
    offsets = tf.cast(uniform[:, 3:5] * (2 * padding + 1), tf.int32)
    return Parameters(
        top=offsets[:, 0],
        left=offsets[:, 1],
        flip=tf.logical_and(uniform[:, 5] < 0.5, flip),
        order=tf.gather(tf.constant(_ORDERS, tf.int32), tf.cast(uniform[:, 6] * len(_ORDERS), tf.int32)),
        factors=factors,
    )


def apply(images: Images, parameters: Parameters, padding: int = 4) -> tf.Tensor:
    """Crops, jitters and flips each image as its parameters say, drawn for the same `padding`; equal to PIL's result.

    Shapes and errors as for `augment`.
    """
    images = _checked(images)
    return _jitter(_crop_and_flip(images, parameters, padding), parameters)


def augment(
    images: Images, seed: Whole, step: Whole, padding: int = 4, jitter: float = 0.4, flip: bool = True
) -> tf.Tensor:
    """Augments a batch of training images as MetaOptNet does, from (seed, step) alone.

    Random crop with black padding, colour jitter with PIL's semantics, horizontal flip.

    Args:
        images: uint8 [B, H, W, C] with C of 1 or 3, values 0..255.
        seed: integer or scalar tensor.
        step: integer or scalar tensor, the number of the batch.
        padding: black pixels on each side before the crop, default 4 (32 x 32); MetaOptNet has 8 at 84 x 84.
        jitter: brightness, contrast and saturation factors are uniform in [1 - jitter, 1 + jitter], default 0.4.
        flip: whether half of the images are mirrored, default True; off where left and right carry meaning.

    Returns:
        uint8 [B, H, W, C].

    Raises:
        ValueError: if images are not uint8 [B, H, W, C] with C of 1 or 3, or an argument is out of range.

    Example:
        >>> batches = tf_unravel.data.class_pairs(split, batch_size=128, seed=0).enumerate()
        >>> batches.map(lambda step, batch: (augment(batch[0], seed=0, step=step), batch[1]))

    Reference:
        Lee et al., "Meta-Learning with Differentiable Convex Optimization", CVPR 2019, and its code (``data/*.py``).
    """
    images = _checked(images)
    parameters = draw(tf.shape(images)[0], seed, step, padding, jitter, flip)
    if padding or flip:
        images = _crop_and_flip(images, parameters, padding)
    return _jitter(images, parameters) if jitter else images


def _checked(images: Images) -> tf.Tensor:
    """The images as a tensor, or one clear line."""
    images = tf.convert_to_tensor(images)
    if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[3] not in (1, 3) or None in images.shape[1:]:
        raise ValueError(
            "Augmentation takes uint8 images [B, H, W, C] with C of 1 or 3 and H, W known; cast or convert them first. "
            f"Received: {images.dtype.name} of shape {images.shape}."
        )
    return images


def _crop_and_flip(images: tf.Tensor, parameters: Parameters, padding: int) -> tf.Tensor:
    """One gather of pixels does both: a flip only reverses the columns that are read, and commutes with the colours."""
    height, width, channels = images.shape[1:]
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    columns = tf.where(parameters.flip[:, None], tf.range(width - 1, -1, -1), tf.range(width))  # [B, W]
    columns += parameters.left[:, None]
    rows = tf.range(height) + parameters.top[:, None]  # [B, H]
    rows += tf.range(tf.shape(images)[0])[:, None] * (height + 2 * padding)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # [B, H, W]
    return tf.gather(tf.reshape(padded, [-1, channels]), pixels)  # [B, H, W, C]


def _grey(channels: tf.Tensor) -> tf.Tensor:
    """PIL's conversion to mode "L"; exact, as every term is a multiple of 2^-16 below 2^8. [C, B, HW] -> [B, HW]."""
    if channels.shape[0] == 1:
        return channels[0]
    red, green, blue = tf.unstack(channels)
    return tf.floor(red * (19595 / 65536) + green * (38470 / 65536) + (blue * (7471 / 65536) + 0.5))


def _mean_grey(grey: tf.Tensor) -> tf.Tensor:
    """int(mean + 0.5) of each image, in integers. [B, HW] -> float32 [B, 1]."""
    pixels = grey.shape[1]
    total = tf.cast(tf.reduce_sum(grey, axis=1, keepdims=True), tf.int32)
    return tf.cast((2 * total + pixels) // (2 * pixels), tf.float32)


def _jitter(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Three passes of the one formula, each with the operation whose turn it is in each image."""
    height, width, channels = images.shape[1:]
    factors = tf.gather(parameters.factors, parameters.order, batch_dims=1)  # [B, 3], in the order of application
    # Channels first: the grey level is then a sum of contiguous planes and broadcasts without a stride.
    planes = tf.reshape(tf.transpose(images, [3, 0, 1, 2]), [channels, -1, height * width])  # [C, B, HW]
    planes = tf.cast(planes, tf.float32)
    for turn in range(3):
        operation, factor = parameters.order[:, turn, None], factors[:, turn, None]  # [B, 1]
        grey = _grey(planes)
        rest = 1 - factor
        target = tf.where(operation == SATURATION, rest, 0) * grey
        target += tf.where(operation == CONTRAST, rest * _mean_grey(grey), 0)
        planes = tf.raw_ops.ClipByValue(t=factor * planes + target, clip_value_min=0.0, clip_value_max=255.0)
        planes = tf.floor(planes)
    planes = tf.reshape(tf.cast(planes, tf.uint8), [channels, -1, height, width])  # [C, B, H, W]
    return tf.transpose(planes, [1, 2, 3, 0])  # [B, H, W, C]
