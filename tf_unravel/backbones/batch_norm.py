"""Batch normalisation on TensorFlow's fused kernels, differentiable twice at the price of the kernels.

| symbol  | here      | shape        | meaning                                                          |
|---------|-----------|--------------|------------------------------------------------------------------|
| x       | inputs    | [B, H, W, C] | activations; n = B H W of them a channel                         |
| mu, var | mean, var | [C]          | batch mean and biased batch variance                             |
| r       | inv       | [C]          | 1 / sqrt(var + eps)                                              |
| z       |           | [B, H, W, C] | (x - mu) r                                                       |
| y       | outputs   | [B, H, W, C] | gamma z + beta                                                   |
| a       | grad      | [B, H, W, C] | gradient of the loss by y                                        |
| P(a)    |           | [B, H, W, C] | a - m(a) - z m(a z), m the mean over the n values of a channel   |

    Forward:   y = gamma z + beta.
    Backward:  dx = gamma r P(a), dgamma = n m(a z), dbeta = n m(a): the kernel FusedBatchNormGradV3.
    Twice:     with (v, s, t) the gradients by (dx, dgamma, dbeta) and q = m(a v) - m(a) m(v) - m(a z) m(v z),
               by a: gamma r P(v) + s z + t                                               (the same kernel, on v)
               by x: -gamma r^2 [m(a z) P(v) + m(v z) P(a) + q z] + s r P(a)
               by gamma: n r q.

Why not Keras's layer: on TensorFlow it composes y from some ten elementwise operations, a third of a step of conv4,
and its second derivative is wrong by O(1/n): `tf.nn.moments` puts a stop_gradient on the mean, which leaves the
first derivative intact and changes the second. TensorFlow's own second derivative of the kernel is right, but
composed of some forty operations, a third of a second-order MAML step.

| in PyTorch   | here               | value in MetaOptNet's networks                            |
|--------------|--------------------|-----------------------------------------------------------|
| momentum 0.1 | momentum = 1 - 0.1 | 0.9 (Keras's own default is 0.99)                         |
| eps          | epsilon            | 1e-5 (Keras's own default is 1e-3)                        |
| running_var  | moving_variance    | follows the unbiased variance, n / (n - 1), as in PyTorch |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import keras
import tensorflow as tf

from tf_unravel.backbones.modes import by_batch, momentum_by_batch, sharing

_Triple: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


@keras.saving.register_keras_serializable(package="tf_unravel")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of [B, H, W, C] as one kernel: y = gamma (x - mu) / sqrt(var + eps) + beta.

    Same variables, arguments and meaning of `training` and `trainable` as `keras.layers.BatchNormalization`. Two
    differences: `moving_variance` follows the unbiased batch variance, as PyTorch's running_var, and the second
    derivative is right (see the module). Statistics are in float32 for half-precision inputs. float64, and
    `synchronized=True` on several replicas, take a composed path; masks and `renorm` take Keras's.

    Args:
        input_bias: whether the layer owns the bias [C] of the convolution in front of it. A batch mean takes any
            such bias out again: while training it has no effect on y and a gradient of exactly zero (PyTorch's is
            rounding noise), so it need not be computed; it shifts `moving_mean`, and counts where that is used.
        input_bias_initializer: of that bias.
        **kwargs: as for `keras.layers.BatchNormalization`.

    Example:
        >>> layer = FusedBatchNormalization(epsilon=1e-5, momentum=0.9)
        >>> layer(tf.ones([8, 4, 4, 3]), training=True).shape
        TensorShape([8, 4, 4, 3])
    """

    def __init__(
        self, input_bias: bool = False, input_bias_initializer: str | keras.Initializer = "zeros", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.input_bias = bool(input_bias)
        self.input_bias_initializer = keras.initializers.get(input_bias_initializer)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.bias = None
        if self.input_bias:
            self.bias = self.add_weight(
                shape=(input_shape[self.axis],), name="bias", initializer=self.input_bias_initializer, autocast=False
            )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        renorm = getattr(self, "renorm", False)  # Keras 3.6 has no such option yet
        if mask is not None or renorm or self.axis not in (-1, len(inputs.shape) - 1):
            inputs = inputs if self.bias is None else inputs + tf.cast(self.bias, inputs.dtype)
            return super().call(inputs, training=training, mask=mask)
        dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        mean = tf.cast(self.moving_mean, dtype)
        variance = tf.cast(self.moving_variance, dtype)
        gamma = tf.cast(self.gamma, dtype) if self.scale else tf.ones_like(mean)
        beta = tf.cast(self.beta, dtype) if self.center else tf.zeros_like(mean)
        bias = [] if self.bias is None else [tf.cast(self.bias, dtype)]
        fused = len(inputs.shape) == 4 and dtype == tf.float32
        looks = by_batch(self)  # at its batch, in a pass that is no training
        if not looks and not (training and self.trainable):
            shift = sum(bias) - mean
            return (_fused_inference if fused else _inference)(inputs, gamma, beta, shift, variance, self.epsilon)
        normalize = _fused_training if fused else _training
        if sharing(self) > 1:
            normalize = _synchronized_training
        outputs, batch_mean, batch_variance = normalize(inputs, gamma, beta, bias, self.epsilon)
        keep = momentum_by_batch(self) if looks else self.momentum
        batch_mean = batch_mean + sum(bias)
        self.moving_mean.assign(keep * mean + (1.0 - keep) * tf.stop_gradient(batch_mean))
        self.moving_variance.assign(keep * variance + (1.0 - keep) * tf.stop_gradient(batch_variance))
        return outputs

    def get_config(self) -> dict[str, Any]:
        initializer = keras.initializers.serialize(self.input_bias_initializer)
        return {**super().get_config(), "input_bias": self.input_bias, "input_bias_initializer": initializer}


def _inference(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, shift: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """gamma (x + shift) / sqrt(variance + eps) + beta, composed."""
    factor = gamma * tf.math.rsqrt(variance + epsilon)
    wide = tf.cast(x, factor.dtype)
    return tf.cast(wide * factor + (beta + shift * factor), x.dtype)


def _fused_inference(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, shift: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """The same as one kernel; the shift goes through the offset, where a gradient by the bias finds it."""
    offset = beta + gamma * shift * tf.math.rsqrt(variance + epsilon)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=offset, mean=tf.zeros_like(shift), variance=variance, epsilon=epsilon,
        is_training=False,
    ).y  # fmt: skip


def _training(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, bias: list[tf.Tensor], epsilon: float) -> _Triple:
    """(y, batch mean, unbiased batch variance), composed and differentiable to any order."""
    wide = tf.cast(x, gamma.dtype)
    axes = list(range(len(x.shape) - 1))
    count = tf.cast(tf.size(x) // tf.size(gamma), gamma.dtype)
    mean = tf.reduce_mean(wide, axes)
    centred = wide - mean
    variance = tf.reduce_mean(tf.square(centred), axes)
    y = centred * (gamma * tf.math.rsqrt(variance + epsilon)) + beta
    y += sum(0.0 * value for value in bias)  # a gradient of zero rather than none
    return tf.cast(y, x.dtype), mean, variance * (count / tf.maximum(count - 1.0, 1.0))


def _synchronized_training(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, bias: list[tf.Tensor], epsilon: float
) -> _Triple:
    """(y, mean, unbiased variance) with the statistics of the batches of all replicas, equal in size."""
    context = tf.distribute.get_replica_context()
    wide = tf.cast(x, gamma.dtype)
    axes = list(range(len(x.shape) - 1))
    count = tf.cast(tf.size(x) // tf.size(gamma), gamma.dtype) * context.num_replicas_in_sync
    mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(wide, axes))
    centred = wide - mean
    variance = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(tf.square(centred), axes))
    y = centred * (gamma * tf.math.rsqrt(variance + epsilon)) + beta
    y += sum(0.0 * value for value in bias)  # a gradient of zero rather than none
    return tf.cast(y, x.dtype), mean, variance * (count / tf.maximum(count - 1.0, 1.0))


def _fused_training(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, bias: list[tf.Tensor], epsilon: float
) -> _Triple:
    """(y, batch mean, unbiased batch variance) from one kernel; gradients flow through y only."""
    statistics: list[tf.Tensor] = []

    @tf.custom_gradient
    def normalize(
        x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *inert: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, ...]]]:
        empty = tf.zeros([0], tf.float32)
        y, *found = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=empty, variance=empty, epsilon=epsilon, is_training=True
        )
        statistics.extend(found)

        def backward(grad: tf.Tensor) -> tuple[tf.Tensor, ...]:
            grads = _backward(grad, x, scale, found, epsilon)
            return (*grads, *(tf.zeros_like(value) for value in inert))

        return y, backward

    outputs = normalize(x, gamma, beta, *bias)
    mean, variance = statistics[:2]
    return outputs, mean, variance


