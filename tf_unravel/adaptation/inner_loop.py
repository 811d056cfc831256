"""The inner loop: a backbone and a linear layer, as one function of their weights, adapted to a task by gradient steps.

    logits = g_w(f_theta(x)),  theta' = theta - a * grad L(theta)      (SGD: MAML, section 2)
    s = b2 s + (1 - b2) g^2,   theta' = theta - a sqrt(1 - b2^t) g / (sqrt(s) + eps)     (Adam, beta1 = 0: Reptile)

Nothing here assigns to a variable: weights go in, weights come out, so that a task cannot leave a trace in the model
whatever interrupts it, and a tape can differentiate through any number of steps.

| symbol     | here        | shape                                              |
|------------|-------------|----------------------------------------------------|
| theta, w   | weights     | list of tensors, the backbone's, then kernel, bias |
| a          | learning_rate | scalar                                           |
| s, t       | Moments     | second moments as `weights`; steps so far, scalar  |
|            | state       | BatchNorm statistics, dropout counters             |

BatchNorm uses the statistics of the images it is given in a step, as MAML and Reptile do, unless it is frozen. How
the queries of an adapted network are normalised is another question (`batchnorm.PROTOCOLS`). A step is training, of
which dropout, noise and augmentation are a part; an answer to queries is not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.backbones.modes import batch_norms
from tf_unravel.checks import refuse_negative, shown

Weights = list[tf.Tensor]

ADAPTED = {
    "all": "every weight",
    "all_but_batch_norm": "every weight but BatchNorm's gamma and beta (MAML's own code)",
    "last_layer": "the last layer alone (ANIL)",
}


class Network:
    """A backbone and a linear layer as one function of their weights.

    Args:
        backbone: keras.Model, images -> [B, D].
        ways: outputs of the linear layer, W; a scalar tensor where a graph learns it when it runs.
        classifier: a Dense layer to use, without activation; None starts at zero.
        summed: whether the loss is the sum over the images of a batch, as in Reptile's code, and not their mean.

    Raises:
        ValueError: a classifier that is more than a linear layer.

    Layers may be frozen and unfrozen at any time: what is a weight, and what state, is asked anew at every use.

    Attributes:
        loss: (logits [B, ways], labels [B]) -> scalar; the cross-entropy.
    """

    def __init__(
        self, backbone: keras.Model, ways: Any, classifier: keras.layers.Dense | None = None, summed: bool = False
    ):
        if classifier is not None:
            _check_linear(classifier)
            if not classifier.built:
                classifier.build(backbone.output_shape)
        self.backbone, self.ways, self.classifier = backbone, ways, classifier
        self.loss = summed_cross_entropy if summed else cross_entropy
        self._scale = 1024.0 if backbone.compute_dtype == "float16" else None
        self._moving: set[int] = set()  # ids of the variables behind `state` that a call has changed
        self._built_with = [id(variable) for variable in self.variables]

    @property
    def variables(self) -> list[keras.Variable]:
        """The trainable ones: the backbone's, then kernel and bias of the linear layer if one was given."""
        return [*self.backbone.trainable_variables, *(self.classifier.trainable_variables if self.classifier else [])]

    @property
    def weights(self) -> Weights:
        """The values that the variables have now, and zeros for a linear layer that was not given."""
        values = [variable.value for variable in self.variables]
        return [*values, *self._zeros()] if self.classifier is None else values

    def _zeros(self) -> Weights:
        """Kernel and bias of a linear layer that was not given."""
        return [tf.zeros([self.backbone.output_shape[-1], self.ways]), tf.zeros([self.ways])]

    @property
    def state(self) -> Weights:
        """The values of what is not trained: BatchNorm's statistics, dropout's counters, what is frozen."""
        return [variable.value for variable in self.backbone.non_trainable_variables]

    def assign_state(self, values: Weights) -> None:
        """Gives the variables behind `state` new values; those that no call changes are left alone.

        A mean over tasks of what is the same in each of them may differ from it in the last digit.
        """
        for variable, value in zip(self.backbone.non_trainable_variables, values, strict=True):
            if id(variable) in self._moving:
                variable.assign(value)

    def check_frozen(self, learner: str) -> None:
        """Refuses layers that were frozen or unfrozen since the network was built, for what is kept by weight.

        Args:
            learner: the name of what keeps something for each weight.

        Raises:
            ValueError: there were some.
        """
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

        Args:
            weights: in place of those of the variables.
            images: uint8 or float 0-255.
            state: in place of the model's; None for the model's.
            training: whether layers do what they do in training: BatchNorm uses the statistics of `images` unless it
                is frozen, dropout drops.

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
        """Kernel and bias: of the weights, or, where they are frozen, of the layer."""
        if self.classifier is None:
            return outer
        given = {id(v): w for v, w in zip(self.classifier.trainable_variables, outer, strict=True)}
        return [given.get(id(v), v.value) for v in self.classifier.variables]

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to take gradients of: in float16 those of the loss itself would underflow."""
        return loss if self._scale is None else loss * self._scale

    def unscaled(self, gradients: Weights) -> Weights:
        """Gradients of the loss, from those of `scaled(loss)`."""
        return gradients if self._scale is None else [gradient / self._scale for gradient in gradients]

    def adapted(self, which: str) -> tuple[bool, ...]:
        """Which of `variables` an inner loop changes: a name in `ADAPTED` -> one bool a weight.

        Raises:
            ValueError: an unknown name.
        """
        if which not in ADAPTED:
            raise ValueError(f"adapted is one of {', '.join(ADAPTED)}. Received: {which!r}.")
        kept = {id(w) for layer in batch_norms(self.backbone) for w in layer.trainable_variables}
        inner = [which == "all" or (which == "all_but_batch_norm" and id(w) not in kept)
                 for w in self.backbone.trainable_variables]
        outer = self.classifier.trainable_variables if self.classifier else self._zeros()
        return *inner, *(True for _ in outer)


def _check_linear(classifier: keras.layers.Dense) -> None:
    """Refuses a classifier with an activation, LoRA or quantised weights, which would be left out."""
    activation = classifier.activation
    more = [] if activation is keras.activations.linear else [f"activation {activation.__name__}"]
    more += ["LoRA"] if getattr(classifier, "lora_enabled", False) else []
    more += [f"{mode} weights" for mode in [getattr(classifier, "quantization_mode", None)] if mode]
    if more:
        raise ValueError(f"The classifier to start from must be a plain linear layer. Received: {', '.join(more)}.")


class Step(NamedTuple):
    """What one look at a batch gives.

    Attributes:
        gradients: of the loss by the weights, as `weights`; zeros where nothing is adapted.
        loss: scalar.
        state: after the call.
    """

    gradients: Weights
    loss: tf.Tensor
    state: Weights


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of logits [B, W] and integer labels [B], in float32 at least."""
    logits = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def summed_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The sum over the images: what Reptile's code differentiates, its loss being a vector."""
    mean = cross_entropy(logits, labels)
    return tf.cast(tf.shape(logits)[0], mean.dtype) * mean


