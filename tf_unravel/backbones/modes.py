"""How layers behave beyond `training`: one batch shared by replicas, and passes that normalise but are no training.

`synchronize(model)` is for learners whose batch is one batch that replicas share: BatchNorm then takes the statistics
of the whole, and dropout draws the masks of the whole, so that R replicas do what one device does. Learners whose
tasks are normalised each by itself leave it off.

`batch_statistics()` is for passes with training=False, in which dropout, noise and augmentation do nothing, but
BatchNorm must still use the statistics of its batch: the queries of a network adapted to a task.

`twice_differentiable()` is for passes whose gradient is differentiated again, as in MAML: Keras's normalisation layers
take their statistics from `tf.nn.moments`, which stops the gradient at the mean. That leaves the first derivative
intact and makes the second wrong by O(1/n).

Both act while a function is traced or run eagerly, in the thread that entered them. To reach Keras's own layers they
patch `keras.layers.BatchNormalization.call` or `tf.nn.moments` until they are left; the patch does nothing in other
threads.
"""

import contextlib
import contextvars
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

_calls: contextvars.ContextVar[Counter[int] | None] = contextvars.ContextVar("calls", default=None)
_twice = contextvars.ContextVar("twice", default=False)


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


def sharing(layer: keras.layers.Layer) -> int:
    """How many replicas share this layer's batch; 1 where it has its own."""
    return tf.distribute.get_strategy().num_replicas_in_sync if layer.synchronized else 1


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of a model, nested ones included; `trainable` says which of them are not frozen."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


@contextlib.contextmanager
def batch_statistics() -> Iterator[Counter[int]]:
    """Inside, a BatchNorm layer that is not frozen normalises by its batch where `training` is False too.

    Yields:
        id(layer) -> how often a BatchNorm layer has done so.
    """
    calls: Counter[int] = Counter()
    token = _calls.set(calls)
    try:
        with _batch_norm_call.ours():
            yield calls
    finally:
        _calls.reset(token)


def by_batch(layer: keras.layers.BatchNormalization) -> bool:
    """Whether `batch_statistics()` makes this layer normalise by its batch; counts the call if so."""
    calls = _calls.get()
    if calls is None or not layer.trainable:
        return False
    calls[id(layer)] += 1
    return True


def momentum_by_batch(layer: keras.layers.BatchNormalization) -> float:
    """A layer's momentum inside `batch_statistics()`: of 1, which never looks at a batch, 0 takes the place."""
    return 0.0 if layer.momentum == 1.0 else layer.momentum


@contextlib.contextmanager
def twice_differentiable(on: bool = True) -> Iterator[None]:
    """Inside, the statistics of normalisation layers have the right second derivative too."""
    token = _twice.set(on)
    try:
        with _moments.ours() if on else contextlib.nullcontext():
            yield
    finally:
        _twice.reset(token)


class _Replaced:
    """A function of another library, in a class or module, that wrap(theirs) takes the place of while it is needed."""

    def __init__(self, owner: Any, name: str, wrap: Callable[[Any], Any]):
        self._owner, self._name, self._wrap = owner, name, wrap
        self._users, self._lock = 0, threading.Lock()
        self._theirs: Any = None

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._theirs = getattr(self._owner, self._name)
                setattr(self._owner, self._name, functools.wraps(self._theirs)(self._wrap(self._theirs)))
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    setattr(self._owner, self._name, self._theirs)


class _Forgetful:
    """A BatchNorm layer of momentum 1 whose running statistics become the batch's."""

    momentum = 0.0

    def __init__(self, layer: keras.layers.BatchNormalization):
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _call_by_batch(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> Any:
        if not by_batch(self):
            return theirs(self, inputs, training=training, mask=mask)
        layer = _Forgetful(self) if momentum_by_batch(self) != self.momentum else self
        return theirs(layer, inputs, training=True, mask=mask)

    return call


def _differentiable(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None) -> Any:
        if not _twice.get():
            return theirs(x, axes, shift=shift, keepdims=keepdims, name=name)
        x = tf.convert_to_tensor(x)
        wide = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
        mean = tf.reduce_mean(wide, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=keepdims)
        mean = mean if keepdims else tf.squeeze(mean, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)

    return moments


_batch_norm_call = _Replaced(keras.layers.BatchNormalization, "call", _call_by_batch)
_moments = _Replaced(tf.nn, "moments", _differentiable)
