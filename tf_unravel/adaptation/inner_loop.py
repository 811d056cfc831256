"""The inner loop: a network adapted to one task by gradient steps on its support images.

    theta_{j+1} = optimizer(theta_j; grad L(theta_j; batch j)),  j = 0..steps-1

BatchNorm uses the statistics of the images of a step, as MAML and Reptile do, unless it is frozen; how the queries of
an adapted network are normalised is another question (`batchnorm`). A step is training, with its dropout, noise and
augmentation; the classification of queries is not.

Batches are drawn from the support set without replacement, one random order after the other, and may straddle two
orders, as in Reptile; a batch of the whole set needs no order.

MAML differentiates through its own unrolled loop (`learners.maml`), and Reptile's tasks advance in lockstep
(`learners.reptile`); both take their steps by `inner_optimizers`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_unravel.adaptation.inner_optimizers import InnerOptimizer, Moments
from tf_unravel.adaptation.network import Network, Weights


class Start(NamedTuple):
    """What an inner loop starts from: weights and state as of `Network`, and what the optimizer remembers."""

    weights: Weights
    state: Weights
    moments: Moments


class Step(NamedTuple):
    """What one look at a batch gives: gradients as the weights (zero where nothing is adapted), loss, new state."""

    gradients: Weights
    loss: tf.Tensor
    state: Weights


def gradients_of(
    network: Network, weights: Weights, images: tf.Tensor, labels: tf.Tensor, adapted: Sequence[bool],
    state: Weights | None = None,
) -> Step:
    """The gradients of a batch's loss by the adapted weights, with the loss and the state of the call."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        logits, state = network.logits(weights, images, state)
        loss = network.loss(logits, labels)
        scaled = network.scaled(loss)
    return Step(network.gradients(tape, scaled, weights, adapted), loss, state)


def adapt(
    network: Network, start: Start, optimizer: InnerOptimizer, images: tf.Tensor, labels: tf.Tensor,
    orders: tf.Tensor | None, steps: int, adapted: Sequence[bool],
) -> tuple[Weights, tf.Tensor]:
    """The inner loop on one task.

    Args:
        network: the function.
        start: see `Start`.
        optimizer: of the loop.
        images: support [S, H, W, C].
        labels: integers [S].
        orders: which images each step sees, int32 [steps, B]; None for all of them, in their order.
        steps: how many.
        adapted: one bool a weight.

    Returns:
        (adapted weights, loss [steps] of every step's batch).
    """
    weights, state, moments = start
    losses = tf.TensorArray(tf.float32, size=steps)

    # A graph of its own, not merged into the loop's: along a loop's cycle TensorFlow may come to the gradient of a
    # max-pool before the max-pool, and then leaves it a kernel several times slower than oneDNN's.
    @tf.function(experimental_attributes={"_noinline": True})
    def look(weights: Weights, images: tf.Tensor, labels: tf.Tensor, state: Weights) -> Step:
        return gradients_of(network, weights, images, labels, adapted, state)

    for j in tf.range(steps):
        chosen = tf.range(tf.shape(images)[0]) if orders is None else orders[j]
        step = look(weights, tf.gather(images, chosen), tf.gather(labels, chosen), state)
        weights, moments = optimizer.step(weights, step.gradients, moments)
        state = step.state  # dropout draws other masks in the next step
        losses = losses.write(j, tf.cast(step.loss, tf.float32))
    return weights, losses.stack()


def batch_orders(steps: int, batch_size: int, examples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Which examples each step of a task sees: random orders of all of them, one after the other.

    Args:
        steps: of the inner loop.
        batch_size: B.
        examples: S; a scalar tensor where a graph learns it when it runs.
        seed: int [2], of the task.

    Returns:
        int32 [steps, B]
    """
    rounds = -(-steps * batch_size // examples)
    orders = tf.argsort(tf.random.stateless_uniform([rounds, examples], seed, alg="philox"), axis=1)
    return tf.reshape(tf.reshape(orders, [-1])[: steps * batch_size], [steps, batch_size])


def support_batches(steps: int, batch_size: int | None, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor | None:
    """`batch_orders` for a support set [S, ...]; None where every step sees all of it."""
    if batch_size is None:
        return None
    examples = images.shape[0]
    if examples is not None:
        return None if batch_size >= examples else batch_orders(steps, batch_size, examples, seed)
    count = tf.shape(images)[0]
    return tf.cond(batch_size < count, lambda: batch_orders(steps, batch_size, count, seed),
                   lambda: tf.tile(tf.range(count)[None], [steps, 1]))


def kept_state(first: Weights, last: Weights) -> Weights:
    """What training keeps of an inner loop: running statistics after the first step, counters after the last.

    The statistics are then those of the weights that are not adapted.
    """
    return [a if a.dtype.is_floating else b for a, b in zip(first, last, strict=True)]
