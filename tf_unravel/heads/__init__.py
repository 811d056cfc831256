"""Heads: from the features of a few labelled examples to logits for new ones.

    head(support [T, S, D], support_labels [T, S], query [T, Q, D], ways) -> logits [T, Q, ways]
    head.logits(kernels(support, query), support_labels, ways)            -> the same, from inner products alone
    FineTune(...)(backbone, support_images, support_labels, query_images, ways)  -> the same, adapting the backbone

`by_name` maps the names of tables and of the command line to the classes.
"""

import dataclasses
from typing import Any, TypeAlias

import keras

from tf_unravel.adaptation.batchnorm import protocol_of
from tf_unravel.adaptation.fine_tune import FineTune
from tf_unravel.adaptation.inner_loop import SGD, Adam
from tf_unravel.adaptation.protocol import Head
from tf_unravel.checks import shown
from tf_unravel.heads.inner_products import Kernels, kernels
from tf_unravel.heads.linear import Linear
from tf_unravel.heads.prototypes import Prototypes
from tf_unravel.heads.ridge import Ridge
from tf_unravel.heads.svm import SVM

AnyHead: TypeAlias = Head | FineTune
"""A head on features, or one that adapts the backbone itself."""

by_name: dict[str, type[Head] | type[FineTune]] = {
    head.name: head for head in (Prototypes, Ridge, SVM, Linear, FineTune)
}


def check_head(option: str, head: Any) -> None:
    """Refuses what is no head, such as the name of one.

    Args:
        option: what the user set, such as "Validation.head".
        head: to what.

    Raises:
        ValueError: it cannot be called as a head is; its class is none.
    """
    if isinstance(head, type) or not callable(head):
        raise ValueError(f"{option} must be a head, such as heads.Ridge(), in a gin file @Ridge(). "
                         f"Received: {shown(head)}.")


def check_reads_features(option: str, head: Any) -> None:
    """Refuses what is no head on features: as `check_head`, and heads that adapt the network itself.

    Raises:
        ValueError: it is none.
    """
    check_head(option, head)
    if getattr(head, "on_images", False):
        raise ValueError(f"{option} must read features, as heads.Ridge() does, in a gin file @Ridge(); "
                         f"fine-tuning is trained for by MAML and Reptile. Received: {head.name}.")


def settings_of(head: Any) -> str:
    """A head and its settings, such as "ridge, l2 50"; an adapting one's inner loop is said by its accuracies."""
    if getattr(head, "on_images", False):
        return head.name + ("" if head.classifier is None else ", from the learned classifier")
    fields = dataclasses.fields(head) if dataclasses.is_dataclass(head) else ()
    values = ((field.name, getattr(head, field.name)) for field in fields)
    name = getattr(head, "name", type(head).__name__)  # one of the user's own may have none
    return ", ".join([name, *(f"{key} {f'{v:g}' if isinstance(v, float) else v}" for key, v in values)])


def said_of(head: Any, backbone: Any) -> tuple[str, str]:
    """What must be said beside an accuracy of a head on a backbone.

    Args:
        head: see the module; one of the user's own that adapts the backbone has both as `batchnorm` and `adaptation`.
        backbone: keras.Model, or something else that gives features.

    Returns:
        (what BatchNorm does, how the backbone is adapted to each task or "").
    """
    if isinstance(head, FineTune) and isinstance(backbone, keras.Model):
        return head.said_of(backbone)
    if getattr(head, "on_images", False):
        return head.batchnorm, head.adaptation
    return protocol_of(backbone, "running"), ""


__all__ = ["Adam", "AnyHead", "FineTune", "Head", "Kernels", "Linear", "Prototypes", "Ridge", "SGD", "SVM", "by_name",
           "check_head", "check_reads_features", "kernels", "said_of", "settings_of"]
