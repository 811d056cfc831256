"""BatchNorm in a network adapted to a task: four ways to normalise its queries, and what an accuracy says of them.

No accuracy is comparable to another without its protocol, and what is said beside it is what happened: a frozen layer
runs on its stored statistics under every protocol, and a network without BatchNorm has none.

A protocol is an object: what it keeps of a support set, and the logits of queries. A new one is a subclass of
`QueryNorm`, given to FineTune or a learner as it is; in `PROTOCOLS` it has a name in gin files and saved learners too.

Whatever the protocol, the network is called with training=False: dropout, noise and augmentation do nothing. A
BatchNorm layer is one that derives from `keras.layers.BatchNormalization` and is not frozen: a frozen one, and any
layer of another kind, does what it does in inference.

| symbol  | here         | meaning                                                |
|---------|--------------|--------------------------------------------------------|
| r       | state        | a running statistic                                    |
| b       |              | the same statistic of a batch                          |
| m       | momentum     | of a layer; a step of training makes r m r + (1 - m) b |
"""

from collections import Counter
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from tf_unravel.adaptation.network import Network, Weights
from tf_unravel.backbones.batch_norm import FusedBatchNormalization
from tf_unravel.backbones.modes import batch_norms, batch_statistics, momentum_by_batch


class Adapted(NamedTuple):
    """A network after the inner loop: its function, the adapted weights, and the state that queries are given."""

    network: Network
    weights: Weights
    state: Weights


