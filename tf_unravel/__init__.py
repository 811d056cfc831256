"""tf_unravel: few-shot learning for TensorFlow and Keras 3.

Train a feature extractor classically, with a clustering regularizer, or by meta-learning; measure it on thousands
of few-shot tasks under every head; see how tightly its classes cluster.

    import tf_unravel as tu

    train = tu.data.load("glyphs", split="train")
    learner = tu.learners.Classical(tu.backbones.conv4(), train.num_classes)
    learner.compile(optimizer="sgd")
    learner.fit(tu.data.class_pairs(train), epochs=1, steps_per_epoch=100)
    print(tu.evaluate(learner.backbone, tu.heads.Ridge(), tu.data.load("glyphs", split="test")))

Reference: Goldblum et al., "Unraveling Meta-Learning: Understanding Feature Representations for Few-Shot Tasks",
ICML 2020.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from tf_unravel.version import __version__

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and the reference
    from tf_unravel import analysis, backbones, data, deployment, evaluation, heads, learners, regularizers
    from tf_unravel.deployment import export
    from tf_unravel.evaluation import Accuracy, evaluate, evaluate_heads
    from tf_unravel.runs import trained, trained_names

# TensorFlow leaves oneDNN off on processors without AVX-512 VNNI, where it is worth 2x to 4x; the variable only
# counts if it is set before TensorFlow is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _keras_backend() -> str:
    """The backend that Keras has, or will have: KERAS_BACKEND, or else what keras.json says."""
    if "keras" in sys.modules:
        return str(sys.modules["keras"].config.backend())
    if chosen := os.environ.get("KERAS_BACKEND"):
        return chosen
    file = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):  # Keras goes on without it, too
        return "tensorflow"


if (_backend := _keras_backend()) != "tensorflow":
    raise ImportError(
        "tf_unravel runs on TensorFlow: set KERAS_BACKEND=tensorflow in the environment before Keras is imported. "
        f"Received: the Keras backend {_backend!r}."
    )

_PACKAGES = ("analysis", "backbones", "data", "deployment", "evaluation", "heads", "learners", "regularizers")
_NAMES = {"evaluate": "evaluation", "evaluate_heads": "evaluation", "Accuracy": "evaluation",
          "export": "deployment", "trained": "runs", "trained_names": "runs"}

__all__ = [
    "Accuracy",
    "__version__",
    "analysis",
    "backbones",
    "data",
    "deployment",
    "evaluate",
    "evaluate_heads",
    "evaluation",
    "export",
    "heads",
    "learners",
    "regularizers",
    "trained",
    "trained_names",
]


def __getattr__(name: str) -> Any:
    """Imports a package on first use, so that `tf-unravel --help` does not wait for TensorFlow."""
    if name in _PACKAGES:
        return importlib.import_module(f"tf_unravel.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"tf_unravel.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'tf_unravel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
