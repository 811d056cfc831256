"""Optimizers whose schedule is written in epochs, as papers write it."""

from collections.abc import Sequence

import keras


def sgd(
    steps_per_epoch: int,
    rates: float | Sequence[float] = (0.1,),
    epochs: Sequence[int] = (),
    momentum: float = 0.9,
    nesterov: bool = True,
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

    Returns:
        A Keras optimizer. Weight decay is the learner's (`Classical.weight_decay`: coupled, as in PyTorch), not
        Keras's decoupled one.

    Raises:
        ValueError: rates and epochs do not pair up.
    """
    rates = (rates,) if isinstance(rates, int | float) else tuple(rates)
    if len(rates) != len(epochs) + 1 or list(epochs) != sorted(set(epochs)):
        raise ValueError(
            "rates must have one value more than epochs, and epochs must increase. "
            f"Received: rates={tuple(rates)}, epochs={tuple(epochs)}."
        )
    rate = rates[0]
    rates = (rates,) if isinstance(rates, int | float) else tuple(rates)
    if len(rates) > 1:
        # Keras compares with <=: the rate changes with the first step after the boundary.
        boundaries = [int(epoch * steps_per_epoch) - 1 for epoch in epochs]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, list(rates))
    return keras.optimizers.SGD(rate, momentum=momentum, nesterov=nesterov)
