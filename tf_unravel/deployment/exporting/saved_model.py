"""Export: a backbone and a head as a SavedModel that TensorFlow alone can load and serve.

Signatures, with B, H, V (height, width), S, Q and W free at every call and C the model's channels:

| signature  | takes                                                            | gives                          |
|------------|------------------------------------------------------------------|--------------------------------|
| `features` | images uint8 [B, H, V, C]                                        | features float32 [B, D]        |
| `classify` | support_images uint8 [S, H, V, C], support_labels int32 [S],     | probabilities float32 [Q, W]   |
|            | query_images uint8 [Q, H, V, C]                                  |                                |

With a support set baked in, `classify` is a plain classifier:

| `classify` | images uint8 [B, H, V, C]                | probabilities float32 [B, W], class_names string [B, W] |

The same from image files, JPEG, PNG or BMP, as strings; images of one request may differ in size (`decoding_graph`):

| `features_encoded` | image_bytes string [B]                                 | as `features`                  |
| `classify_encoded` | support_bytes string [S], support_labels int32 [S],    | as `classify`                  |
|                    | query_bytes string [Q]; or image_bytes string [B]      |                                |

`serving_default` is `features`, or the plain classifier. Its class names come once for each image, as in TensorFlow
Serving's own Classify: its REST API wants one row an image in every output.

Pixels are 0-255. Images of another size than the model's are resized inside, bilinear and antialiased, stretched to the
model's shape; those of its own size are not touched. Probabilities are calibrated on the support set
(`adaptation.calibration`; those of a head that adapts the network are the softmax of its logits), logits are the head's
own, and p_known is the share of known images that look as strange or stranger: an image is of none of the classes where
it is at most the rate of false alarms that one can live with (`adaptation.open_set`). A bad request is refused by
assertions in the graph (`graph_checks`).

A SavedModel is a program: loading one makes a graph, and calling it runs that, with all that TensorFlow's operations
may do (they can read and write files). Nothing in it is unpickled and no Python of it is run, but load and serve only
what you exported or trust. TensorFlow warns on loading that gradients of some operations were not saved: those of our
solvers and of BatchNorm are Python, and an answer needs none.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel.adaptation.calibration import Prior
from tf_unravel.adaptation.head import Calibrated, Head, Reads
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.deployment.card import CARD, card_of, is_exported, others_in, write_card
from tf_unravel.deployment.exporting.decoding_graph import encoded_signatures
from tf_unravel.deployment.graph_checks import Request, checked_images, checked_request, finite, said_by
from tf_unravel.deployment.labelled_images import decoding_of
from tf_unravel.files import write_folder
from tf_unravel.heads import AnyHead, as_head

Signatures = dict[str, Any]
Answer = Callable[[tf.Tensor], dict[str, tf.Tensor]]
_BATCH = 32  # support images that pass through the network at once


def export(
    backbone: keras.Model,
    head: AnyHead,
    path: str | os.PathLike,
    *,
    support: tuple[Any, Any] | None = None,
    class_names: Sequence[str] | None = None,
    card: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
) -> pathlib.Path:
    """Writes a SavedModel, and a card that says what it is.

    Args:
        backbone: keras.Model, images [B, H, W, C] of a fixed size -> features [B, D].
        head: see `tf_unravel.heads`.
        path: the folder. It is whole or absent at any moment; an exported model that is there is replaced, unless
            something else is in its folder.
        support: (images uint8 [S, H, W, C], labels integers [S]) to bake in: a plain classifier of these classes.
        class_names: of the labels 0..W-1 of `support`; None for "0", "1" and so on.
        card: what is known of the model besides, such as `{"trained": {...}, "accuracies": [...]}`; JSON values.
        prior: for calibration, such as `evaluation.fitted_prior` gives; `Prior()` by default.

    Returns:
        The folder: saved_model.pb, variables/ and tf_unravel.json, the card.

    Raises:
        ValueError: no such backbone or head, a support set that is none, class names that do not fit it, something
            else at `path`.
        NotWritten: the disk is full, or the place cannot be written; a model that was there is still whole.

    Example:
        >>> tf_unravel.export(learner.backbone, tf_unravel.heads.Ridge(), "model")  # doctest: +SKIP
        PosixPath('/home/me/model')
    """
    head, prior = as_head("head", head), prior or Prior()
    shape = image_shape_of(backbone)
    _check_free(pathlib.Path(os.path.realpath(path)), path)
    features = _features(backbone, shape)
    if support is None:
        if class_names is not None:
            raise ValueError(f"class_names name the classes of a support set; give support. Received: {class_names}.")
        written = card_of(backbone, head, shape, known=card or {}, prior=prior)
        signatures = _free(backbone, head, features, shape, prior)
    else:
        chosen = _support_set(*support, shape, head)
        counts = np.bincount(chosen.support_labels.numpy()).tolist()
        names = checked_names(class_names, len(counts))
        written = card_of(backbone, head, shape, dict(zip(names, counts, strict=True)), card or {}, prior)
        if head.reads is Reads.IMAGES:
            answer = _adapted(backbone, head, chosen, len(names), prior, shape)
        else:
            known = _in_batches(features, chosen.support_images)
            answer = fitted(head, features, known, chosen.support_labels, len(names), prior)
        signatures = baked(answer, features, shape[2], names)
    return write_model(signatures, written, path)


def write_model(signatures: Signatures, card: Mapping[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Writes signatures that take pixels, the same that take files, and a card: see `export`.

    Raises:
        ValueError: something else at `path`.
        NotWritten: the disk is full, or the place cannot be written.
    """
    target = pathlib.Path(os.path.realpath(path))
    _check_free(target, path)
    pixels = {name: signatures[name] for name in ("features", "classify")}
    signatures = signatures | encoded_signatures(pixels, decoding_of(card), card["input"]["channels"])

    def fill(folder: pathlib.Path) -> None:
        _save(signatures, folder, card)
        _check_free(target, path)  # again: all that took seconds

    write_folder(target, fill)
    return target


