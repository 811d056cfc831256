"""Learners: how a backbone is trained. Each is a keras.Model with a train_step; `learner.backbone` is the result."""

from tf_unravel.learners.adapting import Evaluation
from tf_unravel.learners.classical import Classical, Regularizer
from tf_unravel.learners.episodic import Episodic
from tf_unravel.learners.learner import Learner
from tf_unravel.learners.maml import MAML, InnerLoop
from tf_unravel.learners.optimizers import adam, annealed_sgd, sgd
from tf_unravel.learners.reptile import Reptile

__all__ = ["Classical", "Episodic", "Evaluation", "InnerLoop", "Learner", "MAML", "Regularizer", "Reptile", "adam",
           "annealed_sgd", "sgd"]
