"""What R_FC and R_HV add to a training step.

Learners that differ in the regularizer alone take steps in turns. A hundredth of a step is less than a step varies
from one to the next, hence many short rounds, the 95 % interval of the median in the table's note, and a second figure
that hardly varies: the regularizer and its gradient alone, on features of the same shape, beside the bare step.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_unravel import regularizers
from tf_unravel.reproduction.benchmark.classical_step import Network, networks, step_function
from tf_unravel.reproduction.benchmark.classical_step import Sizes as StepSizes
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.timing import Work, interleaved, ratios, summary


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        step: networks, images and batch; `conv4_steps` and `r2d2_steps` are the steps in one of the short rounds.
        rounds: of interleaved repeats.
        calls: of the regularizer alone in one round.
    """

    step: StepSizes = StepSizes(conv4_steps=3, r2d2_steps=1)
    rounds: int = 41
    calls: int = 10


FULL = Sizes()
QUICK = Sizes(StepSizes(image_size=16, batch_size=8, conv4_filters=4, conv4_steps=1, names=("conv4",)), 3, 2)

REGULARIZERS = {
    "R_FC": regularizers.FeatureClustering(0.05),
    "R_FC by pairs": regularizers.FeatureClustering(0.05, pairs=True),
    "R_HV": regularizers.HyperplaneVariation(0.05),
}


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """The step with every regularizer against the step without, and every regularizer alone against that step."""
    for network in networks(sizes.step):
        rates = interleaved(_works(sizes, network), sizes.rounds)
        times = {name: tuple(1e3 / rate for rate in values) for name, values in rates.items()}  # ms
        for name in REGULARIZERS:
            low, high = (100 * (value - 1) for value in summary(ratios(times[name], times["none"])).interval)
            note = f"{network.name}, {name}: 95 % interval of the median {low:+.1f} % to {high:+.1f} %."
            yield Measurement(f"step with {name}, {network.name}", "ms", times[name], times["none"],
                              "without", Target(1.01, at_least=False), note)
            yield Measurement(f"{name} alone, forward and backward, {network.name}", "ms", times[f"{name} alone"],
                              times["none"], "step without")


def _works(sizes: Sizes, network: Network) -> dict[str, Work]:
    step, rng = sizes.step, np.random.default_rng(0)
    num_classes, pixels = step.batch_size // 2, (step.batch_size, step.image_size, step.image_size, 3)
    class_ids = tf.constant(np.repeat(np.arange(num_classes), 2), tf.int32)
    batch = (tf.constant(rng.integers(0, 256, pixels, np.uint8)), class_ids)
    works = {"none": _steps(step_function(network.build(), num_classes), batch, network.steps)}
    for name, regularizer in REGULARIZERS.items():
        backbone = network.build()
        works[name] = _steps(step_function(backbone, num_classes, regularizer), batch, network.steps)
        features = tf.constant(rng.standard_normal((step.batch_size, backbone.output_shape[1]), np.float32))
        works[f"{name} alone"] = _alone(regularizer, features, class_ids, sizes.calls)
    return works


def _steps(step: Callable[[Any], float], batch: Any, count: int) -> Work:
    return Work(lambda: [step(batch) for _ in range(count)], count)


def _alone(regularizer: Any, features: tf.Tensor, class_ids: tf.Tensor, count: int) -> Work:
    @tf.function
    def gradient(features: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            penalty = regularizer(features, class_ids)
        return tape.gradient(penalty, features)

    return Work(lambda: [gradient(features).numpy() for _ in range(count)], count)
