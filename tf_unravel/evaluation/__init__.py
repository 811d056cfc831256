"""Evaluation: the accuracy of a backbone under a head over many few-shot tasks."""

from tf_unravel.evaluation.accuracy import (
    IMAGE_TASKS_PER_BLOCK,
    INDUCTIVE,
    Accuracy,
    evaluate,
    evaluate_heads,
    task_blocks,
)
from tf_unravel.evaluation.features import Extractor, extract_features

__all__ = [
    "IMAGE_TASKS_PER_BLOCK", "INDUCTIVE", "Accuracy", "Extractor", "evaluate", "evaluate_heads", "extract_features",
    "task_blocks",
]
