"""The card of an exported model: a small JSON beside it, for people and for `classify`.

| key          | what                                                                                   |
|--------------|----------------------------------------------------------------------------------------|
| format       | of the card, 1                                                                         |
| input        | height, width, channels; pixels are uint8 0-255                                        |
| decoding     | how image files become pixels of that size, also inside the model: filter, crop,       |
|              | background, bits; orientation in EXIF is applied                                       |
| features     | D                                                                                      |
| head         | name, settings, arguments (of its constructor, or null), batchnorm, adaptation;         |
|              | `transductive`: queries of a call influence each other                                 |
| ways         | the number of classes where it is fixed, else null                                     |
| class_names  | of a baked-in support set, else null; `support_per_class`: its images                  |
| calibration  | prior of the temperature (in margins; null where the head's logits are used as they are), its    |
|              | strength, quantiles of one-shot similarities, rules in words; `prior_from`: what it was fitted to |
| trained      | how and on what (a run's), or null                                                     |
| accuracies   | measured ones: mean in [0, 1], standard_error, ci95, tasks, seed, BatchNorm protocol, checkpoint |
| note         | what a reader must know                                                                |
| versions     | of what wrote it                                                                       |
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_unravel
from tf_unravel.adaptation.calibration import Prior
from tf_unravel.adaptation.head import Head, Reads
from tf_unravel.deployment.labelled_images import decoding_of
from tf_unravel.files import write_bytes

CARD = "tf_unravel.json"
FORMAT = 1
DECODING: dict[str, Any] = {"resize": "bilinear", "crop": False, "background": [255, 255, 255], "bits": None}
# What `export` writes, and what file managers leave in any folder that they show.
_OURS = re.compile(r"saved_model\.pb|fingerprint\.pb|tf_unravel\.json|variables/variables\.(index|data-\d{5}-of-\d{5})"
                   r"|(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini)")
_LARGEST = 4096  # pixels of a side: beyond it a card is damaged, or asks for memory that no such model needs


def card_of(
    backbone: keras.Model,
    head: Head,
    shape: tuple[int, int, int],
    support: Mapping[str, int] | None = None,
    known: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
) -> dict[str, Any]:
    """The card of a model.

    Args:
        backbone: keras.Model.
        head: see `tf_unravel.heads`.
        shape: (H, W, C) of the images.
        support: of a baked-in support set, how many images each class has, in the order of the labels.
        known: what stands beside, or in place of, the values found here; its `calibration` beside that found here.
        prior: that the graph was calibrated with.

    Returns:
        JSON values.
    """
    known = known or {}
    batchnorm, adaptation = head.said_of(backbone)
    ways = len(support) if support else head.learned_ways
    return {
        "format": FORMAT,
        "exported": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "input": {"height": shape[0], "width": shape[1], "channels": shape[2], "pixels": "uint8, 0-255"},
        "decoding": DECODING,
        "features": int(backbone.output_shape[-1]),
        "head": {"name": head.title, "settings": head.settings(), "arguments": _arguments(head),
                 "batchnorm": batchnorm, "adaptation": adaptation,
                 "transductive": head.transductive_on(backbone)},
        "ways": ways,
        "class_names": list(support) if support else None,
        "support_per_class": list(support.values()) if support else None,
        "trained": None,
        "accuracies": [],
        "note": note_of(known.get("accuracies", ())),
        "versions": {"tf_unravel": tf_unravel.__version__, "tensorflow": tf.__version__, "keras": keras.__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        **known,
        "calibration": {**_calibration(head, prior or Prior()), **known.get("calibration", {})},
    }


def note_of(accuracies: Sequence[Any]) -> str:
    """The card's `note`."""
    measured = "accuracies were measured under this head at this checkpoint."
    return f"These {measured}" if accuracies else f"No {measured}"


def _calibration(head: Head, prior: Prior) -> dict[str, Any]:
    """How probabilities and p_known come about."""
    adapts = head.reads is Reads.IMAGES
    rule = ("softmax of the logits" if adapts else
            "softmax(logits / T), T fitted on the support set by folds that leave one image of each class out in turn, "
            "towards temperature * margin")
    return {
        "probabilities": rule,
        "p_known": "the share of the support set's images whose cosine similarity to the nearest class mean, taken "
                   "without the image, is at most the query's",
        "temperature": None if adapts else prior.temperature,
        "strength": None if adapts else prior.strength,
        "similarities": list(prior.similarities),
        "prior_from": "the package's constant",
    }


