"""What `tf-unravel paper` does with its arguments."""

import argparse
import pathlib
import shlex
from collections.abc import Sequence

from tf_unravel.reproduction.exhibits.exhibit import Exhibit
from tf_unravel.reproduction.jobs import archive, extractors, jobs, scales
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report import report
from tf_unravel.runs import ConfigError

_ACTIONS = ("list", "plan", "run", "report", "pack", "unpack", "extractors")
_WRITERS = {"pack": (archive.pack, "the archive", "runs.tar.xz"),
            "extractors": (extractors.write, "the folder of the extractors", "tf_unravel/trained")}


def main(arguments: argparse.Namespace) -> int:
    """Lists, plans, runs, packs, or shows exhibits.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 where a job failed.

    Raises:
        ConfigError: arguments that do not fit.
    """
    action = arguments.what[0] if arguments.what[0] in _ACTIONS else "show"
    if action == "unpack":
        return _unpack(arguments)
    names = [*(arguments.what[1:] if action != "show" else arguments.what), *arguments.only]
    if arguments.processes < 1:
        raise ConfigError(f"--processes must be at least 1. Received: {arguments.processes}")
    scale = scales.load(arguments.scale)
    arguments.seeds = arguments.seeds or list(scale.seeds)
    chosen = report.exhibits(scale, arguments.seeds, names)
    if action == "list":
        print("\n".join(f"{exhibit.name:<10}{exhibit.title}" for exhibit in chosen))
        return 0
    workspace = Workspace(
        pathlib.Path(arguments.run_dir), scale, _roots(arguments.root, scale), tuple(arguments.gin_bindings)
    )
    plan = jobs.plan(chosen, scale)
    if action == "plan":
        return _plan(plan, workspace, arguments)
    if action in _WRITERS:
        return _write(action, plan, workspace, arguments)
    if action == "run" and arguments.job:
        plan = _only(plan, arguments.job)
    failures = {} if arguments.no_training else _run(plan, workspace, arguments.processes)
    for job, why in failures.items():
        print(f"{job} failed: {why}")
    if action == "report":
        out = pathlib.Path(arguments.out or workspace.folder / "report")
        command = f"tf-unravel paper report{_options(arguments)}"
        verdicts = report.write(workspace, chosen, arguments.seeds, out, command, failures)
        print("\n".join(f"{verdict.claim.text} Here: {verdict.outcome}. The paper's numbers: {verdict.of_paper}."
                        for verdict in verdicts))
        print(f"Report: {out / 'report.html'}, {out / 'report.md'}")
    elif action == "show":
        print("\n\n\n".join(_shown(exhibit, workspace, arguments) for exhibit in chosen))
    return 1 if failures else 0


def _unpack(arguments: argparse.Namespace) -> int:
    if len(arguments.what) != 2:
        received = " ".join(arguments.what[1:]) or "nothing"
        raise ConfigError(f"unpack takes one archive: tf-unravel paper unpack FILE.tar.xz. Received: {received}")
    print(archive.unpack(pathlib.Path(arguments.what[1]), pathlib.Path(arguments.run_dir)))
    return 0


def _write(action: str, plan: Sequence[jobs.Job], workspace: Workspace, arguments: argparse.Namespace) -> int:
    write, what, example = _WRITERS[action]
    if not arguments.out:
        raise ConfigError(f"{action} writes {what}: give --out, such as --out={example}")
    print(write(plan, workspace, pathlib.Path(arguments.out)))
    return 0


def _run(plan: Sequence[jobs.Job], workspace: Workspace, processes: int) -> dict[str, str]:
    left = [job for job in plan if jobs.left_of(job, workspace)]
    if left:
        minutes = _said_minutes(jobs.minutes_left(left, workspace) / processes)
        print(f"{len(plan)} jobs, {len(plan) - len(left)} done; {minutes} left", flush=True)
    return jobs.run(left, workspace, processes)


def _plan(plan: Sequence[jobs.Job], workspace: Workspace, arguments: argparse.Namespace) -> int:
    if arguments.format == "jsonl":
        lines = list(jobs.as_lines(plan, workspace, f"tf-unravel paper run{_options(arguments)}"))
    else:
        lines = [f"{job}: {', '.join(jobs.left_of(job, workspace)) or 'done'}" for job in plan]
        minutes = jobs.minutes_left(plan, workspace)
        lines.append(f"{_said_minutes(minutes)} left" if minutes else "nothing left")
    print("\n".join(lines))
    return 0


def _said_minutes(minutes: float) -> str:
    return f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"


def _shown(exhibit: Exhibit, workspace: Workspace, arguments: argparse.Namespace) -> str:
    out = pathlib.Path(arguments.out or workspace.folder / "report")
    figures = report.draw(exhibit, workspace, out)
    return "\n\n".join([report.exhibit_text(exhibit, workspace), *(f"Figure: {path}" for path in figures)])


def _only(plan: Sequence[jobs.Job], name: str) -> list[jobs.Job]:
    found = [job for job in plan if str(job) == name]
    if not found:
        raise ConfigError(f"--job is one of `tf-unravel paper plan`'s. Received: {name!r}")
    return found


def _roots(lines: Sequence[str], scale: scales.Scale) -> dict[str, str]:
    roots = {}
    for line in lines:
        dataset, _, folder = line.partition("=")
        if dataset not in scale.datasets or not folder or not pathlib.Path(folder).is_dir():
            known = ", ".join(scale.datasets)
            raise ConfigError(f"--root is DATASET=FOLDER, DATASET one of {known}, FOLDER there. Received: {line!r}")
        roots[dataset] = folder
    return roots


def _options(arguments: argparse.Namespace) -> str:
    """The options that say what is run where, as a command line has them."""
    parts = [f"--scale={arguments.scale}", f"--seeds={','.join(map(str, arguments.seeds))}",
             f"--run_dir={arguments.run_dir}", *(f"--root={line}" for line in arguments.root),
             *(f"--gin_bindings={line}" for line in arguments.gin_bindings)]
    return "".join(f" {shlex.quote(part)}" for part in parts)
