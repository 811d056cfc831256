"""Batches of tasks for single methods: Reptile's inner batches, R2-D2's episodes of ever other numbers of shots.

Images and their order are functions of (seed, task) alone, like all that is drawn here (`random_draws.py`).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_unravel.checks import refuse_below
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.random_draws import INNER_STREAM, SHOTS_STREAM, in_order, permutations, take, words_of
from tf_unravel.data.sampling.tasks import Episode, TaskSampler, episode_specs, load_tasks


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
    refuse_below(0, "inner_batches", first_step=first_step, num_steps=num_steps)
    refuse_below(1, "inner_batches", steps=steps, batch=batch, tasks=tasks)
    sampler = TaskSampler(split, ways, shots, queries=0, seed=seed, fewest_queries=0)
    labels, draws, size = sampler.labels[0], steps * batch, ways * shots

    def inner(step: int) -> tuple[np.ndarray, np.ndarray]:
        support, _ = sampler.indices(step * tasks, tasks)  # [T, S]
        words = (words_of(seed, INNER_STREAM, step * tasks + task) for task in range(tasks))
        # Random orders of a task's images, one after the other
        orders = np.stack([permutations(each, -(-draws // size), size).reshape(-1)[:draws] for each in words])
        chosen = np.take_along_axis(support, orders, axis=1)  # [T, k B]
        return take(split.images, chosen.reshape(shape)), labels[orders.reshape(shape)]

    shape = (tasks, steps, batch)
    specs = (tf.TensorSpec((*shape, *split.image_shape), tf.uint8), tf.TensorSpec(shape, tf.int32))
    return in_order(inner, specs, first_step, num_steps)


def episodes_of_varied_shots(
    split: ClassImages,
    ways: int,
    fewest: int,
    most: int,
    images_per_class: int,
    tasks: int = 1,
    seed: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Returns batches of episodes, each batch of another number of shots, as R2-D2 was trained.

    The shots of a batch are drawn uniformly; what is left of the images of a class are its queries, so that every
    batch is of the same size. Batch b is a function of (seed, b).

    Args:
        split: the images.
        ways: classes per task.
        fewest: shots are drawn from fewest..most.
        most: included.
        images_per_class: shots and queries together; above `most`.
        tasks: tasks per batch.
        seed: any non-negative integer.
        first_step: the batch to start with.

    Returns:
        Endless Dataset of Episode with a leading axis of tasks; the number of examples is known only when drawn.

    Raises:
        ValueError: tasks that the split cannot give, or no number of shots or queries left.
    """
    refuse_below(0, "episodes_of_varied_shots", first_step=first_step)
    if not 1 <= fewest <= most < images_per_class:
        raise ValueError(
            "Shots vary within 1 <= fewest <= most < images_per_class. "
            f"Received: fewest={fewest}, most={most}, images_per_class={images_per_class}."
        )
    samplers = [TaskSampler(split, ways, k, images_per_class - k, seed) for k in range(fewest, most + 1)]

    def load(step: int) -> Episode:
        sampler = samplers[int(words_of(seed, SHOTS_STREAM, step).random_raw() % len(samplers))]
        return load_tasks(split, sampler, step * tasks, tasks)

    return in_order(load, episode_specs(split, tasks, None, None), first_step, None)
