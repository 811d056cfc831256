"""Seconds from the start of the command `tf-unravel train` to the end of its first step, with the data cached."""

import dataclasses
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from tf_unravel import data
from tf_unravel.reproduction.benchmark.child import command, environment, last_line
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target

_POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is started.

    Args:
        runs: the run by name: its gin files, the bindings, and the seconds to stay under.
        bindings: changes to all of them.
        images_per_class: of the glyphs.
        rounds: how often.
    """

    runs: Mapping[str, tuple[Sequence[str], Sequence[str], float]] = dataclasses.field(default_factory=lambda: RUNS)
    bindings: Sequence[str] = ()
    images_per_class: int = 600
    rounds: int = 3


RUNS: Mapping[str, tuple[Sequence[str], Sequence[str], float]] = {
    "demo_feature_clustering": (("gin/run/demo_feature_clustering.gin",), (), 15.0),
    "maml, second order, conv4-32": (
        ("gin/data/glyphs.gin", "gin/backbone/conv4.gin", "gin/learner/maml.gin"),
        ("run.epochs = 1", "conv4.filters = 32", "Episodes.shots = 5"),
        20.0,
    ),
}


FULL = Sizes()
QUICK = Sizes(bindings=("ClassPairs.batch_size = 8", "conv4.filters = 4"), images_per_class=25, rounds=1)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """The start of a training run on the glyphs, each time in a new run folder."""
    for split in ("train", "val"):
        data.load("glyphs", split, images_per_class=sizes.images_per_class)
    for name, (gin_files, bindings, bound) in sizes.runs.items():
        lines = (f"load.images_per_class = {sizes.images_per_class}", *bindings, *sizes.bindings)
        seconds = []
        for _ in range(sizes.rounds):
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(_seconds_to_first_step(gin_files, lines, pathlib.Path(folder)))
        what = f"`tf-unravel train` to its first step, {name}"
        yield Measurement(what, "s", tuple(seconds), target=Target(bound, at_least=False, of_ratio=False))


def _seconds_to_first_step(gin_files: Sequence[str], bindings: Sequence[str], folder: pathlib.Path) -> float:
    arguments = ["train", f"--run_dir={folder / 'run'}", *(f"--gin_file={name}" for name in gin_files)]
    arguments += [f"--gin_bindings={line}" for line in bindings]
    metrics = folder / "run" / "metrics.jsonl"  # its first line is written right after the first step
    with open(folder / "errors", "w+", encoding="utf-8") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command("tf_unravel.cli", *arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    errors.seek(0)
                    raise ChildProcessError(f"tf-unravel train ended before its first step: {last_line(errors.read())}")
                time.sleep(_POLL_SECONDS)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
