"""Evaluation: the accuracy of a backbone under a head over many few-shot tasks."""

from tf_unravel.evaluation.accuracy import (
    IMAGE_TASKS_PER_BLOCK,
    INDUCTIVE,
    Accuracy,
    evaluate,
    evaluate_heads,
    task_blocks,
)
from tf_unravel.evaluation.calibration import (
    BINS,
    CalibrationResult,
    Reliability,
    UnknownResult,
    evaluate_calibration,
    evaluate_unknown,
    fitted_prior,
    reliability,
)
from tf_unravel.evaluation.confusion import Confusion
from tf_unravel.evaluation.features import Extractor, extract_features

__all__ = [
    "BINS", "IMAGE_TASKS_PER_BLOCK", "INDUCTIVE", "Accuracy", "CalibrationResult", "Confusion", "Extractor",
    "Reliability", "UnknownResult", "evaluate", "evaluate_calibration", "evaluate_heads", "evaluate_unknown",
    "extract_features", "fitted_prior", "reliability", "task_blocks",
]
