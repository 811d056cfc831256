"""DropBlock (Ghiasi, Lin, Le 2018) as MetaOptNet trains ResNet-12 with it.

paper        here           meaning
n            forwards       training forwards of this layer so far, the current one included
keep_prob    keep_rate(n)   max(1 - rate n / ramp, 1 - rate)
block_size   block_size     side of the square that one seed drops
feat_size    H, W           size of the feature map
gamma        seed_rate      (1 - keep) / block_size^2 * H W / ((H - block_size + 1) (W - block_size + 1))

Seeds are drawn, independently for each image and channel, only where a whole block fits into the map; a seed drops
the block that extends down and right from it. What remains is scaled by (all elements) / (elements kept), counted
over the whole batch. With rate 0 the layer is the identity.

Differs from MetaOptNet: its counter runs with evaluation forwards too (two forwards, support and query, for each
training step, and those of each validation epoch), is lost on restart and stays at 1 on several GPUs. Ours counts
training forwards only, one for each call of the layer, and is a variable: it is checkpointed with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


def keep_rate(forwards: tf.Tensor, rate: float, ramp: int) -> tf.Tensor:
    """Share of elements to keep, max(1 - rate n / ramp, 1 - rate), for the n-th training forward."""
    return tf.maximum(1.0 - rate * tf.cast(forwards, tf.float32) / float(ramp), 1.0 - rate)


def seed_rate(keep: tf.Tensor | float, block_size: int, height: int, width: int) -> tf.Tensor | float:
    """Probability gamma of a seed, such that a share 1 - `keep` of the elements is dropped (overlaps neglected)."""
    seeds = (height - block_size + 1) * (width - block_size + 1)
    return (1.0 - keep) / block_size**2 * (height * width / seeds)


def grow(seeds: tf.Tensor, block_size: int) -> tf.Tensor:
    """Drop mask [B, H, W, C] of seeds [B, H-b+1, W-b+1, C]: 1 in the b x b block down and right of each seed."""
    edge = block_size - 1
    padded = tf.pad(seeds, [[0, 0], [edge, edge], [edge, edge], [0, 0]])
    return tf.nn.max_pool2d(padded, block_size, strides=1, padding="VALID")


@keras.saving.register_keras_serializable(package="tf_unravel")
class DropBlock(keras.layers.Layer):
    """Drops square blocks of feature maps [B, H, W, C] while training; the share dropped grows linearly to `rate`.

    Args:
        block_size: side of the block in elements, at most H and W.
        rate: share of the elements dropped once the ramp is over, in [0, 1).
        ramp: training forwards until then; 40000 as in MetaOptNet (20 epochs x 2000 forwards).
        seed: of the masks; the generator's state is a variable of the layer, so that a checkpoint resumes it.

    Raises:
        ValueError: if `rate` or `block_size` is out of range or the block is larger than the feature map.

    Reference: Ghiasi, Lin, Le: DropBlock, NeurIPS 2018; Lee et al.: MetaOptNet, CVPR 2019.
    """

    def __init__(self, block_size: int, rate: float = 0.1, ramp: int = 40000, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0 or block_size < 1 or ramp < 1:
            raise ValueError(
                "DropBlock needs 0 <= rate < 1, block_size >= 1 and ramp >= 1. "
                f"Received: rate={rate}, block_size={block_size}, ramp={ramp}"
            )
        self.block_size = int(block_size)
        self.rate = float(rate)
        self.ramp = int(ramp)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Sequence[int | None]) -> None:
        height, width = input_shape[1:3]
        if min(height, width) < self.block_size:
            raise ValueError(
                f"a block of {self.block_size} does not fit into a {height} x {width} feature map. "
                f"Received: block_size={self.block_size}; use a smaller one or larger images."
            )
        self.forwards = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, autocast=False,
            aggregation="only_first_replica", name="forwards",
        )  # fmt: skip

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return inputs
        forwards = tf.convert_to_tensor(self.forwards) + 1
        self.forwards.assign(forwards)
        batch = tf.shape(inputs)[0]
        _, height, width, channels = inputs.shape
        gamma = seed_rate(keep_rate(forwards, self.rate, self.ramp), self.block_size, height, width)
        edge = self.block_size - 1
        uniform = tf.random.stateless_uniform(
            [batch, height - edge, width - edge, channels], seed=self.seed_generator.next()
        )
        dropped = grow(tf.cast(uniform < gamma, tf.float32), self.block_size)  # [B, H, W, C]
        kept = 1.0 - dropped
        scale = tf.math.divide_no_nan(tf.cast(tf.size(kept), tf.float32), tf.reduce_sum(kept))
        return inputs * tf.cast(kept * scale, inputs.dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "rate": self.rate,
            "ramp": self.ramp,
            "seed": self.seed,
        }
