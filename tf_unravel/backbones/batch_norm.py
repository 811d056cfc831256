"""Batch normalisation on TensorFlow's fused kernels, differentiable twice at the price of the kernels.

symbol   here         shape          meaning
x        inputs       [B, H, W, C]   activations; n = B H W of them a channel
mu, var  mean, var    [C]            batch mean and biased batch variance
r        inv          [C]            1 / sqrt(var + eps)
z        -            [B, H, W, C]   (x - mu) r
y        outputs      [B, H, W, C]   gamma z + beta
a        grad         [B, H, W, C]   gradient of the loss by y
P(a)     -            [B, H, W, C]   a - m(a) - z m(a z), m the mean over the n values of a channel

Forward:   y = gamma z + beta.
Backward:  dx = gamma r P(a), dgamma = n m(a z), dbeta = n m(a): the kernel FusedBatchNormGradV3.
Twice:     with (v, s, t) the gradients by (dx, dgamma, dbeta) and q = m(a v) - m(a) m(v) - m(a z) m(v z),
           by a: gamma r P(v) + s z + t                                                   (the same kernel, on v)
           by x: -gamma r^2 [m(a z) P(v) + m(v z) P(a) + q z] + s r P(a)
           by gamma: n r q.
TensorFlow's own second derivative composes them from some forty elementwise operations; a second-order MAML step
spends a third of its time there.

in PyTorch     here                      value in MetaOptNet's networks
momentum 0.1   momentum = 1 - 0.1        0.9    (Keras's own default is 0.99)
eps            epsilon                   1e-5   (Keras's own default is 1e-3)
running_var    moving_variance           follows the unbiased variance, n / (n - 1), as in PyTorch
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_unravel")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of [B, H, W, C] as one kernel: y = gamma (x - mu) / sqrt(var + eps) + beta.

    Keras 3 composes the formula from some ten elementwise operations on TensorFlow; this one has the same
    variables, arguments and meaning of `training` and `trainable`. One difference: `moving_variance` follows the
    unbiased batch variance, as PyTorch's running_var. Statistics are in float32 for half-precision inputs. What the
    kernel does not know takes Keras's path: float64, masks, other ranks or axes, `synchronized` and `renorm`.

    Example:
        >>> layer = FusedBatchNormalization(epsilon=1e-5, momentum=0.9)
        >>> layer(np.random.rand(8, 4, 4, 3), training=True).shape
        TensorShape([8, 4, 4, 3])
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        plain = mask is not None or self.synchronized or self.renorm or inputs.dtype == tf.float64
        if plain or len(inputs.shape) != 4 or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        mean = tf.convert_to_tensor(self.moving_mean)
        variance = tf.convert_to_tensor(self.moving_variance)
        gamma = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(mean)
        beta = tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(mean)
        if not (training and self.trainable):
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=gamma, offset=beta, mean=mean, variance=variance,
                epsilon=self.epsilon, is_training=False,
            ).y  # fmt: skip
        outputs, batch_mean, batch_variance = _normalize(inputs, gamma, beta, self.epsilon)
        keep = self.momentum
        self.moving_mean.assign(keep * mean + (1.0 - keep) * batch_mean)
        self.moving_variance.assign(keep * variance + (1.0 - keep) * batch_variance)
        return outputs


def _normalize(
    inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(y, batch mean, unbiased batch variance); gradients flow through y only."""
    statistics = []

    @tf.custom_gradient
    def normalize(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        empty = tf.zeros([0], tf.float32)
        y, mean, variance, *reserve = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=empty, variance=empty, epsilon=epsilon, is_training=True
        )
        statistics.extend([mean, variance])

        def backward(grad: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return _backward(grad, x, scale, mean, variance, reserve, epsilon)

        return y, backward

    outputs = normalize(inputs, gamma, beta)
    return outputs, *statistics


def _kernel(grad: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, reserve: list, epsilon: float) -> tuple:
    """(gamma r P(a), n m(a z), n m(a)) of the gradient a."""
    return tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=grad, x=x, scale=scale, reserve_space_1=reserve[0], reserve_space_2=reserve[1],
        reserve_space_3=reserve[2], epsilon=epsilon, is_training=True,
    )[:3]  # fmt: skip


def _backward(
    grad: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, reserve: list, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The kernel's (dx, dgamma, dbeta), with the second derivative of the module's docstring."""

    @tf.custom_gradient
    def first(a: tf.Tensor, x: tf.Tensor, scale: tf.Tensor) -> tuple[tuple, Callable]:
        dx, dscale, doffset = _kernel(a, x, scale, reserve, epsilon)

        def second(v: tf.Tensor, s: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return _backward_twice(a, x, scale, (dscale, doffset), (v, s, t), mean, variance, reserve, epsilon)

        return (dx, dscale, doffset), second

    return first(grad, x, scale)


def _backward_twice(a, x, scale, sums, grads, mean, variance, reserve, epsilon):
    """Gradients by (a, x, gamma) of <v, dx> + <s, dgamma> + <t, dbeta>; every wide sum is affine in P(v), a and x."""
    v, s, t = grads
    count = tf.cast(tf.size(x) // tf.size(scale), tf.float32)
    inv = tf.math.rsqrt(variance * (tf.maximum(count - 1.0, 1.0) / count) + epsilon)
    pv, vz, v_sum = _kernel(v, x, tf.ones_like(scale), reserve, epsilon)  # r P(v), n m(v z), n m(v)
    m_az, m_a, m_vz = sums[0] / count, sums[1] / count, vz / count
    wide_a, wide_x, wide_pv = (tf.cast(value, tf.float32) for value in (a, x, pv))
    q = tf.reduce_mean(wide_a * tf.cast(v, tf.float32), axis=[0, 1, 2]) - m_a * v_sum / count - m_az * m_vz
    by_a = scale * wide_pv + (s * inv * wide_x + (t - s * inv * mean))
    # by x: k_pv r P(v) + k_a P(a) + k_z z, with P(a) and z written out in a and x
    k_pv = -scale * inv * m_az
    k_a = s * inv - scale * inv**2 * m_vz
    k_x = (-scale * inv**2 * q - k_a * m_az) * inv
    by_x = k_pv * wide_pv + k_a * wide_a + (k_x * wide_x - (k_a * m_a + k_x * mean))
    return _once((tf.cast(by_a, a.dtype), tf.cast(by_x, x.dtype), count * inv * q))


@tf.custom_gradient
def _once(values: tuple) -> tuple[tuple, Callable]:
    """The identity, not differentiable: the statistics above are no longer functions of x here."""

    def backward(*grads: tf.Tensor) -> tuple:
        raise NotImplementedError(
            "FusedBatchNormalization is differentiable twice; use keras.layers.BatchNormalization for more."
        )

    return tuple(tf.identity(value) for value in values), backward
