"""How far apart the two ways from image files to an answer are: Pillow's, and the one inside an exported graph.

`classify` decodes and resizes by Pillow (`data.storage.decoding`), the signatures that take files do it in the graph
(`deployment.exporting.decoding_graph`). Compared are the pixels that one model gets, its features and its
probabilities, on the same files. Without a model and a folder of one's own: conv4, untrained, under ridge regression,
on smooth images of several sizes as JPEG, PNG and BMP.
"""

import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones, deployment, heads
from tf_unravel.data.sources.image_folder import class_folders, list_files
from tf_unravel.deployment.exporting.decoding_graph import decoder
from tf_unravel.deployment.labelled_images import decoding_of, read_images
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.photographs import KINDS, colours, file_of, photograph

_AT_ONCE = 64  # images
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # of what both read


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Args:
        side, filters: of conv4's images and of conv4, where no model is given.
        ways, shots, queries: of the task, whose queries are answered in both ways.
        sizes: (height, width) of the images that are made, in turn.
        data_root: a folder <class>/<file> in place of these; its first classes, and the first files of each.
        model: folder of an exported model in place of conv4.
    """

    side: int = 84
    filters: int = 64
    ways: int = 10
    shots: int = 5
    queries: int = 20
    sizes: Sequence[tuple[int, int]] = ((84, 84), (240, 320), (480, 640), (900, 1200))
    data_root: str | None = None
    model: str | None = None


FULL = Sizes()
QUICK = Sizes(16, 4, 3, 2, 2, ((16, 16), (40, 30)))


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """The differences on each kind of file."""
    with tempfile.TemporaryDirectory() as folder:
        model = deployment.load(sizes.model or _exported(sizes, folder))
        if sizes.data_root is not None:
            yield from _differences(model, sizes, "files", _files_of(sizes.data_root, sizes))
            return
        for kind in KINDS:
            yield from _differences(model, sizes, kind, _made(kind, sizes, pathlib.Path(folder)))


def _exported(sizes: Sizes, folder: str) -> pathlib.Path:
    keras.utils.set_random_seed(0)  # the same network, and so the same differences, each time
    backbone = backbones.conv4((sizes.side, sizes.side, 3), filters=sizes.filters)
    return deployment.export(backbone, heads.Ridge(), pathlib.Path(folder) / "model")


def _files_of(root: str, sizes: Sizes) -> list[str]:
    """The files of a folder's first classes, class by class, `shots` + `queries` of each."""
    each, found = sizes.shots + sizes.queries, []
    for name in class_folders(pathlib.Path(root)):
        paths = list_files(root, pathlib.Path(root), [name]).paths
        paths = [path for path in paths if path.lower().endswith(_SUFFIXES)][:each]
        if len(paths) == each:
            found += [str(pathlib.Path(root) / path) for path in paths]
        if len(found) == sizes.ways * each:
            return found
    raise ValueError(f"{root} must have {sizes.ways} classes of {each} files {', '.join(_SUFFIXES)}. "
                     f"Received: {len(found) // each} such classes.")


def _made(kind: str, sizes: Sizes, folder: pathlib.Path) -> list[str]:
    """The same for files of one kind that are written into a folder; all kinds get the same images."""
    rng, paths = np.random.default_rng(0), []
    for label in range(sizes.ways):
        of = colours(rng)
        for number in range(sizes.shots + sizes.queries):
            image = photograph(rng, of, *sizes.sizes[number % len(sizes.sizes)])
            path = folder / f"{label}-{number}"
            path.write_bytes(file_of(image, kind))
            paths.append(str(path))
    return paths


def _differences(model: deployment.Model, sizes: Sizes, kind: str, paths: Sequence[str]) -> Iterator[Measurement]:
    how, channels = decoding_of(model.card), model.card["input"]["channels"]
    decode = decoder(how, channels)
    by_pillow, by_graph, features = [], [], []
    for start in range(0, len(paths), _AT_ONCE):
        part = paths[start : start + _AT_ONCE]
        by_pillow.append(read_images(part, model.card)[0])
        files = [pathlib.Path(path).read_bytes() for path in part]
        by_graph.append(decode(tf.constant("image_bytes"), tf.constant(files)).numpy())
        features.append(np.stack([model.features(by_pillow[-1]), model.features_encoded(files)]))
    pillow, graph = np.concatenate(by_pillow), np.concatenate(by_graph)
    levels = np.abs(pillow.astype(int) - graph)
    size = "x".join(map(str, pillow.shape[1:3]))
    what = f"{kind}, {len(paths):,} images to {size}, {how.resize}: "
    most = Target(1, at_least=False, of_ratio=False) if how.resize == "bilinear" else None
    yield Measurement(f"{what}values that differ", "%", (100 * float(np.mean(levels > 0)),))
    yield Measurement(f"{what}mean difference of values", "levels", (float(levels.mean()),))
    yield Measurement(f"{what}largest difference of values", "levels", (float(levels.max()),), target=most)
    yield from _of_answers(model, sizes, what, paths, pillow, np.concatenate(features, axis=1))


def _of_answers(
    model: deployment.Model, sizes: Sizes, what: str, paths: Sequence[str], pillow: np.ndarray, features: np.ndarray
) -> Iterator[Measurement]:
    """Differences of features [2, N, D] and of the answers to the queries; images are class by class."""
    apart = np.linalg.norm(features[0] - features[1], axis=1) / np.linalg.norm(features[0], axis=1)
    yield Measurement(f"{what}mean difference of features, relative", "%", (100 * float(apart.mean()),))
    yield Measurement(f"{what}largest difference of features, relative", "%", (100 * float(apart.max()),))
    is_support = np.arange(len(paths)) % (sizes.shots + sizes.queries) < sizes.shots
    files = [pathlib.Path(path).read_bytes() for path in paths]
    support, query = ([file for file, chosen in zip(files, these, strict=True) if chosen]
                      for these in (is_support, ~is_support))
    labels = np.repeat(np.arange(sizes.ways, dtype=np.int32), sizes.shots)
    both = (model.classify(pillow[~is_support], pillow[is_support], labels),
            model.classify_encoded(query, support, labels))
    answers, right = [each.argmax(axis=1) for each in both], np.repeat(np.arange(sizes.ways), sizes.queries)
    correct = " and ".join(f"{100 * np.mean(each == right):.1f} %" for each in answers)
    note = f"of {len(right):,} answers, {correct} are correct by Pillow and by the graph"
    probabilities = np.abs(both[0] - both[1])
    yield Measurement(f"{what}mean difference of probabilities", "", (float(probabilities.mean()),))
    yield Measurement(f"{what}largest difference of probabilities", "", (float(probabilities.max()),))
    yield Measurement(f"{what}answers that change", "%", (100 * float(np.mean(answers[0] != answers[1])),), note=note)
