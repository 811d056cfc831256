"""What MAML and Reptile share: a last layer that is meta-learned too, and a head that adapts as the training does."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import QueryNorm, protocol_named
from tf_unravel.adaptation.fine_tune import FineTune
from tf_unravel.adaptation.groups import flat, member, refuse_unknown
from tf_unravel.adaptation.inner_optimizers import InnerOptimizer, Moments
from tf_unravel.adaptation.network import Network
from tf_unravel.backbones.checks import check_unregularized
from tf_unravel.backbones.modes import synchronize
from tf_unravel.checks import refuse_below
from tf_unravel.learners.learner import Learner
from tf_unravel.machine import num_cores

_KERAS = tuple(inspect.signature(keras.layers.Layer.__init__).parameters)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How `own_head` adapts.

    Args:
        steps: of the inner loop, alone `evaluation_steps`; None for those of training.
        batch: support images a step, or all where there are fewer, alone `evaluation_batch`; None for all.
        batchnorm: how queries are normalised, see `heads.FineTune`.
    """

    steps: int | None = member(None, "evaluation_steps")
    batch: int | None = member(None, "evaluation_batch")
    batchnorm: str | QueryNorm = "transductive"


class Adapting(Learner):
    """A learner whose tasks adapt the network; its arguments are those of MAML and Reptile.

    Attributes:
        network: backbone and classifier as one function.
        adapted: what the inner loop changes, a name in `adaptation.network.ADAPTED`.
        adapts: the same, one bool a weight.

    Raises:
        TypeError: an unknown argument.
        ValueError: a count below its minimum, an unknown BatchNorm protocol.
    """

    adapted: str = "all"
    groups: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, backbone: keras.Model, ways: int, inner_steps: int, evaluation: Evaluation, sum_over_batch: bool,
        parallel_tasks: int | None = None, **kwargs: Any,
    ):
        name = type(self).__name__
        refuse_unknown(type(self), kwargs, (*_KERAS, "weight_decay"))
        super().__init__(backbone, **kwargs)
        check_unregularized(name, backbone)
        refuse_below(2, name, ways=ways)
        refuse_below(0, name, inner_steps=inner_steps, evaluation_steps=evaluation.steps)
        refuse_below(1, name, evaluation_batch=evaluation.batch, parallel_tasks=parallel_tasks)
        protocol_named(f"{name}.batchnorm", evaluation.batchnorm)
        self.ways, self.inner_steps, self.evaluation = ways, inner_steps, evaluation
        self.sum_over_batch, self.parallel_tasks = sum_over_batch, parallel_tasks
        self.classifier = keras.layers.Dense(ways, dtype=self.head_dtype, name="classifier")
        self.classifier.build((None, self.feature_size))
        synchronize(backbone, False)  # each task is normalised by itself, wherever it runs
        self.network = Network(backbone, ways, self.classifier, sum_over_batch)
        self.adapts = self.network.adapted(self.adapted)
        self.head: FineTune | None = None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits [B, ways] before any adaptation."""
        return self.classifier(self.backbone(images, training=training))

    def over_tasks(self, function: Callable[..., Any], tasks: Any, like: Any) -> Any:
        """A function of one task for each, `parallel_tasks` of them at once; its results are `like` these tensors."""
        specs = tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), like)
        together = self.parallel_tasks or num_cores()
        return tf.map_fn(function, tasks, fn_output_signature=specs, parallel_iterations=together)

    @property
    def moments(self) -> Moments:
        """What the inner optimizer remembers when a task begins."""
        raise NotImplementedError

    def evaluation_optimizer(self) -> InnerOptimizer:
        """The inner optimizer of `own_head`."""
        raise NotImplementedError

    def own_head(self) -> FineTune:
        """The head that adapts as the inner loop does, from the learned classifier as it is when it is used."""
        if self.head is None:
            self.head = FineTune(
                self.inner_steps if self.evaluation.steps is None else self.evaluation.steps,
                optimizer=self.evaluation_optimizer(),
                adapted=self.adapted,
                batch_size=self.evaluation.batch,
                batchnorm=self.evaluation.batchnorm,
                classifier=self.classifier,
                moments=lambda: self.moments,
                sum_over_batch=self.sum_over_batch,
            )
        return self.head

    def get_config(self) -> dict[str, Any]:
        protocol = protocol_named("batchnorm", self.evaluation.batchnorm).name
        return {**super().get_config(), "ways": self.ways, "inner_steps": self.inner_steps,
                **flat(self.evaluation), "batchnorm": protocol, "parallel_tasks": self.parallel_tasks}
