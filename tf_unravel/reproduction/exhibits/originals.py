"""The methods that the paper builds on, beside what their authors, or others with their code, have published.

Every row is one training of this package with the original's settings as far as they are known, evaluated by the
original's protocol. A published number is inside if it differs from ours by no more than both 95 % intervals allow:

    |ours - published| <= sqrt(ci95_ours^2 + ci95_published^2),   the second 0 where none is published

Both intervals are over tasks, of one training each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from tf_unravel import runs
from tf_unravel.reproduction.exhibits.exhibit import Exhibit
from tf_unravel.reproduction.jobs.measurements import Accuracy, measured
from tf_unravel.reproduction.jobs.scales import RunName, Scale
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import Block, Grid, Text

_BERTINETTO = "Bertinetto et al. 2019"
_SNELL, _FINN, _NICHOL = "Snell et al. 2017", "Finn et al. 2017", "Nichol et al. 2018"
_NONE = "–"


@dataclasses.dataclass(frozen=True)
class Original:
    """One published accuracy, and the training that stands beside it.

    Args:
        method: its name.
        dataset: "CIFAR-FS" or "Omniglot".
        network: that it was published with.
        shots: per class.
        published: in %; None where none is known with this network.
        source: of the published number, or what is published in its place.
        training: of the scale, `<method>@<network>`.
        settings: of the original.
        ci95: of the published number, in points; None where none is printed.
        ways: classes of a task.
        queries: per class, in the original's evaluation.
    """

    method: str
    dataset: str
    network: str
    shots: int
    published: float | None
    source: str
    training: str
    settings: str
    ci95: float | None = None
    ways: int = 5
    queries: int = 15


_META_OPT_NET = "MetaOptNet's training: SGD 0.1, 8 episodes a batch, weight decay 5e-4, augmented"
_MAML = "Adam 1e-3, 4 tasks, 5 inner steps at 0.01 on the summed loss, 10 in evaluation, transductive"
_REPTILE = "5 tasks, 8 inner steps of 10 images, Adam without momentum 1e-3, 50 steps in evaluation, transductive"
_OMNIGLOT_MAML = "Adam 1e-3; 5-way: 32 tasks, 1 inner step at 0.4; 20-way: 16 tasks, 5 steps at 0.1; transductive"
_OMNIGLOT_REPTILE = "the authors' README; for 20-way the command it has without transduction, evaluated with it"
_STRIDED = "conv4-64, strided"

ORIGINALS = (
    Original("ProtoNet", "CIFAR-FS", "conv4-64", 1, 55.5, _BERTINETTO, "protonet_1@resnet12", _META_OPT_NET),
    Original("ProtoNet", "CIFAR-FS", "conv4-64", 5, 72.0, _BERTINETTO, "protonet@resnet12", _META_OPT_NET),
    Original("R2-D2", "CIFAR-FS", "conv4-64", 1, 60.0, _BERTINETTO, "r2d2@resnet12", _META_OPT_NET),
    Original("R2-D2", "CIFAR-FS", "conv4-64", 5, 76.1, _BERTINETTO, "r2d2@resnet12", _META_OPT_NET),
    Original("R2-D2", "CIFAR-FS", "R2-D2's own", 1, 65.3, f"{_BERTINETTO}; the paper's Table 3", "r2d2@r2d2",
             _META_OPT_NET, 0.2),
    Original("R2-D2", "CIFAR-FS", "R2-D2's own", 5, 79.4, f"{_BERTINETTO}; the paper's Table 3", "r2d2@r2d2",
             _META_OPT_NET, 0.1),
    Original("MetaOptNet-SVM", "CIFAR-FS", "conv4-64", 1, None, "72.0 with ResNet-12, Lee et al. 2019",
             "metaoptnet@resnet12", _META_OPT_NET),
    Original("MetaOptNet-SVM", "CIFAR-FS", "conv4-64", 5, None, "84.2 with ResNet-12, Lee et al. 2019",
             "metaoptnet@resnet12", _META_OPT_NET),
    Original("MAML", "CIFAR-FS", "conv4", 1, 58.9, _BERTINETTO, "maml_1@conv4", _MAML, 1.9, queries=1),
    Original("MAML", "CIFAR-FS", "conv4", 5, 71.5, _BERTINETTO, "maml_5@conv4", _MAML, 1.0, queries=5),
    Original("MAML", "CIFAR-FS", "conv4", 1, 56.8, "ArnoutDevos/maml-cifar-fs, a rerun of MAML's code", "maml_1@conv4",
             _MAML, 1.9, queries=1),
    Original("MAML", "CIFAR-FS", "conv4", 5, 70.8, "ArnoutDevos/maml-cifar-fs, a rerun of MAML's code", "maml_5@conv4",
             _MAML, 0.9, queries=5),
    Original("first-order MAML", "CIFAR-FS", "conv4", 1, None, "none known", "fomaml_1@conv4", _MAML, queries=1),
    Original("first-order MAML", "CIFAR-FS", "conv4", 5, None, "none known", "fomaml_5@conv4", _MAML, queries=5),
    Original("Reptile", "CIFAR-FS", "conv4", 1, None, "none known", "reptile@conv4", _REPTILE, queries=1),
    Original("Reptile", "CIFAR-FS", "conv4", 5, None, "none known", "reptile@conv4", _REPTILE, queries=1),
    *(
        Original("ProtoNet", "Omniglot", "conv4-64", shots, published, _SNELL, f"protonet_{shots}@omniglot",
                 "60-way episodes, Adam 1e-3 halved every 2,000 episodes, rotations as classes", ways=ways)
        for ways, shots, published in ((5, 1, 98.8), (5, 5, 99.7), (20, 1, 96.0), (20, 5, 98.9))
    ),
    Original("MAML", "Omniglot", _STRIDED, 1, 98.7, _FINN, "maml_1@omniglot", _OMNIGLOT_MAML, queries=1),
    Original("MAML", "Omniglot", _STRIDED, 1, 95.8, _FINN, "maml_20_1@omniglot", _OMNIGLOT_MAML, ways=20, queries=1),
    Original("Reptile", "Omniglot", _STRIDED, 1, 97.7, f"{_NICHOL}, with transduction", "reptile_1@omniglot",
             _OMNIGLOT_REPTILE, queries=1),
    Original("Reptile", "Omniglot", _STRIDED, 1, 89.4, f"{_NICHOL}, with transduction", "reptile_20_1@omniglot",
             _OMNIGLOT_REPTILE, ways=20, queries=1),
)  # fmt: skip


def _beside(scale: Scale, seed: int) -> Iterator[tuple[Original, RunName, Accuracy]]:
    """The originals that a scale has a training for, with what is measured of it."""
    for each in ORIGINALS:
        method, network = each.training.split("@")
        run = scale.run(each.dataset, method, network, seed)
        if run is not None:
            adapts = each.method in ("MAML", "first-order MAML", "Reptile")
            tasks = scale.adapted_tasks if adapts else scale.tasks
            yield each, run, Accuracy("own", each.shots, tasks, (), each.ways, each.queries)


def originals(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """The published originals beside our trainings."""
    rows = list(_beside(scale, seeds[0]))

    def blocks(workspace: Workspace) -> list[Block]:
        head = ["method", "data, task", "network", "published, %", "source", "here, % (95 %)", "difference", "inside",
                "steps", "tasks, protocol", "settings of the original", "run", "commit"]
        lines = [line for each in rows if (line := _line(*each, workspace))]
        rule = ("One training each. A published number is inside if it differs from ours by no more than the 95 % "
                "intervals of both over tasks; where none is published, by no more than ours. The published numbers on "
                "Omniglot are as commonly quoted and were not checked against the papers' text.")
        return [Grid(head, lines), Text(rule, small=True)] if lines else [Text("Not measured yet.", small=True)]

    needs = tuple((run, accuracy) for _, run, accuracy in rows)
    return Exhibit("originals", "The published originals, reproduced", needs=needs, blocks=blocks if rows else None)


def _line(each: Original, run: RunName, accuracy: Accuracy, workspace: Workspace) -> list[str] | None:
    found = measured(workspace.run_dir(run), accuracy, "accuracy")
    if found is None:
        return None
    folder = runs.RunFolder(workspace.run_dir(run))
    ours, half = 100 * found.mean, 196 * found.error
    published = _NONE if each.published is None else f"{each.published:.1f}"
    published += "" if each.ci95 is None else f" ± {each.ci95:g}"
    difference = inside = _NONE
    if each.published is not None:
        difference = f"{ours - each.published:+.2f}"
        inside = "yes" if abs(ours - each.published) <= math.hypot(half, each.ci95 or 0.0) else "no"
    return [
        each.method, f"{each.dataset}, {each.ways}-way {each.shots}-shot", each.network, published, each.source,
        f"{ours:.2f} ± {half:.2f}", difference, inside, f"{folder.training_results().get('step', 0):,}",
        f"{found.count:,} tasks of {each.queries} queries per class, seed {found.seed}; BatchNorm {found.protocol}",
        each.settings, str(run), folder.commit() or _NONE,
    ]
