"""What a fuzzer calls: one function a parser of user data, from bytes.

Each accepts bytes of any content and returns; an input that the parser refuses by its own exception, in one line, is
fine. Anything else that is raised is a fault. Property tests (tests/fuzz/test_targets.py) and the coverage-guided
fuzzer (tests/fuzz/fuzz.py) share them, and begin with the same seeds (corpus/<target>/).
"""

import argparse
import functools
import io
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from tf_unravel import cli
from tf_unravel.data.sources import image_folder, mini_imagenet, pickled_splits
from tf_unravel.data.storage import decoding
from tf_unravel.data.storage.pickles import read_pickle

_PATH = pathlib.Path("fuzzed")


class NotOneLine(Exception):
    """A refusal that is empty or longer than a line."""


def _said(error: Exception) -> None:
    text = str(error)
    if not text.strip() or "\n" in text:
        raise NotOneLine(repr(text)) from error


def images(data: bytes) -> None:
    """Decoding of an image file."""
    how = decoding.Decoding((8, 8), crop=len(data) % 2 == 1, bits=(None, 12)[len(data) // 2 % 2])
    try:
        with warnings.catch_warnings(), mock.patch.object(Image, "MAX_IMAGE_PIXELS", 1 << 20):  # larger ones take long
            warnings.simplefilter("ignore")
            pixels, _ = decoding.decode(data, how)
    except decoding.UnusableImage as error:
        _said(error)
    else:
        if pixels.shape != (8, 8, 3) or pixels.dtype != np.uint8:
            raise NotOneLine(f"{pixels.dtype} {pixels.shape}")


def pickles(data: bytes) -> None:
    """A pickled dataset, in both layouts."""
    for layout in (pickled_splits.metaoptnet_layout, pickled_splits.class_dict_layout):
        try:
            file = io.BytesIO(data)
            found = pickled_splits._checked(layout(read_pickle(file, _PATH), _PATH), _PATH, 4)
            np.array(found.images)
        except ValueError as error:
            _said(error)


def tables(data: bytes) -> None:
    """The table of mini-ImageNet's images."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(data)
        file.flush()
        try:
            rows = mini_imagenet._rows(pathlib.Path(file.name))
        except ValueError as error:
            _said(error)
            return
    root = "/images"
    for name, label in rows:
        if not name or not label or not os.path.normpath(os.path.join(root, name)).startswith(root + os.sep):
            raise NotOneLine(f"{name!r}, {label!r}")


def gin(data: bytes) -> None:
    """Lines of configuration, as --gin_bindings and as a file."""
    from tf_unravel import runs  # TensorFlow: seconds that the other targets need not wait

    text = data.decode("utf-8", "replace")
    if "import" in text or "include" in text:  # these run Python modules and open files, by design
        return
    for bindings, whole in (([text], ""), ([], text)):
        try:
            runs.parse(bindings=bindings, text=whole)
        except runs.ConfigError as error:
            _said(error)


def classes(data: bytes) -> None:
    """Names of classes that are split at random; lists of names and numbers on the command line."""
    text = data.decode("utf-8", "replace")
    names = list(dict.fromkeys(text.split("\n")))
    try:
        fractions = _fractions(data)
        parts = [image_folder.split_classes(names, split, len(data), fractions) for split in image_folder.FOLDERS]
        if sorted(sum(parts, [])) != sorted(names):
            raise NotOneLine("a class is in no split, or in two")
    except ValueError as error:
        _said(error)
    for parse in (cli._names, cli._numbers):
        try:
            parse(text)
        except argparse.ArgumentTypeError as error:
            _said(error)


def _fractions(data: bytes) -> tuple[float, ...]:
    """Three fractions that fit, or nearly."""
    first, second = (value / 255 for value in (*data[:2], 60, 60)[:2])
    return (1 - first - second, first, second) if len(data) % 5 else (first, second, 1.0)


def cards(data: bytes) -> None:
    """The card beside an exported model, and what is read with its help."""
    from tf_unravel.deployment import card, labelled_images

    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("saved_model.pb", b""), (card.CARD, data)):
            pathlib.Path(folder, name).write_bytes(content)
        try:
            found = card.read_card(folder)
            images, _, _ = labelled_images.read_images([], found)
        except ValueError as error:
            _said(error)
            return
    if images.shape != (0, *(found["input"][name] for name in ("height", "width", "channels"))):
        raise NotOneLine(f"{images.shape}")
    if found["class_names"] is not None:
        dict(zip(found["class_names"], found["support_per_class"], strict=True))


def requests(data: bytes) -> None:
    """The body of a request over HTTP."""
    from tf_unravel.deployment.serving import rest

    try:
        call = rest.understood(data, _signatures())
    except rest.BadRequest as error:
        _said(error)
        return
    if any(0 in value.shape or value.dtype not in (np.uint8, np.int32) for value in call.inputs.values()):
        raise NotOneLine(f"{call.inputs}")


@functools.cache
def _signatures() -> dict[str, Any]:
    """What a request is checked against: the inputs of an exported model's signatures."""
    import tensorflow as tf

    def signature(**inputs: Any) -> Any:
        specs = {name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in inputs.items()}
        return argparse.Namespace(structured_input_signature=((), specs))

    images = ([None, None, None, 3], tf.uint8)
    features = signature(images=images)
    classify = signature(support_images=images, support_labels=([None], tf.int32), query_images=images)
    return {"features": features, "serving_default": features, "classify": classify}


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (images, pickles, tables, gin, classes, cards, requests)
}
