"""What every learner shares: the metrics it reports and the gradient step of those that minimise a loss.

A learner that minimises a loss by backpropagation says what the loss is (`objective`) and has its train_step from
here; MAML and Reptile compute their own gradients and hand them to `descend`.

On several replicas each one holds its share of the batch. Gradients are added up over replicas, so each replica
contributes its share of the mean; what has to be a mean over *all* replicas goes through `mean_over_replicas`.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.arguments import refuse_negative, warn_of_scaled_images
from tf_unravel.data.sampling import Episode
from tf_unravel.heads import AnyHead


def num_replicas() -> int:
    """Replicas that train together; 1 outside of a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def _all_reduced() -> bool:
    return num_replicas() > 1 and tf.distribute.in_cross_replica_context() is False


def mean_over_replicas(values: Any) -> Any:
    """The mean over the replicas of each float tensor of a structure; the rest as it is.

    What is no float is a counter (dropout's), the same on every replica.
    """
    flat = tf.nest.flatten(values)
    floats = [value for value in flat if value.dtype.is_floating]
    if not floats or not _all_reduced():
        return values
    means = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, floats))
    return tf.nest.pack_sequence_as(values, [next(means) if v.dtype.is_floating else v for v in flat])


def gathered(values: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in their order, with gradients that flow back to the replica a row came from.

    Written as a sum over replicas of blocks that are zero elsewhere: the gradient of a sum is what autodiff gets right.

    Args:
        values: [B, ...], the same B on every replica; float, or integers below 2^24.

    Returns:
        [R B, ...] for R replicas.
    """
    if not _all_reduced():
        return values
    if not values.dtype.is_floating:  # GPUs add no integers up
        return tf.cast(tf.round(gathered(tf.cast(values, tf.float32))), values.dtype)
    context = tf.distribute.get_replica_context()
    mine = tf.one_hot(context.replica_id_in_sync_group, num_replicas(), dtype=values.dtype)  # [R]
    blocks = tf.tensordot(mine, values, axes=0)  # [R, B, ...]
    blocks = context.all_reduce(tf.distribute.ReduceOp.SUM, blocks)
    return tf.reshape(blocks, tf.concat([[-1], tf.shape(values)[1:]], axis=0))  # [R B, ...]


def check_episodes(learner: str, spec: Any) -> None:
    """Refuses a dataset of anything but batches of episodes, support images [T, S, H, W, C] first.

    Args:
        learner: the name of the learner that needs them.
        spec: the dataset's `element_spec`.

    Raises:
        ValueError: other batches, or single episodes.
    """
    if not isinstance(spec, Episode) or spec.support_images.shape.rank != 5:
        raise ValueError(
            f"{learner} trains on batches of episodes: run.batches = @Episodes(), or data.episodes(..., "
            f"tasks_per_batch=...). Received: {shapes_of(spec)}."
        )


def shapes_of(spec: Any) -> str:
    """What a batch holds, for an error: the shapes of its tensors."""
    return "batches of shapes " + ", ".join(str(tuple(each.shape)) for each in tf.nest.flatten(spec))


class Learner(keras.Model):
    """A backbone and how it is trained.

    Args:
        backbone: keras.Model, images -> features [B, D].
        weight_decay: L2 penalty on every trainable weight, biases and BatchNorm included; its gradient
            weight_decay * w enters the momentum, as in PyTorch's SGD.
        **kwargs: of keras.Model.

    Raises:
        ValueError: a weight decay that is negative or not finite.

    Attributes:
        tracked: names of the values that a step reports, "loss" first.
        may_diverge_by: what to lower when the loss runs away, as a message names it.
    """

    tracked: Sequence[str] = ("loss", "accuracy")
    may_diverge_by: ClassVar[str] = "the learning rate"

    def __init__(self, backbone: keras.Model, weight_decay: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        refuse_negative(type(self).__name__, weight_decay=weight_decay)
        self.backbone = backbone
        self.weight_decay = weight_decay
        self.trackers = [keras.metrics.Mean(name=name) for name in self.tracked]

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return self.trackers

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        warn_of_scaled_images(type(self).__name__, args[0] if args else kwargs.get("x"))
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        warn_of_scaled_images(type(self).__name__, args[0] if args else kwargs.get("x"))
        return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        warn_of_scaled_images(type(self).__name__, args[0] if args else kwargs.get("x"))
        return super().predict(*args, **kwargs)

    def objective(self, data: Any, training: bool) -> dict[str, tf.Tensor]:
        """What a batch gives: `tracked` name -> scalar; "loss" is what training minimises, before weight decay."""
        raise NotImplementedError

    def own_head(self) -> AnyHead:
        """The head that the learner trains for: how its backbone is meant to be used."""
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            values = self.objective(data, training=True)
            scale = self.optimizer.scale_loss(tf.constant(1.0))  # 1 but in mixed_float16
            loss = values["loss"] * tf.cast(scale, values["loss"].dtype)
        gradients = tape.gradient(loss, self.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        self.descend([gradient / tf.cast(scale, gradient.dtype) for gradient in gradients])
        return self.track(values)

    def check_batch(self, spec: Any) -> None:
        """Refuses batches that the learner cannot use, before a step is taken.

        Args:
            spec: a dataset's `element_spec`.

        Raises:
            ValueError: it cannot.
        """

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        return self.track(self.objective(data, training=False))

    def descend(self, gradients: Sequence[tf.Tensor]) -> None:
        """One step of the optimizer along the gradients of this replica's mean loss, and of the weight decay.

        Args:
            gradients: unscaled, one a trainable variable.
        """
        weights = self.trainable_variables
        if self.weight_decay:
            gradients = [g + self.weight_decay * w.value for g, w in zip(gradients, weights, strict=True)]
        # The mean first, so that clipping and the search for infinities see on every replica what one device sees;
        # then a share of it, as Keras adds the replicas' gradients up. A loss scale is taken out again by Keras.
        share = self.optimizer.scale_loss(tf.constant(1.0)) / num_replicas()
        gradients = [gradient * tf.cast(share, gradient.dtype) for gradient in mean_over_replicas(list(gradients))]
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))

    def track(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Adds the values to the metrics and returns these."""
        for tracker in self.trackers:
            tracker.update_state(values[tracker.name])
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def get_config(self) -> dict[str, Any]:
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {**super().get_config(), "backbone": backbone, "weight_decay": self.weight_decay}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Learner":
        saved = keras.saving.deserialize_keras_object
        values = {key: saved(value) if isinstance(value, dict) else value for key, value in config.items()}
        return cls(**values)
