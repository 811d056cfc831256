"""Which images make a batch: pairs of images per class, and few-shot episodes.

Everything drawn here is a function of (seed, step) or (seed, task) alone. There is no generator whose hidden state
could depend on how often, in how many threads or on how many machines it was asked, so that a resumed run, another
number of replicas or another number of reader threads draws the same batches (`random_draws.py` has the draws).

Class pairs (appendix A.2 of the paper: "two images per class in each mini-batch"): an epoch is planned as rounds. A
round visits every class once in a fresh order and takes the next two images of that class's own shuffled sequence;
batches are cut from the rounds laid end to end. Degenerate case: `batch_size = 2 * num_classes` makes a round a batch.
The authors' loader keeps its position per class in the dataset object, which every worker process copies, so that it
sees 28 % of the images an epoch with four workers; here an epoch visits every image.

Episodes: W classes without replacement, and of each class Q + K images without replacement, the first Q of them
queries. The words are laid out so that the same (seed, task) has the same classes and queries at every number of
shots, and its support at K shots is contained in its support at K + 1 shots.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_unravel.checks import refuse_below
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.random_draws import (
    PAIR_STREAM,
    TASK_CLASS_STREAM,
    TASK_IMAGE_STREAM,
    in_order,
    permutations,
    recent,
    take,
    uniform_words,
    without_replacement,
    words_of,
)

_TASKS_PER_BLOCK = 1024
_IMAGE_BYTES_PER_GATHER = 8 << 20


class Episode(NamedTuple):
    """One few-shot task, or a batch of them with a leading axis T.

    Attributes:
        support_images: uint8 [S, H, W, C], class-major.
        support_labels: int32 [S], `repeat(arange(ways), shots)`.
        query_images: uint8 [WQ, H, W, C], class-major.
        query_labels: int32 [WQ], `repeat(arange(ways), queries)`.
    """

    support_images: Any
    support_labels: Any
    query_images: Any
    query_labels: Any


def steps_per_epoch(split: ClassImages, batch_size: int = 128) -> int:
    """Returns the number of batches of `class_pairs` in one epoch.

    `ceil(C * ceil(n_max / 2) / (batch_size / 2))`, with n_max the size of the largest of the C classes.

    Args:
        split: the images.
        batch_size: images per batch, even.

    Raises:
        ValueError: `batch_size` is odd or below 2.
    """
    check_split(split)
    rounds = -(-int(split.images_per_class.max()) // 2)
    return -(-split.num_classes * rounds // _pairs_per_batch(batch_size))


def class_pairs(
    split: ClassImages, batch_size: int = 128, seed: int = 0, first_step: int = 0, num_steps: int | None = None
) -> tf.data.Dataset:
    """Returns batches with two different images of every class drawn.

    The two images of a class are neighbours: class ids are a, a, b, b, ... A batch is a function of (seed, step)
    alone, and starting at `first_step` replays nothing. No class comes twice in a batch while
    `batch_size / 2 <= num_classes`; beyond that it comes with other images, as long as it has that many.

    An epoch of `steps_per_epoch(split, batch_size)` steps visits every image. With classes of equal size, every
    class and every image is visited equally often, to within one (the last batch is filled up by classes that are
    not in it yet). With unequal sizes the classes stay balanced: an epoch goes once through the largest class, and
    smaller classes start over in a new order, so that the counts are even among the images of each class.

    Args:
        split: the images, at least two of every class.
        batch_size: images per batch, even.
        seed: any non-negative integer.
        first_step: the step of the first batch; steps go on counting across epochs.
        num_steps: how many batches; without end by default.

    Returns:
        Dataset of (images uint8 [batch_size, H, W, C], class_ids int32 [batch_size]).

    Raises:
        ValueError: an odd batch size, a class with one image only, a negative seed or step.

    Example:
        >>> pairs = class_pairs(split, batch_size=128, seed=0)
        >>> images, class_ids = next(iter(pairs))
    """
    refuse_below(0, "class_pairs", seed=seed, first_step=first_step, num_steps=num_steps)
    epoch_steps = steps_per_epoch(split, batch_size)
    sizes = split.images_per_class
    if sizes.min() < 2:
        where = f"of class '{split.class_names[int(sizes.argmin())]}' in split '{split.name}'"
        raise ValueError(f"Class pairs need two images of every class. Received: 1 {where}.")
    plans = recent(lambda epoch: pair_plan(split, batch_size, seed, epoch))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = plans(step // epoch_steps)[step % epoch_steps]
        return take(split.images, indices), split.class_ids[indices]

    specs = (tf.TensorSpec((batch_size, *split.image_shape), tf.uint8), tf.TensorSpec((batch_size,), tf.int32))
    return in_order(batch, specs, first_step, num_steps)


def pair_plan(split: ClassImages, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the image indices of an epoch of `class_pairs`, int64 [steps, batch_size], a class's two side by side."""
    pairs, steps = _pairs_per_batch(batch_size), steps_per_epoch(split, batch_size)
    rounds = -(-steps * pairs // split.num_classes)  # the last, partial one fills up the last batch
    words = words_of(seed, PAIR_STREAM, epoch)
    classes = _class_rounds(words, split.num_classes, rounds, pairs)  # [rounds, C]
    order, offsets = split.class_index
    in_one_batch = 2 * -(-pairs // split.num_classes)
    images = np.empty((rounds, split.num_classes, 2), np.int64)
    for class_id, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        sequence = _image_sequence(words, int(stop - start), 2 * rounds, in_one_batch)  # [2 * rounds]
        images[:, class_id] = order[start + sequence].reshape(rounds, 2)  # [rounds, 2]
    visits = np.take_along_axis(images, classes[:, :, None], axis=1)  # [rounds, C, 2]
    return visits.reshape(-1, 2)[: steps * pairs].reshape(steps, batch_size)  # [steps, B]


def _class_rounds(words: np.random.Philox, num_classes: int, rounds: int, pairs: int) -> np.ndarray:
    """Returns [rounds, C], each row a random order of the classes.

    Where a batch straddles rounds, the round that it ends in begins with the classes it does not yet hold, so that
    no class comes more than ceil(pairs / C) times in a batch.
    """
    classes = permutations(words, rounds, num_classes)
    for number in range(1, rounds):
        batch_start = number * num_classes // pairs * pairs
        head = batch_start + pairs - number * num_classes  # slots of this round in that batch
        tail = -batch_start % num_classes  # slots of the round which that batch began in
        if head >= num_classes or tail == 0:
            continue
        held = np.zeros(num_classes, bool)
        held[classes[batch_start // num_classes, num_classes - tail :]] = True
        row = classes[number]
        row = np.concatenate([row[~held[row]], row[held[row]]])
        rest = row[head:][permutations(words, 1, num_classes - head)[0]]  # or the held classes would always follow
        classes[number] = np.concatenate([row[:head], rest])
    return classes


def _image_sequence(words: np.random.Philox, size: int, length: int, apart: int) -> np.ndarray:
    """Returns `length` positions within a class: one random order of it after the other.

    The same image comes again after at least `apart` places (or `size`, if that is less).
    """
    cycles = permutations(words, -(-length // size), size)  # [cycles, size]
    apart = min(apart, size)
    if apart == 2 and size % 2:  # pairs straddle cycles; an even class has none, and column 1 is not the last
        again = np.flatnonzero(cycles[1:, 0] == cycles[:-1, -1]) + 1
        cycles[again, :2] = cycles[again, 1::-1]
    elif apart > 2:
        for before, after in zip(cycles[:-1], cycles[1:], strict=True):
            for place in range(apart - 1):
                allowed = np.isin(after[place:], before[: size + place - apart + 1])
                other = place + int(np.argmax(allowed))  # never empty: size - apart + 1 or more are left
                after[[place, other]] = after[[other, place]]
    return cycles.reshape(-1)[:length]


def episodes(
    split: ClassImages,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    num_tasks: int | None = None,
    seed: int = 0,
    first_task: int = 0,
    tasks_per_batch: int | None = None,
) -> tf.data.Dataset:
    """Returns few-shot tasks; task t is a function of (seed, t) alone.

    Args:
        split: the images.
        ways: classes per task, drawn without replacement.
        shots: support images per class, drawn without replacement and apart from the queries.
        queries: query images per class.
        num_tasks: how many tasks; without end by default.
        seed: any non-negative integer.
        first_task: the number of the first task; starting late replays nothing.
        tasks_per_batch: gives the arrays of each Episode a leading axis of so many tasks, which is faster than
            `.batch(...)` afterwards. `num_tasks` must be a multiple of it.

    Returns:
        Dataset of Episode, whose labels are 0..ways-1 in class-major order.

    Raises:
        ValueError: more ways than classes, more images wanted than a class has, or a count below its minimum.

    Example:
        >>> for support, support_labels, query, query_labels in episodes(split, ways=5, shots=1, num_tasks=100):
        ...     ...
    """
    sampler = TaskSampler(split, ways, shots, queries, seed)
    refuse_below(0, "episodes", first_task=first_task, num_tasks=num_tasks)
    if tasks_per_batch is not None and (tasks_per_batch < 1 or (num_tasks or 0) % tasks_per_batch):
        raise ValueError(
            "tasks_per_batch must be at least 1 and divide num_tasks. "
            f"Received: tasks_per_batch={tasks_per_batch}, num_tasks={num_tasks}."
        )
    per_task = ways * (shots + queries)
    image_bytes = int(np.prod(split.image_shape))
    together = tasks_per_batch or int(np.clip(_IMAGE_BYTES_PER_GATHER // (per_task * image_bytes), 1, 64))
    dataset = in_order(
        lambda number: load_tasks(split, sampler, first_task + number * together, together),
        episode_specs(split, together, ways * shots, ways * queries),
        0,
        None if num_tasks is None else -(-num_tasks // together),
    )
    if tasks_per_batch is not None:
        return dataset
    if num_tasks is None:
        return dataset.unbatch()
    return dataset.unbatch().take(num_tasks).apply(tf.data.experimental.assert_cardinality(num_tasks))


def load_tasks(split: ClassImages, sampler: TaskSampler, first_task: int, num_tasks: int) -> Episode:
    """Tasks of a sampler as one Episode of arrays with a leading axis [T]."""
    support, query = (take(split.images, indices) for indices in sampler.indices(first_task, num_tasks))
    support_labels, query_labels = (np.tile(labels, (num_tasks, 1)) for labels in sampler.labels)
    return Episode(support, support_labels, query, query_labels)


def episode_specs(split: ClassImages, tasks: int, support: int | None, query: int | None) -> Episode:
    """What `load_tasks` gives, with so many support and query images a task; None where it varies."""
    specs = (
        (tf.TensorSpec((tasks, count, *split.image_shape), tf.uint8), tf.TensorSpec((tasks, count), tf.int32))
        for count in (support, query)
    )
    return Episode(*itertools.chain(*specs))


class TaskSampler:
    """Draws the image indices of few-shot tasks.

    Args:
        split: the images.
        ways: classes per task.
        shots: support images per class.
        queries: query images per class.
        seed: any non-negative integer.
        fewest_queries: 0 where tasks without queries make sense.

    Attributes:
        labels: (support_labels int32 [S], query_labels int32 [WQ]), the same for every task.

    Raises:
        ValueError: more ways than classes, more images wanted than a class has, or a count below its minimum.
    """

    def __init__(
        self,
        split: ClassImages,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        seed: int = 0,
        fewest_queries: int = 1,
    ):
        refuse_below(0, "TaskSampler", seed=seed)
        _check_task_fits(split, ways, shots, queries, fewest_queries)
        self.ways, self.shots, self.queries, self.seed = ways, shots, queries, seed
        self.labels = tuple(np.repeat(np.arange(ways, dtype=np.int32), count) for count in (shots, queries))
        self._order, self._offsets = split.class_index
        self._blocks = recent(self._block)

    def indices(self, first_task: int, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (support int64 [T, S], query int64 [T, WQ]): indices into `split.images`."""
        parts = []
        block, start = divmod(first_task, _TASKS_PER_BLOCK)
        while num_tasks > 0:
            part = self._blocks(block)[start : start + num_tasks]  # [t, W, Q + K]
            parts.append(part)
            num_tasks, block, start = num_tasks - len(part), block + 1, 0
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)  # [T, W, Q + K]
        tasks = len(images)
        support = images[:, :, self.queries :].reshape(tasks, self.ways * self.shots)  # [T, S]
        query = images[:, :, : self.queries].reshape(tasks, self.ways * self.queries)  # [T, WQ]
        return support, query

    def _block(self, block: int) -> np.ndarray:
        """Returns the images of tasks block * 1024 onwards, int64 [1024, W, Q + K]."""
        classes = self._choose(TASK_CLASS_STREAM, block, len(self._offsets) - 1, self.ways, (_TASKS_PER_BLOCK,))
        classes = classes.T  # [1024, W]
        sizes = np.diff(self._offsets)[classes]  # [1024, W]
        chosen = self._choose(TASK_IMAGE_STREAM, block, sizes, self.queries + self.shots, sizes.shape)
        return self._order[np.moveaxis(chosen, 0, -1) + self._offsets[classes][:, :, None]]  # [1024, W, Q + K]

    def _choose(
        self, stream: int, block: int, sizes: np.ndarray | int, count: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        return without_replacement(uniform_words(words_of(self.seed, stream, block), (count, *shape)), sizes)


def _pairs_per_batch(batch_size: int) -> int:
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"batch_size must be even, for two images of every class. Received: batch_size={batch_size}.")
    return batch_size // 2


def check_split(split: Any) -> None:
    """Raises ValueError for what is no split, such as a pair of arrays or a dataset."""
    if not isinstance(split, ClassImages):
        raise ValueError(
            "A split must be ClassImages: of data.load(...), or ClassImages(images, class_ids, class_names). "
            f"Received: {repr(split) if isinstance(split, str) else type(split).__name__}."
        )


def _check_task_fits(split: ClassImages, ways: int, shots: int, queries: int, fewest_queries: int) -> None:
    check_split(split)
    if ways < 2 or shots < 1 or queries < fewest_queries:
        received = f"Received: ways={ways}, shots={shots}, queries={queries}."
        raise ValueError(f"A task needs at least 2 ways, 1 shot and 1 query. {received}")
    if ways > split.num_classes:
        raise ValueError(
            "A task cannot have more ways than its split has classes; lower ways. "
            f"Received: ways={ways}, but split '{split.name}' has {split.num_classes} classes."
        )
    sizes = split.images_per_class
    if shots + queries > sizes.min():
        name = split.class_names[int(sizes.argmin())]
        raise ValueError(
            "A task cannot use more images of a class than there are; lower shots or queries. "
            f"Received: shots={shots} and queries={queries}, "
            f"but class '{name}' of split '{split.name}' has {sizes.min()} images."
        )
