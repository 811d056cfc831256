"""The convolutional network of R2-D2, in the version of MetaOptNet (the one the paper's code uses).

Four blocks of 96, 192, 384, 512 filters: conv3x3 with bias -> batch normalisation -> max-pool 2x2 -> LeakyReLU(0.1).
The last block has no LeakyReLU. Dropout 0.1 follows block 3, dropout 0.3 block 4; the features are those of block 3
and of block 4, flattened and side by side.
The bias of each convolution belongs to the normalisation layer behind it (`FusedBatchNormalization`, input_bias).

Differs from Bertinetto et al.'s own code, which keeps the last LeakyReLU, pools block 4 with stride 1 and block 3
once more, and has another dropout rate per dataset: 8064 and 72576 features instead of 8192 and 51200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tf_unravel.backbones.dropout import Dropout
from tf_unravel.backbones.layers import IMAGE_FORMAT, Normalization, conv_norm, image_input, layer_seeds
from tf_unravel.backbones.max_pool import MaxPool

_FILTERS = (96, 192, 384, 512)


def r2d2(
    input_shape: Sequence[int] = (32, 32, 3),
    normalization: Normalization | None = None,
    dropout: tuple[float, float] = (0.1, 0.3),
    filters: Sequence[int] = _FILTERS,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_momentum: float = 0.9,
    seed: int | None = None,
) -> keras.Model:
    """Builds the R2-D2 network: images [B, H, W, C], uint8 or float 0..255 -> features [B, D].

    Args:
        input_shape: (H, W, C) of the images.
        normalization: (mean, std) per channel in units of 0..255, fixed inside the model; default maps to -1..1.
        dropout: rates after block 3 and after block 4.
        filters: of the four blocks.
        batch_norm_epsilon: added to the variance.
        batch_norm_momentum: of the moving statistics; 0.9 is PyTorch's 0.1.
        seed: of the initial weights and of the dropout masks.

    Returns:
        A `keras.Model` with 8192 features at 32x32 and 51200 at 84x84, 2,605,056 trainable parameters.

    Raises:
        ValueError: for images smaller than 16 x 16 or not four filter counts.

    Example:
        >>> r2d2((84, 84, 3)).output_shape
        (None, 51200)

    Reference: Bertinetto et al., ICLR 2019; Lee et al., CVPR 2019.
    """
    if len(filters) != 4:
        raise ValueError(f"r2d2 has four blocks. Received: filters={tuple(filters)}")
    inputs, x = image_input(input_shape, 16, "r2d2", normalization)
    norm: dict[str, Any] = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    seeds = layer_seeds(seed, 10)
    outputs = []
    for block, width in enumerate(filters, start=1):
        kernel_init, bias_init = (_torch_uniform(9 * x.shape[-1], seed) for seed in seeds[2 * block - 2 : 2 * block])
        x = conv_norm(x, width, 3, kernel_init, (f"block{block}_conv", f"block{block}_norm"), **norm,
                      input_bias=True, input_bias_initializer=bias_init)
        x = MaxPool(name=f"block{block}_pool")(x)
        if block < 4:
            x = keras.layers.LeakyReLU(0.1, name=f"block{block}_leaky_relu")(x)
        if block >= 3:
            x = Dropout(dropout[block - 3], seeds[5 + block], name=f"block{block}_dropout")(x)
            outputs.append(keras.layers.Flatten(IMAGE_FORMAT, name=f"block{block}_flatten")(x))
    features = keras.layers.Concatenate(name="features")(outputs)  # [B, D3 + D4]
    return keras.Model(inputs, features, name="r2d2")


def _torch_uniform(fan_in: int, seed: int | None) -> keras.initializers.Initializer:
    """PyTorch's default for convolutions, kernel and bias alike: uniform in +-1 / sqrt(fan_in)."""
    limit = fan_in**-0.5
    return keras.initializers.RandomUniform(-limit, limit, seed=seed)
