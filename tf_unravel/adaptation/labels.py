"""Labels of tasks, checked before anything is computed from them: at once where they are known, by assertions in a
graph where they are not.

A graph is as strict as an eager call: a label outside 0..ways-1 would be a row of zeros there, and a class without a
support image one more class to train against. XLA drops assertions: learners refuse it, and in a function of one's own
with `jit_compile=True` nothing is checked.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Ways: TypeAlias = int | tf.Tensor
"""W, the number of classes of a task: an integer, or a scalar tensor of one."""

_checking = contextvars.ContextVar("checking", default=True)


@contextlib.contextmanager
def labels_checked() -> Iterator[None]:
    """Inside, graphs get no assertions about labels: whoever traces them has checked these already."""
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def required(values: Any, *rules: tuple[tf.Tensor, str, Sequence[Any]]) -> Any:
    """The values, a structure of tensors, once every rule holds; rules are checked in their order.

    Each is (what must be true, what to say if it is not, the tensors that were received).
    """
    before: list[tf.Operation] = []
    for holds, message, received in rules:
        with tf.control_dependencies(before):
            check = tf.debugging.Assert(tf.identity(holds), [f"{message} Received:", *received], summarize=20)
        before = [check]
    with tf.control_dependencies(before):
        return tf.nest.map_structure(tf.identity, values)


def checked_range(name: str, labels: Any, ways: Ways) -> tf.Tensor:
    """The labels, integers of any shape, as a tensor, each of them in 0..ways-1; `name` is what they are called.

    Raises:
        ValueError: no integers; a label out of range, where labels and ways are known.
        tf.errors.InvalidArgumentError: a label out of range, when a graph runs.
    """
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer:
        raise ValueError(f"{name} must be integers 0..ways-1. Received: dtype {labels.dtype.name}.")
    known_ways, known = tf.get_static_value(ways), tf.get_static_value(labels)
    message = f"{name} must lie in 0..ways-1."
    if known_ways is not None and known is not None:
        if known.size and (known.min() < 0 or known.max() >= known_ways):
            raise ValueError(f"{message} Received: labels {known.min()}..{known.max()}, ways={int(known_ways)}.")
        return labels
    if not _checking.get():
        return labels
    wide, ways = tf.cast(labels, tf.int64), tf.cast(ways, tf.int64)
    inside = tf.reduce_all((wide >= 0) & (wide < ways))
    return required(labels, (inside, message, _received(labels, ways)))


def checked_support(labels: Any, ways: Ways) -> tf.Tensor:
    """The labels [T, S] of support sets as a tensor: each in 0..ways-1, and every class of every task among them.

    Raises:
        ValueError: no integers [T, S]; ways below 2; where labels and ways are known, a label out of range or a class
            of some task without a support image.
        tf.errors.InvalidArgumentError: the last two, when a graph runs.
    """
    labels, name = tf.convert_to_tensor(labels), "support_labels"
    if labels.shape.rank not in (2, None):
        raise ValueError(
            f"{name} must be [tasks, examples]; add a leading axis for a single task. "
            f"Received: shape {tuple(labels.shape)}."
        )
    known_ways, known = tf.get_static_value(ways), tf.get_static_value(labels)
    if known_ways is not None and int(known_ways) < 2:
        raise ValueError(f"A head needs at least two classes. Received: ways={int(known_ways)}.")
    labels = checked_range(name, labels, ways)
    message = "Every class of a task needs at least one support example."
    if known_ways is not None and known is not None:
        counts = (known[:, :, None] == np.arange(int(known_ways))).sum(axis=1)  # [T, W]
        if known.size and not counts.all():
            task, label = np.argwhere(counts == 0)[0]
            raise ValueError(f"{message} Received: no example of label {label} in task {task}, ways={int(known_ways)}.")
        return labels
    if not _checking.get():
        return labels
    classes = tf.range(tf.cast(ways, tf.int64))
    present = tf.reduce_any(tf.cast(labels, tf.int64)[:, :, None] == classes, axis=1)  # [T, W]
    return required(labels, (tf.reduce_all(present), message, _received(labels, ways)))


def _received(labels: tf.Tensor, ways: Ways) -> list[Any]:
    """What an assertion shows. TensorFlow makes one on int32 and strings a plain operation, others a branch in the
    graph, and then ops run in another order, on other threads: sums may round otherwise from one run to the next.
    """
    return ["labels", tf.saturate_cast(labels, tf.int32), "ways", tf.cast(ways, tf.int32)]
