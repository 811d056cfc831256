"""Few-shot accuracy of a backbone under one head or several, over many tasks.

    accuracy of a task = correct queries / all queries
    mean = sum_t accuracy_t / n,   standard error = std(accuracy_t, ddof=1) / sqrt(n),   ci95 = 1.96 * standard error

The features of the split are computed once. Tasks are numbered, and task t is a function of (seed, t) alone, so that
every backbone and head given the same seed answers the same tasks: compare them by the paired differences of
`per_task`. The backbone runs with training=False (inductive BatchNorm: running statistics; no task sees its other
queries), and nothing is augmented.

Heads that read inner products get them from `gram`: a translation-invariant head those of centred features, the
others those of the features as they are.

| symbol | name              | shape                              |
|--------|-------------------|------------------------------------|
| N, D   | features          | [N, D], the split's, in its order  |
| T      | tasks of a block  |                                    |
| S      | support           | [T, S] indices, S = ways * shots   |
| WQ     | query             | [T, WQ] indices                    |
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import PROTOCOLS
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.checks import shown
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import TaskSampler
from tf_unravel.evaluation.confusion import MOST_CLASSES, Confusion
from tf_unravel.evaluation.features import Extractor, check_backbone, extract_features
from tf_unravel.evaluation.gram import (
    GramProducts,
    Products,
    SplitFeatures,
    TaskProducts,
    feature_tasks_per_block,
    gram_is_worth_it,
)
from tf_unravel.heads import SVM, AnyHead, Head, Kernels, Linear, Prototypes, Reads, Ridge, as_head

INDUCTIVE = PROTOCOLS["running"].said
IMAGE_TASKS_PER_BLOCK = 16

_Answers: TypeAlias = dict[str, tuple[tf.Tensor, tf.Tensor]]  # name of the head -> `_answered`
_Found: TypeAlias = tuple[np.ndarray, Confusion | None]  # per-task accuracies [num_tasks], and what was taken for what


@dataclasses.dataclass(frozen=True, eq=False)
class Accuracy:
    """Accuracy over few-shot tasks.

    Attributes:
        mean: in [0, 1].
        standard_error: std(per_task, ddof=1) / sqrt(num_tasks); the interval that the paper prints.
        ci95: half the width of the 95 % interval, 1.96 * standard_error.
        num_tasks: n.
        per_task: float64 [n], in the order of the tasks.
        batchnorm: how BatchNorm behaved when the features were computed.
        adaptation: how the backbone was adapted to each task; "" where it was not.
        confusion: which classes were taken for each other; None of a split of many classes.
    """

    mean: float
    standard_error: float
    ci95: float
    num_tasks: int
    per_task: np.ndarray
    batchnorm: str = INDUCTIVE
    adaptation: str = ""
    confusion: Confusion | None = None

    @classmethod
    def of(
        cls, per_task: np.ndarray, batchnorm: str = INDUCTIVE, adaptation: str = "", confusion: Confusion | None = None
    ) -> Accuracy:
        """Summarises the accuracies of single tasks, [n] with n >= 2."""
        per_task = np.asarray(per_task, np.float64)
        error = float(per_task.std(ddof=1) / np.sqrt(len(per_task)))
        mean, ci95 = float(per_task.mean()), 1.96 * error
        return cls(mean, error, ci95, len(per_task), per_task, batchnorm, adaptation, confusion)

    @property
    def protocol(self) -> str:
        """What must be said beside the number: BatchNorm's behaviour, and the adaptation where there was one."""
        return self.batchnorm + (f"; {self.adaptation}" if self.adaptation else "")

    def __str__(self) -> str:
        low, high = 100 * (self.mean - self.ci95), 100 * (self.mean + self.ci95)
        return (
            f"{100 * self.mean:.2f} % +- {100 * self.standard_error:.2f} (one standard error; "
            f"95 %: {low:.2f} to {high:.2f}; {self.num_tasks:,} tasks; BatchNorm {self.protocol})"
        )

    __repr__ = __str__