def prior_in(card: Mapping[str, Any]) -> Prior:
    """The prior that a card records; `Prior()` of a model exported before there was calibration.

    Raises:
        ValueError, TypeError: the card is damaged.
    """
    recorded = card.get("calibration") or {}
    values = {name: float(recorded[name]) for name in ("temperature", "strength") if recorded.get(name) is not None}
    return Prior(similarities=tuple(map(float, recorded.get("similarities") or ())), **values)


def _arguments(head: Head) -> dict[str, Any] | None:
    """The fields of a head that is a dataclass, where JSON can hold them."""
    thing: Any = head
    if not dataclasses.is_dataclass(thing):
        return None
    values = {field.name: getattr(head, field.name) for field in dataclasses.fields(thing)}
    return values if all(isinstance(value, int | float | str | None) for value in values.values()) else None


def card_of_signatures(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a SavedModel that has none, as far as its signatures tell.

    Raises:
        ValueError: its `features` does not take one tensor of images [B, H, W, C].
    """
    _, inputs = signatures["features"].structured_input_signature
    shapes = [spec.shape.as_list() for spec in inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"A signature features takes images [B, H, W, C]. Received: {shapes}.")
    height, width, channels = (size or 0 for size in shapes[0][1:])
    return {
        "format": FORMAT,
        "input": {"height": height, "width": width, "channels": channels or 3},
        "decoding": DECODING,
        "head": {"name": "classify", "settings": "the signature classify", "arguments": None, "transductive": False},
        "class_names": None,
        "support_per_class": None,
        "trained": None,
        "accuracies": [],
    }


def is_exported(path: pathlib.Path) -> bool:
    """Whether a folder holds what `export` writes."""
    return (path / CARD).is_file() and (path / "saved_model.pb").is_file()


def others_in(path: pathlib.Path) -> list[str]:
    """What an exported model's folder holds besides what `export` writes, sorted; folders that cannot be read too."""
    unreadable: list[OSError] = []
    found: list[str] = []
    for parent, folders, names in os.walk(path, onerror=unreadable.append):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.join(parent, name) for name in (*names, *links)]
    found += [error.filename for error in unreadable]
    inside = (pathlib.Path(name).relative_to(path).as_posix() for name in found)
    return sorted(name for name in inside if not _OURS.fullmatch(name))


def write_card(path: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes a card, whole or not at all."""
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "replace"))


def read_card(model: str | os.PathLike) -> dict[str, Any]:
    """The card of an exported model, which may come from anywhere: what is used of it is checked.

    Args:
        model: the folder.

    Raises:
        ValueError: it holds no exported model, or its card is damaged.
    """
    path = pathlib.Path(model)
    if not is_exported(path):
        if (path / "config.gin").is_file():
            raise ValueError(f"{path} is a run, not an exported model; make one of it with "
                             f"tf-unravel export --run_dir={path} --head=ridge --out=model.")
        if not path.exists():
            raise ValueError(f"{path} does not exist: give the folder of an exported model.")
        raise ValueError(f"{path} holds no exported model (no {CARD} beside a saved_model.pb); make one with "
                         f"tf-unravel export --run_dir=... --head=ridge --out={path}.")
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        fits = _fits(card)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path / CARD} is damaged ({what}); export the model again.") from error
    if not fits:
        raise ValueError(f"{path / CARD} is of no format that this version reads; export the model again.")
    return card


def _fits(card: Any) -> bool:
    """Whether what is used of a card has its types; raises LookupError, TypeError or ValueError where it is damaged."""
    size = [card["input"][name] for name in ("height", "width", "channels")]
    names, counts, head, how = card["class_names"], card["support_per_class"], card["head"], card["decoding"]
    if not all(type(value) is int for value in (*size, *how["background"], *(counts or ()))):
        return False
    decoding_of(card)
    prior_in(card)
    return (
        card["format"] == FORMAT
        and all(1 <= value <= _LARGEST for value in size)
        and type(how["crop"]) is bool
        and (names is None or _are_names(names) and len(names) == len(counts))
        and isinstance(head["settings"], str) and isinstance(head["transductive"], bool)
    )


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
