"""How far a head's probabilities can be trusted, and how well images of no class of a task are told, over many tasks.

    ECE = sum_b n_b / n |accuracy_b - confidence_b|,   b = 1..15, bins of equal width over [0, 1]

with n queries of all tasks together, n_b those whose largest probability lies in bin b and confidence_b its mean.
"Before" are the softmax of the head's logits, "after" those of `Head.calibrated`, on the same tasks.

An open-set task has W classes of a support set and W others; its AUROC is the chance that a query of the first is more
similar to the support set than one of the others (ties count half). "False alarms" are queries of the first, "detected"
ones of the others, that are answered "unknown" at a rate.

Reference: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.adaptation import calibration, open_set
from tf_unravel.adaptation.calibration import Prior
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import TaskSampler
from tf_unravel.evaluation.accuracy import split_features, taken_from, task_blocks
from tf_unravel.evaluation.features import Extractor
from tf_unravel.evaluation.gram import feature_tasks_per_block
from tf_unravel.heads import AnyHead, Head, Reads, as_head

BINS = 15
_QUANTILES = 100
_TASKS_PER_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, each in [0, 1], over all queries and bin by bin.

    Attributes:
        error: the expected calibration error.
        confidence: mean of the largest probability.
        accuracy: of the class that has it.
        counts: queries in each bin.
        confidences: their mean confidence; 0 where a bin is empty.
        accuracies: their accuracy; 0 where a bin is empty.
    """

    error: float
    confidence: float
    accuracy: float
    counts: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    confidences: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    accuracies: tuple[float, ...] = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class CalibrationResult:
    """Reliability before and after calibration, over the queries of `num_tasks` tasks."""

    before: Reliability
    after: Reliability
    num_tasks: int


