"""Many classes and many images: seconds to solve a head, beside scikit-learn on the same features, and to use it.

| head              | beside                                                  | same optimum, by                     |
|-------------------|---------------------------------------------------------|--------------------------------------|
| SVM               | `LinearSVC(multi_class="crammer_singer", C=0.1)`, no l2 | the objective of ours, at both       |
| Linear            | `LogisticRegression(C=1)`, the same problem, as it      | the gradient norm, relative to at 0  |
|                   | comes and with the tolerance that gets as near as ours  |                                      |
| Ridge, Prototypes | nothing                                                 |                                      |

Each head at each size runs in a process of its own. Its peak memory, before scikit-learn is imported, counts
everything: interpreter, TensorFlow, features. "One query" is what a served model with these classes built in does for
a request, from features to logits.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tf_unravel.reproduction.benchmark.child import run_module
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target

_PROCESS = "tf_unravel.reproduction.benchmark.many_classes_process"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        tasks: (classes, images per class, rounds) of the support sets.
        dimensions: sizes D of the features.
        heads: names of the heads.
        queries: requests of one query that are timed.
    """

    tasks: Sequence[tuple[int, int, int]] = ((100, 20, 3), (1000, 5, 1))
    dimensions: Sequence[int] = (640, 1280)
    heads: Sequence[str] = ("prototypes", "ridge", "svm", "linear")
    queries: int = 50


FULL = Sizes()
QUICK = Sizes(((3, 4, 1),), (12,), ("ridge", "svm", "linear"), 3)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Seconds to solve, milliseconds for one query and peak memory of every head at every size."""
    for ways, shots, rounds in sizes.tasks:
        for dimension in sizes.dimensions:
            for head in sizes.heads:
                arguments = {"head": head, "ways": ways, "shots": shots, "dimension": dimension, "rounds": rounds,
                             "queries": sizes.queries}
                what = f"{ways:,} classes x {shots} images, D={dimension}, {head}"
                yield from _measurements(what, head, run_module(_PROCESS, json.dumps(arguments)))


def _measurements(what: str, head: str, outcome: dict[str, Any]) -> Iterator[Measurement]:
    seconds = tuple(outcome["seconds"])
    for peer in outcome["peers"]:
        measure_of = "objective above ours, relative" if head == "svm" else "relative gradient norm"
        note = (f"{what}: {measure_of}: {peer['certificate']:.1e} of {peer['name']}; "
                f"{'relative duality gap' if head == 'svm' else measure_of} of ours: {outcome['certificate']:.1e}.")
        yield Measurement(f"{what}, solved", "s", seconds, tuple(peer["seconds"]), peer["name"],
                          Target(2.0, at_least=False), note)
    if not outcome["peers"]:
        yield Measurement(f"{what}, solved", "s", seconds)
    within = Target(100.0, at_least=False, of_ratio=False)
    yield Measurement(f"{what}, one query", "ms", tuple(outcome["query_milliseconds"]), target=within)
    if outcome["peak_bytes"] is not None:
        peak = (outcome["peak_bytes"] / 2**30,)
        yield Measurement(f"{what}, peak memory", "GiB", peak, target=Target(4.0, at_least=False, of_ratio=False))