class QueryNorm:
    """How BatchNorm normalises the queries of an adapted network.

    Attributes:
        name: in constructors, gin files and saved learners.
        said: what an accuracy says.
        transductive: whether a query's logits depend on the other queries.
    """

    name: ClassVar[str]
    said: ClassVar[str]
    transductive: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.said

    def prepare(self, adapted: Adapted, support: tf.Tensor) -> tuple[Weights, tf.Tensor]:
        """What is kept of a task's support images [S, H, W, C]: the state and the images that `logits` needs.

        Until here the state is that before the inner loop.
        """
        return adapted.state, support[:0]

    def logits(self, adapted: Adapted, kept: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """Logits [Q, ways] of a task's queries [Q, H, W, C], with the state and the images of `prepare`."""
        raise NotImplementedError


class Transductive(QueryNorm):
    """MAML's, and that of Reptile with --transductive."""

    name, said, transductive = "transductive", "transductive (statistics of the task's queries together)", True

    def logits(self, adapted: Adapted, kept: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        return _look(adapted, query)[0]


class OneByOne(QueryNorm):
    """Reptile's, without --transductive."""

    name, said = "one_by_one", "inductive (each query normalised together with the support set)"

    def prepare(self, adapted: Adapted, support: tf.Tensor) -> tuple[Weights, tf.Tensor]:
        return adapted.state, support

    def logits(self, adapted: Adapted, kept: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        def alone(image: tf.Tensor) -> tf.Tensor:
            return _look(adapted, tf.concat([kept, image[None]], axis=0))[0][-1]

        return tf.map_fn(alone, query, fn_output_signature=adapted.weights[-1].dtype, parallel_iterations=1)


class Running(QueryNorm):
    """The running statistics of training."""

    name, said = "running", "inductive (running statistics)"

    def logits(self, adapted: Adapted, kept: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        return adapted.network.logits(adapted.weights, query, adapted.state, training=False)[0]


class Support(Running):
    """One pass over the support set gives the statistics."""

    name, said = "support", "inductive (statistics of the support set)"

    def prepare(self, adapted: Adapted, support: tf.Tensor) -> tuple[Weights, tf.Tensor]:
        return statistics_of(*adapted, support), support[:0]


PROTOCOLS: dict[str, QueryNorm] = {each.name: each for each in (Transductive(), OneByOne(), Support(), Running())}


def protocol_named(option: str, protocol: str | QueryNorm) -> QueryNorm:
    """The protocol of a name, or the protocol that is given; `option` is what the user set.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(protocol, QueryNorm):
        return protocol
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise ValueError(f"{option} is one of {', '.join(PROTOCOLS)}. Received: {protocol!r}.")
    return PROTOCOLS[protocol]


def in_force(backbone: keras.Model, protocol: str | QueryNorm) -> QueryNorm:
    """The protocol that a network follows: all are the same where no BatchNorm layer looks at batches."""
    looks = any(layer.trainable for layer in batch_norms(backbone))
    return protocol_named("batchnorm", protocol) if looks else PROTOCOLS["running"]


def protocol_of(backbone: Any, protocol: str | QueryNorm) -> str:
    """What BatchNorm does to the queries of this network under a protocol, as an accuracy says it.

    Of a backbone that is no keras.Model no layers are known.
    """
    said, running = protocol_named("batchnorm", protocol).said, PROTOCOLS["running"].said
    if not isinstance(backbone, keras.Model):
        return said
    layers = batch_norms(backbone)
    frozen = sum(not layer.trainable for layer in layers)
    if not layers:
        return "none in this network"
    if not frozen or said == running:
        return said
    if frozen == len(layers):
        return f"{running}, frozen"
    return f"{said}, but {frozen} of {len(layers)} layers frozen on running statistics"


def query_logits(adapted: Adapted, support: tf.Tensor, query: tf.Tensor, protocol: str | QueryNorm) -> tf.Tensor:
    """Logits [Q, ways] of a task's queries by an adapted network whose state is that before the inner loop.

    Raises:
        ValueError: an unknown protocol; a BatchNorm layer that cannot be made to use its batch.
    """
    follows = in_force(adapted.network.backbone, protocol)
    state, kept = follows.prepare(adapted, support)
    return follows.logits(adapted._replace(state=state), kept, query)


def statistics_of(network: Network, weights: Weights, state: Weights, images: tf.Tensor) -> Weights:
    """The state in which BatchNorm's running statistics are those of these images, unless it is frozen.

    A running statistic r becomes m r + (1 - m) b; from r = 0 the batch's b is what comes out, divided by 1 - m. A
    layer called n times, each with a batch of its own, gives their weighted mean, divided by 1 - m^n.

    Raises:
        ValueError: a BatchNorm layer that cannot be made to use its batch, or renormalises.
    """
    layers = _batch_norms_of(network.backbone)
    for layer in filter(None, layers):
        if getattr(layer, "renorm", False):
            raise ValueError(
                "BatchNorm with renorm has no statistics of a batch alone: give batchnorm='running' or 'transductive'. "
                f"Received: layer {layer.name!r}."
            )
    zeros = [s if layer is None else tf.zeros_like(s) for s, layer in zip(state, layers, strict=True)]
    _, found, calls = _look(Adapted(network, weights, zeros), images)

    def of(layer: Any, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        if layer is None:
            return after
        times = calls[id(layer)]
        return after / (1.0 - momentum_by_batch(layer) ** times) if times else before

    return [of(*each) for each in zip(layers, state, found, strict=True)]


def _look(adapted: Adapted, images: tf.Tensor) -> tuple[tf.Tensor, Weights, Counter[int]]:
    """Logits, state and calls of `batch_statistics`: BatchNorm as in training, everything else as in inference."""
    network, weights, state = adapted
    with batch_statistics() as calls:
        logits, state = network.logits(weights, images, state, training=False)
    for layer in batch_norms(network.backbone):
        own = type(layer).call not in (keras.layers.BatchNormalization.call, FusedBatchNormalization.call)
        if own and layer.trainable and not calls[id(layer)]:
            raise ValueError(
                "A BatchNorm layer that overrides call without super().call cannot be made to look at its batch: give "
                f"batchnorm='running', or freeze it. Received: {type(layer).__name__} {layer.name!r}."
            )
    return logits, state, calls


def _batch_norms_of(backbone: keras.Model) -> list[Any]:
    """For each non-trainable variable the BatchNorm layer whose statistics it is; None for frozen ones and others."""
    layers = [layer for layer in batch_norms(backbone) if layer.trainable and layer.built]
    owner = {id(variable): layer for layer in layers for variable in (layer.moving_mean, layer.moving_variance)}
    return [owner.get(id(variable)) for variable in backbone.non_trainable_variables]
