"""An exported model, loaded again: NumPy arrays in, NumPy arrays out.

A SavedModel is a program, and loading one trusts it: see `exporting.saved_model`.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import absl.logging
import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.head import Head, Reads
from tf_unravel.deployment.card import CARD, card_of_signatures, prior_in, read_card
from tf_unravel.deployment.graph_checks import said_by
from tf_unravel.evaluation import INDUCTIVE, Extractor
from tf_unravel.heads import SVM, Linear, Prior, Prototypes, Ridge


class Model(Extractor):
    """An exported model; `evaluate` takes it in the place of a backbone.

    Any SavedModel with the signatures `features` and `classify` is one, without a card too.

    Args:
        path: its folder; only of a model that you exported or trust (see the module).

    Raises:
        ValueError: the folder holds no exported model, or a damaged one.

    Attributes:
        path: the folder.
        card: what the model is, see `card`.
        signatures: name -> what computes it.

    Example:
        >>> model = Model("model")  # doctest: +SKIP
        >>> model.features(np.zeros((2, 100, 80, 3), np.uint8)).shape  # doctest: +SKIP
        (2, 256)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        foreign = (self.path / "saved_model.pb").is_file() and not (self.path / CARD).is_file()
        card = None if foreign else read_card(path)
        try:
            with _quiet():
                loaded = tf.saved_model.load(str(path))
            self.signatures = {name: loaded.signatures[name] for name in (*loaded.signatures, "features", "classify")}
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            what = str(error).partition("\n")[0]
            raise ValueError(f"{path} cannot be loaded; export the model again. Received: {what}") from error
        self._loaded = loaded  # its variables live as long as it does
        self.card = card_of_signatures(self.signatures) if card is None else card

    @functools.cached_property
    def head(self) -> Head:  # type: ignore[override]  # read-only
        """The head that it was exported with."""
        described = self.card["head"]
        known = {each.name: each for each in (Prototypes, Ridge, SVM, Linear)}.get(described["name"])
        if known is None or not isinstance(described.get("arguments"), dict):
            return _Classify(self)
        try:
            return known(**described["arguments"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path / CARD} is damaged (head: {error}); export the model again.") from error

    @property
    def batchnorm(self) -> str:  # type: ignore[override]  # read-only
        """What BatchNorm does in the signature `features`."""
        return str(self.card["head"].get("batchnorm") or INDUCTIVE)

    @functools.cached_property
    def prior(self) -> Prior:
        """That it was calibrated with."""
        return prior_in(self.card)

    @property
    def baked_classes(self) -> tuple[str, ...] | None:
        """The classes of a baked-in support set; None where one comes with every call."""
        names = self.card["class_names"]
        return None if names is None else tuple(names)

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A signature's outputs, by name.

        Args:
            signature: "features", "classify", the same with "_encoded", or "serving_default".
            inputs: by name, of the signature's types; strings as arrays of type object.

        Raises:
            ValueError: the model refuses them, or has no such signature.
        """
        if signature not in self.signatures:
            raise ValueError(f"{self.path} has no signature {signature}; export the model again with this version. "
                             f"Received: a model with {', '.join(sorted(self.signatures))}.")
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        try:
            return {name: value.numpy() for name, value in self.signatures[signature](**tensors).items()}
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"The model refuses this: {said_by(error)}") from error

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of images uint8 [B, H, W, C].

        Raises:
            ValueError: the model refuses them.
        """
        return self.call("features", {"images": images})["features"]

    def classify(
        self, query: np.ndarray, support: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """Probabilities of the classes.

        Args:
            query: images uint8 [Q, H, W, C].
            support: images uint8 [S, H, W, C]; None for a model with its support set baked in.
            labels: int [S], 0..W-1; None likewise.

        Returns:
            float32 [Q, W].

        Raises:
            ValueError: the model refuses them.
        """
        return self.answer(query, support, labels)["probabilities"]

    def answer(
        self, query: np.ndarray, support: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """All that `classify` gives: `probabilities`, and of models that have them `logits` and `p_known` [Q].

        The arguments and what is raised are those of `classify`.
        """
        if support is None:
            inputs = {"images": query}
        else:
            inputs = {"support_images": support, "support_labels": np.asarray(labels, np.int32), "query_images": query}
        return self.call("classify", inputs)

    def features_encoded(self, files: Sequence[bytes]) -> np.ndarray:
        """Features float32 [B, D] of the contents of B image files, JPEG, PNG or BMP, decoded by the model.

        Raises:
            ValueError: the model refuses them, or was exported by a version that took no files.
        """
        return self.call("features_encoded", {"image_bytes": _strings(files)})["features"]

    def classify_encoded(
        self, query: Sequence[bytes], support: Sequence[bytes] | None = None, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """As `classify`, of the contents of image files, JPEG, PNG or BMP, decoded by the model.

        Args:
            query: Q files, of images of any sizes.
            support: S files; None for a model with its support set baked in.
            labels: int [S], 0..W-1; None likewise.

        Returns:
            float32 [Q, W].

        Raises:
            ValueError: the model refuses them, or was exported by a version that took no files.
        """
        if support is None:
            inputs = {"image_bytes": _strings(query)}
        else:
            inputs = {"support_bytes": _strings(support), "support_labels": np.asarray(labels, np.int32),
                      "query_bytes": _strings(query)}
        return self.call("classify_encoded", inputs)["probabilities"]


def _strings(files: Sequence[bytes]) -> np.ndarray:
    """Of type object: NumPy's own strings end at their last byte that is not 0."""
    return np.array(files, object)


def load(path: str | os.PathLike) -> Model:
    """An exported model, which `evaluate` takes in the place of a backbone: see `Model`.

    Args:
        path: its folder; only of a model that you exported or trust.

    Raises:
        ValueError: the folder holds no exported model, or a damaged one.

    Example:
        >>> print(tf_unravel.evaluate(load("model"), split=test, shots=5))  # doctest: +SKIP
    """
    return Model(path)


class _Classify(Head):
    """The head of an exported model as its signature `classify`: it is given the images of one task at a time."""

    reads = Reads.IMAGES

    def __init__(self, model: Model):
        if model.baked_classes is not None:
            raise ValueError("Few-shot tasks need a model that takes a support set; export it without --support. "
                             f"Received: {model.path}, with its classes built in.")
        self._model = model
        self.name = model.card["head"]["name"]  # type: ignore[misc]  # of this instance

    def __call__(
        self, backbone: Any, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: int,
        first_task: int = 0,
    ) -> tf.Tensor:
        tasks = zip(support.numpy(), support_labels.numpy(), query.numpy(), strict=True)
        probabilities = [self._model.classify(asked, known, labels) for known, labels, asked in tasks]
        return tf.math.log(tf.maximum(np.stack(probabilities), np.finfo(np.float32).tiny))

    def said_of(self, backbone: Any) -> tuple[str, str]:
        return backbone.batchnorm, str(self._model.card["head"].get("adaptation", ""))

    def settings(self) -> str:
        return str(self._model.card["head"]["settings"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow warns that gradients were not saved; an answer needs none."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(level)
