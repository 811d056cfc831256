"""Every name that a gin file may use, besides `run` and `Validation` (config.py).

gin cannot decorate a keras.Model, so a learner is registered as a function that builds it, with the arguments of its
constructor: `learner(backbone, num_labels)`, where the labels are the classes of the split or the ways of a task.
FineTune is registered as a function too: in a gin file the members of a group of arguments stand one by one.

Heads come from `heads.by_name`, which may grow at any time: `register_heads` is called before anything is parsed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gin
import keras

from tf_unravel import backbones, data, heads, learners, regularizers
from tf_unravel.adaptation.groups import arguments
from tf_unravel.data.sampling import batches

# What each learner calls the number of labels; None where it reads it off its batches.
LABELS = {learners.Classical: "num_classes", learners.Episodic: None, learners.MAML: "ways", learners.Reptile: "ways"}


def _named(build: Callable[..., Any], like: type, fixed: tuple[str, ...], left_out: tuple[str | None, ...]) -> Any:
    """A function under the name, the documentation and the arguments of a class: what gin and help read."""
    options = [parameter.replace(kind=parameter.KEYWORD_ONLY) for name, parameter in arguments(like).items()
               if name not in left_out]
    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in fixed]
    build.__name__, build.__doc__ = like.__name__, like.__doc__
    build.__signature__ = inspect.Signature([*first, *options])  # type: ignore[attr-defined]
    return build


def _builder(learner: type[learners.Learner], labels: str | None) -> Callable[..., learners.Learner]:
    """A function (backbone, num_labels, the learner's other arguments) -> learner."""

    def build(backbone: keras.Model, num_labels: int, **options: Any) -> learners.Learner:
        return learner(backbone, **options, **({labels: num_labels} if labels else {}))

    return _named(build, learner, ("backbone", "num_labels"), ("backbone", labels))


_fine_tune = _named(lambda **options: heads.FineTune(**options), heads.FineTune, (), ())


def _pretrained(
    input_shape: tuple[int, int, int],
    name: str,
    weights: str | None = "imagenet",
    normalization: Any = None,
    trained_from: str | None = None,
    freeze_batch_norm: bool = True,
) -> keras.Model:
    """`backbones.pretrained` for images of the data's size."""
    if input_shape[2] != 3:
        raise ValueError(f"a pretrained network takes colour images. Received: images of shape {input_shape}")
    return backbones.pretrained(name, weights, input_shape[:2], normalization, trained_from, freeze_batch_norm)


_pretrained.__name__ = "pretrained"
_pretrained.knows_its_pixels = True  # type: ignore[attr-defined]  # it is not given the data's mean and deviation


def known_as(head: Any) -> Any:
    """What gin knows a class of heads as."""
    return _fine_tune if head is heads.FineTune else head


def register_heads() -> None:
    """Makes the heads of `heads.by_name` known to gin by the names of their classes, unless they are."""
    for head in heads.by_name.values():
        if not getattr(head, "__name__", "").isidentifier():
            continue  # a partial or a lambda has no name that a gin file could use
        try:
            gin.get_configurable(known_as(head))
        except ValueError:
            module = "tf_unravel.heads" if head.__module__.startswith("tf_unravel.") else head.__module__
            with gin.config.interactive_mode():  # a class may be defined anew, as in a notebook
                gin.external_configurable(known_as(head), module=module)


@functools.cache
def register() -> None:
    """Makes the names known to gin, once."""
    for module, names in {
        "data": (data.load, batches.ClassPairs, batches.Episodes, batches.InnerBatches),
        "backbones": (*backbones.by_name.values(), _pretrained),
        "regularizers": (regularizers.FeatureClustering, regularizers.HyperplaneVariation),
        "heads": (heads.SGD, heads.Adam),
        "learners": (
            *(_builder(learner, labels) for learner, labels in LABELS.items()),
            learners.sgd,
            learners.adam,
            learners.annealed_sgd,
        ),
    }.items():
        for thing in names:
            gin.external_configurable(thing, module=f"tf_unravel.{module}")
    register_heads()
