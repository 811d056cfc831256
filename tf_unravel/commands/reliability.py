"""`evaluate --calibration` and `--unknown`: what they measure of runs and exported models, as JSON and as tables."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_unravel import evaluation
from tf_unravel.data import ClassImages
from tf_unravel.heads import Head, Prior
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.text_table import text_table

_PER_CLASS = 60  # images of each class that a prior is fitted to
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to measure besides accuracy.

    Args:
        calibration: expected calibration error, before and after.
        unknown: AUROC over open-set tasks, and what this rate of false alarms reaches; None for neither.
    """

    calibration: bool = False
    unknown: float | None = None

    def __bool__(self) -> bool:
        return self.calibration or self.unknown is not None


def prior_of(run: FinishedRun, heads: Mapping[str, Head]) -> dict[str, Prior]:
    """The prior of each head, from the run's training classes; `Prior()`, and a warning, where they are not there."""
    try:
        split = _few_of_each(run.split("train"))
        features = evaluation.extract_features(run.backbone, split.images)
        return {name: evaluation.fitted_prior(features, head, split) for name, head in heads.items()}
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        _log.warning("%s: calibrated by the package's constants, without the run's training classes (%s)",
                     run.folder.path, reason)
        return {name: Prior() for name in heads}


def _few_of_each(split: ClassImages) -> ClassImages:
    """The first images of each class."""
    order, offsets = split.class_index
    chosen = np.sort(np.concatenate([order[start : min(start + _PER_CLASS, stop)]
                                     for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]))
    return ClassImages(split.images[chosen], split.class_ids[chosen], split.class_names, split.name)


def measured(
    asked: Asked, features: Any, heads: Mapping[str, Head], split: ClassImages, tasks: Mapping[str, Any],
    priors: Mapping[str, Prior],
) -> dict[tuple[str, int], dict[str, Any]]:
    """(head, shots) -> `calibration` and `unknown` of its row in evaluation.json."""
    rows: dict[tuple[str, int], dict[str, Any]] = {(name, k): {} for name in heads for k in tasks["shots"]}
    if asked.calibration:
        found = evaluation.evaluate_calibration(features, heads, split, **tasks, priors=priors)
        for name, shots in rows:
            rows[name, shots]["calibration"] = {
                "bins": evaluation.BINS, "temperature": priors[name].temperature,
                **{when: dataclasses.asdict(getattr(found[name][shots], when)) for when in ("before", "after")}}
    if asked.unknown is not None:
        prior = next(iter(priors.values()))  # similarities do not depend on the head
        told = evaluation.evaluate_unknown(features, split, **tasks, rate=asked.unknown, prior=prior)
        for name, shots in rows:
            rows[name, shots]["unknown"] = dataclasses.asdict(told[shots])
    return rows


def reliability_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Below the accuracies: a table for each of the two that was measured."""
    parts = []
    if any("calibration" in row for row in rows):
        lines = [["run", "head", "shots", "ECE before, %", "ECE after, %", "confidence before, %", "after, %",
                  "accuracy, %"]]
        for row in rows:
            before, after = (row["calibration"][when] for when in ("before", "after"))
            values = (before["error"], after["error"], before["confidence"], after["confidence"], after["accuracy"])
            lines.append([row["run"], row["head"], str(row["shots"]), *(f"{100 * value:.2f}" for value in values)])
        parts.append(f"{text_table(lines)}\nExpected calibration error over {evaluation.BINS} bins of equal width, "
                     "before (softmax of the logits) and after (temperature from the support set), all queries "
                     "together; confidence is the mean of the largest probability.")
    if any("unknown" in row for row in rows):
        lines = [["run", "shots", "AUROC, %", "false alarms, %", "detected, %"]]
        for row in {(row["run"], row["shots"]): row for row in rows}.values():
            told = row["unknown"]
            lines.append([row["run"], str(row["shots"]), f"{100 * told['auroc']:.2f} ± "
                          f"{100 * told['standard_error']:.2f} (95 %: ± {100 * told['ci95']:.2f})",
                          f"{100 * told['false_alarms']:.2f}", f"{100 * told['detected']:.2f}"])
        rate = next(row["unknown"]["rate"] for row in rows if "unknown" in row)
        parts.append(f"{text_table(lines)}\nOpen-set tasks: queries of as many classes outside the task are mixed in. "
                     f"AUROC of the similarity that decides; answered \"unknown\" at a rate of {100 * rate:g} %: "
                     "images of the task's classes (false alarms) and of others (detected). No head has a part in it.")
    return "".join(f"\n\n{part}" for part in parts)
