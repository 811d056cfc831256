"""Reptile's batches: tasks whose images come in the order in which an inner loop sees them.

Images and their order are functions of (seed, task) alone, like all that is drawn here (`drawing.py`).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.drawing import INNER_STREAM, check_counts, in_order, permutations, take
from tf_unravel.data.sampling import TaskSampler


def inner_batches(
    split: ClassImages,
    ways: int = 5,
    shots: int = 15,
    steps: int = 8,
    batch: int = 10,
    tasks: int = 5,
    seed: int = 0,
    first_step: int = 0,
    num_steps: int | None = None,
) -> tf.data.Dataset:
    """Returns Reptile's batches: for each task of a meta-step, the inner batch of every inner step.

    A task has `ways` classes and `shots` images of each; its inner batches are drawn from these without replacement,
    one random order after the other, a batch crossing from one to the next. Task t is a function of (seed, t).

    Args:
        split: the images.
        ways: classes per task.
        shots: images per class (the original's --train-shots: 15).
        steps: inner steps k.
        batch: images per inner step B.
        tasks: tasks per meta-step.
        seed: any non-negative integer.
        first_step: the meta-step to start with.
        num_steps: how many meta-steps; without end by default.

    Returns:
        Dataset of (images uint8 [tasks, steps, batch, H, W, C], labels int32 [tasks, steps, batch]).

    Raises:
        ValueError: tasks that the split cannot give, or a count below its minimum.

    Example:
        >>> images, labels = next(iter(inner_batches(split, shots=15, steps=8, batch=10, tasks=5)))
    """
    check_counts(first_step=first_step, num_steps=num_steps)
    if min(steps, batch, tasks) < 1:
        raise ValueError(f"Counts must be at least 1. Received: steps={steps}, batch={batch}, tasks={tasks}.")
    queries = 1  # a sampler draws some; they are not used
    sampler = TaskSampler(split, ways, shots, queries, seed)
    labels, draws = sampler.labels[0], steps * batch

    def gather(step):
        first = int(step) * tasks
        support, _ = sampler.indices(first, tasks)  # [T, S]
        orders = np.stack([_orders(seed, first + task, draws, ways * shots) for task in range(tasks)])  # [T, k B]
        orders = orders.reshape(tasks, steps, batch)
        chosen = np.take_along_axis(support, orders.reshape(tasks, -1), axis=1).reshape(orders.shape)  # [T, k, B]
        return take(split.images, chosen), labels[orders]

    def load(step):
        images, known = tf.numpy_function(gather, [step], [tf.uint8, tf.int32])
        shape = (tasks, steps, batch)
        return tf.ensure_shape(images, (*shape, *split.image_shape)), tf.ensure_shape(known, shape)

    return in_order(load, first_step, num_steps)


def _orders(seed: int, task: int, draws: int, size: int) -> np.ndarray:
    """Returns `draws` positions in range(size): random orders one after the other, of task number `task`."""
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(INNER_STREAM, task)))
    return permutations(words, -(-draws // size), size).reshape(-1)[:draws]
