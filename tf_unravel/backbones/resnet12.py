"""ResNet-12 of MetaOptNet: four residual blocks of 64, 160, 320, 640 filters with DropBlock.

Block: three times [conv3x3 without bias -> batch normalisation], LeakyReLU(0.1) after the first two; shortcut
conv1x1 without bias -> batch normalisation; sum -> LeakyReLU -> max-pool 2x2 -> drop. The pool stands before that
LeakyReLU here, the same function at a quarter of the work. "drop" is element dropout in blocks 1 and 2 (MetaOptNet's
code and its issue 28: DropBlock of size 1 in the paper's words) and DropBlock in blocks 3 and 4; how its schedule is
counted, and what the original counted, is said in `dropout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tf_unravel.backbones.dropout import DropBlock, Dropout
from tf_unravel.backbones.layers import IMAGE_FORMAT, Normalization, conv_norm, he_normal, image_input, layer_seeds
from tf_unravel.backbones.max_pool import MaxPool

_FILTERS = (64, 160, 320, 640)


def resnet12(
    input_shape: Sequence[int] = (32, 32, 3),
    normalization: Normalization | None = None,
    dropblock_size: int | None = None,
    drop_rate: float = 0.1,
    dropblock_ramp: int = 40000,
    filters: Sequence[int] = _FILTERS,
    average_pool: bool = False,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_momentum: float = 0.9,
    seed: int | None = None,
) -> keras.Model:
    """Builds ResNet-12: images [B, H, W, C], uint8 or float 0..255 -> features [B, D].

    Args:
        input_shape: (H, W, C) of the images.
        normalization: (mean, std) per channel in units of 0..255, fixed inside the model; default maps to -1..1.
        dropblock_size: side of the blocks dropped; None is 5 where the last map has room for it (84x84) and 2
            otherwise (32x32), MetaOptNet's two settings.
        drop_rate: of the element dropout, and of DropBlock at the end of its ramp.
        dropblock_ramp: training forwards in which DropBlock grows from 0 to `drop_rate`.
        filters: of the four blocks.
        average_pool: average the last map over its pixels (D = 640) instead of flattening it.
        batch_norm_epsilon: added to the variance.
        batch_norm_momentum: of the moving statistics; 0.9 is PyTorch's 0.1.
        seed: of the initial weights and of the masks.

    Returns:
        A `keras.Model` with 2560 features at 32x32 and 16000 at 84x84, 12,424,320 trainable parameters.

    Raises:
        ValueError: for images smaller than 16 x 16, not four filter counts, or a block that does not fit.

    Example:
        >>> resnet12((84, 84, 3)).output_shape
        (None, 16000)

    Reference: Lee et al., CVPR 2019; Mishra et al., ICLR 2018.
    """
    if len(filters) != 4:
        raise ValueError(f"resnet12 has four blocks. Received: filters={tuple(filters)}")
    inputs, x = image_input(input_shape, 16, "resnet12", normalization)
    if dropblock_size is None:
        side = min(inputs.shape[1:3]) // 16  # of the last map
        dropblock_size = 5 if side >= 5 else 2 if side >= 2 else 1
    norm = {"epsilon": batch_norm_epsilon, "momentum": batch_norm_momentum}
    seeds = layer_seeds(seed, 20)
    for block, width in enumerate(filters, start=1):
        *conv_seeds, drop_seed = seeds[5 * block - 5 : 5 * block]
        x = _residual(x, width, norm, conv_seeds, f"block{block}")
        if block <= 2:
            drop = Dropout(drop_rate, drop_seed, name=f"block{block}_dropout")
        else:
            drop = DropBlock(dropblock_size, drop_rate, drop_seed, dropblock_ramp, name=f"block{block}_dropblock")
        x = drop(x)
    pool = keras.layers.GlobalAveragePooling2D if average_pool else keras.layers.Flatten
    return keras.Model(inputs, pool(data_format=IMAGE_FORMAT, name="features")(x), name="resnet12")


def _residual(
    x: keras.KerasTensor, filters: int, norm: dict[str, Any], seeds: Sequence[int | None], name: str
) -> keras.KerasTensor:
    """One block up to its drop: [B, H, W, C] -> [B, H // 2, W // 2, filters]."""

    def conv(x: keras.KerasTensor, size: int, seed: int | None, name: str) -> keras.KerasTensor:
        # With the gain of a ReLU: MetaOptNet names leaky_relu but leaves its slope at 0
        return conv_norm(x, filters, size, he_normal(seed), (name, f"{name}_norm"), **norm)

    shortcut = conv(x, 1, seeds[3], f"{name}_shortcut")
    for index in (1, 2, 3):
        x = conv(x, 3, seeds[index - 1], f"{name}_conv{index}")
        if index < 3:
            x = keras.layers.LeakyReLU(0.1, name=f"{name}_leaky_relu{index}")(x)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    x = MaxPool(name=f"{name}_pool")(x)
    return keras.layers.LeakyReLU(0.1, name=f"{name}_leaky_relu")(x)