def _save(signatures: Signatures, folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    module = tf.Module(name="tf_unravel")
    read = {id(variable): variable for function in signatures.values() for variable in function.variables}
    module.read = list(read.values())  # saved with the graphs that read them, and as it is now
    # Gradients of the solvers and of BatchNorm are Python: they stay here.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    level = tf.get_logger().level
    tf.get_logger().setLevel("WARNING")  # it says in a temporary folder's name what was written
    try:
        tf.saved_model.save(module, str(folder), signatures, options)
    except tf.errors.OpError as error:
        line = error.message.splitlines()[0].partition(" [Op:")[0]  # "<file>; <reason>"
        raise OSError(line.rpartition("; ")[-1]) from error
    finally:
        tf.get_logger().setLevel(level)
    write_card(folder / CARD, card)


def _check_free(target: pathlib.Path, path: str | os.PathLike) -> None:
    """Refuses a place that holds what is not ours to replace."""
    if not is_exported(target):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ValueError(f"{path} is there and is no exported model; choose another folder. Received: path={path}.")
    elif others := others_in(target):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(f"The exported model in {path} would be replaced with all that is in its folder, and "
                         f"{others[0]}{more} would be lost; move that away, or choose another folder. "
                         f"Received: path={path}.")


def image_shape_of(backbone: keras.Model) -> tuple[int, int, int]:
    """(H, W, C) of a backbone's images.

    Raises:
        ValueError: it takes no images of a fixed size, or gives no vector for each.
    """
    shape, output = (getattr(backbone, name, None) for name in ("input_shape", "output_shape"))
    if not (isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]
            and isinstance(output, tuple) and len(output) == 2):
        raise ValueError(
            "A backbone to export is a keras.Model from images [B, H, W, C] of a fixed size to features [B, D]; "
            f"backbones.wrap makes one of another model. Received: {type(backbone).__name__}, {shape} -> {output}."
        )
    return tuple(shape[1:])


