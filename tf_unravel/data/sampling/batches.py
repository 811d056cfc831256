"""Training batches of a run: what is sampled, how it is augmented, how many make an epoch.

A run draws its batches from one object, whatever the learner: `steps_per_epoch(split)` and
`dataset(split, seed, first_step)` are functions of their arguments alone; `batch_size` is how many images a step
takes, and `num_labels(split's classes)` how many labels there are to tell apart.
"""

import dataclasses

import tensorflow as tf

from tf_unravel.checks import refuse_below
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.augmentation import augment
from tf_unravel.data.sampling.meta_batches import episodes_of_varied_shots, inner_batches
from tf_unravel.data.sampling.tasks import Episode, class_pairs, episodes, steps_per_epoch


@dataclasses.dataclass(frozen=True)
class ClassPairs:
    """Class-balanced batches, two images of every class drawn, augmented as MetaOptNet does.

    Args:
        batch_size: images in a batch, even.
        augmented: crop, colour jitter and flip (`data.augment`); False for plain images.
        padding: pixels of black border that the random crop may move over; MetaOptNet has 4 at 32x32, 8 at 84x84.
        flip: mirror half of the images; False where the mirror image is another thing (characters).
    """

    batch_size: int = 128
    augmented: bool = True
    padding: int = 4
    flip: bool = True

    def num_labels(self, num_classes: int) -> int:
        """Every class of the split has its label."""
        return num_classes

    def steps_per_epoch(self, split: ClassImages) -> int:
        """Steps in which a class-balanced epoch visits every image."""
        return steps_per_epoch(split, self.batch_size)

    def dataset(self, split: ClassImages, seed: int, first_step: int = 0) -> tf.data.Dataset:
        """Endless batches (images uint8 [B, H, W, C], class_ids int32 [B]) from a step on."""
        batches = class_pairs(split, self.batch_size, seed=seed, first_step=first_step)
        if not self.augmented:
            return batches

        def change(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            images, class_ids = batch
            return augment(images, seed, step, padding=self.padding, flip=self.flip), class_ids

        return batches.enumerate(first_step).map(change, num_parallel_calls=2, deterministic=True).prefetch(4)


class _OfTasks:
    """What batches of tasks have in common."""

    ways: int
    tasks: int
    batches_per_epoch: int

    def __post_init__(self) -> None:
        refuse_below(1, type(self).__name__, tasks=self.tasks, batches_per_epoch=self.batches_per_epoch)

    def num_labels(self, num_classes: int) -> int:
        """The ways."""
        return self.ways

    def steps_per_epoch(self, split: ClassImages) -> int:
        """`batches_per_epoch`: tasks are drawn, not used up."""
        return self.batches_per_epoch


@dataclasses.dataclass(frozen=True)
class Episodes(_OfTasks):
    """Batches of few-shot tasks, for learners that are trained on them.

    Args:
        ways, queries: of a task, each image drawn without replacement.
        shots: of a task; or (fewest, most), and each batch has another number of them, as R2-D2 was trained: a batch
            with more shots has fewer queries, `queries` being those at the fewest shots.
        tasks: tasks in a batch (MetaOptNet 8, MAML 4).
        batches_per_epoch: what an epoch is; MetaOptNet's has 1000 batches.
        augmented, padding, flip: as for `ClassPairs`.
    """

    ways: int = 5
    shots: int | tuple[int, int] = 5
    queries: int = 6
    tasks: int = 8
    batches_per_epoch: int = 1000
    augmented: bool = True
    padding: int = 4
    flip: bool = True

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.tasks * self.ways * (self._fewest_shots + self.queries)

    @property
    def _fewest_shots(self) -> int:
        return self.shots if isinstance(self.shots, int) else self.shots[0]

    def dataset(self, split: ClassImages, seed: int, first_step: int = 0) -> tf.data.Dataset:
        """Endless Episodes with a leading axis of tasks, from a step on."""
        batches = self._plain(split, seed, first_step)
        if not self.augmented:
            return batches

        def change(step: tf.Tensor, episode: Episode) -> Episode:
            count = tf.shape(episode.support_images)[1]
            images = tf.concat([episode.support_images, episode.query_images], axis=1)  # [T, S + WQ, H, W, C]
            changed = augment(tf.reshape(images, [-1, *split.image_shape]), seed, step, padding=self.padding,
                              flip=self.flip)
            changed = tf.reshape(changed, tf.shape(images))  # [T, S + WQ, H, W, C]
            support = tf.ensure_shape(changed[:, :count], episode.support_images.shape)
            query = tf.ensure_shape(changed[:, count:], episode.query_images.shape)
            return episode._replace(support_images=support, query_images=query)

        return batches.enumerate(first_step).map(change, num_parallel_calls=2, deterministic=True).prefetch(4)

    def _plain(self, split: ClassImages, seed: int, first_step: int) -> tf.data.Dataset:
        if isinstance(self.shots, int):
            return episodes(split, self.ways, self.shots, self.queries, seed=seed,
                            first_task=first_step * self.tasks, tasks_per_batch=self.tasks)
        fewest, most = self.shots
        return episodes_of_varied_shots(split, self.ways, fewest, most, fewest + self.queries, self.tasks, seed,
                                        first_step)


@dataclasses.dataclass(frozen=True)
class InnerBatches(_OfTasks):
    """Reptile's batches: the inner batches of a meta-batch of tasks, in order (`data.inner_batches`). Not augmented.

    Args:
        ways: of a task.
        shots: images per class that a task trains on (the original's --train-shots).
        steps, batch: inner steps, and images in each.
        tasks: tasks in a meta-batch.
        batches_per_epoch: what an epoch is.
    """

    ways: int = 5
    shots: int = 15
    steps: int = 8
    batch: int = 10
    tasks: int = 5
    batches_per_epoch: int = 1000

    @property
    def batch_size(self) -> int:
        """Images in a meta-batch."""
        return self.tasks * self.steps * self.batch

    def dataset(self, split: ClassImages, seed: int, first_step: int = 0) -> tf.data.Dataset:
        """Endless (images [T, k, B, H, W, C], labels [T, k, B]) from a step on."""
        return inner_batches(split, self.ways, self.shots, self.steps, self.batch, self.tasks, seed, first_step)
