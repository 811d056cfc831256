"""When the regularizers help: the gain over classical training against how far training interpolates.

The regularizers act through their share of the gradient (`learners.gradient_share`), and the cross-entropy leaves them
room only where it has nothing more to gain: where training interpolates. Networks are trained, without augmentation,
on fewer and fewer images per class, and on one number of them with every form and coefficient of Table 8:

| here                                  | trainings                                                    |
|---------------------------------------|--------------------------------------------------------------|
| forms and coefficients                | `<method>@few<size>` at the size that has all four forms     |
| series of sizes                       | the chosen form and coefficient at every size of the scale   |

A form and a coefficient are chosen on the validation classes, by trainings with seeds of their own.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from tf_unravel import runs
from tf_unravel.reproduction.exhibits.claims import paired, student
from tf_unravel.reproduction.exhibits.exhibit import Drawing, Exhibit
from tf_unravel.reproduction.jobs.measurements import Accuracy, Measurement, Separation, measured
from tf_unravel.reproduction.jobs.scales import PENALTIES, RunName, Scale, penalty_of
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import Block, Grid, Heading, Text

FORMS = ("feature_clustering_batch", "feature_clustering_pairs", "hyperplane_variation_printed",
         "hyperplane_variation_squared")
SHOTS = (1, 5)
_PAIRS = 1000  # their values are kept for every one of the many trainings
_COLOURS = {"feature_clustering": "#0072b2", "hyperplane_variation": "#d55e00"}
_MARKERS = dict(zip(FORMS, ("o", "s", "^", "D"), strict=True))


@dataclasses.dataclass(frozen=True)
class Setting:
    """A regularizer, or none, at a number of training images.

    Args:
        method: of FORMS, or "classical".
        coefficient: None for classical training.
        size: training images per class.
    """

    method: str
    coefficient: float | None
    size: int

    def runs(self, scale: Scale, seeds: Sequence[int]) -> list[RunName]:
        """Its trainings."""
        found = (scale.run(scale.home_beside, self.method, f"few{self.size}", seed, self.coefficient) for seed in seeds)
        return [run for run in found if run is not None]


def _settings(scale: Scale) -> Iterator[Setting]:
    """Every setting of the exhibit, each once."""
    settings = dict.fromkeys(
        Setting(method, coefficient, size)
        for size in scale.sizes
        for method, coefficient in [("classical", None), *scale.chosen.values(),
                                    *((form, c) for form in FORMS for c in scale.grid)]
        if (method, coefficient) in [("classical", None), *scale.chosen.values()] or size == _grid_size(scale)
    )
    yield from (each for each in settings if each.runs(scale, scale.grid_seeds))


def _grid_size(scale: Scale) -> int | None:
    """The number of images at which all forms are compared."""
    full = [size for size in scale.sizes if all(f"{form}@few{size}" in scale.runs for form in FORMS)]
    return next((size for size in full if scale.selection_seeds and Setting("classical", None, size).runs(
        scale, scale.selection_seeds)), full[0] if full else None)


def interpolation(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Gain against interpolation, and the grid of Table 8 in all four forms."""
    settings = list(_settings(scale))
    wanted: tuple[Measurement, ...] = (
        *(Accuracy("svm", shots, scale.tasks) for shots in SHOTS), Separation("test", min(scale.pairs, _PAIRS))
    )
    needs = [(run, each) for setting in settings for run in setting.runs(scale, scale.grid_seeds) for each in wanted]
    needs += [(run, wanted[0]) for setting in settings for run in setting.runs(scale, scale.selection_seeds)]

    def blocks(workspace: Workspace) -> list[Block]:
        rows = {setting: row for setting in settings if (row := _row(setting, workspace))}
        if not rows:
            return [Text("Not measured yet.", small=True)]
        return [*_grid_blocks(scale, rows), *_series_blocks(scale, rows)]

    def draw(workspace: Workspace) -> list[Drawing]:
        rows = {setting: row for setting in settings if (row := _row(setting, workspace))}
        gains = [row for row in rows.values() if row.gains]
        if not gains:
            return []
        caption = (
            "Gain in accuracy over classical training with the same seed (SVM, 5-way 1-shot, new classes); bars are "
            "Student's 95 % interval over trainings. Left: the chosen form and coefficient against the training images "
            "per class, with the training accuracy that classical training reaches. Right: every form and coefficient "
            "against the norm of the regularizer's gradient on the backbone relative to the cross-entropy's, at the "
            f"end of training. Scale {scale.name}."
        )
        return [Drawing("interpolation", _figure(scale, rows), caption)]

    title = "When the regularizers help: gain against how far training interpolates"
    if not settings:
        return Exhibit("interpolation", title)
    return Exhibit("interpolation", title, needs=tuple(needs), draw=draw, blocks=blocks)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of a setting.

    Args:
        gains: shots -> the differences to classical training in points, one for each seed; empty for classical.
        accuracies: shots -> accuracy in %, one for each seed.
        share, train_accuracy, cross_entropy, r_fc: medians over seeds; share is 0 for classical.
        validation: accuracy on the validation classes in %, one for each selection seed.
    """

    gains: dict[int, list[float]]
    accuracies: dict[int, list[float]]
    share: float
    train_accuracy: float
    cross_entropy: float
    r_fc: float
    validation: list[float]


def _row(setting: Setting, workspace: Workspace) -> Row | None:
    scale = workspace.scale
    classical = Setting("classical", None, setting.size)
    accuracies: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    gains: dict[int, list[float]] = {}
    for run in setting.runs(scale, scale.grid_seeds):
        for shots in SHOTS:
            wanted = Accuracy("svm", shots, scale.tasks)
            found = measured(workspace.run_dir(run), wanted, "accuracy")
            if found is None:
                continue
            accuracies[shots].append(100 * found.mean)
            (other,) = classical.runs(scale, [run.seed])
            beside = measured(workspace.run_dir(other), wanted, "accuracy")
            if setting != classical and beside is not None:
                gains.setdefault(shots, []).append(100 * float(paired(found, beside).mean()))
    last = [record for run in setting.runs(scale, scale.grid_seeds) if (record := _last(workspace, run))]
    if not last or not all(accuracies.values()):
        return None
    separations = [measured(workspace.run_dir(run), Separation("test", scale.pairs), "r_fc")
                   for run in setting.runs(scale, scale.grid_seeds)]
    validation = [_validation(record) for run in setting.runs(scale, scale.selection_seeds)
                  if (record := _last(workspace, run))]

    def median(name: str) -> float:
        return statistics.median(record.get(f"at_validation/{name}", 0.0) for record in last)

    return Row(gains, accuracies, median("regularizer_gradient_share"), median("train_accuracy"),
               median("train_cross_entropy"), statistics.median(each.mean for each in separations if each), validation)


def _last(workspace: Workspace, run: RunName) -> dict[str, float] | None:
    """The last validation of a training."""
    validations = runs.RunFolder(workspace.run_dir(run)).training_results().get("validations")
    return validations[-1] if validations else None


def _validation(record: dict[str, float]) -> float:
    """The accuracy on the validation classes in %, averaged over shots."""
    return 100 * statistics.mean(record[f"val/{shots}-shot"] for shots in SHOTS)


def _plus_minus(values: Sequence[float], sign: str = "") -> str:
    mean, half = student(values)
    return f"{mean:{sign}.2f}" + (f" ± {half:.2f}" if len(values) > 1 else "")


def _grid_blocks(scale: Scale, rows: dict[Setting, Row]) -> list[Block]:
    size = _grid_size(scale)
    here = {setting: row for setting, row in rows.items() if setting.size == size}
    if not here:
        return []
    chosen = best_on_validation(here)
    lines = []
    for setting, row in here.items():
        mark = " (chosen)" if setting in chosen.values() else ""
        lines.append([
            *_names(scale, setting), _plus_minus(row.validation) + mark if row.validation else "–",
            *(_plus_minus(row.accuracies[shots]) for shots in SHOTS),
            *(_plus_minus(row.gains[shots], "+") if row.gains else "–" for shots in SHOTS),
            f"{row.share:.3f}", f"{100 * row.train_accuracy:.1f}", f"{row.cross_entropy:.4f}", f"{row.r_fc:.3f}",
        ])
    head = ["regularizer", "coefficient", "form", "validation, %", "1-shot, %", "5-shot, %", "gain, 1-shot",
            "gain, 5-shot", "gradient share", "training accuracy, %", "cross-entropy", "r_fc, new classes"]
    note = (f"{size} training images per class, no augmentation; SVM, 5-way, {scale.tasks:,} test tasks. Trainings: "
            f"{max(len(row.accuracies[1]) for row in here.values())} for each row, and "
            f"{max(len(row.validation) for row in here.values())} with seeds of their own whose accuracy on the "
            "validation classes, averaged over 1 and 5 shots, chose one row for each regularizer. ± is Student's 95 % "
            "interval over trainings; gains are paired, with the same seed and the same tasks. Gradient share, "
            "training accuracy and cross-entropy are those of the last training batches, medians over trainings.")
    return [Heading(f"Forms and coefficients at {size} images per class", 3), Grid(head, lines), Text(note, small=True)]


def best_on_validation(rows: dict[Setting, Row]) -> dict[str, Setting]:
    """Penalty -> the setting with the highest mean accuracy on the validation classes."""
    best: dict[str, Setting] = {}
    for setting, row in rows.items():
        penalty = penalty_of(setting.method)
        if not penalty or not row.validation:
            continue
        if penalty not in best or statistics.mean(row.validation) > statistics.mean(rows[best[penalty]].validation):
            best[penalty] = setting
    return best


def _series_blocks(scale: Scale, rows: dict[Setting, Row]) -> list[Block]:
    wanted = [("classical", None), *scale.chosen.values()]
    lines = []
    for setting, row in rows.items():
        if (setting.method, setting.coefficient) in wanted:
            lines.append([
                str(setting.size), *_names(scale, setting), *(_plus_minus(row.accuracies[shots]) for shots in SHOTS),
                *(_plus_minus(row.gains[shots], "+") if row.gains else "–" for shots in SHOTS), f"{row.share:.3f}",
                f"{100 * row.train_accuracy:.1f}", f"{row.cross_entropy:.4f}", f"{row.r_fc:.3f}",
            ])
    head = ["images per class", "regularizer", "coefficient", "form", "1-shot, %", "5-shot, %", "gain, 1-shot",
            "gain, 5-shot", "gradient share", "training accuracy, %", "cross-entropy", "r_fc, new classes"]
    return [Heading("Images per class", 3), Grid(head, lines)] if lines else []


def _names(scale: Scale, setting: Setting) -> list[str]:
    """Regularizer, coefficient and form."""
    if setting.coefficient is None:
        return ["none", "0", "–"]
    run = setting.runs(scale, scale.grid_seeds)[0]
    return [PENALTIES[penalty_of(setting.method)], f"{setting.coefficient:g}", scale.form(run)]


def _figure(scale: Scale, rows: dict[Setting, Row]) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    by_size, by_share = figure.subplots(1, 2, sharey=True)
    for penalty, (method, coefficient) in scale.chosen.items():
        there = [(s.size, rows[s]) for s in sorted(rows, key=lambda s: s.size)
                 if (s.method, s.coefficient) == (method, coefficient) and rows[s].gains]
        if there:
            means, halves = zip(*(student(row.gains[1]) for _, row in there), strict=True)
            name = f"{PENALTIES[penalty]} {coefficient:g}, {scale.form(_any_run(scale, method, coefficient))}"
            by_size.errorbar([size for size, _ in there], means, [_finite(half) for half in halves], capsize=3,
                             marker=_MARKERS[method], color=_COLOURS[penalty], label=name)
    sizes = [size for size in scale.sizes if Setting("classical", None, size) in rows]
    reached = [100 * rows[Setting("classical", None, size)].train_accuracy for size in sizes]
    by_size.set_xscale("log")
    by_size.set_xticks(sizes, [f"{size}\n({accuracy:.0f} %)" for size, accuracy in zip(sizes, reached, strict=True)])
    by_size.minorticks_off()
    by_size.set_xlabel("training images per class (training accuracy without a regularizer)")
    by_size.set_ylabel("gain over classical training, points")
    labelled: set[str] = set()
    for setting, row in rows.items():
        if row.gains and row.share > 0:
            mean, half = student(row.gains[1])
            name = " ".join(_names(scale, setting)[::2])
            by_share.errorbar(row.share, mean, _finite(half), capsize=2, linestyle="", marker=_MARKERS[setting.method],
                              color=_COLOURS[penalty_of(setting.method)], label="" if name in labelled else name)
            labelled.add(name)
    by_share.set_xscale("log")
    by_share.set_xlabel("regularizer's share of the gradient at the end of training")
    for axes in (by_size, by_share):
        axes.axhline(0, color="0.5", linewidth=1)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    return figure


def _finite(half: float) -> float:
    """No bar where there is one training."""
    return half if half < float("inf") else 0.0


def _any_run(scale: Scale, method: str, coefficient: float) -> RunName:
    found = (Setting(method, coefficient, size).runs(scale, scale.grid_seeds) for size in scale.sizes)
    return next(run for some in found for run in some)
