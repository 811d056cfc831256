"""The training loop: one for every learner.

    plan, folder -> data -> learner -> [batch -> step -> log -> validate -> checkpoint] -> results.json

Batches depend on (seed, step) alone and a checkpoint holds every variable, so a run that was killed at any moment and
started again by the same command ends with the same weights, bit for bit on a CPU.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import analysis, data, evaluation
from tf_unravel.files import write_text
from tf_unravel.heads import Head, Reads, as_head
from tf_unravel.learners import Classical, Learner
from tf_unravel.learners.gradient_share import gradient_norms, regularizer_gradient_share
from tf_unravel.runs import config
from tf_unravel.runs.checkpoints import averaged
from tf_unravel.runs.devices import Devices
from tf_unravel.runs.figures import projection, projection_figure
from tf_unravel.runs.folder import RunFolder
from tf_unravel.runs.logs import Logs, progress_bar

_LOG_EVERY = 50
_INSPECTED = 4  # training batches that a validation looks at


class TrainingDiverged(ArithmeticError):
    """The loss is no longer finite; the message names the step and the last good checkpoint."""


@dataclasses.dataclass
class Stopped:
    """Set by SIGINT or SIGTERM; the loop looks at it after every step."""

    signal: int | None = None


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[Stopped]:
    stopped = Stopped()

    def ask(number: int, _: Any) -> None:
        stopped.signal = number
        signal.signal(number, before[number])  # a second one does not wait

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class Outcome:
    """How a training ended; str() says it to a person.

    Args:
        folder: the run's.
        progress: how far it came.
        total: steps it was to take.
        stopped_by: the number of the signal that stopped it, or None.
    """

    folder: RunFolder
    progress: "Progress"
    total: int
    stopped_by: int | None

    def __str__(self) -> str:
        progress = self.progress
        if progress.step < self.total:
            return f"stopped after step {progress.step} of {self.total}; the same command goes on from there"
        accuracy = f"{100 * progress.best:.2f} % (mean over its shots)"
        best = f"; best validation accuracy {accuracy} at step {progress.best_step}, BatchNorm {progress.protocol}"
        return (
            f"{self.folder.path}: {self.total} steps in {progress.seconds:.0f} s"
            f"{best if progress.validations else ''}"
        )


@dataclasses.dataclass
class Progress:
    """What a checkpoint knows besides the variables."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = 0
    protocol: str = ""
    validations: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def validated(self) -> bool:
        """Whether the last validation is that of this step."""
        return bool(self.validations) and self.validations[-1]["step"] == self.step


def train(
    plan: config.Plan, folder: RunFolder, configuration: config.Configuration,
    devices: Devices | None = None,
) -> Outcome:
    """Trains, or goes on training, the run of a folder.

    Args:
        plan: what to train.
        folder: where; a folder that holds the same configuration is resumed, on as many devices as are given now.
        configuration: that the plan is of.
        devices: on which; None for one.

    Returns:
        How far it came, and which signal stopped it if one did.

    Raises:
        ConfigError: the folder holds another run, or the data changed since.
        TrainingDiverged: the loss is not finite.
    """
    with folder.claimed():
        folder.check_config(configuration)
        watched = plan.validation.every_epochs > 0
        splits = {name: plan.dataset(split=name) for name in (("train", "val") if watched else ("train",))}
        _check_training(splits["train"])
        if watched:
            _check_validation(plan.validation, splits["val"])
        folder.check_data(splits)
        facts = config.DataFacts.of(splits["train"])
        steps_per_epoch = plan.batches.steps_per_epoch(splits["train"])
        devices = devices or Devices()
        with devices.scope():
            learner = plan.build(facts)
            learner.compile(optimizer=plan.build_optimizer(steps_per_epoch))
            learner.optimizer.build(learner.trainable_variables)
        batches = plan.batches.dataset(splits["train"], plan.seed)
        devices.check_batches(batches)
        learner.check_batch(batches.element_spec)
        if watched:
            _validated_by(plan.validation, learner).check_ways(plan.validation.ways)  # before the first step too
        saved = folder.checkpoints.restore_latest(learner)
        progress = Progress(**saved) if saved else Progress()
        devices.check_agreement(progress.step)
        # Only now: a command that failed above has left nothing that would refuse the corrected one.
        write_text(folder.config, configuration.text)
        folder.record_start(splits, facts, plan.seed, progress.step, configuration.root)
        with Logs(folder, progress.step, progress.validated) as logs:
            logs.text("config.gin", configuration.text)
            write_text(folder.operative_config, configuration.operative())
            loop = _Loop(plan, folder, learner, devices, splits, steps_per_epoch, progress, logs)
            try:
                stopped_by = loop.run()
            except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
                reason = str(error.message).splitlines()[0]
                raise ConnectionError(
                    f"another machine of the job was lost at step {progress.step} ({reason}); "
                    "start the job again, it goes on from the last checkpoint"
                ) from error
        return Outcome(folder, progress, loop.total, stopped_by)


