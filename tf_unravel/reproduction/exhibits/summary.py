"""The README's table: classical training, the regularizers and a meta-learner on one screen, beside what is published.

    gain = mean over training seeds s of (accuracy_s - accuracy of classical training with seed s), the same tasks,

with Student's 95 % interval over trainings, from `claims.LEAST_TRAININGS` of them on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tf_unravel.reproduction.exhibits import published
from tf_unravel.reproduction.exhibits.claims import LEAST_TRAININGS, paired, student
from tf_unravel.reproduction.exhibits.exhibit import Exhibit
from tf_unravel.reproduction.exhibits.originals import ORIGINALS
from tf_unravel.reproduction.exhibits.tables import REGULARIZED, SHOTS
from tf_unravel.reproduction.jobs.measurements import Accuracy, Measured, measured
from tf_unravel.reproduction.jobs.scales import RunName, Scale
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import Block, Grid, Text

_NETWORK, _PAPERS = "resnet12", "ResNet-12"
_META, _ITS_NETWORK = "R2-D2", "conv4-64"  # the meta-learner, and the network that it is published with
_NONE = "–"
_Found = dict[int, Measured]  # seed -> accuracy


def summary(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Accuracies on the home dataset, and gains over classical training."""
    trainings = {
        name: [run for seed in seeds if (run := scale.run(scale.home_beside, method, _NETWORK, seed)) is not None]
        for name, method in {"Classical": "classical", **REGULARIZED, _META: "r2d2"}.items()
    }
    trainings = {name: runs for name, runs in trainings.items() if runs}
    needs = [(run, _accuracy(scale, name, shots)) for name, runs in trainings.items() for run in runs
             for shots in SHOTS]

    def blocks(workspace: Workspace) -> list[Block]:
        found = {name: {shots: _measured(workspace, runs, _accuracy(scale, name, shots)) for shots in SHOTS}
                 for name, runs in trainings.items()}
        rows = [_row(scale, name, trainings[name][0], by_shots, found["Classical"])
                for name, by_shots in found.items() if any(by_shots.values())]
        return [Grid(_head(scale), rows), Text(_note(scale, found), small=True)] if rows else []

    if "Classical" not in trainings:
        return Exhibit("summary", "")
    title = f"{scale.home_beside} on one screen"
    return Exhibit("summary", title, needs=tuple(needs), blocks=blocks)


def _accuracy(scale: Scale, name: str, shots: int) -> Accuracy:
    return Accuracy("own" if name == _META else "svm", shots, scale.tasks)


def _measured(workspace: Workspace, runs: Sequence[RunName], accuracy: Accuracy) -> _Found:
    found = {run.seed: measured(workspace.run_dir(run), accuracy, "accuracy") for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _head(scale: Scale) -> list[str]:
    return [f"{scale.networks[_NETWORK]}, {scale.home_beside}", *(f"{shots}-shot, %" for shots in SHOTS),
            *(f"gain, {shots}-shot" for shots in SHOTS), "trainings",
            f"published, {_PAPERS}: {' / '.join(f'{shots}-shot' for shots in SHOTS)} (gain)"]


def _row(
    scale: Scale, name: str, run: RunName, found: dict[int, _Found], classical: dict[int, _Found]
) -> list[str]:
    accuracies = [_mean(found[shots]) for shots in SHOTS]
    gains = [_NONE if name == "Classical" else _gain(found[shots], classical[shots]) for shots in SHOTS]
    label = name if name == _META else scale.penalty(run) or name.lower()
    return [label, *accuracies, *gains, str(max(map(len, found.values()))), _published(scale, name)]


def _mean(found: _Found) -> str:
    return f"{statistics.mean(100 * value.mean for value in found.values()):.2f}" if found else _NONE


def _gain(found: _Found, classical: _Found) -> str:
    gains = [100 * float(paired(found[seed], classical[seed]).mean()) for seed in sorted(found) if seed in classical]
    if not gains:
        return _NONE
    mean, half = student(gains)
    return f"{mean:+.2f}" + (f" ± {half:.2f}" if len(gains) >= LEAST_TRAININGS else "")


def _published(scale: Scale, name: str) -> str:
    if name == _META:
        its = [each for each in ORIGINALS
               if (each.method, each.dataset, each.network) == (_META, scale.home_beside, _ITS_NETWORK)]
        values = [each.published for shots in SHOTS for each in its if each.shots == shots]
        return f"{' / '.join(f'{value:.1f}' for value in values)} with {_ITS_NETWORK}" if values else _NONE
    pairs = [(published.TABLE_3[name, _PAPERS, scale.home_beside, shots],
              published.TABLE_3["Classical", _PAPERS, scale.home_beside, shots]) for shots in SHOTS]
    if any(value is None for pair in pairs for value in pair):
        return _NONE
    said = " / ".join(f"{value.mean:.1f}" for value, _ in pairs)
    gains = " / ".join(f"{value.mean - other.mean:+.1f}" for value, other in pairs)
    return said if name == "Classical" else f"{said} ({gains})"


def _note(scale: Scale, found: dict[str, dict[int, _Found]]) -> str:
    first = next(value for by_shots in found.values() for each in by_shots.values() for value in each.values())
    seeds = sorted({seed for by_shots in found.values() for each in by_shots.values() for seed in each})
    return (
        f"Mean accuracy over trainings (seeds {', '.join(map(str, seeds))}) on new classes: 5-way, {first.count:,} "
        f"tasks, {Accuracy.queries} queries per class, BatchNorm {first.protocol}; MetaOptNet's SVM on the features, "
        f"{_META} with its own ridge regression. The gain is over classical training with the same seed on the same "
        "tasks, in points, ± Student's 95 % interval over trainings where there are "
        f"{LEAST_TRAININGS} or more."
    )
