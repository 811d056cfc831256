"""Pretrained networks as backbones: those of `keras.applications`, any `.keras` file, and presets of KerasHub.

    backbone = pretrained("EfficientNetV2B0")                                    # ImageNet weights
    backbone = pretrained("features.keras", normalization=((127.0,), (128.0,)))  # a network of your own
    backbone = pretrained("hub:resnet_18_imagenet")                              # pip install 'tf-unravel[hub]'

Each takes raw pixels and gives features [B, D], the average of the last feature map over its pixels where the network
ends in a map. Networks differ in what pixels they expect (0..255, -1..1, ImageNet's mean and deviation per channel,
blue first): one of `keras.applications` is given what its own `preprocess_input` makes of an image, a preset what its
image converter does.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tf_unravel.backbones.layers import Normalization
from tf_unravel.backbones.wrap import wrap

_SIZE = 224
AS_THEY_ARE: Normalization = ((0.0,), (1.0,))
"""Pixels 0..255 go into the network unchanged."""


def applications() -> tuple[str, ...]:
    """The names of the networks in `keras.applications`, sorted."""
    named = vars(keras.applications).items()
    return tuple(sorted(name for name, thing in named if inspect.isfunction(thing)))


def pretrained(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = "imagenet",
    image_size: int | tuple[int, int] | None = None,
    normalization: Normalization | None = None,
    trained_from: str | None = None,
    freeze_batch_norm: bool = True,
) -> keras.Model:
    """A pretrained network as a backbone: raw pixels in, one vector per image out.

    Args:
        name: of a network in `keras.applications`, such as "EfficientNetV2B0" or "ResNet50"; the path of a `.keras`
            file with a model from images to features [B, D] or a map [B, h, w, D]; or "hub:" and a preset of
            KerasHub, such as "hub:resnet_18_imagenet", or the folder of one.
        weights: of a network by name: "imagenet", which Keras downloads once; the path of a weights file; None for
            random ones. A `.keras` file and a preset have their own.
        image_size: pixels of a side, or (height, width). None is 224 x 224, and of a `.keras` file the size that it
            was made for; one whose layers fit other sizes is rebuilt for them.
        normalization: (mean, std) per channel in units of 0..255 that a `.keras` file's network expects of its input;
            None if it takes pixels 0..255. A network by name knows its own.
        trained_from: the layer from which on weights are trained further; those before it stay as they are. None
            trains all.
        freeze_batch_norm: keeps BatchNorm as it is, statistics and weights, when the network is trained further.

    Returns:
        A `keras.Model` from images, uint8 or float 0..255, [B, H, W, 3] to features [B, D].

    Raises:
        ValueError: an unknown name or layer, a file that is no such model, weights that do not fit or cannot be
            downloaded.

    Example:
        >>> pretrained("MobileNetV2", weights=None, image_size=96).output_shape
        (None, 1280)

    Reference: https://keras.io/api/applications
    """
    preset = str(name).removeprefix("hub:") if str(name).startswith("hub:") else None
    if str(weights) != "imagenet" and (preset or str(name).endswith(".keras")):
        raise ValueError(f"weights are those of a network by name; {name} has its own. Received: weights={weights}")
    if str(name).endswith(".keras"):
        backbone = _of_file(pathlib.Path(name), image_size, normalization)
    else:
        if normalization is not None:
            raise ValueError(f"normalization is that of a .keras file; {name} knows its own. "
                             f"Received: normalization={normalization}")
        if preset:
            backbone = _of_hub(preset, image_size)
        else:
            backbone = _of_applications(str(name), weights, _sides(image_size or _SIZE))
    freeze(backbone, trained_from, freeze_batch_norm)
    return backbone


def freeze(backbone: keras.Model, trained_from: str | None = None, batch_norm: bool = True) -> None:
    """Sets what of a backbone is trained further: `trainable` of its layers.

    Args:
        backbone: keras.Model, which is changed.
        trained_from: the name of the first layer that is trained; None for all of them.
        batch_norm: whether BatchNorm stays as it is.

    Raises:
        ValueError: there is no layer of that name.
    """
    layers = list(_in_order(backbone))
    names = [layer.name for layer in layers]
    if trained_from is not None and trained_from not in names:
        of = [layer.name for layer in layers if layer.weights]
        raise ValueError(f"trained_from is a layer of {backbone.name}, from {of[0]} to {of[-1]}. "
                         f"Received: {trained_from!r}")
    first = 0 if trained_from is None else names.index(trained_from)
    for place, layer in enumerate(layers):
        of_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = place >= first and not (batch_norm and of_batch_norm)


def _in_order(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of the models in it, from images to features."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _in_order(layer)
        else:
            yield layer


def _sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def _of_applications(name: str, weights: str | os.PathLike | None, size: tuple[int, int]) -> keras.Model:
    build: Callable[..., keras.Model] | None = getattr(keras.applications, name, None)
    if name not in applications() or build is None:
        raise ValueError(f"a pretrained network is a .keras file, hub:PRESET or one of keras.applications: "
                         f"{', '.join(applications())}. Received: {name!r}")
    path = None if weights is None else os.fspath(weights)
    if path not in (None, "imagenet") and not os.path.isfile(path):
        raise ValueError(f"weights are \"imagenet\", a file or None. Received: {weights!r}, and no such file")
    try:
        model = build(include_top=False, weights=path, input_shape=(*size, 3))
    except ValueError as error:  # too small an image, a file of another network
        raise ValueError(f"{name} cannot be built: {_one_line(error)}") from error
    except Exception as error:  # Keras raises a bare Exception if a download fails
        if path != "imagenet":
            raise ValueError(f"{path} is no weights file of {name}: {_one_line(error)}") from error
        raise ValueError(_not_downloaded(name, error)) from error
    normalization, blue_first = preprocessing_of(build)
    return wrap(model, normalization, blue_first)


def _not_downloaded(name: str, error: Exception) -> str:
    """Where Keras looks for a file that it could not download, in one line."""
    what = _one_line(error)
    url = re.search(r"https?://[^\s:]+(?=:|\s|$)", what)
    file = url[0].rpartition("/")[2] if url else "its weights"
    folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")) / "models"
    return (f"the weights of {name} cannot be downloaded: put {file} into {folder}, give weights (--weights) a file of "
            f"them, or name a .keras file in place of {name}. Received: {what}")


def preprocessing_of(build: Callable[..., keras.Model]) -> tuple[Normalization, bool]:
    """A network's own `preprocess_input` as (mean, std) per channel of its input, and whether blue comes first.

    It is affine in each channel, so two images tell it.
    """
    preprocess = sys.modules[build.__module__].preprocess_input
    black, white, red = (np.full((1, 1, 1, 3), value, np.float32) for value in (0.0, 255.0, 0.0))
    red[..., 0] = 255.0
    low, high, of_red = (np.reshape(preprocess(image, data_format="channels_last"), -1).astype(np.float64)
                         for image in (black, white, red))
    std = 255.0 / (high - low)
    return (tuple(-low * std), tuple(std)), bool(of_red[0] != high[0])


def _of_hub(preset: str, image_size: int | Sequence[int] | None) -> keras.Model:
    try:
        import keras_hub
    except ImportError as error:
        raise ValueError(f"presets of KerasHub need pip install 'tf-unravel[hub]', on Python 3.11 or later. "
                         f"Received: hub:{preset}, and {_one_line(error)}") from error
    size = {} if image_size is None else {"image_shape": (*_sides(image_size), 3)}
    try:
        model = keras_hub.models.Backbone.from_preset(preset, **size)
        return wrap(model, _converted(keras_hub.layers.ImageConverter.from_preset(preset)))
    except Exception as error:  # of the network, of a preset that is none, of one that is no network of images
        raise ValueError(f"the preset {preset} cannot be used: {_one_line(error)}") from error


def _converted(converter: Any) -> Normalization:
    """scale x + offset, as an image converter has it, as (mean, std)."""
    scale, offset = (np.reshape(default if value is None else value, -1).astype(np.float64)
                     for value, default in ((converter.scale, 1.0), (converter.offset, 0.0)))
    scale, offset = np.broadcast_arrays(scale, offset)
    return tuple(-offset / scale), tuple(1.0 / scale)


def _of_file(
    path: pathlib.Path, image_size: int | Sequence[int] | None, normalization: Normalization | None
) -> keras.Model:
    if not path.is_file():
        raise ValueError(f"there is no such .keras file. Received: {path}")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged archive or a foreign layer raises
        raise ValueError(f"{path} cannot be loaded as a Keras model: {_one_line(error)}") from error
    model = _at_size(path, model, image_size)
    try:
        return wrap(model, AS_THEY_ARE if normalization is None else normalization)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _at_size(path: pathlib.Path, model: keras.Model, image_size: int | Sequence[int] | None) -> keras.Model:
    """The same network for images of another size, no layer named with an underscore first.

    No SavedModel can hold variables whose names begin so.
    """
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        return model  # refused by `wrap`
    own = tuple(size or _SIZE for size in shape[1:3])
    wanted = own if image_size is None else _sides(image_size)
    if wanted == shape[1:3] and not any(layer.name.startswith("_") for layer in _in_order(model)):
        return model

    def renamed(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        return type(layer).from_config({**config, "name": config["name"].lstrip("_")})

    inputs = keras.Input((*wanted, shape[3]))
    try:
        copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=renamed)
        copy.set_weights(model.get_weights())
    except ValueError as error:  # a layer's weights depend on the size
        raise ValueError(f"{path} takes images of {own[0]} x {own[1]} pixels alone ({_one_line(error)}). "
                         f"Received: image_size={wanted}") from error
    return copy


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
