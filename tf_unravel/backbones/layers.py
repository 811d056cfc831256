"""What the backbones share: fixed normalisation of raw pixels, convolutions, seeds of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.backbones.batch_norm import FusedBatchNormalization
from tf_unravel.checks import warn_of_scaled_images

Normalization = tuple[Sequence[float], Sequence[float]]
"""(mean per channel, standard deviation per channel), in units of 0..255."""

IMAGE_FORMAT = "channels_last"
"""Images and feature maps are [B, H, W, C], whatever `keras.config.image_data_format()` says."""

NEUTRAL_NORMALIZATION: Normalization = ((127.5,), (127.5,))
"""Maps 0..255 to -1..1, whatever the images are; used where no normalization is given."""


@keras.saving.register_keras_serializable(package="tf_unravel")
class Normalize(keras.layers.Layer):
    """Maps raw pixels to network units with fixed numbers: y = (x - mean) / std.

    The numbers are part of the configuration, not weights: they are saved with the model and never trained, so an
    exported model takes raw pixels. The arithmetic is in float32 under every dtype policy; the result has the
    policy's compute dtype.

    Args:
        mean: mean per channel in units of 0..255; one number serves every channel.
        std: standard deviation per channel in units of 0..255, positive.

    Raises:
        ValueError: if a std is not positive, or the numbers do not fit the channels of the images.

    Example:
        >>> Normalize(mean=[127.5], std=[127.5])(np.uint8([[[[0, 255, 51]]]])).numpy().tolist()
        [[[[-1.0, 1.0, -0.6000000238418579]]]]
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs: Any) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.mean = [float(value) for value in np.reshape(mean, -1)]
        self.std = [float(value) for value in np.reshape(std, -1)]
        if len(self.mean) != len(self.std) or not all(value > 0.0 and np.isfinite(value) for value in self.std):
            raise ValueError(
                "normalization needs a mean and a positive standard deviation for each channel, in units of 0..255. "
                f"Received: mean={self.mean}, std={self.std}"
            )

    def build(self, input_shape: Sequence[int | None]) -> None:
        if len(self.mean) not in (1, input_shape[-1]):
            raise ValueError(
                f"normalization has {len(self.mean)} channels, the images have {input_shape[-1]}. "
                f"Received: mean={self.mean}, image shape={tuple(input_shape[1:])}; give one number per channel."
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if tf.executing_eagerly() and max(self.std) > 1:  # those of images in 0..1 are below it
            warn_of_scaled_images("The backbone", inputs)
        dtype = tf.float64 if self.compute_dtype == "float64" else tf.float32
        pixels = tf.cast(inputs, dtype)
        scaled = (pixels - tf.constant(self.mean, dtype)) / tf.constant(self.std, dtype)
        return tf.cast(scaled, self.compute_dtype)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "std": self.std}


def normalize_images(images: keras.KerasTensor, normalization: Normalization | None) -> keras.KerasTensor:
    """Puts the fixed `Normalize` layer, named "normalize", behind a model's input; None means -1..1."""
    mean, std = NEUTRAL_NORMALIZATION if normalization is None else normalization
    return Normalize(mean, std, name="normalize")(images)


def layer_seeds(seed: int | None, count: int) -> list[int | None]:
    """`count` independent seeds for the layers of a model, a function of `seed` alone; None stays unseeded."""
    if seed is None:
        return [None] * count
    return [int(state) for state in np.random.SeedSequence(seed).generate_state(count) >> 1]


def image_input(
    input_shape: Sequence[int], smallest: int, model: str, normalization: Normalization | None
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input of a model and its normalised pixels; ValueError for a shape that is none, or below `smallest`."""
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1 or min(shape[:2]) < smallest:
        raise ValueError(
            f"{model} takes images (H, W, C) of at least {smallest} x {smallest} pixels. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    inputs = keras.Input(shape, name="images")
    return inputs, normalize_images(inputs, normalization)


def he_normal(seed: int | None) -> keras.initializers.Initializer:
    """He's initialization over the fan-out: N(0, sqrt(2 / (9 filters))) for a 3x3 convolution."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seed)


def conv_norm(
    x: keras.KerasTensor, filters: int, size: int, initializer: keras.initializers.Initializer,
    names: tuple[str, str], strides: int = 1, **norm: Any,
) -> keras.KerasTensor:
    """A convolution that keeps the size of its map, and batch normalisation, which owns the bias (`input_bias`)."""
    x = keras.layers.Conv2D(filters, size, strides, padding="same", use_bias=False, kernel_initializer=initializer,
                            data_format=IMAGE_FORMAT, name=names[0])(x)
    return FusedBatchNormalization(name=names[1], **norm)(x)