def _check_training(split: data.ClassImages) -> None:
    if split.num_classes < 2:
        why = "a folder without train, val and test in it is split at random by class, by load.fractions"
        raise config.ConfigError(f"one class gives nothing to tell apart: {split.name} has {split.class_names[0]!r} "
                                 f"alone ({why}); add classes")


def _check_validation(watch: config.Validation, split: data.ClassImages) -> None:
    """Tasks that the validation classes cannot give are refused before the first step, not after the first epoch."""
    try:
        for shots in watch.shots:
            data.TaskSampler(split, watch.ways, shots, watch.queries)
    except ValueError as error:
        ask = "set Validation.ways, Validation.shots and Validation.queries, or Validation.every_epochs = 0 for none"
        raise config.ConfigError(f"validation during training: {error} To go on, {ask}") from error


def _validated_by(watch: config.Validation, learner: Learner) -> Head:
    return learner.own_head() if watch.head is None else as_head("Validation.head", watch.head)


class _Loop:
    """The state of a running training, so that its parts can be read one at a time."""

    def __init__(self, plan: config.Plan, folder: RunFolder, learner: keras.Model, devices: Devices,
                 splits: dict[str, data.ClassImages], steps_per_epoch: int, progress: Progress, logs: Logs):
        self.plan, self.folder, self.learner, self.devices, self.splits = plan, folder, learner, devices, splits
        self.steps_per_epoch, self.progress, self.logs = steps_per_epoch, progress, logs
        self.total = plan.epochs * steps_per_epoch
        self.saved_at = time.monotonic()
        self._inspect: Callable[[Any], dict[str, tf.Tensor]] | None = None
        self.logged = 0, self.saved_at  # the last step of this start that was logged, and when

    def run(self) -> int | None:
        progress, began, before = self.progress, time.monotonic(), self.progress.seconds
        batches = self._batches()
        step_function = self.devices.step(self.learner)
        with _stop_on_signals() as stopped, progress_bar(progress.step, self.total) as bar:
            bar.write(self._begins(), file=sys.stderr)
            if self._validation_is_due():  # the start before this one did not get to it
                self._end_epoch()
            if progress.step < self.total:
                bar.write("compiling the first step", file=sys.stderr)
            stop = False
            while progress.step < self.total and not stop:
                values, stop = step_function(next(batches), stopped.signal is not None)
                progress.step += 1
                progress.seconds = before + time.monotonic() - began
                bar.update()
                self._log(values, bar)
                if progress.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                    self.logged = progress.step, time.monotonic()  # validation is not training speed
                elif time.monotonic() - self.saved_at > 60 * self.plan.checkpoint_minutes:
                    self._save()
                # One machine stops at once; several have to hear of it with the values of a step.
                stop = stop or (self.devices.alone and stopped.signal is not None)
            if stop:
                self._save()
        results = {**dataclasses.asdict(progress), "total_steps": self.total, "epochs": self.plan.epochs}
        self.folder.update_results("training", results)
        return (stopped.signal or signal.SIGTERM) if progress.step < self.total else None

    def _begins(self) -> str:
        """What is trained on, and from where."""
        sizes = "; ".join(
            f"{name}: {len(split.images):,} images of {split.num_classes} classes"
            for name, split in self.splits.items()
        )
        start = f"going on from step {self.progress.step}" if self.progress.step else "from the start"
        precision = "" if self.plan.dtype == "float32" else f"; {self.plan.dtype}"
        return f"{sizes}{self._put_aside()}{precision}{self.devices.shared_by}; {start}"

    def _put_aside(self) -> str:
        """How many of a folder's classes the run does not see."""
        parts = self.splits["train"].random_split
        if not parts:
            return ""
        classes = len(parts.get("test", ()))
        few = "" if classes > 1 else ", and a test takes two at least"
        return f"; put aside for testing: {classes} class{'es' if classes != 1 else ''}{few}"

    def _log(self, values: dict[str, tf.Tensor], bar: Any) -> None:
        step, loss = self.progress.step, float(values["loss"])
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}")
        first = self.logged[0] == 0
        if step % _LOG_EVERY and step % self.steps_per_epoch and not first:
            return
        scalars = {f"train/{name}": float(value) for name, value in values.items()}
        last_step, last_time = self.logged
        self.logged = step, time.monotonic()
        if step > last_step > 0:  # the first step of a start is mostly tracing
            images = (step - last_step) * self.plan.batches.batch_size / (self.logged[1] - last_time)
            scalars["train/images_per_second"] = images
            bar.set_postfix_str(f"{images:.0f} images/s, loss {loss:.3f}", refresh=False)
        scalars["train/learning_rate"] = float(keras.ops.convert_to_numpy(self.learner.optimizer.learning_rate))
        self.logs.scalars(step, scalars)
        for metric in self.learner.metrics:
            metric.reset_state()

    def _diverged(self, what: str) -> None:
        newest = self.folder.checkpoints.newest_first()
        last = f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint yet"
        advice = f"lower {self.learner.may_diverge_by}, or look at the data"
        raise TrainingDiverged(f"{what} at step {self.progress.step}; {last}; {advice}")

    def _check_weights(self) -> None:
        """A finite loss may still have been followed by an update that is not; nothing may be built on that."""
        for variable in self.learner.variables:
            values = keras.ops.convert_to_numpy(variable)
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                self._diverged(f"{variable.path} is not finite")

    def _end_epoch(self) -> None:
        self._save()  # before the validation, which may take long
        if self._validation_is_due():
            self._validate(self.progress.step // self.steps_per_epoch)
            self._save()

    def _validation_is_due(self) -> bool:
        """Whether this step ends an epoch that is to be validated and was not."""
        progress, every = self.progress, self.plan.validation.every_epochs
        if not every or not progress.step or progress.step % self.steps_per_epoch:
            return False
        due = progress.step // self.steps_per_epoch % every == 0 or progress.step == self.total
        return due and not progress.validated

    def _save(self) -> None:
        self._check_weights()
        self.folder.checkpoints.save(self.learner, dataclasses.asdict(self.progress))
        self.saved_at = time.monotonic()

    def _validate(self, epoch: int) -> None:
        progress, watch, split = self.progress, self.plan.validation, self.splits["val"]
        head = _validated_by(watch, self.learner)
        adapts = head.reads is Reads.IMAGES
        with averaged(self.learner):  # the weights that checkpoints hold
            features = evaluation.extract_features(self.learner.backbone, split.images)
            table = evaluation.evaluate_heads(
                self.learner.backbone if adapts else features, {"head": head}, split, ways=watch.ways,
                shots=watch.shots, queries=watch.queries, num_tasks=watch.num_tasks, seed=self.plan.seed,
            )
        accuracies = {shots: accuracy.mean for shots, accuracy in table["head"].items()}
        progress.protocol = next(iter(table["head"].values())).protocol
        separation = analysis.class_separation(features, split.class_ids, num_pairs=2000)
        scalars = {f"val/{shots}-shot": mean for shots, mean in accuracies.items()}
        scalars |= {"val/r_fc": separation.r_fc, "val/r_hv": separation.r_hv,
                    "val/variance_ratio": separation.variance_ratio, **self._inspected()}
        self.logs.scalars(progress.step, scalars)
        progress.validations.append({"epoch": epoch, "step": progress.step, **scalars})
        if watch.projection_every and (len(progress.validations) - 1) % watch.projection_every == 0:
            projected = projection(features, split)
            if projected is not None:
                figure = projection_figure({self.folder.name: projected}, split.class_names)
                self.logs.figure("val/lda", figure, progress.step)
        mean = float(np.mean(list(accuracies.values())))
        if mean > progress.best:
            progress.best, progress.best_step = mean, progress.step
            self.folder.checkpoints.save_best(self.learner, dataclasses.asdict(progress))

    def _inspected(self) -> dict[str, float]:
        """How far training has come on the next few training batches, and how hard the regularizer pulls there."""
        if not isinstance(self.learner, Classical):
            return {}
        if self._inspect is None:
            self._inspect = self.devices.mean(functools.partial(gradient_norms, self.learner))
        batches = self._batches()
        norms = [self._inspect(next(batches)) for _ in range(_INSPECTED)]
        scalars = {f"at_validation/train_{name}": float(np.mean([each[name] for each in norms]))
                   for name in ("accuracy", "cross_entropy")}
        if self.learner.regularizer is not None:
            scalars["at_validation/regularizer_gradient_share"] = regularizer_gradient_share(norms)
        return scalars

    def _batches(self) -> Iterator[Any]:
        """The training batches from the present step on."""
        first = self.progress.step
        return self.devices.batches(lambda: self.plan.batches.dataset(self.splits["train"], self.plan.seed, first))
