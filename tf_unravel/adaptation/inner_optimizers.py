"""Optimizers of the inner loop, as functions of weights: nothing is assigned.

    theta' = theta - a g                                                                 (SGD: MAML, section 2)
    s' = b2 s + (1 - b2) g^2,  theta' = theta - a sqrt(1 - b2^t) g / (sqrt(s') + eps)    (Adam, beta1 = 0: Reptile)

| symbol | here          | shape                                             |
|--------|---------------|---------------------------------------------------|
| theta  | weights       | list of tensors                                   |
| g      | gradients     | the same                                          |
| a      | learning_rate | scalar; in `PerStepSGD` one for each step and weight |
| s, t   | Moments       | second moments as `weights`; steps so far, scalar |
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.network import Weights
from tf_unravel.checks import refuse_negative, shown


class Moments(NamedTuple):
    """What an inner optimizer remembers: second moments (none for SGD), and steps so far, a float32 scalar."""

    second: Weights
    steps: tf.Tensor


def descended(weights: Weights, rates: Sequence[Any], gradients: Weights) -> Weights:
    """theta - a g, with a rate for each tensor."""
    return [w - a * g for w, a, g in zip(weights, rates, gradients, strict=True)]


class _Memoryless:
    """Plain gradient descent remembers nothing but the number of its steps."""

    def start(self, weights: Weights) -> Moments:
        return Moments([], tf.constant(0.0))

    def rates_of(self, weights: Weights, steps: tf.Tensor) -> Sequence[Any]:
        """a of the next step, one for each weight."""
        raise NotImplementedError

    def step(self, weights: Weights, gradients: Weights, moments: Moments) -> tuple[Weights, Moments]:
        new = descended(weights, self.rates_of(weights, moments.steps), gradients)
        return new, Moments([], moments.steps + 1.0)


@dataclasses.dataclass(frozen=True)
class SGD(_Memoryless):
    """theta - a g; raises ValueError for a rate a that is negative or not finite."""

    learning_rate: float = 0.01
    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        refuse_negative("heads.SGD", learning_rate=self.learning_rate)

    def __str__(self) -> str:
        return f"SGD at rate {self.learning_rate:g}"

    def rates_of(self, weights: Weights, steps: tf.Tensor) -> Sequence[Any]:
        return [self.learning_rate] * len(weights)


class PerStepSGD(_Memoryless):
    """theta - factor a_j g with a rate for every step and weight; the last step's serves all later ones.

    Args:
        rates: float32 [steps, weights], at least one step; a variable is read when it is used.
        factor: scalar that the loss is multiplied by.
        adapted: one bool a weight, whether an inner loop changes it; None for all. The others' rates are not shown.
    """

    def __init__(self, rates: tf.Variable | tf.Tensor, factor: float = 1.0, adapted: Sequence[bool] | None = None):
        self.rates, self.factor, self.adapted = rates, factor, adapted

    def __str__(self) -> str:
        values = np.asarray(self.rates)
        values = values if self.adapted is None else values[:, np.array(self.adapted)]
        low, high = values.min(), values.max()
        rates = f"rate {low:g}" if low == high else f"learned rates {low:g} to {high:g}"
        return f"SGD at {rates}" + (f" on the loss times {self.factor:g}" if self.factor != 1 else "")

    def rates_of(self, weights: Weights, steps: tf.Tensor) -> Sequence[Any]:
        rates = self.factor * tf.convert_to_tensor(self.rates)
        return tf.unstack(tf.gather(rates, tf.minimum(tf.cast(steps, tf.int32), len(rates) - 1)))


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam without momentum (beta1 = 0), Reptile's inner optimizer.

    Args:
        learning_rate: a; ValueError for one that is negative or not finite.
        beta2: decay of the second moments.
        epsilon: added to their root, before the bias correction, as TensorFlow 1 did.
    """

    learning_rate: float = 1e-3
    beta2: float = 0.999
    epsilon: float = 1e-8
    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        refuse_negative("heads.Adam", learning_rate=self.learning_rate)

    def __str__(self) -> str:
        return f"Adam without momentum at rate {self.learning_rate:g}"

    def start(self, weights: Weights) -> Moments:
        return Moments([tf.zeros_like(w) for w in weights], tf.constant(0.0))

    def step(self, weights: Weights, gradients: Weights, moments: Moments) -> tuple[Weights, Moments]:
        # Elementwise: leading axes are free.
        keep, steps = self.beta2, moments.steps + 1.0
        second = [keep * s + (1.0 - keep) * g**2 for s, g in zip(moments.second, gradients, strict=True)]
        rate = self.learning_rate * tf.sqrt(1.0 - keep**steps)
        new = [
            w - tf.cast(rate, w.dtype) * g / (tf.sqrt(s) + self.epsilon)
            for w, g, s in zip(weights, gradients, second, strict=True)
        ]
        return new, Moments(second, steps)


InnerOptimizer: TypeAlias = SGD | PerStepSGD | Adam

by_name: dict[str, type[SGD] | type[Adam]] = {optimizer.name: optimizer for optimizer in (SGD, Adam)}


def check_optimizer(option: str, value: Any) -> None:
    """Raises ValueError unless `value` is an inner optimizer; `option` is what the user set."""
    if not isinstance(value, SGD | PerStepSGD | Adam):
        raise ValueError(
            f"{option} must be heads.Adam() or heads.SGD(), in a gin file @heads.Adam() or @heads.SGD(). "
            f"Received: {shown(value)}."
        )
