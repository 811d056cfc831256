"""A backbone and a linear layer as one function of their weights.

    logits = g_w(f_theta(x))

Nothing here assigns to a variable: weights go in, logits come out, so that a task cannot leave a trace in the model
whatever interrupts it, and a tape can differentiate through any number of steps.

| symbol   | here    | shape                                              |
|----------|---------|----------------------------------------------------|
| theta, w | weights | list of tensors, the backbone's, then kernel, bias |
|          | state   | list: BatchNorm statistics, dropout counters       |
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.backbones.modes import batch_norms

Weights = list[tf.Tensor]

ADAPTED = {
    "all": "every weight",
    "all_but_batch_norm": "every weight but BatchNorm's gamma and beta (MAML's own code)",
    "last_layer": "the last layer alone (ANIL)",
}


def check_adapted(which: str) -> None:
    """Raises ValueError unless it is a name in `ADAPTED`."""
    if which not in ADAPTED:
        raise ValueError(f"adapted is one of {', '.join(ADAPTED)}. Received: {which!r}.")


class Network:
    """A backbone and a linear layer as one function of their weights.

    Layers may be frozen and unfrozen at any time: what is a weight and what is state is asked anew at every use.

    Args:
        backbone: keras.Model, images -> [B, D].
        ways: outputs of the linear layer, W; a scalar tensor where a graph learns it when it runs.
        classifier: a Dense layer without activation; None starts at zero.
        sum_over_batch: sum the loss over the images of a batch, as Reptile's code does, instead of averaging.

    Attributes:
        loss: (logits [B, ways], labels [B]) -> scalar; the cross-entropy.

    Raises:
        ValueError: a classifier that is more than a linear layer.
    """

    def __init__(
        self, backbone: keras.Model, ways: Any, classifier: keras.layers.Dense | None = None,
        sum_over_batch: bool = False,
    ):
        if classifier is not None:
            _check_linear(classifier)
            if not classifier.built:
                classifier.build(backbone.output_shape)
        self.backbone, self.ways, self.classifier = backbone, ways, classifier
        self.loss = summed_cross_entropy if sum_over_batch else cross_entropy
        self._scale = 1024.0 if backbone.compute_dtype == "float16" else None
        self._moving: set[int] = set()  # ids of the variables behind `state` that a call has changed
        self._built_with = [id(variable) for variable in self.variables]

    @property
    def variables(self) -> list[keras.Variable]:
        """The trainable ones: the backbone's, then kernel and bias of the classifier, if one was given."""
        return [*self.backbone.trainable_variables, *(self.classifier.trainable_variables if self.classifier else [])]

    @property
    def weights(self) -> Weights:
        """The current values of `variables`; zeros for a classifier that was not given."""
        values = [variable.value for variable in self.variables]
        return [*values, *self._zeros()] if self.classifier is None else values

    def _zeros(self) -> Weights:
        return [tf.zeros([self.backbone.output_shape[-1], self.ways]), tf.zeros([self.ways])]

    @property
    def state(self) -> Weights:
        """The current values of BatchNorm's statistics, dropout's counters and frozen weights."""
        return [variable.value for variable in self.backbone.non_trainable_variables]

    def assign_state(self, values: Weights) -> None:
        """Assigns the variables behind `state`, except those that no call changes."""
        # A mean over tasks of equal values may differ from them in the last digit.
        for variable, value in zip(self.backbone.non_trainable_variables, values, strict=True):
            if id(variable) in self._moving:
                variable.assign(value)

    def check_frozen(self, learner: str) -> None:
        """Raises ValueError if layers were frozen or unfrozen since the network was built for a learner."""
        now = [id(variable) for variable in self.variables]
        if now != self._built_with:
            raise ValueError(
                f"{learner} keeps something for every trainable weight: freeze or unfreeze layers first, then build "
                f"the learner. Received: {len(now)} trainable weight tensors, {len(self._built_with)} when it was built"
                f"{'; others' if len(now) == len(self._built_with) else ''}."
            )

    def logits(
        self, weights: Weights, images: tf.Tensor, state: Weights | None = None, training: bool = True
    ) -> tuple[tf.Tensor, Weights]:
        """Logits [B, ways] of images [B, H, W, C], and the state that the call leaves.

        With `training`, layers act as in training: BatchNorm uses the statistics of the images, unless it is frozen,
        and dropout drops. A state of None is the model's.

        Raises:
            ValueError: a layer that assigns to its own weights, as SpectralNormalization does in training.
        """
        trained, others = self.backbone.trainable_variables, self.backbone.non_trainable_variables
        state = self.state if state is None else state
        inner, outer = weights[: len(trained)], weights[len(trained) :]
        mapping = [*zip(trained, inner, strict=True), *zip(others, state, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            before = {id(variable): scope.get_current_value(variable) for variable in (*trained, *others)}
            features = self.backbone(images, training=training)
        changed = [v for v in (*trained, *others) if scope.get_current_value(v) is not before[id(v)]]
        self._moving.update(id(variable) for variable in changed)
        for variable in trained:
            if id(variable) in self._moving:
                raise ValueError(
                    "A network is adapted by gradients alone, and a layer of this one assigns to its own weights in "
                    "training, as SpectralNormalization does: freeze that layer or leave it out. "
                    f"Received: weight {variable.path!r}."
                )
        kernel, *bias = self._linear(outer)
        logits = tf.matmul(tf.cast(features, kernel.dtype), kernel)
        return logits + bias[0] if bias else logits, [scope.get_current_value(variable) for variable in others]

    def _linear(self, outer: Weights) -> Weights:
        """Kernel and bias; the layer's own where they are frozen."""
        if self.classifier is None:
            return outer
        given = {id(v): w for v, w in zip(self.classifier.trainable_variables, outer, strict=True)}
        return [given.get(id(v), v.value) for v in self.classifier.variables]

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to differentiate: in float16 the gradients of the loss itself would underflow."""
        return loss if self._scale is None else loss * self._scale

    def gradients(
        self, tape: tf.GradientTape, scaled: tf.Tensor, weights: Weights, adapted: Sequence[bool] | None = None
    ) -> Weights:
        """Gradients of a loss by weights, from the tape that has seen `scaled(loss)`; zero where not `adapted`."""
        adapted = [True] * len(weights) if adapted is None else adapted
        chosen = [w for w, one in zip(weights, adapted, strict=True) if one]
        found = tape.gradient(scaled, chosen, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        some = iter(found if self._scale is None else [gradient / self._scale for gradient in found])
        return [next(some) if one else tf.zeros_like(w) for w, one in zip(weights, adapted, strict=True)]

    def adapted(self, which: str) -> tuple[bool, ...]:
        """Which of `weights` an inner loop changes, one bool each; `which` is a name in `ADAPTED`."""
        check_adapted(which)
        kept = {id(w) for layer in batch_norms(self.backbone) for w in layer.trainable_variables}
        inner = [which == "all" or (which == "all_but_batch_norm" and id(w) not in kept)
                 for w in self.backbone.trainable_variables]
        outer = self.classifier.trainable_variables if self.classifier else self._zeros()
        return *inner, *(True for _ in outer)


def _check_linear(classifier: keras.layers.Dense) -> None:
    """Refuses a classifier with an activation, LoRA or quantised weights, which would be ignored."""
    activation = classifier.activation
    more = [] if activation is keras.activations.linear else [f"activation {activation.__name__}"]
    more += ["LoRA"] if getattr(classifier, "lora_enabled", False) else []
    more += [f"{mode} weights" for mode in [getattr(classifier, "quantization_mode", None)] if mode]
    if more:
        raise ValueError(f"The classifier to start from must be a plain linear layer. Received: {', '.join(more)}.")


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of logits [B, W] and integer labels [B], in float32 or float64."""
    logits = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def summed_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The sum over the images: what Reptile's code differentiates, its loss being a vector."""
    mean = cross_entropy(logits, labels)
    return tf.cast(tf.shape(logits)[0], mean.dtype) * mean


def adapted_of(backbone: keras.Model, classifier: keras.layers.Dense | None, which: str) -> str:
    """What an inner loop changes of a network, parts of which may be frozen, as an accuracy says it."""
    fixed = classifier is not None and not classifier.trainable
    if which == "last_layer":
        return "nothing; the classifier is frozen" if fixed else ADAPTED[which]
    norms = batch_norms(backbone)
    everything = {id(v) for layer in backbone._flatten_layers() for v in layer._trainable_variables}
    trainable = {id(v) for v in backbone.trainable_variables}
    kept = {id(v) for layer in norms for v in layer.trainable_variables} if which == "all_but_batch_norm" else set()
    said, frozen = ADAPTED[which] if norms else ADAPTED["all"], len(everything - trainable)
    if everything and not trainable - kept:
        rest = "the rest is frozen or BatchNorm's" if trainable else "the backbone is frozen"
        return f"nothing; the classifier is frozen, and {rest}" if fixed else f"the classifier alone; {rest}"
    if frozen:
        said += f", except {frozen} of the backbone's {len(everything)} weight tensors, which are frozen"
    return f"{said}, except the classifier, which is frozen" if fixed else said
