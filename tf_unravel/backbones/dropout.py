"""Dropout of single elements and of blocks (DropBlock: Ghiasi, Lin, Le 2018) as MetaOptNet trains with them.

Masks are a function of (seed, n) alone, n the number of training forwards of the layer so far. The pair is a weight of
the layer: every way of saving the model saves it, and a restored model goes on with the masks it would have drawn.
(The state of Keras's own Dropout is in none of `.keras`, `.weights.h5` and `tf.train.Checkpoint`.) Replicas that share
one batch (`synchronized`) each take their rows of the masks that one device would draw for the whole of it.

DropBlock:

| paper      | here         | meaning                                                                                |
|------------|--------------|----------------------------------------------------------------------------------------|
| n          | forwards     | training forwards of this layer so far, the current one included                       |
| keep_prob  | keep_rate(n) | max(1 - rate n / ramp, 1 - rate)                                                       |
| block_size | block_size   | side of the square that one seed drops                                                 |
| feat_size  | H, W         | size of the feature map                                                                |
| gamma      | seed_rate    | (1 - keep) / block_size^2 * H W / ((H - block_size + 1) (W - block_size + 1))          |

Seeds are drawn, independently for each image and channel, only where a whole block fits into the map; a seed drops
the block that extends down and right from it. What remains is scaled by (all elements) / (elements kept), counted
over the whole batch. With rate 0 the layer is the identity.

Differs from MetaOptNet: its counter runs with evaluation forwards too (two forwards, support and query, for each
training step, and those of each validation epoch), is lost on restart and stays at 1 on several GPUs. Ours counts
training forwards only, one for each call of the layer in training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.backbones.modes import sharing


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
class Dropout(keras.layers.Layer):
    """Drops single elements with probability `rate` while training and scales the others by 1 / (1 - rate).

    Args:
        rate: share of the elements dropped, in [0, 1).
        seed: of the masks; None draws one, as Keras does.

    Raises:
        ValueError: if `rate` is out of range.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate is at least 0 and below 1. Received: rate={rate}")
        self.rate = float(rate)
        self.seed = random.randrange(2**31) if seed is None else int(seed) % 2**31
        self.synchronized = False  # set by `modes.synchronize`

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.state = self.add_weight(
            shape=(2,), dtype="int32", initializer=lambda shape, dtype: tf.constant([self.seed, 0], dtype),
            trainable=False, autocast=False, aggregation="only_first_replica", name="seed_and_forwards",
        )  # fmt: skip

    @property
    def forwards(self) -> tf.Tensor:
        """Training forwards so far, int32."""
        return tf.convert_to_tensor(self.state)[1]

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return inputs
        state = tf.convert_to_tensor(self.state) + [0, 1]
        self.state.assign(state)
        return self.drop(inputs, state)

    def drop(self, inputs: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """The n-th training forward, n counted from 1; `state` is (seed, n)."""
        kept = self.uniform(tf.shape(inputs), state) >= self.rate
        return tf.where(kept, inputs * tf.cast(1.0 / (1.0 - self.rate), inputs.dtype), 0.0)

    def uniform(self, shape: tf.Tensor | Sequence[tf.Tensor | int], state: tf.Tensor) -> tf.Tensor:
        """Uniform numbers in [0, 1) of a shape [B, ...], a function of the state (seed, n) alone."""
        replicas = sharing(self)
        if replicas == 1:
            return tf.random.stateless_uniform(shape, seed=state, alg="philox")
        whole = tf.concat([[replicas * shape[0]], shape[1:]], axis=0)
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * shape[0]
        return tf.random.stateless_uniform(whole, seed=state, alg="philox")[first : first + shape[0]]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tf_unravel")
class DropBlock(Dropout):
    """Drops square blocks of feature maps [B, H, W, C] while training; the share dropped grows linearly to `rate`.

    Args:
        block_size: side of the block in elements, at most H and W.
        rate: share of the elements dropped once the ramp is over, in [0, 1).
        seed: of the masks; None draws one, as Keras does.
        ramp: training forwards until then; 40000 as in MetaOptNet (20 epochs x 2000 forwards).

    Raises:
        ValueError: if `rate` or `block_size` is out of range or the block is larger than the feature map.

    Reference: Ghiasi, Lin, Le: DropBlock, NeurIPS 2018; Lee et al.: MetaOptNet, CVPR 2019.
    """

    def __init__(
        self, block_size: int, rate: float = 0.1, seed: int | None = None, ramp: int = 40000, **kwargs: Any
    ) -> None:
        super().__init__(rate, seed, **kwargs)
        if block_size < 1 or ramp < 1:
            raise ValueError(
                f"DropBlock needs block_size >= 1 and ramp >= 1. Received: block_size={block_size}, ramp={ramp}"
            )
        self.block_size = int(block_size)
        self.ramp = int(ramp)

    def build(self, input_shape: Sequence[int | None]) -> None:
        height, width = input_shape[1:3]
        if height is None or width is None or min(height, width) < self.block_size:
            raise ValueError(
                f"a block of {self.block_size} does not fit into a {height} x {width} feature map. "
                f"Received: block_size={self.block_size}; use a smaller one or larger images."
            )
        super().build(input_shape)

    def drop(self, inputs: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """The n-th training forward, n counted from 1; `state` is (seed, n)."""
        _, height, width, channels = inputs.shape
        gamma = seed_rate(keep_rate(state[1], self.rate, self.ramp), self.block_size, height, width)
        edge = self.block_size - 1
        uniform = self.uniform([tf.shape(inputs)[0], height - edge, width - edge, channels], state)
        kept = 1.0 - grow(tf.cast(uniform < gamma, tf.float32), self.block_size)  # [B, H, W, C]
        counts = tf.stack([tf.cast(tf.size(kept), tf.float32), tf.reduce_sum(kept)])
        if sharing(self) > 1:
            counts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, counts)
        scale = tf.math.divide_no_nan(counts[0], counts[1])
        return inputs * tf.cast(kept * scale, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block_size": self.block_size, "ramp": self.ramp}