def evaluate(
    backbone: keras.Model | Extractor | np.ndarray,
    head: AnyHead | None = None,
    split: ClassImages | None = None,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    num_tasks: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """Returns the few-shot accuracy of a backbone under one head, at one number of shots: see `evaluate_heads`.

    Args:
        backbone: Keras model, images -> [B, D]; an exported model; or the features [N, D] of the split's images, in
            its order.
        head: see `tf_unravel.heads`; None for the one that an exported model carries.
        split: images of classes that the backbone was not trained on.
        ways: classes per task.
        shots: support images per class.
        queries: query images per class.
        num_tasks: at least 2.
        seed: the same seed gives the same tasks for every backbone and head.

    Example:
        >>> print(evaluate(backbone, tf_unravel.heads.Ridge(), test, shots=5))
        57.31 % +- 0.19 (one standard error; 95 %: 56.94 to 57.68; 2,000 tasks; BatchNorm inductive ...)
    """
    if isinstance(head, Mapping | list | tuple):
        raise ValueError(f"evaluate takes one head, evaluate_heads takes several. Received: {type(head).__name__}.")
    if head is None and isinstance(backbone, Extractor):
        head = backbone.head
    asked, images = cast(AnyHead, head), cast(ClassImages, split)  # None is refused there
    return evaluate_heads(backbone, {"head": asked}, images, ways, (shots,), queries, num_tasks, seed)["head"][shots]


def evaluate_heads(
    backbone: keras.Model | Extractor | np.ndarray,
    heads: Mapping[str, AnyHead] | Sequence[AnyHead],
    split: ClassImages,
    ways: int = 5,
    shots: int | Sequence[int] = (1, 5),
    queries: int = 15,
    num_tasks: int = 2000,
    seed: int = 0,
    gram_bytes: int = 1 << 30,
    batchnorm: str = INDUCTIVE,
) -> dict[str, dict[int, Accuracy]]:
    """Returns the accuracy of several heads over the same tasks, from one pass over the images.

    Args:
        backbone: Keras model, images -> [B, D]; an exported model, or the features [N, D] of the split's images, in its
            order (neither for heads that adapt the backbone, such as FineTune).
        heads: name -> head, or heads that carry their own `name`.
        split: images of classes that the backbone was not trained on.
        ways: classes per task.
        shots: support images per class, one number or several. Task t has the same classes and queries at each.
        queries: query images per class.
        num_tasks: at least 2, for each number of shots.
        seed: the same seed gives the same tasks for every backbone and head.
        gram_bytes: a Gram matrix of the split (4 N^2 bytes) larger than this is not built.
        batchnorm: how the features were computed, if features are given.

    Returns:
        Accuracy by name of the head, then by shots: `result["ridge"][5]`.

    Raises:
        ValueError: no backbone, head or split; tasks that the split cannot give, two heads of one name, features or
            logits that are not finite.

    Example:
        >>> table = evaluate_heads(backbone, [Prototypes(), Ridge(), SVM()], test, num_tasks=2000)
        >>> print(table["svm"][1])
    """
    named = _by_name(heads)
    check_backbone(backbone)
    samplers = [TaskSampler(split, ways, int(k), queries, seed) for k in np.atleast_1d(shots)]
    if num_tasks < 2:
        raise ValueError(f"An interval needs at least 2 tasks. Received: num_tasks={num_tasks}.")
    reading = {reads: {name: head for name, head in named.items() if head.reads is reads} for reads in Reads}
    on_images, on_features, on_products = (reading[r] for r in (Reads.IMAGES, Reads.FEATURES, Reads.INNER_PRODUCTS))
    results: dict[str, dict[int, Accuracy]] = {name: {} for name in named}
    for name, head in on_images.items():
        protocol = head.said_of(backbone)
        for sampler in samplers:
            per_task, confusion = _image_accuracies(name, head, backbone, split, sampler, num_tasks)
            results[name][sampler.shots] = Accuracy.of(per_task, *protocol, confusion=confusion)
    if not (on_features or on_products):
        return results
    features = split_features(backbone, split)
    if isinstance(backbone, Extractor):
        batchnorm = backbone.batchnorm
    elif callable(backbone):
        batchnorm, _ = next(iter((on_features or on_products).values())).said_of(backbone)
    products: GramProducts | TaskProducts | None = None
    if on_products:
        worth_it = gram_is_worth_it(features, samplers, num_tasks, gram_bytes)
        products = GramProducts(features) if worth_it else TaskProducts(features)
    for sampler in samplers:
        found = _kernel_accuracies(on_products, products, split, sampler, num_tasks) if products is not None else {}
        if on_features:
            found |= _feature_accuracies(on_features, features, split, sampler, num_tasks)
        for name, (per_task, confusion) in found.items():
            results[name][sampler.shots] = Accuracy.of(per_task, batchnorm, confusion=confusion)
    return results


def split_features(backbone: Any, split: ClassImages) -> SplitFeatures:
    """The features of a split, by the backbone or given in its place."""
    given = not (isinstance(backbone, Extractor) or callable(backbone))
    values = np.asarray(backbone) if given else extract_features(backbone, split.images)
    if values.ndim != 2 or len(values) != len(split.images):
        raise ValueError(
            f"Features must be [N, D], one row for each of the {len(split.images)} images of '{split.name}'. "
            f"Received: shape {values.shape}."
        )
    return SplitFeatures(np.ascontiguousarray(values, np.float32))


def _kernel_accuracies(
    heads: Mapping[str, Head], products: GramProducts | TaskProducts, split: ClassImages, sampler: TaskSampler,
    num_tasks: int,
) -> dict[str, _Found]:
    """Returns what every kernel head reaches."""
    compiled = _compiled_heads if all(map(_is_value, heads.values())) else _compiled_heads.__wrapped__
    answer = compiled(tuple(heads.items()), sampler.ways, sampler.shots, products.dimension)
    return _accuracies(answer, products, split, sampler, num_tasks, products.tasks_per_block(sampler))


def _is_value(head: Head) -> bool:
    """Whether a head is one of this package with plain numbers for settings, so that equal ones have one graph.

    What else decides the logits of another head cannot be seen; it is traced anew by every evaluation.
    """
    settings = vars(head).values() if type(head) in (Prototypes, Ridge, SVM, Linear) else (head,)
    return all(isinstance(value, int | float | np.number) for value in settings)


@functools.lru_cache(maxsize=32)
def _compiled_heads(
    heads: tuple[tuple[str, Head], ...], ways: int, shots: int, dimension: int
) -> Callable[[Products], _Answers]:
    """Products -> name of the head -> `_answered`, as one graph; remembered, for the validation after every epoch."""
    support_labels = np.repeat(np.arange(ways), shots)

    @tf.function
    def answer(block: Products) -> _Answers:
        centred = Kernels(block.support, block.cross, block.query_norms, dimension)
        shift = block.support_shift[:, None, :]  # [T, 1, S]
        raw = Kernels(
            block.support + (block.support_shift[:, :, None] + shift),  # so bracketed, it stays symmetric
            block.cross + (block.query_shift[:, :, None] + shift),
            block.query_norms + 2 * block.query_shift,
            dimension,
        )
        labels = tf.tile(tf.constant(support_labels, tf.int32)[None], (len(block.support), 1))  # [T, S]
        answers = {}
        for name, head in heads:
            with labels_checked():
                logits = head.logits(centred if head.translation_invariant else raw, labels, ways)
            answers[name] = _answered(logits)
        return answers

    return answer


def _feature_accuracies(
    heads: Mapping[str, Head], features: SplitFeatures, split: ClassImages, sampler: TaskSampler, num_tasks: int
) -> dict[str, _Found]:
    """Returns what heads reach that want the features themselves."""
    support_labels, _ = sampler.labels

    @tf.function
    def answer(block: tuple[tf.Tensor, tf.Tensor]) -> _Answers:
        support, query = block
        labels = tf.tile(support_labels[None], (len(support), 1))  # [T, S]
        with labels_checked():
            logits = {name: head(support, labels, query, sampler.ways) for name, head in heads.items()}
        return {name: _answered(values) for name, values in logits.items()}

    together = feature_tasks_per_block(sampler, features.values.shape[1])
    return _accuracies(answer, taken_from(features.values), split, sampler, num_tasks, together)


def _image_accuracies(
    name: str, head: Head, backbone: keras.Model, split: ClassImages, sampler: TaskSampler, num_tasks: int
) -> _Found:
    """Returns what a head reaches that adapts the backbone itself to each task's images."""
    exported = isinstance(backbone, Extractor) and head is backbone.head
    if not exported and not callable(backbone):
        given = "an exported model" if isinstance(backbone, Extractor) else "features"
        raise ValueError(f"The head '{name}' adapts a backbone: give the keras.Model. Received: {given}.")
    support_labels, _ = sampler.labels

    together = min(num_tasks, IMAGE_TASKS_PER_BLOCK)
    done = 0

    def answer(block: tuple[tf.Tensor, tf.Tensor]) -> _Answers:
        nonlocal done
        support, query = block
        labels = tf.tile(support_labels[None], (len(support), 1))  # [T, S]
        logits = head(backbone, support, labels, query, sampler.ways, first_task=done)
        done += len(support)
        return {name: _answered(logits)}

    return _accuracies(answer, taken_from(split.images), split, sampler, num_tasks, together)[name]


def taken_from(values: np.ndarray) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(support [T, S], query [T, WQ]) -> the rows of `values`, [T, S, ...] and [T, WQ, ...]."""
    return lambda support, query: (values[support], values[query])


def _answered(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (label of each query int32 [T, WQ], whether all logits are finite [])."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32), tf.reduce_all(tf.math.is_finite(logits))


def _accuracies(
    answer: Callable[[Any], _Answers],
    load: Callable[[np.ndarray, np.ndarray], Any],
    split: ClassImages,
    sampler: TaskSampler,
    num_tasks: int,
    together: int,
) -> dict[str, _Found]:
    """Runs `answer(load(support, query))` over all tasks, block by block."""
    right: dict[str, list[np.ndarray]] = {}
    confusions: dict[str, Confusion] = {}
    labels, counted = sampler.labels[1], split.num_classes <= MOST_CLASSES

    def with_classes(support: np.ndarray, query: np.ndarray) -> tuple[Any, np.ndarray]:
        return load(support, query), split.class_ids[support[:, :: sampler.shots]]  # [T, W]

    for start, (block, classes) in task_blocks(with_classes, sampler, num_tasks, together):
        for name, (labelled, finite) in answer(block).items():
            if not finite:
                raise ValueError(f"A head must give finite logits. Received: NaN or infinity from the head '{name}'.")
            answers = labelled.numpy()[: num_tasks - start]
            right.setdefault(name, []).append(np.count_nonzero(answers == labels, axis=1))
            if counted:
                confusion = confusions.setdefault(name, Confusion.of(split.num_classes, sampler.queries))
                confusion.add(classes.numpy()[: num_tasks - start], answers)
    return {name: (np.concatenate(counts) / len(labels), confusions.get(name)) for name, counts in right.items()}


def task_blocks(
    load: Callable[[np.ndarray, np.ndarray], Any], sampler: TaskSampler, num_tasks: int, together: int
) -> Iterator[tuple[int, Any]]:
    """Yields tasks block by block, as (number of the first task, tensors); the next block loads meanwhile.

    Blocks are of equal size, so that a graph is traced once; the last one may hold a few tasks beyond `num_tasks`.

    Args:
        load: (support indices [t, S], query indices [t, WQ]) -> arrays.
        sampler: which images make a task.
        num_tasks: how many tasks.
        together: tasks in a block, at most.
    """
    together = -(-num_tasks // -(-num_tasks // together))
    starts = range(0, num_tasks, together)
    loaded = _ahead(lambda start: load(*sampler.indices(start, together)), starts)
    for start, block in zip(starts, loaded, strict=True):
        yield start, tf.nest.map_structure(tf.constant, block)


def _ahead(function: Callable[[int], Any], items: Iterable[int], depth: int = 2) -> Iterator[Any]:
    """Yields function(item) in order, computed by a thread that is `depth` items ahead at most."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _by_name(heads: Any) -> dict[str, Head]:
    if isinstance(heads, str) or not isinstance(heads, Mapping | Iterable):
        raise ValueError(f"heads must be a dict, name -> head, or a list of heads. Received: {shown(heads)}.")
    if isinstance(heads, Mapping):
        return {name: as_head("head", head) for name, head in heads.items()}
    found = [as_head("head", head) for head in heads]
    names = [head.name or None for head in found]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"Heads in a list need different names; give a dict instead. Received: {names}.")
    return {head.name: head for head in found}
