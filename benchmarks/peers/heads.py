"""Few-shot heads and evaluation loops in PyTorch.

The batched heads do what MetaOptNet's do, on the features [T, S, D] and [T, Q, D] of T tasks in memory; the loop over
single tasks does what EasyFSL's `evaluate` does, sampler and loader included.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler, TensorDataset


def prototypes(support: torch.Tensor, targets: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """-||q - p||^2 / D; support [T, S, D], one-hot targets [T, S, W], query [T, Q, D] -> [T, Q, W]."""
    means = targets.transpose(1, 2) @ support / targets.sum(1).unsqueeze(2)  # [T, W, D]
    cross = query @ means.transpose(1, 2)  # [T, Q, W]
    distances = query.square().sum(2, keepdim=True) - 2 * cross + means.square().sum(2).unsqueeze(1)
    return -distances / support.shape[2]


def ridge(support: torch.Tensor, targets: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """q X^T (X X^T + 50 I)^-1 Y, in closed form."""
    gram = support @ support.transpose(1, 2) + 50.0 * torch.eye(support.shape[1])  # [T, S, S]
    weights = support.transpose(1, 2) @ torch.linalg.solve(gram, targets)  # [T, D, W]
    return query @ weights


def svm(
    support: torch.Tensor, targets: torch.Tensor, query: torch.Tensor, iterations: int = 3
) -> torch.Tensor:
    """The Crammer-Singer dual as one quadratic programme of S W variables for qpth, stopped as MetaOptNet does.

    Raises:
        ImportError: qpth is not installed.
    """
    from qpth.qp import QPFunction

    tasks, size, ways = targets.shape
    gram = support @ support.transpose(1, 2)  # [T, S, S]
    hessian = torch.kron(gram, torch.eye(ways)) + torch.eye(size * ways)  # [T, SW, SW]
    labels = targets.reshape(tasks, -1)  # [T, SW]
    bounds = torch.eye(size * ways).expand(tasks, -1, -1)
    sums = torch.kron(torch.eye(size), torch.ones(1, ways)).expand(tasks, -1, -1)  # [T, S, SW]
    solver = QPFunction(verbose=False, maxIter=iterations)
    dual = solver(hessian, -labels, bounds, 0.1 * labels, sums, torch.zeros(tasks, size)).reshape(tasks, size, ways)
    return query @ (support.transpose(1, 2) @ dual)  # [T, Q, W]


_HEADS = {"prototypes": prototypes, "ridge": ridge, "svm": svm}


def has_qpth() -> bool:
    """Whether `svm` can run."""
    return importlib.util.find_spec("qpth") is not None


def batched(name: str, tasks: tuple[torch.Tensor, ...]) -> Callable[[], torch.Tensor]:
    """A function that answers tasks [T, ...] by the head `name`, without gradients."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            return _HEADS[name](*tasks)

    return run


def random_tasks(features: np.ndarray, tasks: int, ways: int, shots: int, queries: int) -> tuple[torch.Tensor, ...]:
    """(support [T, S, D], one-hot targets [T, S, W], query [T, Q, D]) from random rows of `features` [N, D]."""
    rows = torch.randint(len(features), (tasks, ways * (shots + queries)), generator=torch.Generator().manual_seed(0))
    both = torch.from_numpy(features)[rows]  # [T, S + Q, D]
    labels = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)  # [T, S]
    support, query = both[:, : ways * shots].contiguous(), both[:, ways * shots :].contiguous()
    return support, functional.one_hot(labels, ways).float(), query


class _TaskSampler(Sampler):
    """Yields the indices of one task after the other, class by class."""

    def __init__(self, class_ids: np.ndarray, ways: int, per_class: int, num_tasks: int):
        self.ways, self.per_class, self.num_tasks = ways, per_class, num_tasks
        self.members = {int(c): np.flatnonzero(class_ids == c).tolist() for c in np.unique(class_ids)}
        self.random = random.Random(0)

    def __len__(self) -> int:
        return self.num_tasks

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.num_tasks):
            classes = self.random.sample(sorted(self.members), self.ways)
            yield [index for c in classes for index in self.random.sample(self.members[c], self.per_class)]


def evaluate_one_by_one(
    features: np.ndarray, class_ids: np.ndarray, ways: int, shots: int, queries: int, num_tasks: int
) -> float:
    """Accuracy of nearest prototypes over tasks drawn and answered one at a time, by a sampler and a DataLoader.

    Args:
        features: float32 [N, D].
        class_ids: int [N].
        ways, shots, queries, num_tasks: the tasks.

    Returns:
        The mean accuracy.
    """
    dataset = TensorDataset(torch.from_numpy(features), torch.from_numpy(np.asarray(class_ids, np.int64)))

    def collate(items: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.stack([row for row, _ in items]).reshape(ways, shots + queries, -1)  # [W, K + Q, D]
        return rows[:, :shots], rows[:, shots:].flatten(0, 1)

    sampler = _TaskSampler(class_ids, ways, shots + queries, num_tasks)
    labels = torch.arange(ways).repeat_interleave(queries)  # [WQ]
    right = 0
    with torch.no_grad():
        for support, query in DataLoader(dataset, batch_sampler=sampler, collate_fn=collate):
            scores = -torch.cdist(query, support.mean(1))  # [WQ, W]
            right += int((scores.argmax(1) == labels).sum())
    return right / (num_tasks * len(labels))
