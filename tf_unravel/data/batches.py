"""Training batches of a run: what is sampled, how it is augmented, how many make an epoch.

A run draws its batches from one object with two methods, whatever the learner:
`steps_per_epoch(split)` and `dataset(split, seed, first_step)`. Both are functions of their arguments alone.
"""

import dataclasses

import tensorflow as tf

from tf_unravel.data.augmentation import augment
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling import class_pairs, steps_per_epoch


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
