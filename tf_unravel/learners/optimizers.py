"""Optimizers whose schedule is written in epochs, as papers write it.

A run builds each as optimizer(steps_per_epoch, total_epochs), besides what its configuration binds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_unravel.checks import is_finite_number


def sgd(
    steps_per_epoch: int,
    rates: float | Sequence[float] = (0.1,),
    epochs: Sequence[int] = (),
    momentum: float = 0.9,
    nesterov: bool = True,
    total_epochs: int | None = None,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum and a piecewise constant learning rate.

    A warm-up is a first, lower rate: appendix A.2 for mini-ImageNet is rates=(0.01, 0.1, ...), epochs=(15, ...).
    Keras keeps the learning rate inside the momentum buffer and PyTorch outside: the two agree while the rate is
    constant, and for a few steps after a change differ.

    Args:
        steps_per_epoch: training steps in an epoch.
        rates: learning rates, one more than `epochs`; a single number is a constant rate.
        epochs: after how many epochs each next rate begins, increasing.
        momentum: 0.9 in the paper.
        nesterov: True in the paper.
        total_epochs: of the run; not used, the schedule is in `epochs`.
        ema_momentum: of a moving average of the weights, such as 0.999, which is what is validated, measured and
            exported (Keras's `use_ema`); None for the weights themselves.

    Returns:
        A Keras optimizer. Weight decay is the learner's (`Classical.weight_decay`: coupled, as in PyTorch), not
        Keras's decoupled one.

    Raises:
        ValueError: a rate that is no positive number; rates and epochs do not pair up; a momentum not in [0, 1).
    """
    rate = piecewise(steps_per_epoch, rates, epochs)
    return keras.optimizers.SGD(rate, momentum=momentum, nesterov=nesterov, **_moving_average(ema_momentum))


def adam(
    steps_per_epoch: int,
    rates: float | Sequence[float] = (1e-3,),
    epochs: Sequence[int] = (),
    clip_value: float | None = None,
    total_epochs: int | None = None,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """Adam (beta1 0.9, beta2 0.999, epsilon 1e-8) with a piecewise constant learning rate.

    Args:
        clip_value: gradients are clipped to +-clip_value, element by element; MAML's code has 10 on mini-ImageNet.

    The other arguments, and what is raised, are those of `sgd`.
    """
    rate = piecewise(steps_per_epoch, rates, epochs)
    # On several replicas Keras clips each one's share of the gradient: the bound has to be shared out too.
    share = clip_value and clip_value / tf.distribute.get_strategy().num_replicas_in_sync
    return keras.optimizers.Adam(rate, epsilon=1e-8, clipvalue=share, **_moving_average(ema_momentum))


def annealed_sgd(
    steps_per_epoch: int,
    total_epochs: int,
    start: float = 1.0,
    end: float = 0.0,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """SGD whose rate falls linearly from `start` to `end`: Reptile's outer step, (1 - i / n) start + (i / n) end.

    Args:
        steps_per_epoch: meta-steps in an epoch.
        total_epochs: over how many epochs the rate falls: those of the run.
        start: rate of the first step.
        end: rate after the last.
        ema_momentum: of a moving average of the weights, as for `sgd`.
    """
    steps = total_epochs * steps_per_epoch
    rate = keras.optimizers.schedules.PolynomialDecay(start, steps, end)
    return keras.optimizers.SGD(rate, **_moving_average(ema_momentum))


def _moving_average(momentum: float | None) -> dict[str, Any]:
    """Keras's arguments for a moving average of the weights."""
    if momentum is None:
        return {}
    if not is_finite_number(momentum) or not 0 <= momentum < 1:
        raise ValueError(f"ema_momentum must be in [0, 1), such as 0.999. Received: ema_momentum={momentum!r}.")
    return {"use_ema": True, "ema_momentum": momentum}


def piecewise(
    steps_per_epoch: int, rates: float | Sequence[float], epochs: Sequence[int]
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A rate that is constant between epochs, as a number or a Keras schedule; raises as `sgd`."""
    received = f"Received: rates={rates!r}"
    rates = tuple(rates) if isinstance(rates, Iterable) else (rates,)
    if not all(is_finite_number(rate) and rate > 0 for rate in rates):
        raise ValueError(f"rates must be positive numbers, such as rates = (0.1, 0.01). {received}.")
    if len(rates) != len(epochs) + 1 or list(epochs) != sorted(set(epochs)):
        raise ValueError(
            "rates must have one value more than epochs, and epochs must increase. "
            f"{received}, epochs={tuple(epochs)}."
        )
    if len(rates) == 1:
        return rates[0]
    # Keras compares with <=: the rate changes with the first step after the boundary.
    boundaries = [int(epoch * steps_per_epoch) - 1 for epoch in epochs]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, list(rates))