@dataclasses.dataclass(frozen=True)
class UnknownResult:
    """Over open-set tasks, everything in [0, 1].

    Attributes:
        auroc: mean over tasks.
        standard_error: of it.
        ci95: half the width of its 95 % interval.
        rate: the rate of false alarms that was asked for.
        false_alarms: the one that was reached.
        detected: share of images of other classes that were answered "unknown".
        num_tasks: how many tasks.
    """

    auroc: float
    standard_error: float
    ci95: float
    rate: float
    false_alarms: float
    detected: float
    num_tasks: int


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Reliability of probabilities [n, W] against labels [n]; see the module for the error.

    Example:
        >>> reliability(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
        Reliability(error=0.4, confidence=0.9, accuracy=0.5)
    """
    confidence = probabilities.max(axis=-1).astype(np.float64)
    correct = (probabilities.argmax(axis=-1) == labels).astype(np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, correct - confidence, minlength=bins)  # n_b (accuracy_b - confidence_b)
    counts = np.bincount(place, minlength=bins)
    means = [np.bincount(place, values, minlength=bins) / np.maximum(counts, 1) for values in (confidence, correct)]
    return Reliability(float(np.abs(gaps).sum() / len(labels)), float(confidence.mean()), float(correct.mean()),
                       *(tuple(values.tolist()) for values in (counts, *means)))


def evaluate_calibration(
    backbone: keras.Model | Extractor | np.ndarray,
    heads: Mapping[str, AnyHead],
    split: ClassImages,
    ways: int = 5,
    shots: Sequence[int] = (1, 5),
    queries: int = 15,
    num_tasks: int = 2000,
    seed: int = 0,
    priors: Mapping[str, Prior] | None = None,
) -> dict[str, dict[int, CalibrationResult]]:
    """Returns the calibration of several heads, over the tasks of `evaluate_heads`.

    Args:
        backbone, split, ways, shots, queries, num_tasks, seed: see `evaluate_heads`.
        heads: name -> head, each of which reads features or inner products.
        priors: name -> prior of that head; `Prior()` where there is none.

    Returns:
        CalibrationResult by name of the head, then by shots.

    Raises:
        ValueError: as `evaluate_heads`; a head that adapts the network.
    """
    named = {name: _on_features(name, as_head("head", head)) for name, head in heads.items()}
    features = split_features(backbone, split).values
    results: dict[str, dict[int, CalibrationResult]] = {name: {} for name in named}
    for count in shots:
        sampler = TaskSampler(split, ways, count, queries, seed)
        labels = np.tile(sampler.labels[1], num_tasks)
        for name, head in named.items():
            answer = _answering(head, sampler.labels[0], ways, (priors or {}).get(name))
            found = [answer(*block) for block in _blocks(features, sampler, num_tasks)]
            before, after = (np.concatenate(each)[:num_tasks].reshape(-1, ways) for each in zip(*found, strict=True))
            results[name][count] = CalibrationResult(
                reliability(before, labels), reliability(after, labels), num_tasks)
    return results


def _on_features(name: str, head: Head) -> Head:
    if head.reads is Reads.IMAGES:
        raise ValueError("A head that reads images adapts the network, and is not calibrated; choose one on features, "
                         f"such as ridge. Received: {name}.")
    return head


def _answering(
    head: Head, support_labels: np.ndarray, ways: int, prior: Prior | None
) -> Callable[[tf.Tensor, tf.Tensor], tuple[np.ndarray, np.ndarray]]:
    """(support, query) features -> probabilities [T, WQ, W], before and after."""

    @tf.function
    def answer(support: tf.Tensor, query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels = tf.tile(support_labels[None], (len(support), 1))  # [T, S]
        with labels_checked():
            found = head.calibrated_features(support, labels, ways, prior)
            said = found.answer(found.kept, query)
        return tf.nn.softmax(said.logits), said.probabilities

    return lambda support, query: tuple(each.numpy() for each in answer(support, query))


def _blocks(features: np.ndarray, sampler: TaskSampler, num_tasks: int) -> Iterator[Any]:
    """Support and query features of tasks, block by block."""
    together = min(_TASKS_PER_BLOCK, num_tasks, feature_tasks_per_block(sampler, features.shape[1]))
    yield from (block for _, block in task_blocks(taken_from(features), sampler, num_tasks, together))


def evaluate_unknown(
    backbone: keras.Model | Extractor | np.ndarray,
    split: ClassImages,
    ways: int = 5,
    shots: Sequence[int] = (1, 5),
    queries: int = 15,
    num_tasks: int = 2000,
    seed: int = 0,
    rate: float = 0.05,
    prior: Prior | None = None,
) -> dict[int, UnknownResult]:
    """Returns how well images of other classes are told from those of a task; no head has a part in it.

    Args:
        backbone, shots, queries, num_tasks, seed: see `evaluate_heads`.
        split: images of 2 * ways classes at least.
        ways: classes of the support set, and as many others.
        rate: of false alarms.
        prior: whose `similarities` stand in for a support set of one image per class.

    Returns:
        UnknownResult by shots.

    Raises:
        ValueError: tasks that the split cannot give, a rate outside 0..1.
    """
    open_set.check_rate(rate)
    if 2 * ways > split.num_classes:
        raise ValueError(f"An open-set task takes its {ways} classes and as many others; lower ways. Received: "
                         f"ways={ways}, but split '{split.name}' has {split.num_classes} classes.")
    features = split_features(backbone, split).values
    quantiles = (prior or Prior()).similarities
    results = {}
    for count in shots:
        sampler = TaskSampler(split, 2 * ways, count, queries, seed)
        labels = tf.constant(sampler.labels[0][: ways * count])

        @tf.function
        def found(support: tf.Tensor, query: tf.Tensor, labels: tf.Tensor = labels) -> tuple[tf.Tensor, tf.Tensor]:
            support = support[:, : len(labels)]
            means = open_set.class_means(support, labels, ways)
            similarity = open_set.similarities(query, means)
            known = open_set.left_out_similarities(support, labels, means, ways)
            return similarity, open_set.p_known(similarity, known, quantiles)

        blocks = [found(*block) for block in _blocks(features, sampler, num_tasks)]
        similarity, p_known = (np.concatenate(each)[:num_tasks] for each in zip(*blocks, strict=True))
        per_task = auroc(similarity[:, : ways * queries], similarity[:, ways * queries :])
        error = float(per_task.std(ddof=1) / np.sqrt(num_tasks))
        unknown = open_set.is_unknown(p_known, rate)
        results[count] = UnknownResult(
            float(per_task.mean()), error, 1.96 * error, rate, float(unknown[:, : ways * queries].mean()),
            float(unknown[:, ways * queries :].mean()), num_tasks)
    return results


def auroc(known: np.ndarray, others: np.ndarray) -> np.ndarray:
    """P(known > other) + P(known = other) / 2 of each task, [T], from scores [T, n] and [T, m]."""
    both = np.sort(others, axis=1)
    found = [np.searchsorted(row, values, "left") + np.searchsorted(row, values, "right")
             for row, values in zip(both, known, strict=True)]
    return np.mean(found, axis=1) / (2 * others.shape[1])


def fitted_prior(
    backbone: keras.Model | Extractor | np.ndarray,
    head: AnyHead | None,
    split: ClassImages,
    ways: int = 5,
    queries: int = 15,
    num_tasks: int = 200,
    seed: int = 0,
) -> Prior:
    """Fits a prior to one-shot tasks of classes that the network has met, such as those it was trained on.

    Args:
        backbone, split, queries, num_tasks, seed: see `evaluate_heads`; fewer queries where classes are smaller.
        head: whose temperature is fitted; None, or one that reads images, leaves the default.
        ways: classes of a task; fewer where the split has fewer.

    Raises:
        ValueError: a split of one class, or one of which some class has a single image.
    """
    queries = min(queries, int(split.images_per_class.min()) - 1)
    sampler = TaskSampler(split, min(ways, split.num_classes), 1, queries, seed)
    features = split_features(backbone, split).values
    own = None if head is None else as_head("head", head)
    calibrated = own is not None and own.reads is not Reads.IMAGES
    support_labels, query_labels = map(tf.constant, sampler.labels)

    @tf.function
    def ask(support: tf.Tensor, query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        similarity = open_set.similarities(query, open_set.class_means(support, support_labels, sampler.ways))
        if own is None or not calibrated:
            return similarity, similarity
        labels = tf.tile(support_labels[None], (len(support), 1))
        with labels_checked():
            logits = own(support, labels, tf.concat([query, support], axis=1), sampler.ways)
        logits = tf.cast(logits, tf.float64)
        unit = calibration.margin(logits[:, len(query_labels) :], support_labels)
        return similarity, logits[:, : len(query_labels)] / unit[:, None, None]

    found = [ask(*block) for block in _blocks(features, sampler, num_tasks)]
    similarity, logits = (np.concatenate(each)[:num_tasks] for each in zip(*found, strict=True))
    quantiles = np.quantile(similarity, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    prior = Prior(similarities=tuple(round(float(value), 6) for value in quantiles))
    if not calibrated:
        return prior
    together = tf.constant(logits.reshape(1, -1, sampler.ways))
    labels = tf.constant(np.tile(sampler.labels[1], num_tasks))
    sharpness = calibration.sharpness(together, labels, tf.ones_like(labels, tf.bool), prior)
    return dataclasses.replace(prior, temperature=round(1.0 / float(sharpness[0]), 6))
