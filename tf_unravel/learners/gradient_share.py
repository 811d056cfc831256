"""How hard a regularizer pulls: the norm of its gradient on the backbone, relative to that of the cross-entropy.

    share = ||dR / dtheta|| / ||dL / dtheta||,  the norms root mean squares over a few training batches

A share of 0.01 means that the coefficient changes next to nothing; near 1 the regularizer steers the backbone as much
as the labels do. It grows as training interpolates, because the cross-entropy's gradient vanishes and R's does not.

| symbol | here                      | shape                                   |
|--------|---------------------------|-----------------------------------------|
| theta  | backbone.trainable_variables | list of tensors                      |
| L      | values["cross_entropy"]   | scalar                                  |
| R      | values["regularizer"]     | scalar, its coefficient included        |
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tf_unravel.learners.classical import Classical
from tf_unravel.learners.learner import mean_over_replicas, squared_norm


def gradient_norms(learner: Classical, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What one training batch says of a learner; leaves its weights and its BatchNorm statistics as they are.

    Returns:
        "accuracy" and "cross_entropy" of the batch, and the squared norms "cross_entropy_gradient" and
        "regularizer_gradient", scalars.
    """
    weights, state = learner.backbone.trainable_variables, learner.backbone.non_trainable_variables
    before = [tf.identity(variable.value) for variable in state]
    with tf.GradientTape(persistent=True) as tape:
        values = learner.objective(data, training=True)
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    norms = {"regularizer_gradient": tf.constant(0.0)}
    for name in ("cross_entropy", *(["regularizer"] if learner.regularizer is not None else [])):
        gradients = tape.gradient(values[name], weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        norms[f"{name}_gradient"] = squared_norm(mean_over_replicas(list(gradients)))
    return {"accuracy": values["accuracy"], "cross_entropy": values["cross_entropy"], **norms}


def regularizer_gradient_share(norms: Iterable[dict[str, Any]]) -> float:
    """||dR / dtheta|| / ||dL / dtheta|| over some batches, from the `gradient_norms` of each.

    0 without a regularizer, infinity where only the cross-entropy has no gradient.
    """
    norms = list(norms)
    of_penalty, of_loss = (sum(float(each[f"{name}_gradient"]) for each in norms)
                           for name in ("regularizer", "cross_entropy"))
    if not of_penalty:
        return 0.0
    return (of_penalty / of_loss) ** 0.5 if of_loss else float("inf")
