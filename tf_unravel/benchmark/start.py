"""Seconds from the start of the command `tf-unravel train` to the end of its first step, with the data cached."""

import dataclasses
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

from tf_unravel import data
from tf_unravel.benchmark.child import command, environment, last_line
from tf_unravel.benchmark.measurement import Measurement, Target

_POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is started.

    Args:
        gin_file: the run.
        bindings: changes to it.
        images_per_class: of the glyphs.
        rounds: how often.
    """

    gin_file: str = "gin/run/demo_feature_clustering.gin"
    bindings: Sequence[str] = ()
    images_per_class: int = 600
    rounds: int = 3


FULL = Sizes()
QUICK = Sizes(bindings=("ClassPairs.batch_size = 8", "conv4.filters = 4"), images_per_class=20, rounds=1)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """The start of a training run on the glyphs, each time in a new run folder."""
    for split in ("train", "val"):
        data.load("glyphs", split, images_per_class=sizes.images_per_class)
    seconds = []
    for _ in range(sizes.rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(_seconds_to_first_step(sizes, pathlib.Path(folder)))
    what = f"`tf-unravel train` to its first step, {pathlib.Path(sizes.gin_file).stem}"
    yield Measurement(what, "s", tuple(seconds), target=Target(15.0, at_least=False, of_ratio=False))


def _seconds_to_first_step(sizes: Sizes, folder: pathlib.Path) -> float:
    bindings = (f"load.images_per_class = {sizes.images_per_class}", *sizes.bindings)
    arguments = ["train", f"--gin_file={sizes.gin_file}", f"--run_dir={folder / 'run'}"]
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
