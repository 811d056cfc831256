"""From the pixels of a task to logits, inside a graph: what a head does, on features or by adapting the network.

An answer is called with a support set and queries. Settled with a support set it becomes a function of the queries
alone, and what the support set decides is computed once.

| symbol | name    | shape                                         |
|--------|---------|-----------------------------------------------|
| S, Q   | support, query | float32 [S, H, W, C], [Q, H, W, C], 0-255 |
| y      | labels  | int32 [S]                                     |
| W      | ways    | scalar                                        |
"""

from typing import Any, Protocol

import keras
import tensorflow as tf

from tf_unravel.heads.kernel import at_least_float32


class Settled(Protocol):
    """A classifier whose support set is built in: query pixels [Q, H, W, C] -> logits [Q, W]."""

    def __call__(self, query: tf.Tensor) -> tf.Tensor: ...


class Answer(Protocol):
    """What an exported model answers a task with.

    Attributes:
        learned_ways: the number of classes it was learned for; None where any number will do.
    """

    learned_ways: int | None

    def __call__(self, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor, ways: tf.Tensor) -> tf.Tensor:
        """Logits [Q, W]."""
        ...

    def settled(self, support: tf.Tensor, labels: tf.Tensor, ways: int) -> Settled:
        """The same for one support set."""
        ...


class FromFeatures:
    """The answer of a head that reads features.

    Args:
        backbone: keras.Model, images -> [B, D].
        head: see `tf_unravel.heads`.
    """

    learned_ways = None

    def __init__(self, backbone: keras.Model, head: Any):
        self.backbone, self.head = backbone, head

    def __call__(self, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor, ways: tf.Tensor) -> tf.Tensor:
        return self._logits(self._features(support), labels, query, ways)

    def settled(self, support: tf.Tensor, labels: tf.Tensor, ways: int) -> Settled:
        # A variable: a constant would be written into the graph, where there is room for two gigabytes.
        known = tf.Variable(self._features(support), trainable=False, name="support_features")
        return lambda query: self._logits(known.value(), labels, query, ways)

    def _features(self, pixels: tf.Tensor) -> tf.Tensor:
        return at_least_float32(self.backbone(pixels, training=False))

    def _logits(self, known: tf.Tensor, labels: tf.Tensor, query: tf.Tensor, ways: Any) -> tf.Tensor:
        return self.head(known[None], labels[None], self._features(query)[None], ways)[0]


def answer_of(backbone: keras.Model, head: Any) -> Answer:
    """The answer of a head on a backbone.

    Raises:
        ValueError: the head cannot be exported.
    """
    if getattr(head, "on_images", False):
        raise ValueError(f"Fine-tuning cannot be exported. Received: {head.name}.")
    return FromFeatures(backbone, head)
