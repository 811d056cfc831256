"""Peak memory of MAML's second-order step, with and without rematerialisation, and what the latter costs in time.

Each in a process of its own, one after the other, since the peak resident memory of a process never falls; interpreter,
TensorFlow and the images are in it.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from tf_unravel.reproduction.benchmark.child import run_module
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target

_PROCESS = "tf_unravel.reproduction.benchmark.meta_memory_process"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the step is; the defaults are what the target is about.

    Args:
        side, shots, queries, tasks, filters: of the images, the tasks, the meta-batch and conv4.
        steps: timed, after the first.
        rounds: of pairs of processes.
    """

    side: int = 84
    shots: int = 5
    queries: int = 15
    tasks: int = 4
    filters: int = 32
    steps: int = 3
    rounds: int = 1


FULL = Sizes()
QUICK = Sizes(16, 1, 1, 2, 4, 1)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Peak memory and steps a second of both ways."""
    outcomes: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(sizes.rounds):
        for rematerialize, found in outcomes.items():
            given = {**dataclasses.asdict(sizes), "rematerialize": rematerialize}
            found.append(run_module(_PROCESS, json.dumps(given)))
    peaks, rates = (
        {way: tuple(outcome[key] for outcome in found) for way, found in outcomes.items()}
        for key in ("peak_gib", "steps_per_second")
    )
    what = f"MAML second order, {sizes.side}x{sizes.side}, {sizes.shots}-shot, {sizes.tasks} tasks"
    bound = Target(8.0, at_least=False, of_ratio=False)
    if peaks[False][0] is not None:
        yield Measurement(f"{what}: peak memory", "GiB", peaks[False], target=bound)
        yield Measurement(f"{what}, rematerialized: peak memory", "GiB", peaks[True], peaks[False], "kept", bound)
    yield Measurement(f"{what}, rematerialized", "steps/s", rates[True], rates[False], "kept")
