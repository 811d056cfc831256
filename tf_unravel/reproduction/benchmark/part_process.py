"""A part of the benchmark in a process of its own: `part_process MODULE THREADS_PER_OP SIZES`.

Writes a line of JSON for each measurement.
"""

import dataclasses
import importlib
import json
import sys

import tensorflow as tf

if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[2]))
    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced again and again: many variants are tried
    part = importlib.import_module(sys.argv[1])
    for measurement in part.measure(getattr(part, sys.argv[3])):
        sys.stdout.write(json.dumps(dataclasses.asdict(measurement)) + "\n")
        sys.stdout.flush()
