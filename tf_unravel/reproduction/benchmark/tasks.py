"""Tasks a second from cached features, 5-way with 15 queries a class.

Ours is `evaluate_heads` itself, from the features to the accuracies: drawing the tasks, the Gram matrix or the products
task by task (whichever it chooses), heads, counting. A fixed part (Gram matrix, tracing) is spread over as many tasks
as the paper evaluates, 100,000; a second figure says what the 2,000 tasks of `tf-unravel evaluate` take.

The peers are charged with less: MetaOptNet's heads with the head alone, on tasks that stand ready in memory, at the
best of three batch sizes. EasyFSL's loop draws and gathers, too.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tf_unravel import heads
from tf_unravel.data.class_images import ClassImages
from tf_unravel.evaluation import Accuracy, evaluate_heads
from tf_unravel.reproduction.benchmark import peers, published
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.timing import Work, interleaved, summary


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        dimensions: sizes D of the features.
        num_images, num_classes: of the split.
        shots: per class.
        num_tasks: that the fixed part of ours is spread over.
        few_tasks: of the second figure.
        peer_tasks: that the loop over single tasks answers in a round.
        peer_batches: tasks a batch of the batched heads; the best is compared with.
        peer_batch_seconds: how long the batched heads run in a round, about.
        rounds: of interleaved repeats.
    """

    dimensions: Sequence[int] = (8192, 640)
    num_images: int = 12000
    num_classes: int = 20
    shots: Sequence[int] = (1, 5)
    num_tasks: int = 100_000
    few_tasks: int = 2000
    peer_tasks: int = 300
    peer_batches: Sequence[int] = (1, 16, 64)
    peer_batch_seconds: float = 1.0
    rounds: int = 3


FULL = Sizes()
QUICK = Sizes((12,), 200, 5, (1,), 40, 10, 4, (1, 2), 0.01, 1)

_WAYS, _QUERIES = 5, 15
_HEADS: dict[str, heads.Head] = {"prototypes": heads.Prototypes(), "ridge": heads.Ridge(), "svm": heads.SVM()}
# head -> shots -> how many times the peer's rate is aimed at
_TARGETS = {"ridge": {1: 2.0}, "svm": {1: 2.0, 5: 5.0}}
_TIMES_EASYFSL = 10.0
_PUBLISHED = {"prototypes": "MetaOptNet prototypes", "ridge": "MetaOptNet ridge", "svm": "MetaOptNet SVM"}


