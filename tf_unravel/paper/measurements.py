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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from tf_unravel import analysis, data, evaluation
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
    def of(cls, values: Sequence[float], unit: str, seed: int, protocol: str, fingerprint: str) -> "Measured":
        """Summarises values; NaN ones do not count."""
        array = np.asarray(values, np.float64)
        there = array[np.isfinite(array)]
        error = float(there.std(ddof=1) / math.sqrt(len(there))) if len(there) > 1 else math.nan
        mean = float(there.mean()) if len(there) else math.nan
        return cls(mean, error, len(there), unit, seed, protocol, array, fingerprint)


    def times(self, factor: float) -> "Measured":
        """The same number in another unit, such as %."""
        return dataclasses.replace(
            self, mean=factor * self.mean, error=abs(factor) * self.error, values=factor * self.values
        )


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Few-shot accuracy on new classes, 5-way, 15 queries.

    Args:
        head: its name; "own" is the inner loop that the run was trained for.
        shots: per class.
        tasks: how many.
        bindings: gin lines that set the head.
    """

    head: str
    shots: int
    tasks: int
    bindings: tuple[str, ...] = ()

    ways: ClassVar[int] = 5
    queries: ClassVar[int] = 15

    @property
    def adapts(self) -> bool:
        """Whether the network itself is adapted to each task."""
        return config.may_adapt([self.head])

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"accuracy_{self.head}_{self.shots}-shot.json"


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


Measurement = Accuracy | Separation | Distance | Projection


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
    return Measured.of(found["values"][quantity], found["unit"], found["seed"], found["protocol"], found["fingerprint"])


def take(run_dir: pathlib.Path, bindings: Sequence[str], wanted: Sequence[Measurement]) -> None:
    """Takes measurements of a finished run and writes each when it is done.

    Args:
        run_dir: the run's folder.
        bindings: gin lines that change the run for this reading, such as another `load.root`.
        wanted: what to measure.
    """
    for head_bindings, group in _by_bindings(wanted):
        run = FinishedRun(run_dir, [*bindings, *head_bindings], adapts=any(each.adapts for each in group))
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
            Accuracy: self.accuracies, Separation: self.separation, Distance: self.distance,
            Projection: self.projection,
        }  # fmt: skip
        reading = [each for each in wanted if isinstance(each, Accuracy) and not each.adapts]
        if reading:
            self._timed(reading, self.accuracies)
        for each in wanted:
            if each not in reading:
                self._timed([each], takes[type(each)])

    def _timed(self, wanted: Sequence[Measurement], take_them: Callable[..., Iterator[dict[str, Any]]]) -> None:
        began = time.monotonic()
        for each, taken in zip(wanted, take_them(wanted), strict=True):
            _write(self.run.folder, each, {**taken, "fingerprint": self.split.fingerprint, "seed": SEED,
                                           "checkpoint_step": self.run.step, "seconds": time.monotonic() - began})

    def accuracies(self, wanted: Sequence[Accuracy]) -> Iterator[dict[str, Any]]:
        """All from one pass over the images, or, of heads that adapt the network, from the network."""
        heads = config.heads_named(list(dict.fromkeys(each.head for each in wanted)), self.run.learner)
        first = wanted[0]
        accuracies = evaluation.evaluate_heads(
            self.run.backbone if first.adapts else self.features, heads, self.split, first.ways,
            sorted({each.shots for each in wanted}), first.queries, first.tasks, SEED,
        )
        for each in wanted:
            accuracy = accuracies[each.head][each.shots]
            yield {"values": {"accuracy": _short(accuracy.per_task)}, "unit": "tasks", "protocol": accuracy.protocol}

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


def _by_bindings(wanted: Sequence[Measurement]) -> Iterator[tuple[tuple[str, ...], list[Measurement]]]:
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for each in wanted:
        groups.setdefault(getattr(each, "bindings", ()), []).append(each)
    yield from groups.items()


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
    folder.write_json(path, {"about": _about(folder, wanted), "finished": now, **values})
