"""What `evaluate --model` and `measure --model` do: an exported SavedModel, judged by its signatures alone.

The images come from a folder of classes or a named dataset, decoded as the model's card says. Their features are
computed once by the signature `features` and cached by content; the head is the one that the card describes, on the
tasks that `evaluate --run_dir` draws, so that a run and its export agree. A head that reads images, and that of a
SavedModel without a card, answers by the signature `classify`, task by task.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_unravel import analysis, data, deployment, evaluation
from tf_unravel.commands.figure_files import write_figures
from tf_unravel.commands.reliability import Asked, measured, reliability_tables
from tf_unravel.commands.reports import (
    TASKS,
    Tasks,
    accuracy_row,
    accuracy_table,
    evaluation_figures,
    measurement_figures,
    separation_table,
)
from tf_unravel.data.storage.cache import Create, cached_fill
from tf_unravel.deployment.card import CARD, note_of, write_card
from tf_unravel.files import write_json
from tf_unravel.heads import Reads
from tf_unravel.runs.config import ConfigError
from tf_unravel.runs.figures import Projections, projection
from tf_unravel.runs.folder import check_writable
from tf_unravel.runs.logs import progress_bar
from tf_unravel.runs.records import merged

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Question:
    """Which models, on which images, and where the tables go.

    Args:
        models: folders of exported models.
        data_root: the folder of the images; None for a dataset that needs none.
        dataset: its name, see `data.load`.
        split: "train", "val" or "test", of a dataset that is split or a folder with such folders. Of a folder of
            classes all count but those that the model was trained on or chosen by.
        image_size: (height, width) for a SavedModel without a card.
        out: a folder for tables and figures.
    """

    models: Sequence[str]
    data_root: str | None = None
    dataset: str = "image_folder"
    split: str = "test"
    image_size: tuple[int, int] | None = None
    out: str = "evaluation"

    def images(self, model: deployment.Model) -> data.ClassImages:
        """The images that a model is judged by.

        Raises:
            ConfigError: the model's size is not known.
            ValueError: images that cannot be used.
        """
        size = self.image_size or tuple(model.card["input"][name] for name in ("height", "width"))
        if 0 in size:
            raise ConfigError(f"{model.path} does not say the size of its images; give --image_size. Received: {size}")
        if self.dataset != "image_folder":
            return data.load(self.dataset, self.split, self.data_root)
        how = model.card["decoding"]
        seen = [*_classes_of(model, "train"), *_classes_of(model, "val")]
        found = data.load(
            "image_folder", self.split, self.data_root, image_size=size, resize=how["resize"], crop=how["crop"],
            background=tuple(how["background"]), bits=how.get("bits"), fractions=(0, 0, 1), exclude=seen,
        )
        if seen and found.random_split is not None:
            _log.warning("%s: left out the %d classes that %s was trained on or chosen by.", self.data_root,
                         len(seen), model.path)
        return found


def _classes_of(model: deployment.Model, split: str) -> Sequence[str]:
    """The classes of the model's own training that a folder of classes gave to a split at random."""
    trained = model.card.get("trained") or {}
    return (trained.get("random_split") or {}).get(split, ())


def features_of(model: deployment.Model, split: data.ClassImages) -> np.ndarray:
    """Features float32 [N, D] of a split's images by the signature `features`: a memory map, cached by content."""

    def fill(create: Create) -> None:
        size = 256
        features: np.ndarray | None = None
        with progress_bar(0, len(split), "image", delay=5.0) as bar:
            for start in range(0, len(split), size):
                batch = evaluation.extract_features(model, split.images[start : start + size])
                if features is None:
                    features = create("features", (len(split), batch.shape[1]), np.float32)
                features[start : start + len(batch)] = batch
                bar.update(len(batch))

    return cached_fill(f"features/{_digest(model.path)}/{split.fingerprint}", fill)["features"]


def _digest(model: pathlib.Path) -> str:
    """Hex digest of a SavedModel's graph and weights."""
    digest = hashlib.sha256()
    for path in (model / "saved_model.pb", *sorted((model / "variables").glob("variables.data-*"))):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def evaluate_models(question: Question, tasks: Tasks, asked: Asked | None = None) -> str:
    """The accuracy of exported models on few-shot tasks, each under its own head, and what is asked besides.

    Writes evaluation.json and its figures, as `evaluate_runs` does, into the folder of the question, and the accuracies
    into each model's card.

    Returns:
        The tables as text.

    Raises:
        ConfigError, ValueError: no such model, images or tasks; calibration of a head that adapts the network.
    """
    rows: list[dict[str, Any]] = []
    check_writable("--out", pathlib.Path(question.out))
    for name in question.models:
        model = deployment.load(name)
        split = question.images(model)
        if model.card["class_names"]:
            _log.warning("%s: its built-in classes are not used: every task draws its own labelled images. To count "
                         "its right answers, use tf-unravel classify --query=<folder of classes>.", name)
        for shots in tasks.shots:
            data.TaskSampler(split, tasks.ways, shots, tasks.queries, tasks.seed)  # refuses before minutes of features
        on_images = model.head.reads is Reads.IMAGES
        backbone = model if on_images else features_of(model, split)
        head = model.head
        found = evaluation.evaluate_heads(
            backbone, {head.name: head}, split, **dataclasses.asdict(tasks), batchnorm=model.batchnorm
        )[head.name]
        besides = {}
        if asked:
            features = features_of(model, split)
            besides = measured(asked, features, {head.name: head}, split, dataclasses.asdict(tasks),
                               {head.name: model.prior})
        mine = [{**accuracy_row(split, head, shots, tasks, accuracy), **besides.get((head.name, shots), {})}
                for shots, accuracy in found.items()]
        _record(model, mine)
        rows += [{"run": name, **row} for row in mine]
    out = pathlib.Path(question.out)
    write_json(out / "evaluation.json", rows)
    figures = write_figures(out, question.split, evaluation_figures(rows))
    return accuracy_table(rows, tasks) + reliability_tables(rows) + figures


def _record(model: deployment.Model, rows: Sequence[dict[str, Any]]) -> None:
    """Adds accuracies to a model's card; a SavedModel of others is not written into."""
    if (model.path / CARD).is_file() and os.access(model.path / CARD, os.W_OK):
        measured = merged(model.card.get("accuracies") or [], rows, TASKS)
        write_card(model.path / CARD, {**model.card, "accuracies": measured, "note": note_of(measured)})


def measure_models(question: Question, num_pairs: int = 10000, seed: int = 0) -> str:
    """How the features of exported models cluster; writes measurement.json and its figures, as `measure_runs` does.

    Returns:
        The table as text.
    """
    rows: list[dict[str, Any]] = []
    projections: Projections = {}
    out = pathlib.Path(question.out)
    check_writable("--out", out)
    for name in question.models:
        model = deployment.load(name)
        split = question.images(model)
        features = features_of(model, split)
        measured = analysis.class_separation(features, split.class_ids, num_pairs=num_pairs, seed=seed)
        rows.append({"run": name, "split": split.name, "fingerprint": split.fingerprint,
                     **dataclasses.asdict(measured), "expected_r_hv": measured.expected_r_hv})
        if (projected := projection(features, split, seed)) is not None:
            projections[name] = projected
    write_json(out / "measurement.json", rows)
    figures = write_figures(out, question.split, measurement_figures(rows, projections, split))
    return separation_table(rows, num_pairs, seed) + figures
