"""Inner products of a split's features, for the tasks drawn from it.

Kernel heads see features only through inner products, and all products that any task of a split can ask for stand in
one Gram matrix of the split. `GramProducts` computes it once and looks up; `TaskProducts` multiplies task by task,
for splits whose matrix would be too large, or too dear for a few tasks. Both give the same numbers.

Precision: the products kept are those of the *centred* features c_i = f_i - m, m the mean over the split, next to
a_i = <c_i, m> and |m|^2 in float64. Distances do not change under the shift, and read off centred products they lose
only what the spread of the features rounds to, not what a common offset does: with |m| = 1000 and distances near 1,
|q|^2 - 2 <q, p> + |p|^2 in float32 would have errors near 0.1. The raw products that other heads need are
<f_i, f_j> = <c_i, c_j> + a_i + a_j + |m|^2, rounded at the end.

| symbol | name                 | shape                                |
|--------|----------------------|--------------------------------------|
| f      | features             | [N, D]                               |
| m      | SplitFeatures.mean   | [D]                                  |
| a      | SplitFeatures.shifts | [N], a_i + m.m / 2                   |
|        | SplitFeatures.norms  | [N], c_i.c_i                         |
| S, WQ  | support, query       | [T, S], [T, WQ] indices into 0..N-1  |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.blas
import tensorflow as tf

from tf_unravel.data.sampling.tasks import TaskSampler

_MAX_TASKS_PER_BLOCK = 1024
_PRODUCTS_PER_BLOCK = 4 << 20
_FEATURE_BYTES_PER_BLOCK = 64 << 20
_PANEL_BYTES = 64 << 20
_MIRROR_TILE = 256  # fits in cache: five times faster than whole rows
_GATHER_COST = 60  # taking a feature out of memory, in multiplications of the Gram matrix; measured on two AVX2 cores


class Products(NamedTuple):
    """What a block of tasks needs: centred inner products, and what turns them into raw ones."""

    support: Any  # [T, S, S], <c_s, c_s'>
    cross: Any  # [T, WQ, S], <c_q, c_s>
    query_norms: Any  # [T, WQ], |c_q|^2
    support_shift: Any  # [T, S], <c_s, m> + |m|^2 / 2
    query_shift: Any  # [T, WQ], <c_q, m> + |m|^2 / 2


class SplitFeatures:
    """The features float32 [N, D] of a split with their mean, norms and shifts; computed in blocks, without a copy.

    Raises:
        ValueError: features that are not finite, or too large to be multiplied in float32.
    """

    def __init__(self, features: np.ndarray):
        self.values = features
        rows = max(1, _PANEL_BYTES // (8 * features.shape[1]))
        blocks = [slice(start, start + rows) for start in range(0, len(features), rows)]
        for block in blocks:
            check_finite(np.isfinite(features[block]).all(axis=1), block.start)
        mean = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(features)  # [D]
        self.mean = mean.astype(np.float32)  # rounded first: the norms and shifts below are about exactly this point
        mean = self.mean.astype(np.float64)
        norms, shifts = np.empty((2, len(features)), np.float64)
        for block in blocks:
            centred = features[block] - mean  # [n, D] float64
            norms[block] = np.einsum("nd,nd->n", centred, centred)
            shifts[block] = centred @ mean + mean @ mean / 2
        largest = norms.max() + 4 * np.abs(shifts).max()
        if largest > np.finfo(np.float32).max:
            raise ValueError(f"Features are too large for float32 products. Received: a squared norm of {largest:.3g}.")
        self.norms, self.shifts = norms.astype(np.float32), shifts.astype(np.float32)

    def products(self, found: np.ndarray, support: np.ndarray, query: np.ndarray) -> Products:
        """Completes the inner products [T, S, S + WQ] of support with support and query."""
        size = support.shape[1]
        within = np.ascontiguousarray(found[:, :, :size])  # [T, S, S]
        cross = np.ascontiguousarray(found[:, :, size:].transpose(0, 2, 1))  # [T, WQ, S]
        return Products(within, cross, self.norms[query], self.shifts[support], self.shifts[query])


class GramProducts:
    """Looks products up in the Gram matrix of all centred features.

    Called with the indices of a block of tasks, support [T, S] and query [T, WQ], it returns their Products.
    """

    def __init__(self, features: SplitFeatures):
        self.dimension = features.values.shape[1]
        self._features = features
        self._gram = gram_matrix(features)

    def tasks_per_block(self, sampler: TaskSampler) -> int:
        """How many tasks keep a block of products within its memory."""
        support, query = (len(labels) for labels in sampler.labels)
        return max(1, min(_MAX_TASKS_PER_BLOCK, _PRODUCTS_PER_BLOCK // (support * (support + query))))

    def __call__(self, support: np.ndarray, query: np.ndarray) -> Products:
        both = np.concatenate([support, query], axis=1)  # [T, S + WQ]
        rows = support * len(self._gram)  # the fewer rows, the fewer pages of memory are touched
        places = rows[:, :, None] + both[:, None, :]  # [T, S, S + WQ]
        found = self._gram.reshape(-1).take(places, mode="clip")
        return self._features.products(found, support, query)


class TaskProducts:
    """Multiplies the features of each task: the same numbers as `GramProducts` without a matrix of N x N."""

    def __init__(self, features: SplitFeatures):
        self.dimension = features.values.shape[1]
        self._features = features

    def tasks_per_block(self, sampler: TaskSampler) -> int:
        """How many tasks keep a block of features within its memory."""
        return feature_tasks_per_block(sampler, self.dimension)

    def __call__(self, support: np.ndarray, query: np.ndarray) -> Products:
        both = np.concatenate([support, query], axis=1)  # [T, S + WQ]
        rows = self._features.values.take(both, axis=0, mode="clip")  # [T, S + WQ, D]
        rows -= self._features.mean
        # TensorFlow shares tasks out over its threads; NumPy starts BLAS's own for each small product.
        found = tf.matmul(rows[:, : support.shape[1]], rows, transpose_b=True).numpy()  # [T, S, S + WQ]
        return self._features.products(found, support, query)


def gram_matrix(features: SplitFeatures) -> np.ndarray:
    """Returns (F - m)(F - m)^T, float32 [N, N], summed over panels of features; BLAS computes one triangle only."""
    count, dimension = features.values.shape
    gram = np.zeros((count, count), np.float32)
    columns = max(1, _PANEL_BYTES // (4 * count))
    for start in range(0, dimension, columns):
        panel = features.values[:, start : start + columns] - features.mean[start : start + columns]  # [N, d]
        # BLAS reads row-major matrices as their transposes: its upper triangle is our lower one
        scipy.linalg.blas.ssyrk(1.0, panel.T, beta=1.0, c=gram.T, trans=1, overwrite_c=1)
    tiles = [slice(start, start + _MIRROR_TILE) for start in range(0, count, _MIRROR_TILE)]
    for number, rows in enumerate(tiles):
        gram[rows, rows] = np.tril(gram[rows, rows]) + np.tril(gram[rows, rows], -1).T
        for below in tiles[number + 1 :]:
            gram[rows, below] = gram[below, rows].T
    return gram


def gram_is_worth_it(features: SplitFeatures, samplers: list[TaskSampler], num_tasks: int, gram_bytes: int) -> bool:
    """Whether N^2 fits, and one matrix costs less than the products of every task (both per feature)."""
    count = len(features.values)
    cost = 0
    for sampler in samplers:
        support, query = (len(labels) for labels in sampler.labels)
        cost += num_tasks * (support + query) * (2 * support + _GATHER_COST)
    return 4 * count**2 <= gram_bytes and count**2 <= cost


def feature_tasks_per_block(sampler: TaskSampler, dimension: int) -> int:
    """How many tasks keep a block of support and query features within its memory."""
    per_task = 4 * dimension * sum(len(labels) for labels in sampler.labels)
    return max(1, min(_MAX_TASKS_PER_BLOCK, _FEATURE_BYTES_PER_BLOCK // per_task))


def check_finite(finite: np.ndarray, first: int) -> None:
    """Raises unless all features of each image are finite; `finite` is bool [n], of images first onwards."""
    if not finite.all():
        raise ValueError(
            "Features must be finite; the backbone has probably diverged. "
            f"Received: NaN or infinity for image {first + int(np.argmin(finite))}."
        )
