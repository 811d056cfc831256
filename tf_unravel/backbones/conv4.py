"""The four-block convolutional network of ProtoNet (64 filters), MAML and Reptile (32 filters).

Block: conv3x3 -> batch normalisation -> ReLU -> max-pool 2x2. The pool stands before the ReLU here: both orders are
the same function (max commutes with a monotone function) and this one computes a quarter of the ReLUs. Reptile's
code has this order, the others the other.

| network                         | arguments                                               | D at 84 / 32 |
|---------------------------------|---------------------------------------------------------|--------------|
| ProtoNet as in MetaOptNet       | the defaults                                            | 1600 / 256   |
| MAML (beta only)                | filters=32, use_bias=True, batch_norm_scale=False, [1]  | 800 / 128    |
| Reptile                         | filters=32, use_bias=True, downsampling="pool_same", [1] | 1152 / 128  |
| Reptile, Omniglot (28 x 28 x 1) | use_bias=True, downsampling="stride", [1]               | 256 (at 28)  |

[1] and batch_norm_epsilon=1e-3, kernel_initializer="glorot_uniform".
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tf_unravel.backbones.layers import IMAGE_FORMAT, Normalization, conv_norm, he_normal, image_input, layer_seeds
from tf_unravel.backbones.max_pool import MaxPool

_SMALLEST = {"pool": 16, "pool_same": 1, "stride": 1}


def conv4(
    input_shape: Sequence[int] = (32, 32, 3),
    filters: int = 64,
    normalization: Normalization | None = None,
    use_bias: bool = False,
    downsampling: str = "pool",
    batch_norm_scale: bool = True,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_momentum: float = 0.9,
    kernel_initializer: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Builds the four-block network: images [B, H, W, C], uint8 or float 0..255 -> features [B, D].

    Args:
        input_shape: (H, W, C) of the images.
        filters: of each convolution; 64 in ProtoNet, 32 in MAML and Reptile.
        normalization: (mean, std) per channel in units of 0..255, fixed inside the model; default maps to -1..1.
        use_bias: whether the convolutions have a bias (MAML and Reptile: yes); the normalisation behind each owns it.
        downsampling: "pool" (2x2, an odd last row is left out), "pool_same" (2x2, an odd last row is kept: Reptile)
            or "stride" (convolutions with stride 2 instead of pools: Reptile on Omniglot).
        batch_norm_scale: whether the normalisation has a gamma (MAML: no).
        batch_norm_epsilon: added to the variance; 1e-5 in PyTorch's networks, 1e-3 in MAML and Reptile.
        batch_norm_momentum: of the moving statistics; 0.9 is PyTorch's 0.1.
        kernel_initializer: a Keras initializer's name; None is N(0, sqrt(2 / (9 filters))).
        seed: of the initial weights.

    Returns:
        A `keras.Model`. D = filters * h * w, with (h, w) the image size halved four times.

    Raises:
        ValueError: for an unknown `downsampling` or images too small to be halved four times.

    Example:
        >>> conv4((84, 84, 3)).output_shape
        (None, 1600)

    Reference: Snell et al., NeurIPS 2017; Finn et al., ICML 2017; Nichol et al., 2018.
    """
    if downsampling not in _SMALLEST:
        raise ValueError(f"downsampling is one of {sorted(_SMALLEST)}. Received: downsampling={downsampling!r}")
    inputs, x = image_input(input_shape, _SMALLEST[downsampling], "conv4", normalization)
    norm = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon, "scale": batch_norm_scale,
            "input_bias": use_bias}
    for block, block_seed in enumerate(layer_seeds(seed, 4), start=1):
        initializer = he_normal(block_seed)
        if kernel_initializer is not None:
            initializer = keras.initializers.get({"class_name": kernel_initializer, "config": {"seed": block_seed}})
        names = f"block{block}_conv", f"block{block}_norm"
        x = conv_norm(x, filters, 3, initializer, names, 2 if downsampling == "stride" else 1, **norm)
        if downsampling != "stride":
            padding = "same" if downsampling == "pool_same" else "valid"
            x = MaxPool(padding, name=f"block{block}_pool")(x)
        x = keras.layers.ReLU(name=f"block{block}_relu")(x)
    features = keras.layers.Flatten(IMAGE_FORMAT, name="features")(x)  # [B, h * w * filters]
    return keras.Model(inputs, features, name="conv4")
