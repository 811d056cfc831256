"""A folder of images, classified by an exported model from a few labelled ones: a table, CSV and JSON, and a figure.

    probability = that of the likeliest class,   margin = probability - that of the second
    unknown: p_known <= the rate of false alarms,   p_known = the share of known images that look as strange

`support` holds <class>/<file>, at least one image per class; `query` holds images, in folders or not. Where the query
folder's own folders are named after classes, the images in them are counted as right or wrong.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tf_unravel.adaptation.open_set import check_rate, is_unknown, lowest
from tf_unravel.data.storage import decoding
from tf_unravel.data.storage.digests import composed, printable
from tf_unravel.deployment.classifying.classification import UNKNOWN, Answer, Classification
from tf_unravel.deployment.classifying.confusion import confusion, confusion_figure
from tf_unravel.deployment.classifying.contact_sheet import Neighbour, Query, contact_sheet
from tf_unravel.deployment.classifying.pictures import is_picture, write_picture
from tf_unravel.deployment.labelled_images import (
    BITS,
    Labelled,
    decoding_of,
    images_below,
    read_images,
    read_labelled,
)
from tf_unravel.deployment.model import Model
from tf_unravel.files import write_text

_BLOCK = 256  # images of a call
_NEIGHBOURS = 5
_ON_A_SHEET = 48
SHEET, CONFUSION = "contact_sheet.png", "confusion.png"


def classify(
    model: str | os.PathLike,
    query: str | os.PathLike,
    support: str | os.PathLike | None = None,
    out: str | os.PathLike = "classification",
    figure: bool = False,
    on_corrupt: str = "error",
    unknown: float | None = None,
) -> Classification:
    """Classifies images; writes classification.csv and .json.

    With `figure` also contact_sheet.png, and confusion.png where folders are named after classes. Those of an earlier
    call are replaced, and its pictures are removed where this one draws none.

    Args:
        model: folder of an exported model, one that you exported or trust (see `model`).
        query: folder of the images, searched to its depth, or one image.
        support: folder of labelled images, support/<class>/<file>; None for a model with its classes built in.
        out: folder for the results.
        figure: draw the images beside their nearest labelled ones, and which classes are taken for which.
        on_corrupt: "error" raises for an image that cannot be read and names it, "skip" leaves it out.
        unknown: the rate of false alarms, such as 0.05, at which images are answered "unknown"; None for never.

    Returns:
        Classification.

    Raises:
        ValueError: no such model, no images, ones that cannot be read, a support set too few or too many, labelled
            images too few for `unknown`, a class of that name, somebody else's file where a picture would be.

    Example:
        >>> print(classify("model", "queries", "support"))  # doctest: +SKIP
    """
    loaded = Model(model)
    root, pictures = pathlib.Path(query), [pathlib.Path(out) / name for name in (SHEET, CONFUSION)]
    _check_asked(loaded, support, pictures if figure else ())
    drawn_before = {os.path.realpath(path) for path in pictures if is_picture(path)}
    given = images_below(root)
    paths = [path for path in given.images if os.path.realpath(path) not in drawn_before]
    known = None if support is None else read_labelled(support, loaded.card, on_corrupt)
    counts = _support_counts(loaded, known)
    if unknown is not None:
        _check_unknown(loaded, counts, unknown)
    answers: list[Answer] = []
    brightest: dict[str, int] = {}
    skipped = (known.skipped if known else {}) | given.skipped
    for block in _blocks(paths, loaded, known):
        images, kept, damaged = read_images(block, loaded.card, on_corrupt, brightest)
        skipped |= damaged
        if len(kept):
            answers += _answers(loaded, images, [block[row] for row in kept], known, root, unknown)
    decoding.warn_of_dim(str(root), brightest.values(), decoding_of(loaded.card), BITS)
    if not answers:
        raise ValueError(f"None of the {len(paths)} images to classify can be read. Received: {query}.")
    found = Classification(str(model), loaded.card["head"]["settings"], counts, answers, skipped, unknown_rate=unknown)
    drawn = {}
    if figure and known:
        drawn[SHEET] = _sheet(loaded, found, known, root, on_corrupt)
        if found.told:
            drawn[CONFUSION] = _confusion(found)
    return _written(found, pathlib.Path(out), drawn)


def _check_asked(model: Model, support: Any, pictures: Sequence[pathlib.Path]) -> None:
    """Refuses a support set too few or too many, and a picture in place of a file that is none of ours."""
    baked = model.baked_classes
    if support is None and baked is None:
        raise ValueError("This model needs labelled images: give --support=images, with images/<class>/<file>. "
                         "Received: no support.")
    if support is not None and baked is not None:
        raise ValueError(f"This model has its classes built in ({', '.join(baked)}); leave --support out, or export "
                         f"one without --support. Received: support={support}.")
    for path in pictures:
        if path.exists() and not is_picture(path):
            what = "contact sheet" if path.name == SHEET else "confusion matrix"
            raise ValueError(f"A {what} would be written over a file that is none; choose another --out. "
                             f"Received: {path}.")
    if pictures and baked is not None:
        raise ValueError("A contact sheet shows labelled images, and a model with its classes built in does not "
                         "keep them; leave --figure out. Received: figure=True.")


def _check_unknown(model: Model, counts: Mapping[str, int], rate: float) -> None:
    """Refuses a rate of false alarms that this model and these labelled images cannot reach."""
    check_rate(rate)
    if "p_known" not in model.signatures["classify"].structured_outputs:
        raise ValueError("This model was exported before there was --unknown; export it again. "
                         f"Received: {model.path}.")
    if UNKNOWN in counts:
        raise ValueError(f"A class is called {UNKNOWN!r}, as is what --unknown answers; give it another name. "
                         f"Received: classes {', '.join(counts)}.")
    compared = sum(count for count in counts.values() if count > 1)
    if not model.prior.similarities and not is_unknown(np.float32(lowest(compared, 0)), rate):
        needed = math.ceil(1 / rate - 1 - 1e-6)
        raise ValueError(f"--unknown={rate:g} needs at least {needed} labelled images in classes of two or more, or a "
                         f"model exported from a run. Received: {compared}.")


def _support_counts(model: Model, known: Labelled | None) -> dict[str, int]:
    """Class -> number of labelled images."""
    if known is None:
        return dict(zip(model.card["class_names"], model.card["support_per_class"], strict=True))
    return dict(zip(known.class_names, np.bincount(known.labels).tolist(), strict=True))


def _blocks(paths: Sequence[str], model: Model, known: Labelled | None) -> Iterator[Sequence[str]]:
    """The images of each call: all of them where they influence each other, and no fewer than support images."""
    size = max(_BLOCK, len(known.labels) if known else 0)
    size = len(paths) if model.card["head"]["transductive"] else size
    yield from (paths[start : start + size] for start in range(0, len(paths), size))


def _answers(
    model: Model, images: np.ndarray, paths: Sequence[str], known: Labelled | None, root: pathlib.Path,
    rate: float | None,
) -> list[Answer]:
    """What the model says of some images."""
    given = () if known is None else (known.images, known.labels)
    labelled = set() if known is None else {image.tobytes() for image in known.images}
    names = (model.baked_classes or ()) if known is None else known.class_names
    written = {composed(name): name for name in names}  # a folder may write the same text in another way
    answers = []
    said = model.answer(images, *given)
    p_known = said["p_known"].tolist() if "p_known" in said else [None] * len(images)
    for path, image, row, p in zip(paths, images, said["probabilities"].tolist(), p_known, strict=True):
        file = os.path.relpath(path, root) if root.is_dir() else os.path.basename(path)
        folder_class = written.get(composed(printable(pathlib.PurePath(file).parts[0])))
        probabilities = dict(zip(names, row, strict=True))
        unknown = rate is not None and bool(is_unknown(p, rate))
        again = image.tobytes() in labelled
        answers.append(Answer(path, printable(file), probabilities, folder_class, again, p, unknown))
    return answers


def _sheet(
    model: Model, found: Classification, known: Labelled, root: pathlib.Path, on_corrupt: str
) -> Figure:
    """The contact sheet: every image, or those of the smallest margins, with its nearest labelled images."""
    answers, what = found.answers, "Images, and the labelled images nearest to each in feature space"
    title = f"{found.model}, {found.head}. {what}"
    if len(answers) > _ON_A_SHEET:
        answers = sorted(answers, key=lambda answer: answer.margin)[:_ON_A_SHEET]
        title += f"; the {_ON_A_SHEET} least certain of {len(found.answers)}"
    images, kept, _ = read_images([answer.path for answer in answers], model.card, on_corrupt, {})
    points, asked = model.features(known.images), model.features(images)
    rows = []
    for row, image, point in zip(kept, images, asked, strict=True):
        distances = np.linalg.norm(points - point, axis=1)
        nearest = np.argsort(distances, kind="stable")[:_NEIGHBOURS]
        neighbours = [Neighbour(known.images[i], known.class_names[known.labels[i]], float(distances[i]))
                      for i in nearest]
        answer = answers[row]
        rows.append(Query(image, answer.file, answer.answer, answer.probability, neighbours, answer.folder_class))
    return contact_sheet(rows, known.class_names, title)


def _confusion(found: Classification) -> Figure:
    """Folders' classes against answers."""
    told = found.told
    right = sum(answer.answer == answer.folder_class for answer in told)
    folders, answers = [str(answer.folder_class) for answer in told], [answer.answer for answer in told]
    return confusion_figure(confusion(folders, answers, list(found.support)),
                            f"{right} of {len(told)} images are given the class of their folder")


def _written(found: Classification, out: pathlib.Path, drawn: Mapping[str, Figure]) -> Classification:
    """The same, once its files are written."""
    values = json.dumps(found.json_values(), indent=1, ensure_ascii=False) + "\n"
    for name, text in (("classification.csv", found.csv_text()), ("classification.json", values)):
        write_text(out / name, text)
    for name in (SHEET, CONFUSION):
        if name in drawn:
            write_picture(drawn[name], out / name)
        elif is_picture(out / name):
            (out / name).unlink()  # of another question
    names = ["classification.csv", "classification.json", *drawn]
    return dataclasses.replace(found, written=[str(out / name) for name in names])
