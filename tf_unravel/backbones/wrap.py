"""Any Keras model as a backbone: raw pixels in, one vector an image out."""

from __future__ import annotations

import keras

from tf_unravel.backbones.layers import IMAGE_FORMAT, Normalization, normalize_images


def wrap(model: keras.Model, normalization: Normalization | None = None, blue_first: bool = False) -> keras.Model:
    """Wraps a model on normalised images, one of `keras.applications` say, so that it takes raw pixels.

    Args:
        model: maps images [B, H, W, C] to [B, D] or to a map [B, h, w, D], which is averaged over its pixels.
        normalization: (mean, std) per channel in units of 0..255; default maps to -1..1. Models that do this
            themselves (EfficientNet, MobileNetV3 with `include_preprocessing`) take ([0], [1]).
        blue_first: whether the model takes blue, green, red; `normalization` is in that order too.

    Returns:
        A `keras.Model` from images, uint8 or float 0..255, to features [B, D]; it shares `model`'s weights.

    Raises:
        ValueError: if the model does not map one image to one vector or map.

    Example:
        >>> net = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None)
        >>> wrap(net).output_shape
        (None, 1280)
    """
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or len(model.outputs) != 1:
        raise ValueError(f"a backbone takes images [B, H, W, C] and gives one output. Received: input shape {shape}")
    inputs = keras.Input(shape[1:], name="images")
    images = keras.ops.flip(inputs, axis=-1) if blue_first else inputs
    x = model(normalize_images(images, normalization))
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D(IMAGE_FORMAT, name="features")(x)  # [B, D]
    if len(x.shape) != 2 or x.shape[-1] is None:
        raise ValueError(f"a backbone gives features [B, D] or a map [B, h, w, D]. Received: output shape {x.shape}")
    return keras.Model(inputs, x, name=f"{model.name}_backbone")
