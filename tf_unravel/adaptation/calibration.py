"""Probabilities that mean what they say: a temperature, fitted on the support set alone.

    p = softmax(z / T)                                                                                       (1)
    T = u / b,   u = mean_i (z_i,y - mean_{m != y} z_im)   over the support images, by the fitted head       (2)
    b = argmin  sum_i -log softmax(b z'_i)_y + s (b tau - log(b tau))                                        (3)

(1) is the temperature scaling of Guo et al. A few-shot head has no validation set, so (3) takes the support images
instead, each judged by a head that was fitted without it: fold j leaves the j-th image of every class out, and z' are
its logits in units of the fold's own margin u. The unit (2) makes b a pure number: it hardly depends on the scale of
the features, on the head or on the number of shots, while T changes by orders of magnitude. Two things follow. What
folds with one image fewer per class find holds for the whole support set; and a prior makes sense. It is the second
term of (3), of strength s (in images, roughly), convex, with its minimum at b = 1 / tau. With one image per class
nothing can be left out, and b = 1 / tau.

Leaving single images out, as in textbooks, leaves their own class one image short of the others, and with two or three
shots that shows: expected calibration errors of 28 % where folds give 8 % (CIFAR-FS, 5-way 2-shot, ridge, s = 0).

| symbol | name       | shape     |
|--------|------------|-----------|
| z      | logits     | [T, S, W] |
| y      | labels     | [S], the same for every task |
| b      | sharpness  | [T]       |
| u      | margin     | [T]       |
| tau, s | Prior      | scalars   |

Reference: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tf_unravel.adaptation.labels import Ways, required

MAX_FOLDS = 5
_RANGE = 1e4  # b lies within this factor of 1 / tau
_ITERATIONS = 60


@dataclasses.dataclass(frozen=True)
class Prior:
    """What is known of a network before it sees a support set.

    Args:
        temperature: tau, in units of the margin. Default 0.1, about the geometric mean over the heads of an ImageNet
            network on Caltech-101 (0.05 to 0.08) and of conv4-64 on CIFAR-FS (0.15 to 0.18).
        strength: s. Default 3.
        similarities: evenly spaced quantiles, ascending, of the similarity (`open_set`) that known images of other
            classes reach with one image per class; none if no such classes are known.

    Raises:
        ValueError: a temperature or a strength that is not positive and finite.
    """

    temperature: float = 0.1
    strength: float = 3.0
    similarities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "strength"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ValueError(f"Prior needs a positive, finite {name}. Received: {name}={value}.")


def common_labels(support_labels: tf.Tensor) -> tf.Tensor:
    """The labels [S] of tasks [T, S] that share them.

    Raises:
        ValueError: tasks whose labels differ (in a graph an InvalidArgumentError, when it runs).
    """
    labels = tf.convert_to_tensor(support_labels)
    message = "Tasks that are calibrated together must have the same support labels in the same order."
    if labels.shape[0] == 1:
        return labels[0]
    same = tf.reduce_all(labels == labels[:1])
    if tf.executing_eagerly() and not bool(same):
        raise ValueError(f"{message} Received: {labels.numpy().tolist()}.")
    return required(labels[0], (same, message, [labels]))


def ranks(labels: tf.Tensor, ways: Ways) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each of S images its place within its class, and how many images its class has; int32 [S]."""
    of_class = tf.one_hot(labels, ways, dtype=tf.int32)  # [S, W]
    place = tf.reduce_sum((tf.cumsum(of_class) - 1) * of_class, axis=1)
    return place, tf.gather(tf.reduce_sum(of_class, axis=0), labels)


def folds(labels: tf.Tensor, ways: Ways) -> tf.Tensor:
    """Which fold leaves each image out, int32 [S]: its place in its class modulo `MAX_FOLDS`; -1 for an only image."""
    place, count = ranks(labels, ways)
    return tf.where(count > 1, place % MAX_FOLDS, -1)


def margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """u [T] of equation (2), from logits [T, S, W] and labels [S]; above 0, however badly the head fits."""
    own = _own(logits, labels)
    others = tf.cast(tf.shape(logits)[-1] - 1, logits.dtype)
    found = tf.reduce_mean(own - (tf.reduce_sum(logits, axis=-1) - own) / others, axis=-1)  # [T]
    # Images that cannot be told apart have none: a thousandth of the logits keeps rounding from deciding.
    return tf.maximum(found, 1e-3 * tf.reduce_mean(tf.abs(logits), axis=[1, 2]) + 1e-30)


def _own(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The logit [T, S] of each image's own class."""
    return tf.reduce_sum(logits * tf.one_hot(labels, tf.shape(logits)[-1], dtype=logits.dtype), axis=-1)


Refit = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""(indices of the images left out [L], of those kept [K]) -> their logits [T, L, W], [T, K, W] by a fit to the kept."""


def left_out_logits(refit: Refit, labels: tf.Tensor, fold: tf.Tensor, tasks: tf.Tensor, ways: Ways) -> tf.Tensor:
    """z' [T, S, W] of equation (3), float64, from the fold of each image; 0 where it is -1."""
    size = tf.shape(labels)[0]

    def body(number: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        left, kept = tf.where(fold == number)[:, 0], tf.where(fold != number)[:, 0]
        of_left, of_kept = (tf.cast(logits, tf.float64) for logits in refit(left, kept))
        scaled = of_left / margin(of_kept, tf.gather(labels, kept))[:, None, None]  # [T, L, W]
        return number + 1, tf.tensor_scatter_nd_update(found, left[:, None], tf.transpose(scaled, [1, 0, 2]))

    start = (tf.constant(0), tf.zeros([size, tasks, ways], tf.float64))
    _, found = tf.while_loop(lambda number, _: number <= tf.reduce_max(fold), body, start)
    return tf.transpose(found, [1, 0, 2])  # [T, S, W]


def sharpness(logits: tf.Tensor, labels: tf.Tensor, counted: tf.Tensor, prior: Prior) -> tf.Tensor:
    """b [T] of equation (3): Newton's method on its slope, which grows with b, within a bracket that bisection narrows.

    Args:
        logits: z', float64 [T, S, W].
        labels: integers [S].
        counted: bool [S], which images have been left out.
        prior: tau and s.
    """
    relative = logits - _own(logits, labels)[..., None]
    weight, tau = tf.cast(counted, tf.float64), tf.constant(prior.temperature, tf.float64)

    def slope(b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        p = tf.nn.softmax(b[:, None, None] * relative)
        mean = tf.reduce_sum(p * relative, axis=-1)  # [T, S]
        variance = tf.reduce_sum(p * tf.square(relative - mean[..., None]), axis=-1)
        first = tf.reduce_sum(weight * mean, axis=-1) + prior.strength * (tau - 1.0 / b)
        return first, tf.reduce_sum(weight * variance, axis=-1) + prior.strength / tf.square(b)

    def body(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor, b: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        first, second = slope(b)
        low, high = tf.where(first < 0, b, low), tf.where(first < 0, high, b)
        newton = b - first / second
        new = tf.where((newton > low) & (newton < high), newton, tf.sqrt(low * high))
        return i + 1, low, high, new, tf.reduce_any(tf.abs(new - b) > 1e-9 * b)

    b = tf.fill(tf.shape(logits)[:1], 1.0 / tau)
    start = (tf.constant(0), b / _RANGE, b * _RANGE, b, tf.constant(True))
    return tf.while_loop(lambda i, low, high, b, moved: moved & (i < _ITERATIONS), body, start)[3]
