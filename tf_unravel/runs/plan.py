"""What a run is made of. `config` makes a plan of a configuration; a plan reads no configuration afterwards."""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_unravel import backbones, data, heads
from tf_unravel.checks import shown
from tf_unravel.heads import SVM, AnyHead, Head, Reads, as_head, reads_of
from tf_unravel.learners import Learner
from tf_unravel.runs import registry
from tf_unravel.runs.gin_files import ConfigError, either, one_line


@dataclasses.dataclass(frozen=True)
class Validation:
    """How a run is watched while it trains, on the validation classes only.

    Args:
        every_epochs: validate after every so many epochs, and after the last; 0 for never (for data with too few
            validation classes), and then the last checkpoint is the one that counts.
        head: the head to validate with, None for the learner's own; the best checkpoint has the highest accuracy,
            averaged over `shots`.
        ways, shots, queries, num_tasks: the tasks; the same ones each time.
        projection_every: draw the LDA projection after every so many validations; 0 for never.
    """

    every_epochs: int = 1
    head: AnyHead | None = dataclasses.field(default_factory=SVM)
    ways: int = 5
    shots: Sequence[int] = (1, 5)
    queries: int = 15
    num_tasks: int = 500
    projection_every: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.shots, int):
            object.__setattr__(self, "shots", (self.shots,))
        if self.head is not None:
            as_head("Validation.head", self.head)


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What a model takes from its training data; a run records it, so that reading the run needs no training images.

    Args:
        image_shape: (H, W, C).
        num_classes: of the training split.
        normalization: (mean, std) per channel, 0-255 units.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def of(cls, split: data.ClassImages) -> "DataFacts":
        """Those of a training split."""
        return cls(split.image_shape, split.num_classes, data.normalization_of(split))


DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


# What each part of a run is in a gin file. The first are called later, so that they stand without brackets.
_CALLED = {
    "dataset": "@load",
    "backbone": either([f"@{name}" for name in (*backbones.by_name, "pretrained")]),
    "learner": either([f"@{learner.__name__}" for learner in registry.LABELS]),
    "optimizer": "@sgd, @adam or @annealed_sgd",
}
_MADE = {"batches": "@ClassPairs(), @Episodes() or @InnerBatches()", "validation": "@Validation()"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a training run is made of.

    Args:
        dataset: split name -> ClassImages.
        backbone: (input_shape, normalization) -> keras.Model.
        learner: (backbone, num_labels) -> learner.
        batches: what a training batch is (`ClassPairs`, `Episodes`, `InnerBatches`).
        optimizer: (steps_per_epoch, total_epochs) -> keras optimizer.
        epochs: how long to train.
        validation: how to watch it.
        normalization: (mean, std) per channel in 0-255 units, such as ((0, 0, 0), (255, 255, 255)) for pixels in
            0..1; None for the data's own.
        seed: of weights, batches, augmentation and dropout.
        checkpoint_minutes: save at least this often, besides after every epoch.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16"; heads and losses stay in float32.
        threads_per_op: threads that one operation may use on a CPU; 0 for all. 1 where a step works on several small
            tasks at once: they then run side by side, and no operation waits for its parts.
        heads: name -> what makes that head with the values of the configuration; not for gin files.
    """

    dataset: Callable[..., data.ClassImages]
    backbone: Callable[..., keras.Model]
    learner: Callable[..., keras.Model]
    batches: Any
    optimizer: Callable[..., keras.optimizers.Optimizer]
    epochs: int
    validation: Validation = dataclasses.field(default_factory=Validation)
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    seed: int = 0
    checkpoint_minutes: float = 10.0
    dtype: str = "float32"
    threads_per_op: int = 0
    heads: Mapping[str, Callable[[], AnyHead]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("threads_per_op", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"run.{name} must be a whole number from {least} on. Received: {value!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"run.dtype is {either(DTYPES)}. Received: {self.dtype!r}")
        right = {name: callable(getattr(self, name)) for name in _CALLED}
        right["batches"] = hasattr(self.batches, "dataset") and not isinstance(self.batches, type)
        right["validation"] = isinstance(self.validation, Validation)
        for name, named in (_CALLED | _MADE).items():
            if not right[name]:
                raise ConfigError(f"run.{name} is {named}. Received: {shown(getattr(self, name))}")

    def use_threads(self) -> None:
        """Makes `threads_per_op` count; only before TensorFlow computes anything in this process, later in vain."""
        if self.threads_per_op:
            with contextlib.suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(self.threads_per_op)

    def build(self, facts: DataFacts) -> keras.Model:
        """The learner, with weights drawn from `seed`.

        Raises:
            ConfigError: an argument that gin passes on does not fit.
        """
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype)
        keras.utils.set_random_seed(self.seed)
        try:
            backbone = self.backbone(input_shape=facts.image_shape, **self._normalization(facts))
            learner = self.learner(backbone=backbone, num_labels=self.batches.num_labels(facts.num_classes))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error
        finally:
            keras.config.set_dtype_policy(before)  # the layers know theirs; what is built next may be another run's
        _PLAN_OF[learner] = self
        return learner

    def _normalization(self, facts: DataFacts) -> dict[str, Any]:
        """What a backbone is told of the pixels; a pretrained one knows."""
        if not getattr(getattr(self.backbone, "wrapped", self.backbone), "knows_its_pixels", False):
            return {"normalization": self.normalization or facts.normalization}
        if self.normalization is not None:
            raise ValueError("run.normalization is for a backbone that is trained from scratch; what the network of a "
                             f".keras file expects is pretrained.normalization. Received: {self.normalization}")
        return {}

    def build_optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """The optimizer, its schedule in steps.

        Raises:
            ConfigError: an argument that gin passes on does not fit.
        """
        try:
            return self.optimizer(steps_per_epoch, total_epochs=self.epochs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error


OWN = "own"

_PLAN_OF: weakref.WeakKeyDictionary[keras.Model, Plan] = weakref.WeakKeyDictionary()


def heads_named(names: Sequence[str], learner: Learner, option: str = "--heads are") -> dict[str, Head]:
    """Heads by the names of `heads.by_name`, with the values that the learner's own configuration gives them.

    Args:
        names: of heads; "own" is the one that the learner trains for.
        learner: of a run, as `Plan.build` made it.
        option: what the user set, for the message.

    Raises:
        ConfigError: an unknown name, or none; a learner that no plan built.
    """
    unknown = [name for name in names if name not in (*heads.by_name, OWN)]
    if unknown or not names:
        known = ", ".join((*heads.by_name, OWN))
        raise ConfigError(f"{option} among {known}. Received: {', '.join(unknown) or 'none'}")
    plan = _PLAN_OF.get(learner)
    if plan is None:
        raise ConfigError(f"only a run's learner knows the settings of heads; make the heads themselves, such as "
                          f"heads.Ridge(l2=50.0). Received: a learner {learner.name!r} that no plan built")
    # One that came to by_name since has no values in the configuration.
    made = {name: learner.own_head() if name == OWN else plan.heads.get(name, heads.by_name[name])() for name in names}
    return {name: as_head(name, head) for name, head in made.items()}


def may_adapt(names: Sequence[str]) -> bool:
    """Whether one of these heads adapts the network itself; the learner's own may."""
    return any(name == OWN or reads_of(heads.by_name.get(name)) is Reads.IMAGES for name in names)
