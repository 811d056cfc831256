"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, Algorithm 2; section 2 of the paper).

    inner loop   theta_0 = theta,  theta_{j+1} = theta_j - a_j * grad L(theta_j; support),  j = 0..k-1
    outer loop   theta <- theta - Optimizer( mean over tasks of d L(theta_k; query) / d theta )

The derivative goes through the k steps, Hessians included; with `first_order=True` the inner gradients count as
constants (FOMAML). The last layer is adapted and meta-learned like every other weight; `adapted="last_layer"` is ANIL
(Raghu et al. 2020).

| symbol  | here                | shape                                        |
|---------|---------------------|----------------------------------------------|
| theta   | weights             | list of tensors: backbone, kernel, bias      |
| theta_j | fast                | the same                                     |
| a       | rates               | list over steps of lists over weights        |
| k       | inner_steps         |                                              |
| L       | network.loss        | mean over examples; inside times W with sum_over_ways |

Conventions of the original code, and the defaults here (`gin/run/mini_imagenet_maml.gin` has the original's):

- Its loss divides the sum over images by K, so the inner gradients, of N K images, are N times those of the mean: an
  inner rate of 0.01 at 5 ways is 0.05 here, or `sum_over_ways=True`. Its outer loss is a sum over 15 N queries, also
  divided by K; Adam does not notice, but clipping at 10 there is clipping at 10 K / (15 N) of the mean's gradient.
- BatchNorm always takes the statistics of the images at hand: of the support in the inner loop, of all queries
  together in the outer loop and in evaluation (transductive). Training is the same here. Evaluation is what
  `batchnorm` says, and every accuracy names it.
- It adapts no BatchNorm weights (`adapted="all_but_batch_norm"`) and its BatchNorm has no gamma.

The running statistics follow the first inner step's support images: those of the network that is not adapted, so
that the backbone can be used, measured and exported as an extractor like any other.

A frozen layer stays as it is: its weights are not adapted, and a frozen BatchNorm runs on its stored statistics. Freeze
layers first, then build the learner, which has a rate for every weight. Keras's normalisation layers have their right
second derivative here (`modes.twice_differentiable`).

Degenerate cases: inner_steps=0 trains on the queries alone; inner_learning_rate=0 likewise.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import PROTOCOLS
from tf_unravel.adaptation.fine_tune import FineTune, Start
from tf_unravel.adaptation.inner_loop import Moments, Network, PerStepSGD, Weights, gradients_of
from tf_unravel.backbones.checks import check_unregularized
from tf_unravel.backbones.modes import synchronize, twice_differentiable
from tf_unravel.checks import refuse_below, refuse_negative
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.learners.learner import (
    Learner,
    check_episodes,
    checked_episodes,
    episode_of,
    mean_over_replicas,
    size_of,
)
from tf_unravel.machine import num_cores

InnerStep: TypeAlias = Callable[[Weights, tf.Tensor, tf.Tensor, tf.Tensor, Weights], tuple[Weights, tf.Tensor, Weights]]


@keras.saving.register_keras_serializable(package="tf_unravel")
class MAML(Learner):
    """Learns weights from which a few gradient steps on the support set lead to low loss on the queries.

    Args:
        backbone: keras.Model, images -> features [B, D].
        ways: classes of a task; tasks of another number of ways have no classifier to start from.
        inner_steps: k, in training.
        inner_learning_rate: a, on the mean cross-entropy, or on W times it (`sum_over_ways`).
        first_order: leave out the derivative of the inner gradients.
        adapted: "all", "all_but_batch_norm" or "last_layer": what the inner loop changes.
        learn_rates: make a learnable, one for each step and weight tensor.
        sum_over_ways: multiply the inner loss by the ways, as the original code does.
        rematerialize: forget the activations of an inner step and compute them again for its derivative.
        evaluation_steps: of the inner loop in `own_head`; None for `inner_steps`. The original has 5 and 10.
        batchnorm: how `own_head` normalises queries, see `heads.FineTune`.
        parallel_tasks: tasks computed at once, each with its activations in memory; None for one a processor.
        weight_decay: L2 penalty on every trainable weight.

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

    def __init__(
        self,
        backbone: keras.Model,
        ways: int,
        inner_steps: int = 5,
        inner_learning_rate: float = 0.05,
        first_order: bool = False,
        adapted: str = "all",
        learn_rates: bool = False,
        sum_over_ways: bool = False,
        rematerialize: bool = False,
        evaluation_steps: int | None = None,
        batchnorm: str = "transductive",
        parallel_tasks: int | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(backbone, weight_decay, **kwargs)
        check_unregularized("MAML", backbone)
        refuse_below(2, "MAML", ways=ways)
        refuse_below(0, "MAML", inner_steps=inner_steps, evaluation_steps=evaluation_steps)
        refuse_below(1, "MAML", parallel_tasks=parallel_tasks)
        refuse_negative("MAML", inner_learning_rate=inner_learning_rate)
        if batchnorm not in PROTOCOLS:
            raise ValueError(f"MAML.batchnorm is one of {', '.join(PROTOCOLS)}. Received: {batchnorm!r}.")
        self.arguments: dict[str, Any] = {
            "ways": ways, "inner_steps": inner_steps, "inner_learning_rate": inner_learning_rate,
            "first_order": first_order, "adapted": adapted, "learn_rates": learn_rates,
            "sum_over_ways": sum_over_ways, "rematerialize": rematerialize, "evaluation_steps": evaluation_steps,
            "batchnorm": batchnorm, "parallel_tasks": parallel_tasks,
        }  # fmt: skip
        self.ways, self.inner_steps = ways, inner_steps
        self.first_order, self.rematerialize, self.parallel_tasks = first_order, rematerialize, parallel_tasks
        self.loss_scale = float(ways) if sum_over_ways else 1.0
        self.classifier = keras.layers.Dense(ways, dtype=self.head_dtype, name="classifier")
        self.classifier.build((None, self.feature_size))
        synchronize(backbone, False)  # each task is normalised by itself, wherever it runs
        self.network = Network(backbone, ways, self.classifier)
        self.adapts = self.network.adapted(adapted)
        shape = (max(inner_steps, 1), len(self.adapts))
        initial = keras.initializers.Constant(inner_learning_rate)
        self.rates = self.add_weight(
            shape=shape, initializer=initial, trainable=learn_rates, name="inner_rates", dtype=self.head_dtype
        )
        self.head: FineTune | None = None
        self.build()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits [B, ways] before any adaptation."""
        return self.classifier(self.backbone(images, training=training))

    def inner_step(
        self, weights: Weights, rates: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, state: Weights
    ) -> tuple[Weights, tf.Tensor, Weights]:
        """theta_{j+1} = theta_j - a_j * grad L(theta_j), with the loss and the state that it saw on the way."""
        with twice_differentiable(not self.first_order):
            step = gradients_of(self.network, weights, images, labels, self.adapts, state)
        gradients = [tf.stop_gradient(g) for g in step.gradients] if self.first_order else step.gradients
        factors = tf.unstack(self.loss_scale * rates)
        fast = [w - a * g if one else w for w, a, g, one in zip(weights, factors, gradients, self.adapts, strict=True)]
        return fast, step.loss, step.state

    def task_gradients(
        self, weights: Weights, rates: tf.Tensor, episode: Episode
    ) -> tuple[Weights, tf.Tensor, dict[str, Any]]:
        """Gradients by theta and by the rates of the query loss after the inner loop, of one task.

        The two tapes of MAML: the outer one here, the inner one in `gradients_of`.
        """
        inner_step = _recomputed(self.inner_step) if self.rematerialize else self.inner_step
        support_loss, states = tf.constant(0.0, self.head_dtype), [self.network.state]
        with tf.GradientTape() as outer:
            outer.watch([weights, rates])
            fast = weights
            for j in range(self.inner_steps):
                seen = episode.support_images, episode.support_labels
                fast, loss, state = inner_step(fast, rates[j], *seen, states[-1])
                support_loss, states = (support_loss if j else loss), [*states, state]
            logits, state = self.network.logits(fast, episode.query_images, states[-1])
            loss = self.network.loss(logits, episode.query_labels)
            scaled = self.network.scaled(loss)
        none = tf.UnconnectedGradients.ZERO
        gradients = self.network.unscaled(outer.gradient(scaled, [*weights, rates], unconnected_gradients=none))
        by_weights, by_rates = gradients[:-1], gradients[-1]
        hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(episode.query_labels, tf.int32))
        values = {"loss": loss, "accuracy": tf.reduce_mean(tf.cast(hits, loss.dtype)), "support_loss": support_loss}
        # Running statistics after the first look, by the weights that are not adapted; counters after the last.
        kept = [a if a.dtype.is_floating else b for a, b in zip([*states, state][1], state, strict=True)]
        return by_weights, by_rates, {"values": values, "state": kept}

    def train_step(self, data: Episode) -> dict[str, tf.Tensor]:
        data = episode_of("MAML", data)
        weights, rates = self.network.weights, self.rates.value
        by_weights, by_rates, seen = self.mean_over_tasks(weights, rates, checked_episodes(data, self.ways))
        self.network.assign_state(mean_over_replicas(seen["state"]))
        by_variable = {id(v): g for v, g in zip(self.network.variables, by_weights, strict=True)}
        by_variable[id(self.rates)] = by_rates
        self.descend([by_variable[id(variable)] for variable in self.trainable_variables])
        return self.track(seen["values"])

    def test_step(self, data: Episode) -> dict[str, tf.Tensor]:
        """As `own_head` answers: its steps, its BatchNorm protocol, so that there is one accuracy of a name."""
        data = episode_of("MAML", data)
        values = self.own_head().adapt_each(self.backbone, self.ways, checked_episodes(data, self.ways), self._watched)
        means = tf.unstack(tf.reduce_mean(values, axis=0))
        return self.track(dict(zip(("loss", "accuracy", "support_loss"), means, strict=True)), size_of(data))

    def _watched(
        self, network: Network, start: Start, weights: Weights, support: tf.Tensor, support_labels: tf.Tensor,
        query: tf.Tensor, query_labels: tf.Tensor,
    ) -> tf.Tensor:
        """[3]: loss and accuracy of a task's queries by the adapted weights, loss of the support set before."""
        head = self.own_head()
        logits = head.answers(network, start, weights, support, support_labels, query)
        hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(query_labels, tf.int32))
        before = tf.constant(0.0)  # as in training, where there is no inner step
        if head.steps:
            before = network.loss(network.logits(start.weights, support, start.state)[0], support_labels)
        found = network.loss(logits, query_labels), tf.reduce_mean(tf.cast(hits, tf.float32)), before
        return tf.stack([tf.cast(value, tf.float32) for value in found])

    def mean_over_tasks(
        self, weights: Weights, rates: tf.Tensor, episodes: Episode
    ) -> tuple[Weights, tf.Tensor, dict[str, Any]]:
        """The mean of `task_gradients` over the tasks of a batch, `parallel_tasks` of them at a time."""
        self.network.check_frozen("MAML")
        values = dict.fromkeys(self.tracked, tf.constant(0.0, self.head_dtype))
        result = (weights, rates, {"values": values, "state": self.network.state})
        results = tf.map_fn(
            lambda episode: self.task_gradients(weights, rates, Episode(*episode)),
            tuple(episodes),
            fn_output_signature=tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), result),
            parallel_iterations=self.parallel_tasks or num_cores(),
        )
        # What is no float is a counter (dropout's), the same in every task.
        return tf.nest.map_structure(lambda v: tf.reduce_mean(v, 0) if v.dtype.is_floating else v[0], results)

    def check_batch(self, spec: Any) -> None:
        check_episodes("MAML", spec)

    def own_head(self) -> FineTune:
        """The head that adapts as the inner loop does, from the learned classifier; it follows the training."""
        if self.head is None:
            steps = self.arguments["evaluation_steps"]
            self.head = FineTune(
                self.inner_steps if steps is None else steps,
                optimizer=PerStepSGD(self.rates, self.loss_scale, self.adapts),
                adapted=self.arguments["adapted"],
                batchnorm=self.arguments["batchnorm"],
                classifier=self.classifier,
                moments=lambda: self._moments(),
            )
        return self.head

    def _moments(self) -> Moments:
        """SGD remembers nothing, but its rates are those of the weights that the learner was built with."""
        self.network.check_frozen("MAML")
        return Moments([], tf.constant(0.0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.arguments}


def _recomputed(step: InnerStep) -> InnerStep:
    """The same inner step, whose derivative computes it again instead of keeping its activations."""

    def recomputed(
        weights: Weights, rates: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, state: Weights
    ) -> tuple[Weights, tf.Tensor, Weights]:
        count = len(weights)

        # All that it needs are arguments: tf.custom_gradient searches the whole graph above what a function captures.
        @tf.custom_gradient
        def forward(rates: tf.Tensor, *values: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., Any]]:
            weights, (images, labels, *state) = list(values[:count]), values[count:]
            fast, loss, new_state = step(weights, rates, images, labels, state)

            def backward(*upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
                # After the gradient has arrived, and from copies: or the graph would find both computations equal,
                # do one, and keep it.
                with tf.control_dependencies(upstream[:count]):
                    copies = [tf.identity(value) for value in (rates, *weights)]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    again = step(copies[1:], copies[0], images, labels, state)[0]
                none = tf.UnconnectedGradients.ZERO
                found = tape.gradient(again, copies, output_gradients=upstream[:count], unconnected_gradients=none)
                return *found, *(None for _ in (images, labels, *state))

            return (*fast, loss, *new_state), backward

        values = forward(rates, *weights, images, labels, *state)
        return list(values[:count]), tf.stop_gradient(values[count]), list(values[count + 1 :])

    return recomputed