def gradients_of(
    network: Network, weights: Weights, images: tf.Tensor, labels: tf.Tensor, adapted: Sequence[bool],
    state: Weights | None = None,
) -> Step:
    """Gradients of the loss of a batch by the adapted weights, and what the call saw on the way."""
    with tf.GradientTape() as tape:
        chosen = [w for w, chosen in zip(weights, adapted, strict=True) if chosen]
        tape.watch(chosen)
        logits, state = network.logits(weights, images, state)
        loss = network.loss(logits, labels)
        scaled = network.scaled(loss)
    some = iter(network.unscaled(tape.gradient(scaled, chosen, unconnected_gradients=tf.UnconnectedGradients.ZERO)))
    gradients = [next(some) if one else tf.zeros_like(w) for w, one in zip(weights, adapted, strict=True)]
    return Step(gradients, loss, state)


class Moments(NamedTuple):
    """What an inner optimizer remembers.

    Attributes:
        second: second moments, as the weights; empty for SGD.
        steps: steps so far, float32 scalar.
    """

    second: Weights
    steps: tf.Tensor


@dataclasses.dataclass(frozen=True)
class SGD:
    """theta - a g.

    Args:
        learning_rate: a.

    Raises:
        ValueError: a negative rate, or one that is not finite.
    """

    learning_rate: float = 0.01
    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        refuse_negative("heads.SGD", learning_rate=self.learning_rate)

    def __str__(self) -> str:
        return f"SGD at rate {self.learning_rate:g}"

    def start(self, weights: Weights) -> Moments:
        """Nothing remembered yet."""
        return Moments([], tf.constant(0.0))

    def step(self, weights: Weights, gradients: Weights, moments: Moments) -> tuple[Weights, Moments]:
        """New weights and what is remembered."""
        new = [w - self.learning_rate * g for w, g in zip(weights, gradients, strict=True)]
        return new, Moments([], moments.steps + 1.0)


