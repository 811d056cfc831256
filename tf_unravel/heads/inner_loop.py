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

BatchNorm always uses the statistics of the images it is given in a step, as MAML and Reptile do. For the queries of
an adapted network there are four protocols (`PROTOCOLS`), and no accuracy is comparable to another without its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.arguments import refuse_negative, shown
from tf_unravel.backbones.modes import nothing_dropped

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

    Attributes:
        variables: the trainable ones: the backbone's, then kernel and bias of the layer if one was given.
        loss: (logits [B, ways], labels [B]) -> scalar; the cross-entropy.
    """

    def __init__(
        self, backbone: keras.Model, ways: Any, classifier: keras.layers.Dense | None = None, summed: bool = False
    ):
        if classifier is not None and not classifier.built:
            classifier.build(backbone.output_shape)
        self.backbone, self.ways, self.classifier = backbone, ways, classifier
        self.loss = summed_cross_entropy if summed else cross_entropy
        self._scale = 1024.0 if backbone.compute_dtype == "float16" else None
        inner, outer = (model.trainable_variables if model is not None else [] for model in (backbone, classifier))
        self._inner, self.variables = len(inner), [*inner, *outer]

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
        """The values of what is not trained: BatchNorm's statistics, dropout's counters."""
        return [variable.value for variable in self.backbone.non_trainable_variables]

    def assign_state(self, values: Weights) -> None:
        """Gives the variables behind `state` new values."""
        for variable, value in zip(self.backbone.non_trainable_variables, values, strict=True):
            variable.assign(value)

    def logits(
        self, weights: Weights, images: tf.Tensor, state: Weights | None = None, training: bool = True
    ) -> tuple[tf.Tensor, Weights]:
        """Logits [B, ways] of images [B, H, W, C], and the state that the call leaves.

        Args:
            weights: in place of those of the variables.
            images: uint8 or float 0-255.
            state: in place of the model's; None for the model's.
            training: whether BatchNorm uses the statistics of `images`, and dropout drops.
        """
        inner, (kernel, *bias) = weights[: self._inner], weights[self._inner :]
        state = self.state if state is None else state
        features, state = self.backbone.stateless_call(inner, state, images, training=training)
        logits = tf.matmul(tf.cast(features, kernel.dtype), kernel)
        return logits + bias[0] if bias else logits, state

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
        layers = [each for each in self.backbone._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
        kept = {id(w) for layer in layers for w in layer.trainable_variables}
        inner = [which == "all" or (which == "all_but_batch_norm" and id(w) not in kept)
                 for w in self.backbone.trainable_variables]
        return *inner, *[True] * (len(self.variables) - self._inner or len(self._zeros()))


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


PROTOCOLS = {
    "transductive": "transductive (statistics of the task's queries together)",
    "one_by_one": "inductive (each query normalised together with the support set)",
    "support": "inductive (statistics of the support set)",
    "running": "inductive (running statistics)",
}


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

    Returns:
        [Q, ways]. Nothing is dropped, whatever the protocol.

    Raises:
        ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"batchnorm is one of {', '.join(PROTOCOLS)}. Received: {protocol!r}.")

    def alone(image: tf.Tensor) -> tf.Tensor:
        return network.logits(weights, tf.concat([support, image[None]], axis=0), state)[0][-1]

    with nothing_dropped():
        if protocol == "transductive":
            return network.logits(weights, query, state)[0]
        if protocol == "one_by_one":
            return tf.map_fn(alone, query, fn_output_signature=tf.float32, parallel_iterations=1)
        state = statistics_of(network, weights, state, support) if protocol == "support" else state
        return network.logits(weights, query, state, training=False)[0]


def statistics_of(network: Network, weights: Weights, state: Weights, images: tf.Tensor) -> Weights:
    """The state in which BatchNorm's running statistics are those of these images.

    A running statistic r becomes m r + (1 - m) b; from r = 0 the batch's b is what comes out, divided by 1 - m.
    """
    momenta = _momenta(network.backbone)
    zeros = [s if m is None else tf.zeros_like(s) for s, m in zip(state, momenta, strict=True)]
    with nothing_dropped():
        _, state = network.logits(weights, images, zeros)
    return [s if m is None else s / (1.0 - m) for s, m in zip(state, momenta, strict=True)]


def _momenta(backbone: keras.Model) -> list[Any]:
    """BatchNorm's momentum for each of the non-trainable variables, None for those of other layers."""
    momentum: dict[int, Any] = {}
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            momentum |= {id(layer.moving_mean): layer.momentum, id(layer.moving_variance): layer.momentum}
    return [momentum.get(id(variable)) for variable in backbone.non_trainable_variables]
