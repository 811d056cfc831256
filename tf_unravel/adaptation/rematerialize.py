"""An inner step that forgets its activations, and computes them again for its derivative."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tf_unravel.adaptation.network import Weights

InnerStep: TypeAlias = Callable[[Weights, tf.Tensor, tf.Tensor, tf.Tensor, Weights], tuple[Weights, tf.Tensor, Weights]]
"""(weights, rates, images, labels, state) -> (new weights, loss, state)"""


def rematerialized(step: InnerStep) -> InnerStep:
    """The same inner step, whose derivative computes it again instead of keeping its activations."""

    def again_for_its_derivative(
        weights: Weights, rates: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, state: Weights
    ) -> tuple[Weights, tf.Tensor, Weights]:
        count = len(weights)

        # All that it needs are arguments: tf.custom_gradient searches the whole graph above what a function captures.
        @tf.custom_gradient
        def forward(rates: tf.Tensor, *values: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., Any]]:
            weights, (images, labels, *state) = list(values[:count]), values[count:]
            fast, loss, new_state = step(weights, rates, images, labels, state)

            def backward(*upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
                # After the gradient has arrived, and from copies: or the graph would find both computations equal,
                # do one, and keep it.
                with tf.control_dependencies(upstream[:count]):
                    copies = [tf.identity(value) for value in (rates, *weights)]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    again = step(copies[1:], copies[0], images, labels, state)[0]
                none = tf.UnconnectedGradients.ZERO
                found = tape.gradient(again, copies, output_gradients=upstream[:count], unconnected_gradients=none)
                return *found, *(None for _ in (images, labels, *state))

            return (*fast, loss, *new_state), backward

        values = forward(rates, *weights, images, labels, *state)
        return list(values[:count]), tf.stop_gradient(values[count]), list(values[count + 1 :])

    return again_for_its_derivative
