"""Heads of the user's own: any object that is called as a head is one. `as_head` is the one place that looks.

A user's head needs no base class. What it reads is seen by what it has:

| has                                   | reads          |
|---------------------------------------|----------------|
| `on_images = True`                    | images         |
| `logits(kernels, support_labels, ways)` | inner products |
| a call                                | features       |

`name` and `translation_invariant` are optional; one that reads images says `batchnorm` and `adaptation`, two texts,
beside its accuracies.
"""

from typing import Any

import keras
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import in_force
from tf_unravel.adaptation.head import Classifier, Head, Reads, settings_text
from tf_unravel.adaptation.labels import Ways
from tf_unravel.checks import shown
from tf_unravel.heads.inner_products import Kernels, kernels


def as_head(option: str, head: Any) -> Head:
    """A head, or an object of the user's own as one; `option` is what the user set, such as "Validation.head".

    Raises:
        ValueError: it cannot be called as a head is; it is a class.
    """
    if isinstance(head, Head):
        return head
    if isinstance(head, type) or not (callable(head) or hasattr(head, "logits")):
        raise ValueError(f"{option} must be a head, such as heads.Ridge(), in a gin file @Ridge(). "
                         f"Received: {shown(head)}.")
    kinds = {Reads.IMAGES: _OnImages, Reads.INNER_PRODUCTS: _OnInnerProducts, Reads.FEATURES: _OnFeatures}
    return kinds[reads_of(head)](head)


def reads_of(head: Any) -> Reads:
    """What a head reads, or the heads of a class."""
    if isinstance(head, Head) or isinstance(head, type) and issubclass(head, Head):
        return head.reads
    if getattr(head, "on_images", False):
        return Reads.IMAGES
    return Reads.INNER_PRODUCTS if hasattr(head, "logits") else Reads.FEATURES


class _OnFeatures(Head):
    """A user's head that is called with features; `name` is "" where it has none."""

    def __init__(self, own: Any):
        self.own = own
        self.name = getattr(own, "name", None) or ""  # type: ignore[misc]  # of this instance
        self.translation_invariant = getattr(own, "translation_invariant", False)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        return self.own(*args, **kwargs)

    @property
    def title(self) -> str:
        return self.name or type(self.own).__name__

    def settings(self) -> str:
        return settings_text(self.title, self.own)


class _OnInnerProducts(_OnFeatures):
    """One that reads inner products, with a call of its own or without."""

    reads = Reads.INNER_PRODUCTS

    def __call__(self, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: Ways) -> tf.Tensor:
        if callable(self.own):
            return self.own(support, support_labels, query, ways)
        return self.logits(kernels(support, query), support_labels, ways)

    def logits(self, inner: Kernels, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        return self.own.logits(inner, support_labels, ways)


class _OnImages(_OnFeatures):
    """One that adapts the backbone; its classifier adapts at every call."""

    reads = Reads.IMAGES

    def fit(
        self, backbone: keras.Model, support_images: tf.Tensor, support_labels: tf.Tensor, ways: Ways
    ) -> Classifier:
        def logits(kept: tuple[tf.Tensor, tf.Tensor], query: tf.Tensor) -> tf.Tensor:
            return self(backbone, *kept, query, ways)

        return Classifier((support_images, support_labels), logits)

    def said_of(self, backbone: Any) -> tuple[str, str]:
        return str(self.own.batchnorm), self.own.adaptation

    def transductive_on(self, backbone: keras.Model) -> bool:
        return in_force(backbone, getattr(self.own, "protocol", "running")).transductive

    def settings(self) -> str:
        return self.title
