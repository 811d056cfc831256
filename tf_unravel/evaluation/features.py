"""Features of many images, by a backbone in inference mode."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones
from tf_unravel.adaptation.head import Head
from tf_unravel.backbones.graphs import GraphCache
from tf_unravel.checks import shown, warn_of_scaled_images
from tf_unravel.evaluation.gram import check_finite


class Extractor:
    """What takes the place of a backbone where features are all that is asked of it: an exported model is one.

    Attributes:
        head: the head that it carries.
        batchnorm: what BatchNorm does in it.
    """

    head: Head
    batchnorm: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of images uint8 [B, H, W, C]."""
        raise NotImplementedError


def check_backbone(backbone: Any) -> None:
    """Raises ValueError for the name of a backbone, a class, a function that builds one, or a learner."""
    if hasattr(backbone, "own_head"):
        raise ValueError(
            "A learner's call gives logits or nothing: give its `backbone`, the trained extractor. "
            f"Received: {type(backbone).__name__}."
        )
    builds_one = any(backbone is each for each in backbones.by_name.values())
    if isinstance(backbone, str | type) or backbone is None or builds_one:
        raise ValueError(
            "A backbone must be a keras.Model, such as backbones.conv4(), or features [N, D]. "
            f"Received: {shown(backbone)}."
        )


def extract_features(backbone: keras.Model | Extractor, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Returns the features of images, by the backbone in inference mode.

    BatchNorm uses its running statistics and dropout does nothing, so that a feature does not depend on the images
    next to it. Besides the result, one batch is in memory at a time.

    Args:
        backbone: Keras model, images -> [B, D], 0-255; or an exported model.
        images: [N, H, W, C], uint8 or float 0-255; may be a memmap.
        batch_size: images per call.

    Returns:
        float32 [N, D]

    Raises:
        ValueError: no backbone; it does not return [B, D], or returns a value that is not finite.
    """
    check_backbone(backbone)
    warn_of_scaled_images("extract_features", images)
    forward = backbone.features if isinstance(backbone, Extractor) else _forward(backbone)
    features = None
    for start in range(0, len(images), batch_size):
        batch = forward(np.ascontiguousarray(images[start : start + batch_size]))
        if features is None:
            if batch.ndim != 2:
                raise ValueError(f"A backbone maps images to features [B, D]. Received: an output {batch.shape}.")
            features = np.empty((len(images), batch.shape[1]), np.float32)
        features[start : start + len(batch)] = batch
        check_finite(np.isfinite(batch).all(axis=1), start)
    if features is None:
        raise ValueError("There are no images to take features of. Received: 0 images.")
    return features


_forwards = GraphCache()


def _forward(backbone: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    graph = _compiled(backbone)
    return lambda images: graph(tf.constant(images)).numpy()


def _compiled(backbone: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The backbone's inference as one graph; that of a Keras model is kept as long as it fits the model."""

    def traced(model: Callable[[], Any]) -> Callable[[tf.Tensor], tf.Tensor]:
        @tf.function(reduce_retracing=True)
        def forward(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(model()(tf.cast(images, tf.float32), training=False), tf.float32)

        return forward

    if isinstance(backbone, keras.Layer):
        return _forwards.get(backbone, "features", lambda: traced(weakref.ref(backbone)))
    return traced(lambda: backbone)  # what changes another callable cannot be seen
