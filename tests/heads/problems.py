"""Few-shot problems that the head tests share."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_unravel.heads import Kernels


class Tasks(NamedTuple):
    """NumPy arrays in float64: support [T, S, D], labels [T, S], query [T, Q, D], ways."""

    support: np.ndarray
    labels: np.ndarray
    query: np.ndarray
    ways: int


def make_tasks(
    shots: tuple[int, ...] = (1, 1, 1, 1, 1), dimension: int = 40, tasks: int = 3, queries: int = 7, scale: float = 1.0,
    positive: bool = False, seed: int = 0,
) -> Tasks:
    """Noisy classes around random means; `shots` holds the examples of each class, in shuffled order."""
    rng = np.random.default_rng(seed)
    ways = len(shots)
    means = rng.normal(size=(tasks, ways, dimension))
    labels = np.stack([rng.permutation(np.repeat(np.arange(ways), shots)) for _ in range(tasks)])
    query_labels = rng.integers(ways, size=(tasks, queries))
    rows = np.arange(tasks)[:, None]
    support = means[rows, labels] + 1.5 * rng.normal(size=(*labels.shape, dimension))
    query = means[rows, query_labels] + 1.5 * rng.normal(size=(tasks, queries, dimension))
    if positive:  # as after a leaky ReLU: a large common component
        support, query = np.maximum(support, 0.1 * support), np.maximum(query, 0.1 * query)
    return Tasks(support * scale, labels, query * scale, ways)


def relative_error(actual: tf.Tensor, expected: np.ndarray) -> float:
    """Largest deviation, in units of the largest expected value."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def inner_products(tasks: Tasks, dtype: type = np.float64) -> Kernels:
    """The Kernels of a problem, by NumPy in float64, then cast."""
    cross = tasks.query @ tasks.support.transpose(0, 2, 1)
    return Kernels(
        tf.constant((tasks.support @ tasks.support.transpose(0, 2, 1)).astype(dtype)),
        tf.constant(cross.astype(dtype)),
        tf.constant((tasks.query**2).sum(-1).astype(dtype)),
        tasks.support.shape[2],
    )


def directional_derivatives(head: Callable, tasks: Tasks, seed: int = 1) -> list[tuple[float, float]]:
    """(by the tape, by central differences) of a random linear function of the logits, for support and for query."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(*tasks.query.shape[:2], tasks.ways))

    def loss(support: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(weights * head(support, tasks.labels, query, tasks.ways))

    points = [tf.constant(tasks.support), tf.constant(tasks.query)]
    with tf.GradientTape() as tape:
        tape.watch(points)
        value = loss(*points)
    gradients = tape.gradient(value, points)
    result = []
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=points[i].shape)
        step = 1e-6 * np.abs(points[i]).max()
        ends = []
        for sign in (1, -1):
            moved = list(points)
            moved[i] = points[i] + sign * step * direction
            ends.append(float(loss(*moved)))
        result.append((float(tf.reduce_sum(gradient * direction)), (ends[0] - ends[1]) / (2 * step)))
    return result
