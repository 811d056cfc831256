"""BatchNorm in a network adapted to a task: four ways to normalise its queries, and what an accuracy says of them.

No accuracy is comparable to another without its protocol, and what is said beside it is what happened: a frozen layer
runs on its stored statistics under every protocol, and a network without BatchNorm has none.

| symbol  | here         | meaning                                             |
|---------|--------------|-----------------------------------------------------|
| r       | state        | a running statistic                                 |
| b       |              | the same statistic of a batch                       |
| m       | momentum     | of a layer; a step of training makes r m r + (1 - m) b |
"""

from collections import Counter
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.adaptation.inner_loop import Network, Weights
from tf_unravel.backbones.batch_norm import FusedBatchNormalization
from tf_unravel.backbones.modes import batch_norms, batch_statistics, momentum_by_batch

PROTOCOLS = {
    "transductive": "transductive (statistics of the task's queries together)",
    "one_by_one": "inductive (each query normalised together with the support set)",
    "support": "inductive (statistics of the support set)",
    "running": "inductive (running statistics)",
}


def looks_at_batches(backbone: keras.Model) -> bool:
    """Whether a network has a BatchNorm layer that is not frozen; without one all protocols are the same."""
    return any(layer.trainable for layer in batch_norms(backbone))


def protocol_of(backbone: Any, protocol: str) -> str:
    """What BatchNorm does to the queries of this network under a protocol, as an accuracy says it.

    Args:
        backbone: keras.Model, or something else that gives features, of whose layers nothing is known.
        protocol: a name in `PROTOCOLS`.
    """
    if not isinstance(backbone, keras.Model):
        return PROTOCOLS[protocol]
    layers = batch_norms(backbone)
    frozen = sum(not layer.trainable for layer in layers)
    if not layers:
        return "none in this network"
    if not frozen or protocol == "running":
        return PROTOCOLS[protocol]
    if frozen == len(layers):
        return PROTOCOLS["running"] + ", frozen"
    return f"{PROTOCOLS[protocol]}, but {frozen} of {len(layers)} layers frozen on running statistics"


def query_logits(
    network: Network, weights: Weights, state: Weights, support: tf.Tensor, query: tf.Tensor, protocol: str
) -> tf.Tensor:
    """Logits of a task's queries by the adapted weights.

    Args:
        network: the function.
        weights: after the inner loop.
        state: before it; "running" takes its statistics.
        support: images [S, H, W, C].
        query: images [Q, H, W, C].
        protocol: "transductive": MAML, Reptile with --transductive; "one_by_one": Reptile without; "support": one
            pass over the support set gives the statistics, and a query's logits do not depend on other queries;
            "running": the running statistics of training.

    Whatever the protocol, the network is called with training=False: dropout, noise and augmentation do nothing. A
    BatchNorm layer is one that derives from `keras.layers.BatchNormalization`, and not frozen: a frozen one, and any
    layer of another kind, does what it does in inference. Without such a layer all protocols give the same logits.

    Returns:
        [Q, ways]

    Raises:
        ValueError: an unknown protocol; a BatchNorm layer that cannot be made to look at its batch.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"batchnorm is one of {', '.join(PROTOCOLS)}. Received: {protocol!r}.")

    def alone(image: tf.Tensor) -> tf.Tensor:
        return _look(network, weights, tf.concat([support, image[None]], axis=0), state)[0][-1]

    if not looks_at_batches(network.backbone):
        protocol = "running"
    if protocol == "transductive":
        return _look(network, weights, query, state)[0]
    if protocol == "one_by_one":
        return tf.map_fn(alone, query, fn_output_signature=weights[-1].dtype, parallel_iterations=1)
    state = statistics_of(network, weights, state, support) if protocol == "support" else state
    return network.logits(weights, query, state, training=False)[0]


def statistics_of(network: Network, weights: Weights, state: Weights, images: tf.Tensor) -> Weights:
    """The state in which BatchNorm's running statistics are those of these images, unless it is frozen.

    A running statistic r becomes m r + (1 - m) b; from r = 0 the batch's b is what comes out, divided by 1 - m. A
    layer called n times, each with a batch of its own, gives their weighted mean, divided by 1 - m^n.

    Raises:
        ValueError: a BatchNorm layer that cannot be made to look at its batch, or renormalises.
    """
    layers = _batch_norms_of(network.backbone)
    for layer in filter(None, layers):
        if getattr(layer, "renorm", False):
            raise ValueError(
                "BatchNorm with renorm has no statistics of a batch alone: give batchnorm='running' or 'transductive'. "
                f"Received: layer {layer.name!r}."
            )
    zeros = [s if layer is None else tf.zeros_like(s) for s, layer in zip(state, layers, strict=True)]
    _, found, calls = _look(network, weights, images, zeros)

    def of(layer: Any, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        if layer is None:
            return after
        times = calls[id(layer)]
        return after / (1.0 - momentum_by_batch(layer) ** times) if times else before

    return [of(*each) for each in zip(layers, state, found, strict=True)]


def _look(
    network: Network, weights: Weights, images: tf.Tensor, state: Weights
) -> tuple[tf.Tensor, Weights, Counter[int]]:
    """Logits, state and calls of `batch_statistics`: BatchNorm as in training, everything else as in inference."""
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
