"""What every learner shares: the metrics it reports and the gradient step of those that minimise a loss.

A learner that minimises a loss by backpropagation says what the loss is (`objective`) and has its train_step from
here; MAML and Reptile compute their own gradients and hand them to `descend`.

On several replicas each one holds its share of the batch. Gradients are added up over replicas, so each replica
contributes its share of the mean; what has to be a mean over *all* replicas goes through `mean_over_replicas`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.adaptation.head import Head
from tf_unravel.adaptation.labels import Ways, checked_range, checked_support
from tf_unravel.backbones.checks import check_backbone, image_shape
from tf_unravel.checks import refuse_negative, warn_of_scaled_images
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.learners import keras_arguments


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
    """The rows of all R replicas, [R B, ...], in their order; gradients flow back to the replica a row came from.

    Written as a sum over replicas of blocks that are zero elsewhere: the gradient of a sum is what autodiff gets right.
    The values are [B, ...], the same B on every replica, float or integers below 2^24.
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


def squared_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of the squares of all numbers in some tensors, in float32."""
    return tf.add_n([tf.reduce_sum(tf.square(tf.cast(tensor, tf.float32))) for tensor in tensors])


def accuracy_of(logits: tf.Tensor, labels: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """The share of rows whose largest logit is that of the label, a scalar."""
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(labels, tf.int32))
    return tf.reduce_mean(tf.cast(hits, dtype))


def check_episodes(learner: str, spec: Any) -> None:
    """Raises ValueError unless a dataset's `element_spec` is batches of episodes; `learner` is the name of who asks."""
    if not isinstance(spec, Episode) or spec.support_images.shape.rank != 5:
        raise ValueError(
            f"{learner} trains on batches of episodes: run.batches = @Episodes(), or data.episodes(..., "
            f"tasks_per_batch=...). Received: {shapes_of(spec)}."
        )


def size_of(data: Any) -> tf.Tensor:
    """How many images or tasks a batch holds, float32 scalar."""
    return tf.cast(tf.shape(tf.nest.flatten(data)[0])[0], tf.float32)


def checked_episodes(learner: str, data: Any, ways: Ways | None = None) -> Episode:
    """The episodes of a batch, whatever Keras has wrapped them in, their labels checked for tasks of W ways.

    Ways of None are read off the labels.

    Raises:
        ValueError: the batch holds something else, or weights; labels as for `checked_support`.
    """
    batch = keras_arguments.unweighted(learner, data)
    if isinstance(batch, tuple) and len(batch) == 4:
        batch = Episode(*(tf.convert_to_tensor(part) for part in batch))
    check_episodes(learner, batch)
    ways = ways_of(batch) if ways is None else ways
    return batch._replace(support_labels=checked_support(batch.support_labels, ways),
                          query_labels=checked_range("query_labels", batch.query_labels, ways))


def ways_of(episode: Episode) -> tf.Tensor:
    """W, read off the labels; 1 where there is no task."""
    return tf.maximum(tf.cast(tf.reduce_max(episode.support_labels), tf.int32), 0) + 1


def with_added(loss: tf.Tensor, added: Sequence[tf.Tensor]) -> tf.Tensor:
    """A loss plus those that layers add to it: regularizers of weights and activations, `add_loss`."""
    if not added:
        return loss
    return loss + tf.add_n([tf.cast(tf.reduce_sum(each), loss.dtype) for each in added])


def shapes_of(spec: Any) -> str:
    """What a batch holds, for an error: the shapes of its tensors."""
    return "batches of shapes " + ", ".join(str(tuple(each.shape)) for each in tf.nest.flatten(spec))


def _checked(name: str) -> Callable[..., Any]:
    """A method of keras.Model, behind `Learner._check_call`."""
    method = getattr(keras.Model, name)

    @functools.wraps(method)
    def checked(self: "Learner", *args: Any, **kwargs: Any) -> Any:
        self._check_call(name, args, kwargs)
        return method(self, *args, **kwargs)

    return checked


