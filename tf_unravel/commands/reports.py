"""What `evaluate` and `measure` do: runs in, a table for people and the same as JSON."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from tf_unravel import analysis, data, evaluation
from tf_unravel.commands.figure_files import add_to_run, write_figures
from tf_unravel.commands.plots import accuracy_figure, clustering_figure, mixed_up_figure, reliability_figure
from tf_unravel.commands.reliability import Asked, measured, prior_of, reliability_tables
from tf_unravel.files import write_json
from tf_unravel.heads import Head, Reads
from tf_unravel.runs.config import OWN, heads_named, may_adapt
from tf_unravel.runs.figures import Projections, projection, projection_figure
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.runs.folder import RunFolder, check_writable
from tf_unravel.text_table import text_table

# What a row is about: one that agrees in these takes the place of an earlier one.
_IMAGES = ("checkpoint_step", "split", "fingerprint", "seed")
TASKS = (*_IMAGES, "head", "settings", "batchnorm", "adaptation", "shots", "ways", "queries", "num_tasks")
_SAVED = ("mean", "standard_error", "ci95", "num_tasks", "batchnorm", "adaptation")  # of an Accuracy: not per_task
_PAIRS = (*_IMAGES, "num_pairs")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which runs, which of their checkpoints, which split, and where the comparison goes.

    Args:
        run_dirs: folders of runs.
        split: "train", "val" or "test".
        checkpoint: "best", "last" or "initial".
        bindings: gin bindings that change the runs' configuration.
        out: folder for what compares several runs; None for the first run's.
        data_root: the folder of the runs' images; None for what each has recorded.
    """

    run_dirs: Sequence[str]
    split: str = "test"
    checkpoint: str = "best"
    bindings: Sequence[str] = ()
    out: str | None = None
    data_root: str | None = None

    @property
    def folder(self) -> pathlib.Path:
        """Where tables and figures over all runs go."""
        return pathlib.Path(self.out or self.run_dirs[0])

    @property
    def ending(self) -> str:
        """Of names in a run's folder: apart for untrained weights, which replace no trained numbers or figures."""
        return "_initial" if self.checkpoint == "initial" else ""

    @property
    def titles(self) -> list[str]:
        """What tables call the runs: their folders' names, or the paths where two names are the same."""
        names = [RunFolder(run_dir).name for run_dir in self.run_dirs]
        return names if len(set(names)) == len(names) else [str(run_dir) for run_dir in self.run_dirs]

    def runs(self, adapts: bool = False) -> Iterator[tuple[str, FinishedRun, data.ClassImages]]:
        """Each run's title, the run, and its split; `adapts` as for FinishedRun."""
        for title, run_dir in zip(self.titles, self.run_dirs, strict=True):
            run = FinishedRun(run_dir, self.bindings, self.checkpoint, adapts, self.data_root)
            run.folder.check_writable()  # before minutes of features
            check_writable("--out", self.folder)
            yield title, run, run.split(self.split)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Which tasks; the same seed gives the same ones for every run and head."""

    ways: int = 5
    shots: Sequence[int] = (1, 5)
    queries: int = 15
    num_tasks: int = 2000
    seed: int = 0


def evaluate_runs(reading: Reading, head_names: Sequence[str], tasks: Tasks, asked: Asked | None = None) -> str:
    """Accuracy of every run under every head, and what is asked besides.

    Adds to results.json of each run, which keeps what was evaluated before, and writes evaluation.json, this table,
    and its figures: accuracy_<split>.png, confusion_<split>.png (the pairs of classes that were mixed up most), and
    reliability_<split>.png where calibration is asked for.

    Args:
        reading: the runs.
        head_names: names in `heads.by_name`.
        tasks: the tasks.
        asked: what to measure besides accuracy.

    Returns:
        The tables as text.

    Raises:
        ConfigError: an unknown head, or a folder without a trained run.
        ValueError: tasks that the split cannot give; calibration of a head that adapts the network.
    """
    rows: list[dict[str, Any]] = []
    for title, run, split in reading.runs(may_adapt(head_names)):
        first = len(rows)
        chosen = heads_named(head_names, run.learner)
        for shots in tasks.shots:
            data.TaskSampler(split, tasks.ways, shots, tasks.queries, tasks.seed)  # refuses before minutes of features
        for head in chosen.values():
            head.check_ways(tasks.ways)
        besides = {}
        if asked:
            features = evaluation.extract_features(run.backbone, split.images)
            besides = measured(asked, features, chosen, split, dataclasses.asdict(tasks), prior_of(run, chosen))
        for heads in _by_cost(chosen):
            accuracies = evaluation.evaluate_heads(run.backbone, heads, split, **dataclasses.asdict(tasks))
            mine = [
                {"run": title, "checkpoint": run.checkpoint, "checkpoint_step": run.step,
                 **accuracy_row(split, heads[name], shots, tasks, accuracy), "head": name,
                 **besides.get((name, shots), {})}
                for name, by_shots in accuracies.items()
                for shots, accuracy in by_shots.items()
            ]
            run.folder.add_results(f"evaluation{reading.ending}", mine, TASKS)  # kept if a later head fails
            rows += mine
        add_to_run(run, reading.split, evaluation_figures(rows[first:]), reading.ending)
    write_json(reading.folder / "evaluation.json", rows)
    figures = write_figures(reading.folder, reading.split, evaluation_figures(rows))
    return accuracy_table(rows, tasks) + reliability_tables(rows) + figures


def evaluation_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure | None]:
    """What is drawn of the rows of evaluation.json, by name."""
    return {"accuracy": accuracy_figure(rows), "confusion": mixed_up_figure(rows),
            "reliability": reliability_figure(rows)}


def accuracy_row(
    split: data.ClassImages, head: Head, shots: int, tasks: Tasks, accuracy: evaluation.Accuracy
) -> dict[str, Any]:
    """An accuracy, what it was measured on, and the pairs of classes that were mixed up most, as JSON."""
    pairs = accuracy.confusion.most_mixed_up() if accuracy.confusion else []
    return {
        "split": split.name, "fingerprint": split.fingerprint, "head": head.title, "settings": head.settings(),
        "shots": shots, "ways": tasks.ways, "queries": tasks.queries, "seed": tasks.seed,
        **{name: getattr(accuracy, name) for name in _SAVED},
        "mixed_up": [{"classes": [split.class_names[a], split.class_names[b]], "rate": rate} for a, b, rate in pairs],
    }


def _by_cost(heads: Mapping[str, Head]) -> Iterator[dict[str, Head]]:
    """The heads that share one pass over the images, then one by one those that adapt the network to each task."""
    adapting = {name: head for name, head in heads.items() if head.reads is Reads.IMAGES}
    if len(adapting) < len(heads):
        yield {name: head for name, head in heads.items() if name not in adapting}
    yield from ({name: head} for name, head in adapting.items())


def accuracy_table(rows: Sequence[dict[str, Any]], tasks: Tasks) -> str:
    """One line per run and head, one column per number of shots."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["run"], row["head"]), []).append(
            f"{100 * row['mean']:.2f} ± {100 * row['standard_error']:.2f} (95 %: ± {100 * row['ci95']:.2f})"
        )
    lines = [["run", "head", *(f"{tasks.ways}-way {shots}-shot, %" for shots in tasks.shots)]]
    lines += [[run, head, *values] for (run, head), values in cells.items()]
    own = {row["run"]: row["settings"] for row in rows if row["head"] == OWN}
    note = [
        f"Mean ± one standard error over {rows[0]['num_tasks']} tasks of split {rows[0]['split']}, {tasks.queries} "
        f"queries per class, seed {tasks.seed}.",
        *_checkpoint_lines(rows),
        *_said_once("own", " = ", own),
        *_protocol_lines(rows),
    ]
    return "\n".join([text_table(lines), *note])


