"""Trains a learner on one device and on several, and prints how far their weights are apart, as JSON.

    python -m tests.learners.replicas <number of CPU devices> <learner>

A process of its own: the devices of TensorFlow are fixed when it starts.
"""

import functools
import json
import sys

import keras
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import small_network
from tf_unravel import backbones, data, heads, learners, regularizers
from tf_unravel.learners.gradient_share import gradient_norms, regularizer_gradient_share
from tf_unravel.runs import Devices


def learner_and_batches(name: str):
    """A small learner and what makes its batches of 4 tasks or 16 images."""
    keras.utils.set_random_seed(0)
    split, network = make_split(num_classes=8), small_network()
    dropping = backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0)
    pairs = lambda: data.class_pairs(split, 16)  # noqa: E731
    tasks = lambda: data.episodes(split, 5, 2, 3, tasks_per_batch=4)  # noqa: E731
    inner = lambda: data.inner_batches(split, 5, 5, 3, 4, 4)  # noqa: E731
    makers = {
        "feature_clustering": lambda: (learners.Classical(network, 8, regularizers.FeatureClustering(0.1)), pairs),
        "pairs": lambda: (learners.Classical(network, 8, regularizers.FeatureClustering(0.1, pairs=True)), pairs),
        "hyperplane_variation": lambda: (learners.Classical(network, 8, regularizers.HyperplaneVariation(0.1)), pairs),
        "episodic": lambda: (learners.Episodic(network, heads.SVM(), weight_decay=5e-4), tasks),
        "episodic_two_passes": lambda: (learners.Episodic(network, heads.Ridge(), passes=2), tasks),
        "maml": lambda: (learners.MAML(network, 5, 2, 0.1), tasks),
        "first_order_maml": lambda: (learners.MAML(network, 5, 2, 0.1, first_order=True, learn_rates=True), tasks),
        "reptile": lambda: (learners.Reptile(network, 5, 3, 4, heads.SGD(0.1)), inner),
        "weight_clustering": lambda: (learners.Reptile(network, 5, 3, 4, heads.Adam(0.05), 5.0), inner),
        "classical_with_dropout": lambda: (learners.Classical(dropping, 8), pairs),
        "episodic_with_dropout": lambda: (learners.Episodic(dropping, heads.Ridge()), tasks),
        "maml_with_dropout": lambda: (learners.MAML(dropping, 5, 2, 0.01, first_order=True), tasks),
        "reptile_with_dropout": lambda: (learners.Reptile(dropping, 5, 3, 4), inner),
    }  # fmt: skip
    return makers[name]()


def trained(name: str, strategy: str, steps: int = 3) -> tuple[list, float, dict]:
    """Variables after some steps, how far the furthest trainable one moved, and the last values reported."""
    devices = Devices(strategy)
    with devices.scope():
        learner, batches = learner_and_batches(name)
        learner.compile(optimizer=learners.adam(1, 0.01, clip_value=0.05) if "maml" in name else learners.sgd(1, 0.05))
        learner.optimizer.build(learner.trainable_variables)
    start = [variable.numpy() for variable in learner.trainable_variables]
    step, iterator = devices.step(learner), devices.batches(batches)
    for _ in range(steps):
        values, _ = step(next(iterator), False)
    if isinstance(learner, learners.Classical):
        norms = devices.mean(functools.partial(gradient_norms, learner))(next(iterator))
        values |= {"share": regularizer_gradient_share([norms])}
    metrics = {id(variable) for metric in learner.metrics for variable in metric.variables}
    kept = [variable.numpy() for variable in learner.variables if id(variable) not in metrics]
    moved = max(float(abs(a - b.numpy()).max()) for a, b in zip(start, learner.trainable_variables, strict=True))
    return kept, moved, {key: float(value) for key, value in values.items()}


def main(devices: int, name: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    one, moved, reported = trained(name, "one")
    many, _, reported_by_many = trained(name, "mirrored")
    # Relative to the size of each variable: second moments are tiny, BatchNorm's statistics large.
    distance = max(float(abs(a - b).max() / (abs(a).max() + 1e-6)) for a, b in zip(one, many, strict=True))
    print(json.dumps({"distance": distance, "moved": moved, "one": reported, "many": reported_by_many}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
