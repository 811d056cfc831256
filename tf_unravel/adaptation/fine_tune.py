"""Fine-tuning as a head: gradient steps on the support images, then a look at the queries.

The "MAML" column of Table 1 and the evaluation of Table 5. Unlike the other heads it reads images, not features: it
changes the backbone, in a copy for each task. The model that is given is not written to at any moment.

    theta_0 = the backbone's weights, w_0 = the classifier's (a learner's own, or zeros)
    theta_{j+1}, w_{j+1} = optimizer(theta_j, w_j; a batch of the support set),  j = 0..steps-1
    logits = g_w(f_theta(query))  under a BatchNorm protocol

| symbol | name           | shape                    |
|--------|----------------|--------------------------|
| T      | tasks          |                          |
| S, Q   | support, query | [T, S, H, W, C], [T, Q, H, W, C] |

Batches of the support set are drawn without replacement, one random order after the other, crossing from one to the
next as Reptile's do; a batch of the whole set needs no order. Degenerate case: steps=0 is the untouched classifier.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import PROTOCOLS, protocol_of, query_logits
from tf_unravel.adaptation.inner_loop import (
    ADAPTED,
    SGD,
    InnerOptimizer,
    Moments,
    Network,
    PerStepSGD,
    Step,
    Weights,
    check_optimizer,
    gradients_of,
)
from tf_unravel.adaptation.labels import checked_support
from tf_unravel.backbones.graphs import GraphCache
from tf_unravel.backbones.modes import batch_norms
from tf_unravel.checks import refuse_below
from tf_unravel.machine import num_cores


def batch_orders(steps: int, batch_size: int, examples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Which examples each step of a task sees: random orders of all of them, one after the other.

    Args:
        steps: of the inner loop.
        batch_size: B.
        examples: S; a scalar tensor where a graph learns it when it runs.
        seed: int [2], of the task.

    Returns:
        int32 [steps, B]
    """
    rounds = -(-steps * batch_size // examples)
    orders = tf.argsort(tf.random.stateless_uniform([rounds, examples], seed, alg="philox"), axis=1)
    return tf.reshape(tf.reshape(orders, [-1])[: steps * batch_size], [steps, batch_size])


def adapted_of(backbone: keras.Model, classifier: keras.layers.Dense | None, which: str) -> str:
    """What an inner loop changes of a network, parts of which may be frozen, as an accuracy says it.

    Args:
        backbone: keras.Model.
        classifier: to start from; None for a new one.
        which: a name in `ADAPTED`.
    """
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


class Start(NamedTuple):
    """What an inner loop starts from.

    Attributes:
        weights: as `Network.weights`.
        state: as `Network.state`.
        moments: what the optimizer remembers.
    """

    weights: Weights
    state: Weights
    moments: Moments


class _Remembered:
    """What an optimizer remembered when a head was copied: a function without arguments that gives it."""

    def __init__(self, moments: Moments):
        self.second, self.steps = [value.numpy() for value in moments.second], float(moments.steps)

    def __call__(self) -> Moments:
        return Moments([tf.constant(value) for value in self.second], tf.constant(self.steps))


class FineTune:
    """Adapts a network to each task by gradient steps.

    Args:
        steps: of the inner loop.
        learning_rate: of gradient descent.
        optimizer: another one in its place, such as `heads.Adam(1e-3)`; it has its own rate.
        adapted: "all", "all_but_batch_norm" or "last_layer".
        batch_size: support images a step, or all of them where there are fewer; None for all.
        batchnorm: how the queries are normalised: "transductive", "one_by_one", "support" or "running" (see
            `batchnorm.query_logits`). The accuracy names it. Default "support": inductive, one pass.
        classifier: Dense layer to start from; it fixes the ways. None starts at zero, with any ways.
        moments: a function that gives what the optimizer remembers at the start of every task; None for nothing.
        sum_over_batch: sum the loss over the images of a batch, as Reptile's code does, in place of the mean.
        seed: of the order of batches.
        parallel_tasks: tasks that run side by side, each in a thread of its own; None for one a processor.

    Raises:
        ValueError: steps below 0, a batch size or `parallel_tasks` below 1, a negative rate, no inner optimizer, an
            unknown protocol or `adapted`.

    Example:
        >>> head = FineTune(steps=10, learning_rate=0.01)
        >>> tf_unravel.evaluate(backbone, head, test, shots=5, num_tasks=200)

    Reference: Finn et al., 2017; Nichol, Achiam and Schulman, 2018.
    """

    name: ClassVar[str] = "fine_tune"
    on_images: ClassVar[bool] = True

    def __init__(
        self,
        steps: int = 10,
        learning_rate: float = 0.01,
        optimizer: InnerOptimizer | None = None,
        adapted: str = "all",
        batch_size: int | None = None,
        batchnorm: str = "support",
        classifier: keras.layers.Dense | None = None,
        moments: Callable[[], Moments] | None = None,
        sum_over_batch: bool = False,
        seed: int = 0,
        parallel_tasks: int | None = None,
    ):
        refuse_below(1, "FineTune", parallel_tasks=parallel_tasks)
        self.steps, self.adapted, self.batch_size = steps, adapted, batch_size
        self.optimizer: InnerOptimizer = SGD(learning_rate) if optimizer is None else optimizer
        self.protocol, self.classifier, self.moments = batchnorm, classifier, moments
        self.sum_over_batch = sum_over_batch
        self.seed, self.parallel_tasks = seed, parallel_tasks or num_cores()
        self.check()
        self._graphs = GraphCache()

    def check(self) -> None:
        """Refuses settings that make no inner loop; they may be changed at any time, and the next call uses them.

        Raises:
            ValueError: as the constructor.
        """
        refuse_below(0, "FineTune", steps=self.steps)
        refuse_below(1, "FineTune", batch_size=self.batch_size, parallel_tasks=self.parallel_tasks)
        if self.adapted not in ADAPTED:
            raise ValueError(f"adapted is one of {', '.join(ADAPTED)}. Received: {self.adapted!r}.")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"batchnorm is one of {', '.join(PROTOCOLS)}. Received: {self.protocol!r}.")
        check_optimizer("FineTune.optimizer", self.optimizer)

    @property
    def learning_rate(self) -> float:
        """That of the optimizer, as an attribute to read or set."""
        if isinstance(self.optimizer, PerStepSGD):
            raise AttributeError("PerStepSGD has a rate for every step and weight: see optimizer.rates.")
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if isinstance(self.optimizer, PerStepSGD):
            raise AttributeError(f"PerStepSGD has a rate for every step and weight: set optimizer. Received: {value}.")
        self.optimizer = dataclasses.replace(self.optimizer, learning_rate=value)

    @property
    def batchnorm(self) -> str:
        """The protocol; what an accuracy says is that of a backbone, see `said_of`."""
        return PROTOCOLS[self.protocol]

    @batchnorm.setter
    def batchnorm(self, protocol: str) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"batchnorm is one of {', '.join(PROTOCOLS)}. Received: {protocol!r}.")
        self.protocol = protocol

    @property
    def adaptation(self) -> str:
        """The inner loop of a network of which nothing is frozen."""
        return f"{self._steps_said}, {ADAPTED[self.adapted]}"

    def said_of(self, backbone: keras.Model) -> tuple[str, str]:
        """What BatchNorm does and what the inner loop adapts in this backbone, as an accuracy says it."""
        adapted = adapted_of(backbone, self.classifier, self.adapted)
        return protocol_of(backbone, self.protocol), f"{self._steps_said}, {adapted}"

    @property
    def _steps_said(self) -> str:
        images = "all" if self.batch_size is None else f"up to {self.batch_size}"
        loss = "summed" if self.sum_over_batch else "mean"
        return f"{self.steps} steps of {self.optimizer} on {images} support images, {loss} loss"

    def __call__(
        self, backbone: keras.Model, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: int,
        first_task: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """Logits of the query images.

        Args:
            backbone: keras.Model, images -> [B, D].
            support: images [T, S, H, W, C], uint8 or float 0-255.
            support_labels: integers [T, S].
            query: images [T, Q, H, W, C].
            ways: W.
            first_task: number of the first task, for the order of its batches.

        Returns:
            float32 [T, Q, W]

        Raises:
            ValueError: as `adapt_each`; in an eager call, logits that are not finite.
        """
        logits = self.adapt_each(backbone, ways, (support, support_labels, query), self.answers, first_task)
        if tf.executing_eagerly() and not bool(tf.reduce_all(tf.math.is_finite(logits))):
            raise ValueError(
                f"The logits of {self.name} are not finite: it diverged, or the backbone or the images hold NaN; lower "
                "the learning rate, or check them. "
                f"Received: NaN or infinity after {self.steps} steps of {self.optimizer}."
            )
        return logits

    def adapt_each(
        self,
        backbone: keras.Model,
        ways: int,
        tasks: Sequence[tf.Tensor],
        then: Callable[..., tf.Tensor],
        first_task: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """Adapts the network to each of some tasks, and computes something of the adapted weights.

        Args:
            backbone: keras.Model, images -> [B, D].
            ways: W.
            tasks: support images [T, S, H, W, C], support labels [T, S], and whatever else `then` reads, [T, ...].
            then: (network, start, adapted weights, *one task) -> float32 tensor [...]. Its graph is kept by the
                function: give the same one each time, not a new lambda.
            first_task: number of the first task, for the order of its batches.

        Returns:
            float32 [T, ...]: what `then` gives of each task.

        Raises:
            ValueError: the classifier was learned for another number of ways; labels outside 0..ways-1, or a class
                of a task without a support image (in a graph an InvalidArgumentError, when it runs).

        Example:
            >>> first_bias = lambda network, start, weights, images, labels: weights[1]
            >>> biases = head.adapt_each(backbone, 5, (support, support_labels), first_bias)
        """
        tasks = [tasks[0], checked_support(tasks[1], ways), *tasks[2:]]
        run = self._compiled(backbone, ways, then)
        numbers = tf.convert_to_tensor(first_task, tf.int32) + tf.range(tf.shape(tasks[0])[0])
        arguments = (numbers, *(tf.convert_to_tensor(each) for each in tasks))
        if not tf.executing_eagerly():
            return tf.map_fn(lambda task: run(*task), arguments, fn_output_signature=tf.float32, parallel_iterations=1)
        specs = [tf.TensorSpec(each.shape[1:], each.dtype) for each in arguments]
        traced = run.get_concrete_function(*specs)  # here, not in a thread
        # A thread each. As iterations of one loop that run side by side two small tasks take longer than in a row.
        with ThreadPoolExecutor(self.parallel_tasks) as pool:
            return tf.stack(list(pool.map(traced, *(tf.unstack(each) for each in arguments))))

    def check_ways(self, ways: int) -> None:
        """Refuses tasks that the classifier to start from was not learned for.

        Raises:
            ValueError: they have another number of ways.
        """
        if self.classifier is not None and self.classifier.units != ways:
            learned = self.classifier.units
            raise ValueError(
                f"The classifier to start from was learned for {learned} ways: give --ways={learned} (while training "
                f"Validation.ways = {learned}), or start from zero by --heads=fine_tune (classifier=None). "
                f"Received: ways={ways}."
            )

    def network(self, backbone: keras.Model, ways: int) -> Network:
        """The backbone with the classifier that the inner loop starts from."""
        self.check_ways(ways)
        return Network(backbone, ways, self.classifier, self.sum_over_batch)

    def start(self, network: Network) -> Start:
        """What every task starts from: the values that the network's variables have now."""
        weights = network.weights
        return Start(weights, network.state, self.moments() if self.moments else self.optimizer.start(weights))

    def adapt(
        self, network: Network, start: Start, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[Weights, tf.Tensor]:
        """The inner loop on one task.

        Args:
            network: the function.
            start: see `start`.
            images: support [S, H, W, C].
            labels: integers [S].
            seed: int [2].

        Returns:
            (adapted weights, loss [steps] of the batch of every step).
        """
        adapted, examples = network.adapted(self.adapted), images.shape[0]
        examples = tf.shape(images)[0] if examples is None else examples
        weights, state, moments = start
        losses = tf.TensorArray(tf.float32, size=self.steps)
        orders = self._orders(examples, seed)

        # A graph of its own, not merged into the loop's: along a loop's cycle TensorFlow may come to the gradient of a
        # max-pool before the max-pool, and then leaves it a kernel several times slower than oneDNN's.
        @tf.function(experimental_attributes={"_noinline": True})
        def look(weights: Weights, images: tf.Tensor, labels: tf.Tensor, state: Weights) -> Step:
            return gradients_of(network, weights, images, labels, adapted, state)

        for j in tf.range(self.steps):
            chosen = tf.range(examples) if orders is None else orders[j]
            step = look(weights, tf.gather(images, chosen), tf.gather(labels, chosen), state)
            weights, moments = self.optimizer.step(weights, step.gradients, moments)
            state = step.state  # dropout draws other masks in the next step
            losses = losses.write(j, tf.cast(step.loss, tf.float32))
        return weights, losses.stack()

    def _orders(self, examples: Any, seed: tf.Tensor) -> tf.Tensor | None:
        """Which examples each step sees, int32 [steps, B]; None where that is all of them, in their order."""
        size = self.batch_size
        if size is None:
            return None

        def drawn() -> tf.Tensor:
            return batch_orders(self.steps, size, examples, seed)

        if isinstance(examples, int):
            return None if size >= examples else drawn()
        return tf.cond(size < examples, drawn, lambda: tf.tile(tf.range(examples)[None], [self.steps, 1]))

    def _compiled(self, backbone: keras.Model, ways: int, then: Callable[..., tf.Tensor]) -> Any:
        """One graph, a tf.function, for a backbone, a number of ways and a function, kept as long as it is right."""
        self.check()
        self.network(backbone, ways)  # refuses other ways, and builds the classifier outside of the graph
        model = weakref.ref(backbone)  # the cache must not keep alive what it is keyed by

        @tf.function  # one trace for each size of the support set: its loop over batches needs to know it
        def run(number: tf.Tensor, support: tf.Tensor, labels: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            network = self.network(model(), ways)
            start = self.start(network)
            weights, _ = self.adapt(network, start, support, labels, tf.stack([self.seed, number]))
            return tf.cast(then(network, start, weights, support, labels, *others), tf.float32)

        return self._graphs.get(backbone, (ways, then), lambda: run, self._settings(), self.classifier)

    def _settings(self) -> dict[str, Any]:
        """What a graph is traced with: every attribute, and those of the optimizer, but for the graphs themselves."""
        return {**vars(self), "_graphs": None, "optimizer": (type(self.optimizer), vars(self.optimizer))}

    def __copy__(self) -> "FineTune":
        copy = object.__new__(type(self))
        copy.__setstate__(vars(self))
        return copy

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without graphs, and with what the optimizer remembers at this moment."""
        moments = self.moments and _Remembered(self.moments())
        return {**vars(self), "moments": moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _graphs=GraphCache())

    def answers(
        self, network: Network, start: Start, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor
    ) -> tf.Tensor:
        """Logits [Q, W] of one task's queries by the adapted weights, for `adapt_each`."""
        return query_logits(network, weights, start.state, support, query, self.protocol)
