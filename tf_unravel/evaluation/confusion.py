"""Which classes of a split are taken for each other, counted over the queries of few-shot tasks.

    rate(a, b) = (answered[a, b] + answered[b, a]) / (met[a, b] + met[b, a])

with answered[a, b] the queries of class a that were answered b, and met[a, b] the queries of class a in tasks that have
class b too: two classes are compared only where they met. A pair that met in few tasks has no rate.
"""

from __future__ import annotations

import dataclasses

import numpy as np

MOST_CLASSES = 200  # of a split that is counted; of more, two hardly ever meet
_TASKS = 10  # that two classes have to meet in


@dataclasses.dataclass(frozen=True, eq=False)
class Confusion:
    """Counts over tasks of a split with C classes, which `add` adds to.

    Attributes:
        answered: int64 [C, C], queries of class a that were answered b.
        met: int64 [C, C], queries of class a in tasks that have class b.
        queries: per class and task.
    """

    answered: np.ndarray
    met: np.ndarray
    queries: int

    @classmethod
    def of(cls, num_classes: int, queries: int) -> Confusion:
        """Before any task."""
        answered, met = np.zeros((2, num_classes, num_classes), np.int64)
        return cls(answered, met, queries)

    def add(self, classes: np.ndarray, answers: np.ndarray) -> None:
        """Adds the answers [T, WQ], labels 0..W-1, of tasks with these classes [T, W]; queries are class-major."""
        true = np.repeat(classes, self.queries, axis=1)  # [T, WQ]
        said = np.take_along_axis(classes, answers, axis=1)  # [T, WQ]
        size = len(self.met)
        self.answered[...] += np.bincount((true * size + said).ravel(), minlength=size**2).reshape(size, size)
        there = np.zeros((len(classes), size))
        np.put_along_axis(there, classes, 1, axis=1)
        self.met[...] += (self.queries * (there.T @ there)).astype(np.int64)

    def most_mixed_up(self, most: int = 10) -> list[tuple[int, int, float]]:
        """The pairs of classes with the highest rates, as (a, b, rate) with a < b, highest first; none of rate 0."""
        a, b = np.triu_indices(len(self.met), k=1)
        wrong, met = (values[a, b] + values[b, a] for values in (self.answered, self.met))
        rates = np.where(met >= 2 * self.queries * _TASKS, wrong / np.maximum(met, 1), 0)
        order = np.argsort(-rates, kind="stable")[:most]
        return [(int(a[i]), int(b[i]), float(rates[i])) for i in order if rates[i] > 0]
