"""The process that `meta_memory` measures: takes steps of MAML, writes what they took as one line of JSON."""

import json
import sys
import time
from typing import Any

import keras
import tensorflow as tf

from tf_unravel import backbones, learners
from tf_unravel.reproduction.benchmark.many_tasks_process import peak_bytes
from tf_unravel.reproduction.benchmark.meta_steps import THREADS_PER_OP, WAYS, random_episodes, step_of


def outcome(
    side: int, shots: int, queries: int, tasks: int, filters: int, steps: int, rematerialize: bool, **_others: Any
) -> dict[str, Any]:
    """Peak resident GiB of the process, and steps a second after the first."""
    backbone = backbones.conv4((side, side, 3), filters=filters, use_bias=True)
    learner = learners.MAML(backbone, WAYS, 5, 0.01, rematerialize=rematerialize)
    step = step_of(learner, keras.optimizers.Adam(1e-3), random_episodes(tasks, side, shots, queries))
    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    seconds, peak = time.perf_counter() - began, peak_bytes()
    return {"steps_per_second": steps / seconds, "peak_gib": peak and peak / 2**30}


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(THREADS_PER_OP)
    sys.stdout.write(json.dumps(outcome(**json.loads(sys.argv[1]))) + "\n")
