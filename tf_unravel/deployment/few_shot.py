"""What a client asks of an exported model while it collects labelled images: answers, a check of them, a classifier.

Heads on features are asked on features, which the client keeps: each image passes through the network once, however
often the labelled images change. Heads that adapt the network need the image files every time.

| class        | an image is                         | check                                | classifier keeps      |
|--------------|-------------------------------------|--------------------------------------|-----------------------|
| `OnFeatures` | its features, float32 [D], as bytes | probabilities by fits without it     | the calibrated head   |
| `OnFiles`    | a JPEG, PNG or BMP file             | none: each would be an adaptation    | the labelled images   |
"""

import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import tensorflow as tf

from tf_unravel.adaptation import open_set
from tf_unravel.adaptation.head import Reads
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.deployment.exporting.decoding_graph import decoder
from tf_unravel.deployment.exporting.saved_model import (
    baked,
    checked_names,
    fitted,
    outputs_of,
    write_model,
)
from tf_unravel.deployment.graph_checks import checked_request, said_by
from tf_unravel.deployment.labelled_images import decoding_of
from tf_unravel.deployment.model import Model

Found = Mapping[str, np.ndarray]


class FewShot(Protocol):
    """An exported model without a support set, asked with one.

    Attributes:
        reads: what an image is, "features" or "files".
    """

    reads: ClassVar[str]

    def answer(self, support: Sequence[bytes], labels: np.ndarray, query: Sequence[bytes]) -> Found:
        """`probabilities` [Q, W] and, of models that have it, `p_known` [Q] of Q images.

        Args:
            support: S labelled images.
            labels: int32 [S], 0..W-1, each at least once.
            query: Q images.

        Raises:
            ValueError: the model refuses them.
        """
        ...

    def left_out(self, support: Sequence[bytes], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(probabilities [S, W] of the labelled images by fits without them, bool [S] whether there was such a fit).

        None under a head that adapts the network.
        """
        ...

    def export(
        self, support: Sequence[bytes], labels: np.ndarray, class_names: Sequence[str], path: str | os.PathLike
    ) -> pathlib.Path:
        """Writes the model with the support set built in: a plain classifier of these classes; see `export`."""
        ...


def few_shot(model: Model) -> FewShot:
    """A model as its head wants to be asked.

    Raises:
        ValueError: it has its classes built in, or does not take image files.
    """
    if "features_encoded" not in model.signatures or "classify_encoded" not in model.signatures:
        raise ValueError(f"The page needs a model that takes image files; export it again with this version. "
                         f"Received: {model.path}, with {', '.join(sorted(model.signatures))}.")
    return OnFiles(model) if model.head.reads is Reads.IMAGES else OnFeatures(model)


def lowest_rate(model: Model, labels: np.ndarray) -> float:
    """The lowest rate of false alarms at which such labelled images can tell an unknown one."""
    counts = np.bincount(labels)
    return open_set.lowest(int(counts[counts > 1].sum()), len(model.prior.similarities))


class OnFeatures:
    """The head of an exported model on features; see `FewShot`.

    Args:
        model: whose head reads features.
    """

    reads: ClassVar[str] = "features"

    def __init__(self, model: Model):
        self.model, self.head, self.prior = model, model.head, model.prior
        self.size = model.signatures["features"].structured_outputs["features"].shape[-1]
        known, labels = tf.TensorSpec([None, self.size], tf.float32), tf.TensorSpec([None], tf.int32)
        self._answer = tf.function(self._answer_graph, input_signature=[known, labels, known], autograph=False)
        self._left_out = tf.function(self._left_out_graph, input_signature=[known, labels], autograph=False)

    def answer(self, support: Sequence[bytes], labels: np.ndarray, query: Sequence[bytes]) -> Found:
        found = _run(self._answer, self._vectors(support), labels, self._vectors(query))
        return {name: value.numpy() for name, value in found.items()}

    def left_out(self, support: Sequence[bytes], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, counted = _run(self._left_out, self._vectors(support), labels)
        return probabilities.numpy(), counted.numpy()

    def export(
        self, support: Sequence[bytes], labels: np.ndarray, class_names: Sequence[str], path: str | os.PathLike
    ) -> pathlib.Path:
        known = self._vectors(support)
        _run(self._answer, known, labels, known[:1])  # what is wrong with them is said before anything is written
        names = checked_names(class_names, int(labels.max()) + 1)
        answer = fitted(self.head, self.model.signatures["features"], tf.constant(known), tf.constant(labels),
                        len(names), self.prior)
        return _write(self.model, answer, names, labels, path)

    def _vectors(self, images: Sequence[bytes]) -> np.ndarray:
        """Features [B, D] from their bytes."""
        wrong = [len(each) for each in images if len(each) != 4 * self.size]
        if wrong:
            raise ValueError(f"Features must be {self.size} float32 values, {4 * self.size} bytes. "
                             f"Received: {wrong[0]} bytes.")
        return np.frombuffer(b"".join(images), "<f4").reshape(len(images), self.size)

    def _answer_graph(self, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> dict[str, tf.Tensor]:
        asked = checked_request(support, labels, query)
        with labels_checked():
            known, labels = asked.support_images[None], asked.support_labels[None]
            classifier = self.head.calibrated_features(known, labels, asked.ways, self.prior)
            return outputs_of(classifier(asked.query_images[None]))

    def _left_out_graph(self, support: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        asked = checked_request(support, labels, support)
        with labels_checked():
            known, labels = asked.support_images[None], asked.support_labels[None]
            probabilities, counted = self.head.left_out(known, labels, asked.ways, self.prior)
        return probabilities[0], counted


class OnFiles:
    """An exported model that adapts its network to every support set; see `FewShot`.

    Args:
        model: any model.
    """

    reads: ClassVar[str] = "files"

    def __init__(self, model: Model):
        self.model = model

    def answer(self, support: Sequence[bytes], labels: np.ndarray, query: Sequence[bytes]) -> Found:
        inputs = {"support_bytes": np.array(support, object), "support_labels": labels,
                  "query_bytes": np.array(query, object)}
        return self.model.call("classify_encoded", inputs)

    def left_out(self, support: Sequence[bytes], labels: np.ndarray) -> None:
        return None

    def export(
        self, support: Sequence[bytes], labels: np.ndarray, class_names: Sequence[str], path: str | os.PathLike
    ) -> pathlib.Path:
        self.answer(support, labels, support[:1])  # what is wrong with them is said before anything is written
        names = checked_names(class_names, int(labels.max()) + 1)
        decode = decoder(decoding_of(self.model.card), self.model.card["input"]["channels"])
        images = tf.Variable(decode(tf.constant("support"), tf.constant(np.array(support, object))), trainable=False)
        known, classify = tf.Variable(labels, trainable=False), self.model.signatures["classify"]

        def answer(query: tf.Tensor) -> dict[str, tf.Tensor]:
            return classify(support_images=images.value(), support_labels=known.value(), query_images=query)

        return _write(self.model, answer, names, labels, path)


def _run(function: Any, *values: np.ndarray) -> Any:
    try:
        return function(*map(tf.constant, values))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"The model refuses this: {said_by(error)}") from error


def _write(
    model: Model, answer: Any, names: Sequence[str], labels: np.ndarray, path: str | os.PathLike
) -> pathlib.Path:
    """A plain classifier of a model's features, and the model's card with the classes in it."""
    card = {
        **model.card, "exported": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "ways": len(names), "class_names": list(names), "support_per_class": np.bincount(labels).tolist(),
    }
    return write_model(baked(answer, model.signatures["features"], card["input"]["channels"], names), card, path)