def _said_once(what: str, between: str, by_run: Mapping[str, str]) -> list[str]:
    """One line where all runs agree, else one a run."""
    if len(set(by_run.values())) == 1:
        return [f"{what}{between}{next(iter(by_run.values()))}"]
    return [f"{what} of {run}{between}{value}" for run, value in by_run.items()]


def _checkpoint_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    if "checkpoint" not in rows[0]:  # of an exported model
        return []
    return _said_once("checkpoint", ": ", {row["run"]: row["checkpoint"] for row in rows})


def _protocol_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What BatchNorm did, and the inner loop: one line for each that there is, with its heads if there are several."""
    found: dict[str, dict[str, str]] = {}  # head -> run -> protocol
    for row in rows:
        protocol = "; ".join(filter(None, (row["batchnorm"], row["adaptation"])))
        found.setdefault(row["head"], {})[row["run"]] = protocol
    heads: dict[str, list[str]] = {}  # protocol -> its heads, by run where runs differ
    for head, by_run in found.items():
        alike = len(set(by_run.values())) == 1
        for run, protocol in by_run.items():
            heads.setdefault(protocol, []).append(head if alike else f"{run} {head}")
    if len(heads) == 1:
        return [f"BatchNorm: {next(iter(heads))}"]
    return [f"BatchNorm of {', '.join(dict.fromkeys(names))}: {protocol}" for protocol, names in heads.items()]


def measure_runs(reading: Reading, num_pairs: int = 10000, seed: int = 0) -> str:
    """How features cluster.

    Adds to results.json of each run, which keeps what was measured before, and writes measurement.json, this table,
    and its figures: clustering_<split>.png and lda_<split>.png.

    Args:
        reading: the runs.
        num_pairs: pairs of classes drawn for r_fc and r_hv.
        seed: of the draws.

    Returns:
        The table as text.
    """
    rows: list[dict[str, Any]] = []
    projections: Projections = {}
    for title, run, split in reading.runs():
        features = evaluation.extract_features(run.backbone, split.images)
        measured = analysis.class_separation(features, split.class_ids, num_pairs=num_pairs, seed=seed)
        rows.append({"run": title, "checkpoint": run.checkpoint, "checkpoint_step": run.step, "split": split.name,
                     "fingerprint": split.fingerprint, **dataclasses.asdict(measured),
                     "expected_r_hv": measured.expected_r_hv})
        run.folder.add_results(f"measurement{reading.ending}", rows[-1:], _PAIRS)
        if (projected := projection(features, split, seed)) is not None:
            projections[title] = projected
        own = {title: projections[title]} if title in projections else {}
        add_to_run(run, reading.split, measurement_figures(rows[-1:], own, split), reading.ending)
    write_json(reading.folder / "measurement.json", rows)
    figures = write_figures(reading.folder, reading.split, measurement_figures(rows, projections, split))
    return separation_table(rows, num_pairs, seed) + figures


def measurement_figures(
    rows: Sequence[dict[str, Any]], projections: Projections, split: data.ClassImages
) -> dict[str, Figure | None]:
    """What is drawn of the rows of measurement.json and of the projections, by name."""
    lda = projection_figure(projections, split.class_names) if projections else None
    return {"clustering": clustering_figure(rows), "lda": lda}


def separation_table(rows: Sequence[dict[str, Any]], num_pairs: int, seed: int) -> str:
    """One line per run or model, and what was measured how."""
    lines = [["run", "r_fc", "r_hv", "4 r_fc / (4 + r_fc)", "variance ratio"]]
    for row in rows:
        lines.append([row["run"], f"{row['r_fc']:.3f} ± {row['r_fc_error']:.3f}",
                      f"{row['r_hv']:.3f} ± {row['r_hv_error']:.3f}",
                      f"{row['expected_r_hv']:.3f}", f"{row['variance_ratio']:.3f}"])
    note = (
        f"Estimators of Tables 2 and 4 (two classes, two samples each), mean ± one standard error over {num_pairs} "
        f"pairs of split {rows[0]['split']}, seed {seed}; lower is tighter."
    )
    return "\n".join([text_table(lines), note, *_checkpoint_lines(rows)])
