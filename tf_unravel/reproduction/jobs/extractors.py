"""The trained extractors that come with the package: which runs of a scale they are, and the card of each."""

import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from tf_unravel.reproduction.jobs import jobs
from tf_unravel.reproduction.jobs.jobs import Job, RunJob
from tf_unravel.reproduction.jobs.measurements import Accuracy, Tuned, measured
from tf_unravel.reproduction.jobs.scales import RunName
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.runs import ConfigError, FinishedRun
from tf_unravel.runs.records import read_record
from tf_unravel.runs.shipped import ship

SEED = 0  # of the trainings


def write(plan: Sequence[Job], workspace: Workspace, out: pathlib.Path) -> str:
    """Writes the extractors of a scale whose runs are trained and measured.

    Args:
        plan: the jobs, which say what is measured of each run.
        workspace: where the runs are.
        out: the folder that gets `<name>/` of each; one that is there is replaced.

    Returns:
        What was written and what is not there yet, a line each.

    Raises:
        ConfigError: the scale names no extractors, or one that it has no training for.
    """
    scale = workspace.scale
    if not scale.extractors:
        raise ConfigError(f"the scale names no extractors (Scale.extractors). Received: --scale={scale.name}")
    lines = []
    for name, run in _runs(workspace).items():
        job = next((job for job in plan if isinstance(job, RunJob) and job.run == run), None)
        left = jobs.left_of(job, workspace) if job else ["not in the plan of these exhibits and seeds"]
        if job is None or left:
            lines.append(f"{name}: not there yet, {run}: {', '.join(left)}")
            continue
        finished = FinishedRun(workspace.run_dir(run))
        ship(finished, out / name, card(name, job, finished, workspace))
        size = sum(path.stat().st_size for path in (out / name).rglob("*") if path.is_file())
        lines.append(f"{name}: {size / 1024:.0f} KiB, {run}, checkpoint {finished.checkpoint}")
    return "\n".join(lines)


def _runs(workspace: Workspace) -> dict[str, RunName]:
    """Name of an extractor -> its run."""
    scale, found = workspace.scale, {}
    for name, training in scale.extractors.items():
        method, _, network = training.partition("@")
        run = scale.run(scale.home_beside, method, network, SEED)
        if run is None:
            raise ConfigError(f"Scale.extractors names a training of Scale.runs with seed {SEED} for each. Received: "
                              f"{name!r}: {training!r}")
        found[name] = run
    return found


def card(name: str, job: RunJob, run: FinishedRun, workspace: Workspace) -> dict[str, Any]:
    """What is said of an extractor: what it is, how it was trained, and what was measured of it.

    Args:
        name: of the extractor.
        job: its run, with what is measured.
        run: the same, read.
        workspace: where it is.

    Returns:
        JSON values; accuracies in [0, 1].
    """
    starts = read_record(run.folder.environment)["starts"]
    return {
        "format": 1,
        "name": name,
        "method": job.run.training.partition("@")[0],
        "penalty": workspace.scale.penalty(job.run) or None,
        "network": run.backbone.name,
        "parameters": run.backbone.count_params(),
        "image_shape": list(run.backbone.input_shape[1:]),
        "features": run.backbone.output_shape[-1],
        "dataset": job.run.dataset,
        "fingerprints": run.folder.data_fingerprints(),
        "accuracies": list(_accuracies(job, workspace)),
        "seed": run.plan.seed,
        "steps": run.folder.training_results()["step"],
        "checkpoint": run.checkpoint,
        "commit": run.folder.commit(),
        "date": starts[-1]["time"][:10],
        "licence": "Apache-2.0",
        "command": _command(job, run, workspace),
    }


def _accuracies(job: RunJob, workspace: Workspace) -> Iterator[dict[str, Any]]:
    """Every accuracy on the test classes."""
    for wanted in job.wanted:
        if not isinstance(wanted, Accuracy | Tuned):
            continue
        found = measured(workspace.run_dir(job.run), wanted, "accuracy")
        if found is not None:
            yield {"head": wanted.head, "ways": wanted.ways, "shots": wanted.shots, "queries": wanted.queries,
                   "mean": found.mean, "ci95": 1.96 * found.error, "tasks": found.count, "seed": found.seed,
                   "protocol": found.protocol, "rate": found.rate, "fingerprint": found.fingerprint}


def _command(job: RunJob, run: FinishedRun, workspace: Workspace) -> str:
    """What trains and measures it again."""
    root = [f"--root={job.run.dataset}=PATH"] if run.configuration.root else []
    parts = ["tf-unravel", "paper", "run", f"--scale={workspace.scale.name}", f"--seeds={job.run.seed}", *root,
             *(f"--gin_bindings={line}" for line in workspace.bindings), f"--job={job.run}"]
    return shlex.join(parts)
