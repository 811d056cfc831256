"""Where a training runs: one device, several replicas of one machine, or several machines.

One training loop serves all three. A global batch is a function of (seed, step), whatever the number of replicas:
replica r takes the r-th of R equal parts of its leading axis (images, or tasks). With what learners and layers do
about means, BatchNorm and dropout, R replicas do what one device does, within rounding. The machines of a job must
see one run folder.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.runs.config import ConfigError

STRATEGIES = ("one", "mirrored", "multi_worker")
_STOP = "wants to stop"  # beside the values that a learner reports


class Devices:
    """The devices of a training.

    Args:
        name: "one" for the default device; "mirrored" for all GPUs of this machine (or the CPU devices, where
            several were made); "multi_worker" for the machines that the environment variable TF_CONFIG lists, this
            process being one of them.

    Attributes:
        name: as given.
        strategy: TensorFlow's.
        worker: this process's place among the machines, 0 for the first or only one.
        alone: whether there is one machine.

    Raises:
        ConfigError: an unknown name, or "multi_worker" without a TF_CONFIG.
    """

    def __init__(self, name: str = "one"):
        if name not in STRATEGIES:
            raise ConfigError(f"--strategy is one of {', '.join(STRATEGIES)}. Received: {name!r}")
        self.name = name
        self.worker, self.alone = 0, name != "multi_worker"
        if name == "one":
            self.strategy = tf.distribute.get_strategy()
        elif name == "mirrored":
            kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
            # On CPU devices TensorFlow's collectives abort when one process trains twice (instance keys clash).
            reduction = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
            devices = [device.name for device in tf.config.list_logical_devices(kind)]
            self.strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)
        else:
            self.worker = _task_index()
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @property
    def replicas(self) -> int:
        """R, over all machines."""
        return self.strategy.num_replicas_in_sync

    @property
    def shared_by(self) -> str:
        """How many replicas share a batch, as a clause after others; "" where no strategy was asked for."""
        if self.name == "one":
            return ""
        return "; 1 replica: nothing is shared out" if self.replicas == 1 else f"; {self.replicas} replicas"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """What is built inside has its variables on every replica."""
        return self.strategy.scope()

    def check_batches(self, dataset: tf.data.Dataset) -> None:
        """Raises ConfigError for batches whose leading axis cannot be shared out equally."""
        total = _leading(dataset)
        if total % self.replicas:
            raise ConfigError(
                f"a batch must be shared out equally: make it a multiple of {self.replicas} replicas. "
                f"Received: {total} images or tasks in a batch"
            )

    def batches(self, dataset: Callable[[], tf.data.Dataset]) -> Iterator[Any]:
        """The global batches of a dataset, each replica's part at its replica.

        Args:
            dataset: makes the dataset of global batches, with a known leading axis.
        """
        if self.replicas == 1:
            return iter(dataset())
        return iter(self.strategy.distribute_datasets_from_function(lambda context: self._parts(dataset(), context)))

    def _parts(self, batches: tf.data.Dataset, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """The parts of this machine's replicas, one after the other."""
        here = self.replicas // context.num_input_pipelines
        first, sizes = here * context.input_pipeline_id, (self.replicas, _leading(batches) // self.replicas)

        def parts(values: tf.Tensor) -> tf.Tensor:
            split = tf.reshape(values, tf.concat([sizes, tf.shape(values)[1:]], axis=0))  # [R, B / R, ...]
            return tf.ensure_shape(split, (*sizes, *values.shape[1:]))[first : first + here]

        def shared_out(*batch: Any) -> Any:
            whole = batch[0] if len(batch) == 1 else batch  # tf.data unpacks tuples, and leaves named tuples whole
            return tf.nest.map_structure(parts, whole)

        return batches.map(shared_out).unbatch().prefetch(2 * here)

    def step(self, learner: keras.Model) -> Callable[[Any, bool], tuple[dict[str, tf.Tensor], bool]]:
        """A step on every replica: (batch, whether this machine wants to stop) -> (values, stop).

        It is one graph for each shape of a batch. Values are means over replicas. Machines stop together: when one
        wants to, all are told after the same step.
        """
        if self.replicas == 1:
            train_step = tf.function(lambda batch: learner.train_step(batch))
            return lambda batch, stop: (train_step(batch), stop)

        # The identity makes a value of every replica out of one tensor: what is not cannot be added up.
        both = self.mean(lambda given: {**learner.train_step(given[0]), _STOP: tf.identity(given[1])})

        def step(batch: Any, stop: bool) -> tuple[dict[str, tf.Tensor], bool]:
            values = both((batch, tf.constant(float(stop))))
            return values, float(values.pop(_STOP)) > 0

        return step

    def mean(self, function: Callable[[Any], dict[str, tf.Tensor]]) -> Callable[[Any], dict[str, tf.Tensor]]:
        """What a function of a batch gives on each replica, averaged over them: one graph for each shape of a batch."""
        if self.replicas == 1:
            return tf.function(function)

        @tf.function
        def mean(batch: Any) -> dict[str, tf.Tensor]:
            values = self.strategy.run(function, (batch,))
            return {name: self.strategy.reduce("MEAN", value, axis=None) for name, value in values.items()}

        return mean

    def check_agreement(self, step: int) -> None:
        """Raises ConfigError where machines have restored different checkpoints."""
        if self.replicas == 1:
            return

        moments = self.mean(lambda value: {"first": tf.identity(value), "second": value * value})
        first, second = (float(each) for each in moments(tf.constant(float(step), tf.float64)).values())
        if first * first != second:
            raise ConfigError(
                "the machines of this job have restored different checkpoints: they must see one run folder. "
                f"Received: step {step} here, another elsewhere"
            )


def _leading(dataset: tf.data.Dataset) -> int:
    """Images or tasks in a batch."""
    return tf.nest.flatten(dataset.element_spec)[0].shape[0]


def _task_index() -> int:
    """This process's place among the machines, the chief first where there is one."""
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        kind, index = config["task"]["type"], int(config["task"]["index"])
        return index if kind == "chief" else index + len(config["cluster"].get("chief", ()))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            "--strategy multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}. '
            f"Received: {os.environ.get('TF_CONFIG')!r}"
        ) from error
