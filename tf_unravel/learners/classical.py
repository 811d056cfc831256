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

What differs from the paper: its printed regularizers contain C/N, its coefficients too (Table 8), so a coefficient here
multiplies the raw ratio; R_HV is the mean over the pairs of classes of a batch, where the paper adds the terms. Which
form of R_FC and R_HV its coefficients belong to it does not say: as printed, or by pairs and squared as in the authors'
code. weight_decay reaches biases and BatchNorm too. BatchNorm uses the batch in training and the running
statistics in evaluation. On several replicas BatchNorm and the regularizer see the whole batch, as on one.

Under Keras's `class_weight` and `sample_weight` the cross-entropy is sum_i w_i ce_i / B, as Keras computes it; the
regularizer and the accuracy do not see the weights. The losses that layers of the backbone add (regularizers of
weights and activations, `add_loss`) are part of the loss.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.adaptation.head import at_least_float32
from tf_unravel.backbones.modes import synchronize
from tf_unravel.heads import Linear
from tf_unravel.learners.keras_arguments import image_weights
from tf_unravel.learners.learner import Learner, accuracy_of, gathered, shapes_of, with_added

Regularizer = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@keras.saving.register_keras_serializable(package="tf_unravel")
class Classical(Learner):
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

    tracked = ("loss", "cross_entropy", "regularizer", "accuracy")
    may_diverge_by = "the learning rate, or the coefficient of Classical.regularizer"
    honours = ("metrics", "weighted_metrics", "class_weight", "sample_weight")
    checks_labels = False  # TensorFlow's cross-entropy does: an error, under XLA a loss of NaN

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        regularizer: Regularizer | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(backbone, weight_decay, **kwargs)
        if num_classes < 2:
            raise ValueError(f"A classifier needs at least two classes. Received: num_classes={num_classes}.")
        self.num_classes = num_classes
        self.regularizer = regularizer
        # PyTorch's default for a linear layer, uniform in +-1/sqrt(D), as the authors' classifier has.
        initializer = keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
        self.classifier = keras.layers.Dense(
            num_classes, kernel_initializer=initializer, dtype=self.head_dtype, name="classifier"
        )
        synchronize(backbone)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        if not self.classifier.built:
            self.classifier.build((None, self.feature_size))
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits over the training classes, images [B, H, W, C] -> [B, num_classes]."""
        return self.classifier(self.backbone(images, training=training))

    def objective(self, data: tuple[tf.Tensor, ...], training: bool) -> dict[str, tf.Tensor]:
        images, class_ids, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        features = at_least_float32(self.backbone(images, training=training))  # [B, D]
        added = self.backbone.losses
        logits = self.classifier(features)  # [B, num_classes]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(class_ids, logits)  # [B]
        if sample_weight is not None:
            losses = image_weights(sample_weight, losses) * losses
        cross_entropy = tf.reduce_mean(losses)
        penalty = tf.constant(0.0, losses.dtype)
        if self.regularizer:
            penalty = tf.cast(self.regularizer(gathered(features), gathered(class_ids)), losses.dtype)
        if self._compile_metrics is not None:
            self.compute_metrics(images, class_ids, logits, sample_weight)
        loss = with_added(cross_entropy + penalty, added)
        return {"loss": loss, "cross_entropy": cross_entropy, "regularizer": penalty,
                "accuracy": accuracy_of(logits, class_ids)}

    def check_batch(self, spec: Any) -> None:
        if len(spec) != 2 or spec[0].shape.rank != 4:
            raise ValueError(
                "Classical trains on images [B, H, W, C] and their class ids: run.batches = @ClassPairs(), or "
                f"data.class_pairs(...). Received: {shapes_of(spec)}."
            )

    def own_head(self) -> Linear:
        """Softmax regression on frozen features, the paper's "NN" head."""
        return Linear()

    def get_config(self) -> dict[str, Any]:
        regularizer = keras.saving.serialize_keras_object(self.regularizer) if self.regularizer else None
        return {**super().get_config(), "num_classes": self.num_classes, "regularizer": regularizer}
