"""The plan: what must be trained and measured for some exhibits, as independent jobs; and how one is done.

    exhibits -> numbers -> one job a run: train, measure what reads features, measure what adapts the network
                        -> one job a table of times

A job does only what is not done yet, each part in a process of its own; jobs do not wait for each other, so that a
cluster's job array can take them. A training that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tqdm

from tf_unravel import runs
from tf_unravel.reproduction.exhibits.exhibit import Exhibit
from tf_unravel.reproduction.jobs import measurements
from tf_unravel.reproduction.jobs.measurements import Measurement
from tf_unravel.reproduction.jobs.processes import ChildFailed, in_child
from tf_unravel.reproduction.jobs.scales import RunName, Scale
from tf_unravel.reproduction.jobs.timing import Timing
from tf_unravel.reproduction.jobs.workspace import Workspace

Part = tuple[str, Callable[..., None], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class RunJob:
    """One run: its training and everything that is measured of it.

    Args:
        run: its name.
        wanted: the measurements.
    """

    run: RunName
    wanted: tuple[Measurement, ...]

    def __str__(self) -> str:
        return str(self.run)

    def parts(self, workspace: Workspace) -> list[Part]:
        """What is left to do, in order.

        Raises:
            ConfigError: the folder holds the run of another configuration.
        """
        run_dir = workspace.run_dir(self.run)
        folder, (files, bindings) = runs.RunFolder(run_dir), workspace.configuration(self.run)
        folder.check_config(runs.parse(files, bindings))
        parts: list[Part] = []
        if not folder.finished():
            parts.append(("training", _train, (files, bindings, str(run_dir), workspace.root(self.run))))
        left = measurements.missing(run_dir, self.wanted)
        for adapts in (False, True):  # a network that adapts may want other threads
            group = [each for each in left if each.adapts == adapts]
            if group:
                kind = "fine-tuning" if adapts else "measuring"
                parts.append((kind, measurements.take, (run_dir, workspace.root(self.run), group)))
        return parts

    def minutes(self, workspace: Workspace) -> float:
        """How long all of it takes: as long as another seed of it took, or what the scale's file says."""
        for other in workspace.run_dir(self.run).parent.glob("seed-*"):
            folder = runs.RunFolder(other)
            if folder.finished():
                taken = [found for each in self.wanted if (found := measurements.read(other, each))]
                if len(taken) == len(self.wanted):
                    measuring = sum(each["seconds"] + each.get("trial_seconds", 0.0) for each in taken)
                    return (folder.training_results()["seconds"] + measuring) / 60
        return workspace.scale.estimate(self.run)


@dataclasses.dataclass(frozen=True)
class TimingJob:
    """The time of some trainings' epochs.

    Args:
        timing: what is timed.
    """

    timing: Timing

    def __str__(self) -> str:
        return str(self.timing)

    def parts(self, workspace: Workspace) -> list[Part]:
        """What is left to do."""
        return [] if self.timing.read(workspace) else [("timing", Timing.take, (self.timing, workspace))]

    def minutes(self, workspace: Workspace) -> float:
        """How long it takes, as the scale's file says."""
        return workspace.scale.minutes.get("timing", workspace.scale.minutes.get("", 30.0))


Job = RunJob | TimingJob


def plan(exhibits: Iterable[Exhibit], scale: Scale) -> list[Job]:
    """The jobs behind some exhibits, each run once with everything that is wanted of it.

    In the order of the scale's queue; where that says nothing, every table of one seed before the next seed.
    """
    by_run: dict[RunName, dict[Measurement, None]] = {}
    timings: dict[Timing, None] = {}
    for exhibit in exhibits:
        for run, measurement in exhibit.wanted():
            if isinstance(measurement, Timing):
                timings[measurement] = None
            else:
                by_run.setdefault(run, {})[measurement] = None
    trained = [RunJob(run, tuple(wanted)) for run, wanted in by_run.items()]
    trained.sort(key=lambda job: (scale.place(job.run), job.run.seed))
    return [*trained, *(TimingJob(timing) for timing in timings)]


def as_lines(jobs: Sequence[Job], workspace: Workspace, command: str) -> Iterator[str]:
    """The plan as JSON lines: each job with the command that does it, for a cluster's job array.

    Args:
        jobs: the plan.
        workspace: where.
        command: what comes before ` --job <name>`.
    """
    for job in jobs:
        left = left_of(job, workspace)
        yield json.dumps({"job": str(job), "command": f"{command} --job {job}", "left": left,
                          "minutes": round(job.minutes(workspace), 1) if left else 0.0})


def minutes_left(jobs: Iterable[Job], workspace: Workspace) -> float:
    """An estimate of what is left of a plan."""
    return sum(job.minutes(workspace) for job in jobs if left_of(job, workspace))


def run(jobs: Sequence[Job], workspace: Workspace, processes: int = 1) -> dict[str, str]:
    """Does what is left of each job; one that fails does not keep the others.

    Args:
        jobs: the plan.
        workspace: where.
        processes: jobs that are done side by side; tables of times always wait until they have the machine alone.

    Returns:
        Name of a job that failed -> why.
    """
    failures: dict[str, str] = {}
    left: list[tuple[Job, list[Part], int]] = []
    for job in jobs:
        try:
            parts = job.parts(workspace)
        except ValueError as error:
            failures[str(job)] = str(error)
        else:
            left += [(job, parts, round(60 * job.minutes(workspace)))] if parts else []
    with _bar(sum(seconds for *_, seconds in left)) as bar:

        def do(job: Job, parts: list[Part], seconds: int) -> None:
            try:
                for kind, function, arguments in parts:
                    bar.set_description_str(f"{job}: {kind}", refresh=sys.stderr.isatty())
                    log = workspace.folder / "logs" / f"{str(job).replace('/', '_')}.log"
                    in_child(function, *arguments, log=log)
            except ChildFailed as error:
                failures[str(job)] = str(error)
            bar.update(seconds)

        alone = [each for each in left if isinstance(each[0], TimingJob)]
        pool = ThreadPoolExecutor(processes)
        try:
            list(pool.map(lambda each: do(*each), [each for each in left if each not in alone]))
        finally:
            pool.shutdown(cancel_futures=True)
        for each in alone:
            do(*each)
    return failures


def _bar(seconds: int) -> tqdm.tqdm:
    """A bar over the estimated time of a plan; a line now and then where that is not a terminal."""
    form = "{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}] {desc}"
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm.tqdm(total=seconds, mininterval=interval, dynamic_ncols=True, bar_format=form)


def left_of(job: Job, workspace: Workspace) -> list[str]:
    """What is left of a job, in words; what keeps it from being done, if something does."""
    try:
        return [kind for kind, *_ in job.parts(workspace)]
    except ValueError as error:
        return [str(error)]


def _train(files: list[str], bindings: list[str], run_dir: str, root: str | None) -> None:
    folder = runs.RunFolder(run_dir)
    configuration = runs.parse(files, bindings, root=root, recorded=folder.data_root())
    plan = runs.plan(configuration)
    plan.use_threads()
    outcome = runs.train(plan, folder, configuration)
    if outcome.stopped_by:
        raise InterruptedError(str(outcome))
