"""Every name that a gin file may use, besides `run` and `Validation` (config.py).

gin cannot decorate a keras.Model, so a learner is registered as a function that builds it, with the arguments of its
constructor: `learner(backbone, num_labels)`, where the labels are the classes of the split or the ways of a task.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gin
import keras

from tf_unravel import backbones, data, heads, learners, regularizers
from tf_unravel.data.sampling import batches

# What each learner calls the number of labels; None where it reads it off its batches.
LABELS = {learners.Classical: "num_classes", learners.Episodic: None, learners.MAML: "ways", learners.Reptile: "ways"}


def _builder(learner: type[learners.Learner], labels: str | None) -> Callable[..., learners.Learner]:
    """A function (backbone, num_labels, the learner's other arguments) -> learner."""

    def build(backbone: keras.Model, num_labels: int, **options: Any) -> learners.Learner:
        return learner(backbone, **options, **({labels: num_labels} if labels else {}))

    own = inspect.signature(learner.__init__).parameters.values()
    options = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in own
        if parameter.name not in ("self", "backbone", "kwargs", labels)
    ]
    fixed = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("backbone", "num_labels")]
    build.__name__ = learner.__name__
    build.__doc__ = learner.__doc__
    build.__signature__ = inspect.Signature([*fixed, *options])  # type: ignore[attr-defined]  # what gin and help read
    return build


@functools.cache
def register() -> None:
    """Makes the names known to gin, once."""
    for module, names in {
        "data": (data.load, batches.ClassPairs, batches.Episodes, batches.InnerBatches),
        "backbones": tuple(backbones.by_name.values()),
        "regularizers": (regularizers.FeatureClustering, regularizers.HyperplaneVariation),
        # By name: one of the user's own in heads.by_name registers itself.
        "heads": (heads.Prototypes, heads.Ridge, heads.SVM, heads.Linear, heads.FineTune, heads.SGD, heads.Adam),
        "learners": (
            *(_builder(learner, labels) for learner, labels in LABELS.items()),
            learners.sgd,
            learners.adam,
            learners.annealed_sgd,
        ),
    }.items():
        for thing in names:
            gin.external_configurable(thing, module=f"tf_unravel.{module}")
