"""What is measured of a run, and the file that keeps it.

Each measurement of a run is a small JSON file in `<run>/paper/`, written when it is done and whole or absent, so that a
report that was broken off goes on where it was. It keeps the values of single tasks (or pairs of classes): the same
seed draws the same tasks for every run, and two runs are compared task by task.
"""

import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tf_unravel import analysis, data, evaluation
from tf_unravel.files import write_json
from tf_unravel.heads import said_of
from tf_unravel.runs import FinishedRun, RunFolder, config
from tf_unravel.runs.figures import projection

SEED = 0  # of tasks, pairs and projected images


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured number, with all that must be said beside it.

    Args:
        mean: of the values.
        error: their standard error.
        count: how many values.
        unit: what they are: "tasks", "pairs" or "rounds".
        seed: that drew them.
        protocol: how BatchNorm behaved and the network was adapted.
        values: [count], NaN where there is none.
        fingerprint: of the images; values of another one are those of other tasks.
        rate: of fine-tuning, where it was chosen on validation classes.

    Raises:
        ValueError: something of it is missing.
    """

    mean: float
    error: float
    count: int
    unit: str
    seed: int
    protocol: str
    values: np.ndarray = dataclasses.field(repr=False)
    fingerprint: str = dataclasses.field(repr=False)
    rate: float | None = None

    def __post_init__(self) -> None:
        said = {"mean": self.mean, "error": self.error, "count": self.count, "seed": self.seed}
        missing = [name for name, value in said.items() if value is None or not math.isfinite(value)]
        missing += [name for name in ("unit", "protocol", "fingerprint") if not getattr(self, name)]
        if missing or self.count < 2:
            raise ValueError(
                "A measured number is printed with its interval, the number of its tasks, their seed and the BatchNorm "
                f"protocol, or not at all. Received: {', '.join(missing) or f'count={self.count}'} missing in {self}."
            )

    @classmethod
    def of(
        cls, values: Sequence[float], unit: str, seed: int, protocol: str, fingerprint: str, rate: float | None = None
    ) -> "Measured":
        """Summarises values; NaN ones do not count."""
        array = np.asarray(values, np.float64)
        there = array[np.isfinite(array)]
        error = float(there.std(ddof=1) / math.sqrt(len(there))) if len(there) > 1 else math.nan
        mean = float(there.mean()) if len(there) else math.nan
        return cls(mean, error, len(there), unit, seed, protocol, array, fingerprint, rate)

    def times(self, factor: float) -> "Measured":
        """The same number in another unit, such as %."""
        return dataclasses.replace(
            self, mean=factor * self.mean, error=abs(factor) * self.error, values=factor * self.values
        )


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Few-shot accuracy on new classes.

    Args:
        head: its name; "own" is the inner loop that the run was trained for.
        shots: per class.
        tasks: how many.
        bindings: gin lines that set the head.
        ways: classes of a task.
        queries: per class.
    """

    head: str
    shots: int
    tasks: int
    bindings: tuple[str, ...] = ()
    ways: int = 5
    queries: int = 15

    seed: ClassVar[int] = SEED

    @property
    def adapts(self) -> bool:
        """Whether the network itself is adapted to each task."""
        return config.may_adapt([self.head])

    @property
    def file(self) -> str:
        """The name of its file."""
        other = "" if (self.ways, self.queries) == (Accuracy.ways, Accuracy.queries) else (
            f"{self.ways}-way_{self.queries}-query_"
        )
        return f"accuracy_{self.head}_{other}{self.shots}-shot.json"


@dataclasses.dataclass(frozen=True)
class Trial:
    """Accuracy of fine-tuning at one rate on the *validation* classes, with tasks of a seed of their own.

    Args:
        rate: of gradient descent.
        shots: per class.
        tasks: how many.
        settings: gin lines that set the rest of the head.
    """

    rate: float
    shots: int
    tasks: int
    settings: tuple[str, ...]

    head: ClassVar[str] = "fine_tune"
    adapts: ClassVar[bool] = True
    ways: ClassVar[int] = Accuracy.ways
    queries: ClassVar[int] = Accuracy.queries
    split: ClassVar[str] = "val"
    seed: ClassVar[int] = SEED + 1

    @property
    def bindings(self) -> tuple[str, ...]:
        """The gin lines of the head."""
        return (*self.settings, f"FineTune.learning_rate = {self.rate!r}")

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"trial_{self.head}_{self.rate:g}_{self.shots}-shot.json"


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Few-shot accuracy on new classes after fine-tuning at the rate that is best on the validation classes.

    The rate is chosen for each trained network and each number of shots; the test classes have no say in it.

    Args:
        shots: per class.
        tasks: how many.
        rates: to choose from.
        trial_tasks: for each of them, on the validation classes; no trial where there is but one rate.
        settings: gin lines that set the rest of the head.
    """

    shots: int
    tasks: int
    rates: tuple[float, ...]
    trial_tasks: int
    settings: tuple[str, ...] = ()

    head: ClassVar[str] = "fine_tune"
    adapts: ClassVar[bool] = True
    ways: ClassVar[int] = Accuracy.ways
    queries: ClassVar[int] = Accuracy.queries
    seed: ClassVar[int] = SEED

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"accuracy_{self.head}_tuned_{self.shots}-shot.json"

    def at(self, rate: float) -> Trial:
        """The trial of a rate."""
        return Trial(rate, self.shots, self.trial_tasks, self.settings)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What decides."""
        return tuple(map(self.at, self.rates)) if len(self.rates) > 1 else ()

    def choice(self, run_dir: pathlib.Path) -> dict[str, Any]:
        """The best rate of the trials that a run has, with every rate's accuracy on the validation classes.

        Raises:
            ValueError: fine-tuning came to an end at none of the rates.
        """
        if not self.trials:
            return {"rate": self.rates[0], "validation": {}, "trial_seconds": 0.0}
        found = {trial.rate: read(run_dir, trial) or {} for trial in self.trials}
        means = {rate: float(np.mean(each["values"]["accuracy"])) for rate, each in found.items() if each.get("values")}
        if not means:
            problems = dict.fromkeys(str(each.get("problem")) for each in found.values())
            raise ValueError(f"Fine-tuning failed on the validation classes at every rate: {'; '.join(problems)}")
        return {"rate": max(means, key=lambda rate: (means[rate], -rate)),
                "validation": {f"{rate:g}": means.get(rate) for rate in self.rates},
                "trial_seconds": sum(each.get("seconds", 0.0) for each in found.values())}


