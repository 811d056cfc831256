"""An exported model, loaded again: NumPy arrays in, NumPy arrays out.

A SavedModel is a program, and loading one trusts it: see `exporting.saved_model`.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import absl.logging
import numpy as np
import tensorflow as tf

from tf_unravel.deployment.card import read_card
from tf_unravel.deployment.graph_checks import said_by


class Model:
    """An exported model.

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
        self.path, self.card = pathlib.Path(path), read_card(path)
        try:
            with _quiet():
                loaded = tf.saved_model.load(str(path))
            self.signatures = {name: loaded.signatures[name] for name in (*loaded.signatures, "features", "classify")}
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            what = str(error).partition("\n")[0]
            raise ValueError(f"{path} cannot be loaded; export the model again. Received: {what}") from error
        self._loaded = loaded  # its variables live as long as it does

    @property
    def baked_classes(self) -> tuple[str, ...] | None:
        """The classes of a baked-in support set; None where one comes with every call."""
        names = self.card["class_names"]
        return None if names is None else tuple(names)

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A signature's outputs, by name.

        Args:
            signature: "features", "classify" or "serving_default".
            inputs: by name, of the signature's types.

        Raises:
            ValueError: the model refuses them.
        """
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
        if support is None:
            inputs = {"images": query}
        else:
            inputs = {"support_images": support, "support_labels": np.asarray(labels, np.int32), "query_images": query}
        return self.call("classify", inputs)["probabilities"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow warns that gradients were not saved; an answer needs none."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(level)
