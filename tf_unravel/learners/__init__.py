"""Learners: how a backbone is trained. Each is a keras.Model with a train_step; `learner.backbone` is the result."""

from tf_unravel.learners.classical import Classical, Regularizer
from tf_unravel.learners.optimizers import sgd

__all__ = ["Classical", "Regularizer", "sgd"]
