"""What a model must be to serve as a backbone, checked before it is trained: each fault is one line."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_unravel.checks import shown


def image_shape(backbone: keras.Model) -> tuple[int | None, ...] | None:
    """(H, W, C) of the images that a backbone takes; None where it was not built yet, or takes no single tensor."""
    shape = getattr(backbone, "input_shape", None)
    if shape is None:  # a subclassed model knows only what it was built on
        shape = (backbone.get_build_config() or {}).get("input_shape")
    return shape[1:] if isinstance(shape, tuple) else None


def check_backbone(owner: str, backbone: Any) -> int:
    """Refuses a model that cannot be trained as a backbone.

    Args:
        owner: the name of the learner that trains it.
        backbone: the model.

    Returns:
        D, the size of its features.

    Raises:
        ValueError: it is no built `keras.Model` from one tensor of images [B, H, W, C] to one of features [B, D]; its
            layers expect images [B, C, H, W]; its weights are not kept in float32 or float64.
    """
    if not isinstance(backbone, keras.Model):
        raise ValueError(f"{owner}.backbone must be a keras.Model, such as backbones.conv4(). "
                         f"Received: {shown(backbone)}.")
    what = f"{type(backbone).__name__} {backbone.name!r}"
    inputs = getattr(backbone, "inputs", None) or [None]
    if len(inputs) > 1:
        raise ValueError(f"{owner}.backbone must have one input, images [B, H, W, C]. "
                         f"Received: {what} with {len(inputs)} inputs.")
    images = image_shape(backbone) if backbone.built else None
    if images is None:
        raise ValueError(f"{owner}.backbone must be built: begin it with keras.Input((H, W, C)), or call it once on "
                         f"images [B, H, W, C]. Received: {what}, which does not know its input shape.")
    output = backbone.compute_output_spec(keras.KerasTensor((None, *images)))
    shape = keras.tree.map_structure(lambda each: tuple(each.shape), output)
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        raise ValueError(f"{owner}.backbone must give one tensor of features [B, D]; put keras.layers.Flatten() or "
                         f"GlobalAveragePooling2D() behind a feature map. Received: {what} with output shape {shape}.")
    _check_layers(owner, backbone)
    return shape[1]


def _check_layers(owner: str, backbone: keras.Model) -> None:
    layers = list(backbone._flatten_layers())
    first = [layer.name for layer in layers if getattr(layer, "data_format", None) == "channels_first"]
    if first and not any(isinstance(layer, keras.layers.Permute) for layer in layers):
        raise ValueError(
            f"{owner}'s images are [B, H, W, C]: build the backbone with data_format='channels_last', or after "
            "keras.config.set_image_data_format('channels_last'), or begin it with keras.layers.Permute((3, 1, 2)). "
            f"Received: layer {first[0]!r} with data_format='channels_first'."
        )
    kept = {variable.dtype for variable in backbone.trainable_variables}
    if not kept <= {"float32"} and not kept <= {"float64"}:
        raise ValueError(
            f"{owner} trains weights that are kept in float32, or all in float64; for the speed of half precision use "
            "keras.config.set_dtype_policy('mixed_float16') or 'mixed_bfloat16'. "
            f"Received: weights in {' and '.join(sorted(kept))}."
        )
    half = [layer.name for layer in layers if layer.compute_dtype == "float16"]
    if half and backbone.compute_dtype != "float16":
        raise ValueError(
            f"{owner} scales the loss for float16 by the policy of the whole backbone: build it under "
            "keras.config.set_dtype_policy('mixed_float16'). "
            f"Received: layer {half[0]!r} computes in float16, the model in {backbone.compute_dtype}."
        )


def check_unregularized(owner: str, backbone: keras.Model) -> None:
    """Raises ValueError for a backbone that adds to a loss: regularizers of weights, of activations, `add_loss`."""
    found = [variable.path for variable in backbone.trainable_variables if variable.regularizer is not None]
    found += [layer.name for layer in backbone._flatten_layers() if layer.activity_regularizer is not None]
    if not found and (layer := _adds_loss(backbone)):
        found = [layer]
    if found:
        raise ValueError(
            f"{owner}'s inner loop trains by the cross-entropy alone: build the backbone without regularizers and "
            f"add_loss; {owner}.weight_decay is an L2 penalty of the outer step. Received: losses of {found[0]!r}."
        )


def _adds_loss(backbone: keras.Model) -> str | None:
    """The name of a backbone whose layers call `add_loss`, found by tracing it once; None where none does.

    Keras's layers and this package's do not, so that most networks need no trace.
    """
    known = ("keras.", "tf_unravel.")
    if all(type(layer).__module__.startswith(known) for layer in backbone._flatten_layers()):
        return None

    def losses(images: tf.Tensor) -> list[tf.Tensor]:
        weights, state = ([v.value for v in each] for each in (backbone.trainable_variables,
                                                              backbone.non_trainable_variables))
        found: list[tf.Tensor] = backbone.stateless_call(weights, state, images, training=True, return_losses=True)[2]
        return found

    images = tf.TensorSpec((None, *(image_shape(backbone) or ())), tf.float32)
    traced = tf.function(losses).get_concrete_function(images)
    return backbone.name if traced.structured_outputs else None
