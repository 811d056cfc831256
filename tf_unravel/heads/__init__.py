"""Heads: from the features of a few labelled examples to logits for new ones."""

from tf_unravel.heads.kernel import Kernels, kernels
from tf_unravel.heads.prototypes import Prototypes
from tf_unravel.heads.ridge import Ridge
from tf_unravel.heads.svm import SVM

by_name = {head.name: head for head in (Prototypes, Ridge, SVM)}

__all__ = ["Kernels", "Prototypes", "Ridge", "SVM", "by_name", "kernels"]
