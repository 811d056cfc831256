"""Reptile, and Reptile with weight clustering (Algorithm 2 of the paper; Nichol, Achiam and Schulman 2018).

    for j = 1..k, for every task i of the meta-batch, in lockstep:
        g_i = grad L_i(theta_i) + c * (theta_if - mean_f) / ||mean_f||^2 at each filter f,  mean = 1/m sum_p theta_p
        theta_i <- inner optimizer(theta_i, g_i)
    theta <- theta + gamma * ( 1/m sum_i theta_i - theta )

| paper            | here                         | shape                               |
|------------------|------------------------------|-------------------------------------|
| theta            | weights                      | list of tensors                     |
| theta_i^j        | fast                         | list of tensors [T, ...]            |
| m                | T                            | tasks of a batch, over all replicas |
| k                | inner_steps                  | length of the batch's second axis   |
| gamma            | the optimizer's learning rate |                                    |
| eta              | inner_optimizer.learning_rate |                                    |
| alpha * constant | weight_clustering (c)        | scalar                              |

What differs from the printed Algorithm 2:

- Its last line subtracts (theta_i^k - theta_i^0), which would walk away from the adapted weights. Reptile walks
  towards them: plus.
- The penalty is R_i = sum_f ||theta_if - mean_f||^2 / ||mean_f||^2, the squared filter-normalised distance, with the
  mean of all m tasks taken before the step (superscript j-1) and held fixed with its norms. Its gradient is
  2 (theta_if - mean_f) / ||mean_f||^2. The paper's best value, 5.0e-5, is "the product of the constant term collected
  from the gradient of R_i and alpha". `weight_clustering` is that product: c = 2 alpha. (Had one also differentiated
  the mean by theta_i, the constant would be 2 (1 - 1/m) and a term from the norms would appear.) Biases and BatchNorm
  weights are no filters and are not pulled.
- The constant is relative to the gradient of the loss, and there the original's code differs from a mean: its loss is
  a vector, so that its gradients are summed over the images of the inner batch (`sum_over_batch`). Adam does not
  notice in training, where every batch has the same size; the penalty weighs B times less, and in evaluation, where
  batches have another size than those the moments come from, a step is longer or shorter by their ratio.

The inner optimizer is Adam with beta1 = 0, whose second moments and step count outlive a task, as in the original
code (they go on into the next task and into evaluation). The original runs its tasks one after the other; here they
run in lockstep, every task from the same moments, and what is kept is the mean over the tasks.

A step reports the losses of the inner loop, in evaluation (`learner.evaluate`) too: inner batches have no queries, and
there is no accuracy. That is what `tf_unravel.evaluate(learner.backbone, learner.own_head(), split)` gives. It reports
`travelled`, the mean squared distance of the tasks' weights from where they began, and with a penalty
`pull`, its gradient's size relative to that of the loss, over tasks and inner steps.

Degenerate cases: weight_clustering=0 is Reptile, bit for bit, and no mean is computed; m=1 has nothing to be pulled
to. gamma=1 with m=1 and k steps is ordinary training on one task.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_unravel.adaptation.fine_tune import FineTune
from tf_unravel.adaptation.inner_loop import SGD, Adam, Moments, Network, Weights, check_optimizer, gradients_of
from tf_unravel.adaptation.inner_loop import by_name as optimizers
from tf_unravel.adaptation.labels import checked_range
from tf_unravel.backbones.checks import check_unregularized
from tf_unravel.backbones.modes import synchronize
from tf_unravel.checks import refuse_below, refuse_negative
from tf_unravel.learners.keras_arguments import unweighted
from tf_unravel.learners.learner import Learner, mean_over_replicas, remade, shapes_of, size_of, squared_norm
from tf_unravel.machine import num_cores


def clustering_gradient(fast: Weights, means: Weights) -> Weights:
    """(theta_if - mean_f) / ||mean_f||^2 for each filter f: half the gradient of the filter-normalised distance^2.

    Args:
        fast: weights of the tasks, tensors [T, ...].
        means: their mean over all tasks, tensors [...].

    Returns:
        As `fast`; zeros for vectors (biases, BatchNorm) and for filters whose mean is zero.
    """

    def of_one(weight: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        if mean.shape.rank < 2:
            return tf.zeros_like(weight)
        size = tf.reduce_sum(tf.square(mean), axis=list(range(mean.shape.rank - 1)))  # [filters]
        return tf.math.divide_no_nan(weight - mean, size)

    return [of_one(weight, mean) for weight, mean in zip(fast, means, strict=True)]


class InnerLoop(NamedTuple):
    """Where the tasks of a batch arrive.

    Attributes:
        weights: tensors [T, ...].
        moments: second moments [T, ...] and the number of steps.
        losses: [T] of every step.
        states: [T, ...]: running statistics after the first step, by the weights that are not adapted, and counters
            after the last.
        sizes: for every step with a penalty, [2]: squared norms of the gradients of loss and penalty, over all tasks.
    """

    weights: Weights
    moments: Moments
    losses: list[tf.Tensor]
    states: Weights
    sizes: list[tf.Tensor]


@keras.saving.register_keras_serializable(package="tf_unravel")
class Reptile(Learner):
    """Moves the weights towards those that a few steps on each task lead to.

    Batches are (images [T, k, B, H, W, C], labels [T, k, B]): for each task, the inner batch of every inner step
    (`data.inner_batches`). Compile with SGD for the outer step; its learning rate is gamma, and a schedule to zero
    is Reptile's annealing.

    Args:
        backbone: keras.Model, images -> features [B, D].
        ways: classes of a task.
        inner_steps: k; 8 in the original at mini-ImageNet. Checked against the batch.
        inner_batch: B; 10 there.
        inner_optimizer: `heads.Adam(learning_rate)` or `heads.SGD(learning_rate)`.
        weight_clustering: c = 2 alpha, the paper's coefficient (best: 5.0e-5); 0 is Reptile.
        sum_over_batch: sum the loss over the images of an inner batch, as the original does, in place of the mean.
        evaluation_steps: inner steps of `own_head`; 50 in the original.
        evaluation_batch: support images a step there, or all where there are fewer: 15 gives the original's 5 at
            1 shot and 15 at 5 shots; None for all.
        transductive: whether `own_head` normalises queries together, or each with the support set.
        parallel_tasks: tasks computed at once; None for one a processor.
        weight_decay: L2 penalty in the outer step.

    Raises:
        ValueError: a count below its minimum, a coefficient that is negative or not finite, no inner optimizer.

    Example:
        >>> learner = Reptile(conv4(filters=32), ways=5, inner_steps=8, inner_batch=10, weight_clustering=5e-5)
        >>> learner.compile(optimizer=keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 1000, 0.0)))
        >>> learner.fit(data.inner_batches(split, shots=15, steps=8, batch=10, tasks=5), steps_per_epoch=1000)

    Reference: section 5.1 and Algorithm 2; Nichol, Achiam and Schulman, "On first-order meta-learning algorithms".
    """

    tracked: Sequence[str] = ("loss", "last_loss", "travelled")
    may_diverge_by = "the learning rate, or that of Reptile.inner_optimizer, or Reptile.weight_clustering"

    def __init__(
        self,
        backbone: keras.Model,
        ways: int,
        inner_steps: int = 8,
        inner_batch: int = 10,
        inner_optimizer: SGD | Adam | None = None,
        weight_clustering: float = 0.0,
        sum_over_batch: bool = False,
        evaluation_steps: int = 50,
        evaluation_batch: int = 15,
        transductive: bool = False,
        parallel_tasks: int | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        if weight_clustering:
            self.tracked = (*self.tracked, "pull")
        super().__init__(backbone, weight_decay, **kwargs)
        check_unregularized("Reptile", backbone)
        inner_optimizer = Adam() if inner_optimizer is None else inner_optimizer
        refuse_below(2, "Reptile", ways=ways)
        refuse_below(1, "Reptile", inner_steps=inner_steps, inner_batch=inner_batch,
                     evaluation_batch=evaluation_batch, parallel_tasks=parallel_tasks)
        refuse_below(0, "Reptile", evaluation_steps=evaluation_steps)
        refuse_negative("Reptile", weight_clustering=weight_clustering)
        check_optimizer("Reptile.inner_optimizer", inner_optimizer)
        self.ways, self.inner_steps, self.inner_batch = ways, inner_steps, inner_batch
        self.inner_optimizer = inner_optimizer
        self.weight_clustering, self.transductive = weight_clustering, transductive
        self.evaluation_steps, self.evaluation_batch = evaluation_steps, evaluation_batch
        self.sum_over_batch, self.parallel_tasks = sum_over_batch, parallel_tasks
        self.classifier = keras.layers.Dense(ways, dtype=self.head_dtype, name="classifier")
        self.classifier.build((None, self.feature_size))
        synchronize(backbone, False)  # each task is normalised by itself, wherever it runs
        self.network = Network(backbone, ways, self.classifier, sum_over_batch)
        self.adapts = self.network.adapted("all")
        memory = self.inner_optimizer.start(self.network.weights)
        self.second_moments = [
            self.add_weight(
                shape=s.shape, initializer="zeros", trainable=False, name=f"second_moment_{i}", dtype=self.head_dtype
            )
            for i, s in enumerate(memory.second)
        ]
        self.steps_taken = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="inner_steps_taken", dtype=self.head_dtype
        )
        self.head: FineTune | None = None
        self.build()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits [B, ways] before any adaptation."""
        return self.classifier(self.backbone(images, training=training))

    @property
    def moments(self) -> Moments:
        """What the inner optimizer remembers between meta-steps, of each weight that the learner was built with."""
        self.network.check_frozen("Reptile")
        return Moments([variable.value for variable in self.second_moments], self.steps_taken.value)

    def task_gradients(
        self, fast: Weights, images: tf.Tensor, labels: tf.Tensor, states: Weights
    ) -> tuple[Weights, tf.Tensor, Weights]:
        """Gradients [T, ...], losses [T] and states [T, ...] of all tasks, each at its own weights."""

        def one(task: tuple[Weights, tf.Tensor, tf.Tensor, Weights]) -> tuple[Weights, tf.Tensor, Weights]:
            weights, seen, known, state = task
            step = gradients_of(self.network, weights, seen, known, self.adapts, state)
            return step.gradients, step.loss, step.state

        result = (self.network.weights, tf.constant(0.0, self.head_dtype), self.network.state)
        specs = tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), result)
        return tf.map_fn(
            one,
            (fast, images, labels, states),
            fn_output_signature=specs,
            parallel_iterations=self.parallel_tasks or num_cores(),
        )

    def inner_loop(self, images: tf.Tensor, labels: tf.Tensor) -> "InnerLoop":
        """All tasks of the batch in lockstep, from the present weights.

        Args:
            images: [T, k, B, H, W, C].
            labels: [T, k, B].

        Returns:
            Where they arrive.
        """
        tasks = tf.shape(images)[0]

        def spread_out(values: Weights) -> Weights:
            return [tf.repeat(value[None], tasks, axis=0) for value in values]

        fast, moments = spread_out(self.network.weights), self.moments
        moments = Moments(spread_out(moments.second), moments.steps)
        losses: list[tf.Tensor] = []
        sizes: list[tf.Tensor] = []
        states = [spread_out(self.network.state)]
        for j in range(self.inner_steps):
            gradients, loss, state = self.task_gradients(fast, images[:, j], labels[:, j], states[-1])
            if self.weight_clustering:
                means = mean_over_replicas([tf.reduce_mean(weight, axis=0) for weight in fast])
                pulls = clustering_gradient(fast, means)
                pulls = [self.weight_clustering * pull for pull in pulls]
                sizes.append(tf.stack([squared_norm(gradients), squared_norm(pulls)]))
                gradients = [g + pull for g, pull in zip(gradients, pulls, strict=True)]
            fast, moments = self.inner_optimizer.step(fast, gradients, moments)
            losses, states = [*losses, loss], [*states, state]
        kept = [a if a.dtype.is_floating else b for a, b in zip(states[1], states[-1], strict=True)]
        return InnerLoop(fast, moments, losses, kept, sizes)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        end = self.inner_loop(*self._batch(data))
        means = [tf.reduce_mean(weight, axis=0) for weight in end.weights]
        kept = [tf.reduce_mean(second, axis=0) for second in end.moments.second]
        state = [tf.reduce_mean(s, axis=0) if s.dtype.is_floating else s[0] for s in end.states]
        for variable, value in zip(self.second_moments, mean_over_replicas(kept), strict=True):
            variable.assign(value)
        self.steps_taken.assign(end.moments.steps)
        self.network.assign_state(mean_over_replicas(state))
        # theta + gamma (mean - theta) is an SGD step of rate gamma along theta - mean.
        towards = {id(v): v.value - m for v, m in zip(self.network.variables, means, strict=True)}
        values = self._values(end)
        self.descend([towards[id(variable)] for variable in self.trainable_variables])
        return self.track(values)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self.track(self._values(self.inner_loop(*self._batch(data))), size_of(data))

    def _batch(self, data: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """(images, labels) of inner batches that the learner can use; not every inner batch has every class."""
        batch = unweighted("Reptile", data)
        self.check_batch(batch)
        images, labels = batch
        labels = tf.convert_to_tensor(labels)
        is_class = labels.shape.rank == 3  # and no vector, for a loss of another kind
        return images, checked_range("labels", labels, self.ways) if is_class else labels

    def _values(self, end: "InnerLoop") -> dict[str, tf.Tensor]:
        """What a step reports (see the module)."""
        paths = [f - w for f, w in zip(end.weights, self.network.weights, strict=True)]
        tasks = tf.cast(tf.shape(paths[0])[0], tf.float32)
        values = {"loss": tf.reduce_mean(end.losses), "last_loss": tf.reduce_mean(end.losses[-1]),
                  "travelled": squared_norm(paths) / tasks}
        if end.sizes:
            of_loss, of_penalty = tf.unstack(mean_over_replicas(tf.add_n(end.sizes)))
            values["pull"] = tf.sqrt(tf.math.divide_no_nan(of_penalty, of_loss))
        return values

    def check_batch(self, spec: Any) -> None:
        expected = self.inner_steps, self.inner_batch
        if not isinstance(spec, tuple) or len(spec) != 2 or tuple(spec[0].shape[1:3]) != expected:
            steps, batch = expected
            raise ValueError(
                "Reptile's batches are images [tasks, inner_steps, inner_batch, H, W, C]: run.batches = "
                "@InnerBatches(), told of both together by the gin macros, here "
                f"'inner_steps = {steps}' and 'inner_batch = {batch}'. "
                f"Received: {shapes_of(spec)}, with inner_steps={steps}, inner_batch={batch}."
            )

    def own_head(self) -> FineTune:
        """The head that adapts as the inner loop does, from the learned classifier and second moments.

        It follows the training: what it starts from is read when it is used.
        """
        if self.head is None:
            self.head = FineTune(
                self.evaluation_steps,
                optimizer=self.inner_optimizer,
                batch_size=self.evaluation_batch,
                batchnorm="transductive" if self.transductive else "one_by_one",
                classifier=self.classifier,
                moments=lambda: self.moments,
                sum_over_batch=self.sum_over_batch,
            )
        return self.head

    def get_config(self) -> dict[str, Any]:
        optimizer = {"name": self.inner_optimizer.name, "arguments": vars(self.inner_optimizer)}
        return {**super().get_config(), "ways": self.ways, "inner_steps": self.inner_steps,
                "inner_batch": self.inner_batch, "inner_optimizer": optimizer,
                "weight_clustering": self.weight_clustering, "sum_over_batch": self.sum_over_batch,
                "evaluation_steps": self.evaluation_steps,
                "evaluation_batch": self.evaluation_batch, "transductive": self.transductive,
                "parallel_tasks": self.parallel_tasks}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Reptile":
        known = "tf_unravel.adaptation.inner_loop.by_name"
        inner_optimizer = remade("Reptile.inner_optimizer", optimizers, config["inner_optimizer"], known)
        return super().from_config({**config, "inner_optimizer": inner_optimizer})
