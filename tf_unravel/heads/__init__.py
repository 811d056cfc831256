"""Heads: from the features of a few labelled examples to logits for new ones.

    head(support [T, S, D], support_labels [T, S], query [T, Q, D], ways) -> logits [T, Q, ways]
    head.logits(kernels(support, query), support_labels, ways)            -> the same, from inner products alone
    FineTune(...)(backbone, support_images, support_labels, query_images, ways)  -> the same, adapting the backbone

`by_name` maps the names of tables and of the command line to the classes.
"""

from tf_unravel.heads.fine_tune import FineTune
from tf_unravel.heads.inner_loop import SGD, Adam
from tf_unravel.heads.kernel import Kernels, kernels
from tf_unravel.heads.linear import Linear
from tf_unravel.heads.prototypes import Prototypes
from tf_unravel.heads.ridge import Ridge
from tf_unravel.heads.svm import SVM

by_name = {head.name: head for head in (Prototypes, Ridge, SVM, Linear, FineTune)}

__all__ = ["Adam", "FineTune", "Kernels", "Linear", "Prototypes", "Ridge", "SGD", "SVM", "by_name", "kernels"]
