"""Heads: from a few labelled examples to logits for new ones.

    head.fit(backbone, support_images [T, S, H, W, C], support_labels [T, S], ways)(query_images) -> logits [T, Q, ways]
    head.calibrated(...)(query_images) -> probabilities that mean what they say, and whether an image is of any class
    head(support [T, S, D], support_labels [T, S], query [T, Q, D], ways)       -> the same, from features
    head.logits(kernels(support, query), support_labels, ways)                  -> the same, from inner products alone
    FineTune(...)(backbone, support_images, support_labels, query_images, ways) -> the same, adapting the backbone

`Head` is the base of all and says which of them a head has. An object of the user's own needs no base: see `as_head`.
`by_name` maps the names of tables, gin files and the command line to the classes.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tf_unravel.adaptation.calibration import Prior
from tf_unravel.adaptation.fine_tune import Batches, FineTune, Origin
from tf_unravel.adaptation.head import Calibrated, Classifier, Head, Reads
from tf_unravel.adaptation.inner_optimizers import SGD, Adam
from tf_unravel.heads.inner_products import InnerProductHead, Kernels, kernels
from tf_unravel.heads.linear import Linear
from tf_unravel.heads.prototypes import Prototypes
from tf_unravel.heads.ridge import Ridge
from tf_unravel.heads.svm import SVM
from tf_unravel.heads.users import as_head, reads_of

AnyHead: TypeAlias = Head | Callable[..., tf.Tensor]
"""A head, or an object of the user's own that is called as one."""

by_name: dict[str, Callable[..., AnyHead]] = {
    head.name: head for head in (Prototypes, Ridge, SVM, Linear, FineTune)
}


def settings_of(head: AnyHead) -> str:
    """A head and its settings, such as "ridge, l2 50"; an adapting one's inner loop is said by its accuracies."""
    return as_head("head", head).settings()


def said_of(head: AnyHead, backbone: Any) -> tuple[str, str]:
    """What must be said beside an accuracy: see `Head.said_of`."""
    return as_head("head", head).said_of(backbone)


__all__ = [
    "Adam", "AnyHead", "Batches", "Calibrated", "Classifier", "FineTune", "Head", "InnerProductHead", "Kernels",
    "Linear", "Origin", "Prior", "Prototypes", "Reads", "Ridge", "SGD", "SVM", "as_head", "by_name", "kernels",
    "reads_of", "said_of", "settings_of",
]
