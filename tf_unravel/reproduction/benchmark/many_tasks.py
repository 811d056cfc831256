"""100,000 tasks under all three kernel heads at 1 and 5 shots: seconds and peak memory once the features are there.

Measured in a process of its own, since the peak resident memory of a process never falls. The peak counts everything:
interpreter, TensorFlow and the features themselves (12,000 x 8192 float32: 0.37 GiB).
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

from tf_unravel.reproduction.benchmark.child import run_module
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target

_PROCESS = "tf_unravel.reproduction.benchmark.many_tasks_process"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        num_images, num_classes, dimension: of the features.
        num_tasks: under each head at each number of shots.
        rounds: processes started one after the other.
        heads: names of the heads.
    """

    num_images: int = 12000
    num_classes: int = 20
    dimension: int = 8192
    num_tasks: int = 100_000
    rounds: int = 2
    heads: Sequence[str] = ("prototypes", "ridge", "svm")


FULL = Sizes()
QUICK = Sizes(200, 5, 12, 20, 1, ("prototypes",))


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Seconds and peak memory, each a measurement of its own."""
    outcomes = [run_module(_PROCESS, json.dumps(dataclasses.asdict(sizes))) for _ in range(sizes.rounds)]
    what = (
        f"{sizes.num_tasks:,} tasks under each of {len(sizes.heads)} heads at 1 and 5 shots, "
        f"{sizes.num_images:,} images, D={sizes.dimension}"
    )
    seconds = tuple(outcome["seconds"] for outcome in outcomes)
    yield Measurement(what, "s", seconds, target=Target(120.0, at_least=False, of_ratio=False))
    if outcomes[0]["peak_bytes"] is not None:
        peaks = tuple(outcome["peak_bytes"] / 2**30 for outcome in outcomes)
        yield Measurement(f"{what}: peak memory", "GiB", peaks, target=Target(4.0, at_least=False, of_ratio=False))