def random_features(num_images: int, num_classes: int, dimension: int) -> tuple[np.ndarray, ClassImages]:
    """Features float32 [N, D], rectified normal around a centre per class, and a split of one-pixel images for them."""
    rng = np.random.default_rng(0)
    class_ids = np.repeat(np.arange(num_classes), num_images // num_classes)
    features = rng.standard_normal((len(class_ids), dimension), np.float32)
    for class_id, centre in enumerate(rng.standard_normal((num_classes, dimension), np.float32)):
        features[class_ids == class_id] += 0.3 * centre
    np.maximum(features, 0, out=features)
    pixels = np.zeros((len(class_ids), 1, 1, 1), np.uint8)
    return features, ClassImages(pixels, class_ids, tuple(map(str, range(num_classes))), "random features")


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Tasks a second of every kernel head at every feature size and number of shots."""
    torch_heads = peers.peer("heads")
    for dimension in sizes.dimensions:
        features, split = random_features(sizes.num_images, sizes.num_classes, dimension)
        for name in _HEADS:
            evaluate(features, split, [name], sizes.shots, sizes.few_tasks)  # tracing and kernels once, untimed
            for shots in sizes.shots:
                works = {"ours": _ours(features, split, name, shots, sizes.num_tasks)}
                if torch_heads:
                    works |= _peer_works(torch_heads, sizes, features, split, name, shots)
                rates = interleaved(works, sizes.rounds, warm_up=0)
                yield from _measurements(rates, name, dimension, shots, sizes.num_tasks)
        yield _few(sizes, features, split)


def evaluate(
    features: np.ndarray, split: ClassImages, names: Sequence[str], shots: Sequence[int], num_tasks: int
) -> dict[str, dict[int, Accuracy]]:
    """`evaluate_heads` for heads by name, on the tasks of this module."""
    chosen = {name: _HEADS[name] for name in names}
    return evaluate_heads(features, chosen, split, _WAYS, shots, _QUERIES, num_tasks)


def _ours(features: np.ndarray, split: ClassImages, name: str, shots: int, num_tasks: int) -> Work:
    return Work(lambda: evaluate(features, split, [name], (shots,), num_tasks), num_tasks)


def _few(sizes: Sizes, features: np.ndarray, split: ClassImages) -> Measurement:
    def run() -> None:
        evaluate(features, split, list(_HEADS), sizes.shots, sizes.few_tasks)

    seconds = tuple(1 / rate for rate in interleaved({"ours": Work(run)}, sizes.rounds, warm_up=0)["ours"])
    shots = " and ".join(map(str, sizes.shots))
    what = f"{sizes.few_tasks:,} tasks under all three heads, shots {shots}, D={features.shape[1]}"
    return Measurement(what, "s", seconds)


def _peer_works(
    torch_heads: ModuleType, sizes: Sizes, features: np.ndarray, split: ClassImages, name: str, shots: int
) -> dict[str, Work]:
    works = {}
    if name == "prototypes":
        def one_by_one() -> float:
            ids, tasks = split.class_ids, sizes.peer_tasks
            return torch_heads.evaluate_one_by_one(features, ids, _WAYS, shots, _QUERIES, tasks)

        one_by_one()
        works["loop"] = Work(one_by_one, sizes.peer_tasks)
    if name != "svm" or torch_heads.has_qpth():
        works["batched"] = _best_batch(torch_heads, sizes, features, name, shots)
    return works


def _best_batch(torch_heads: ModuleType, sizes: Sizes, features: np.ndarray, name: str, shots: int) -> Work:
    """The batched head at the batch size that does most tasks a second, repeated to fill a round."""
    candidates = {}
    for tasks in sizes.peer_batches:
        run = torch_heads.batched(name, torch_heads.random_tasks(features, tasks, _WAYS, shots, _QUERIES))
        candidates[tasks] = Work(run, tasks)
    rates = {tasks: summary(values).median for tasks, values in interleaved(candidates, rounds=5).items()}
    best = max(rates, key=rates.__getitem__)
    run, times = candidates[best].run, max(1, round(sizes.peer_batch_seconds * rates[best] / best))
    return Work(_repeated(run, times), best * times)


def _repeated(run: Callable[[], Any], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            run()

    return repeat


def _measurements(
    rates: dict[str, tuple[float, ...]], name: str, dimension: int, shots: int, num_tasks: int
) -> Iterator[Measurement]:
    what = f"{num_tasks:,} tasks, {name}, {shots}-shot, D={dimension}"
    times = _TARGETS.get(name, {}).get(shots)
    target = Target(times) if times else None
    known = published.TASKS_PER_SECOND[_PUBLISHED[name]].get((dimension, shots))
    if name == "prototypes":
        loop = published.TASKS_PER_SECOND["EasyFSL evaluate, prototypes"].get((dimension, shots))
        yield _line(what, rates, "loop", "PyTorch, one at a time", Target(_TIMES_EASYFSL))
        if loop:
            yield _published(what, rates["ours"], loop, "EasyFSL", Target(_TIMES_EASYFSL))
    yield _line(what, rates, "batched", "PyTorch, batched head alone", target)
    if known:
        yield _published(what, rates["ours"], known, "MetaOptNet head alone", target)


def _line(
    what: str, rates: dict[str, tuple[float, ...]], peer: str, peer_name: str, target: Target | None
) -> Measurement:
    values, note = rates.get(peer, ()), ""
    if not values:
        peer_name, note = ("no qpth", peers.QPTH_NOTE) if peers.peer("heads") else (peers.MISSING, peers.NOTE)
    return Measurement(what, "tasks/s", rates["ours"], values, peer_name, target, note)


def _published(what: str, ours: tuple[float, ...], rate: float, name: str, target: Target | None) -> Measurement:
    return Measurement(what, "tasks/s", ours, (rate,), f"{name}, published", target, published.NOTE)
