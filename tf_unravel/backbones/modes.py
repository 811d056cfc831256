"""How layers behave beyond `training`: one batch shared by replicas, and passes that normalise but drop nothing.

`synchronize(model)` is for learners whose batch is one batch that replicas share: BatchNorm then takes the statistics
of the whole, and dropout draws the masks of the whole, so that R replicas do what one device does. Learners whose
tasks are normalised each by itself leave it off.

`nothing_dropped()` is for passes in which BatchNorm must look at its batch as in training and nothing may be dropped:
the queries of a network that was adapted to a task. It acts while a function is traced or run eagerly.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import tensorflow as tf

_dropping = contextvars.ContextVar("dropping", default=True)


def synchronize(model: keras.Model, on: bool = True) -> None:
    """Makes BatchNorm and the dropout layers of a model work on the batch that all replicas share, or on their own.

    One replica behaves the same either way.

    Args:
        model: any Keras model, nested ones included.
        on: whether to.
    """
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "synchronized"):
            layer.synchronized = on


@contextlib.contextmanager
def nothing_dropped() -> Iterator[None]:
    """Inside, the dropout layers of this package pass everything on, in training too (Keras's own do not know it)."""
    token = _dropping.set(False)
    try:
        yield
    finally:
        _dropping.reset(token)


def dropping() -> bool:
    """Whether dropout layers drop."""
    return _dropping.get()


def sharing(layer: keras.layers.Layer) -> int:
    """How many replicas share this layer's batch; 1 where it has its own."""
    return tf.distribute.get_strategy().num_replicas_in_sync if layer.synchronized else 1
