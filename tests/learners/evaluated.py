"""Prints what two learners report on one device and on two, in batches whose last one is short, as JSON.

    python -m tests.learners.evaluated

A process of its own: the devices of TensorFlow are fixed when it starts.
"""

import json

import tensorflow as tf


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from tests.learners.test_one_accuracy import LEARNERS, in_batches, maml, tiny
    from tf_unravel import learners
    from tf_unravel.runs import Devices

    found = {}
    makers = {"classical": lambda: learners.Classical(tiny(), 6), "maml": lambda: maml(inner_steps=1)}
    for name, make in makers.items():
        examples = LEARNERS[name][1]()
        found[name] = []
        for strategy, size in ("one", 100), ("mirrored", 6):
            with Devices(strategy).scope():
                learner = make()
                learner.compile(optimizer="sgd")
            found[name].append(learner.evaluate(in_batches(examples, size), verbose=0, return_dict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