@dataclasses.dataclass(frozen=True)
class Separation:
    """r_fc and r_hv of a split, by the estimators of Tables 2 and 4.

    Args:
        split: "train" or "test".
        pairs: of classes drawn.
    """

    split: str
    pairs: int

    adapts: ClassVar[bool] = False

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"separation_{self.split}.json"


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far the weights travel while they are fine-tuned to a task, by the run's own inner loop.

    Args:
        shots: per class.
        tasks: how many.
    """

    shots: int
    tasks: int

    adapts: ClassVar[bool] = True

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"distance_{self.shots}-shot.json"


@dataclasses.dataclass(frozen=True)
class Projection:
    """Three test classes projected by LDA, 100 images each."""

    adapts: ClassVar[bool] = False
    file: ClassVar[str] = "projection.json"


Measurement = Accuracy | Trial | Tuned | Separation | Distance | Projection


def missing(run_dir: pathlib.Path, wanted: Iterable[Measurement]) -> list[Measurement]:
    """Those of the wanted measurements that a run has not, or has of another state of its weights or settings."""
    return [each for each in wanted if read(run_dir, each) is None]


def read(run_dir: pathlib.Path, wanted: Measurement) -> dict[str, Any] | None:
    """What a run's file of a measurement says; None where it has none that is valid."""
    try:
        found = json.loads((run_dir / "paper" / wanted.file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    valid = isinstance(found, dict) and found.get("about") == _about(RunFolder(run_dir), wanted)
    return found if valid else None


def measured(run_dir: pathlib.Path, wanted: Measurement, quantity: str) -> Measured | None:
    """One number of a run.

    Args:
        run_dir: the run's folder.
        wanted: the measurement that it belongs to.
        quantity: "accuracy", "r_fc", "r_hv" or "distance".
    """
    found = read(run_dir, wanted)
    if found is None:
        return None
    rate, protocol = found.get("rate"), found["protocol"]
    if rate is not None:  # which differs from network to network: it is printed beside the number
        protocol = protocol.replace(f"at rate {rate:g}", "at the rate beside the number")
    return Measured.of(
        found["values"][quantity], found["unit"], found["seed"], protocol, found["fingerprint"], rate
    )


def take(run_dir: pathlib.Path, root: str | None, wanted: Sequence[Measurement]) -> None:
    """Takes measurements of a finished run and writes each when it is done.

    Args:
        run_dir: the run's folder.
        root: the folder of the images; None for the one that the run has recorded.
        wanted: what to measure.
    """
    tuned = [each for each in wanted if isinstance(each, Tuned)]
    trials = missing(run_dir, dict.fromkeys(trial for each in tuned for trial in each.trials))
    others = [each for each in wanted if not isinstance(each, Tuned)]
    _take(run_dir, root, {each: getattr(each, "bindings", ()) for each in [*others, *trials]})
    _take(run_dir, root, {each: each.at(each.choice(run_dir)["rate"]).bindings for each in tuned})


def _take(run_dir: pathlib.Path, root: str | None, wanted: Mapping[Measurement, tuple[str, ...]]) -> None:
    """Takes measurements, each with the gin lines of its head."""
    for bindings in dict.fromkeys(wanted.values()):
        group = [each for each, lines in wanted.items() if lines == bindings]
        run = FinishedRun(run_dir, bindings, adapts=any(each.adapts for each in group), data_root=root)
        for split_name in dict.fromkeys(_split(each) for each in group):
            here = [each for each in group if _split(each) == split_name]
            _Taking(run, run.split(split_name)).all_of(here)


class _Taking:
    """Measurements on one split of one run; the features are computed once."""

    def __init__(self, run: FinishedRun, split: data.ClassImages):
        self.run, self.split = run, split
        self._features: np.ndarray | None = None

    @property
    def features(self) -> np.ndarray:
        if self._features is None:
            self._features = evaluation.extract_features(self.run.backbone, self.split.images)
        return self._features

    def all_of(self, wanted: Sequence[Measurement]) -> None:
        """Takes them, those that share work together, and writes each when it is done."""
        takes: dict[type, Callable[..., Iterator[dict[str, Any]]]] = {
            Accuracy: self.accuracies, Trial: self.trial, Tuned: self.tuned, Separation: self.separation,
            Distance: self.distance, Projection: self.projection,
        }  # fmt: skip
        reading = [each for each in wanted if isinstance(each, Accuracy) and not each.adapts]
        for tasks in dict.fromkeys((each.ways, each.queries, each.tasks) for each in reading):
            together = [each for each in reading if (each.ways, each.queries, each.tasks) == tasks]
            self._timed(together, self.accuracies)
        for each in wanted:
            if each not in reading:
                self._timed([each], takes[type(each)])

    def _timed(self, wanted: Sequence[Measurement], take_them: Callable[..., Iterator[dict[str, Any]]]) -> None:
        began = time.monotonic()
        for each, taken in zip(wanted, take_them(wanted), strict=True):
            seed = getattr(each, "seed", SEED)
            _write(self.run.folder, each, {**taken, "fingerprint": self.split.fingerprint, "seed": seed,
                                           "checkpoint_step": self.run.step, "seconds": time.monotonic() - began})

    def accuracies(self, wanted: Sequence[Accuracy | Trial | Tuned]) -> Iterator[dict[str, Any]]:
        """All from one pass over the images, or, of heads that adapt the network, from the network."""
        heads = config.heads_named(list(dict.fromkeys(each.head for each in wanted)), self.run.learner)
        first = wanted[0]
        accuracies = evaluation.evaluate_heads(
            self.run.backbone if first.adapts else self.features, heads, self.split, first.ways,
            sorted({each.shots for each in wanted}), first.queries, first.tasks, first.seed,
        )
        for each in wanted:
            accuracy = accuracies[each.head][each.shots]
            yield {"values": {"accuracy": _short(accuracy.per_task)}, "unit": "tasks", "protocol": accuracy.protocol}

    def trial(self, wanted: Sequence[Trial]) -> Iterator[dict[str, Any]]:
        """A rate at which fine-tuning does not come to an end is no candidate; what went wrong is kept."""
        for each in wanted:
            try:
                yield from self.accuracies([each])
            except ValueError as error:
                yield {"values": {}, "problem": str(error)}

    def tuned(self, wanted: Sequence[Tuned]) -> Iterator[dict[str, Any]]:
        for each in wanted:
            for taken in self.accuracies([each]):
                yield {**taken, **each.choice(self.run.folder.path)}

    def separation(self, wanted: Sequence[Separation]) -> Iterator[dict[str, Any]]:
        for each in wanted:
            r_fc, r_hv = analysis.pair_ratios(self.features, self.split.class_ids, each.pairs, SEED)
            yield {"values": {"r_fc": _short(r_fc), "r_hv": _short(r_hv)}, "unit": "pairs",
                   "protocol": evaluation.INDUCTIVE}

    def distance(self, wanted: Sequence[Distance]) -> Iterator[dict[str, Any]]:
        head = self.run.learner.own_head()
        for each in wanted:
            travelled = analysis.distance_travelled(
                self.run.backbone, head, self.split, Accuracy.ways, each.shots, each.tasks, SEED
            )
            yield {"values": {"distance": _short(travelled)}, "unit": "tasks",
                   "protocol": "; ".join(said_of(head, self.run.backbone))}

    def projection(self, wanted: Sequence[Projection]) -> Iterator[dict[str, Any]]:
        for _ in wanted:
            points, class_ids = projection(self.features, self.split, SEED) or (np.zeros((0, 2)), np.zeros(0, int))
            yield {"points": [_short(row) for row in points], "class_ids": class_ids.tolist(),
                   "class_names": list(self.split.class_names)}


def _split(wanted: Measurement) -> str:
    return getattr(wanted, "split", "test")


def _short(values: np.ndarray) -> list[float | None]:
    """Values for JSON, to nine digits; NaN as null."""
    return [float(f"{value:.9g}") if np.isfinite(value) else None for value in values]


def _about(folder: RunFolder, wanted: Measurement) -> dict[str, Any]:
    """What a file must agree with to be valid: the settings, and the weights that were measured."""
    training = folder.training_results()
    return {"measurement": type(wanted).__name__, **json.loads(json.dumps(dataclasses.asdict(wanted))),
            "trained_steps": training.get("step"), "best_step": training.get("best_step")}


def _write(folder: RunFolder, wanted: Measurement, values: dict[str, Any]) -> None:
    path = folder.path / "paper" / wanted.file
    path.parent.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, {"about": _about(folder, wanted), "finished": now, **values})
