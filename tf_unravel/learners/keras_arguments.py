"""Which arguments of Keras's methods a learner honours; the others are refused, each in one line.

A learner's loss, metrics and batches are its own, so that Keras's arguments about them would be ignored: what cannot
be honoured is refused when it is given, not passed over. docs/keras_arguments.md has the whole table.
"""

import inspect
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.checks import shown
from tf_unravel.data.sampling.tasks import Episode

_LOSSES = {
    "Classical": "the cross-entropy, plus Classical.regularizer",
    "Episodic": "the cross-entropy of the queries under Episodic.head",
    "MAML": "the cross-entropy of the queries after the inner loop",
    "Reptile": "the cross-entropy of its inner batches",
}


def given(method: str, learner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a method of keras.Model, by name; TypeError where it has no such arguments."""
    arguments = inspect.signature(getattr(keras.Model, method)).bind(learner, *args, **kwargs).arguments
    return {**arguments, **arguments.pop("kwargs", {})}


def check_compile(learner: Any, arguments: dict[str, Any]) -> None:
    """Refuses what a learner's `compile` cannot honour.

    "accuracy" among the metrics without weights passes: it is the number that the learner reports itself.

    Raises:
        ValueError: a loss, loss weights or metrics that would be ignored, XLA where it cannot be, or a metric under a
            name that the learner reports itself.
    """
    owner = type(learner).__name__
    loss = _LOSSES.get(owner, "its own")
    refused = {
        "loss": f"{owner} trains by its own loss, {loss}: leave loss out of compile()",
        "loss_weights": f"{owner} has one loss, {loss}: leave loss_weights out of compile()",
        "metrics": f"{owner} reports its own metrics: leave metrics out of compile(), and use tf_unravel.evaluate",
        "weighted_metrics": f"{owner} takes no weights: leave weighted_metrics out of compile()",
    }
    for name, line in refused.items():
        if name not in learner.honours and arguments.get(name) is not None:
            raise ValueError(f"{line}. Received: {name}={_brief(arguments[name])}.")
    if arguments.get("jit_compile") is True and not learner.supports_jit:
        raise ValueError(
            f"{owner}'s steps check the labels of their tasks, and XLA drops the checks: leave jit_compile out of "
            "compile(). Received: jit_compile=True."
        )
    for option in ("metrics", "weighted_metrics"):
        for metric in keras.tree.flatten(arguments.get(option)):
            name = metric if isinstance(metric, str) else getattr(metric, "name", getattr(metric, "__name__", ""))
            if name in learner.tracked and (option, metric) != ("metrics", "accuracy"):
                raise ValueError(
                    f"{owner} reports a metric named {name!r} itself, over images without weights: give yours another "
                    "name, as keras.metrics.SparseCategoricalAccuracy(name='weighted_accuracy'). "
                    f"Received: {option} with {name!r}."
                )


def check_weights(owner: str, arguments: dict[str, Any]) -> None:
    """Raises ValueError for weights of classes or examples, among a method's arguments, that would be ignored."""
    weights = {name: arguments.get(name) for name in ("class_weight", "sample_weight")}
    held_out = arguments.get("validation_data")
    if type(held_out) is tuple and len(held_out) == 3:
        weights["validation_data with sample_weight"] = held_out[2]
    for name, value in weights.items():
        if value is not None:
            raise ValueError(f"{owner} trains on tasks, whose classes and images count alike: leave {name} out. "
                             f"Received: {name}={_brief(value)}.")


def _brief(value: Any) -> str:
    """A value as an error shows it on one line; an array by its shape."""
    shape = getattr(value, "shape", None)
    return " ".join(shown(value).split())[:80] if shape is None else f"an array of shape {tuple(shape)}"


def unweighted(owner: str, data: Any) -> Any:
    """What Keras gives a step, without the None in the place of targets and weights that were not given.

    Raises:
        ValueError: it has weights.
    """
    if isinstance(data, Episode) or not isinstance(data, tuple) or len(data) > 3:
        return data
    if len(data) == 3:
        check_weights(owner, {"sample_weight": data[2]})
    parts = tuple(part for part in data if part is not None)
    return parts[0] if len(parts) == 1 else parts


def image_weights(sample_weight: Any, losses: tf.Tensor) -> tf.Tensor:
    """The weight of each image, [B], in the type of its loss; ValueError unless they are [B] or [B, 1]."""
    weights = tf.cast(sample_weight, losses.dtype)
    if weights.shape.rank not in (1, 2) or (weights.shape.rank == 2 and weights.shape[1] != 1):
        raise ValueError(f"sample_weight must be one number per image, [B]. Received: shape {tuple(weights.shape)}.")
    return tf.reshape(weights, [-1])
