"""Table 7: what an epoch of each training costs, its steps taken in turns with those of the others.

Runs of a network take one step each, round after round, in one process, every second round in reverse order: what slows
the machine down slows all of them, and their ratios stand. A step is timed on a batch drawn beforehand; an epoch is its
steps.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tf_unravel.files import write_json
from tf_unravel.reproduction.benchmark.timing import Work, interleaved
from tf_unravel.reproduction.jobs.measurements import Measured
from tf_unravel.reproduction.jobs.scales import RunName
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.runs import Devices, RunFolder, config
from tf_unravel.runs.folder import versions


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of some runs' epochs.

    Args:
        dataset: of the scale.
        network: the paper's.
        runs: that take turns.
        rounds: how many.
        base: the run whose epoch the others' are set against; None where the scale has none.
    """

    dataset: str
    network: str
    runs: tuple[RunName, ...]
    rounds: int
    base: RunName | None = None

    def __str__(self) -> str:
        return f"{self.dataset}/timing@{self.network}"

    def read(self, workspace: Workspace) -> dict[str, Any] | None:
        """What its file says; None where there is none for these runs and rounds."""
        try:
            found = json.loads(self.path(workspace).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found["runs"] == self._names and found["rounds"] == self.rounds else None

    def measured(self, workspace: Workspace, run: RunName, quantity: str) -> Measured | None:
        """One of the runs: seconds of an epoch ("epoch") or of all ("total"), or times the epoch of `base` ("ratio").

        A ratio is taken round by round.
        """
        found = self.read(workspace)
        if found is None:
            return None
        values = _seconds(found["times"][str(run)], quantity)
        if quantity == "ratio":
            base = _seconds(found["times"][str(self.base)], quantity)
            values = [one / other for one, other in zip(values, base, strict=True)]
        return Measured.of(values, "rounds", run.seed, "of training, batch statistics", found["device"])

    def take(self, workspace: Workspace) -> None:
        """Measures, and writes the file."""
        works, facts = {}, {}
        for run in self.runs:
            works[str(run)], facts[str(run)] = _work(workspace, run)
        rates = interleaved(works, self.rounds)
        times = {name: {**facts[name], "seconds": [1 / rate for rate in rates[name]]} for name in works}
        path = self.path(workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        device = versions()["device"]
        write_json(path, {"runs": self._names, "rounds": self.rounds, "device": device, "times": times})

    @property
    def _names(self) -> list[str]:
        return [str(run) for run in self.runs]

    def path(self, workspace: Workspace) -> pathlib.Path:
        """Its file."""
        return workspace.folder / self.dataset / f"timing@{self.network}.json"


def _seconds(times: dict[str, Any], quantity: str) -> list[float]:
    """Round by round, what the steps of all epochs or of one take."""
    steps = times["steps_per_epoch"] * (times["epochs"] if quantity == "total" else 1)
    return [seconds * steps for seconds in times["seconds"]]


def _work(workspace: Workspace, run: RunName) -> tuple[Work, dict[str, int]]:
    """One training step of a run, and how many its epoch has."""
    recorded = RunFolder(workspace.run_dir(run)).data_root()
    plan = config.plan(config.parse(*workspace.configuration(run), root=workspace.root(run), recorded=recorded))
    split = plan.dataset(split="train")
    learner = plan.build(config.DataFacts.of(split))
    steps = plan.batches.steps_per_epoch(split)
    learner.compile(optimizer=plan.optimizer(steps, total_epochs=plan.epochs))
    learner.optimizer.build(learner.trainable_variables)
    step = Devices().step(learner)
    batch = next(iter(plan.batches.dataset(split, plan.seed)))
    return Work(lambda: float(step(batch, False)[0]["loss"])), {"steps_per_epoch": steps, "epochs": plan.epochs}


def together(runs: Sequence[RunName | None]) -> tuple[RunName, ...]:
    """Those of the runs that a scale has, each once."""
    return tuple(dict.fromkeys(run for run in runs if run is not None))