def resized(images: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Images of the model's size.

    Args:
        images: [B, h, w, C] of 0-255.
        shape: (H, W, C).

    Returns:
        float32 [B, H, W, C]; the same pixels where the size is the same.
    """
    size = tf.constant(shape[:2])
    pixels = tf.cast(images, tf.float32)
    same = tf.reduce_all(tf.shape(images)[1:3] == size)
    pixels = tf.cond(same, lambda: pixels, lambda: tf.image.resize(pixels, size, "bilinear", antialias=True))
    return tf.ensure_shape(pixels, [None, *shape])


def _images(name: str, channels: int) -> tf.TensorSpec:
    return tf.TensorSpec([None, None, None, channels], tf.uint8, name)


def _features(backbone: keras.Model, shape: tuple[int, int, int]) -> Any:
    """The signature `features`."""

    @tf.function(input_signature=[_images("images", shape[2])])
    def features(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = resized(checked_images("images", images), shape)
        return {"features": tf.cast(backbone(pixels, training=False), tf.float32)}

    return features.get_concrete_function()


def outputs_of(said: Calibrated) -> dict[str, tf.Tensor]:
    """What `classify` gives of one task."""
    probabilities, logits, p_known = (tf.cast(value[0], tf.float32) for value in said)
    return {"probabilities": finite(probabilities), "logits": logits, "p_known": p_known}


def _free(
    backbone: keras.Model, head: Head, features: Any, shape: tuple[int, int, int], prior: Prior
) -> Signatures:
    """The signatures of a model whose support set comes with every request."""
    specs = [_images("support_images", shape[2]), tf.TensorSpec([None], tf.int32, "support_labels"),
             _images("query_images", shape[2])]

    @tf.function(input_signature=specs)
    def classify(
        support_images: tf.Tensor, support_labels: tf.Tensor, query_images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        request = checked_request(support_images, support_labels, query_images, head.learned_ways)
        support, query = resized(request.support_images, shape), resized(request.query_images, shape)
        ways = request.ways if head.learned_ways is None else head.learned_ways
        with labels_checked():
            classifier = head.calibrated(backbone, support[None], request.support_labels[None], ways, prior)
            return outputs_of(classifier(query[None]))

    return {"features": features, "classify": classify.get_concrete_function(), "serving_default": features}


def _in_batches(features: Any, images: tf.Tensor) -> tf.Tensor:
    """Features [S, D] of a support set, some images at a time: all at once may not fit into memory."""
    return tf.concat([features(images=images[start : start + _BATCH])["features"]
                      for start in range(0, images.shape[0], _BATCH)], axis=0)


def fitted(head: Head, features: Any, known: tf.Tensor, labels: tf.Tensor, ways: int, prior: Prior) -> Answer:
    """What a head answers once it has been fitted to the features of a support set.

    Args:
        head: one that reads features.
        features: the signature `features`.
        known: features [S, D].
        labels: int32 [S], 0..ways-1, each at least once.
        ways, prior: see `Head.calibrated`.

    Returns:
        The `answer` of `baked`.
    """
    with labels_checked():
        classifier = head.calibrated_features(known[None], labels[None], ways, prior).in_variables()
    return lambda images: outputs_of(classifier(features(images=images)["features"][None]))


def _adapted(
    backbone: keras.Model, head: Head, support: Request, ways: int, prior: Prior, shape: tuple[int, int, int]
) -> Answer:
    """The same of a head that adapts the network, whose images are all needed at once."""
    pixels = resized(support.support_images, shape)
    # A name of its own: a graph does not keep the variables it reads alive.
    with labels_checked():
        classifier = head.calibrated(backbone, pixels[None], support.support_labels[None], ways, prior).in_variables()
    return lambda images: outputs_of(classifier(resized(images, shape)[None]))


def baked(answer: Answer, features: Any, channels: int, names: Sequence[str]) -> Signatures:
    """The signatures of a plain classifier.

    Args:
        answer: images uint8 [B, H, V, C] -> what `classify` gives of them, without the names.
        features: the signature `features`.
        channels: C.
        names: of the classes.
    """

    @tf.function(input_signature=[_images("images", channels)])
    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = checked_images("images", images)
        with labels_checked():
            found = answer(images)
        each = tf.tile(tf.constant(names)[None], [tf.shape(images)[0], 1])  # [B, W]
        return {**found, "class_names": each}

    plain = classify.get_concrete_function()
    return {"features": features, "classify": plain, "serving_default": plain}


def _support_set(images: Any, labels: Any, shape: tuple[int, int, int], head: Head) -> Request:
    """A support set to bake in; ValueError unless it passes the checks of a request."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != shape[-1]:
        raise ValueError(f"Support images must be uint8 [S, H, W, {shape[-1]}]. "
                         f"Received: {images.dtype} {images.shape}.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"Support labels must be integers [S]. Received: {labels.dtype} {labels.shape}.")
    labels = np.clip(labels, -1, np.iinfo(np.int32).max).astype(np.int32)
    check = tf.function(checked_request, autograph=False)  # what fails in a graph says what it received
    try:
        return check(tf.constant(images), tf.constant(labels), tf.constant(images[:1]), head.learned_ways)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"The support set cannot be used: {said_by(error)}") from error


def checked_names(class_names: Sequence[str] | None, ways: int) -> tuple[str, ...]:
    """One name per class."""
    names = tuple(str(label) for label in (range(ways) if class_names is None else class_names))
    if len(names) != ways or len(set(names)) != ways:
        raise ValueError(f"class_names must be {ways} different names, one per class. Received: {names}.")
    return names