class PerStepSGD:
    """theta - factor a_j g with its own rate for every step and weight; the last step's for all that come after it.

    Args:
        rates: float32 [steps, weights], at least one step; a variable is read when it is used.
        factor: scalar that the loss is multiplied by.
        adapted: one bool a weight, whether an inner loop changes it; None for all. The others have no rate to speak of.
    """

    def __init__(self, rates: tf.Variable | tf.Tensor, factor: float = 1.0, adapted: Sequence[bool] | None = None):
        self.rates, self.factor, self.adapted = rates, factor, adapted

    def __str__(self) -> str:
        values = np.asarray(self.rates)
        values = values if self.adapted is None else values[:, np.array(self.adapted)]
        low, high = values.min(), values.max()
        rates = f"rate {low:g}" if low == high else f"learned rates {low:g} to {high:g}"
        return f"SGD at {rates}" + (f" on the loss times {self.factor:g}" if self.factor != 1 else "")

    def start(self, weights: Weights) -> Moments:
        """Nothing remembered yet."""
        return Moments([], tf.constant(0.0))

    def step(self, weights: Weights, gradients: Weights, moments: Moments) -> tuple[Weights, Moments]:
        """New weights and what is remembered."""
        rates = self.factor * tf.convert_to_tensor(self.rates)
        last = len(rates) - 1
        row = tf.gather(rates, tf.minimum(tf.cast(moments.steps, tf.int32), last))
        new = [w - a * g for w, a, g in zip(weights, tf.unstack(row), gradients, strict=True)]
        return new, Moments([], moments.steps + 1.0)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam without momentum (beta1 = 0), Reptile's inner optimizer: theta - a sqrt(1 - b2^t) g / (sqrt(s) + eps).

    Args:
        learning_rate: a.
        beta2: decay of the second moments.
        epsilon: added to their root, before the bias correction, as TensorFlow 1 did.

    Raises:
        ValueError: a negative rate, or one that is not finite.
    """

    learning_rate: float = 1e-3
    beta2: float = 0.999
    epsilon: float = 1e-8
    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        refuse_negative("heads.Adam", learning_rate=self.learning_rate)

    def __str__(self) -> str:
        return f"Adam without momentum at rate {self.learning_rate:g}"

    def start(self, weights: Weights) -> Moments:
        """Second moments of zero."""
        return Moments([tf.zeros_like(w) for w in weights], tf.constant(0.0))

    def step(self, weights: Weights, gradients: Weights, moments: Moments) -> tuple[Weights, Moments]:
        """New weights and what is remembered. Works elementwise: leading axes are free."""
        keep, steps = self.beta2, moments.steps + 1.0
        second = [keep * s + (1.0 - keep) * g**2 for s, g in zip(moments.second, gradients, strict=True)]
        rate = self.learning_rate * tf.sqrt(1.0 - keep**steps)
        new = [
            w - tf.cast(rate, w.dtype) * g / (tf.sqrt(s) + self.epsilon)
            for w, g, s in zip(weights, gradients, second, strict=True)
        ]
        return new, Moments(second, steps)


InnerOptimizer: TypeAlias = SGD | PerStepSGD | Adam

by_name: dict[str, type[SGD] | type[Adam]] = {optimizer.name: optimizer for optimizer in (SGD, Adam)}


def check_optimizer(option: str, value: Any) -> None:
    """Refuses what is no inner optimizer, above all the optimizers of the outer step.

    Args:
        option: what the user set, such as "Reptile.inner_optimizer".
        value: to what.

    Raises:
        ValueError: it is no instance of the classes here.
    """
    if not isinstance(value, SGD | PerStepSGD | Adam):
        raise ValueError(
            f"{option} must be heads.Adam() or heads.SGD(), in a gin file @heads.Adam() or @heads.SGD(). "
            f"Received: {shown(value)}."
        )
