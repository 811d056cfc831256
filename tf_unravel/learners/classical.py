"""Classical training, with or without a clustering regularizer (sections 4.4 and 4.5, appendix A.2).

    loss = cross-entropy(g_w(f_theta(x)), y) + R(f_theta(x), y) + weight_decay / 2 * ||theta, w||^2

on class-balanced batches (two images of every class drawn). Without a regularizer this is ordinary supervised
training, the "-C" models of the paper.

| paper   | here                   | shape            |
|---------|------------------------|------------------|
| f_theta | backbone               | images -> [B, D] |
| g_w     | classifier             | [B, D] -> [B, C] |
| R_FC    | regularizers.FeatureClustering  | scalar  |
| R_HV    | regularizers.HyperplaneVariation | scalar |

What differs from the paper: nothing that is known; its printed regularizers contain C/N, its coefficients too
(Table 8), so a coefficient here multiplies the raw ratio. BatchNorm uses the batch in training and the running
statistics in evaluation.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Regularizer = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@keras.saving.register_keras_serializable(package="tf_unravel")
class Classical(keras.Model):
    """Cross-entropy over all training classes, plus a regularizer on the features.

    Args:
        backbone: keras.Model, images -> features [B, D].
        num_classes: number of training classes.
        regularizer: (features float32 [B, D], class_ids [B]) -> scalar, such as `regularizers.FeatureClustering`;
            None for none.
        weight_decay: L2 penalty on every trainable weight, biases and BatchNorm included; its gradient
            weight_decay * w enters the momentum, as in PyTorch's SGD.

    Example:
        >>> learner = Classical(conv4(), num_classes=64, regularizer=FeatureClustering(0.05), weight_decay=5e-4)
        >>> learner.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True))
        >>> learner.fit(data.class_pairs(split), epochs=30, steps_per_epoch=300)

    Reference: sections 4.4, 4.5, appendix A.2.
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        regularizer: Regularizer | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"A classifier needs at least two classes. Received: num_classes={num_classes}.")
        self.backbone = backbone
        self.num_classes = num_classes
        self.regularizer = regularizer
        self.weight_decay = weight_decay
        # PyTorch's default for a linear layer, uniform in +-1/sqrt(D), as the authors' classifier has.
        initializer = keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
        self.classifier = keras.layers.Dense(
            num_classes, kernel_initializer=initializer, dtype="float32", name="classifier"
        )
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "cross_entropy", "regularizer", "accuracy")]
        self.build()

    def build(self, input_shape: Any = None) -> None:
        if not self.classifier.built:
            self.classifier.build(self.backbone.output_shape)
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits over the training classes, images [B, H, W, C] -> [B, num_classes]."""
        return self.classifier(self.backbone(images, training=training))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return self.trackers

    def losses_of(
        self, images: tf.Tensor, class_ids: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cross-entropy, regularizer (both scalars) and logits [B, num_classes] of a batch."""
        features = tf.cast(self.backbone(images, training=training), tf.float32)  # [B, D]
        logits = self.classifier(features)  # [B, num_classes]
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(class_ids, logits)  # [B]
        penalty = self.regularizer(features, class_ids) if self.regularizer else tf.constant(0.0)
        return tf.reduce_mean(cross_entropy), penalty, logits

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        images, class_ids = data[:2]
        with tf.GradientTape() as tape:
            cross_entropy, penalty, logits = self.losses_of(images, class_ids)
            loss = cross_entropy + penalty
            decay = self.weight_decay * tf.add_n([tf.nn.l2_loss(w.value) for w in self.trainable_variables])
            # Replicas add their gradients up, so each contributes its share of the mean.
            share = (loss + tf.cast(decay, loss.dtype)) / tf.distribute.get_strategy().num_replicas_in_sync
            share = self.optimizer.scale_loss(share)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(share, weights), weights, strict=True))
        return self._track(cross_entropy, penalty, logits, class_ids)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        images, class_ids = data[:2]
        return self._track(*self.losses_of(images, class_ids, training=False), class_ids)

    def _track(
        self, cross_entropy: tf.Tensor, penalty: tf.Tensor, logits: tf.Tensor, class_ids: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(class_ids, tf.int32))
        accuracy = tf.reduce_mean(tf.cast(hits, tf.float32))
        values = (cross_entropy + penalty, cross_entropy, penalty, accuracy)
        for tracker, value in zip(self.trackers, values, strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "num_classes": self.num_classes,
            "regularizer": serialize(self.regularizer) if self.regularizer else None,
            "weight_decay": self.weight_decay,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Classical":
        config = dict(config)
        for key in ("backbone", "regularizer"):
            if config[key] is not None:
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)
