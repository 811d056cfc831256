"""An exported model, loaded again: NumPy arrays in, NumPy arrays out.

A SavedModel is a program, and loading one trusts it: its graph runs when it is called, with all that TensorFlow's
operations may do. Nothing is unpickled and no Python of it is run.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import absl.logging
import numpy as np
import tensorflow as tf

from tf_unravel.deployment.card import read_card
from tf_unravel.deployment.requests import said_by


class Model:
    """An exported model.

    Args:
        path: its folder; only of a model that you exported or trust (see the module).

    Raises:
        ValueError: the folder holds no exported model, or a damaged one.

    Attributes:
        path: the folder.
        card: what the model is, see `card`.

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
            self._features, self._classify = (loaded.signatures[name] for name in ("features", "classify"))
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            what = str(error).partition("\n")[0]
            raise ValueError(f"{path} cannot be loaded; export the model again. Received: {what}") from error
        self._loaded = loaded  # its variables live as long as it does

    @property
    def baked_classes(self) -> tuple[str, ...] | None:
        """The classes of a baked-in support set; None where one comes with every call."""
        names = self.card["class_names"]
        return None if names is None else tuple(names)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of images uint8 [B, H, W, C].

        Raises:
            ValueError: the model refuses them.
        """
        with _refusals():
            return self._features(images=tf.constant(images))["features"].numpy()

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
        asked = tf.constant(query)
        with _refusals():
            if support is None:
                return self._classify(images=asked)["probabilities"].numpy()
            known = {"support_images": tf.constant(support), "support_labels": tf.constant(labels, tf.int32)}
            return self._classify(query_images=asked, **known)["probabilities"].numpy()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"The model refuses this: {said_by(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow warns that gradients were not saved; an answer needs none."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(level)
