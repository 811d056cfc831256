"""Random draws that are functions of their numbers alone, and datasets that count.

Words come from NumPy's Philox counter generator, keyed by (seed, stream, block); only its raw words are used, whose
stream NumPy guarantees. Nothing has a state that depends on how often, or by how many threads, it was asked.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

# The first part of each Philox key: draws for one purpose are independent of those for another.
PAIR_STREAM, TASK_CLASS_STREAM, TASK_IMAGE_STREAM, INNER_STREAM, SHOTS_STREAM = 1, 2, 3, 4, 5


def words_of(seed: int, stream: int, number: int) -> np.random.Philox:
    """The words of one block, epoch, task or step of a stream."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, number)))


def uniform_words(words: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Returns uniform uint64 in 0..2**32-1; leading rows do not depend on how many rows follow."""
    size = int(np.prod(shape))
    return words.random_raw(-(-size // 2)).view(np.uint32)[:size].astype(np.uint64).reshape(shape)


def permutations(words: np.random.Philox, rows: int, size: int) -> np.ndarray:
    """Returns int64 [rows, size]: each row a permutation of range(size); equal words keep their order."""
    return np.argsort(words.random_raw(rows * size).reshape(rows, size), axis=1, kind="stable")


def without_replacement(words: np.ndarray, sizes: np.ndarray | int) -> np.ndarray:
    """Draws without replacement from range(sizes), in random order, for many draws at once.

    The j-th draw picks a rank among the sizes - j values that are left; stepping over the values already taken, in
    ascending order, turns the rank into the value. It needs no array as long as the class. The multiplication that
    maps a word to a rank is uneven by sizes / 2**32 at most.

    Args:
        words: uint64 [k, ...], uniform in 0..2**32-1.
        sizes: scalar or [...], at least k.

    Returns:
        int64 [k, ...]
    """
    drawn = np.empty(words.shape, np.int64)
    taken = np.empty(words.shape, np.int64)  # the rows so far, ascending
    sizes = np.asarray(sizes, np.uint64)
    for j, word in enumerate(words):
        value = ((word * (sizes - np.uint64(j))) >> np.uint64(32)).astype(np.int64)
        for i in range(j):
            value += value >= taken[i]
        drawn[j] = value
        for i in range(j):  # insertion: pushes the larger one on
            smaller = np.minimum(taken[i], value)
            value = np.maximum(taken[i], value)
            taken[i] = smaller
        taken[j] = value
    return drawn


def recent(function: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """Remembers the last two results of a function of one integer, for threads that are at most one apart."""
    lock, remembered = threading.Lock(), functools.lru_cache(maxsize=2)(function)

    def once(number: int) -> np.ndarray:
        with lock:
            return remembered(number)

    return once


def take(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns images[indices], [*indices.shape, ...]; the indices are drawn here, so that none is checked."""
    return np.asarray(np.take(images, indices, axis=0, mode="clip"))


def in_order(draw: Callable[[int], Any], specs: Any, first: int, count: int | None) -> tf.data.Dataset:
    """A dataset of draw(first), draw(first + 1), ...; a few are drawn ahead.

    Args:
        draw: gives a tuple of arrays for a number.
        specs: the `tf.TensorSpec` of each, in the same structure.
        first: the first number.
        count: how many; None for no end.
    """
    flat = tf.nest.flatten(specs)

    def load(number: tf.Tensor) -> Any:
        drawn = tf.numpy_function(lambda n: draw(int(n)), [number], [spec.dtype for spec in flat])
        drawn = [tf.ensure_shape(array, spec.shape) for array, spec in zip(drawn, flat, strict=True)]
        return tf.nest.pack_sequence_as(specs, drawn)

    numbers = tf.data.Dataset.counter(first, dtype=tf.int64)
    numbers = numbers if count is None else numbers.take(count)
    return numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(2)
