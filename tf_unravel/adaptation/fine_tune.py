"""Fine-tuning as a head: gradient steps on the support images, then a look at the queries.

The "MAML" column of Table 1 and the evaluation of Table 5. It reads images, not features: it adapts the backbone, in a
copy for each task. The model that is given is never written to.

    theta_0 = the backbone's weights, w_0 = the classifier's (a learner's own, or zeros)
    theta_{j+1}, w_{j+1} = optimizer(theta_j, w_j; a batch of the support set),  j = 0..steps-1     (`inner_loop`)
    logits = g_w(f_theta(query))  under a BatchNorm protocol                                        (`batchnorm`)

| symbol | name           | shape                    |
|--------|----------------|--------------------------|
| T      | tasks          |                          |
| S, Q   | support, query | [T, S, H, W, C], [T, Q, H, W, C] |

Degenerate case: steps=0 is the untouched classifier.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.adaptation import inner_loop
from tf_unravel.adaptation.batchnorm import Adapted, QueryNorm, in_force, protocol_named, protocol_of, query_logits
from tf_unravel.adaptation.groups import refuse_unknown, taken
from tf_unravel.adaptation.head import Classifier, Head, Reads
from tf_unravel.adaptation.inner_loop import Start, support_batches
from tf_unravel.adaptation.inner_optimizers import SGD, InnerOptimizer, Moments, PerStepSGD, check_optimizer
from tf_unravel.adaptation.labels import Ways, checked_support
from tf_unravel.adaptation.network import ADAPTED, Network, Weights, adapted_of, check_adapted
from tf_unravel.backbones.graphs import GraphCache
from tf_unravel.checks import refuse_below
from tf_unravel.machine import num_cores


@dataclasses.dataclass(frozen=True)
class Batches:
    """What a step of fine-tuning sees of the support set.

    Args:
        batch_size: support images a step, or all of them where there are fewer; None for all.
        sum_over_batch: sum the loss over the images of a batch, as Reptile's code does, instead of averaging.
        seed: of the order of batches.
    """

    batch_size: int | None = None
    sum_over_batch: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Origin:
    """What fine-tuning starts from, besides the backbone.

    Args:
        classifier: Dense layer, which fixes the ways; None starts at zero, with any ways.
        moments: a function that gives what the optimizer remembers at the start of a task; None for nothing.
    """

    classifier: keras.layers.Dense | None = None
    moments: Callable[[], Moments] | None = None


class _Remembered:
    """What an optimizer remembered when a head was copied: a function without arguments that gives it."""

    def __init__(self, moments: Moments):
        self.second, self.steps = [value.numpy() for value in moments.second], float(moments.steps)

    def __call__(self) -> Moments:
        return Moments([tf.constant(value) for value in self.second], tf.constant(self.steps))


class FineTune(Head):
    """Adapts a network to each task by gradient steps.

    Every argument is an attribute too, the members of a group one by one; a change counts from the next call on.

    Args:
        steps: of the inner loop.
        learning_rate: of gradient descent.
        optimizer: another one in its place, such as `heads.Adam(1e-3)`; it has its own rate.
        adapted: "all", "all_but_batch_norm" or "last_layer".
        batches: see `Batches`; or its members: batch_size, sum_over_batch, seed.
        batchnorm: how the queries are normalised: "transductive", "one_by_one", "support" or "running", or a
            `QueryNorm` (see `adaptation.batchnorm`). The accuracy names it. Default "support": inductive, one pass.
        origin: see `Origin`; or its members: classifier, moments.
        parallel_tasks: tasks that run side by side, each in a thread of its own; None for one per processor.

    Raises:
        ValueError: steps below 0, a batch size or `parallel_tasks` below 1, a negative rate, no inner optimizer, an
            unknown protocol or `adapted`.

    Example:
        >>> head = FineTune(steps=10, learning_rate=0.01)
        >>> tf_unravel.evaluate(backbone, head, test, shots=5, num_tasks=200)

    Reference: Finn et al., 2017; Nichol, Achiam and Schulman, 2018.
    """

    name: ClassVar[str] = "fine_tune"
    reads: ClassVar[Reads] = Reads.IMAGES
    groups: ClassVar[dict[str, Any]] = {"batches": Batches(), "origin": Origin()}

    def __init__(
        self,
        steps: int = 10,
        learning_rate: float = 0.01,
        optimizer: InnerOptimizer | None = None,
        adapted: str = "all",
        batches: Batches | None = None,
        batchnorm: str | QueryNorm = "support",
        origin: Origin | None = None,
        parallel_tasks: int | None = None,
        **options: Any,
    ):
        batches, origin = taken(self, options, batches=batches, origin=origin)
        refuse_unknown(FineTune, options)
        refuse_below(1, "FineTune", parallel_tasks=parallel_tasks)
        self.steps, self.adapted, self.batchnorm = steps, adapted, batchnorm
        self.optimizer: InnerOptimizer = SGD(learning_rate) if optimizer is None else optimizer
        self.batch_size, self.sum_over_batch, self.seed = batches.batch_size, batches.sum_over_batch, batches.seed
        self.classifier, self.moments = origin.classifier, origin.moments
        self.parallel_tasks = parallel_tasks or num_cores()
        self.check()
        self._graphs = GraphCache()

    def check(self) -> None:
        """Raises ValueError, as the constructor, for settings that make no inner loop."""
        refuse_below(0, "FineTune", steps=self.steps)
        refuse_below(1, "FineTune", batch_size=self.batch_size, parallel_tasks=self.parallel_tasks)
        check_adapted(self.adapted)
        check_optimizer("FineTune.optimizer", self.optimizer)

    @property
    def learning_rate(self) -> float:
        """That of the optimizer, as an attribute to read or set."""
        return self._one_rate().learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer = dataclasses.replace(self._one_rate(), learning_rate=value)

    def _one_rate(self) -> Any:
        if isinstance(self.optimizer, PerStepSGD):
            raise AttributeError("PerStepSGD has a rate for every step and weight: see optimizer.rates, or set "
                                 "optimizer.")
        return self.optimizer

    @property
    def batchnorm(self) -> QueryNorm:
        """The protocol, to read or, by its name too, to set; of a backbone it is said by `said_of`."""
        return self._batchnorm

    @batchnorm.setter
    def batchnorm(self, protocol: str | QueryNorm) -> None:
        self._batchnorm = protocol_named("FineTune.batchnorm", protocol)

    @property
    def adaptation(self) -> str:
        """The inner loop of a network of which nothing is frozen."""
        return f"{self._steps_said}, {ADAPTED[self.adapted]}"

    def said_of(self, backbone: Any) -> tuple[str, str]:
        adapted = ADAPTED[self.adapted]
        if isinstance(backbone, keras.Model):
            adapted = adapted_of(backbone, self.classifier, self.adapted)
        return protocol_of(backbone, self.batchnorm), f"{self._steps_said}, {adapted}"

    @property
    def _steps_said(self) -> str:
        images = "all" if self.batch_size is None else f"up to {self.batch_size}"
        loss = "summed" if self.sum_over_batch else "mean"
        return f"{self.steps} steps of {self.optimizer} on {images} support images, {loss} loss"

    def transductive_on(self, backbone: keras.Model) -> bool:
        return in_force(backbone, self.batchnorm).transductive

    def settings(self) -> str:
        """The name, and whether it starts from a learned classifier; accuracies name the inner loop."""
        return self.name + ("" if self.classifier is None else ", from the learned classifier")

    @property
    def learned_ways(self) -> int | None:
        return None if self.classifier is None else self.classifier.units

    def check_ways(self, ways: int) -> None:
        if self.classifier is not None and self.classifier.units != ways:
            learned = self.classifier.units
            raise ValueError(
                f"The classifier to start from was learned for {learned} ways: give --ways={learned} (while training "
                f"Validation.ways = {learned}), or start from zero by --heads=fine_tune (classifier=None). "
                f"Received: ways={ways}."
            )

    def __call__(
        self, backbone: keras.Model, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: int,
        first_task: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """Logits float32 [T, Q, W] of the queries; `first_task` is a number, for the order of its batches.

        Raises:
            ValueError: as `adapt_each`; in an eager call, logits that are not finite.
        """
        return self._finite(self.adapt_each(backbone, ways, (support, support_labels, query), self.answers, first_task))

    def fit(
        self, backbone: keras.Model, support_images: tf.Tensor, support_labels: tf.Tensor, ways: Ways,
        first_task: int | tf.Tensor = 0,
    ) -> Classifier:
        """Adapts the network to each support set, once: see `Head.fit`."""
        kept = self.adapt_each(backbone, ways, (support_images, support_labels), self._prepared, first_task)
        network, protocol = self.network(backbone, ways), in_force(backbone, self.batchnorm)

        @tf.function(reduce_retracing=True)
        def logits(kept: Any, query: tf.Tensor) -> tf.Tensor:
            def one(task: tuple[Weights, Weights, tf.Tensor, tf.Tensor]) -> tf.Tensor:
                weights, state, images, query = task
                return tf.cast(protocol.logits(Adapted(network, weights, state), images, query), tf.float32)

            return _each(one, (*kept, query), tf.float32)

        return Classifier(kept, lambda kept, query: self._finite(logits(kept, query)))

    def _prepared(
        self, network: Network, start: Start, weights: Weights, support: tf.Tensor, labels: tf.Tensor
    ) -> tuple[Weights, Weights, tf.Tensor]:
        """What a classifier keeps of one task, for `adapt_each`: adapted weights, state, images."""
        protocol = in_force(network.backbone, self.batchnorm)
        return weights, *protocol.prepare(Adapted(network, weights, start.state), support)

    def answers(
        self, network: Network, start: Start, weights: Weights, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor
    ) -> tf.Tensor:
        """Logits float32 [Q, W] of one task's queries by the adapted weights, for `adapt_each`."""
        adapted = Adapted(network, weights, start.state)
        return tf.cast(query_logits(adapted, support, query, self.batchnorm), tf.float32)

    def _finite(self, logits: tf.Tensor) -> tf.Tensor:
        if tf.executing_eagerly() and not bool(tf.reduce_all(tf.math.is_finite(logits))):
            raise ValueError(
                f"The logits of {self.name} are not finite: it diverged, or the backbone or the images hold NaN; lower "
                "the learning rate, or check them. "
                f"Received: NaN or infinity after {self.steps} steps of {self.optimizer}."
            )
        return logits

    def adapt_each(
        self, backbone: keras.Model, ways: Ways, tasks: Sequence[tf.Tensor], then: Callable[..., Any],
        first_task: int | tf.Tensor = 0,
    ) -> Any:
        """Adapts the network to each task, and computes something of the adapted weights.

        Args:
            backbone: keras.Model, images -> [B, D].
            ways: W; a tensor in a graph alone.
            tasks: support images [T, S, H, W, C], support labels [T, S], and whatever else `then` reads, [T, ...].
            then: (network, start, adapted weights, *one task) -> tensors, in any structure. Its graph is kept by the
                function: give the same one each time, not a new lambda.
            first_task: number of the first task, for the order of its batches.

        Returns:
            What `then` gives of each task, stacked: [T, ...].

        Raises:
            ValueError: the classifier was learned for another number of ways; labels outside 0..ways-1, or a class
                of a task without a support image (in a graph an InvalidArgumentError, when it runs).

        Example:
            >>> first_bias = lambda network, start, weights, images, labels: weights[1]
            >>> biases = head.adapt_each(backbone, 5, (support, support_labels), first_bias)
        """
        self.check()
        self.network(backbone, ways)  # refuses other ways, and builds the classifier outside of the graph
        tasks = [tasks[0], checked_support(tasks[1], ways), *tasks[2:]]
        numbers = tf.convert_to_tensor(first_task, tf.int32) + tf.range(tf.shape(tasks[0])[0])
        arguments = (numbers, *(tf.convert_to_tensor(each) for each in tasks))
        specs = [tf.TensorSpec(each.shape[1:], each.dtype) for each in arguments]
        if not tf.executing_eagerly():
            run = self._graph(weakref.ref(backbone), ways, then).get_concrete_function(*specs)
            return _each(lambda task: run(*task), arguments, run.output_dtypes)
        traced = self._compiled(backbone, ways, then).get_concrete_function(*specs)  # here, not in a thread
        # A thread each. As iterations of one loop that run side by side two small tasks take longer than in a row.
        with ThreadPoolExecutor(self.parallel_tasks) as pool:
            results = list(pool.map(traced, *(tf.unstack(each) for each in arguments)))
        return tf.nest.map_structure(lambda *each: tf.stack(each), *results)

    def network(self, backbone: keras.Model, ways: Ways) -> Network:
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
        """`inner_loop.adapt` on one task's support set [S, H, W, C], [S]; `seed`, int [2], orders its batches."""
        orders = support_batches(self.steps, self.batch_size, images, seed)
        adapted = network.adapted(self.adapted)
        return inner_loop.adapt(network, start, self.optimizer, images, labels, orders, self.steps, adapted)

    def _compiled(self, backbone: keras.Model, ways: int, then: Callable[..., Any]) -> Any:
        """One graph, a tf.function, for a backbone, a number of ways and a function, kept as long as it is right."""
        model = weakref.ref(backbone)  # the cache must not keep alive what it is keyed by
        # Every attribute counts, and those of the optimizer, but for the graphs themselves.
        settings = {**vars(self), "_graphs": None, "optimizer": (type(self.optimizer), vars(self.optimizer))}
        make = functools.partial(self._graph, model, ways, then)
        return self._graphs.get(backbone, (ways, then), make, settings, self.classifier)

    def _graph(self, model: Callable[[], keras.Model], ways: Ways, then: Callable[..., Any]) -> Any:
        @tf.function  # one trace for each size of the support set: its loop over batches needs to know it
        def run(number: tf.Tensor, support: tf.Tensor, labels: tf.Tensor, *others: tf.Tensor) -> Any:
            network = self.network(model(), ways)
            start = self.start(network)
            weights, _ = self.adapt(network, start, support, labels, tf.stack([self.seed, number]))
            return then(network, start, weights, support, labels, *others)

        return run

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


def _each(function: Callable[[Any], Any], tasks: Any, dtypes: Any) -> Any:
    """A function of one task for each of some, in a graph; stacked. One task alone needs no loop."""
    if tf.nest.flatten(tasks)[0].shape[0] == 1:
        return tf.nest.map_structure(lambda v: v[None], function(tf.nest.map_structure(lambda v: v[0], tasks)))
    return tf.map_fn(function, tasks, fn_output_signature=dtypes, parallel_iterations=1)
