"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, Algorithm 2; section 2 of the paper).

    inner loop   theta_0 = theta,  theta_{j+1} = theta_j - a_j * grad L(theta_j; support),  j = 0..k-1
    outer loop   theta <- theta - Optimizer( mean over tasks of d L(theta_k; query) / d theta )

The derivative goes through the k steps, Hessians included; with `first_order=True` the inner gradients count as
constants (FOMAML). The last layer is adapted and meta-learned like every other weight; `adapted="last_layer"` is ANIL
(Raghu et al. 2020).

| symbol         | here           | shape                                                 |
|----------------|----------------|-------------------------------------------------------|
| theta, theta_j | weights, theta | list of tensors: backbone, kernel, bias               |
| a_j            | rates[j]       | [weights], one rate for each tensor                   |
| k              | inner_steps    |                                                       |
| L              | network.loss   | scalar, mean over examples                            |
| W, K           | ways, shots    | of a task; the support set has W K images             |

With `sum_over_ways` the inner loss is W L, which is done by a factor W on the rates.

Where to look: `Network.logits` (`adaptation.network`) is the network as a function of its weights; its default,
training=True, is what makes BatchNorm use the images of each call, in the inner loop and on the queries.
`task_gradients` nests two tapes. The outer one also records the computation of the inner gradients, and that is where
the second derivatives come from.