class Learner(keras.Model):
    """A backbone and how it is trained.

    Args:
        backbone: keras.Model, images -> features [B, D].
        weight_decay: L2 penalty on every trainable weight, biases and BatchNorm included; its gradient
            weight_decay * w enters the momentum, as in PyTorch's SGD.
        **kwargs: of keras.Model.

    Raises:
        ValueError: a weight decay that is negative or not finite, a model that cannot be a backbone
            (`backbones.checks`).

    Attributes:
        tracked: names of the values that a step reports, "loss" first.
        may_diverge_by: what to lower when the loss runs away, as a message names it.
        honours: the arguments of Keras's methods that this learner uses and others refuse.
        checks_labels: whether its steps assert that labels are right. XLA drops assertions, so it is refused then, and
            Keras's "auto" does not choose it.
        feature_size: D of the backbone.
        head_dtype: the type of what stands behind the features, "float32", or "float64" where they are.
    """

    tracked: Sequence[str] = ("loss", "accuracy")
    may_diverge_by: ClassVar[str] = "the learning rate"
    honours: ClassVar[tuple[str, ...]] = ()
    checks_labels: ClassVar[bool] = True

    def __init__(self, backbone: keras.Model, weight_decay: float = 0.0, **kwargs: Any):
        size = check_backbone(type(self).__name__, backbone)
        if backbone.compute_dtype == "float16":  # Keras scales the loss by the policy of the model that is compiled
            kwargs.setdefault("dtype", "mixed_float16")
        super().__init__(**kwargs)
        self.supports_jit = not self.checks_labels
        refuse_negative(type(self).__name__, weight_decay=weight_decay)
        self.feature_size, self.head_dtype = size, "float64" if backbone.compute_dtype == "float64" else "float32"
        self.backbone = backbone
        self.weight_decay = weight_decay
        self.trackers = [keras.metrics.Mean(name=name) for name in self.tracked]

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self.trackers, *([] if self._compile_metrics is None else [self._compile_metrics])]

    compile, fit, train_on_batch = _checked("compile"), _checked("fit"), _checked("train_on_batch")
    evaluate, test_on_batch, predict = _checked("evaluate"), _checked("test_on_batch"), _checked("predict")

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def _check_call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuses arguments that would be ignored, and training without an optimizer; warns of images in 0..1."""
        if method == "compile":
            keras_arguments.check_compile(self, keras_arguments.given(method, self, args, kwargs))
            return
        warn_of_scaled_images(type(self).__name__, args[0] if args else kwargs.get("x"))
        if "sample_weight" not in self.honours and method != "predict":
            arguments = keras_arguments.given(method, self, args, kwargs)
            keras_arguments.check_weights(type(self).__name__, arguments)
        if method in ("fit", "train_on_batch") and self.compiled and self.optimizer is None:
            raise ValueError("Compiled without an optimizer, a learner can be evaluated, not trained: give "
                             "compile(optimizer=...) one. Received: optimizer=None.")

    def objective(self, data: Any, training: bool) -> dict[str, tf.Tensor]:
        """What a batch gives: `tracked` name -> scalar; "loss" is what training minimises, before weight decay."""
        raise NotImplementedError

    def own_head(self) -> Head:
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
        """Raises ValueError, before a step is taken, for a dataset's `element_spec` that the learner cannot use."""

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        return self.track(self.objective(data, training=False), size_of(data))

    def predict_step(self, data: Any) -> tf.Tensor:
        images = data[0] if isinstance(data, tuple) and not isinstance(data, Episode) else data
        rank = len(image_shape(self.backbone) or ()) + 1
        if isinstance(images, Episode) or tf.TensorShape(images.shape).rank not in (None, rank):
            raise ValueError("predict takes images [B, H, W, C]; learner.own_head() answers for tasks. "
                             f"Received: {shapes_of(images)}.")
        return self(images, training=False)

    def descend(self, gradients: Sequence[tf.Tensor]) -> None:
        """One step of the optimizer along the gradients of this replica's mean loss, and of the weight decay.

        The gradients are unscaled, one for each trainable variable.
        """
        weights = self.trainable_variables
        if self.weight_decay:
            gradients = [g + self.weight_decay * w.value for g, w in zip(gradients, weights, strict=True)]
        # The mean first, so that clipping and the search for infinities see on every replica what one device sees;
        # then a share of it, as Keras adds the replicas' gradients up. A loss scale is taken out again by Keras.
        share = self.optimizer.scale_loss(tf.constant(1.0)) / num_replicas()
        gradients = [gradient * tf.cast(share, gradient.dtype) for gradient in mean_over_replicas(list(gradients))]
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))

    def track(self, values: dict[str, tf.Tensor], weight: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Adds the values to the metrics and returns these.

        Args:
            values: `tracked` name -> scalar.
            weight: of the batch in the mean over all batches: in evaluation the number of its images or tasks, so
                that a short last batch counts for what it holds. None in training, where a metric is the mean over
                steps.
        """
        for tracker in self.trackers:
            value = values[tracker.name]
            if weight is not None:  # a replica may get nothing of a short batch, and has no mean then
                value = tf.where(weight > 0, value, tf.zeros_like(value))
            tracker.update_state(value, sample_weight=weight)
        return self.get_metrics_result()

    def get_config(self) -> dict[str, Any]:
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {**super().get_config(), "backbone": backbone, "weight_decay": self.weight_decay}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Learner":
        values = {key: _deserialized(key, value) if isinstance(value, dict) else value for key, value in config.items()}
        return cls(**values)


def _deserialized(key: str, saved: dict[str, Any]) -> Any:
    """A part of a saved learner; one of the user's own that Keras does not find is one line."""
    try:
        return keras.saving.deserialize_keras_object(saved)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The saved learner's {key} cannot be made again: decorate classes and functions of your own with "
            "@keras.saving.register_keras_serializable() before saving and loading, or give custom_objects to "
            f"load_model. Received: {str(error).splitlines()[0][:200]}"
        ) from error


def remade(option: str, known: dict[str, Any], saved: dict[str, Any], registry: str) -> Any:
    """A head or an inner optimizer of a saved learner, from {"name": ..., "arguments": ...}.

    Args:
        option: the learner's argument, such as "Episodic.head".
        known: classes by name.
        saved: what was saved.
        registry: where `known` stands, for the error.

    Raises:
        ValueError: the name is unknown; the class takes other arguments.
    """
    name, arguments = saved["name"], saved["arguments"]
    if name not in known:
        raise ValueError(f"The saved {option} is of a class of its own: register it before loading, "
                         f"{registry}[{name!r}] = <the class>. Received: {name!r}, known are {', '.join(known)}.")
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ValueError(f"The saved {option} cannot be made again: the attributes of {known[name].__name__} must be "
                         f"the arguments of its constructor. Received: {', '.join(arguments) or 'none'}.") from error
