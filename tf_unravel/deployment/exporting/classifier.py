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

from tf_unravel.adaptation.batchnorm import query_logits, statistics_of
from tf_unravel.adaptation.fine_tune import FineTune
from tf_unravel.adaptation.inner_loop import Network, Weights
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.heads.inner_products import at_least_float32


class Settled(Protocol):
    """A classifier whose support set is built in: query pixels [Q, H, W, C] -> logits [Q, W]."""

    def __call__(self, query: tf.Tensor) -> tf.Tensor: ...


class Answer(Protocol):
    """What an exported model answers a task with."""

    @property
    def learned_ways(self) -> int | None:
        """The number of classes it was learned for; None where any number will do."""

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
        with labels_checked():  # by `requests`
            return self.head(known[None], labels[None], self._features(query)[None], ways)[0]


class Adapting:
    """The answer of a head that adapts the network to the support set, as it does to a first task.

    Args:
        backbone: keras.Model, images -> [B, D].
        head: `heads.FineTune`.
    """

    def __init__(self, backbone: keras.Model, head: FineTune):
        self.backbone, self.head = backbone, head
        self.learned_ways = None if head.classifier is None else head.classifier.units

    def __call__(self, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor, ways: tf.Tensor) -> tf.Tensor:
        network = self._network(ways)
        weights, state = self._adapted(network, support, labels)
        return query_logits(network, weights, state, support, query, self.head.protocol)

    def settled(self, support: tf.Tensor, labels: tf.Tensor, ways: int) -> Settled:
        network, protocol = self._network(ways), self.head.protocol

        @tf.function
        def prepare() -> tuple[Weights, Weights]:
            weights, state = self._adapted(network, support, labels)
            return weights, statistics_of(network, weights, state, support) if protocol == "support" else state

        weights, state = (_variables(values) for values in prepare())
        # The support set's statistics are the running ones from here on; one_by_one needs the images themselves.
        protocol = "running" if protocol == "support" else protocol
        images = tf.Variable(support if protocol == "one_by_one" else support[:0], trainable=False, name="support")

        def logits(query: tf.Tensor) -> tf.Tensor:
            values, kept = ([variable.value() for variable in each] for each in (weights, state))
            return query_logits(network, values, kept, images.value(), query, protocol)

        return logits

    def _network(self, ways: Any) -> Network:
        return self.head.network(self.backbone, ways if self.learned_ways is None else self.learned_ways)

    def _adapted(self, network: Network, support: tf.Tensor, labels: tf.Tensor) -> tuple[Weights, Weights]:
        """The adapted weights, and the state before."""
        start = self.head.start(network)
        weights, _ = self.head.adapt(network, start, support, labels, tf.constant([self.head.seed, 0]))
        return weights, start.state


def _variables(values: Weights) -> list[tf.Variable]:
    return [tf.Variable(value, trainable=False) for value in values]


def answer_of(backbone: keras.Model, head: Any) -> Answer:
    """The answer of a head on a backbone."""
    return Adapting(backbone, head) if getattr(head, "on_images", False) else FromFeatures(backbone, head)