Conventions of the original code, and the defaults here (`gin/run/mini_imagenet_maml.gin` has the original's):

- Its loss divides the sum over images by K, so the inner gradients, of W K images, are W times those of the mean: an
  inner rate of 0.01 at 5 ways is 0.05 here, or `sum_over_ways=True`. Its outer loss is a sum over 15 W queries, also
  divided by K; Adam does not notice, but clipping at 10 there is clipping at 10 K / (15 W) of the mean's gradient.
- BatchNorm always takes the statistics of the images at hand: of the support in the inner loop, of all queries
  together in the outer loop and in evaluation (transductive). Training is the same here. Evaluation is what
  `batchnorm` says, and every accuracy names it.
- It adapts no BatchNorm weights (`adapted="all_but_batch_norm"`) and its BatchNorm has no gamma.

The running statistics follow the first inner step's support images: those of the network that is not adapted, so
that the backbone can be used, measured and exported as an extractor like any other.

A frozen layer stays as it is: its weights are not adapted, and a frozen BatchNorm runs on its stored statistics. Freeze
layers first, then build the learner, which has a rate for every weight. Keras's normalisation layers stop a gradient
that only the second derivative needs; inside `modes.twice_differentiable` they do not.

Degenerate cases: inner_steps=0 trains on the queries alone; inner_learning_rate=0 likewise.
"""

import dataclasses
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.adaptation.groups import flat, taken
from tf_unravel.adaptation.inner_loop import Start, gradients_of, kept_state
from tf_unravel.adaptation.inner_optimizers import InnerOptimizer, Moments, PerStepSGD, descended
from tf_unravel.adaptation.network import Network, Weights
from tf_unravel.adaptation.rematerialize import rematerialized
from tf_unravel.backbones.modes import twice_differentiable
from tf_unravel.checks import refuse_negative
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.learners.adapting import Adapting, Evaluation
from tf_unravel.learners.learner import accuracy_of, check_episodes, checked_episodes, mean_over_replicas, size_of


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """How MAML's inner loop adapts.

    Args:
        adapted: "all", "all_but_batch_norm" or "last_layer".
        learn_rates: learn the rates, one for each step and weight tensor.
        sum_over_ways: multiply the inner loss by the ways, as the original code does.
        rematerialize: recompute the activations of an inner step for its derivative instead of keeping them.
    """

    adapted: str = "all"
    learn_rates: bool = False
    sum_over_ways: bool = False
    rematerialize: bool = False


@keras.saving.register_keras_serializable(package="tf_unravel")
class MAML(Adapting):
    """Learns weights from which a few gradient steps on the support set lead to low loss on the queries.

    Args:
        backbone: keras.Model, images -> features [B, D].
        ways: classes of a task; tasks of another number of ways have no classifier to start from.
        inner_steps: k, in training.
        inner_learning_rate: a, on the mean cross-entropy, or on W times it (`sum_over_ways`).
        first_order: leave out the derivative of the inner gradients.
        inner_loop: see `InnerLoop`; or its members: adapted, learn_rates, sum_over_ways, rematerialize.
        evaluation: see `Evaluation`; or its members: evaluation_steps (the original has 5 and 10), evaluation_batch,
            batchnorm.
        **kwargs: parallel_tasks: tasks computed at once, each with its activations in memory, None for one per
            processor; weight_decay: L2 penalty on every trainable weight; those of keras.Model.

    Raises:
        ValueError: a count below its minimum, a rate that is negative or not finite, an unknown `adapted` or
            `batchnorm`.

    Example:
        >>> learner = MAML(conv4(filters=32), ways=5, inner_steps=5, inner_learning_rate=0.05)
        >>> learner.compile(optimizer=keras.optimizers.Adam(1e-3))
        >>> learner.fit(data.episodes(split, tasks_per_batch=4), epochs=60, steps_per_epoch=1000)

    Reference: Finn, Abbeel and Levine, "Model-agnostic meta-learning", ICML 2017.
    """

    tracked = ("loss", "accuracy", "support_loss")
    may_diverge_by = "the learning rate or MAML.inner_learning_rate"
    groups: ClassVar[dict[str, Any]] = {"inner_loop": InnerLoop(), "evaluation": Evaluation()}

    def __init__(
        self,
        backbone: keras.Model,
        ways: int,
        inner_steps: int = 5,
        inner_learning_rate: float = 0.05,
        first_order: bool = False,
        inner_loop: InnerLoop | None = None,
        evaluation: Evaluation | None = None,
        **kwargs: Any,
    ):
        inner_loop, evaluation = taken(self, kwargs, inner_loop=inner_loop, evaluation=evaluation)
        self.adapted = inner_loop.adapted
        super().__init__(backbone, ways, inner_steps, evaluation, sum_over_batch=False, **kwargs)
        refuse_negative("MAML", inner_learning_rate=inner_learning_rate)
        self.inner_learning_rate, self.first_order, self.options = inner_learning_rate, first_order, inner_loop
        self.factor = float(ways) if inner_loop.sum_over_ways else 1.0
        self.rates = self.add_weight(
            shape=(max(inner_steps, 1), len(self.adapts)), trainable=inner_loop.learn_rates, name="inner_rates",
            initializer=keras.initializers.Constant(inner_learning_rate), dtype=self.head_dtype,
        )
        self.build()

    def task_gradients(
        self, weights: Weights, rates: tf.Tensor, episode: Episode
    ) -> tuple[Weights, tf.Tensor, dict[str, Any]]:
        """Algorithm 2 on one task: gradients, by theta and by the rates, of the query loss after the inner loop."""
        network, (support, support_labels, query, query_labels) = self.network, episode

        def inner_step(  # lines 6 and 7: theta_{j+1} = theta_j - a_j * grad L(theta_j; support)
            theta: Weights, a: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, state: Weights
        ) -> tuple[Weights, tf.Tensor, Weights]:
            with twice_differentiable(not self.first_order):
                gradients, loss, state = gradients_of(network, theta, images, labels, self.adapts, state)
            if self.first_order:
                gradients = [tf.stop_gradient(g) for g in gradients]
            return descended(theta, tf.unstack(self.factor * a), gradients), loss, state

        step = rematerialized(inner_step) if self.options.rematerialize else inner_step
        losses: list[tf.Tensor] = []
        states = [network.state]
        with tf.GradientTape() as outer:
            outer.watch([weights, rates])
            theta = weights
            for j in range(self.inner_steps):
                theta, loss, state = step(theta, rates[j], support, support_labels, states[-1])
                losses, states = [*losses, loss], [*states, state]
            logits, state = network.logits(theta, query, states[-1])
            loss = network.loss(logits, query_labels)  # line 10: L(theta_k; query)
            scaled = network.scaled(loss)
        # Back through all k steps: `outer` has recorded the inner gradients too.
        *by_weights, by_rates = network.gradients(outer, scaled, [*weights, rates])
        support_loss = losses[0] if losses else tf.constant(0.0, self.head_dtype)
        accuracy = accuracy_of(logits, query_labels, loss.dtype)
        values = {"loss": loss, "accuracy": accuracy, "support_loss": support_loss}
        # After the first pass, on the unadapted weights: of the first inner step, or of the queries if there is none.
        first = [*states, state][1]
        return by_weights, by_rates, {"values": values, "state": kept_state(first, state)}

    def mean_over_tasks(
        self, weights: Weights, rates: tf.Tensor, episodes: Episode
    ) -> tuple[Weights, tf.Tensor, dict[str, Any]]:
        """The mean of `task_gradients` over the tasks of a batch, `parallel_tasks` of them at a time."""
        self.network.check_frozen("MAML")
        values = dict.fromkeys(self.tracked, tf.constant(0.0, self.head_dtype))
        like = (weights, rates, {"values": values, "state": self.network.state})  # shapes and types of a result
        results = self.over_tasks(
            lambda episode: self.task_gradients(weights, rates, Episode(*episode)), tuple(episodes), like
        )
        # What is no float is a counter (dropout's), the same in every task.
        return tf.nest.map_structure(lambda v: tf.reduce_mean(v, 0) if v.dtype.is_floating else v[0], results)

    def train_step(self, data: Episode) -> dict[str, tf.Tensor]:
        """Line 10: theta <- theta - Optimizer(mean over tasks of d L(theta_k; query) / d theta)."""
        weights, rates = self.network.weights, self.rates.value
        episodes = checked_episodes("MAML", data, self.ways)
        by_weights, by_rates, seen = self.mean_over_tasks(weights, rates, episodes)
        self.network.assign_state(mean_over_replicas(seen["state"]))
        by_variable = {id(v): g for v, g in zip(self.network.variables, by_weights, strict=True)}
        by_variable[id(self.rates)] = by_rates
        self.descend([by_variable[id(variable)] for variable in self.trainable_variables])
        return self.track(seen["values"])

    def test_step(self, data: Episode) -> dict[str, tf.Tensor]:
        """As `own_head` answers: its steps, its BatchNorm protocol, so that there is one accuracy of a name."""
        episodes = checked_episodes("MAML", data, self.ways)
        values = self.own_head().adapt_each(self.backbone, self.ways, episodes, self._watched)
        means = tf.unstack(tf.reduce_mean(values, axis=0))
        return self.track(dict(zip(self.tracked, means, strict=True)), size_of(episodes))

    def _watched(
        self, network: Network, start: Start, weights: Weights, support: tf.Tensor, support_labels: tf.Tensor,
        query: tf.Tensor, query_labels: tf.Tensor,
    ) -> tf.Tensor:
        """[3]: loss and accuracy of a task's queries by the adapted weights, loss of the support set before."""
        head = self.own_head()
        logits = head.answers(network, start, weights, support, support_labels, query)
        before = tf.constant(0.0)  # as in training, where there is no inner step
        if head.steps:
            before = network.loss(network.logits(start.weights, support, start.state)[0], support_labels)
        found = network.loss(logits, query_labels), accuracy_of(logits, query_labels), before
        return tf.stack([tf.cast(value, tf.float32) for value in found])

    def check_batch(self, spec: Any) -> None:
        check_episodes("MAML", spec)

    def evaluation_optimizer(self) -> InnerOptimizer:
        return PerStepSGD(self.rates, self.factor, self.adapts)

    @property
    def moments(self) -> Moments:
        """SGD remembers nothing, but its rates are those of the weights that the learner was built with."""
        self.network.check_frozen("MAML")
        return Moments([], tf.constant(0.0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner_learning_rate": self.inner_learning_rate,
                "first_order": self.first_order, **flat(self.options)}