def _kernel(
    grad: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, statistics: Sequence[tf.Tensor], epsilon: float
) -> _Triple:
    """(gamma r P(a), n m(a z), n m(a)) of the gradient a; `statistics` is what the forward kernel gave beside y."""
    first, second, third = statistics[2:]
    return tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=grad, x=x, scale=scale, reserve_space_1=first, reserve_space_2=second, reserve_space_3=third,
        epsilon=epsilon, is_training=True,
    )[:3]  # fmt: skip


def _backward(
    grad: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, statistics: Sequence[tf.Tensor], epsilon: float
) -> _Triple:
    """The kernel's (dx, dgamma, dbeta), with the second derivative of the module's docstring."""

    # The statistics are arguments, although nothing flows back to them: tf.custom_gradient searches the whole graph
    # above whatever its function captures, which would make tracing quadratic in the number of inner steps.
    @tf.custom_gradient
    def first(
        a: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, *statistics: tf.Tensor
    ) -> tuple[_Triple, Callable[..., Any]]:
        dx, dscale, doffset = _kernel(a, x, scale, statistics, epsilon)

        def second(v: tf.Tensor, s: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            grads = _backward_twice(a, x, scale, (dscale, doffset), (v, s, t), statistics, epsilon)
            return (*grads, *(None for _ in statistics))

        return (dx, dscale, doffset), second

    return first(grad, x, scale, *statistics)


def _backward_twice(
    a: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, sums: tuple[tf.Tensor, tf.Tensor], grads: _Triple,
    statistics: Sequence[tf.Tensor], epsilon: float,
) -> _Triple:
    """Gradients by (a, x, gamma) of <v, dx> + <s, dgamma> + <t, dbeta>; every wide sum is affine in P(v), a and x."""
    (v, s, t), (mean, variance) = grads, statistics[:2]
    count = tf.cast(tf.size(x) // tf.size(scale), tf.float32)
    inv = tf.math.rsqrt(variance * (tf.maximum(count - 1.0, 1.0) / count) + epsilon)
    pv, vz, v_sum = _kernel(v, x, tf.ones_like(scale), statistics, epsilon)  # r P(v), n m(v z), n m(v)
    m_az, m_a, m_vz = sums[0] / count, sums[1] / count, vz / count
    wide_a, wide_x, wide_pv = (tf.cast(value, tf.float32) for value in (a, x, pv))
    q = tf.reduce_mean(wide_a * tf.cast(v, tf.float32), axis=[0, 1, 2]) - m_a * v_sum / count - m_az * m_vz
    by_a = scale * wide_pv + (s * inv * wide_x + (t - s * inv * mean))
    # by x: k_pv r P(v) + k_a P(a) + k_z z, with P(a) and z written out in a and x
    k_pv = -scale * inv * m_az
    k_a = s * inv - scale * inv**2 * m_vz
    k_x = (-scale * inv**2 * q - k_a * m_az) * inv
    by_x = k_pv * wide_pv + k_a * wide_a + (k_x * wide_x - (k_a * m_a + k_x * mean))
    return _final(tf.cast(by_a, a.dtype), tf.cast(by_x, x.dtype), count * inv * q)


@tf.custom_gradient
def _final(*values: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., Any]]:
    """The identity, with an error for its derivative: the statistics are not functions of x in these formulas."""

    def backward(*grads: tf.Tensor) -> NoReturn:
        raise NotImplementedError(
            "FusedBatchNormalization is differentiable twice; use dtype float64 or another layer for more."
        )

    return tuple(tf.identity(value) for value in values), backward
